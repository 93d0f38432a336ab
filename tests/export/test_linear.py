"""Family `linear`: an orthonormal transform, steps that nest, water that sinks, a least-squares decoder."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import synthesis
from edge.encoder import Encoder
from export.bundles import make_bundle
from export.cli import main
from export.families import FAMILIES
from export.families.front import normalise
from export.families.linear import COARSER, COMPONENTS, STEP
from export.listing import encoder_work
from export.train import PRESETS, train
from tests.export.photographs import crops, photograph
from thinwire.bundle import load_bundle

LINEAR = FAMILIES["linear"]


def views(count: int, seed: int = 0) -> torch.Tensor:
    return normalise(torch.from_numpy(crops(count, seed, (96, 96))).permute(0, 3, 1, 2))


@pytest.fixture(scope="module")
def analysis():
    """Fitted on random squares of four photographs."""
    net = LINEAR.analysis()
    net.initialise(views(120))
    return net.eval()


@pytest.fixture(scope="module")
def decoder(analysis):
    net = LINEAR.synthesis()
    LINEAR.start_synthesis(net, analysis, None)
    return net.eval()


def test_the_transform_is_one_orthonormal_convolution(analysis):
    rows = STEP * analysis.transform.weight.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(COMPONENTS), atol=1e-3, rtol=0)
    assert [type(module).__name__ for module in analysis.children()] == ["Conv2d"]


def test_components_are_uncorrelated_with_falling_variance(analysis):
    components = analysis.transform(views(120)).transpose(0, 1).flatten(1)  # (K, N)
    covariance = torch.cov(components)
    deviation = covariance.diagonal().sqrt()
    assert all(first >= later * 0.99 for first, later in pairwise(deviation.tolist()))
    correlation = covariance / deviation / deviation[:, None]
    assert (correlation - torch.eye(COMPONENTS)).abs().max() < 0.05


def test_steps_nest_to_the_finest_quantiser(analysis):
    """What all channels of a component say together is its value in the finest step that was chosen for it."""
    components = 20 * torch.randn(2, COMPONENTS, 3, 3, generator=torch.Generator().manual_seed(0))
    planes = analysis.steps(components).unflatten(1, (len(COARSER), COMPONENTS))
    value = sum(coarser * planes[:, plane] for plane, coarser in enumerate(COARSER))
    finest = torch.tensor(COARSER)[len(COARSER) - 1 - analysis.planes.flip(0).argmax(0)]  # (K,)
    used = analysis.planes.any(0)
    error = (value - components).abs()
    assert used.sum() > COMPONENTS / 4
    assert (error[:, used] <= finest[used, None, None] * 0.5 + 0.56).all()
    assert planes[:, 1:][:, :, analysis.planes[0] == 1].abs().max() <= 4  # refinements are small
    assert not planes[:, analysis.planes == 0].any()


def test_first_layers_hold_the_strong_components_in_coarse_steps(analysis):
    component, plane = analysis.order % COMPONENTS, analysis.order // COMPONENTS
    first, last = LINEAR.layers[0][1], LINEAR.layers[-1][0]
    assert 0 in component[:first].tolist()
    assert component[:first].float().mean() < component[last:].float().mean()
    assert plane[:first].float().mean() < plane[last:].float().mean()
    assert len(set(analysis.order.tolist())) == LINEAR.channels  # nothing is sent twice


def test_every_layer_brings_the_picture_nearer_on_other_photographs(analysis, decoder):
    x = views(8, seed=9)
    wanted, symbols = x * (128 / 255) + 127 / 255, analysis(x)
    errors = []
    for count, (_, stop) in enumerate(LINEAR.layers, start=1):
        shown = torch.where(torch.arange(LINEAR.channels)[:, None, None] < stop, symbols, 0)
        errors.append((decoder(shown, torch.full((len(x),), count)) - wanted).square().mean().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 3
    assert all(-10 * np.log10(error) > floor for error, floor in zip(errors, (15, 17, 19, 21, 23, 24)))


def test_a_batch_of_mixed_layer_counts_is_decoded_one_by_one(analysis, decoder):
    symbols, counts = analysis(views(3)), torch.tensor([1, 6, 3])
    together = decoder(symbols, counts)
    for index, count in enumerate(counts):
        torch.testing.assert_close(together[index], decoder(symbols[index : index + 1], count[None])[0])


def test_the_neighbours_help(analysis, decoder):
    """Least squares over 3x3 patches beats the transpose alone, which the learned decoder starts from.

    At two layers: with all of them there are too many symbols for the patches of four photographs.
    """
    x = views(8, seed=9)
    wanted = x * (128 / 255) + 127 / 255
    symbols = torch.where(torch.arange(LINEAR.channels)[:, None, None] < LINEAR.layers[1][1], analysis(x), 0)
    learned = LINEAR.with_decoder("learned").synthesis()
    LINEAR.start_synthesis(learned, analysis, None)
    count = torch.full((len(x),), 2)
    with torch.inference_mode():
        transpose, estimate = learned(symbols, count), decoder(symbols, count)
    errors = [(seen - wanted).square().mean().item() for seen in (estimate, transpose)]
    assert errors[0] < errors[1]
    assert errors[1] < 0.03  # and that one starts as a picture


def test_training_is_a_closed_form_and_the_bundle_carries_it(settings, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "linear", "--minutes", "600", "--threads", "1", "--out", str(folder)]) == 0
    bundle = load_bundle(capsys.readouterr().out.splitlines()[-1])
    assert bundle.rates == dict(LINEAR.rates)
    (record,) = map(json.loads, (folder / "held_out.jsonl").read_text().splitlines())
    assert record["psnr_db_6"] > record["psnr_db_1"]
    parameters, macs = encoder_work(bundle.encoder_path())
    assert macs == COMPONENTS * 3 * 16 * 16 * 14 * 14
    assert parameters < 0.1e6
    with torch.inference_mode():
        made = synthesis.load(bundle)(torch.zeros(1, *bundle.latent_shape), torch.tensor([1]))
    assert made.shape == (1, 3, 224, 224)
    again = make_bundle(LINEAR, folder, tmp_path / "again", count=8)
    assert (again / "card.json").exists()


def test_the_learned_decoder_reads_the_same_symbols(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "cpu", replace(settings, crop=96, tuning_crop=96, steps=2))
    words = ["train", "linear", "--decoder", "learned", "--steps", "2", "--threads", "1"]
    assert main([*words, "--out", str(tmp_path / "learned")]) == 0
    learned = load_bundle(tmp_path / "learned" / "bundle")
    assert learned.card.cloud["synthesis"]["arch"] == "pixels"
    assert main(["bundle", str(tmp_path / "learned"), "--out", str(tmp_path / "b"), "--count", "8"]) == 0
    assert load_bundle(tmp_path / "b").card.cloud["synthesis"]["arch"] == "pixels"
    train(LINEAR, replace(settings, crop=96), tmp_path / "closed")
    closed = load_bundle(make_bundle(LINEAR, tmp_path / "closed", tmp_path / "closed" / "bundle"))
    view = closed.view(photograph("coffee.png"))
    np.testing.assert_array_equal(Encoder(closed).symbols(view), Encoder(learned).symbols(view))


def test_a_decoder_that_a_family_has_not_is_refused(tmp_path):
    for family, said in (("linear", "learned"), ("conv", "none")):
        with pytest.raises(SystemExit, match=said):
            main(["train", family, "--decoder", "magic", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
