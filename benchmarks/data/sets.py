"""Labelled images and captions from a tar or a folder, sampled the same way every time.

`benchmarks.data.layouts` has the layouts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from benchmarks.data.layouts import DataError, open_files, open_listing
from thinwire.image_names import is_litter

__all__ = ["CaptionItem", "Captions", "DataError", "Dataset", "Item", "find_datasets", "load_captions", "load_dataset"]


@dataclass(frozen=True)
class Item:
    """One labelled image. `name`: its path inside the data set; `target`: index into `Dataset.labels`."""

    name: str
    target: int


@dataclass(frozen=True)
class Dataset:
    """A sample of a labelled data set.

    `labels` are those of the whole set, whatever was sampled: leaving some out would make the task easier.
    `sha256` is over the names and bytes of the sampled files alone, so equal hashes mean the same pictures.
    `templates`: the set's own prompt templates, {} for the label; empty where it brings none.
    """

    name: str
    items: tuple[Item, ...]
    labels: tuple[str, ...]
    sha256: str
    total: int
    _read: Callable[[str], bytes]
    templates: tuple[str, ...] = ()

    def read(self, item: Item) -> bytes:
        """The bytes of the item's file."""
        return self._read(item.name)


@dataclass(frozen=True)
class CaptionItem:
    """One image with what people said of it."""

    name: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Captions:
    """A sample of an image-caption set, for retrieval; `sha256` as of `Dataset`, the captions included."""

    name: str
    items: tuple[CaptionItem, ...]
    sha256: str
    total: int
    _read: Callable[[str], bytes]

    def read(self, item: CaptionItem) -> bytes:
        """The bytes of the item's file."""
        return self._read(item.name)


def label_text(name: str) -> str:
    """A class name as words for a prompt.

    >>> label_text("garbage_truck")
    'garbage truck'
    """
    return " ".join(name.replace("_", " ").split())


def load_dataset(source: str | os.PathLike[str], limit: int | None = None, seed: int = 0) -> Dataset:
    """Reads the list of `source` and samples `limit` items of it (None: all), without replacement.

    The same seed gives the same items in the same order, and a smaller limit gives a prefix of a larger one.
    Raises `DataError` when the set is missing, empty, of no known layout, or names files that are not there.
    """
    path = Path(source)
    order = _sampler(limit, seed)
    listing = open_listing(path)
    if not listing.rows:
        raise DataError(f"{path}: lists no images")
    labels = tuple(dict.fromkeys(map(label_text, listing.classes or sorted({name for _, name in listing.rows}))))
    if not listing.classes:
        labels = tuple(sorted(labels))
    index = {label: place for place, label in enumerate(labels)}
    rows = sorted(listing.rows)  # the order on disk or in the csv must not change what a seed means
    items = tuple(Item(rows[place][0], index[label_text(rows[place][1])]) for place in order(len(rows)))
    digest = _manifest_hash((item.name for item in items), listing.read)
    return Dataset(_name(path), items, labels, digest, len(rows), listing.read, listing.templates)


def find_datasets(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """Labelled sets by name: those in `folder` (tars, subfolders), or `folder` itself where it holds none."""
    path = Path(folder)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    candidates = sorted(
        each for each in path.iterdir() if (each.is_dir() or ".tar" in each.suffixes) and not is_litter(each.name)
    )
    found = {_name(each): each for each in candidates if _is_labelled(each)}
    return found or ({_name(path): path} if _is_labelled(path) else {})


def _is_labelled(path: Path) -> bool:
    try:
        return bool(open_listing(path).rows)
    except DataError:
        return False


def load_captions(source: str | os.PathLike[str], limit: int | None = None, seed: int = 0) -> Captions:
    """Reads an image-caption csv: `source` is the csv, a folder or a tar that holds captions.csv or labels.csv.

    The image's column is called path, image, filepath or file_name; captions are all columns that begin with caption,
    title or sentence, and an image may have several lines. Comma or tab separates. Sampling is as in `load_dataset`.
    Raises `DataError`.
    """
    path = Path(source)
    order = _sampler(limit, seed)
    if path.is_file() and path.suffix in (".csv", ".tsv", ".txt"):
        root, wanted = path.parent, (path.name,)
    else:
        root, wanted = path, ("captions.csv", "captions.txt", "captions.tsv", "labels.csv")
    names, read = open_files(root)
    lists = [name for last in wanted for name in sorted(names) if PurePosixPath(name).name == last]
    if not lists:
        raise DataError(f"{path}: holds no {' or '.join(wanted)}")
    base = PurePosixPath(lists[0]).parent
    images: dict[str, list[str]] = {}
    for image, caption in _captions(read(lists[0]), f"{path}:{lists[0]}"):
        name = next(
            (
                str(each)
                for each in (base / image, base / "Images" / image, base / "images" / image)
                if str(each) in names
            ),
            None,
        )
        if name is None:
            raise DataError(f"{path}: {lists[0]} names {image}, which does not exist")
        images.setdefault(name, []).append(caption)
    rows = sorted(images.items())
    if not rows:
        raise DataError(f"{path}: lists no captions")
    items = tuple(CaptionItem(rows[place][0], tuple(rows[place][1])) for place in order(len(rows)))
    said = hashlib.sha256(repr(sorted((item.name, item.captions) for item in items)).encode()).hexdigest()
    digest = hashlib.sha256((_manifest_hash((i.name for i in items), read) + said).encode()).hexdigest()
    return Captions(_name(path), items, digest, len(rows), read)


def _captions(data: bytes, name: str) -> list[tuple[str, str]]:
    """(image, caption) of every caption of a csv."""
    try:
        text = data.decode("utf-8-sig")
        first = text.partition("\n")[0]
        table = csv.DictReader(io.StringIO(text), delimiter="\t" if "\t" in first else ",")
        fields = [field or "" for field in table.fieldnames or ()]
        image = next((each for each in fields if each in ("path", "image", "filepath", "file_name", "filename")), None)
        columns = [each for each in fields if each.startswith(("caption", "title", "sentence"))]
        if image is None or not columns:
            raise DataError(f"{name}: needs a column path (or image) and caption columns, has {', '.join(fields)}")
        return [(row[image], row[each].strip()) for row in table for each in columns if (row[each] or "").strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: is not a UTF-8 csv file ({error})") from error


def _sampler(limit: int | None, seed: int) -> Callable[[int], np.ndarray]:
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no images: give 1 or more")
    return lambda count: np.random.default_rng(seed).permutation(count)[:limit]


def _name(path: Path) -> str:
    name = path.resolve().name
    return name.partition(".tar")[0] if path.is_file() else name


def _manifest_hash(names: Iterable[str], read: Callable[[str], bytes]) -> str:
    """SHA-256 over the sorted lines `sha256(bytes)  name`, as hex: what `sha256sum` of the files would print."""
    manifest = hashlib.sha256()
    for name in sorted(names):
        manifest.update(f"{hashlib.sha256(read(name)).hexdigest()}  {name}\n".encode())
    return manifest.hexdigest()
