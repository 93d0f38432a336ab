"""Every rate of the throughput experiment, each point kept as it is finished."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.codecs.grid import TOP_K
from benchmarks.results.store import MAX_MESSAGES
from benchmarks.timing.routes import NOWHERE, Way
from benchmarks.timing.run import TimingRun
from benchmarks.timing.throughput import Rounds, Service, measure
from edge.line.client import Client, Question
from thinwire.platforms import usable_cores

NAME = "throughput"
ROW_NAMES = ("kind", "codec", "rate", "parameters")


@dataclass
class ThroughputRun(TimingRun):
    """One run. device: of the service. threads: CPU threads of the networks; 0: one for each core."""

    rounds: Rounds = field(default_factory=Rounds)
    device: str = "auto"
    threads: int = 0

    def run(self, ways: Sequence[Way]) -> list[dict[str, Any]]:
        """Rows of all points. The bar counts rounds."""
        rows = []
        threads = self.threads or usable_cores()
        self.progress.planned(len(ways) * self.rounds.count)
        for way in ways:
            # Points of 2026-11-28 and before compared a server in ONNX Runtime with networks in torch
            settings = {"device": self.device, "threads": threads, "rounds": vars(self.rounds), "runtimes": "one"}
            key = self._key(way, **settings)
            rows.append(self._row(key, ROW_NAMES, self.rounds.count, functools.partial(self._measure, way, threads)))
        return rows

    def _measure(self, way: Way, threads: int) -> dict[str, Any]:
        self.progress.point(f"{way.codec} {way.rate}")
        question = Question.check(self.data.labels, TOP_K, self.prompt_set)
        with Client(NOWHERE, way.bundle, way.rate) as client:
            files, messages = self._readable()
            prepared = [way.prepare(client, file, question) for file in files]
        packets = [each.request.image.packet for each in prepared]
        service = Service.load(self.clip, way.bundle, self.device, threads, self.rounds.in_flight)
        labels = list(question.labels)
        result = measure(
            service, way.bundle, packets, labels, self.prompt_set, self.rounds, lambda: self.progress.images(1)
        )
        return {**result, "failed": len(messages), "failure_messages": messages[:MAX_MESSAGES]}
