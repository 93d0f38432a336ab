"""Which frames are being worked on, on disk: a frame that was in work when the process died twice is not tried again.

A picture that makes a decoder crash, or outgrow the memory that the unit allows, would otherwise end the run at every
start. The note is written without fsync: it survives the death of the process, which is all that it is for.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

MAX_DEATHS = 2
MAX_KEPT = 256  # keys with a death, the newest
BLOCK_BYTES = 4096  # written whole and over the same blocks, so that a full disk does not matter


class InWork:
    """The note beside one spool; made only by the process that holds the spool. May be shared by threads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lock = threading.Lock()
        self._now: list[str] = []
        self._deaths: dict[str, int] = {}
        self._file = -1
        died: list[str] = []
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            kept = json.loads(Path(path).read_bytes())
            self._deaths = {str(key): int(count) for key, count in kept["deaths"].items()}
            died = [str(key) for key in kept["now"]]
        for key in died:
            self._deaths[key] = self._deaths.pop(key, 0) + 1
        with contextlib.suppress(OSError):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._write()

    def close(self) -> None:
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def given_up(self, key: bytes) -> bool:
        """Whether the process died twice while this frame was in work."""
        return self._deaths.get(key.hex(), 0) >= MAX_DEATHS

    def forget(self, key: bytes) -> None:
        """The frame has its result."""
        with self._lock:
            if self._deaths.pop(key.hex(), None) is not None:
                self._write()

    @contextlib.contextmanager
    def on(self, key: bytes) -> Iterator[None]:
        """While the frame is worked on. However this ends but by the death of the process, it counts as no death."""
        name = key.hex()
        with self._lock:
            self._now.append(name)
            self._write()
        try:
            yield
        finally:
            with self._lock:
                self._now.remove(name)
                self._deaths.pop(name, None)
                self._write()

    def _write(self) -> None:
        if self._file < 0:
            return
        while len(self._deaths) > MAX_KEPT:
            del self._deaths[next(iter(self._deaths))]
        text = json.dumps({"now": self._now, "deaths": self._deaths}).encode()
        size = -(-len(text) // BLOCK_BYTES) * BLOCK_BYTES
        with contextlib.suppress(OSError):
            os.pwrite(self._file, text.ljust(size), 0)
            os.ftruncate(self._file, size)
