"""Every way x link x loop of the latency experiment, each point kept as it is finished."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from benchmarks.codecs.grid import TOP_K
from benchmarks.rig.link_proxy import LinkProxy
from benchmarks.rig.links import LINKS, Link
from benchmarks.rig.server_process import running_service
from benchmarks.timing.latency import CLOSED, OPEN, arrivals_s, on_edge, over_link, summarise
from benchmarks.timing.routes import ON_EDGE, EdgeHead, Way
from benchmarks.timing.run import Key, TimingRun
from edge.line.client import Client, Question
from thinwire.bundle import Bundle

NAME = "latency"
ROW_NAMES = ("kind", "codec", "rate", "link", "loop", "arrivals_per_s", "parameters")
Serve = Callable[[str, Bundle], contextlib.AbstractContextManager[str]]


def _serve(clip: str, bundle: Bundle) -> contextlib.AbstractContextManager[str]:
    return running_service(clip, bundle.path)


@dataclass(frozen=True)
class Loop:
    """How images come. arrivals_per_s: mean of the Poisson process of an open loop; None closes the loop."""

    arrivals_per_s: float | None = None

    @property
    def name(self) -> str:
        return CLOSED if self.arrivals_per_s is None else OPEN


Case = tuple[Link, Loop]


@dataclass
class LatencyRun(TimingRun):
    """One run. `serve`: clip, bundle → a context manager that yields the address of a real server.

    Points of one bundle share a server of its own, started when the first of them is missing on disk. All on the edge
    needs no link, so it is measured once, under the link "none".
    """

    threads: int = 1
    timeout_s: float = 30.0
    serve: Serve = _serve

    def plan(self, ways: Sequence[Way], cases: Sequence[Case]) -> list[tuple[Way, Link, Loop]]:
        """All points, those that share a server and a link side by side."""
        bundles = list(dict.fromkeys(way.bundle.path for way in ways))
        links = list(dict.fromkeys(link for link, _ in cases))
        points = [(way, link, loop) for way in ways if way.kind != ON_EDGE for link, loop in cases]
        points.sort(key=lambda point: (bundles.index(point[0].bundle.path), links.index(point[1])))
        return points + [(way, LINKS["none"], Loop()) for way in ways if way.kind == ON_EDGE]

    def run(self, ways: Sequence[Way], cases: Sequence[Case]) -> list[dict[str, Any]]:
        """Rows of all points: every way over every case."""
        rows = []
        points = self.plan(ways, cases)
        self.progress.planned(len(points) * len(self.data.items))
        with _Ends(self) as ends:
            for way, link, loop in points:
                measure = functools.partial(self._measure, ends, way, link, loop)
                rows.append(self._row(self._case_key(way, link, loop), ROW_NAMES, len(self.data.items), measure))
        return rows

    def _measure(self, ends: _Ends, way: Way, link: Link, loop: Loop) -> dict[str, Any]:
        self.progress.point(f"{way.codec} {way.rate} {link.name} {loop.name}")
        client, proxy, address = ends.connect(way.bundle, link)
        images = [self.data.read(item) for item in self.data.items]
        targets = [self.data.labels[item.target] for item in self.data.items]

        def tick() -> None:
            self.progress.images(1)

        if way.kind == ON_EDGE:
            head = EdgeHead.fetch(way.bundle, address, self.data.labels, self.prompt_set)
            return summarise(on_edge(client, head, images, TOP_K, tick), targets, CLOSED)
        question = Question.check(self.data.labels, TOP_K, self.prompt_set)
        due_s = None if loop.arrivals_per_s is None else arrivals_s(loop.arrivals_per_s, len(images), self.seed)
        return summarise(over_link(way, client, proxy, images, question, due_s, tick), targets, loop.name)

    def _case_key(self, way: Way, link: Link, loop: Loop) -> Key:
        return self._key(
            way,
            server_bundle=way.bundle.model_id.hex(),
            link=link.name,
            link_figures=vars(link),
            loop=loop.name,
            arrivals_per_s=loop.arrivals_per_s,
            threads=self.threads,
            timeout_s=self.timeout_s,
        )


class _Ends:
    """The server, proxy and client of the point before: kept as long as the next ones can use them."""

    def __init__(self, run: LatencyRun) -> None:
        self._run = run
        self._server, self._line = contextlib.ExitStack(), contextlib.ExitStack()
        self._bundle: Bundle | None = None
        self._link: Link | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._line.close()
        self._server.close()

    def connect(self, bundle: Bundle, link: Link) -> tuple[Client, LinkProxy, str]:
        """(client behind the link, the link, the server's own address)."""
        run = self._run
        if self._bundle is not bundle:
            self._line.close()
            self._server.close()
            self._link, self._bundle = None, None
            self._address = self._server.enter_context(run.serve(run.clip, bundle))
            self._bundle = bundle
        if self._link is not link:
            self._line.close()
            self._link = None
            self._proxy = self._line.enter_context(LinkProxy(link, self._address, run.seed))
            self._client = self._line.enter_context(
                Client(self._proxy.address, bundle, threads=run.threads, timeout_s=run.timeout_s)
            )
            self._link = link
        return self._client, self._proxy, self._address
