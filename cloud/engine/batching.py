"""The queue in front of the device: ordered by deadline, taken in batches bounded by items and bytes."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class BatchLimits:
    """What one device batch may hold: items, and bytes of decoded arrays (a single larger item is still taken)."""

    items: int = 32
    bytes: int = 64 << 20


class DeadlineQueue(Generic[T]):
    """Earliest deadline first; ties in order of arrival. Thread-safe.

    `claim(item)` is called once per item when its turn comes and returns whether it is still wanted; items that are not
    (cancelled, expired) are dropped there, before they cost device time. Keys are fixed points in time, so items
    with late deadlines are not starved by items with early ones.
    """

    def __init__(self, claim: Callable[[T], bool]) -> None:
        self._claim = claim
        self._ready = threading.Condition()
        self._heap: list[tuple[float, int, int, T]] = []
        self._count = itertools.count()
        self._closed = False

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, item: T, due: float, size_bytes: int) -> None:
        """Adds `item` with deadline `due`, a monotonic time."""
        with self._ready:
            heapq.heappush(self._heap, (due, next(self._count), size_bytes, item))
            self._ready.notify()

    def take(self, limits: BatchLimits) -> list[T] | None:
        """Waits for an item, then returns all waiting items up to `limits`; None when closed and empty."""
        while True:
            with self._ready:
                while not self._heap:
                    if self._closed:
                        return None
                    self._ready.wait()
                picked, total = [], 0
                while self._heap and len(picked) < limits.items:
                    size = self._heap[0][2]
                    if picked and total + size > limits.bytes:
                        break
                    picked.append(heapq.heappop(self._heap)[3])
                    total += size
            # Outside the lock: claiming runs callbacks of futures, which are other people's code.
            batch = [item for item in picked if self._claim(item)]
            if batch:
                return batch

    def sweep(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Removes and returns the items for which `unwanted` is true."""
        with self._ready:
            out = [entry[3] for entry in self._heap if unwanted(entry[3])]
            if out:
                gone = {id(item) for item in out}
                self._heap = [entry for entry in self._heap if id(entry[3]) not in gone]
                heapq.heapify(self._heap)
        return out

    def close(self) -> None:
        """Lets `take` return None once nothing is left."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
