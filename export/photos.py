"""Eval packs (tar + labels.csv) as arrays, decoded once and memory-mapped afterwards. Never trained on."""

from __future__ import annotations

import csv
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from export.teachers import cache_root, data_root


@dataclass(frozen=True)
class Pack:
    """images uint8 (N, S, S, 3) RGB; rows: the labels.csv record of each image."""

    images: np.ndarray
    rows: list[dict[str, str]]


def load_pack(path: str | Path, size: int) -> Pack:
    """Reads a pack, each image resized (short side, antialiased bicubic) and centre-cropped to `size` x `size`."""
    path = Path(path)
    stamp = path.stat()
    cached = cache_root() / f"{path.stem}-{size}-{stamp.st_size}.npy"
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar if member.isfile()}
        table = next(name for name in members if name.endswith("labels.csv"))
        folder = table[: -len("labels.csv")]
        rows = list(csv.DictReader(io.StringIO(tar.extractfile(members[table]).read().decode("utf-8"))))
        if not cached.exists():
            images = np.empty((len(rows), size, size, 3), np.uint8)
            for index, row in enumerate(rows):
                with Image.open(io.BytesIO(tar.extractfile(members[folder + row["path"]]).read())) as image:
                    images[index] = centre_square(image.convert("RGB"), size)
            partial = cached.with_suffix(".partial.npy")
            np.save(partial, images)
            partial.rename(cached)
    return Pack(np.load(cached, mmap_mode="r"), rows)


def centre_square(image: Image.Image, size: int) -> np.ndarray:
    """Short side to `size` (antialiased bicubic), centre crop → uint8 (size, size, 3)."""
    scale = size / min(image.size)
    width, height = max(size, round(image.width * scale)), max(size, round(image.height * scale))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def default_source() -> Path:
    """What is trained on where no `--images` is given, if it is there."""
    return data_root() / "photos-train.tar"


def eval_pack(name: str, size: int = 224) -> Pack:
    """`eval-NAME`: for measuring only."""
    return load_pack(data_root() / f"eval-{name}.tar", size)
