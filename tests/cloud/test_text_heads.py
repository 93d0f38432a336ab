"""Text heads: right vectors, cached in memory and on disk, damaged files never believed."""

from __future__ import annotations

import numpy as np
import pytest

from cloud.engine.text_heads import HeadCache, head_key

LABELS = ("cat", "dog", "{} brace")
TEMPLATES = ("a photo of a {}.", "the {}")


def test_a_class_vector_is_the_unit_mean_of_its_unit_prompt_vectors(tiny_clip):
    head = HeadCache(tiny_clip).load(LABELS, TEMPLATES)
    for label, got in zip(LABELS, head.classes, strict=True):
        mean = tiny_clip.encode_texts([t.replace("{}", label) for t in TEMPLATES]).mean(axis=0)
        np.testing.assert_allclose(got, mean / np.linalg.norm(mean), atol=1e-5)
    image = head.classes[[1]]
    cosines = head.similarities(image)
    logits = np.exp(tiny_clip.logit_scale * cosines)
    np.testing.assert_allclose(head.probabilities(cosines), logits / logits.sum(), atol=1e-5)


def test_prompts_beyond_one_call_land_at_their_labels(tiny_clip, monkeypatch):
    whole = HeadCache(tiny_clip).load(LABELS, TEMPLATES).classes
    monkeypatch.setattr("cloud.engine.text_heads.PROMPTS_PER_CALL", 1)
    np.testing.assert_allclose(HeadCache(tiny_clip).load(LABELS, TEMPLATES).classes, whole, atol=1e-5)


def test_memory_then_disk_then_the_text_tower(tiny_clip, tmp_path):
    first = HeadCache(tiny_clip, tmp_path)
    built = first.load(LABELS, TEMPLATES)
    assert first.load(LABELS, TEMPLATES) is built
    second = HeadCache(tiny_clip, tmp_path)
    np.testing.assert_array_equal(second.load(LABELS, TEMPLATES).classes, built.classes)
    assert first.counts == {"memory_hits": 1, "disk_hits": 0, "builds": 1, "bad_files": 0}
    assert second.counts == {"memory_hits": 0, "disk_hits": 1, "builds": 0, "bad_files": 0}


def test_keys_tell_apart_clip_labels_order_and_templates():
    keys = {
        head_key("a", ["x", "y"], ["{}"]),
        head_key("a", ['"x"', "y"], ["{}"]),
        head_key("b", ["x", "y"], ["{}"]),
        head_key("a", ["y", "x"], ["{}"]),
        head_key("a", ["x,y"], ["{}"]),
        head_key("a", ["x"], ["y", "{}"]),
    }
    assert len(keys) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
        lambda data: bytes([data[0] ^ 1]) + data[1:],
    ],
)
def test_a_damaged_file_is_built_anew(tiny_clip, tmp_path, damage):
    built = HeadCache(tiny_clip, tmp_path).load(LABELS, TEMPLATES)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    cache = HeadCache(tiny_clip, tmp_path)
    np.testing.assert_array_equal(cache.load(LABELS, TEMPLATES).classes, built.classes)
    assert cache.counts["bad_files"] == 1
    assert cache.counts["builds"] == 1
    assert HeadCache(tiny_clip, tmp_path).lookup(LABELS, TEMPLATES) is not None  # the file is whole again


def test_a_folder_that_cannot_be_written_costs_no_answer(tiny_clip, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    cache = HeadCache(tiny_clip, tmp_path / "file")
    assert cache.load(LABELS, TEMPLATES).classes.shape == (3, 32)
    assert cache.load(LABELS, TEMPLATES)
    assert cache.counts["memory_hits"] == 1


def test_memory_and_disk_stay_within_their_budgets(tiny_clip, tmp_path):
    cache = HeadCache(tiny_clip, tmp_path, memory_bytes=600, disk_bytes=500)
    for n in range(8):
        cache.load((f"label {n}",), ("{}",))
    assert cache.load(("label 7",), ("{}",))
    assert cache.counts["memory_hits"] == 1
    files = list(tmp_path.iterdir())
    assert sum(path.stat().st_size for path in files) <= 500
    assert not [path for path in files if path.suffix == ".partial"]
    cache.load(("label 0",), ("{}",))
    assert cache.counts["builds"] == 9
