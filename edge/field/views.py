"""What of a frame is looked at: the crop, and the gate that stops frames of a scene that has not changed."""

from __future__ import annotations

import math

import numpy as np

from edge.errors import SourceError
from thinwire.decode_cost import Crop


class Gate:
    """Lets a frame through when the scene has changed since the last one that went through.

    Change is the mean absolute difference of 32x18 luma thumbnails, as a share of full scale: the sensor noise of a
    still scene is under 0.01, a person walking in is about 0.03 and more. 0 lets everything through.
    """

    def __init__(self, least_change: float) -> None:
        if not 0 <= least_change < 1:
            raise SourceError(f"--min-change is a number from 0 to below 1, not {least_change}")
        self._least = least_change
        self._last: dict[str, np.ndarray] = {}

    def passes(self, source: str, view: np.ndarray) -> bool:
        """view: uint8 (H, W, 3)."""
        if self._least == 0:
            return True
        small = _thumbnail(view)
        last = self._last.get(source)
        if last is not None and np.abs(small - last).mean() < 255 * self._least:
            return False
        self._last[source] = small
        return True


def _thumbnail(view: np.ndarray) -> np.ndarray:
    """Means of a grid of cells: uint8 (H, W, 3) → float32 (18, 32) or coarser."""
    luma = view[..., 1].astype(np.float32)  # green is three fifths of luma, and enough
    rows, columns = min(18, luma.shape[0]), min(32, luma.shape[1])
    high, wide = luma.shape[0] // rows, luma.shape[1] // columns
    return luma[: rows * high, : columns * wide].reshape(rows, high, columns, wide).mean(axis=(1, 3))


def parse_crop(text: str) -> Crop:
    """ "X,Y,W,H" in pixels, or as shares when all are at most 1. Raises `SourceError`."""
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise SourceError(f"--crop {text!r}: write X,Y,W,H in pixels, or in shares of the frame from 0 to 1") from None
    if not all(map(math.isfinite, (x, y, width, height))) or min(x, y) < 0 or min(width, height) <= 0:
        raise SourceError(f"--crop {text!r}: X and Y are numbers from 0, W and H above 0")
    return x, y, width, height
