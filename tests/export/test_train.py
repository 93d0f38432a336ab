from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import pytest
import torch

from export.augment import crops
from export.families import CONV, FAMILIES
from export.families.front import IMAGE_MEAN, IMAGE_STD
from export.photographs.collection import open_photographs
from export.rate import round_through
from export.train import Trainer, train

pytestmark = pytest.mark.slow


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_a_checkpoint_its_settings_and_one_finite_log_line(run, settings):
    (record,) = log_of(run)
    assert all(math.isfinite(value) for value in record.values())
    assert (record["step"], record["progress"]) == (3, 1.0)
    assert {"loss", "psnr_db", "feature", "bytes_1", "bytes_2", "bytes_3", "images_per_s"} <= set(record)
    assert 0 <= record["feature"] <= 2
    written = json.loads((run / "settings.json").read_text())
    assert written.items() >= {"family": "conv", **json.loads(json.dumps(asdict(settings)))}.items()
    assert torch.load(run / "checkpoint.pt", weights_only=True)["progress"] == 1.0
    assert not list(run.glob("*.partial"))


def test_each_window_of_25_steps_is_one_log_line_and_pictures_come_nearer(settings, tmp_path):
    """50 steps on twelve photographs are enough for the decoder to leave its random start behind."""
    train(CONV, replace(settings, steps=51, batch=1), tmp_path)
    records = log_of(tmp_path)
    assert [record["step"] for record in records] == [25, 50, 51]
    assert [record["progress"] for record in records] == sorted(record["progress"] for record in records)
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[1]["feature"] < records[0]["feature"]


def test_a_finished_run_is_left_as_it_is(run, settings):
    before = (run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_bytes()
    train(CONV, settings, run)
    assert ((run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_bytes()) == before


def interrupted(run, folder, progress):
    """A run folder as if training had stopped at `progress`."""
    folder.mkdir(exist_ok=True)
    torch.save(torch.load(run / "checkpoint.pt", weights_only=True) | {"progress": progress}, folder / "checkpoint.pt")
    return folder


def test_restoring_gives_back_weights_optimiser_and_multipliers(run, settings):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    trainer = Trainer(CONV, settings)
    trainer.restore(state)
    again = trainer.state()
    assert again["progress"] == state["progress"]
    assert again["log_lambda"] == state["log_lambda"]
    assert set(state["log_lambda"]) != {math.log(1e-5)}  # three steps did move them from where all start
    for part in ("analysis", "synthesis", "rate"):
        assert all(torch.equal(value, state[part][name]) for name, value in again[part].items())
    moments = [entry["exp_avg"] for entry in again["optimiser"]["state"].values()]
    wanted = [entry["exp_avg"] for entry in state["optimiser"]["state"].values()]
    assert len(moments) == len(wanted) > 0
    assert all(map(torch.equal, moments, wanted))


def test_a_timed_run_goes_on_from_its_progress(run, settings, tmp_path):
    """A ten-thousandth of a half-minute run is left: less than one step. A run begun anew would take all of it."""
    folder = interrupted(run, tmp_path, 0.9999)
    train(CONV, replace(settings, steps=None, minutes=0.5), folder)
    assert [(record["step"], record["progress"]) for record in log_of(folder)] == [(1, 1.0)]
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["progress"] == 1.0


def test_a_run_of_counted_steps_goes_on_from_its_progress(run, settings, tmp_path):
    folder = interrupted(run, tmp_path, 0.5)
    train(CONV, replace(settings, steps=4), folder)
    assert [(record["step"], record["progress"]) for record in log_of(folder)] == [(2, 1.0)]


def losses(settings, steps=2):
    trainer = Trainer(CONV, settings)
    trainer.progress = 0.3  # analysis, decoder and rate all learn
    return [trainer.step()["loss"] for _ in range(steps)]


def test_equal_seeds_give_equal_losses(settings):
    first = losses(settings)
    assert losses(settings) == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize(("progress", "moves"), [(0.0, False), (0.3, True), (0.9, False)])
def test_the_analysis_learns_only_in_its_stage(settings, progress, moves):
    """It waits for the decoder at the start, and is frozen at the end so that the decoder alone follows the tower."""
    trainer = Trainer(CONV, settings)
    trainer.progress = progress
    encoder = {name: value.clone() for name, value in trainer.analysis.named_parameters() if value.requires_grad}
    decoder = trainer.synthesis.stem.weight.clone()
    trainer.step()
    now = dict(trainer.analysis.named_parameters())
    assert any(not torch.equal(now[name], value) for name, value in encoder.items()) is moves
    assert not torch.equal(trainer.synthesis.stem.weight, decoder)


def test_crops_are_normalised_and_seeded():
    images = open_photographs()
    first = crops(images, 64, 5, torch.Generator().manual_seed(3), "cpu")
    assert (first.shape, first.dtype) == ((5, 3, 64, 64), torch.float32)
    assert first.min() >= (0 - IMAGE_MEAN) / IMAGE_STD
    assert first.max() <= (255 - IMAGE_MEAN) / IMAGE_STD
    assert torch.equal(first, crops(images, 64, 5, torch.Generator().manual_seed(3), "cpu"))
    assert not torch.equal(first, crops(images, 64, 5, torch.Generator().manual_seed(4), "cpu"))


def test_rounding_passes_gradients_as_if_it_were_not_there():
    latents = torch.tensor([-40.0, -1.4, 0.2, 0.7, 99.0], requires_grad=True)
    symbols = round_through(latents, -15, 15)
    assert symbols.tolist() == [-15, -1, 0, 1, 15]
    symbols.sum().backward()
    assert latents.grad.tolist() == [1.0] * 5


TRAINED = {name: family for name, family in FAMILIES.items() if name != "linear"}
TRAINED["linear-learned"] = FAMILIES["linear"].with_decoder("learned")


@pytest.mark.parametrize("family", TRAINED.values(), ids=TRAINED)
def test_every_family_learns_in_every_stage(family, settings):
    """A step with the encoder and one of tuning: finite, and the decoder moves. Only the loop knows them all alike."""
    trainer = Trainer(family, replace(settings, crop=96, tuning_crop=96))
    for progress in (0.3, 0.9):
        before = {name: value.clone() for name, value in trainer.synthesis.named_parameters()}
        trainer.progress = progress
        record = trainer.step()
        assert all(math.isfinite(value) for value in record.values())
        assert all(record[f"bytes_{layer}"] > 0 for layer in range(1, len(family.layers) + 1))
        assert any(not torch.equal(value, before[name]) for name, value in trainer.synthesis.named_parameters())
    assert all(math.isfinite(value) for value in trainer.held_out().values())


@pytest.mark.parametrize(("family", "steered"), [("conv", True), ("vae", True), ("vq", False)])
def test_only_rates_that_can_be_bought_are_steered(family, steered, settings):
    trainer = Trainer(FAMILIES[family], settings)
    trainer.progress = 0.3
    before = list(trainer.controller.log_lambda)
    trainer.step()
    assert (trainer.controller.log_lambda != before) is steered


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_agrees_with_itself(family):
    """Layers cover the channels, each has a target, rates rise, and both nets speak of the same latent."""
    spans = [0, *(edge for span in family.layers for edge in span), family.channels]
    assert all(spans[i] == spans[i + 1] for i in range(0, len(spans), 2))
    assert len(family.layer_bytes) == len(family.layers)
    layers = [count for _, count in family.rates]
    assert layers == sorted(set(layers))
    assert 1 <= layers[0] <= layers[-1] <= len(family.layers)
    analysis = family.analysis().eval()
    with torch.inference_mode():
        latents = analysis(torch.zeros(1, 3, 64, 96))
        made = family.synthesis().eval()(latents.round(), torch.tensor([1]))
    assert latents.shape == (1, family.channels, 64 // family.stride, 96 // family.stride)
    assert made.shape == ((1, 3, 64, 96) if family.output == "pixels" else (1, 384))
