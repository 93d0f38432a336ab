"""The server's policy over vectors that are there already: what it asks for, what it then answers, at which bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.accuracy.cascade_vectors import Sent
from benchmarks.data.sets import DataError
from benchmarks.stats.paired import paired_difference
from cloud.engine.fusion import Earlier, Fusion, pooled
from cloud.engine.items import top_margin
from thinwire.bundle import Bundle

if TYPE_CHECKING:
    from cloud.engine.text_heads import Head


@dataclass(frozen=True, eq=False)
class Rungs:
    """The two bundles of a ladder, with the highest rate of each that is sent."""

    first: Bundle
    first_rate: str
    second: Bundle
    second_rate: str

    @classmethod
    def parse(cls, text: str) -> Rungs:
        from edge.line.ladder import open_ladder

        steps = open_ladder(text).steps
        if len(steps) != 2:
            raise DataError("a cascade is measured of two bundles: --ladder FIRST[:RATE],SECOND[:RATE]")
        first, second = steps
        last = list(second.bundle.rates)[-1]
        return cls(first.bundle, first.rate, second.bundle, second.rate if second.stated else last)

    @property
    def level(self) -> int:
        return self.first.n_layers(self.first_rate)

    @property
    def second_rates(self) -> list[str]:
        names = list(self.second.rates)
        return names[: names.index(self.second_rate) + 1]


@dataclass(frozen=True, eq=False)
class Answers:
    """Of one way over all images: right bool (N,), sizes (N,) bytes."""

    right: np.ndarray
    sizes: np.ndarray

    @property
    def mean_bytes(self) -> float:
        return float(self.sizes.mean())


@dataclass(frozen=True, eq=False)
class Took:
    """What a policy did: answers; asked bool (N,), whether a second packet was; labels int (N,), the first answers."""

    answers: Answers
    asked: np.ndarray
    labels: np.ndarray


class Cascade:
    """The server's policy over vectors that are there already."""

    def __init__(self, rungs: Rungs, fusion: Fusion, head: Head, first: Sent, second: dict[int, Sent]) -> None:
        self._rungs, self._fusion, self._head, self._first, self._second = rungs, fusion, head, first, second
        self._offers = {rungs.second.model_id: tuple(sorted(second))}

    def answers(self, confidence: float, targets: np.ndarray) -> Took:
        """At one confidence. Bytes are those of the packets."""
        level, sizes = self._rungs.level, self._first.sizes.astype(float).copy()
        temperature = self._fusion.temperature(level, self._offers)
        if temperature is None:
            raise DataError(f"the calibration knows no packet of {self._rungs.first.name} {self._rungs.first_rate}")
        vectors, asked = self._first.vectors.copy(), np.zeros(len(sizes), bool)
        for row, vector in enumerate(self._first.vectors):
            wanted = self._fusion.wanted(level, top_margin(self._head, vector, temperature), self._offers, confidence)
            if wanted is not None:
                asked[row] = True
                sizes[row] += self._second[wanted.layers].sizes[row]
                vectors[row] = self._pooled(row, wanted.layers)
        labels = self._head.similarities(vectors).argmax(1)
        return Took(Answers(labels == targets, sizes), asked, labels)

    def fused(self, rung: int, targets: np.ndarray) -> dict[str, object]:
        """Both opinions for every image, against the better of the two alone; 95 % paired bootstrap interval."""
        vectors = np.stack([self._pooled(row, rung) for row in range(len(targets))])
        both, one, other = (
            self._head.similarities(each).argmax(1) == targets
            for each in (vectors, self._first.vectors, self._second[rung].vectors)
        )
        difference, interval = paired_difference(both, max((one, other), key=np.mean))
        return {
            "rung": rung,
            "first": round(float(one.mean()), 4),
            "second": round(float(other.mean()), 4),
            "both": round(float(both.mean()), 4),
            "both_minus_better": interval_of(difference, interval),
        }

    def _pooled(self, row: int, rung: int) -> np.ndarray:
        pair = self._fusion.pair(self._rungs.level, self._rungs.second.model_id, rung)
        if pair is None:
            raise DataError(f"the calibration knows no packet of {self._rungs.second.name} at rung {rung}")
        earlier = Earlier(self._first.vectors[row], self._rungs.first.name, self._rungs.level, pair)
        return pooled(earlier, self._second[rung].vectors[row])


def interval_of(difference: float, interval: tuple[float, float]) -> list[float]:
    """[difference, low, high]."""
    return [round(each, 4) for each in (difference, *interval)]
