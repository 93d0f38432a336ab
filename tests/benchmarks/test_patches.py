"""Patch features of the kinds of image towers that open_clip has (random weights: shapes and places, not quality)."""

from __future__ import annotations

import pytest

pytest.importorskip("open_clip")

import torch

from benchmarks.judges.metrics import patch_cosine
from benchmarks.judges.patches import PatchTap


def vit(side: int = 32, patch: int = 8):
    from open_clip.transformer import VisionTransformer

    return VisionTransformer(side, patch, width=32, layers=2, heads=4, mlp_ratio=2.0, output_dim=16)


def resnet():
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet(layers=(1, 1, 1, 1), output_dim=16, heads=8, image_size=64, width=8)


def timm(name: str, **options):
    from open_clip.timm_model import TimmModel

    return TimmModel(name, 16, image_size=64, pretrained=False, **options)


TOWERS = {
    "vit": (vit, 32, (16, 32)),
    "resnet": (resnet, 64, (4, 256)),
    "timm-cnn": (lambda: timm("tf_efficientnet_lite0", pool="avg", proj="linear"), 64, (4, 1280)),
    "timm-vit": (lambda: timm("vit_tiny_patch16_224", proj="linear"), 224, (196, 192)),
}


@pytest.mark.parametrize("kind", TOWERS)
def test_patches_of_each_kind_of_tower(kind: str):
    make, side, shape = TOWERS[kind]
    torch.manual_seed(0)
    tower = make().eval()
    tap = PatchTap(tower)
    images = torch.rand(2, 3, side, side)
    with torch.inference_mode():
        tower(images)
        first = tap.take()
        tower(torch.stack([images[0], torch.rand(3, side, side)]))
        second = tap.take()
    assert first.shape == (2, *shape)  # no class token among the patches
    assert tap.take() is None  # nothing was looked at since
    same, other = patch_cosine(second, first)
    assert same == pytest.approx(1, abs=1e-3)
    assert other < 0.9999


def test_an_unknown_tower_has_no_patches():
    tower = torch.nn.Linear(3, 4)
    tap = PatchTap(tower)
    tower(torch.zeros(1, 3))
    assert tap.take() is None
