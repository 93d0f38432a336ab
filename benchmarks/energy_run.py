"""Every way x side of the energy experiment, each point kept as it is finished."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.data import Dataset
from benchmarks.energy import CLOUD, EDGE, cloud_work, edge_work, per_image
from benchmarks.progress import Bar
from benchmarks.timing_points import TimingStore, timing_key
from benchmarks.ways import ON_EDGE, EdgeHead, Way
from cloud.assemble import open_engine
from cloud.engine import Engine
from edge.client import Client, Question
from thinwire.labels import resolve_templates

NOWHERE = "127.0.0.1:1"  # a client that only encodes is never connected


@dataclass
class EnergyRun:
    """One run; the engine of a bundle is loaded when its first point is missing on disk."""

    data: Dataset
    clip: str
    prompt_set: str
    seed: int
    store: TimingStore
    device: str = "auto"
    threads: int = 1
    measured: int = 0
    _loaded: tuple[Client, Engine] | None = field(default=None, repr=False)

    def plan(self, ways: Sequence[Way]) -> list[tuple[Way, str]]:
        """All points; what answers on the edge costs the cloud nothing."""
        return [(way, side) for way in ways for side in ((EDGE,) if way.kind == ON_EDGE else (EDGE, CLOUD))]

    def run(self, ways: Sequence[Way], bar: Bar) -> list[dict[str, Any]]:
        """Rows of all points."""
        rows = []
        try:
            for way, side in self.plan(ways):
                key = self._key(way, side)
                result = self.store.load(key)
                if result is None:
                    bar.point(f"{way.codec} {way.rate} {side}")
                    load_average = os.getloadavg()[0]
                    result = self._measure(way, side, bar)
                    self.store.save(key, result, load_average)
                    self.measured += 1
                else:
                    bar.skip(len(self.data.items))
                named = {name: key[name] for name in ("kind", "codec", "rate", "side", "parameters")}
                rows.append({**named, **result})
        finally:
            self._close()
        return rows

    def _measure(self, way: Way, side: str, bar: Bar) -> dict[str, Any]:
        client, engine = self._open(way)
        question = Question.check(self.data.labels, 5, self.prompt_set)
        images = [self.data.read(item) for item in self.data.items]
        if side == EDGE:
            head = None
            if way.kind == ON_EDGE:
                templates = resolve_templates(self.prompt_set)
                head = EdgeHead(
                    way.bundle, question.labels, engine.submit_texts(question.labels, templates=templates).result()
                )
            work = edge_work(way, client, head, images, question)
        else:
            requests = [way.prepare(client, image, question).request for image in images]
            work = cloud_work(engine, requests, question)
        work(0)  # warm-up
        return per_image(work, len(images), bar.tick)

    def _open(self, way: Way) -> tuple[Client, Engine]:
        if self._loaded is None or self._loaded[0].bundle is not way.bundle:
            self._close()
            client = Client(NOWHERE, way.bundle, threads=self.threads)
            self._loaded = client, open_engine(self.clip, [way.bundle.path], self.device)
        return self._loaded

    def _close(self) -> None:
        if self._loaded is not None:
            client, engine = self._loaded
            client.close()
            engine.close()
            self._loaded = None

    def _key(self, way: Way, side: str) -> dict[str, Any]:
        return timing_key(
            "energy",
            self.data,
            self.clip,
            self.prompt_set,
            self.seed,
            kind=way.kind,
            codec=way.codec,
            rate=way.rate,
            side=side,
            parameters=way.parameters,
            host_bundle=way.bundle.model_id.hex(),
            device=self.device,
            threads=self.threads,
        )
