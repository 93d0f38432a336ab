"""How labelled images lie on disk: tars and folders with labels.csv, ImageFolder, ImageNet, CIFAR, CLIP_benchmark."""

from __future__ import annotations

import csv
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from benchmarks.data.cifar import cifar_members, open_cifar
from thinwire.errors import LabelError, ThinwireError
from thinwire.image_names import is_image_name, is_litter
from thinwire.labels import resolve_templates

WNID = re.compile(r"n\d{8}")
SPLITS = ("test", "val", "validation", "train")  # the first that is there is measured
CLASS_NAMES = "classnames.txt"
TEMPLATES = ("zeroshot_classification_templates.txt", "templates.txt")


class DataError(ThinwireError):
    """A data set cannot be read; the message names the file and what is wrong with it."""

    reason: ClassVar[str] = "BAD_DATA"


@dataclass
class Listing:
    """rows: (path, class) of every image; read: a path's bytes; classes: in their order, or None for sorted."""

    rows: list[tuple[str, str]]
    read: Callable[[str], bytes]
    classes: tuple[str, ...] | None = None
    templates: tuple[str, ...] = ()


def open_listing(path: Path) -> Listing:
    """Recognises the layout of a tar or folder. Raises `DataError`."""
    if path.is_dir():
        return _open_folder(path)
    if path.is_file():
        return _open_tar(path)
    raise DataError(f"{path}: no such tar or folder")


def open_files(path: Path) -> tuple[frozenset[str], Callable[[str], bytes]]:
    """Names of all files in a tar or folder, and how to read one. Raises `DataError`."""
    if path.is_dir():
        names = frozenset(file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file())
        return names, lambda name: _read_file(path, name)
    if not path.is_file():
        raise DataError(f"{path}: no such tar or folder")
    members, read = _open_archive(path)
    return frozenset(members), read


def _open_archive(path: Path) -> tuple[dict[str, tarfile.TarInfo], Callable[[str], bytes]]:
    try:
        archive = tarfile.open(path)  # noqa: SIM115 - stays open as long as images are read from it
        members = {str(PurePosixPath(member.name)): member for member in archive if member.isfile()}
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: is not a readable tar ({error})") from error

    def read(name: str) -> bytes:
        with archive.extractfile(members[name]) as file:
            return file.read()

    return members, read


def _read_file(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise DataError(f"{path / name}: cannot be read ({error.strerror or error})") from error


def _open_tar(path: Path) -> Listing:
    members, read = _open_archive(path)
    if cifar_members(members):
        return Listing(*_checked_cifar(members, read, str(path)))
    lists = sorted((name for name in members if PurePosixPath(name).name == "labels.csv"), key=lambda n: n.count("/"))
    if not lists:
        raise DataError(f"{path}: holds no NAME/labels.csv")
    root = PurePosixPath(lists[0]).parent
    rows = _rows(read(lists[0]), f"{path}:{lists[0]}")
    for name, _ in rows:
        if str(root / name) not in members:
            raise DataError(f"{path}: labels.csv names {name}, which the tar does not hold")
    return Listing(rows, lambda name: read(str(root / name)))


def _open_folder(path: Path) -> Listing:
    def read(name: str) -> bytes:
        return _read_file(path, name)

    if (path / "labels.csv").is_file():
        rows = _rows(read("labels.csv"), str(path / "labels.csv"))
        for name, _ in rows:
            if not (path / name).is_file():
                raise DataError(f"{path}: labels.csv names {name}, which does not exist")
        return Listing(rows, read, templates=_templates(path))
    files = {str(each.relative_to(path)): each for pattern in ("*", "*/*") for each in path.glob(pattern)}
    if cifar_members(files):
        return Listing(*_checked_cifar(files, read, str(path)))
    if shards := [shard for split in SPLITS for shard in sorted((path / split).glob("*.tar"))]:
        return _open_webdataset(path, [shard for shard in shards if shard.parent == shards[0].parent])
    return _open_class_folders(path)


def _checked_cifar(files: dict, read: Callable[[str], bytes], name: str) -> tuple:
    try:
        return open_cifar(files, read)
    except ValueError as error:
        raise DataError(f"{name}: is a damaged CIFAR archive ({error})") from error


def _open_class_folders(path: Path) -> Listing:
    """ImageFolder, also below a split's folder (torchvision's ImageNet: val/n01440764/...)."""
    folders = sorted(each.name for each in path.iterdir() if each.is_dir() and not is_litter(each.name))
    if folders and set(folders) <= set(SPLITS):
        split = next(name for name in SPLITS if name in folders)
        inner = _open_class_folders(path / split)
        classes, templates = _class_names(path, sorted({name for _, name in inner.rows})), _templates(path)
        if classes:
            inner = _renamed(inner, classes)
        return Listing(inner.rows, inner.read, inner.classes, templates or inner.templates)
    names = [file.relative_to(path) for file in sorted(path.rglob("*"))]
    names = [name for name in names if is_image_name(name.as_posix())]
    rows = [(name.as_posix(), name.parts[0]) for name in names if len(name.parts) > 1]
    if not rows:
        raise DataError(f"{path}: holds neither labels.csv nor class folders with images")
    listing = Listing(rows, lambda name: _read_file(path, name), templates=_templates(path))
    present = sorted({label for _, label in rows})
    classes = _class_names(path, present)
    if classes is None and all(WNID.fullmatch(label) for label in present):
        classes = _imagenet_names(path, present)
    return _renamed(listing, classes) if classes else listing


def _renamed(listing: Listing, classes: dict[str, str]) -> Listing:
    """Folder names → the names that people use, in the folders' order."""
    rows = [(name, classes[label]) for name, label in listing.rows]
    return Listing(rows, listing.read, tuple(dict.fromkeys(classes.values())), listing.templates)


def _class_names(path: Path, folders: list[str]) -> dict[str, str] | None:
    """CLIP_benchmark's classnames.txt: line i names the i-th folder. None where there is no such file."""
    if not (path / CLASS_NAMES).is_file():
        return None
    names = _lines(path / CLASS_NAMES)
    if len(names) != len(folders):
        raise DataError(f"{path / CLASS_NAMES}: names {len(names)} classes, there are {len(folders)} class folders")
    return dict(zip(folders, names))


def _imagenet_names(path: Path, wnids: list[str]) -> dict[str, str]:
    """ImageNet's names as open_clip writes them (those that its published accuracies use), by WordNet id."""
    try:
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise DataError(f"{path}: names of ImageNet's classes need the cloud extra, or a {CLASS_NAMES}") from error
    known = dict(zip(ImageNetInfo().label_names(), IMAGENET_CLASSNAMES))
    if missing := [wnid for wnid in wnids if wnid not in known]:
        raise DataError(f"{path}: {missing[0]} is not a class of ImageNet-1k: add a {CLASS_NAMES} with one name a line")
    return {wnid: known[wnid] for wnid in wnids}


def _open_webdataset(path: Path, shards: list[Path]) -> Listing:
    """CLIP_benchmark's webdataset: SPLIT/0.tar with KEY.jpg (or .webp, .png) and KEY.cls, classnames.txt beside."""
    if not (path / CLASS_NAMES).is_file():
        raise DataError(f"{path}: has shards but no {CLASS_NAMES}: add it, one class name a line")
    names = _lines(path / CLASS_NAMES)
    places: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}
    rows = []
    for shard in shards:
        try:
            archive = tarfile.open(shard)  # noqa: SIM115 - stays open as long as images are read from it
            members = {member.name: member for member in archive if member.isfile()}
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{shard}: is not a readable tar ({error})") from error
        for name, member in members.items():
            if not is_image_name(name.removeprefix("./")):
                continue
            stem = name.rpartition(".")[0]
            label = archive.extractfile(members[f"{stem}.cls"]).read() if f"{stem}.cls" in members else b""
            if not label.strip().isdigit() or int(label) >= len(names):
                raise DataError(f"{shard}: {name} has no class 0 to {len(names) - 1} in {stem}.cls")
            places[f"{shard.stem}/{name}"] = archive, member
            rows.append((f"{shard.stem}/{name}", names[int(label)]))

    def read(name: str) -> bytes:
        archive, member = places[name]
        return archive.extractfile(member).read()

    return Listing(rows, read, tuple(dict.fromkeys(names)), _templates(path))


def _templates(path: Path) -> tuple[str, ...]:
    """CLIP_benchmark's templates: one a line, {c} for the class name ({} is taken too)."""
    for name in TEMPLATES:
        if (path / name).is_file():
            try:
                return resolve_templates("", [line.replace("{c}", "{}") for line in _lines(path / name)])
            except LabelError as error:
                raise DataError(f"{path / name}: {error}") from error
    return ()


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is not UTF-8 text ({error})") from error


def _rows(data: bytes, name: str) -> list[tuple[str, str]]:
    """(path, class) of every line of a csv that has a class: packs for training hold images without one."""
    try:
        table = csv.DictReader(data.decode("utf-8-sig").splitlines())
        if not {"path", "class"} <= set(table.fieldnames or ()):
            raise DataError(f"{name}: needs the columns path and class, has {', '.join(table.fieldnames or ())}")
        rows = [(row["path"], (row["class"] or "").strip()) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{name}: is not a UTF-8 csv file ({error})") from error
    for line, (path, _) in enumerate(rows, start=2):
        if not path:
            raise DataError(f"{name}: line {line} lacks its path")
    return [(path, label) for path, label in rows if label]
