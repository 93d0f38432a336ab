"""CIFAR-10 and CIFAR-100 in the "python version" that torchvision downloads: test split, pickled arrays.

A pickle may run code when it is read, and an archive may come from anywhere: only what these files need is let through.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

_LAYOUTS = {
    "batches.meta": ("test_batch", b"label_names", b"labels"),
    "meta": ("test", b"fine_label_names", b"fine_labels"),
}
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which CIFAR's files do not")
        if module.startswith("numpy."):
            module = "numpy._core.multiarray" if hasattr(np, "_core") else "numpy.core.multiarray"
        return super().find_class(module, name)


def cifar_members(names: Iterable[str]) -> tuple[str, str] | None:
    """(meta file, test file) among the names of an archive or folder, or None."""
    present = set(names)
    for name in sorted(present, key=lambda each: each.count("/")):
        path = PurePosixPath(name)
        if path.name in _LAYOUTS and str(path.parent / _LAYOUTS[path.name][0]) in present:
            return name, str(path.parent / _LAYOUTS[path.name][0])
    return None


def open_cifar(
    names: Iterable[str], read: Callable[[str], bytes]
) -> tuple[list[tuple[str, str]], Callable[[str], bytes], tuple[str, ...]]:
    """(rows, read, classes) of the test split; images are given as PNG files. Raises ValueError for damaged files."""
    meta_name, test_name = cifar_members(names)
    _, names_key, labels_key = _LAYOUTS[PurePosixPath(meta_name).name]
    meta, test = _load(read(meta_name)), _load(read(test_name))
    try:
        classes = tuple(name.decode() if isinstance(name, bytes) else str(name) for name in meta[names_key])
        pixels = np.asarray(test[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 32, 32, 3)
        labels = [classes[label] for label in test[labels_key]]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"lacks or breaks {error}") from error
    if len(labels) != len(pixels):
        raise ValueError(f"{len(labels)} labels for {len(pixels)} images")
    rows = [(f"test/{place:05d}.png", label) for place, label in enumerate(labels)]

    def picture(name: str) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels[int(name[5:10])]).save(file, "PNG")
        return file.getvalue()

    return rows, picture, classes


def _load(data: bytes) -> dict[bytes, Any]:
    try:
        found = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(str(error) or type(error).__name__) from error
    if not isinstance(found, dict):
        raise ValueError("is not a dictionary")
    return found
