"""Pictures and texts that are always the same: what two forms of one CLIP are compared on."""

from __future__ import annotations

import numpy as np

PROBE_TEXTS = (
    "a photo of a cat.",
    "An ITAP of the   cup_of coffee!!",
    "l'été à la plage, 25 °C",
    "&lt;b&gt;bold&lt;/b&gt; &amp;amp; co",
    "schÃ¶n",
    "日本の猫 🐈‍⬛ 2026",
    "I'll we've THEY'RE don't",
    "",
    "\u200b\ttab\nline\u00a0space",
    "<start_of_text> <end_of_text>",
    "İstanbul ŉ ǆ ﬁ ① ½ ٣",
    "word " * 90,
)
"""Cleaning, casing, letters beyond ASCII, contractions, control characters, special tokens, and a text to be cut."""


def probe_images(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured pictures with edges and grain: float32 (count, 3, height, width) in [0, 1].

    Of plain arithmetic alone, so that every machine and release has the same.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    coarse = _enlarged(random.random((count, 3, 6, 6)), height, width, smooth=True)
    shapes = _enlarged(random.random((count, 3, 9, 9)), height, width, smooth=False)
    grain = random.random((count, 3, height, width))
    return (0.6 * coarse + 0.3 * shapes + 0.1 * grain).astype(np.float32)


def _enlarged(small: np.ndarray, height: int, width: int, smooth: bool) -> np.ndarray:
    """(N, C, h, w) → (N, C, height, width), bilinear or nearest."""
    for axis, size in ((2, height), (3, width)):
        places = np.arange(size) * (small.shape[axis] - 1) / max(1, size - 1)
        low = np.floor(places).astype(int)
        part = (places - low).reshape([-1 if each == axis else 1 for each in range(4)]) if smooth else 0.0
        high = np.minimum(low + 1, small.shape[axis] - 1)
        small = np.take(small, low, axis) * (1 - part) + np.take(small, high, axis) * part
    return small
