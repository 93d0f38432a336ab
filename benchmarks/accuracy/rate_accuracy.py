"""The rate-accuracy experiment: every family's rates and every peer's size x quality, on the same images and CLIP.

Families travel: view → edge client → gRPC → a real server of their own → labels, one image at a time. Peers and the
uncompressed reference are judged in this process (see `benchmarks.judges.judge`). All start from one canonical view,
and encode_ms is from that view to the bytes that would be sent, on one thread.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.accuracy.adapter_gain import SUFFIX
from benchmarks.accuracy.operating_point import Measurement, Sight, measure_family, measure_views
from benchmarks.codecs.grid import (
    FULL_GRID,
    REFERENCE,
    PeerGrid,
    Point,
    codec_names,
    family_points,
    peer_points,
    reference_point,
)
from benchmarks.codecs.peers import Peer
from benchmarks.data.sets import Dataset
from benchmarks.data.views import Views
from benchmarks.judges.judge import Judge, Synthesis
from benchmarks.judges.originals import Originals
from benchmarks.judges.panel import NOBODY, Panel, PanelJudge, role_of
from benchmarks.judges.perceptual import NETWORK, Perceptual
from benchmarks.results.progress import Progress
from benchmarks.results.store import PointStore, data_key
from benchmarks.rig.server_process import running_service
from benchmarks.rig.wire_bytes import WireMeter, wire_meter
from edge.line.client import Client
from synthesis.adapter import NONE, Adapter
from thinwire.bundle import Bundle

NAME = "rate-accuracy"


@dataclass
class RateAccuracy:
    """One run over one data set and one CLIP. Families go to servers started with `clip`, the judge's model.

    prompts: named templates; the first is what families are asked over the wire, and must be a named set of
    `thinwire.prompts`.
    """

    data: Dataset
    judge: Judge
    clip: str
    prompts: Mapping[str, tuple[str, ...]]
    seed: int
    store: PointStore
    grid: PeerGrid = FULL_GRID
    threads: int = 1
    panel: Panel = NOBODY  # judges beside the CLIP that serves
    adapter: Adapter | None = None  # its bundle among the families is measured with it as well
    progress: Progress = field(default_factory=Progress)
    perceptual: Callable[[], Perceptual] | None = None  # makes what measures that distance; None: it is left out
    measured: int = 0  # points that were not found on disk

    def points(self, families: Sequence[Bundle], peers: Sequence[Peer]) -> list[list[Point]]:
        """The reference, then one list for each family, for the adapter's bundle with it, and for each peer."""
        height, width = self.judge.view_size
        bundles = [family_points(bundle, name) for bundle, name in zip(families, codec_names(families))]
        adapted = [
            family_points(bundle, name + SUFFIX, self.adapter)
            for bundle, name in zip(families, codec_names(families))
            if self.adapter is not None and bundle.picture_id == self.adapter.picture_id
        ]
        return [
            [reference_point(height, width)],
            *bundles,
            *adapted,
            *(peer_points(peer, height, width, self.grid) for peer in peers),
        ]

    def run(self, families: Sequence[Bundle], peers: Sequence[Peer]) -> list[dict]:
        """The stored points of all, the reference first. Raises `ServerUnreachable`, `ClipsDiffer`, `ClipMismatch`."""
        groups = self.points(families, peers)
        self.progress.planned(sum(map(len, groups)) * len(self.data.items))
        found: dict[Point, dict] = {}
        for point in (point for group in groups for point in group):
            stored = self.store.load(self.key(point))
            if stored is not None:
                found[point] = {"clip_role": self._role(point), **stored}
                self.progress.skipped(len(self.data.items))
        with contextlib.ExitStack() as stack:
            sights = _Sights(self, stack)
            for group in groups:
                if missing := [point for point in group if point not in found]:
                    found.update(self._family(missing, sights) if group[0].bundle else self._judged(missing, sights))
        return [found[point] for group in groups for point in group]

    def _role(self, point: Point) -> str | None:
        """Whether the codec learnt from the CLIP that serves."""
        if point.kind == REFERENCE:
            return None
        name = self.judge.clip.id.partition("#")[0]
        clip = PanelJudge(name, self.judge.clip.id, (name,), None, lambda pictures: [])
        return role_of(clip, point.bundle, point.adapter.clip if point.adapter else None)

    def key(self, point: Point) -> dict[str, object]:
        """All that a point's numbers depend on."""
        return {
            **data_key(self.data),
            "seed": self.seed,
            "clip": self.judge.clip.id,
            "device": self.judge.clip.device,
            "prompts": {name: _digest(templates) for name, templates in self.prompts.items()},
            "perceptual": NETWORK if self.perceptual else None,
            **({"judges": self.panel.key} if self.panel.judges else {}),
            "testbed": self.store.context["testbed"],
            "kind": point.kind,
            "codec": point.codec,
            "rate": point.rate,
            "parameters": point.parameters,
        }

    def _family(self, points: Sequence[Point], sights: _Sights) -> Iterator[tuple[Point, dict]]:
        bundle, adapter = points[0].bundle, points[0].adapter
        sight = sights.of(bundle.input_size)
        judge = self.judge if adapter is None else Judge(self.clip, self.judge.clip.device, adapter)
        decoder = Synthesis(bundle, judge)
        with _served(self.clip, bundle, self.threads, adapter) as client:
            self.judge.check_agrees(client, _ramp(*self.judge.view_size), self.data.labels, sight.main)
            for point in points:
                self.progress.point(f"{point.codec} {point.rate}")
                started = time.monotonic()
                measured = measure_family(client, decoder, point, sight)
                content = measured.content() | self._judges(measured, bundle, adapter)
                yield point, self._keep(point, content, started)

    def _judged(self, points: Sequence[Point], sights: _Sights) -> Iterator[tuple[Point, dict]]:
        for point in points:
            self.progress.point(f"{point.codec} {point.rate or ''}".strip())
            started = time.monotonic()
            measured = measure_views(point, sights.of(self.judge.view_size))
            content = measured.content() | self._judges(measured)
            yield point, self._keep(point, content, started)

    def _judges(
        self, measured: Measurement, bundle: Bundle | None = None, adapter: Adapter | None = None
    ) -> dict[str, object]:
        """What a point's file says of the panel: each judge's role and class of every image."""
        described = self.panel.described(bundle, adapter.clip if adapter else None)
        return {"judges": {name: {**about, "answers": measured.classes[name]} for name, about in described.items()}}

    def _keep(self, point: Point, content: Mapping[str, object], started: float) -> dict:
        described = {
            "kind": point.kind,
            "codec": point.codec,
            "rate": point.rate,
            "parameters": point.parameters,
            "data": {
                "name": self.data.name,
                "sha256": self.data.sha256,
                "images": self.data.total,
                "labels": list(self.data.labels),
            },
            "targets": [item.target for item in self.data.items],
            "n": len(self.data.items),
            "seed": self.seed,
            "clip": self.judge.clip.id,
            "clip_role": self._role(point),
            "device": self.judge.clip.device,
            "prompt_sets": list(self.prompts),
            "view": list(self.judge.view_size),
        }
        self.measured += 1
        return self.store.save(self.key(point), {**described, **content}, time.monotonic() - started)


class _Sights:
    """Views and their originals of each size that is needed, made when first asked: a finished run makes none."""

    def __init__(self, run: RateAccuracy, stack: contextlib.ExitStack) -> None:
        self._run, self._stack = run, stack
        self._meter: WireMeter | None = None
        self._made: dict[tuple[int, int], Sight] = {}

    def of(self, size: tuple[int, int]) -> Sight:
        run = self._run
        if self._meter is None:
            self._meter = self._stack.enter_context(wire_meter(run.data.labels))
        if size not in self._made:
            views = Views(run.data, *size)
            originals = Originals(views, run.judge)
            # Of originals it keeps its features by image number, so each size of view has its own
            perceptual = run.perceptual() if run.perceptual else None
            ticks = run.progress.images
            self._made[size] = Sight(
                views, originals, run.judge, self._meter, run.prompts, ticks, perceptual, run.panel
            )
        return self._made[size]


@contextlib.contextmanager
def _served(clip: str, bundle: Bundle, threads: int, adapter: Adapter | None) -> Iterator[Client]:
    """A server that holds this bundle alone (two may share a model id), and a client of it."""
    folder = NONE if adapter is None else adapter.path
    with (
        running_service(clip, bundle.path, adapter=folder) as address,
        Client(address, bundle, threads=threads) as client,
    ):
        client.check()
        yield client


def _ramp(height: int, width: int) -> np.ndarray:
    """A smooth coloured picture, uint8 (height, width, 3): any data set has it, also one whose images are broken."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y // height, 255 * x // width, 255 * (x + y) // (height + width)], axis=-1).astype(np.uint8)


def _digest(templates: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(templates)).encode()).hexdigest()[:16]
