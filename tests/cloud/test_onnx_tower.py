"""CLIP's image tower in ONNX Runtime: torch's vectors, or torch."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from cloud import onnx_tower
from cloud.clip import load_clip
from cloud.errors import DeviceUnavailable
from cloud.folded import folded
from cloud.onnx_tower import OnnxTower, in_backend
from cloud.precision import check_images, compare, lower
from cloud.runner import module_bytes
from tests.cloud.tiny_clip import write_tiny_clip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("towers")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_clip(str(write_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-random-clip")))


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


def test_a_tower_is_exported_once_and_counted_as_memory(tiny, cache):
    quick = in_backend(tiny, "onnx", cache)
    (path,) = cache.glob("*.onnx")
    written = path.stat().st_mtime_ns
    assert module_bytes(quick.model.visual) == path.stat().st_size
    in_backend(tiny, "onnx", cache)
    assert path.stat().st_mtime_ns == written


def test_auto_leaves_transformers_and_half_precision_in_torch(tiny, cache):
    assert in_backend(tiny, "auto", cache) is tiny
    half, _ = lower(folded(load_clip()), "fp16")
    assert in_backend(half, "auto") is half
    with pytest.raises(DeviceUnavailable, match="float32"):
        in_backend(half, "onnx")


def test_other_weights_are_another_file_and_other_vectors_are_never_served(tiny, cache):
    in_backend(tiny, "onnx", cache)
    (path,) = cache.glob("*.onnx")
    other = load_clip(str(write_tiny_clip(cache / "other-clip", seed=1)))
    wrong = cache / f"{onnx_tower._content(other.model.visual)}.onnx"
    assert wrong != path
    wrong.write_bytes(path.read_bytes())
    with pytest.raises(DeviceUnavailable, match="delete"):
        in_backend(other, "onnx", cache)


def test_without_its_packages_auto_is_torch_and_onnx_names_the_fix(monkeypatch, tiny):
    monkeypatch.setattr(onnx_tower, "PACKAGES", ("onnxruntime", "no_such_package"))
    clip = folded(load_clip())
    assert in_backend(clip, "auto") is clip
    with pytest.raises(DeviceUnavailable, match=r"no_such_package.*thinwire\[cloud-onnx\]"):
        in_backend(tiny, "onnx")


def test_a_cache_that_cannot_be_written_costs_speed_alone(tmp_path):
    (tmp_path / "file").write_text("in the way")
    clip = folded(load_clip())
    assert in_backend(clip, "auto", tmp_path / "file" / "towers") is clip


def test_torch_when_asked_for():
    clip = folded(load_clip())
    assert in_backend(clip, "torch") is clip
