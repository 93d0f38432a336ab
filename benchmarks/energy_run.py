"""Every way x side of the energy experiment, each point kept as it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.data import Dataset
from benchmarks.energy import CLOUD, EDGE, cloud_work, edge_work, per_image
from benchmarks.points import PointStore
from benchmarks.progress import Progress
from benchmarks.timing_points import Key, found_or_measured, timing_key
from benchmarks.ways import ON_EDGE, EdgeHead, Way
from cloud.assemble import open_engine
from cloud.engine import Engine
from edge.client import Client, Question
from thinwire.labels import resolve_templates

NAME = "energy"
ROW_NAMES = ("kind", "codec", "rate", "side", "parameters")
TOP_K = 5
NOWHERE = "127.0.0.1:1"  # a client that only encodes is never connected


@dataclass
class EnergyRun:
    """One run; the engine of a bundle is loaded when its first point is missing on disk."""

    data: Dataset
    clip: str
    prompt_set: str
    seed: int
    store: PointStore
    device: str = "auto"
    threads: int = 1
    progress: Progress = field(default_factory=Progress)
    measured: int = 0  # points that were not found on disk
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
                key = self._key(way, side)
                named = {name: key[name] for name in ROW_NAMES}
                row, new = found_or_measured(self.store, key, named, lambda: self._measure(way, side))  # noqa: B023
                self.measured += new
                if not new:
                    self.progress.skipped(len(self.data.items))
                rows.append(row)
        finally:
            self._close()
        return rows

    def _measure(self, way: Way, side: str) -> dict[str, Any]:
        self.progress.point(f"{way.codec} {way.rate} {side}")
        client, engine = self._open(way)
        question = Question.check(self.data.labels, TOP_K, self.prompt_set)
        images = [self.data.read(item) for item in self.data.items]
        if side == EDGE:
            head = None
            if way.kind == ON_EDGE:
                templates = resolve_templates(self.prompt_set)
                classes = engine.submit_texts(question.labels, templates=templates).result()
                head = EdgeHead(way.bundle, question.labels, classes)
            work = edge_work(way, client, head, images, question)
        else:
            work = cloud_work(engine, [way.prepare(client, image, question).request for image in images], question)
        return per_image(work, len(images), lambda: self.progress.images(1))

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

    def _key(self, way: Way, side: str) -> Key:
        return timing_key(
            self.store,
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
