"""Every rate of the throughput experiment, each point kept as it is finished."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.data import Dataset
from benchmarks.points import PointStore
from benchmarks.progress import Progress
from benchmarks.throughput import Rounds, Service, measure
from benchmarks.timing_points import found_or_measured, timing_key
from benchmarks.ways import Way
from edge.client import Client, Question

NAME = "throughput"
ROW_NAMES = ("kind", "codec", "rate", "parameters")
TOP_K = 5
NOWHERE = "127.0.0.1:1"  # a client that only encodes is never connected


@dataclass
class ThroughputRun:
    """One run. device: of the service. threads: torch's CPU threads; 0: one for each core."""

    data: Dataset
    clip: str
    prompt_set: str
    seed: int
    store: PointStore
    rounds: Rounds = field(default_factory=Rounds)
    device: str = "auto"
    threads: int = 0
    progress: Progress = field(default_factory=Progress)
    measured: int = 0  # points that were not found on disk

    def run(self, ways: Sequence[Way]) -> list[dict[str, Any]]:
        """Rows of all points. The bar counts rounds."""
        rows = []
        threads = self.threads or len(os.sched_getaffinity(0))
        self.progress.planned(len(ways) * self.rounds.count)
        for way in ways:
            key = timing_key(
                self.store,
                self.data,
                self.clip,
                self.prompt_set,
                self.seed,
                kind=way.kind,
                codec=way.codec,
                rate=way.rate,
                parameters=way.parameters,
                device=self.device,
                threads=threads,
                rounds=vars(self.rounds),
            )
            named = {name: key[name] for name in ROW_NAMES}
            row, new = found_or_measured(self.store, key, named, lambda: self._measure(way, threads))  # noqa: B023
            self.measured += new
            if not new:
                self.progress.skipped(self.rounds.count)
            rows.append(row)
        return rows

    def _measure(self, way: Way, threads: int) -> dict[str, Any]:
        self.progress.point(f"{way.codec} {way.rate}")
        question = Question.check(self.data.labels, TOP_K, self.prompt_set)
        with Client(NOWHERE, way.bundle, way.rate) as client:
            prepared = [way.prepare(client, self.data.read(item), question) for item in self.data.items]
        packets = [each.request.image.packet for each in prepared]
        service = Service.load(self.clip, way.bundle, self.device, threads, self.rounds.in_flight)
        labels = list(question.labels)
        return measure(
            service, way.bundle, packets, labels, self.prompt_set, self.rounds, lambda: self.progress.images(1)
        )
