"""Labelled images from a tar or a folder, sampled the same way every time.

Three layouts are read: a tar that holds NAME/labels.csv, a folder that holds labels.csv (both with the columns
`path` and `class`, paths relative to the csv), and a folder of class folders (ImageFolder).
"""

from __future__ import annotations

import csv
import hashlib
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from thinwire.errors import ThinwireError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".jp2")


class DataError(ThinwireError):
    """A data set cannot be read; the message names the file and what is wrong with it."""

    reason: ClassVar[str] = "BAD_DATA"


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
    """

    name: str
    items: tuple[Item, ...]
    labels: tuple[str, ...]
    sha256: str
    total: int
    _read: Callable[[str], bytes]

    def read(self, item: Item) -> bytes:
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
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} leaves no images: give 1 or more")
    path = Path(source)
    if path.is_dir():
        rows, read = _open_folder(path)
    elif path.is_file():
        rows, read = _open_tar(path)
    else:
        raise DataError(f"{path}: there is no such tar or folder")
    if not rows:
        raise DataError(f"{path}: lists no images")
    labels = tuple(sorted({label_text(name) for _, name in rows}))
    index = {label: place for place, label in enumerate(labels)}
    rows.sort()  # the order on disk or in the csv must not change what a seed means
    order = np.random.default_rng(seed).permutation(len(rows))[:limit]
    items = tuple(Item(rows[place][0], index[label_text(rows[place][1])]) for place in order)
    name = path.resolve().name.removesuffix(".tar")
    return Dataset(name, items, labels, _manifest_hash(items, read), len(rows), read)


def _manifest_hash(items: tuple[Item, ...], read: Callable[[str], bytes]) -> str:
    """SHA-256 over the sorted lines `sha256(bytes)  name`, as hex: what `sha256sum` of the files would print."""
    manifest = hashlib.sha256()
    for name in sorted(item.name for item in items):
        manifest.update(f"{hashlib.sha256(read(name)).hexdigest()}  {name}\n".encode())
    return manifest.hexdigest()


def _open_tar(path: Path) -> tuple[list[tuple[str, str]], Callable[[str], bytes]]:
    try:
        archive = tarfile.open(path)  # noqa: SIM115 - stays open as long as images are read from it
        members = {str(PurePosixPath(member.name)): member for member in archive if member.isfile()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: is no readable tar ({error})") from error
    lists = sorted((name for name in members if PurePosixPath(name).name == "labels.csv"), key=lambda n: n.count("/"))
    if not lists:
        raise DataError(f"{path}: holds no NAME/labels.csv")
    root = PurePosixPath(lists[0]).parent

    def read(name: str) -> bytes:
        with archive.extractfile(members[str(root / name)]) as file:
            return file.read()

    rows = _rows(read("labels.csv"), f"{path}:{lists[0]}")
    for name, _ in rows:
        if str(root / name) not in members:
            raise DataError(f"{path}: labels.csv names {name}, which the tar does not hold")
    return rows, read


def _open_folder(path: Path) -> tuple[list[tuple[str, str]], Callable[[str], bytes]]:
    def read(name: str) -> bytes:
        try:
            return (path / name).read_bytes()
        except OSError as error:
            raise DataError(f"{path / name}: cannot be read ({error.strerror or error})") from error

    if (path / "labels.csv").is_file():
        rows = _rows(read("labels.csv"), str(path / "labels.csv"))
        for name, _ in rows:
            if not (path / name).is_file():
                raise DataError(f"{path}: labels.csv names {name}, which is not there")
        return rows, read
    rows = [
        (file.relative_to(path).as_posix(), file.relative_to(path).parts[0])
        for file in path.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and len(file.relative_to(path).parts) > 1
    ]
    if not rows:
        raise DataError(f"{path}: holds neither labels.csv nor class folders with images")
    return rows, read


def _rows(data: bytes, name: str) -> list[tuple[str, str]]:
    """(path, class) of every line of a csv."""
    try:
        table = csv.DictReader(data.decode("utf-8-sig").splitlines())
        if not {"path", "class"} <= set(table.fieldnames or ()):
            raise DataError(f"{name}: needs the columns path and class, has {', '.join(table.fieldnames or ())}")
        rows = [(row["path"], row["class"]) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: is no UTF-8 csv ({error})") from error
    for line, (path, label) in enumerate(rows, start=2):
        if not path or not label or not label.strip():
            raise DataError(f"{name}: line {line} lacks its path or class")
    return rows
