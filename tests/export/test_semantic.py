"""Family `semantic`: a split of the teacher, which is a working codec before any training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import synthesis
from export.bundles import make_bundle
from export.families import FAMILIES
from export.families.front import normalise
from export.towers import load_tower
from export.train import Trainer, train
from tests.export.photographs import photograph
from thinwire.bundle import load_bundle
from thinwire.imaging import canonical_view

SEMANTIC = FAMILIES["semantic"]
NAMES = ("chelsea.png", "coffee.png", "rocket.jpg", "astronaut.png")


@pytest.fixture(scope="module")
def photos():
    views = np.stack([canonical_view(photograph(name), 192, 192) for name in NAMES])
    return normalise(torch.from_numpy(views).permute(0, 3, 1, 2))


def test_the_untrained_codec_already_answers_like_the_tower(photos, settings):
    """Principal components and their inverse around Lite0's own weights: all layers come near, one alone does not."""
    trainer = Trainer(SEMANTIC, replace(settings, crop=192))
    wanted = trainer.tower.embedding(trainer.tower(photos))
    cosines = []
    with torch.inference_mode():
        latents = trainer.analysis(photos)
        for layers in (1, len(SEMANTIC.layers)):
            shown = latents.round() * (trainer.layer_of < layers)[:, None, None]
            vectors = trainer.synthesis(shown, torch.full((len(photos),), layers))
            torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(photos)))
            cosines.append((vectors * wanted).sum(1).mean().item())
    assert cosines[1] > 0.6
    assert cosines[1] > cosines[0]


def test_only_the_bottleneck_of_the_analysis_learns(settings):
    trainer = Trainer(SEMANTIC, replace(settings, crop=96))
    trainer.progress = 0.3
    before = {name: value.clone() for name, value in trainer.analysis.state_dict().items()}
    record = trainer.step()
    moved = {name for name, value in trainer.analysis.state_dict().items() if not torch.equal(value, before[name])}
    assert {"linear.weight", "bend.conv_pwl.weight"} <= moved
    assert not any(name.startswith(("front.", "deep.")) for name in moved)  # the trunk, which replay relies on
    assert "psnr_db" not in record  # there are no pixels


def test_a_run_becomes_a_bundle_bound_to_its_clip(settings, tmp_path):
    train(SEMANTIC, replace(settings, crop=96, steps=2), tmp_path)
    bundle = load_bundle(make_bundle(SEMANTIC, tmp_path, tmp_path / "bundle", count=8))
    assert bundle.latent_shape == (64, 7, 7)
    assert (bundle.card.cloud["output"], bundle.card.cloud["clip"]) == ("embedding", load_tower("clip-lite").id)
    assert bundle.encoder_path().stat().st_size <= 2e6
    assert bundle.decoder_path.stat().st_size <= 8e6
    view = bundle.view(photograph("coffee.png"))
    with torch.inference_mode():
        symbols = torch.zeros(1, 64, 7, 7)
        vector = synthesis.load(bundle)(symbols, torch.tensor([1]))
    assert (view.shape, vector.shape) == ((224, 224, 3), (1, 384))
