"""Which files of a folder or an archive are images by their names: one rule for the edge and the benchmarks."""

from __future__ import annotations

from pathlib import PurePosixPath

EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".jp2"),
    )
)
"""Endings by which files count as images (in any case)."""

MAC_LITTER = "__MACOSX"


def is_litter(path: str) -> bool:
    """Whether a relative path is hidden (a Mac's `._x.jpeg` is), lies in a hidden folder, or in the one that a Mac adds
    to its zips.

    >>> [is_litter(path) for path in ("cat/1.jpg", "cat/._1.jpg", "__MACOSX/cat/1.jpg", ".cache/1.jpg")]
    [False, True, True, True]
    """
    return any(part == MAC_LITTER or part.startswith(".") for part in PurePosixPath(path).parts)


def is_image_name(path: str) -> bool:
    """Whether a relative path names an image, and no litter."""
    return PurePosixPath(path).suffix.lower() in EXTENSIONS and not is_litter(path)
