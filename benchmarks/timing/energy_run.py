"""Every way x side of the energy experiment, each point kept as it is finished."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.codecs.grid import TOP_K
from benchmarks.results.store import MAX_MESSAGES
from benchmarks.timing.energy import CLOUD, EDGE, cloud_work, edge_work, per_image
from benchmarks.timing.routes import NOWHERE, ON_EDGE, EdgeHead, Way
from benchmarks.timing.run import TimingRun
from cloud.engine.engine import Engine
from cloud.networks.assemble import open_engine
from edge.line.client import Client, Question
from thinwire.labels import resolve_templates

NAME = "energy"
ROW_NAMES = ("kind", "codec", "rate", "side", "parameters")


@dataclass
class EnergyRun(TimingRun):
    """One run; the engine of a bundle is loaded when its first point is missing on disk."""

    device: str = "auto"
    threads: int = 1
    _loaded: tuple[Client, Engine] | None = field(default=None, repr=False)

    def plan(self, ways: Sequence[Way]) -> list[tuple[Way, str]]:
        """All points; what answers on the edge costs the cloud nothing."""
        return [(way, side) for way in ways for side in ((EDGE,) if way.kind == ON_EDGE else (EDGE, CLOUD))]

    def run(self, ways: Sequence[Way]) -> list[dict[str, Any]]:
        """Rows of all points."""
        rows = []
        points = self.plan(ways)
        self.progress.planned(len(points) * len(self.data.items))
        try:
            for way, side in points:
                host = way.bundle.model_id.hex()
                key = self._key(way, side=side, host_bundle=host, device=self.device, threads=self.threads)
                measure = functools.partial(self._measure, way, side)
                rows.append(self._row(key, ROW_NAMES, len(self.data.items), measure))
        finally:
            self._close()
        return rows

    def _measure(self, way: Way, side: str) -> dict[str, Any]:
        self.progress.point(f"{way.codec} {way.rate} {side}")
        client, engine = self._open(way)
        question = Question.check(self.data.labels, TOP_K, self.prompt_set)
        images, messages = self._readable()
        if side == EDGE:
            head = None
            if way.kind == ON_EDGE:
                templates = resolve_templates(self.prompt_set)
                classes = engine.submit_texts(question.labels, templates=templates).result()
                head = EdgeHead(way.bundle, question.labels, classes)
            work = edge_work(way, client, head, images, question)
        else:
            work = cloud_work(engine, [way.prepare(client, image, question).request for image in images], question)
        result = per_image(work, len(images), lambda: self.progress.images(1))
        told = [*messages, *result["failure_messages"]]
        return {**result, "failed": result["failed"] + len(messages), "failure_messages": told[:MAX_MESSAGES]}

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
