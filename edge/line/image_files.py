"""Which image files the user means: files as named, folders searched, and what of a folder is left out."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from edge.errors import NothingToDo
from thinwire.image_names import EXTENSIONS, is_litter
from thinwire.text import shown

VIDEO_ENDINGS = frozenset(
    (
        *(".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".wmv", ".asf"),
        *(".3gp", ".3g2", ".flv", ".f4v", ".ogv", ".vob", ".mjpeg", ".mjpg", ".h264", ".h265", ".264", ".265", ".hevc"),
    )
)
"""Endings by which a file counts as a video (in any case)."""

MAX_NAMED = 8  # endings in one sentence


@dataclass(frozen=True)
class Source:
    """One image file. relative: its path below the folder that was named, or its name where it was named itself."""

    path: Path
    relative: Path


@dataclass
class Found:
    """What a search found. left_out: files of folders that are no images, counted by ending ("" for none); unreadable:
    folders that could not be read, with the reason."""

    images: list[Source] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """One sentence for people on each thing that was left out; none where nothing was."""
        notes = [f"{shown(each)}; its files are left out" for each in self.unreadable]
        if self.left_out:
            most = sorted(self.left_out.items(), key=lambda pair: (-pair[1], pair[0]))
            named = ", ".join(f"{count} {shown(ending) or 'without an ending'}" for ending, count in most[:MAX_NAMED])
            rest = sum(count for _, count in most[MAX_NAMED:])
            total = sum(self.left_out.values())
            text = f"{total} file{'s are' if total > 1 else ' is'} left out, as no image by the name: {named}"
            text += f" and {rest} more" if rest else ""
            if VIDEO_ENDINGS & self.left_out.keys():
                text += "; name videos themselves, `thinwire-edge run` takes them"
            notes.append(text)
        return notes


def plain_word(word: str) -> str:
    """A source as the user may write it: schemes in lower case, file://PATH as a path. Raises `NothingToDo` for ""."""
    if not word.strip():
        raise NothingToDo("one of the sources is an empty name: a variable that is not set?")
    scheme, mark, rest = word.partition("://")
    if not mark or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return word
    if scheme.lower() == "file":
        return urllib.parse.unquote(rest.removeprefix("localhost"), errors="surrogateescape")
    return f"{scheme.lower()}://{rest}"


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Source]:
    """The image files that `paths` mean, in their order: the images of `search`."""
    return search(paths).images


def search(paths: Iterable[str | os.PathLike[str]]) -> Found:
    """The image files that `paths` mean, in their order, and what was left out.

    A file that is named is always taken: opening it tells whether it is an image, or there at all. Folders are searched
    below, in natural order (frame2 before frame10), for files with an image's ending; hidden files and folders, and
    what a Mac adds to its zips, are left out without a word, linked folders are not followed. No name, however odd,
    ends the search.
    """
    found = Found()
    for path in map(Path, paths):
        if _is(path.is_dir):
            _search(path, found)
        else:
            found.images.append(Source(path, Path(path.name)))
    return found


def _search(folder: Path, found: Found) -> None:
    inside = []
    stack = [os.fspath(folder)]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                listed = list(entries)
        except OSError as error:
            found.unreadable.append(f"{error.filename}: cannot be read ({error.strerror or error})")
            continue
        for entry in listed:
            if is_litter(entry.name):
                continue
            if _is(lambda entry=entry: entry.is_dir(follow_symlinks=False)):
                stack.append(entry.path)
                continue
            path = Path(entry.path)
            ending = path.suffix.lower()
            if _is(path.is_dir):
                continue  # a link to a folder
            if ending not in EXTENSIONS:
                found.left_out[ending] += 1
            # A pipe called x.jpg would stop the run for ever; a broken link is as worth telling as a broken image
            elif _is(path.is_file) or _is(path.is_symlink):
                inside.append(Source(path, path.relative_to(folder)))
            else:
                found.left_out[f"{ending} that is no file"] += 1
    found.images.extend(sorted(inside, key=lambda source: natural(source.relative)))


def _is(test) -> bool:
    """A question about a path; False where the system cannot answer it (a name or a link's target that is too long)."""
    try:
        return test()
    except (OSError, ValueError):
        return False


def natural(path: Path) -> list[list[str | int]]:
    """Sort key that puts frame2 before frame10, folder by folder."""
    return [_natural_name(part) for part in path.parts]


def _natural_name(name: str) -> list[str | int]:
    # split() with a group alternates text and digits, so that text is only ever compared with text
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)] + [name]
