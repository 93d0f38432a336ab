"""What `--images SOURCE` may be, and how each kind is searched for pictures. Nothing is decoded here."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import random
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from export.photographs.errors import PhotographsError
from thinwire.image_names import EXTENSIONS, is_image_name, is_litter

EXAMPLE = (
    "a folder, a .tar, shards-{000..127}.tar, a text file of paths or hf:NAME[:SPLIT], for example --images ~/Pictures"
)
LABELS = "labels.csv"
CACHE_GB = 10.0


@dataclass(frozen=True)
class Found:
    """A stored picture: `name` in its source; the bytes lie in `file` from `offset` on (size -1: to the end)."""

    name: str
    file: str
    offset: int = 0
    size: int = -1
    captions: tuple[str, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Source:
    """One `--images`. kind: folder, tar, list or hub; places: its folder, tars, list, or NAME and SPLIT; weight: share
    of the draws, None for what others leave."""

    text: str
    kind: str
    places: tuple[str, ...]
    weight: float | None = None
    caption: str | None = field(default=None, compare=False)  # column or field that holds captions

    @property
    def key(self) -> str:
        """Names the source in the cache."""
        return hashlib.sha256(json.dumps([self.kind, self.places, self.caption]).encode()).hexdigest()[:16]

    def stamp(self, folders: dict[str, int] | None = None) -> str:
        """What tells whether the source changed: sizes and times of its files; of a folder the times of `folders`,
        the sub-folders that were seen when it was searched."""
        if self.kind == "hub":
            return "hub"
        if self.kind == "folder":
            return _digest(sorted((folders or {}).items()))
        states = [os.stat(place) for place in self.places]
        return _digest([(place, state.st_size, state.st_mtime_ns) for place, state in zip(self.places, states)])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def parse_source(text: str, caption: str | None = None) -> Source:
    """`SOURCE` or `SOURCE=WEIGHT` → a source that is there. Raises `PhotographsError`, which names what is wrong."""
    place, weight = text, None
    head, equals, tail = text.rpartition("=")
    if equals and not Path(text).exists():
        try:
            weight = float(tail)
        except ValueError:
            raise PhotographsError(
                f"--images {text!r}: {tail!r} behind the last = is not a weight: SOURCE=0.3 gives 0.3 of the draws"
            ) from None
        if not 0 < weight <= 1:
            raise PhotographsError(f"--images {text!r}: a weight is a share of the draws, above 0 and at most 1")
        place = head
    if not place.strip():
        raise PhotographsError("--images: an empty name is no source (a variable that is not set?)")
    if place.startswith("hf:"):
        name, _, split = place[3:].partition(":")
        if not name:
            raise PhotographsError(f"--images {text!r}: hf:NAME[:SPLIT] names a data set of the hub")
        return Source(text, "hub", (name, split or "train"), weight, caption)
    paths = [os.path.abspath(os.path.expanduser(each)) for each in expand_braces(place)]
    if len(paths) == 1 and not os.path.exists(paths[0]) and glob.has_magic(paths[0]):
        paths = sorted(glob.glob(paths[0]))
    missing = [path for path in paths if not os.path.exists(path)]
    if missing or not paths:
        shown = missing[0] if missing else place
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise PhotographsError(f"--images {text!r}: there is no {shown}{more}; give {EXAMPLE}")
    if len(paths) == 1 and os.path.isdir(paths[0]):
        return Source(text, "folder", (paths[0],), weight, caption)
    if all(tarfile_like(path) for path in paths):
        return Source(text, "tar", tuple(paths), weight, caption)
    if len(paths) == 1 and Path(paths[0]).suffix.lower() in (".txt", ".lst", ".list"):
        return Source(text, "list", (paths[0],), weight, caption)
    if len(paths) == 1 and Path(paths[0]).suffix.lower() in EXTENSIONS:
        raise PhotographsError(f"--images {text!r}: is one picture; training needs many: give {EXAMPLE}")
    raise PhotographsError(f"--images {text!r}: is not a source of photographs; give {EXAMPLE}")


def tarfile_like(path: str) -> bool:
    return ".tar" in Path(path).name.lower() or path.lower().endswith(".tgz")


def expand_braces(text: str) -> list[str]:
    """`a-{00..02}-{x,y}` → a-00-x, a-00-y, a-01-x, ... as shells and WebDataset do; leading zeros are kept."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", text)
    if not found:
        return [text]
    first, last, names = found.groups()
    if names is None:
        low, high = int(first), int(last)
        if high < low or high - low > 1_000_000:
            raise PhotographsError(f"--images {text!r}: {found[0]} is not an ascending range")
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        parts = [f"{number:0{width}d}" for number in range(low, high + 1)]
    else:
        parts = names.split(",")
    return [each for part in parts for each in expand_braces(text[: found.start()] + part + text[found.end() :])]


def search(source: Source, folders: dict[str, int]) -> Iterator[Found]:
    """Every picture of a source that lies on disk; a folder's sub-folders and their times go into `folders`.

    Raises `PhotographsError` for a tar or list that cannot be read.
    """
    if source.kind == "folder":
        yield from _in_folder(Path(source.places[0]), folders, source.caption)
    elif source.kind == "tar":
        for place in source.places:
            yield from _in_tar(place, source.caption)
    else:
        yield from _in_list(Path(source.places[0]))


def _in_folder(root: Path, folders: dict[str, int], caption: str | None) -> Iterator[Found]:
    """In a random order of sub-folders, because training begins before a large tree has been walked."""
    table = {}
    if (root / LABELS).is_file():
        table = _rows((root / LABELS).read_bytes(), str(root / LABELS), caption)
    shuffle, waiting, seen = random.Random(0), [str(root)], set()
    while waiting:
        folder = waiting.pop(shuffle.randrange(len(waiting)))
        real = os.path.realpath(folder)
        if real in seen:  # links may lead in circles
            continue
        seen.add(real)
        try:
            folders[folder] = os.stat(folder).st_mtime_ns
            with os.scandir(folder) as entries:
                for entry in entries:
                    if is_litter(entry.name):
                        continue
                    if entry.is_dir():
                        waiting.append(entry.path)
                    elif is_image_name(entry.name):
                        name = os.path.relpath(entry.path, root)
                        captions, label = table.get(name, ((), ""))
                        yield Found(name, entry.path, captions=captions, label=label)
        except OSError as error:
            if folder == str(root):
                raise PhotographsError(f"--images {root}: cannot be read ({error.strerror or error})") from error


def _in_list(path: Path) -> Iterator[Found]:
    try:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                name = line.strip()
                if name:
                    yield Found(name, os.path.join(path.parent, os.path.expanduser(name)))
    except (OSError, UnicodeDecodeError) as error:
        raise PhotographsError(f"--images {path}: is not a list of paths, one a line ({error})") from error


def _in_tar(place: str, caption: str | None) -> Iterator[Found]:
    """Members by their place in the file, which is why the tar must not be compressed. With a labels.csv: our layout,
    else WebDataset's: files of one key (the name up to its first point) belong together."""
    pictures: list[tuple[str, int, int]] = []
    texts: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    table: dict[str, tuple[tuple[str, ...], str]] = {}
    try:
        with tarfile.open(place, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # tarfile would keep them all
                if not member.isfile() or is_litter(member.name.removeprefix("./")):
                    continue
                folder, _, name = member.name.rpartition("/")
                key, suffix = f"{folder}/{name.partition('.')[0]}", os.path.splitext(name)[1].lower()
                if is_image_name(name):
                    pictures.append((member.name, member.offset_data, member.size))
                elif name == LABELS:
                    prefix = member.name[: -len(LABELS)]
                    rows = _rows(tar.extractfile(member).read(), f"{place}/{member.name}", caption)
                    table |= {prefix + path: row for path, row in rows.items()}
                elif suffix == ".txt" and caption is None:
                    texts[key] = [tar.extractfile(member).read().decode("utf-8", "replace").strip()]
                elif suffix == ".cls":
                    labels[key] = tar.extractfile(member).read().decode("utf-8", "replace").strip()
                elif suffix == ".json" and caption is not None:
                    texts[key] = _field(tar.extractfile(member).read(), caption)
    except (tarfile.TarError, OSError, EOFError) as error:
        hint = (
            "decompress it first" if re.search(r"\.(gz|tgz|xz|bz2|zst)$", place) else "copy it again, or leave it out"
        )
        raise PhotographsError(f"--images {place}: cannot be read as a plain tar ({error}): {hint}") from error
    size = os.path.getsize(place)
    for name, offset, length in pictures:
        if offset + length > size:
            raise PhotographsError(f"--images {place}: ends in the middle of {name}: copy it again, or leave it out")
        folder, _, base = name.rpartition("/")
        key = f"{folder}/{base.partition('.')[0]}"
        captions, label = table.get(name, (tuple(filter(None, texts.get(key, []))), labels.get(key, "")))
        yield Found(name, place, offset, length, captions, label)


def _field(data: bytes, name: str) -> list[str]:
    try:
        value = json.loads(data).get(name) or []
    except (ValueError, AttributeError):
        return []
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _rows(data: bytes, name: str, caption: str | None) -> dict[str, tuple[tuple[str, ...], str]]:
    """labels.csv: path, class and caption_1, caption_2, ... (or the column `caption`) → path → (captions, class)."""
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise PhotographsError(f"{name}: is not a table of labels ({error})") from error
    if rows and "path" not in rows[0]:
        raise PhotographsError(f"{name}: has no column `path`")
    if rows and caption is not None and caption not in rows[0]:
        raise PhotographsError(f"{name}: has no column {caption!r}; it has {', '.join(map(str, rows[0]))}")
    found = {}
    for row in rows:
        columns = [caption] if caption else [key for key in row if key and key.startswith("caption")]
        captions = tuple(text for text in ((row.get(key) or "").strip() for key in columns) if text)
        found[row["path"]] = captions, (row.get("class") or "").strip()
    return found
