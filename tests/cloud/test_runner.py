"""Mixed batches on the torch runner: every item gets the vector that it would get alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import synthesis
from cloud.engine.prepared import Prepared
from cloud.errors import ClipMismatch, InferenceFailed
from cloud.networks.runner import TorchRunner
from cloud.networks.runtime import check_clip
from tests.cloud.tiny_codec import SHAPE, write_tiny_codec


class ToVector(nn.Module):
    """A stand-in for a semantic decoder: symbols straight to `dim` values."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, symbols, n_layers):
        return symbols.flatten(1)[:, : self.dim] + 1.0


@pytest.fixture(scope="module")
def codecs(tiny_codec, tmp_path_factory):
    root = tmp_path_factory.mktemp("more")
    return {
        "pixels": tiny_codec,
        "other": write_tiny_codec(root / "other", seed=1),
        "vector": write_tiny_codec(root / "vector", seed=2, output="embedding", clip="tiny-random-clip"),
    }


@pytest.fixture(scope="module")
def runner(tiny_clip, codecs):
    def load(bundle, device):
        return ToVector(32) if bundle is codecs["vector"] else synthesis.load(bundle, device)

    return TorchRunner(tiny_clip, list(codecs.values()), load)


def test_a_mixed_batch_gives_what_each_item_gives_alone(runner, codecs):
    rng = np.random.default_rng(0)

    def symbols(name, layers):
        return Prepared(rng.integers(-3, 4, SHAPE).astype(np.int32), name, layers, codecs[name].model_id)

    views = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (96, 80), (64, 64))]
    batch = [
        symbols("pixels", 1),
        Prepared(views[0]),
        symbols("vector", 2),
        symbols("other", 2),
        Prepared(views[1]),
        symbols("pixels", 2),
        Prepared(views[2]),
        symbols("vector", 1),
    ]
    together = runner.run(batch).embeddings
    alone = np.concatenate([runner.run([item]).embeddings for item in batch])
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_vectors_from_a_bundle_skip_the_image_tower(runner, codecs, monkeypatch):
    monkeypatch.setattr(runner.clip.model, "encode_image", lambda *_: 1 / 0)
    item = Prepared(np.ones(SHAPE, np.int32), "vector", 2, codecs["vector"].model_id)
    np.testing.assert_allclose(runner.run([item]).embeddings, np.full((1, 32), 32**-0.5), atol=1e-6)


def test_a_bundle_for_another_clip_is_refused_only_when_it_gives_vectors(tiny_clip, tmp_path):
    wrong = write_tiny_codec(tmp_path / "wrong", output="embedding", clip="ViT-B-32:openai")
    with pytest.raises(ClipMismatch, match="--clip ViT-B-32:openai"):
        TorchRunner(tiny_clip, [wrong])
    check_clip(write_tiny_codec(tmp_path / "tuned", clip="ViT-B-32:openai"), tiny_clip)
    check_clip(write_tiny_codec(tmp_path / "exact", output="embedding", clip=tiny_clip.id), tiny_clip)


def test_a_bundle_that_cannot_run_fails_when_it_is_loaded(tiny_clip, codecs):
    class Broken(nn.Module):
        def forward(self, symbols, n_layers):
            raise RuntimeError("wrong shape inside")

    with pytest.raises(InferenceFailed, match="'vector' failed its canary run"):
        TorchRunner(tiny_clip, [codecs["vector"]], lambda *_: Broken())
    with pytest.raises(ClipMismatch, match="20 values"):
        TorchRunner(tiny_clip, [codecs["vector"]], lambda *_: ToVector(20))


def test_inference_leaves_no_gradients(runner, codecs):
    item = Prepared(np.ones(SHAPE, np.int32), "pixels", 2, codecs["pixels"].model_id)
    runner.run([item])
    assert all(parameter.grad is None for parameter in runner.clip.model.parameters())
    assert not torch.is_inference_mode_enabled()
