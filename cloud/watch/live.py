"""The last minutes in memory, for the page: rates, latency percentiles, batch sizes, the latest answers."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from cloud.engine.events import Observer

if TYPE_CHECKING:
    from cloud.engine.events import AnsweredFrame
    from cloud.engine.items import Item
    from cloud.engine.prepared import Embedded

WINDOW_S = 60  # percentiles and batch sizes are of this many seconds
HISTORY_S = 120  # length of the rate's curve
LATEST = 24
KEPT_FILE_BYTES = 1 << 20  # a larger image file is listed without its picture
MAX_SAMPLES = 20_000


class Live(Observer):
    """Add it to `engine.observers`; `snapshot()` is what the page asks for once a second. Thread-safe; holds at most
    `LATEST` inputs, and the counts of `HISTORY_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._per_second: OrderedDict[int, Counter] = OrderedDict()
        self._latency: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)  # (when, ms)
        self._batches: deque[tuple[float, int]] = deque(maxlen=MAX_SAMPLES)
        self._latest: OrderedDict[int, tuple[dict[str, object], bytes | None, bytes | None]] = OrderedDict()
        self._numbers = itertools.count(1)
        self._totals: Counter = Counter()

    # ---------------------------------------------------------------- events

    def refused(self, reason: str) -> None:
        self._count("rejected")

    def settled(self, item: Item, outcome: str, value: object) -> None:
        if item.kind.name != "IMAGE":
            return
        with self._lock:
            self._bump(outcome, 1)
            if outcome == "answered":
                self._bump("bytes", item.input_bytes)
                self._latency.append((self._clock(), value.timing.total_ms))

    def ran(self, batch_size: int, result: Embedded) -> None:
        with self._lock:
            self._batches.append((self._clock(), batch_size))

    def answered(self, seen: AnsweredFrame) -> None:
        number = next(self._numbers)
        image_file = seen.image_file if seen.input_bytes <= KEPT_FILE_BYTES else None
        with self._lock:
            self._latest[number] = _row(number, seen), seen.packet, image_file
            if len(self._latest) > LATEST:
                self._latest.popitem(last=False)

    # ---------------------------------------------------------------- the page's side

    def source(self, number: int) -> tuple[bytes | None, bytes | None]:
        """(packet, image file) of one of the latest answers; (None, None) once it has left, or was large."""
        with self._lock:
            return self._latest.get(number, (None, None, None))[1:]

    def snapshot(self) -> dict[str, object]:
        """JSON-ready. rates: images answered in each of the last seconds, oldest first, the running second left out."""
        now = self._clock()
        with self._lock:
            second = int(now)
            rates = [self._per_second.get(at, Counter())["answered"] for at in range(second - HISTORY_S, second)]
            latency = [ms for when, ms in self._latency if when > now - WINDOW_S]
            batches = Counter(size for when, size in self._batches if when > now - WINDOW_S)
            latest = [row for row, _, _ in self._latest.values()]
            totals = dict(self._totals)
        percentiles = np.percentile(latency, [50, 90, 99]).round(2).tolist() if latency else [None] * 3
        return {
            "at": now,
            "rates": rates,
            "rate_per_s": round(sum(rates[-5:]) / 5, 2),
            "latency_ms": dict(zip(("p50", "p90", "p99"), percentiles, strict=True)),
            "batches": {str(size): count for size, count in sorted(batches.items())},
            "totals": {name: totals.get(name, 0) for name in OUTCOMES},
            "latest": latest[::-1],
        }

    def _count(self, name: str) -> None:
        with self._lock:
            self._bump(name, 1)

    def _bump(self, name: str, by: int) -> None:
        second = int(self._clock())
        if second not in self._per_second:
            self._per_second[second] = Counter()
            while len(self._per_second) > HISTORY_S + 2:
                self._per_second.popitem(last=False)
        self._per_second[second][name] += by
        self._totals[name] += by


OUTCOMES = ("answered", "failed", "expired", "cancelled", "rejected", "bytes")


def _row(number: int, seen: AnsweredFrame) -> dict[str, object]:
    answer = seen.answer
    return {
        "number": number,
        "at": seen.at,
        "device": seen.device_id,
        "bytes": seen.input_bytes,
        "bundle": answer.bundle or "image file",
        "layers": answer.layers,
        "total_ms": round(answer.timing.total_ms, 2),
        "predictions": [[got.label, round(got.probability, 4)] for got in answer.predictions[:3]],
        "went": seen.went,
        "opinions": [
            {"bundle": said.bundle, "label": said.label, "share": round(said.weight, 2)} for said in answer.opinions
        ],
        "picture": seen.packet is not None or seen.input_bytes <= KEPT_FILE_BYTES,
    }
