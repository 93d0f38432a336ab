"""Which image files the user means: files as named, folders searched."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".avif",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".jp2",
    )
)
"""Endings by which a folder's files count as images (in any case)."""


@dataclass(frozen=True)
class Source:
    """One image file. relative: its path below the folder that was named, or its name where it was named itself."""

    path: Path
    relative: Path


def find_images(paths: Iterable[str | os.PathLike[str]]) -> list[Source]:
    """The image files that `paths` mean, in their order.

    A file that is named is always taken: opening it tells whether it is an image, or there at all. Folders are searched
    below, in natural order (frame2 before frame10), for files with an image's ending; hidden files and folders are left
    out, linked folders are not followed. A folder that cannot be read is as good as empty.
    """
    found: list[Source] = []
    for path in map(Path, paths):
        if path.is_dir():
            found.extend(_search(path))
        else:
            found.append(Source(path, Path(path.name)))
    return found


def _search(folder: Path) -> list[Source]:
    inside = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root, name)
            # A pipe called x.jpg would stop the run for ever; a broken link is as worth telling as a broken image
            if not name.startswith(".") and path.suffix.lower() in EXTENSIONS and (path.is_file() or path.is_symlink()):
                inside.append(Source(path, path.relative_to(folder)))
    return sorted(inside, key=lambda source: natural(source.relative))


def natural(path: Path) -> list[list[str | int]]:
    """Sort key that puts frame2 before frame10, folder by folder."""
    return [_natural_name(part) for part in path.parts]


def _natural_name(name: str) -> list[str | int]:
    # split() with a group alternates text and digits, so that text is only ever compared with text
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)] + [name]
