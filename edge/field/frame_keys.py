"""Idempotency keys: 16 bytes that name a frame, the same whenever the same frame is met again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_key(path: Path, question: str, part: int = 0) -> bytes:
    """Of a file as it is now (path, size, time of change) under a question; `part` is a frame within a video.

    Reading no content keeps a watched folder of a hundred thousand files cheap. A file that is not there has a key too,
    and so has a name that the system does not take.
    """
    try:
        mark = mark_of(path.stat())
    except (OSError, ValueError):
        mark = "missing"
    return marked_key(path, mark, question, part)


def mark_of(found: os.stat_result) -> str:
    """What tells a file's contents from those before."""
    return f"{found.st_size}\0{found.st_mtime_ns}"


def marked_key(path: Path, mark: str, question: str, part: int = 0) -> bytes:
    """As `file_key`, of a file whose mark is known."""
    text = f"{os.fspath(path.absolute())}\0{mark}\0{part}\0{question}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def fresh_key() -> bytes:
    """Of a frame that is seen once, such as a camera's."""
    return os.urandom(16)
