"""ONNX Runtime as synthesis backend: the same pictures and answers as torch, or no service."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import synthesis
from cloud.errors import DeviceUnavailable, InferenceFailed
from cloud.networks import onnx_export as onnx_graph
from cloud.networks.assemble import open_engine
from cloud.networks.onnx_synthesis import OnnxNet, load_onnx, loader
from cloud.networks.runner import module_bytes
from synthesis.onnx_file import write_graph
from thinwire.bundle import load_bundle, shipped_bundles

pytestmark = pytest.mark.slow


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
    assert module_bytes(load_onnx(tiny_codec, "cpu", cache)) == module_bytes(net)
    assert path.stat().st_mtime_ns == written  # exported once


def test_an_engine_answers_the_same(tiny_clip_dir, tiny_codec, make_packet, tmp_path, monkeypatch, cache):
    monkeypatch.setattr(onnx_graph, "default_cache_dir", lambda: cache / "heads")
    answers = []
    for backend in ("torch", "onnx"):
        with open_engine(
            str(tiny_clip_dir), [tiny_codec.path], "cpu", 1, cache_dir=tmp_path, synthesis_backend=backend
        ) as engine:
            answers.append(engine.submit(packet=make_packet(2), labels=("cat", "dog")).result(60))
    assert np.dot(answers[0].embedding, answers[1].embedding) > 0.9999
    assert answers[0].predictions[0].label == answers[1].predictions[0].label


def test_a_graph_that_is_another_net_is_never_served(tiny_codec, cache, tmp_path):
    load_onnx(tiny_codec, "cpu", cache)
    (path,) = cache.glob("*.onnx")

    class Other(type(synthesis.load(tiny_codec))):
        def forward(self, symbols, n_layers):
            return super().forward(symbols.flip(-1), n_layers)

    net = synthesis.load(tiny_codec)
    net.__class__ = Other
    example = {"symbols": torch.zeros(2, *tiny_codec.latent_shape), "n_layers": torch.ones(2, dtype=torch.int64)}
    write_graph(net, example, "out", tmp_path / path.name)
    with pytest.raises(InferenceFailed, match="delete"):
        load_onnx(tiny_codec, "cpu", tmp_path)


WITH_WEIGHTS = [path for path in shipped_bundles().values() if (path / "decoder.safetensors").exists()]


@pytest.mark.parametrize("path", WITH_WEIGHTS, ids=lambda path: path.name)
def test_auto_runs_the_shipped_decoders_without_an_export(path, monkeypatch):
    """Else run scripts/ship_graphs.py."""
    monkeypatch.setattr(onnx_graph, "write_graph", None)
    assert isinstance(loader("auto")(load_bundle(path), "cpu"), OnnxNet)


def test_auto_takes_torch_until_a_graph_is_there(tiny_codec, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_graph, "default_cache_dir", lambda: tmp_path / "heads")
    assert type(loader("auto")(tiny_codec, "cpu")) is type(loader("torch")(tiny_codec, "cpu"))
    load_onnx(tiny_codec, "cpu")
    (path,) = (tmp_path / "graphs").glob("*.onnx")
    assert isinstance(loader("auto")(tiny_codec, "cpu"), OnnxNet)
    path.write_bytes(b"no graph")
    assert type(loader("auto")(tiny_codec, "cpu")) is type(loader("torch")(tiny_codec, "cpu"))


def test_onnx_without_its_packages_names_the_fix(tiny_codec, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_graph, "EXPORTERS", ("no_such_package",))
    with pytest.raises(DeviceUnavailable, match=r"no_such_package.*thinwire\[cloud-torch\]"):
        load_onnx(tiny_codec, "cpu", tmp_path)
