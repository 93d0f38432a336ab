"""Prometheus metrics of one engine and its front. Names and labels are a promise: dashboards and alerts use them.

Label children are bound once, so that an item costs some microseconds; gauges are read when somebody scrapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from cloud.engine.events import WENT, Observer
from thinwire import __version__
from thinwire.errors import ThinwireError

if TYPE_CHECKING:
    from cloud.engine.engine import Engine
    from cloud.engine.events import AnsweredFrame
    from cloud.engine.items import Item
    from cloud.engine.prepared import Embedded
    from cloud.search.archive import Archive

# What a JPEG of the same view would have taken: quality 80 at 224x224 took 1.787 bits a pixel on 150 Caltech-101
# images (benchmarks/results/rate-accuracy-caltech101.json, codec "jpeg", rate "224px quality 80"). An estimate: the
# server never sees the picture that was not sent.
JPEG_BITS_PER_PIXEL = 1.787

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics(Observer):
    """Add it to `engine.observers`; `text()` is what Prometheus scrapes. Thread-safe."""

    def __init__(self, engine: Engine, archive: Archive | None = None) -> None:
        disable_created_metrics()  # a second series for each, which is of no use
        self._jpeg_bytes: dict[bytes, float] = {}  # by model id
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, CPU seconds, open files of this process
        PlatformCollector(registry=registry)
        Gauge("thinwire_build_info", "Version of thinwire", ["version"], registry=registry).labels(__version__).set(1)
        self._requests = Counter(
            "thinwire_requests_total",
            "Submissions to the engine by what became of them; reason as in ErrorInfo, empty for answers",
            ["kind", "outcome", "reason"],
            registry=registry,
        )
        self._answered = {kind: self._requests.labels(kind, "answered", "") for kind in ("image", "texts", "picture")}
        self._rpcs = Counter("thinwire_rpcs_total", "RPCs by gRPC status", ["method", "code"], registry=registry)
        self._rpc_seconds = Histogram(
            "thinwire_rpc_seconds",
            "Duration of RPCs; streams count whole",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._latency = Histogram(
            "thinwire_answer_seconds", "From acceptance to answer of one image", buckets=_SECONDS, registry=registry
        )
        stages = Histogram(
            "thinwire_stage_seconds",
            "queue, decode and head: for each image; synthesis and clip: for each batch",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._queue, self._decode, self._head, self._synthesis, self._clip = map(
            stages.labels, ("queue", "decode", "head", "synthesis", "clip")
        )
        self._batch = Histogram("thinwire_batch_size", "Images in a device batch", buckets=_SIZES, registry=registry)
        self._input_bytes = Counter(
            "thinwire_input_bytes_total", "Bytes of answered packets and image files", ["source"], registry=registry
        )
        self._packets, self._files = self._input_bytes.labels("packet"), self._input_bytes.labels("image_file")
        self._saved = Counter(
            "thinwire_saved_bytes_total",
            f"Bytes that answered packets were smaller than JPEGs of their views at {JPEG_BITS_PER_PIXEL} bits a pixel",
            registry=registry,
        )
        went = Counter(
            "thinwire_cascade_frames_total",
            "Frames of which packets of several bundles were offered, by how far they went (see `WENT`)",
            ["went"],
            registry=registry,
        )
        self._went = {far: went.labels(far) for far in WENT}
        depth = Gauge("thinwire_queue_depth", "Requests accepted and unanswered", registry=registry)
        depth.set_function(lambda: engine.load[0])
        held = Gauge("thinwire_queue_bytes", "Input bytes of these", registry=registry)
        held.set_function(lambda: engine.load[1])
        limit = Gauge("thinwire_queue_limit", "Requests that the engine takes at most", registry=registry)
        limit.set(engine.limits.queue_items)
        if archive is not None:
            kept = Gauge("thinwire_store_frames", "Frames kept for search", registry=registry)
            kept.set_function(lambda: archive.store.frames)
            kept_bytes = Gauge("thinwire_store_bytes", "Bytes of packets, vectors and answers kept", registry=registry)
            kept_bytes.set_function(lambda: archive.store.bytes)
            dropped = Gauge("thinwire_store_dropped", "Frames not kept since the start", registry=registry)
            dropped.set_function(lambda: archive.dropped)
        memory = Gauge(
            "thinwire_device_memory_bytes",
            "PyTorch on CUDA: allocated by this process, reserved by it, free on the device. Else no samples",
            ["state"],
            registry=registry,
        )
        for state, read in getattr(engine.heads.clip, "device_memory", {}).items():
            memory.labels(state).set_function(read)

    def text(self) -> bytes:
        """The exposition format, of `CONTENT_TYPE`."""
        return generate_latest(self.registry)

    def refused(self, reason: str) -> None:
        self._requests.labels("", "rejected", reason).inc()

    def settled(self, item: Item, outcome: str, value: object) -> None:
        kind = item.kind.name.lower()
        if outcome != "answered":
            reason = value.reason if isinstance(value, ThinwireError) else ""
            self._requests.labels(kind, outcome, reason).inc()
            return
        self._answered[kind].inc()
        if kind != "image":
            return
        timing = value.timing
        self._latency.observe(timing.total_ms / 1000)
        self._queue.observe(timing.queue_ms / 1000)
        self._decode.observe(timing.decode_ms / 1000)
        self._head.observe(timing.head_ms / 1000)
        if not item.prepared.model_id:
            self._files.inc(item.input_bytes)
            return
        self._packets.inc(item.input_bytes)
        self._saved.inc(max(0.0, self._jpeg_of(item) - item.input_bytes))

    def answered(self, seen: AnsweredFrame) -> None:
        if seen.went:
            self._went[seen.went].inc()

    def ran(self, batch_size: int, result: Embedded) -> None:
        self._batch.observe(batch_size)
        self._synthesis.observe(result.synthesis_ms / 1000)
        self._clip.observe(result.clip_ms / 1000)

    def rpc(self, method: str, code: str, seconds: float) -> None:
        self._rpcs.labels(method, code).inc()
        self._rpc_seconds.labels(method).observe(seconds)

    def _jpeg_of(self, item: Item) -> float:
        model_id = item.prepared.model_id
        if model_id not in self._jpeg_bytes:
            bundle = item.loaded_clip.intake.bundles.get(model_id)
            if bundle is None:  # replaced by a reload while this item was under way
                return 0.0
            view = bundle.card.wire["input"]
            self._jpeg_bytes[model_id] = view["height"] * view["width"] * JPEG_BITS_PER_PIXEL / 8
        return self._jpeg_bytes[model_id]
