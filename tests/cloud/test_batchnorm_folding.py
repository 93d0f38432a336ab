from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from cloud.networks.batchnorm_folding import folded
from cloud.networks.clip import load_clip
from cloud.networks.parity import compare
from cloud.networks.precision import check_images
from tests.cloud.tiny_clip import write_tiny_clip


def norms(clip):
    return sum(isinstance(module, torch.nn.BatchNorm2d) for module in clip.model.visual.modules())


def test_the_shipped_clip_gives_the_same_vectors_without_its_norms():
    clip = load_clip()
    quick = folded(clip)
    assert norms(clip) > 40
    assert norms(quick) == 0
    images = check_images(clip, 3, seed=1)
    wanted, got = (each.encode_images(images).numpy() for each in (clip, quick))
    assert compare(wanted, got).cosine_min > 0.999999
    assert quick.id == clip.id


def test_a_tower_without_norms_is_left_as_it_is(tmp_path):
    clip = load_clip(str(write_tiny_clip(tmp_path / "tiny-random-clip")))
    assert folded(clip) is clip


def test_a_tower_that_would_answer_otherwise_is_left_as_it_is():
    """Its norm stands beside a convolution that it does not follow."""
    clip = load_clip()
    trunk = clip.model.visual.trunk
    odd = torch.nn.BatchNorm2d(1280).eval()
    odd.running_var.fill_(4.0)

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.aside = torch.nn.Conv2d(3, 1280, 1)
            self.norm = odd
            self.head = trunk.global_pool

        def forward(self, x):
            return self.head(self.norm(x))

    trunk.global_pool = Odd().eval()
    assert folded(clip) is clip
