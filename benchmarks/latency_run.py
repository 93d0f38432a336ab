"""Every way x link x loop of the latency experiment, each point kept as it is finished."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.data import Dataset
from benchmarks.latency import CLOSED, OPEN, arrivals_s, on_edge, over_link, summarise
from benchmarks.link_proxy import LinkProxy
from benchmarks.links import LINKS, Link
from benchmarks.progress import Bar
from benchmarks.service import running_service
from benchmarks.timing_points import TimingStore, timing_key
from benchmarks.ways import ON_EDGE, EdgeHead, Way
from edge.client import Client, Question
from thinwire.bundle import Bundle

TOP_K = 5
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


@dataclass
class LatencyRun:
    """One run. `serve`: clip, bundle → a context manager that yields the address of a real server.

    Points of one bundle share a server of its own, started when the first of them is missing on disk. All on the edge
    needs no link, so it is measured once, under the link "none".
    """

    data: Dataset
    clip: str
    prompt_set: str
    seed: int
    store: TimingStore
    threads: int = 1
    timeout_s: float = 30.0
    serve: Serve = _serve
    measured: int = 0

    def plan(self, ways: Sequence[Way], links: Sequence[Link], loops: Sequence[Loop]) -> list[tuple[Way, Link, Loop]]:
        """All points, those that share a server and a link side by side."""
        order = list(dict.fromkeys(way.bundle.path for way in ways))
        points = [(way, link, loop) for way in ways if way.kind != ON_EDGE for link in links for loop in loops]
        points.sort(key=lambda point: (order.index(point[0].bundle.path), links.index(point[1])))
        return points + [(way, LINKS["none"], Loop()) for way in ways if way.kind == ON_EDGE]

    def run(self, ways: Sequence[Way], links: Sequence[Link], loops: Sequence[Loop], bar: Bar) -> list[dict[str, Any]]:
        """Rows of all points, without their samples (those are in the store)."""
        rows = []
        with contextlib.ExitStack() as server, contextlib.ExitStack() as line:
            serving: Bundle | None = None
            connected: Link | None = None
            images: list[bytes] = []
            for way, link, loop in self.plan(ways, links, loops):
                key = self._key(way, link, loop)
                result = self.store.load(key)
                if result is not None:
                    bar.skip(len(self.data.items))
                    rows.append(_row(key, way, result))
                    continue
                bar.point(f"{way.codec} {way.rate} {link.name} {loop.name}")
                images = images or [self.data.read(item) for item in self.data.items]
                if serving is not way.bundle:
                    line.close()
                    server.close()
                    connected, serving = None, way.bundle
                    address = server.enter_context(self.serve(self.clip, way.bundle))
                if connected is not link:
                    line.close()
                    connected = link
                    proxy = line.enter_context(LinkProxy(link, address, self.seed))
                    client = line.enter_context(
                        Client(proxy.address, way.bundle, threads=self.threads, timeout_s=self.timeout_s)
                    )
                load_average = os.getloadavg()[0]
                result = self._measure(way, client, proxy, address, loop, images, bar)
                self.store.save(key, result, load_average)
                self.measured += 1
                rows.append(_row(key, way, result))
        return rows

    def _measure(
        self,
        way: Way,
        client: Client,
        proxy: LinkProxy,
        address: str,
        loop: Loop,
        images: Sequence[bytes],
        bar: Bar,
    ) -> dict[str, Any]:
        targets = [self.data.labels[item.target] for item in self.data.items]
        if way.kind == ON_EDGE:
            head = EdgeHead.fetch(way.bundle, address, self.data.labels, self.prompt_set)
            return summarise(on_edge(client, head, images, TOP_K, bar.tick), targets, CLOSED)
        question = Question.check(self.data.labels, TOP_K, self.prompt_set)
        due_s = None if loop.arrivals_per_s is None else arrivals_s(loop.arrivals_per_s, len(images), self.seed)
        return summarise(over_link(way, client, proxy, images, question, due_s, bar.tick), targets, loop.name)

    def _key(self, way: Way, link: Link, loop: Loop) -> dict[str, Any]:
        return timing_key(
            "latency",
            self.data,
            self.clip,
            self.prompt_set,
            self.seed,
            kind=way.kind,
            codec=way.codec,
            rate=way.rate,
            parameters=way.parameters,
            server_bundle=way.bundle.model_id.hex(),
            link=link.name,
            link_figures=vars(link),
            loop=loop.name,
            arrivals_per_s=loop.arrivals_per_s,
            threads=self.threads,
            timeout_s=self.timeout_s,
        )


def _row(key: dict[str, Any], way: Way, result: dict[str, Any]) -> dict[str, Any]:
    named = {name: key[name] for name in ("kind", "codec", "rate", "link", "loop", "arrivals_per_s", "parameters")}
    return {**named, **{name: value for name, value in result.items() if name != "samples"}}
