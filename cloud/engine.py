"""The transport-free engine: submit an input, get a future. Decoding on CPU threads, networks on one device thread.

    submit ─► decode threads: parse, range-decode, find the head ─► DeadlineQueue ─► device thread: synthesis, CLIP
           (text thread: builds heads that no cache holds) ──────┤                     ─► finish thread: head, top-k
           (load thread: CLIPs and nets that are not in memory) ─┘

The device takes whatever waits when it is free, so batches grow with load and a lone request waits for nobody. While it
works, the decode threads prepare the next batch. Each item keeps the models it was accepted with: `use` puts others in
their place for what comes later.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from typing import Self

import numpy as np

from cloud.answers import answers_of
from cloud.batching import BatchLimits, DeadlineQueue
from cloud.errors import DeadlinePassed, InferenceFailed, InvalidRequest, QueueFull, ShuttingDown
from cloud.events import Observers
from cloud.head import HeadCache
from cloud.intake import Intake
from cloud.models import FixedModels, Models
from cloud.requests import Answer, EngineLimits, Item, Kind
from cloud.runner import Embedded, Runner
from thinwire.errors import LabelError, ThinwireError

log = logging.getLogger(__name__)


class Engine:
    """Answers inputs with CLIP embeddings and zero-shot labels.

    Guarantees: every accepted submission's future is resolved (answer, typed error or cancelled), also by `close`; a
    failing input fails alone; nothing is computed for callers that have given up; memory is bounded by `EngineLimits`.
    Thread-safe. Use as a context manager or call `close`.
    """

    def __init__(
        self,
        runner: Runner,
        intake: Intake,
        heads: HeadCache,
        limits: EngineLimits | None = None,
        *,
        log_errors: bool = True,
    ) -> None:
        self.limits = limits or EngineLimits()
        self.observers = Observers()
        self._models: Models = FixedModels(intake, heads)
        self._runner = runner
        self._log_errors = log_errors
        self._lock = threading.Condition()
        self._items: set[Item] = set()  # accepted and unanswered
        self._bytes = 0
        self._batch = self.limits.batch or BatchLimits()
        self._closing = False
        self._builds: dict[str, list[Item]] = {}
        self._item_s = 0.01  # moving average of device seconds per item, for the retry hint
        self.counts = dict.fromkeys(
            ("accepted", "rejected", "answered", "failed", "expired", "cancelled", "batches", "batched_items"), 0
        )
        self._queue: DeadlineQueue[Item] = DeadlineQueue(self._claim)
        self._decoders = ThreadPoolExecutor(self.limits.decode_threads, "thinwire-decode")
        self._texts = ThreadPoolExecutor(1, "thinwire-text", initializer=self._limit_torch_threads)
        self._loader = ThreadPoolExecutor(1, "thinwire-load")
        self._finisher = ThreadPoolExecutor(1, "thinwire-finish")
        self._device = threading.Thread(target=self._device_loop, name="thinwire-device", daemon=True)
        self._device.start()

    # ---------------------------------------------------------------- the caller's side

    def submit(
        self,
        *,
        packet: bytes | None = None,
        image_file: bytes | None = None,
        labels: Sequence[str] = (),
        templates: Sequence[str] = ("a photo of a {}.",),
        top_k: int = 5,
        deadline: float | None = None,
        clip: str = "",
        temperature: float | None = None,
    ) -> Future[Answer]:
        """Accepts one packet, or one image file (JPEG, PNG, WebP, ...), and returns at once.

        `labels` and `templates` must have passed `thinwire.labels`; without labels the answer is the embedding alone.
        `temperature` asks for `Answer.margin`. `deadline` is a `time.monotonic()` value; `clip` one of
        `models.names()`, "" for the default. Raises `QueueFull`, `ShuttingDown`, or `UnknownClip` here; everything else
        (a bad packet, an unknown bundle, a passed deadline) arrives through the future. Cancelling the future drops the
        work.
        """
        if (packet is None) == (image_file is None):
            raise InvalidRequest("give exactly one of packet and image_file")
        self._check_prompts(labels, templates)
        item = self._item(Kind.LOOK, packet, image_file, labels, templates, top_k, deadline, clip, temperature)
        self._accept(item)
        self._find_station(item)
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
        self._find_station(item)
        return item.future

    def submit_picture(self, packet: bytes, *, deadline: float | None = None) -> Future[np.ndarray]:
        """A packet → future of its picture uint8 RGB (H, W, 3). Same bounds, errors and cancelling as `submit`.

        Fails with `CannotDecode` for packets that hold no picture.
        """
        item = self._item(Kind.PICTURE, packet, None, (), (), 0, deadline, "")
        self._accept(item)
        self._find_station(item)
        return item.future

    def use(self, models: Models) -> None:
        """From now on `models` answer; what was accepted before keeps the models it was accepted with."""
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
        return self._models.station(self._models.default).heads

    def close(self, timeout_s: float | None = None) -> bool:
        """Refuses new work, finishes what was accepted, stops the threads. Says whether all was answered in time."""
        with self._lock:
            self._closing = True
            drained = self._lock.wait_for(lambda: not self._items, timeout_s)
            left = list(self._items)
        for item in left:
            self._fail(item, ShuttingDown("the service stopped before this could be answered"))
        self._queue.sweep(lambda _: True)
        self._queue.close()
        self._decoders.shutdown(wait=drained, cancel_futures=True)
        self._texts.shutdown(wait=drained, cancel_futures=True)
        self._loader.shutdown(wait=drained, cancel_futures=True)
        if drained:
            self._device.join()
        self._finisher.shutdown(wait=drained)
        return drained

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def load(self) -> tuple[int, int]:
        """(items, input bytes) accepted and not yet answered."""
        return len(self._items), self._bytes

    # ---------------------------------------------------------------- accounting

    def _item(self, kind, packet, image_file, labels, templates, top_k, deadline, clip, temperature=None) -> Item:
        models = self._models
        now = time.monotonic()
        input_bytes = len(packet or image_file or b"")
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
            accepted=now,
            future=Future(),
            models=models,
            clip=models.name_of(clip),
        )

    def _accept(self, item: Item) -> None:
        if self._is_full(item):
            # Work whose caller has gone may still hold places; look before refusing anyone.
            now = time.monotonic()
            for gone in self._queue.sweep(lambda other: other.future.cancelled() or other.due <= now):
                self._claim(gone)
        try:
            with self._lock:
                if self._closing:
                    raise ShuttingDown("the service is stopping")
                if self._is_full(item):
                    self.counts["rejected"] += 1
                    waiting = len(self._items)
                    wait_ms = int(min(max(waiting * self._item_s * 1000 / 2, 20), 5000))
                    raise QueueFull(f"{waiting} requests are waiting already; try again in {wait_ms} ms", wait_ms)
                self._items.add(item)
                self._bytes += item.size_bytes
                self.counts["accepted"] += 1
        except ThinwireError as error:
            self.observers.refused(error.reason)
            raise

    def _check_prompts(self, labels: Sequence[str], templates: Sequence[str]) -> None:
        prompts = len(labels) * len(templates)
        if prompts > self.limits.max_prompts:
            raise LabelError(
                f"{len(labels)} labels x {len(templates)} templates are {prompts} prompts, this server takes at most "
                f"{self.limits.max_prompts}: send fewer labels or a smaller prompt set"
            )

    def _is_full(self, item: Item) -> bool:
        waiting = len(self._items)
        if waiting >= self.limits.queue_items:
            return True
        longest_s = self.limits.max_wait_s
        if longest_s is not None and waiting >= 2 * self._batch.items and waiting * self._item_s > longest_s:
            return True
        return bool(self._items) and self._bytes + item.size_bytes > self.limits.queue_bytes

    def _release(self, item: Item, outcome: str) -> bool:
        """Gives the item's place back; False when that had happened before."""
        with self._lock:
            if item not in self._items:
                return False
            self._items.remove(item)
            self._bytes -= item.size_bytes
            self.counts[outcome] += 1
            self._lock.notify_all()
        if outcome == "cancelled":
            self.observers.settled(item, outcome, None)
        return True

    def _wanted(self, item: Item) -> bool:
        """Whether anyone still waits for `item`; settles it when not."""
        if item.future.cancelled():
            self._release(item, "cancelled")
            return False
        if item.due <= time.monotonic():
            self._fail(item, DeadlinePassed("the deadline passed while the request was waiting"), "expired")
            return False
        return True

    def _claim(self, item: Item) -> bool:
        """From here on `cancel` comes too late: the device is about to work on it."""
        if not self._wanted(item):
            return False
        if not item.future.set_running_or_notify_cancel():
            self._release(item, "cancelled")
            return False
        return True

    def _resolve(self, item: Item, value: object) -> None:
        # The place is given back first: a caller who sees its answer may submit the next one at once.
        held = self._release(item, "answered")
        with contextlib.suppress(InvalidStateError):  # the caller cancelled at this very moment
            item.future.set_result(value)
        if held:
            self.observers.settled(item, "answered", value)

    def _fail(self, item: Item, error: Exception, outcome: str = "failed") -> None:
        held = self._release(item, outcome)
        with contextlib.suppress(InvalidStateError):  # as above
            item.future.set_exception(error)
        if held:
            self.observers.settled(item, outcome, error)

    def _start(self, pool: ThreadPoolExecutor, stage: Callable[[Item], None], item: Item) -> None:
        try:
            pool.submit(self._guard, stage, item)
        except RuntimeError:  # `close` gave up waiting between accepting and here
            self._fail(item, ShuttingDown("the service is stopping"))

    def _guard(self, stage: Callable[[Item], None], item: Item) -> None:
        """Runs a stage on a worker thread; whatever it raises becomes this item's failure."""
        try:
            if self._wanted(item):
                stage(item)
        except ThinwireError as error:
            self._fail(item, error)
        except Exception as error:
            self._fail(item, self._unexpected(error))

    def _unexpected(self, error: Exception) -> InferenceFailed:
        if self._log_errors:
            log.error("an item failed unexpectedly", exc_info=error)
        failure = InferenceFailed(
            f"this input could not be computed ({type(error).__name__}); the server's log has more"
        )
        failure.__cause__ = error
        return failure

    # ---------------------------------------------------------------- stages

    def _find_station(self, item: Item) -> None:
        item.station = item.models.station(item.clip)
        if item.station is None:
            self._start(self._loader, self._load_station, item)
        else:
            self._at_station(item)

    def _load_station(self, item: Item) -> None:
        item.station = item.models.load_station(item.clip)
        self._at_station(item)

    def _at_station(self, item: Item) -> None:
        if item.kind is Kind.TEXTS:
            self._start(self._texts, self._encode_texts, item)
        else:
            self._start(self._decoders, self._prepare, item)

    def _prepare(self, item: Item) -> None:
        start = time.monotonic()
        item.queue_s += start - item.accepted
        prepared = item.station.intake.prepare(item.packet, item.image_file)
        item.packet = item.image_file = None  # bytes no longer needed
        item.ready = time.monotonic()
        item.decode_s = item.ready - start
        item.prepared = item.models.seat(item.station, prepared)
        if item.prepared is None:
            item.prepared = prepared
            self._start(self._loader, self._load_seat, item)
        else:
            self._seated(item)

    def _load_seat(self, item: Item) -> None:
        item.prepared = item.models.load_seat(item.station, item.prepared)
        self._seated(item)

    def _seated(self, item: Item) -> None:
        if item.kind is Kind.PICTURE:
            self._start(self._texts, self._make_picture, item)
            return
        if item.labels:
            item.head = item.station.heads.lookup(item.labels, item.templates)
            if item.head is None:
                self._await_head(item)
                return
        self._enqueue(item)

    def _await_head(self, item: Item) -> None:
        heads = item.station.heads
        key = heads.key(item.labels, item.templates)
        with self._lock:
            if key in self._builds:
                self._builds[key].append(item)
                return
            full = len(self._builds) >= self.limits.pending_head_builds
            if not full:
                self._builds[key] = [item]
        if full:
            raise QueueFull("too many new label sets are being prepared", 1000)
        self._texts.submit(self._build_head, heads, key, item.labels, item.templates)

    def _build_head(self, heads: HeadCache, key: str, labels: tuple[str, ...], templates: tuple[str, ...]) -> None:
        now = time.monotonic()
        with self._lock:
            waiting = self._builds[key]
            abandoned = all(item.future.cancelled() or item.due <= now for item in waiting)
            if abandoned:
                del self._builds[key]
        head, failure = None, None
        if not abandoned:
            # A build that has begun is finished even when its callers leave: its result is there for their next try.
            try:
                head = heads.load(labels, templates)
            except Exception as error:
                failure = self._unexpected(error)
            with self._lock:
                waiting = self._builds.pop(key)
        for item in waiting:
            if failure is not None:
                self._fail(item, failure)
            elif self._wanted(item):
                item.head = head
                self._enqueue(item)

    def _encode_texts(self, item: Item) -> None:
        if not item.future.set_running_or_notify_cancel():
            self._release(item, "cancelled")
            return
        heads = item.station.heads
        if item.templates:
            self._resolve(item, heads.load(item.labels, item.templates).classes)
        else:
            self._resolve(item, heads.clip.encode_texts(item.labels))

    def _make_picture(self, item: Item) -> None:
        if not item.future.set_running_or_notify_cancel():
            self._release(item, "cancelled")
            return
        self._resolve(item, self._runner.picture(item.prepared))

    def _enqueue(self, item: Item) -> None:
        now = time.monotonic()
        item.head_s, item.ready = now - item.ready, now
        self._queue.put(item, item.due, item.prepared.array.nbytes)

    def _limit_torch_threads(self) -> None:
        if self.limits.device_threads:
            import torch

            torch.set_num_threads(self.limits.device_threads)  # OpenMP keeps this setting per thread

    def _device_loop(self) -> None:
        self._limit_torch_threads()
        while (batch := self._queue.take(self._batch)) is not None:
            start = time.monotonic()
            for group in _by_clip(batch):
                now = time.monotonic()
                for item in group:
                    item.queue_s += now - item.ready
                self._run(group)
            self._item_s += 0.1 * ((time.monotonic() - start) / len(batch) - self._item_s)

    def _run(self, batch: list[Item]) -> None:
        """Runs `batch`; when that fails, its halves, down to the one item at fault."""
        try:
            result = self._runner.run([item.prepared for item in batch])
            if len(result.embeddings) != len(batch):
                raise RuntimeError(f"{len(batch)} inputs gave {len(result.embeddings)} vectors")
        except Exception as error:
            result = None
            if len(batch) == 1:
                self._fail(batch[0], error if isinstance(error, ThinwireError) else self._unexpected(error))
        if result is None:  # outside the handler: the exception holds the failed batch's tensors
            if len(batch) > 1:
                self._run(batch[: len(batch) // 2])
                self._run(batch[len(batch) // 2 :])
            return
        with self._lock:
            self.counts["batches"] += 1
            self.counts["batched_items"] += len(batch)
        self.observers.ran(len(batch), result)
        with contextlib.suppress(RuntimeError):  # `close` gave up on this batch and has failed its items already
            self._finisher.submit(self._finish, batch, result)

    def _finish(self, batch: list[Item], result: Embedded) -> None:
        for item, outcome in answers_of(batch, result):
            if isinstance(outcome, Answer):
                self._resolve(item, outcome)
            else:
                self._fail(item, outcome if isinstance(outcome, ThinwireError) else self._unexpected(outcome))


def _by_clip(batch: list[Item]) -> list[list[Item]]:
    """The batch in as many parts as it has CLIPs (by generation): a device run serves one."""
    groups: dict[int, list[Item]] = {}
    for item in batch:
        groups.setdefault(id(item.station.heads), []).append(item)
    return list(groups.values())
