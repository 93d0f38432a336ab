"""The transport-free engine: submit an input, get a future. Decoding on CPU threads, networks on one device thread.

    submit ─► decode threads: parse, range-decode, find the head ─► DeadlineQueue ─► device thread: synthesis, CLIP
           (text thread: builds heads that no cache holds) ──────┤                     ─► finish thread: head, top-k
           (load thread: CLIPs and nets that are not in memory) ─┘

When the device thread is free it takes everything that waits: batches grow with load, and a lone request starts at
once. While it works, the decode threads prepare the next batch.

When the engine is idle, the device thread also decodes and finishes a packet: two thread hand-offs fewer. With
`decode_threads=0` it always does: on few cores a decode thread would take a core from OpenMP workers that synchronise
after every operation. Each item keeps the models that were in use when it was accepted; `use` changes them for later
items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Self

import numpy as np

from cloud.engine.batching import DeadlineQueue
from cloud.engine.device_thread import DeviceThread
from cloud.engine.events import Observers
from cloud.engine.fusion import Earlier
from cloud.engine.head_builds import HeadBuilds
from cloud.engine.intake import Intake
from cloud.engine.items import Answer, EngineLimits, Item, Kind
from cloud.engine.ledger import Ledger
from cloud.engine.models import Models
from cloud.engine.one_shot_executor import OneShotExecutor
from cloud.engine.prepared import Runner
from cloud.engine.text_heads import Head, HeadCache
from cloud.errors import InvalidRequest, ShuttingDown
from thinwire.errors import LabelError
from thinwire.packet import Packet

SWEEP_EVERY_S = 0.005  # the shortest time between two searches for abandoned items, however many refusals come


class Engine:
    """Answers inputs with CLIP embeddings and zero-shot labels.

    Guarantees: every accepted submission's future is resolved (answer, typed error or cancelled), also by `close`; a
    failing input fails alone; nothing is computed for callers that have given up; memory is bounded by `EngineLimits`.
    Thread-safe. Use as a context manager or call `close`.
    """

    def __init__(
        self,
        runner: Runner,
        models: Models,
        limits: EngineLimits | None = None,
        *,
        log_errors: bool = True,
        prepare_thread: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the threads.

        runner: runs batches of one CLIP on the device.
        models: CLIPs and bundles to answer with, until `use` replaces them.
        limits: bounds of queue, memory and batches; None for the defaults.
        log_errors: log the traceback of unexpected failures.
        prepare_thread: called first on each thread that runs networks.
        """
        self.limits = limits or EngineLimits()
        self.observers = Observers()
        self._models = models
        self._runner = runner
        self._ledger = Ledger(self.limits, self.observers, log_errors=log_errors)
        self._queue: DeadlineQueue[Item] = DeadlineQueue(self._claim)
        # One at least: image files are always decoded here, packets on the device thread where the limit is 0
        self._decoders = ThreadPoolExecutor(self.limits.decode_threads or 1, "thinwire-decode")
        self._texts = OneShotExecutor("thinwire-text", prepare_thread)
        self._loader = OneShotExecutor("thinwire-load", prepare_thread)
        self._swept = 0.0
        self._builds = HeadBuilds(self._ledger, self._texts, self.limits.pending_head_builds, self._enqueue)
        self._device = DeviceThread(
            runner,
            self._queue,
            self._ledger,
            self.observers,
            self.limits,
            is_ready=self._is_ready,
            enqueue=self._enqueue,
            prepare=prepare_thread,
        )

    # ---------------------------------------------------------------- the caller's side

    def submit(
        self,
        *,
        packet: bytes | Packet | None = None,
        image_file: bytes | None = None,
        labels: Sequence[str] = (),
        templates: Sequence[str] = ("a photo of a {}.",),
        top_k: int = 5,
        deadline: float | None = None,
        clip: str = "",
        temperature: float | None = None,
        earlier: Earlier | None = None,
    ) -> Future[Answer]:
        """Accepts one packet (bytes, or parsed already), or one image file (JPEG, PNG, WebP, ...); returns at once.

        `labels` and `templates` must have passed `thinwire.labels`; without labels the answer is the embedding alone.
        `temperature` asks for `Answer.margin`; what an `earlier` packet of the same frame gave, of the same CLIP, is
        fused with what this one gives. `deadline` is a `time.monotonic()` value; `clip` one of `models.names()`, "" for
        the default. Raises `QueueFull`, `ShuttingDown`, or `UnknownClip` here; everything else (a bad packet, an
        unknown bundle, a passed deadline) arrives through the future. Cancelling the future drops the work.
        """
        if (packet is None) == (image_file is None):
            raise InvalidRequest("give exactly one of packet and image_file")
        self._check_prompts(labels, templates)
        item = self._item(Kind.IMAGE, packet, image_file, labels, templates, top_k, deadline, clip, temperature)
        item.earlier = earlier
        self._accept(item)
        self._find_clip(item)
        return item.future

    def submit_texts(
        self, texts: Sequence[str], *, templates: Sequence[str] = (), deadline: float | None = None, clip: str = ""
    ) -> Future[np.ndarray]:
        """Texts → future of unit vectors float32 (N, D). Same bounds, errors and cancelling as `submit`.

        With templates each text is put into all of them and averaged, as labels are (and cached like them).
        """
        self._check_prompts(texts, templates)
        item = self._item(Kind.TEXTS, None, None, texts, templates, 0, deadline, clip)
        self._accept(item)
        self._find_clip(item)
        return item.future

    def submit_picture(self, packet: bytes, *, deadline: float | None = None) -> Future[np.ndarray]:
        """A packet → future of its picture uint8 RGB (H, W, 3). Same bounds, errors and cancelling as `submit`.

        Fails with `CannotDecode` for packets that hold no picture.
        """
        item = self._item(Kind.PICTURE, packet, None, (), (), 0, deadline, "")
        self._accept(item)
        self._find_clip(item)
        return item.future

    def use(self, models: Models) -> None:
        """Later submissions are answered by `models`. Items that are accepted already keep theirs."""
        self._models = models

    @property
    def models(self) -> Models:
        return self._models

    @property
    def intake(self) -> Intake:
        """The default CLIP's."""
        return self._models.intake

    @property
    def heads(self) -> HeadCache:
        """The default CLIP's."""
        return self._models.clip_of(self._models.default).heads

    def close(self, timeout_s: float | None = None) -> bool:
        """Refuses new work, finishes what was accepted, stops the threads. Says whether all was answered in time."""
        left = self._ledger.close(timeout_s)
        for item in left:
            self._ledger.fail(item, ShuttingDown("the service stopped before this could be answered"))
        self._queue.sweep(lambda _: True)
        self._queue.close()
        drained = not left
        self._decoders.shutdown(wait=drained, cancel_futures=True)
        self._texts.shutdown(wait=drained, cancel_futures=True)
        self._loader.shutdown(wait=drained, cancel_futures=True)
        if drained:
            self._device.join()
        self._device.close(wait=drained)
        return drained

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def load(self) -> tuple[int, int]:
        """(items, input bytes) accepted and not yet answered."""
        return len(self._ledger.items), self._ledger.bytes

    @property
    def counts(self) -> dict[str, int]:
        """How submissions ended, and device batches, since the start."""
        return self._ledger.counts

    # ---------------------------------------------------------------- accepting

    def _item(self, kind, packet, image_file, labels, templates, top_k, deadline, clip, temperature=None) -> Item:
        models = self._models
        now = time.monotonic()
        input_bytes = len(image_file or b"" if packet is None else packet)
        return Item(
            kind=kind,
            packet=packet,
            image_file=image_file,
            labels=tuple(labels),
            templates=tuple(templates),
            top_k=top_k,
            temperature=temperature,
            due=now + self.limits.default_deadline_s if deadline is None else deadline,
            input_bytes=input_bytes,
            size_bytes=input_bytes + sum(map(len, labels)),
            pixel_bytes=models.intake.decode_bytes(image_file) if image_file else 0,
            accepted=now,
            future=Future(),
            models=models,
            clip=models.name_of(clip),
        )

    def check_room(self) -> None:
        """Raises `QueueFull` where any submission would: for callers that would do work before they submit."""
        if self._ledger.is_full():
            self._sweep()
            if self._ledger.is_full():
                raise self._ledger.refuse()

    def _accept(self, item: Item) -> None:
        if self._ledger.is_full(item.size_bytes, item.pixel_bytes):
            self._sweep()
        self._ledger.accept(item)

    def _sweep(self) -> None:
        """Frees the places of cancelled and expired items, at most once in `SWEEP_EVERY_S`. Called before a refusal."""
        now = time.monotonic()
        if now - self._swept < SWEEP_EVERY_S:
            return
        self._swept = now
        for gone in self._queue.sweep(lambda other: other.future.cancelled() or other.due <= now):
            self._ledger.wanted(gone)

    def _check_prompts(self, labels: Sequence[str], templates: Sequence[str]) -> None:
        prompts = len(labels) * len(templates)
        if prompts > self.limits.max_prompts:
            raise LabelError(
                f"{len(labels)} labels x {len(templates)} templates are {prompts} prompts, this server takes at most "
                f"{self.limits.max_prompts}: send fewer labels or a smaller prompt set"
            )

    # ---------------------------------------------------------------- stages

    def _start(self, pool: Executor, stage: Callable[[Item], None], item: Item) -> None:
        try:
            pool.submit(self._ledger.guard, stage, item)
        except RuntimeError:  # `close` gave up waiting between accepting and here
            self._ledger.fail(item, ShuttingDown("the service is stopping"))

    def _find_clip(self, item: Item) -> None:
        item.loaded_clip = item.models.clip_of(item.clip)
        if item.loaded_clip is None:
            self._start(self._loader, self._load_clip, item)
        else:
            self._with_clip(item)

    def _load_clip(self, item: Item) -> None:
        item.loaded_clip = item.models.load_clip_of(item.clip)
        self._with_clip(item)

    def _with_clip(self, item: Item) -> None:
        if item.kind is Kind.TEXTS:
            self._start(self._texts, self._encode_texts, item)
        elif item.kind is Kind.IMAGE and item.packet is not None and self._device_decodes():
            self._queue.put(item, item.due, 0)
        else:
            self._start(self._decoders, self._prepare, item)

    def _device_decodes(self) -> bool:
        """Whether the device thread decodes the packet that has just been accepted: see the module."""
        return self.limits.decode_threads == 0 or len(self._ledger.items) == 1

    def _prepare(self, item: Item) -> None:
        if self._is_ready(item):
            self._enqueue(item)

    def _is_ready(self, item: Item) -> bool:
        """Decodes `item`. False where another thread has to do something before the device can."""
        start = time.monotonic()
        item.queue_s += start - item.accepted
        try:
            prepared = item.loaded_clip.intake.prepare(item.packet, item.image_file)
        finally:
            self._ledger.decoded(item)
        item.packet = item.image_file = None  # frees the bytes: an item may wait long for its batch
        item.ready = time.monotonic()
        item.decode_s = item.ready - start
        # The net, or an adapted tower, may have been evicted: then the loader thread brings it back
        item.prepared = item.models.attach(item.loaded_clip, prepared)
        if item.prepared is None:
            item.prepared = prepared
            self._start(self._loader, self._load_and_attach, item)
            return False
        return self._has_head(item)

    def _load_and_attach(self, item: Item) -> None:
        item.prepared = item.models.load_and_attach(item.loaded_clip, item.prepared)
        if self._has_head(item):
            self._enqueue(item)

    def _has_head(self, item: Item) -> bool:
        if item.kind is Kind.PICTURE:
            self._start(self._texts, self._make_picture, item)
            return False
        if item.labels:
            # A head that no cache holds is built on the text thread; items that want the same one wait for one build
            item.head = item.loaded_clip.heads.lookup(item.labels, item.templates)
            if item.head is None:
                self._builds.wait_for(item)
                return False
        return True

    def _encode_texts(self, item: Item) -> None:
        if not self._ledger.claim(item):
            return
        heads = item.loaded_clip.heads
        if not item.templates:
            self._ledger.resolve(item, heads.clip.encode_texts(item.labels))
            return

        def built(done: Future[Head]) -> None:
            if done.cancelled():
                self._ledger.fail(item, ShuttingDown("the service is stopping"))
            elif (error := done.exception()) is not None:
                self._ledger.fail(item, self._ledger.unexpected(error))
            else:
                self._ledger.resolve(item, done.result().classes)

        # In turns: thirty thousand texts of one client must not hold up the two labels of another for minutes
        self._texts.submit_in_turns(heads.load_steps(item.labels, item.templates)).add_done_callback(built)

    def _make_picture(self, item: Item) -> None:
        if not self._ledger.claim(item):
            return
        self._ledger.resolve(item, self._runner.picture(item.prepared))

    def _enqueue(self, item: Item) -> None:
        item.note_ready()
        self._queue.put(item, item.due, item.prepared.array.nbytes)

    def _claim(self, item: Item) -> bool:
        """Whether the device thread is to work on it. Until it is prepared it can still be cancelled."""
        return self._ledger.wanted(item) if item.prepared is None else self._ledger.claim(item)
