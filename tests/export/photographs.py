"""scikit-image's photographs: real pictures that need neither a network nor ../shared."""

from __future__ import annotations

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

FOLDER = Path(skimage.__file__).parent / "data"
CAPTIONS = {
    "astronaut.png": "a portrait of a smiling astronaut in an orange space suit",
    "chelsea.png": "a close photo of a tabby cat",
    "coffee.png": "a cup of coffee on a saucer with a spoon",
    "rocket.jpg": "a rocket on its launch pad",
}


def photograph(name: str) -> Image.Image:
    with Image.open(FOLDER / name) as image:
        return image.convert("RGB")


def squares(image: Image.Image) -> list[Image.Image]:
    """Nine squares of three sizes along the longer side (of a square: along its diagonal): four photographs give 36."""
    found = []
    for share in (0.8, 0.65, 0.5):
        side = round(share * min(image.size))
        lefts, tops = (np.linspace(0, edge - side, 3).astype(int) for edge in image.size)
        found += [image.crop((x, y, x + side, y + side)) for x, y in zip(lefts, tops)]
    return found


def write_pack(path: Path) -> Path:
    """`photos-train.tar` in the layout of ../shared/data: 36 JPEG crops, labels.csv with one caption each."""
    files, rows = {}, []
    for name, caption in CAPTIONS.items():
        for index, crop in enumerate(squares(photograph(name))):
            data = io.BytesIO()
            crop.save(data, "JPEG", quality=92)
            files[f"pack/images/{Path(name).stem}-{index}.jpg"] = data.getvalue()
            row = {"path": f"images/{Path(name).stem}-{index}.jpg", "class": Path(name).stem, "caption_1": caption}
            rows.append(row | {f"caption_{k}": "" for k in range(2, 6)})
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    files["pack/labels.csv"] = table.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def stand_in(photographs: object, count: int, seed: int = 0, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """`crops` in the place of `training_views`."""
    return crops(count, seed, size)


def crops(count: int, seed: int = 0, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Random squares of four photographs: uint8 (count, *size, 3)."""
    rng = np.random.default_rng(seed)
    photos = [photograph(name) for name in CAPTIONS]
    views = []
    for index in range(count):
        photo = photos[index % len(photos)]
        side = int(min(photo.size) * rng.uniform(0.3, 1))
        x, y = (int(rng.integers(0, edge - side + 1)) for edge in photo.size)
        views.append(np.asarray(photo.crop((x, y, x + side, y + side)).resize(size[::-1])))
    return np.stack(views)
