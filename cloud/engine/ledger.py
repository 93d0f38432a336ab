"""Which items are accepted and unanswered, whether another one fits, and how each item ended."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import InvalidStateError
from typing import TypeVar

from cloud.engine.batching import BatchLimits
from cloud.engine.events import Observers
from cloud.engine.items import EngineLimits, Item
from cloud.errors import DeadlinePassed, InferenceFailed, QueueFull, ShuttingDown
from thinwire.errors import ThinwireError

log = logging.getLogger(__name__)
T = TypeVar("T")

PAUSE_STEP_MS = 20  # retry hints are multiples of it: equal refusals are serialised once and sent many times


class Ledger:
    """Every item that `accept` takes is settled exactly once: resolved, failed or cancelled. Thread-safe.

    `item_s`: moving average of device seconds per item, for waits and retry hints. `counts`: since the start.
    """

    def __init__(self, limits: EngineLimits, observers: Observers | None = None, *, log_errors: bool = True) -> None:
        self._limits = limits
        self._observers = Observers() if observers is None else observers
        self._batch_items = (limits.batch or BatchLimits()).items
        self._log_errors = log_errors
        self._changed = threading.Condition()
        self.items: set[Item] = set()  # accepted and unanswered
        self.bytes = 0  # of their inputs
        self.pixel_bytes = 0  # that those not yet decoded will take
        self.closing = False
        self.item_s = 0.01
        self.counts = dict.fromkeys(
            ("accepted", "rejected", "answered", "failed", "expired", "cancelled", "batches", "batched_items"), 0
        )

    # ---------------------------------------------------------------- room

    def is_full(self, size_bytes: int = 0, pixel_bytes: int = 0) -> bool:
        """Whether an item of `size_bytes`, and `pixel_bytes` more while it is decoded, would be refused now: too many
        items, too long a wait, or too many bytes."""
        waiting = len(self.items)
        if waiting >= self._limits.queue_items:
            return True
        longest_s = self._limits.max_wait_s
        if longest_s is not None and waiting >= 2 * self._batch_items and waiting * self.item_s > longest_s:
            return True
        if pixel_bytes and self.pixel_bytes and self.pixel_bytes + pixel_bytes > self._limits.pixel_bytes:
            return True  # a picture that is the only one is taken, however large
        return bool(self.items) and self.bytes + size_bytes > self._limits.queue_bytes

    def refuse(self) -> QueueFull:
        """Counts a refusal, tells the observers, and returns the error to raise."""
        self.counts["rejected"] += 1
        self._observers.refused(QueueFull.reason)
        waiting = len(self.items)
        wait_ms = min(max(waiting * self.item_s * 1000 / 2, PAUSE_STEP_MS), 5000)
        wait_ms = round(wait_ms / PAUSE_STEP_MS) * PAUSE_STEP_MS
        return QueueFull(f"as many requests are waiting as this server takes; try again in {wait_ms} ms", wait_ms)

    def accept(self, item: Item) -> None:
        """Raises `QueueFull` or `ShuttingDown`."""
        with self._changed:
            if self.closing:
                self._observers.refused(ShuttingDown.reason)
                raise ShuttingDown("the service is stopping")
            if self.is_full(item.size_bytes, item.pixel_bytes):
                raise self.refuse()
            self.items.add(item)
            self.bytes += item.size_bytes
            self.pixel_bytes += item.pixel_bytes
            self.counts["accepted"] += 1

    def decoded(self, item: Item) -> None:
        """Gives back what the item's pixels took; a second time does nothing."""
        if item.pixel_bytes:
            with self._changed:
                self._give_back_pixels(item)

    def _give_back_pixels(self, item: Item) -> None:
        self.pixel_bytes -= item.pixel_bytes
        item.pixel_bytes = 0

    def close(self, timeout_s: float | None) -> list[Item]:
        """Accepts no more items, waits until all are settled, and returns those that were not after `timeout_s`."""
        with self._changed:
            self.closing = True
            self._changed.wait_for(lambda: not self.items, timeout_s)
            return list(self.items)

    def wait_for(self, settled: Callable[[Item], bool], timeout_s: float) -> bool:
        """Waits until `settled` is true of every unanswered item, or `timeout_s` has passed. Returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: all(map(settled, self.items)), timeout_s)

    # ---------------------------------------------------------------- how items end

    def wanted(self, item: Item) -> bool:
        """Whether `item` is neither cancelled nor expired; settles it if it is."""
        if item.future.cancelled():
            self._release(item, "cancelled")
            return False
        if item.due <= time.monotonic():
            self.fail(item, DeadlinePassed("the deadline passed while the request was waiting"), "expired")
            return False
        return True

    def claim(self, item: Item) -> bool:
        """Marks the future as running: it cannot be cancelled any more. False for cancelled and expired items."""
        if not self.wanted(item):
            return False
        if not item.future.set_running_or_notify_cancel():
            self._release(item, "cancelled")
            return False
        return True

    def resolve(self, item: Item, value: object) -> None:
        # The place is given back first: a caller who sees its answer may submit the next one at once. Observers come
        # before the caller too, so that counts which it reads after its answer hold it.
        if self._release(item, "answered"):
            self._observers.settled(item, "answered", value)
        with contextlib.suppress(InvalidStateError):  # the caller cancelled at this very moment
            item.future.set_result(value)

    def fail(self, item: Item, error: Exception, outcome: str = "failed") -> None:
        """Settles the item with `error`: as it is if typed, else wrapped in `InferenceFailed` and logged."""
        if not isinstance(error, ThinwireError):
            error = self.unexpected(error)
        if self._release(item, outcome):
            self._observers.settled(item, outcome, error)
        with contextlib.suppress(InvalidStateError):  # as above
            item.future.set_exception(error)

    def guard(self, stage: Callable[[Item], T], item: Item) -> T | None:
        """Runs a stage and returns its value; an exception becomes the item's failure.

        Returns None if the stage raised, or the item was cancelled or has expired.
        """
        try:
            return stage(item) if self.wanted(item) else None
        except Exception as error:
            self.fail(item, error)
            return None

    def unexpected(self, error: Exception) -> InferenceFailed:
        if self._log_errors:
            log.error("an item failed unexpectedly", exc_info=error)
        failure = InferenceFailed(
            f"this input could not be computed ({type(error).__name__}); the server's log has more"
        )
        failure.__cause__ = error
        return failure

    def ran(self, items: int) -> None:
        """Counts a device batch."""
        with self._changed:
            self.counts["batches"] += 1
            self.counts["batched_items"] += items

    def took(self, seconds: float, items: int) -> None:
        """Updates `item_s`: a batch of `items` kept the device busy for `seconds`."""
        self.item_s += 0.1 * (seconds / items - self.item_s)

    def _release(self, item: Item, outcome: str) -> bool:
        """Frees the item's place and counts its outcome. False if that was done before."""
        with self._changed:
            if item not in self.items:
                return False
            self.items.remove(item)
            self.bytes -= item.size_bytes
            self._give_back_pixels(item)
            self.counts[outcome] += 1
            self._changed.notify_all()
        if outcome == "cancelled":
            self._observers.settled(item, outcome, None)
        return True
