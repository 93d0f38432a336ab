"""CLIP's image tower in ONNX Runtime: torch's vectors, or torch."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from cloud.errors import DeviceUnavailable
from cloud.networks import onnx_export as onnx_graph
from cloud.networks.batchnorm_folding import folded
from cloud.networks.clip import load_clip
from cloud.networks.onnx_export import tower_name
from cloud.networks.onnx_tower import Images, OnnxTower, in_backend
from cloud.networks.parity import compare
from cloud.networks.precision import check_images, lower
from cloud.networks.runner import module_bytes
from synthesis import graph_files
from synthesis.onnx_file import write_graph
from tests.cloud.tiny_clip import write_tiny_clip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("towers")


def convolutional(folder, seed=0):
    return folded(load_clip(str(write_tiny_clip(folder, seed, timm_model_name="test_efficientnet", timm_pool="avg"))))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return convolutional(tmp_path_factory.mktemp("clip") / "tiny-random-clip")


def test_the_shipped_clip_gives_the_same_vectors_for_every_batch_size():
    clip = folded(load_clip())
    quick = in_backend(clip, "auto")
    assert isinstance(quick.model.visual, OnnxTower)
    for count in (1, 5):
        images = check_images(clip, count, seed=count)
        wanted, got = (each.encode_images(images).numpy() for each in (clip, quick))
        assert compare(wanted, got).cosine_min > 0.999999
    assert quick.id == clip.id
    assert quick.encode_texts(["a cat"]).shape == (1, clip.embed_dim)


def test_the_shipped_clip_needs_no_export(monkeypatch):
    """Else run scripts/ship_graphs.py."""
    monkeypatch.setattr(onnx_graph, "write_graph", None)
    assert isinstance(in_backend(folded(load_clip()), "onnx").model.visual, OnnxTower)


def test_one_graph_serves_all_weights_of_an_architecture(tiny, cache):
    quick = in_backend(tiny, "onnx", cache)
    (path,) = cache.glob("*.onnx")
    written = path.stat().st_mtime_ns
    assert module_bytes(quick.model.visual) == module_bytes(tiny.model.visual)
    other = convolutional(cache / "other-clip", seed=1)
    images = check_images(tiny, 2)
    vectors = [in_backend(clip, "onnx", cache).encode_images(images).numpy() for clip in (tiny, other)]
    assert compare(vectors[1], other.encode_images(images).numpy()).cosine_min > 0.999999
    assert compare(*vectors).cosine_min < 0.99
    assert path.stat().st_mtime_ns == written


def test_auto_leaves_transformers_and_half_precision_in_torch(tmp_path):
    transformer = load_clip(str(write_tiny_clip(tmp_path / "tiny-random-clip")))
    assert in_backend(transformer, "auto", tmp_path) is transformer
    half, _ = lower(folded(load_clip()), "fp16")
    assert in_backend(half, "auto") is half
    with pytest.raises(DeviceUnavailable, match="float32"):
        in_backend(half, "onnx")


def test_a_transformer_when_asked_for(tmp_path):
    clip = load_clip(str(write_tiny_clip(tmp_path / "tiny-random-clip")))
    images = check_images(clip, 3)
    vectors = [each.encode_images(images).numpy() for each in (clip, in_backend(clip, "onnx", tmp_path))]
    assert compare(*vectors).cosine_min > 0.999999


def test_a_graph_that_gives_other_vectors_is_never_served(tiny, tmp_path):
    class Other(torch.nn.Module):
        def __init__(self, tower):
            super().__init__()
            self.tower = tower

        def forward(self, images):
            return self.tower(images.flip(-1))

    path = tmp_path / tower_name(Images(tiny.model.visual))
    write_graph(Other(tiny.model.visual), {"images": torch.zeros(2, 3, 64, 64)}, "vectors", path)
    with pytest.raises(DeviceUnavailable, match="delete"):
        in_backend(tiny, "onnx", tmp_path)


def test_without_its_packages_auto_is_torch_and_onnx_names_the_fix(monkeypatch, tiny, tmp_path):
    monkeypatch.setattr(onnx_graph, "EXPORTERS", ("no_such_package",))
    with pytest.raises(DeviceUnavailable, match=r"no_such_package.*thinwire\[cloud-torch\]"):
        in_backend(tiny, "onnx", tmp_path)
    monkeypatch.setattr(graph_files, "SHIPPED_GRAPHS", tmp_path)
    clip = folded(load_clip())
    assert in_backend(clip, "auto", tmp_path) is clip


def test_a_cache_that_cannot_be_written_costs_speed_alone(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(graph_files, "SHIPPED_GRAPHS", tmp_path)
    clip = folded(load_clip())
    assert in_backend(clip, "auto", tmp_path / "file" / "towers") is clip


def test_torch_when_asked_for():
    clip = folded(load_clip())
    assert in_backend(clip, "torch") is clip
