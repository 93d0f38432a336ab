"""The demo's photographs: its own, those inside the scikit-image wheel, and some of a local test set."""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data.sets import DataError, load_dataset

WHEEL_PHOTOS = {
    "astronaut.png": "astronaut",
    "brick.png": "brick wall",
    "camera.png": "photographer with a camera",
    "chelsea.png": "cat",
    "coffee.png": "cup of coffee",
    "coins.png": "coins",
    "grass.png": "grass",
    "hubble_deep_field.jpg": "galaxies",
    "moon.png": "surface of the moon",
    "motorcycle_left.png": "motorcycle",
    "page.png": "page of text",
    "rocket.jpg": "rocket",
}
"""File in skimage/data → what anyone would say it shows. Its other files are diagrams or microscopy."""

OWN_FOLDER = Path(__file__).resolve().parents[1] / "demo" / "photographs"
"""In the public domain or under CC0; `sources.csv` names the maker of each."""

DISTRACTORS = ("dog", "bicycle", "car", "airplane", "boat", "house", "tree", "pizza")
"""Labels of the demo that are on no photograph."""

OWN_DISTRACTORS = ("cat", "bicycle", "car", "airplane", "boat", "house", "tree", "pizza")

LABELS = (*WHEEL_PHOTOS.values(), *DISTRACTORS)
LOCAL_SET = Path(__file__).resolve().parents[3] / "shared" / "data" / "eval-imagenette.tar"


@dataclass(frozen=True)
class Photo:
    """A file's bytes with its name and true label."""

    name: str
    data: bytes
    label: str


def own_photos() -> list[Photo]:
    """The photographs of the checkout, with what each shows. They were chosen before any CLIP had answered them."""
    with open(OWN_FOLDER / "sources.csv", encoding="utf-8", newline="") as table:
        return [
            Photo(row["file"], (OWN_FOLDER / row["file"]).read_bytes(), row["label"]) for row in csv.DictReader(table)
        ]


def own_labels() -> tuple[str, ...]:
    """Labels of `own_photos`, and those that are on no photograph."""
    labels = [photo.label for photo in own_photos()]
    return (*labels, *(label for label in OWN_DISTRACTORS if label not in labels))


def wheel_photos() -> list[Photo]:
    """The photographs of the installed scikit-image. Raises `DataError` when it or one of them is missing."""
    spec = importlib.util.find_spec("skimage")  # without importing it: that alone takes a second
    if spec is None or spec.origin is None:
        raise DataError("scikit-image is not installed: install the demo's photographs with `pip install scikit-image`")
    folder = Path(spec.origin).parent / "data"
    missing = [name for name in WHEEL_PHOTOS if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder}: lacks {', '.join(missing)}: install scikit-image 0.24 to 0.26 from its wheel")
    return [Photo(name, (folder / name).read_bytes(), label) for name, label in WHEEL_PHOTOS.items()]


def wheel_is_installed() -> bool:
    """Whether scikit-image is there at all."""
    return importlib.util.find_spec("skimage") is not None


def local_photos(count: int, seed: int, path: Path = LOCAL_SET) -> tuple[list[Photo], tuple[str, ...]]:
    """`count` seeded images of the local ImageNette test set with its labels; ([], ()) where there is none."""
    if not path.is_file():
        return [], ()
    data = load_dataset(path, count, seed)
    return [Photo(item.name, data.read(item), data.labels[item.target]) for item in data.items], data.labels
