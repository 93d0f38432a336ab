"""A texture set from pictures that lie in the scikit-image wheel: brick, grass and gravel, cut into squares."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.data.sets import DataError, Dataset, Item

NAME = "textures-skimage"
FILES = {"brick.png": "brick", "grass.png": "grass", "gravel.png": "gravel"}
DISTRACTORS = ("fabric", "wood", "water", "sand", "fur", "leather", "marble", "metal", "paper")
"""Labels that no square shows: with three labels alone nothing would ever break."""

SIDE = 128
"""Of a square, from pictures of 512 x 512: 16 of each. Squares of one picture are alike, so n = 48 says less than it
seems to; the set shows whether a codec keeps textures at all, not how well."""


def texture_set(limit: int | None = None, seed: int = 0) -> Dataset:
    """Raises `DataError` where scikit-image is not installed or lacks the pictures."""
    squares = _squares()
    order = np.random.default_rng(seed).permutation(len(squares))[:limit]
    names = sorted(squares)
    labels = (*FILES.values(), *DISTRACTORS)
    items = tuple(Item(names[place], labels.index(names[place].partition("/")[0])) for place in order)
    manifest = "".join(f"{hashlib.sha256(squares[i.name]).hexdigest()}  {i.name}\n" for i in sorted(items, key=str))
    digest = hashlib.sha256(manifest.encode()).hexdigest()
    return Dataset(NAME, items, labels, digest, len(names), squares.__getitem__)


@cache
def _squares() -> dict[str, bytes]:
    spec = importlib.util.find_spec("skimage")  # without importing it: that alone takes a second
    folder = None if spec is None or spec.origin is None else Path(spec.origin).parent / "data"
    if folder is None or not all((folder / name).is_file() for name in FILES):
        raise DataError("the texture set needs scikit-image 0.24 to 0.26 from its wheel: `pip install scikit-image`")
    found = {}
    for name, label in FILES.items():
        picture = Image.open(folder / name).convert("RGB")
        for top in range(0, picture.height - SIDE + 1, SIDE):
            for left in range(0, picture.width - SIDE + 1, SIDE):
                file = io.BytesIO()
                picture.crop((left, top, left + SIDE, top + SIDE)).save(file, "PNG")
                found[f"{label}/{top:03}-{left:03}.png"] = file.getvalue()
    return found
