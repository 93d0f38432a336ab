"""`thinwire-export still`: rungs with the start that their frames share, in a bundle without any network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import synthesis
from export import still
from export.cli import main
from export.photographs.options import PhotographOptions
from export.restoring import RestoreSettings
from tests.tiny_bundle import synthetic_views
from thinwire.bundle import load_bundle
from thinwire.errors import BundleError


@pytest.fixture(autouse=True)
def photographs(monkeypatch, tmp_path):
    monkeypatch.setenv("THINWIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(still, "training_views", lambda photographs, count: synthetic_views(count, still.SIZE))


def test_the_command_writes_a_bundle_of_the_six_rungs(tmp_path, capsys):
    assert main(["still", "--out", str(tmp_path / "still"), "--count", "6"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "still")
    bundle = load_bundle(tmp_path / "still")
    assert list(bundle.rates) == list(still.RUNGS)
    assert [(rung.form.width, rung.quality) for rung in bundle.coder.rungs] == [r[:2] for r in still.RUNGS.values()]
    assert all(len(rung.lead) >= 4 for rung in bundle.coder.rungs)
    planes = np.ascontiguousarray(synthetic_views(1, still.SIZE, seed=9)[0].transpose(2, 0, 1))
    assert bundle.decode(bundle.encode(planes, "mid")).shape == planes.shape


def test_the_lead_is_the_start_that_saves_most_bytes():
    assert still.common_lead([b"abcd1", b"abcd2", b"abxx3"]) == b"abcd"  # 2 x 4 bytes; "ab" would save 3 x 2
    assert still.common_lead([b"ab1", b"ab2", b"ab3", b"abcd4"]) == b"ab"
    assert still.common_lead([b"a" * 50]) == b"a" * 32


def test_a_list_of_bundles_shows_it(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    main(["still", "--out", str(tmp_path / "still"), "--count", "4"])
    assert main(["list", str(tmp_path / "still")]) == 0
    assert "Pillow's AV1" in capsys.readouterr().out


def test_restore_writes_the_same_packets_with_a_network_behind_them(tmp_path, capsys):
    main(["still", "--out", str(tmp_path / "still"), "--count", "4"])
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, view in enumerate(synthetic_views(40, 64)):
        Image.fromarray(view).save(photos / f"{number}.png")
    words = ["restore", "--bundle", str(tmp_path / "still"), "--images", str(photos), "--steps", "2", "--count", "4"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    plain, restored = load_bundle(tmp_path / "still"), load_bundle(capsys.readouterr().out.splitlines()[-1])
    assert restored.model_id == plain.model_id
    net = synthesis.load(restored)
    assert net.strength.tolist() == pytest.approx([strength for strength, _ in still.RESTORED.values()], abs=1e-3)
    training = restored.card.about["training"]
    assert (training["restoring"]["settings"]["steps"], training["restoring"]["teachers"]) == (2, [])
    with torch.inference_mode():
        planes = torch.full((6, 3, 224, 224), 128.0)
        assert net(planes, torch.arange(1, 7)).shape == planes.shape


def test_other_families_are_not_restored(tmp_path):
    with pytest.raises(BundleError, match="stills alone"):
        still.restore_still("layered", RestoreSettings(), PhotographOptions(), tmp_path)
