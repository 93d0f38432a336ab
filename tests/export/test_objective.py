from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import open_clip
import pytest
import torch

from export.objective import TowerFeatures, feature_distance
from export.teacher import Teacher
from export.towers import SHIPPED_CLIP, load_tower
from tests.export.photographs import photograph
from thinwire.imaging import canonical_view


@pytest.fixture(scope="module")
def tower():
    return Teacher(load_tower("clip-lite"))


@pytest.fixture(scope="module")
def photos():
    views = [canonical_view(photograph(name), 96, 96) for name in ("chelsea.png", "coffee.png")]
    return torch.stack([torch.from_numpy(view) for view in views]).permute(0, 3, 1, 2).float().sub(127).div(128)


def random_features(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"middle": (2, 112, 6, 6), "last": (2, 1280, 3, 3), "pooled": (2, 384)}
    return TowerFeatures(**{name: torch.randn(shape, generator=generator) for name, shape in shapes.items()})


def test_features_have_the_documented_shapes_and_a_centred_embedding(tower, photos):
    tower.centre(photos)
    features = tower(photos)
    assert features.middle.shape == (2, 112, 6, 6)
    assert features.last.shape == (2, 1280, 3, 3)
    assert features.pooled.shape == (2, 384)
    assert features.pooled.mean(0).abs().max() < 1e-3


def test_the_pooled_vector_is_the_embedding_of_the_shipped_clip(photos):
    model = open_clip.create_model(f"local-dir:{SHIPPED_CLIP}").eval()
    with torch.inference_mode():
        wanted = torch.nn.functional.normalize(model.encode_image(photos), dim=1)
        got = Teacher(load_tower("clip-lite"))(photos).pooled  # bfloat16 inside
    assert (got * wanted).sum(1).min() > 0.99


def test_the_distance_is_zero_between_equals_one_between_strangers_two_between_opposites():
    features, other = random_features(0), random_features(1)
    opposite = TowerFeatures(**{field.name: -getattr(features, field.name) for field in fields(features)})
    torch.testing.assert_close(feature_distance(features, features), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(feature_distance(features, other), torch.ones(2), atol=0.1, rtol=0)
    torch.testing.assert_close(feature_distance(features, opposite), torch.full((2,), 2.0), atol=1e-5, rtol=0)


def test_patches_weigh_seven_tenths_and_the_pooled_vector_three():
    features = random_features(0)
    turned = TowerFeatures(features.middle, features.last, -features.pooled)
    torch.testing.assert_close(feature_distance(turned, features), torch.full((2,), 0.6), atol=1e-5, rtol=0)
    turned = TowerFeatures(-features.middle, features.last, features.pooled)
    torch.testing.assert_close(feature_distance(turned, features), torch.full((2,), 0.7), atol=1e-5, rtol=0)


def test_the_distance_grows_with_noise_and_is_zero_without(tower, photos):
    noise = torch.randn(photos.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = tower(photos)
        distances = [feature_distance(tower(photos + level * noise), wanted) for level in (0, 0.05, 0.2, 0.8)]
    torch.testing.assert_close(distances[0], torch.zeros(2), atol=1e-5, rtol=0)
    for less, more in pairwise(distances):
        assert (more > less).all()
    assert (distances[-1] < 2).all()


def test_gradients_reach_the_picture_but_never_the_tower(tower, photos):
    picture = (photos + 0.1).requires_grad_()
    feature_distance(tower(picture), tower(photos)).sum().backward()
    assert picture.grad.isfinite().all()
    assert picture.grad.abs().max() > 0
    assert all(not p.requires_grad and p.grad is None for p in tower.parameters())
    assert not tower.train().training
