"""ONNX Runtime as synthesis backend: the same pictures and answers as torch, or no service."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import synthesis
from cloud.assemble import open_engine
from cloud.errors import InferenceFailed
from cloud.onnx_synthesis import load_onnx


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_every_layer_count_and_batch_size_gives_torchs_pictures(tiny_codec, cache):
    net, twin = synthesis.load(tiny_codec), load_onnx(tiny_codec, "cpu", cache)
    rng = np.random.default_rng(5)
    for batch in (1, 3, 8):
        symbols = torch.from_numpy(rng.integers(-3, 4, (batch, *tiny_codec.latent_shape)).astype(np.float32))
        counts = torch.from_numpy(rng.integers(1, 3, batch))
        with torch.inference_mode():
            assert torch.allclose(net(symbols, counts), twin(symbols, counts), atol=1e-4)
    (path,) = cache.glob("*.onnx")
    written = path.stat().st_mtime_ns
    assert load_onnx(tiny_codec, "cpu", cache).nbytes == path.stat().st_size
    assert path.stat().st_mtime_ns == written  # exported once


def test_an_engine_answers_the_same(tiny_clip_dir, tiny_codec, make_packet, tmp_path, monkeypatch, cache):
    monkeypatch.setattr("cloud.onnx_synthesis.default_cache_dir", lambda: cache / "heads")
    answers = []
    for backend in ("torch", "onnx"):
        with open_engine(
            str(tiny_clip_dir), [tiny_codec.path], "cpu", 1, cache_dir=tmp_path, synthesis_backend=backend
        ) as engine:
            answers.append(engine.submit(packet=make_packet(2), labels=("cat", "dog")).result(20))
    assert np.dot(answers[0].embedding, answers[1].embedding) > 0.9999
    assert answers[0].predictions[0].label == answers[1].predictions[0].label


def test_a_file_that_is_another_net_is_never_served(tiny_codec, cache, tmp_path):
    load_onnx(tiny_codec, "cpu", cache)
    (path,) = cache.glob("*.onnx")
    net = synthesis.load(tiny_codec)
    with torch.no_grad():
        net.linear.bias.add_(0.1)
    from synthesis.onnx_file import write_onnx

    write_onnx(net, tiny_codec.latent_shape, tmp_path / path.name)
    with pytest.raises(InferenceFailed, match="delete"):
        load_onnx(tiny_codec, "cpu", tmp_path)
