"""The latency experiment: image file on the device → answer, over an emulated link, stage by stage.

    closed loop   the next image is taken when the answer to the one before has come: one camera that waits
    open loop     images come as a Poisson process whether or not answers do, and a latency counts from when its image
                  was due. A loop that waits would not look while the system is slow, and so miss its worst moments
                  (coordinated omission: G. Tene, "How NOT to Measure Latency").

Stages of one image, in milliseconds; they add up to its latency:

    wait          open loop: due → the device begins (it is busy with the image before)
    decode_image, preprocess, encode, code    on the device, as `edge.line.result.Result` has them
    send          → the last byte of the request is at the server (building the request and lost attempts included)
    queue, decode, synthesis, clip, head      in the server, as its reply says; a batch's stages count in full
    front         the server's gRPC layer and hand-overs: what lies between, and is none of the server's own stages
    reply         first byte of the answer leaves the server → the caller has it

send and reply come from the proxy, which sees both ends (`benchmarks.rig.wire_log`); where a call cannot be told apart
(`split` counts those that can) they and `front` are left out of the stages, not of the latency.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from benchmarks.results.store import MAX_MESSAGES
from benchmarks.rig.link_proxy import LinkProxy
from benchmarks.rig.wire_log import Exchange, match
from benchmarks.timing.routes import EdgeHead, Way
from edge.line.client import Client, PreparedRequest, Question
from edge.line.result import Result
from thinwire.errors import ThinwireError
from thinwire.imaging import open_image
from thinwire.platforms import usable_cores

CLOSED, OPEN = "closed", "open"
EDGE_STAGES = ("decode_image", "preprocess", "encode", "code")
SERVER_STAGES = ("queue", "decode", "synthesis", "clip", "head")
STAGES = ("wait", *EDGE_STAGES, "send", *SERVER_STAGES, "front", "reply")
PERCENTILES = (50, 95, 99)
LIMITED_SHARE = 0.8
"""Share of the time that the client may be busy before its figures say more about the client than about the rest."""

WARM_UPS = 4


@dataclass
class Call:
    """One image. Monotonic seconds; `due_s` is `started_s` in a closed loop."""

    due_s: float
    started_s: float = math.nan
    sent_s: float = math.nan
    answered_s: float = math.nan
    edge_ms: tuple[float, ...] = ()
    result: Result | None = None
    error: str | None = None
    head_ms: float = math.nan  # all on the edge: ranking the labels
    label: str | None = None

    @property
    def latency_ms(self) -> float:
        """Infinite for an image without an answer: it has not come yet."""
        return math.inf if self.error is not None else 1000 * (self.answered_s - self.due_s)

    def stages_ms(self, exchange: Exchange | None) -> dict[str, float]:
        """NaN for what this call did not do, or cannot tell."""
        stages = dict.fromkeys(STAGES, math.nan) | {"wait": 1000 * (self.started_s - self.due_s)}
        stages |= dict(zip(EDGE_STAGES, self.edge_ms))
        if self.result is None:
            return stages | {"head": self.head_ms}
        server = self.result.server
        stages |= {name: getattr(server, f"{name}_ms") for name in SERVER_STAGES}
        if exchange is not None:
            inside_ms = sum(stages[name] for name in SERVER_STAGES)
            stages["send"] = 1000 * (exchange.request_s - self.started_s) - sum(self.edge_ms)
            stages["front"] = 1000 * (exchange.reply_s - exchange.request_s) - inside_ms
            stages["reply"] = 1000 * (self.answered_s - exchange.reply_s)
        return stages


@dataclass
class Run:
    """What one point's calls were, and what they cost. Seconds; busy_s: how long the device's thread was at work."""

    calls: list[Call]
    exchanges: list[Exchange] = field(default_factory=list)
    wall_s: float = 0.0
    last_due_s: float = 0.0
    busy_s: float = 0.0
    cpu_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    connections: int = 0
    resets: int = 0


def arrivals_s(rate_per_s: float, count: int, seed: int) -> np.ndarray:
    """When the images of an open loop are due, seconds from its start, float64 (count,): a Poisson process."""
    return np.random.default_rng(seed).exponential(1 / rate_per_s, count).cumsum()


def over_link(
    way: Way,
    client: Client,
    proxy: LinkProxy,
    images: Sequence[bytes],
    question: Question,
    due_s: Sequence[float] | None,
    tick: Callable[[], object],
) -> Run:
    """Sends every image through the edge client and the proxy; a closed loop where `due_s` is None.

    What fails (a broken image, a deadline, a line that stays dead) is that image's failure.
    """
    _warm_up(way, client, images[0], question)
    proxy.forget()
    before = (proxy.bytes_up, proxy.bytes_down, proxy.connections, proxy.resets)
    run = Run([])
    cpu_s, began = time.process_time() - proxy.cpu_s(), time.monotonic()
    waiting = []
    for data, due in _schedule(images, due_s, began):
        call = Call(due, time.monotonic())
        run.calls.append(call)
        sent = _send(way, client, data, question, call)
        run.busy_s += (call.sent_s if sent else time.monotonic()) - call.started_s
        if sent:
            waiting.append((call, *sent))
            if due_s is None:
                _answer(client, *waiting.pop())
        tick()
    for each in waiting:
        _answer(client, *each)
    run.wall_s, run.last_due_s = time.monotonic() - began, run.calls[-1].due_s - began
    run.cpu_s = time.process_time() - proxy.cpu_s() - cpu_s
    after = (proxy.bytes_up, proxy.bytes_down, proxy.connections, proxy.resets)
    run.bytes_up, run.bytes_down, run.connections, run.resets = (b - a for a, b in zip(before, after))
    run.exchanges = list(proxy.exchanges)
    return run


def on_edge(client: Client, head: EdgeHead, images: Sequence[bytes], top_k: int, tick: Callable[[], object]) -> Run:
    """The same with nothing sent, one image after the other; `client` lends its encoder."""
    bundle, encoder = client.bundle, client.encoder
    head.rank(encoder.symbols(np.zeros((encoder.height, encoder.width, 3), np.uint8)), top_k)  # warm-up
    run = Run([])
    cpu_s, began = time.process_time(), time.monotonic()
    for data, due in _schedule(images, None, began):
        call = Call(due, time.monotonic())
        run.calls.append(call)
        try:
            marks = [time.perf_counter()]
            image = open_image(data)
            marks.append(time.perf_counter())
            view = bundle.view(image)
            marks.append(time.perf_counter())
            symbols = encoder.symbols(view)
            marks.append(time.perf_counter())
            call.label = head.rank(symbols, top_k)[0][0]
            marks.append(time.perf_counter())
            *edge_ms, call.head_ms = (1000 * (b - a) for a, b in itertools.pairwise(marks))
            call.edge_ms = (*edge_ms, 0.0)
        except ThinwireError as error:
            call.error = str(error)
        call.answered_s = time.monotonic()
        run.busy_s += call.answered_s - call.started_s
        tick()
    run.wall_s, run.cpu_s = time.monotonic() - began, time.process_time() - cpu_s
    return run


def _schedule(images: Sequence[bytes], due_s: Sequence[float] | None, began: float) -> Iterator[tuple[bytes, float]]:
    for place, data in enumerate(images):
        if due_s is None:
            yield data, time.monotonic()
            continue
        due = began + float(due_s[place])
        pause_s = due - time.monotonic()
        if pause_s > 0:
            time.sleep(pause_s)
        yield data, due


def _send(way: Way, client: Client, data: bytes, question: Question, call: Call) -> tuple[PreparedRequest, Any] | None:
    try:
        prepared = way.prepare(client, data, question)
        call.edge_ms = prepared.edge_ms
        future = client.uplink.send(prepared.request)
    except ThinwireError as error:
        call.error = str(error)
        return None
    call.sent_s = time.monotonic()

    def ended(_: object) -> None:
        call.answered_s = time.monotonic()  # when the answer came, not when somebody looked

    future.add_done_callback(ended)
    return prepared, future


def _answer(client: Client, call: Call, prepared: PreparedRequest, future: Any) -> None:
    try:
        reply = client.uplink.answer(future)
    except ThinwireError as error:
        call.error = str(error)
        return
    if math.isnan(call.answered_s):
        call.answered_s = time.monotonic()  # the callback may lag behind result() by a moment
    call.result = prepared.result(reply, 1000 * (call.answered_s - call.sent_s))
    call.label = call.result.best.label


def _warm_up(way: Way, client: Client, data: bytes, question: Question) -> None:
    """Connection, label vectors and lazily built kernels are made once; no image should pay for them.

    A lossy link may cut the first attempts. Raises the last error when nothing gets through at all.
    """
    for _ in range(WARM_UPS):
        call = Call(time.monotonic(), time.monotonic())
        sent = _send(way, client, data, question, call)
        if sent:
            _answer(client, call, *sent)
        if call.error is None or sent is None:  # a broken first image is told when it is measured
            return
    raise WarmUpFailed(f"no call reaches the server: {call.error}")


class WarmUpFailed(ThinwireError):
    """Not one request reached its answer before the measurement began."""

    reason: ClassVar[str] = "WARM_UP_FAILED"


# ---------------------------------------------------------------- figures


def summarise(run: Run, targets: Sequence[str], loop: str) -> dict[str, Any]:
    """A point's result: latencies, stages, bytes as they crossed the link, and how far the client was the limit.

    Images without an answer count as infinitely late: a percentile that falls among them is None. `samples` hold every
    image's latency (None: no answer) and stages, so that other figures can be made later.
    """
    answered = [call for call in run.calls if call.error is None]
    spans = [(call.started_s, call.answered_s) for call in answered]
    stages = [call.stages_ms(each) for call, each in zip(answered, match(spans, run.exchanges))]
    latencies = [call.latency_ms for call in run.calls]
    results = [call.result for call in answered if call.result is not None]
    figures = distribution(latencies)
    count = len(run.calls)
    busy = run.busy_s / run.wall_s if run.wall_s else 0.0
    cpu = run.cpu_s / run.wall_s if run.wall_s else 0.0
    return {
        "n": count,
        "failed": count - len(answered),
        "failure_messages": [call.error for call in run.calls if call.error is not None][:MAX_MESSAGES],
        "latency_ms": figures,
        "total_ms_p50": figures["p50"],
        "total_ms_p95": figures["p95"],
        "stages_ms": {name: distribution([each[name] for each in stages]) for name in STAGES},
        "split": sum(not math.isnan(each["send"]) for each in stages),
        "payload_bytes_mean": _rounded(np.mean([each.packet_bytes for each in results])) if results else 0.0,
        "link_bytes_up_per_image": _rounded(run.bytes_up / count),
        "link_bytes_down_per_image": _rounded(run.bytes_down / count),
        "batch_size_mean": _rounded(np.mean([each.server.batch_size for each in results])) if results else None,
        "images_per_s": _rounded(len(answered) / run.wall_s),
        "top1": _rounded(sum(call.label == target for call, target in zip(run.calls, targets)) / count, 5),
        "client_cpu_share": _rounded(cpu),
        "client_busy_share": _rounded(busy),
        # A closed loop's device is busy by design whenever the link is fast: its time is a stage, not a limit
        "client_limited": bool(loop == OPEN and max(busy, cpu / usable_cores()) > LIMITED_SHARE),
        # Answers come much later than a link without a queue would have brought the last one
        "overloaded": bool(loop == OPEN and run.wall_s > (run.last_due_s + min(latencies) / 1000) / LIMITED_SHARE),
        "connections_lost": run.resets,
        "samples": {
            "latency_ms": [_rounded(each) if math.isfinite(each) else None for each in latencies],
            "stages_ms": {
                name: [None if math.isnan(each[name]) else _rounded(each[name]) for each in stages] for name in STAGES
            },
        },
    }


def distribution(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and percentiles (the value at or above which few enough lie: no interpolation). NaN is left out.

    None for what is infinite, or where nothing is left.

    >>> distribution([3.0, 1.0, float("inf"), 2.0])
    {'mean': None, 'p50': 2.0, 'p95': None, 'p99': None}
    """
    ordered = sorted(value for value in values if not math.isnan(value))
    figures: dict[str, float] = {"mean": float(np.mean(ordered)) if ordered else math.nan}
    for percent in PERCENTILES:
        place = max(0, math.ceil(percent / 100 * len(ordered)) - 1)
        figures[f"p{percent}"] = ordered[place] if ordered else math.nan
    return {name: _rounded(value) if math.isfinite(value) else None for name, value in figures.items()}


def _rounded(value: float, digits: int = 3) -> float:
    return round(float(value), digits)
