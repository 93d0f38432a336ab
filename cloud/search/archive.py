"""Keeps answered frames while the service runs: a writer thread between the answers and the store, and retention."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from cloud.engine.events import Observer
from cloud.errors import InvalidRequest, StoreDamaged, StoreFailed
from cloud.search.frames import Filter, Found, Frame
from cloud.search.store import FrameStore
from cloud.search.store_file import set_aside
from cloud.search.vectors import Vectors

if TYPE_CHECKING:
    from cloud.engine.events import AnsweredFrame

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_PENDING = 4096
WRITE_EVERY_S = 0.25  # one transaction for what came meanwhile
TIDY_EVERY_S = 60.0
HEADROOM = 0.02  # retention by size frees this much more, so that it does not run for every frame
MAX_PREDICTIONS = 5


class Archive(Observer):
    """Add it to `engine.observers`. An answer costs its caller an append to a list; when writing falls `MAX_PENDING`
    behind, frames are dropped and counted rather than kept waiting. Thread-safe; call `close`."""

    def __init__(
        self,
        path: Path,
        max_bytes: int | None = None,
        max_age_s: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Raises `BadConfiguration` or `StoreFailed`, as `FrameStore` does."""
        self.store = FrameStore(path)
        self.dropped = 0
        self._max_bytes, self._max_age_s, self._clock = max_bytes, max_age_s, clock
        self._vectors: dict[str, Vectors] = {}  # by CLIP id: vectors of two CLIPs are not compared
        self._devices: dict[str, None] = {}  # ordered, newest last
        self._pending: deque[AnsweredFrame] = deque()
        self._writing = threading.Lock()  # held while store and vectors are changed
        self._wake = threading.Event()
        self._closing = False
        self._trouble = ""  # what the log says already
        self._mended(self._load)
        self._tidied = float("-inf")
        self._thread = threading.Thread(target=self._write_loop, name="thinwire-archive", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- coming in

    def answered(self, seen: AnsweredFrame) -> None:
        if len(self._pending) >= MAX_PENDING:
            self.dropped += 1
            return
        self._pending.append(seen)

    def flush(self) -> None:
        """Writes what waits, now. What the disk does not take is dropped, counted and logged; nothing is raised."""
        with self._writing:
            batch = [self._pending.popleft() for _ in range(len(self._pending))]
            try:
                self._keep([_frame_of(seen) for seen in batch])
                if self._clock() - self._tidied >= TIDY_EVERY_S or self._is_too_large():
                    self._tidy()
            except StoreFailed as error:  # answers go on, and so do later attempts
                if str(error) != self._trouble:
                    log.error("frames could not be kept: %s; they are dropped and counted until this is fixed", error)
                self._trouble = str(error)
                return
            if self._trouble:
                log.warning("frames are kept again in %s; %d were dropped", self.store.path, self.dropped)
                self._trouble = ""

    def _keep(self, frames: list[Frame]) -> None:
        """Raises `StoreFailed` where none of them was kept."""
        if not frames:
            return
        try:
            ids = self._mended(lambda: self.store.add(frames))
        except StoreFailed:
            self.dropped += len(frames)
            raise
        except Exception as error:  # one that SQLite does not take must not cost the others
            if len(frames) == 1:
                self.dropped += 1
                log.error("a frame could not be kept in %s: %s", self.store.path, error)
                return
            self._keep(frames[: len(frames) // 2])
            self._keep(frames[len(frames) // 2 :])
            return
        for frame_id, frame in zip(ids, frames, strict=True):
            self._remember(frame_id, frame)

    def _mended(self, action: Callable[[], T]) -> T:
        """What `action` returns; where the file turns out to be damaged, once more on what can be read of it."""
        try:
            return action()
        except StoreDamaged as error:
            self.store.repair(error)
            self._load()
            return action()

    def _load(self) -> None:
        self._vectors.clear()
        for frame_id, frame in self.store.every():
            self._remember(frame_id, frame)

    def close(self) -> None:
        """Writes what waits and lets go of the file."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self.store.close()

    def _write_loop(self) -> None:
        while True:
            closing = self._wake.wait(WRITE_EVERY_S)
            try:
                self.flush()
            except Exception:  # the thread lives on
                log.exception("frames could not be kept in %s", self.store.path)
            if closing:
                return

    def _remember(self, frame_id: int, frame: Frame) -> None:
        vectors = self._vectors.get(frame.clip_id)
        if vectors is None:
            vectors = self._vectors.setdefault(frame.clip_id, Vectors(len(frame.vector)))
        vectors.add(frame_id, frame.at_ms, frame.device_id, frame.label, frame.vector)
        self._devices.pop(frame.device_id, None)
        self._devices[frame.device_id] = None

    # ---------------------------------------------------------------- going out

    def _is_too_large(self) -> bool:
        return self._max_bytes is not None and self.store.bytes > self._max_bytes

    def _tidy(self) -> None:
        self._tidied = self._clock()
        surplus = self.store.bytes - int(self._max_bytes * (1 - HEADROOM)) if self._is_too_large() else 0
        before_ms = int((self._clock() - self._max_age_s) * 1000) if self._max_age_s is not None else 0
        if ids := self._mended(lambda: self.store.oldest(surplus, before_ms)):
            self._forget(np.array(ids, np.int64))
        for damaged in set_aside(self.store.path):
            if self._max_age_s is not None and damaged.stat().st_mtime < before_ms / 1000:
                damaged.unlink(missing_ok=True)

    def _forget(self, ids: np.ndarray) -> int:
        count = self._mended(lambda: self.store.delete(ids.tolist()))
        for vectors in self._vectors.values():
            vectors.remove(ids)
        return count

    def delete(self, wanted: Filter, *, everything: bool = False) -> int:
        """Deletes what `wanted` lets through and says how many. Raises `InvalidRequest` for an empty filter without
        `everything`, and for both."""
        if bool(wanted) == everything:
            raise InvalidRequest("say what to delete: either a filter that names something, or all")
        self.flush()
        with self._writing:
            ids = [vectors.matching(wanted) for vectors in self._vectors.values()]
            count = self._forget(np.concatenate(ids)) if ids else 0
            for damaged in set_aside(self.store.path):  # its content is unknown
                damaged.unlink(missing_ok=True)
            if everything:
                self._devices.clear()
        log.warning("%d frames were deleted", count)
        return count

    # ---------------------------------------------------------------- questions

    def nearest(self, clip_id: str, vector: np.ndarray, wanted: Filter, count: int) -> list[Found]:
        """Frames of that CLIP nearest to the unit vector, nearest first."""
        vectors = self._vectors.get(clip_id)
        if vectors is None:
            return []
        ranked = vectors.nearest(vector, wanted, count)
        frames = self._read(lambda: self.store.get(frame_id for frame_id, _ in ranked))
        return [Found(each, cosine, frames[each]) for each, cosine in ranked if each in frames]

    def frame(self, frame_id: int) -> Frame | None:
        return self._read(lambda: self.store.get([frame_id])).get(frame_id)

    def _read(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except StoreDamaged:
            with self._writing:
                return self._mended(action)

    def devices(self, most: int = 200) -> list[str]:
        """Those that sent last, by name."""
        return sorted(list(self._devices)[-most:])


def _frame_of(seen: AnsweredFrame) -> Frame:
    answer = seen.answer
    return Frame(
        at_ms=int(seen.at * 1000),
        device_id=seen.device_id,
        clip_id=seen.clip_id,
        bundle=answer.bundle or "",
        layers=answer.layers,
        packet=seen.packet,
        predictions=tuple((got.label, round(got.probability, 5)) for got in answer.predictions[:MAX_PREDICTIONS]),
        vector=answer.embedding,
    )
