"""The grain of stills: noise of a fixed pattern."""

from __future__ import annotations

import math

import numpy as np


def grain_pattern(height: int, width: int) -> np.ndarray:
    """Nearly normal noise of mean 0 and standard deviation 1, float32 (height, width); the same on every machine.

    Sums of the four bytes of hashed positions: whole numbers alone (Murmur3's finaliser).
    """
    mask = np.uint64(0xFFFFFFFF)
    h = np.arange(1, height * width + 1, dtype=np.uint64) * np.uint64(0x9E3779B1) & mask
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        h = (h ^ h >> np.uint64(shift)) * np.uint64(factor) & mask
    total = sum(h >> np.uint64(8 * place) & np.uint64(255) for place in range(4)).astype(np.float64)
    deviation = math.sqrt(4 * (256**2 - 1) / 12)
    return ((total - 4 * 127.5) / deviation).reshape(height, width).astype(np.float32)
