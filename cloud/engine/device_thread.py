"""The device thread: takes all that waits as one batch, decodes what came undecoded, runs the networks, makes answers.

It shares nothing with the rest of the engine but the queue and the ledger. What it cannot do itself goes back by
`is_ready` and `enqueue`. See `cloud.engine.engine` for why it also decodes and finishes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cloud.engine.answers import answers_of
from cloud.engine.batching import BatchLimits, DeadlineQueue
from cloud.engine.events import Observers
from cloud.engine.items import Answer, EngineLimits, Item
from cloud.engine.ledger import Ledger
from cloud.engine.prepared import Embedded, Runner


class DeviceThread:
    """Runs between its making and the queue's end; then `join` and `close`."""

    def __init__(
        self,
        runner: Runner,
        queue: DeadlineQueue[Item],
        ledger: Ledger,
        observers: Observers,
        limits: EngineLimits,
        *,
        is_ready: Callable[[Item], bool],
        enqueue: Callable[[Item], None],
        prepare: Callable[[], None],
    ) -> None:
        """is_ready: decodes an item, and says whether the device may start on it; enqueue: puts it back into the queue;
        prepare: called first on the thread."""
        self._runner, self._queue, self._ledger, self._observers = runner, queue, ledger, observers
        self._limits, self._batch = limits, limits.batch or BatchLimits()
        self._is_ready, self._enqueue, self._prepare = is_ready, enqueue, prepare
        self._finisher = ThreadPoolExecutor(1, "thinwire-finish")
        self._thread = threading.Thread(target=self._loop, name="thinwire-device", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits until the queue has ended and everything in it was run."""
        self._thread.join()

    def close(self, wait: bool) -> None:
        """Ends the thread that makes answers. wait: for those that are under way."""
        self._finisher.shutdown(wait=wait)

    def _loop(self) -> None:
        self._prepare()
        while (batch := self._queue.take(self._batch)) is not None:  # None: closed and empty
            start = time.monotonic()
            # 1. Decode what came straight here; the rest is prepared already
            ready = [item for item in batch if item.prepared is not None]
            ready += self._decode([item for item in batch if item.prepared is None])
            # 2. One run of the networks for each CLIP in the batch
            for group in _by_clip(ready):
                now = time.monotonic()
                for item in group:
                    item.queue_s += now - item.ready
                self._run(group)
            # 3. The time an item takes: what the bound on the queueing delay and retry hints are made from
            if ready:
                self._ledger.took(time.monotonic() - start, len(ready))

    def _decode(self, raw: list[Item]) -> list[Item]:
        """Decodes packets on this thread; returns those that the device may start on."""
        ready, room_bytes = [], self._batch.bytes
        for item in raw:
            if not self._ledger.guard(self._is_ready, item):
                continue
            if ready and item.prepared.array.nbytes > room_bytes:
                self._enqueue(item)  # too large for this batch, which only decoding could tell: back into the queue
            elif self._ledger.claim(item):
                room_bytes -= item.prepared.array.nbytes
                item.note_ready()
                ready.append(item)
        return ready

    def _run(self, batch: list[Item]) -> None:
        """Runs `batch`; when that fails, its halves, down to the one item at fault."""
        try:
            result = self._runner.run([item.prepared for item in batch])
            if len(result.embeddings) != len(batch):
                raise RuntimeError(f"{len(batch)} inputs gave {len(result.embeddings)} vectors")
        except Exception as error:
            result = None
            if len(batch) == 1:
                self._ledger.fail(batch[0], error)
        if result is None:  # outside the handler: the exception holds the failed batch's tensors
            if len(batch) > 1:
                self._run(batch[: len(batch) // 2])
                self._run(batch[len(batch) // 2 :])
            return
        self._ledger.ran(len(batch))
        self._observers.ran(len(batch), result)
        # Heads and top-k overlap with the next batch where there is one and a core for them
        if self._limits.decode_threads == 0 or not len(self._queue):
            self._finish(batch, result)
            return
        with contextlib.suppress(RuntimeError):  # `close` gave up on this batch and has failed its items already
            self._finisher.submit(self._finish, batch, result)

    def _finish(self, batch: list[Item], result: Embedded) -> None:
        try:
            for item, outcome in answers_of(batch, result):
                if isinstance(outcome, Answer):
                    self._ledger.resolve(item, outcome)
                else:
                    self._ledger.fail(item, outcome)
        except Exception as error:  # a defect here must not end the thread, nor leave a future unresolved
            for item in batch:
                self._ledger.fail(item, error)


def _by_clip(batch: list[Item]) -> list[list[Item]]:
    """The batch in as many parts as it has CLIPs (by generation): a device run serves one."""
    groups: dict[int, list[Item]] = {}
    for item in batch:
        groups.setdefault(id(item.loaded_clip.heads), []).append(item)
    return list(groups.values())
