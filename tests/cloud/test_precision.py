"""The half-precision image tower and its parity check, run on the CPU in bf16 (a GPU is not needed for either)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cloud.errors import DeviceUnavailable
from cloud.networks.clip import load_clip
from cloud.networks.parity import compare
from cloud.networks.precision import check_images, in_precision, lower


def test_the_shipped_clip_in_bf16_is_measured_against_fp32():
    torch.set_num_threads(1)
    clip = load_clip()
    before = clip.model.visual
    lowered, parity = lower(clip, "bf16")
    images = check_images(clip, 4)
    got = lowered.encode_images(images)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.norm(dim=-1).numpy(), 1, atol=1e-3)
    reference = clip.encode_images(images)
    assert float((got * reference).sum(-1).min()) > 0.99
    assert 0.99 < parity.cosine_min < 1  # it is another computation, and a near one
    assert clip.model.visual is before
    assert next(clip.model.visual.parameters()).dtype == torch.float32
    assert lowered.id == clip.id
    np.testing.assert_array_equal(lowered.encode_texts(["a cat"]), clip.encode_texts(["a cat"]))


def test_a_cpu_stays_at_fp32_and_a_precision_that_misses_the_bound_is_refused(tiny_clip, monkeypatch):
    assert in_precision(tiny_clip, "auto") is tiny_clip
    assert in_precision(tiny_clip, "fp32") is tiny_clip
    with pytest.raises(DeviceUnavailable, match="unknown"):
        in_precision(tiny_clip, "int4")
    monkeypatch.setattr("cloud.networks.parity.MIN_COSINE", 1.0)
    with pytest.raises(DeviceUnavailable, match="gives different vectors"):
        in_precision(tiny_clip, "bf16")
    monkeypatch.setattr("cloud.networks.parity.MIN_COSINE", 0.5)
    assert in_precision(tiny_clip, "bf16").image_dtype is torch.bfloat16


def test_parity_counts_the_worst_image_and_every_label_that_changes():
    rows = np.eye(4, dtype=np.float32)
    tilted = rows.copy()
    tilted[2] = [0, 0, 0.8, 0.6]
    parity = compare(rows, tilted, rows)
    assert (parity.cosine_min, parity.same_top1) == (pytest.approx(0.8), 1.0)
    tilted[2] = [0, 0, 0.6, 0.8]
    assert compare(rows, tilted, rows).same_top1 == 0.75
    assert not compare(rows, tilted, rows).good
    tilted[0] = np.nan
    assert not compare(rows, tilted).good
    assert compare(rows, rows, rows).good
