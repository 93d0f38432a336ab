"""Keeps answered frames while the service runs: a writer thread between the answers and the store, and retention."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cloud.engine.events import Observer
from cloud.errors import InvalidRequest
from cloud.search.frames import Filter, Found, Frame
from cloud.search.store import FrameStore
from cloud.search.vectors import Vectors

if TYPE_CHECKING:
    from cloud.engine.events import Seen

log = logging.getLogger(__name__)

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
        """Raises `BadConfiguration`, as `FrameStore` does."""
        self.store = FrameStore(path)
        self.dropped = 0
        self._max_bytes, self._max_age_s, self._clock = max_bytes, max_age_s, clock
        self._vectors: dict[str, Vectors] = {}  # by CLIP id: vectors of two CLIPs are not compared
        self._devices: dict[str, None] = {}  # ordered, newest last
        self._pending: deque[Seen] = deque()
        self._writing = threading.Lock()  # held by whoever changes store and vectors
        self._wake = threading.Event()
        self._closing = False
        for frame_id, frame in self.store.every():
            self._remember(frame_id, frame)
        self._tidied = float("-inf")
        self._thread = threading.Thread(target=self._write_loop, name="thinwire-archive", daemon=True)
        self._thread.start()

    # ---------------------------------------------------------------- coming in

    def answered(self, seen: Seen) -> None:
        if len(self._pending) >= MAX_PENDING:
            self.dropped += 1
            return
        self._pending.append(seen)

    def flush(self) -> None:
        """Writes what waits, now."""
        with self._writing:
            batch = [self._pending.popleft() for _ in range(len(self._pending))]
            if batch:
                frames = [_frame_of(seen) for seen in batch]
                for frame_id, frame in zip(self.store.add(frames), frames, strict=True):
                    self._remember(frame_id, frame)
            if self._clock() - self._tidied >= TIDY_EVERY_S or self._is_too_large():
                self._tidy()

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
            except Exception as error:  # a full disk, say: answers go on, and so do later attempts
                self.dropped += 1
                log.error("frames could not be kept in %s: %s", self.store.path, error)
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
        if ids := self.store.oldest(surplus, before_ms):
            self._forget(np.array(ids, np.int64))

    def _forget(self, ids: np.ndarray) -> int:
        for vectors in self._vectors.values():
            vectors.remove(ids)
        return self.store.delete(ids.tolist())

    def delete(self, wanted: Filter, *, everything: bool = False) -> int:
        """Deletes what `wanted` lets through and says how many. Raises `InvalidRequest` for an empty filter without
        `everything`, and for both."""
        if bool(wanted) == everything:
            raise InvalidRequest("say what to delete: a filter that names something, or all, and not both")
        self.flush()
        with self._writing:
            ids = [vectors.matching(wanted) for vectors in self._vectors.values()]
            count = self._forget(np.concatenate(ids)) if ids else 0
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
        frames = self.store.get(frame_id for frame_id, _ in ranked)
        return [Found(each, cosine, frames[each]) for each, cosine in ranked if each in frames]

    def frame(self, frame_id: int) -> Frame | None:
        return self.store.get([frame_id]).get(frame_id)

    def devices(self, most: int = 200) -> list[str]:
        """Those that sent last, by name."""
        return sorted(list(self._devices)[-most:])


def _frame_of(seen: Seen) -> Frame:
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
