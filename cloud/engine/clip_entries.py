"""Small JSON files in a bundle's folder that hold something measured, one entry for each CLIP.

{"format": 1, "model_id": hex, "clips": {CLIP id: entry}}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from thinwire.files import write_whole

if TYPE_CHECKING:
    from thinwire.bundle import Bundle

log = logging.getLogger(__name__)
T = TypeVar("T")

FORMAT = 1
MAX_BYTES = 4 << 20


def write_entry(bundle: Bundle, file: str, clip_id: str, entry: dict[str, Any]) -> Path:
    """Adds (or replaces) the entry of one CLIP; returns the file's path. A file of another model is written again."""
    path = bundle.path / file
    document: dict[str, Any] = {"format": FORMAT, "model_id": bundle.model_id.hex(), "clips": {}}
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        if (old["format"], old["model_id"]) == (FORMAT, bundle.model_id.hex()):
            document = old
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet
    document["clips"][clip_id] = entry
    write_whole(path, json.dumps(document, indent=1) + "\n")
    return path


def read_entry(bundle: Bundle, file: str, clip_id: str, read: Callable[[dict[str, Any]], T], command: str) -> T | None:
    """What `read` makes of the entry for exactly this CLIP, or None where there is none.

    Raises `ValueError` for a damaged file; the message names `command`, which measures it again.
    """
    path = bundle.path / file
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: is larger than {MAX_BYTES >> 20} MiB")
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT or document["model_id"] != bundle.model_id.hex():
            raise ValueError("is of another model or format")
        entry = document["clips"].get(clip_id)
        return None if entry is None else read(entry)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}: remove it, or measure it again with `{command}`") from error


def read_entries(bundles: Iterable[Bundle], read: Callable[[Bundle], T | None]) -> dict[bytes, T]:
    """By model id. A damaged file costs a warning and what it would have allowed for its bundle, nothing else."""
    found = {}
    for bundle in bundles:
        try:
            entry = read(bundle)
        except (OSError, ValueError) as error:
            log.warning("%s", error)
            continue
        if entry is not None:
            found[bundle.model_id] = entry
    return found
