"""Tuning for towers of every kind: a few real steps, then a variant that answers; and what cannot be tuned."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from export.cli import main
from export.content import content_of
from export.towers import load_tower
from export.training_loop import CheckpointError
from export.tune.tuning import TuneSettings, Tuning, tune
from synthesis.merging import variant_net
from synthesis.variant import load_variant
from tests.cloud.tiny_clip import write_tiny_clip
from tests.export.tiny_towers import NAMES, write_tiny
from tests.tiny_bundle import make_tiny_still
from thinwire.bundle import load_bundle


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {name: write_tiny(name, root / name) for name in NAMES}


@pytest.fixture(scope="module")
def asked(bundle_folder):
    return TuneSettings(str(bundle_folder), steps=2, count=8, batch=4, threads=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("into", ["pixels", "tower"])
def test_a_few_steps_for_every_kind_of_tower_give_a_decoder_that_answers(asked, towers, name, into, tmp_path):
    variant = tune(replace(asked, clip=str(towers[name]), into=into), tmp_path)
    tower, bundle = load_tower(str(towers[name])), load_bundle(asked.bundle)
    variant.check_bundle(bundle)
    variant.check_clip(tower.id)
    net = variant_net(variant, tower.net.visual, tower.height, tower.width)
    symbols = torch.zeros(2, *bundle.latent_shape)
    with torch.inference_mode():
        out = net(symbols, torch.tensor([1, 2]))
    if into == "pixels":
        assert out.shape == (2, 3, *bundle.input_size)
    else:
        torch.testing.assert_close(out.norm(dim=1), torch.ones(2))
    records = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    assert all(np.isfinite(value) for record in records for value in record.values())
    assert variant.about["training"]["teachers"] == [tower.id]


def test_a_run_goes_on_where_it_stopped_and_learns(asked, towers, tmp_path):
    settings = replace(asked, clip=str(towers["ViT"]), into="tower", steps=40, count=36, learning_rate=3e-4)
    variant = tune(settings, tmp_path)
    before, after = variant.about["held_out"]["before"], variant.about["held_out"]["after"]
    assert after["answer_3"] < before["answer_3"]
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again = Tuning(settings)
    again.restore(state)
    assert (again.progress, again.steps) == (1.0, 40)
    with pytest.raises(CheckpointError, match="another net"):
        Tuning(replace(settings, into="pixels")).restore(state)


def test_a_finished_run_is_not_written_again_for_another_clip(asked, tmp_path):
    one, other = (write_tiny_clip(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "other")))
    tune(replace(asked, clip=str(one), steps=1), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"is of CLIP one#.*, this run is of other#.*give another --out"):
        tune(replace(asked, clip=str(other), steps=1), tmp_path / "run")


def test_symbols_are_the_encoders_and_lower_rates_lack_channels(bundle_folder):
    from export.onnx_export import encode_views

    bundle = load_bundle(bundle_folder)
    content = content_of(bundle)
    views = np.random.default_rng(0).integers(0, 256, (3, *bundle.input_size, 3), dtype=np.uint8)
    stored = content.of(views, np.ones(3))
    np.testing.assert_array_equal(stored, encode_views(bundle.encoder_path(), views))
    shown = content.shown(torch.from_numpy(stored), torch.tensor([1, 2, 3]))
    for row, layers in enumerate((1, 2, 3)):
        stop = bundle.card.wire["layers"][layers - 1]["channels"][1]
        assert not shown[row, stop:].any()
        torch.testing.assert_close(shown[row, :stop], torch.from_numpy(stored[row, :stop]).float())


def test_the_command_line_writes_a_variant(asked, towers, tmp_path, capsys):
    words = ["tune", "--bundle", asked.bundle, "--clip", str(towers["RN50"]), "--steps", "1", "--count", "8"]
    assert main([*words, "--batch", "4", "--threads", "1", "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run" / "decoder")
    assert load_variant(tmp_path / "run" / "decoder").into == "pixels"


def test_what_cannot_be_tuned_is_refused(asked, tmp_path):
    for settings, said in (
        (replace(asked, clip="timm:no_such_net"), "timm.list_models"),
        (replace(asked, clip="no-such-clip"), "no such file or folder"),
        (replace(asked, into="air"), "choose pixels or tower"),
    ):
        with pytest.raises(Exception, match=said):
            tune(settings, tmp_path)


def test_a_plain_still_begins_with_its_own_picture(towers, tmp_path):
    bundle = make_tiny_still(tmp_path / "still", size=64)
    settings = TuneSettings(str(bundle.path), str(towers["RN50"]), steps=1, count=8, batch=4, threads=1)
    variant = tune(settings, tmp_path / "run")
    assert variant.spec["arch"] == "restore"
