"""Builds heads that no cache holds: each once, on the text thread, for all items that wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from cloud.engine.items import Item
from cloud.engine.ledger import Ledger
from cloud.engine.one_shot_executor import OneShotExecutor
from cloud.engine.text_heads import Head, HeadCache
from cloud.errors import QueueFull, ShuttingDown


class HeadBuilds:
    """`ready` gets each item with its head; items whose head cannot be built fail. Thread-safe."""

    def __init__(self, ledger: Ledger, texts: OneShotExecutor, most: int, ready: Callable[[Item], None]) -> None:
        self._ledger, self._texts, self._most, self._ready = ledger, texts, most, ready
        self._builds: dict[str, list[Item]] = {}
        self._lock = threading.Lock()

    def wait_for(self, item: Item) -> None:
        """Raises `QueueFull` when too many heads are being built."""
        heads = item.loaded_clip.heads
        key = heads.key(item.labels, item.templates)
        with self._lock:
            if key in self._builds:
                self._builds[key].append(item)
                return
            full = len(self._builds) >= self._most
            if not full:
                self._builds[key] = [item]
        if full:
            raise QueueFull("too many new label sets are being prepared", 1000)
        self._texts.submit(self._build, heads, key, item.labels, item.templates)

    def _build(self, heads: HeadCache, key: str, labels: tuple[str, ...], templates: tuple[str, ...]) -> None:
        now = time.monotonic()
        with self._lock:
            waiting = self._builds[key]
            abandoned = all(item.future.cancelled() or item.due <= now for item in waiting)
            if abandoned:
                del self._builds[key]
        if not abandoned:
            # A build that has begun is finished even when its callers leave: its result is there for their next try.
            try:
                build = self._texts.submit_in_turns(heads.load_steps(labels, templates))
            except RuntimeError:  # shut down in between
                build = Future()
                build.cancel()
            build.add_done_callback(lambda done: self._built(key, done))
            return
        self._settle(waiting, None, None)

    def _built(self, key: str, done: Future[Head]) -> None:
        head, failure = None, None
        if done.cancelled():
            failure = ShuttingDown("the service is stopping")
        elif (error := done.exception()) is not None:
            failure = self._ledger.unexpected(error)
        else:
            head = done.result()
        with self._lock:
            waiting = self._builds.pop(key)
        self._settle(waiting, head, failure)

    def _settle(self, waiting: list[Item], head: Head | None, failure: Exception | None) -> None:
        for item in waiting:
            if failure is not None:
                self._ledger.fail(item, failure)
            elif self._ledger.wanted(item):
                item.head = head
                self._ready(item)
