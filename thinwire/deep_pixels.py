"""Pixels of more than 8 bits → 8 bits: the one place that judges which range a file's values have.

Cameras write 10, 12 or 14 bits into files of 16 and microscopes 0..255 into files of 32; scaled by the width of the
file they would be black. So the range is what the file states, where its values lie within, else the least usual one
that holds its values.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from PIL import Image

BITS = (8, 10, 12, 14, 16, 20, 24, 31)
STRIP_BYTES = 8 << 20  # so much at a time, that the copies which NumPy makes stay small
_S_MIN_TAGS, _S_MAX_TAGS = (340, 280), (341, 281)  # TIFF: SMinSampleValue, MinSampleValue; the same with Max

# Pillow keeps the upper byte of each 16-bit sample of a colour picture. The same decoder with these raw modes gives the
# lower byte: samples of the other byte order, or the two bytes of each sample as channels of their own.
_LOWER = {
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
}


def is_deep(image: Image.Image) -> bool:
    """Whether the samples of a loaded greyscale image have more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def to_8_bit(image: Image.Image) -> Image.Image:
    """A loaded image with `is_deep` → mode L. Raises `ValueError` for values that are not finite."""
    least, most = np.inf, -np.inf
    for _, values in _strips(image):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError("holds values that are not finite")
        least, most = min(least, float(values.min())), max(most, float(values.max()))
    low, high = judged_range(least, most, image.mode == "F", stated_range(image))
    out = Image.new("L", image.size)
    for top, values in _strips(image):
        out.paste(Image.fromarray(scaled(values, low, high)), (0, top))
    return out


def judged_range(
    least: float, most: float, is_float: bool, stated: tuple[float, float] | None = None
) -> tuple[float, float]:
    """Values from `least` to `most` → (black, white).

    >>> judged_range(3, 4000, is_float=False)
    (0, 4095)
    >>> judged_range(-0.1, 0.9, is_float=True)
    (0, 1)
    """
    if stated is not None and stated[0] <= least and most <= stated[1]:
        return stated
    if is_float and most <= 2:  # a little beyond 1 is overshoot of a filter, or light brighter than white
        return (-1, 1) if -1.05 <= least < -0.5 and most <= 1.05 else (0, 1)
    if least < 0 and (not is_float or least < -1):  # Hounsfield units, differences
        return least, most
    bits = next((bits for bits in BITS if most < 1 << bits), 0)
    return 0, (1 << bits) - 1 if bits else most


def stated_range(image: Image.Image) -> tuple[float, float] | None:
    """What a TIFF's tags say of its samples; None where they say nothing."""
    tags = getattr(image, "tag_v2", None)
    if not tags:
        return None

    def number(names: tuple[int, ...]) -> float | None:
        for name in names:
            value = tags.get(name)
            value = value[0] if isinstance(value, tuple) and value else value
            if isinstance(value, (int, float)) and np.isfinite(value):
                return float(value)
        return None

    low, high = number(_S_MIN_TAGS) or 0.0, number(_S_MAX_TAGS)
    return (low, high) if high is not None and high > low else None


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Numbers of any type and shape → uint8, `low` to 0 and `high` to 255, clipped."""
    if values.dtype.kind == "f" and (low, high) == (0, 1):
        return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    if values.dtype.kind != "f" and low == 0:
        whole = int(high)
        return ((np.clip(values.astype(np.int64), 0, whole) * 255 + whole // 2) // whole).astype(np.uint8)
    return np.rint((np.clip(values.astype(np.float64), low, high) - low) * (255 / max(high - low, 1e-300))).astype(
        np.uint8
    )


def lower_bytes(image: Image.Image) -> list | None:
    """The tiles that give the lower byte of each sample of an opened and not yet loaded colour image; None where its
    samples have 8 bits, or a form that is not known here."""
    tiles = []
    for tile in getattr(image, "tile", ()):
        args = tile.args if isinstance(tile.args, tuple) else (tile.args,)
        if not args or args[0] not in _LOWER:
            return None
        lower = (_LOWER[args[0]], *args[1:])
        tiles.append(tile._replace(args=lower if isinstance(tile.args, tuple) else lower[0]))
    return tiles or None


def joined(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """The two bytes of each colour sample (RGB or RGBA) → 8 bits by the range that the samples have."""
    highest = max(high for _, high in upper.getextrema()[:3])
    if highest >= 1 << 6:  # more than 14 bits: the upper byte is the picture
        return upper
    most = 0
    for _, high, low in _pairs(upper, lower):
        most = max(most, int(_sixteen(high, low).max()))
    white = judged_range(0, most, is_float=False)[1]
    out = Image.new(upper.mode, upper.size)
    for top, high, low in _pairs(upper, lower):
        part = scaled(_sixteen(high, low), 0, white)
        if upper.mode == "RGBA":  # opacity is full at the file's width, whatever the colours' range
            part = np.concatenate([part, high[..., 3:]], axis=2)
        out.paste(Image.fromarray(part), (0, top))
    return out


def _sixteen(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    return high[..., :3].astype(np.uint16) << 8 | low[..., :3]


def _pairs(upper: Image.Image, lower: Image.Image) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    for (top, high), (_, low) in zip(_strips(upper), _strips(lower), strict=True):
        yield top, high, low


def _strips(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """(row, array) of bands of rows."""
    rows = max(1, STRIP_BYTES // (8 * max(1, image.width)))
    for top in range(0, image.height, rows):
        yield top, np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
