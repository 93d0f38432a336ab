"""Loaded models by key within a budget of bytes; the least recently used is evicted first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")

FAILURE_KEPT_S = 10.0


class ModelCache(Generic[V]):
    """An LRU cache of loaded models. Thread-safe.

    One key is loaded by one thread at a time, and once. A load that fails changes nothing, and is not tried again for
    10 s (clients choose what is loaded). After a load the sum of sizes is within the budget, unless the newest value
    alone exceeds it. Evicted values stay alive while work in flight refers to them.
    budget_bytes: None: nothing is evicted.
    """

    def __init__(self, budget_bytes: int | None = None) -> None:
        self.budget_bytes = budget_bytes
        self._held: OrderedDict[Hashable, tuple[V, int]] = OrderedDict()
        self._guards: dict[Hashable, threading.Lock] = {}
        self._failures: dict[Hashable, tuple[float, Exception]] = {}
        self._lock = threading.Lock()
        self.counts = {"loads": 0, "evictions": 0, "failures": 0}

    @property
    def held_bytes(self) -> int:
        with self._lock:
            return sum(size for _, size in self._held.values())

    def find(self, key: Hashable) -> V | None:
        """The value if it is here; it becomes the most recently used."""
        with self._lock:
            if key not in self._held:
                return None
            self._held.move_to_end(key)
            return self._held[key][0]

    def load(self, key: Hashable, make: Callable[[], tuple[V, int]]) -> V:
        """The value, made by `make() -> (value, size in bytes)` if it is not here. Raises what `make` raises."""
        with self._lock:
            guard = self._guards.setdefault(key, threading.Lock())
        with guard:
            value = self.find(key)
            if value is not None:
                return value
            self._raise_recent(key)
            try:
                value, size = make()
            except Exception as error:
                with self._lock:
                    self.counts["failures"] += 1
                    self._failures[key] = (time.monotonic(), error)
                raise
            with self._lock:
                self._failures.pop(key, None)
                self._held[key] = (value, size)
                self.counts["loads"] += 1
                self._shrink(key)
            return value

    def forget_failures(self) -> None:
        """The next `load` tries again at once: call it after files were changed."""
        with self._lock:
            self._failures.clear()

    def keep_only(self, wanted: Callable[[Hashable], bool]) -> None:
        """Drops every value whose key is not `wanted`; values in use live on with their users."""
        with self._lock:
            for key in [key for key in self._held if not wanted(key)]:
                del self._held[key]
                self._guards.pop(key, None)

    def _raise_recent(self, key: Hashable) -> None:
        with self._lock:
            when, error = self._failures.get(key, (-FAILURE_KEPT_S, None))
        if error is not None and time.monotonic() - when < FAILURE_KEPT_S:
            raise error.with_traceback(None)  # else every raise adds its frames to the one exception

    def _shrink(self, newest: Hashable) -> None:
        if self.budget_bytes is None:
            return
        total = sum(size for _, size in self._held.values())
        for key in list(self._held):
            if total <= self.budget_bytes:
                return
            if key != newest:
                total -= self._held.pop(key)[1]
                self.counts["evictions"] += 1
