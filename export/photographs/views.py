"""Pictures as square views: decoded once by worker processes, then read back from a file of raw pixels.

The file holds one slot a picture and is sparse: a slot takes disk once it is filled. `pwrite` fills it, because a full
disk then raises an error; a mapped page would kill the process. Behind the budget, and when the disk is full, views are
decoded each time they are asked for.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from export.photographs.decode import decode
from export.photographs.index import Index
from thinwire.platforms import usable_cores

log = logging.getLogger(__name__)

ABSENT, HERE, BROKEN = 0, 1, 2
POOL_FROM = 256  # pictures still to be decoded; for fewer a pool does not pay
KEPT_ERRORS = 1000
SAVE_EVERY = 1000  # views
FREE_BYTES = 512 << 20  # that the cache leaves on its disk


class Views:
    """Views of `side` pixels of an index' pictures, by number.

    Guarantees: equal numbers give equal pixels. A broken picture is counted, remembered, and its successor shown in its
    place, so that no training stops for it.
    """

    def __init__(self, index: Index, side: int, folder: Path, budget_bytes: int, workers: int | None = None) -> None:
        self.index, self.side = index, side
        self.workers = _spare_cores() if workers is None else workers
        self.broken: dict[int, str] = {}
        self._bytes = side * side * 3
        self._coming: dict[int, Future] = {}
        self._pool: ProcessPoolExecutor | None = None
        self._slots = max(0, budget_bytes // self._bytes)
        self._states, self._unsaved = bytearray(), 0
        self._file = self._open(folder, f"views-{side}-{index.stamp}")

    def __len__(self) -> int:
        return len(self.index)

    def take(self, numbers: Iterable[int]) -> np.ndarray:
        """Numbers (B,) → uint8 (B, side, side, 3)."""
        numbers = [int(number) for number in numbers]
        self.ahead(numbers)
        return np.stack([self._usable(number) for number in numbers])

    def ahead(self, numbers: Iterable[int]) -> None:
        """Starts decoding what will be asked for soon."""
        wanted = [n for n in map(int, numbers) if self._state(n) == ABSENT and n not in self._coming]
        if not wanted or not self.workers or (self._pool is None and len(self) < POOL_FROM):
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))
        for number in wanted:
            self._coming[number] = self._pool.submit(decode, self.index.place(number), self.side)

    def usable(self, enough: int) -> int:
        """How many of the pictures can be decoded, counted to `enough`, from all over the source."""
        found, step = 0, max(1, len(self) // (4 * enough))
        numbers = [n for start in range(step) for n in range(start, len(self), step)]
        for place, number in enumerate(numbers):
            if place % 64 == 0:
                self.ahead(numbers[place : place + 64])
            found += self._view(number) is not None
            if found >= enough:
                break
        return found

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None
        self._save_states()

    def _usable(self, number: int) -> np.ndarray:
        for step in range(len(self)):
            view = self._view((number + step) % len(self))
            if view is not None:
                return view
        raise RuntimeError("no picture can be decoded")  # `usable` was asked before any training

    def _view(self, number: int) -> np.ndarray | None:
        state = self._state(number)
        if state == HERE:
            data = os.pread(self._file, self._bytes, number * self._bytes)
            return np.frombuffer(data, np.uint8).reshape(self.side, self.side, 3)
        if state == BROKEN:
            self.broken.setdefault(number, self.index.place(number)[3])
            return None
        got = self._decoded(number)
        if isinstance(got, str):
            self._set(number, BROKEN)
            if len(self.broken) < KEPT_ERRORS:
                self.broken[number] = got
            return None
        self._keep(number, got)
        return got

    def _decoded(self, number: int) -> np.ndarray | str:
        future = self._coming.pop(number, None)
        if future is None:
            return decode(self.index.place(number), self.side)
        try:
            return future.result()
        except BrokenProcessPool:  # one picture killed a worker: each of those in flight gets a worker of its own
            self._pool, self._coming = None, {}
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
                place = self.index.place(number)
                try:
                    return alone.submit(decode, place, self.side).result()
                except BrokenProcessPool:
                    return f"{place[3]}: decoding it killed the process that did it"

    def _state(self, number: int) -> int:
        if number >= len(self._states):
            self._states.extend(bytes(len(self) - len(self._states)))
        return self._states[number]

    def _set(self, number: int, state: int) -> None:
        self._state(number)
        self._states[number] = state

    def _keep(self, number: int, view: np.ndarray) -> None:
        if self._file is None or number >= self._slots:
            return
        try:
            written = os.pwrite(self._file, view.tobytes(), number * self._bytes)
            if written < self._bytes:
                raise OSError("the disk is full")
            self._set(number, HERE)
            self._unsaved += 1
            if self._unsaved >= SAVE_EVERY:
                self._save_states()
        except OSError as error:
            self._slots = 0  # read what is there, keep nothing more
            log.warning(
                "views of photographs are no longer kept (%s: %s): training goes on and decodes them each time; "
                "free some space, or give a smaller --cache-gb",
                self._path.parent,
                error.strerror or error,
            )

    def _open(self, folder: Path, name: str) -> int | None:
        """The file of views; those of other contents of the same source go."""
        self._path = folder / f"{name}.rgb"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for other in folder.glob(f"views-{self.side}-*"):
                if other.stem != name:
                    other.unlink(missing_ok=True)
            free = shutil.disk_usage(folder).free
            here = self._path.stat().st_blocks * 512 if self._path.exists() else 0
            self._slots = min(self._slots, max(0, free + here - FREE_BYTES) // self._bytes)
            states = self._path.with_suffix(".states")
            if self._path.exists() and states.exists() and self.index.complete:
                self._states = bytearray(states.read_bytes()[: len(self.index)])
            return os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            log.warning("views of photographs are not kept (%s: %s)", folder, error.strerror or error)
            self._slots = 0
            return None

    def _save_states(self) -> None:
        self._unsaved = 0
        if self._file is None or not self.index.complete:
            return
        kept, partial = self._path.with_suffix(".states"), self._path.with_suffix(f".{os.getpid()}.partial")
        try:
            if kept.exists():  # another process may have filled other slots
                others = np.frombuffer(kept.read_bytes(), np.uint8)
                own = np.frombuffer(self._states, np.uint8).copy()
                least = min(len(own), len(others))
                own[:least] = np.maximum(own[:least], others[:least])
                self._states = bytearray(own.tobytes())
            partial.write_bytes(self._states)
            partial.rename(kept)
        except OSError:
            partial.unlink(missing_ok=True)


def _spare_cores() -> int:
    return max(1, min(16, usable_cores() - 1))
