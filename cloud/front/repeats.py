"""Answers that were given before: a device that missed one asks again, and nothing is computed or counted twice.

What tells a repeat is the `thinwire-spool` that the call names and the `frame_id` of the frame, under one question. A
frame that is asked for again while it is being computed waits for that answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import grpc

from cloud.front.admission import client_of
from cloud.front.label_sets import LabelSet
from thinwire.contract import MAX_SPOOL_CHARS, SPOOL_KEY
from thinwire.v1 import inference_pb2 as pb

ENTRY_BYTES = 400  # of Python's and the dictionary's own beside an answer, about


def spool_of(context: grpc.aio.ServicerContext, by_token: bool) -> str:
    """Whose frames a call brings: the id of the device's spool, within its certificate or token where one is checked,
    so that no device gets another's answers. "" where it names none, or none that is sensible."""
    for key, value in context.invocation_metadata() or ():
        if key == SPOOL_KEY and 0 < len(value) <= MAX_SPOOL_CHARS:
            client = client_of(context, by_token)
            return f"{client if client.startswith(('certificate ', 'token ')) else ''}\0{value}"
    return ""


class Repeats:
    """Answers by frame: at most `max_bytes` of them, the least recently used go first, none is older than `max_age_s`.

    For one event loop. `max_bytes` 0 keeps nothing. counts: `kept`, `repeated` (answered from here), `joined` (waited
    for the first one's answer), `dropped` (for room or age).
    """

    def __init__(self, max_bytes: int, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._max_age_s, self._clock = max_bytes, max_age_s, clock
        self._held: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._held_bytes = 0
        self._pending: dict[bytes, asyncio.Future[None]] = {}
        self.counts = dict.fromkeys(("kept", "repeated", "joined", "dropped"), 0)

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def key(self, spool: str, request: pb.ClassifyRequest, labels: LabelSet) -> bytes | None:
        """None for a frame whose repeat could not be told: no spool, or no frame_id."""
        if not spool or not request.frame_id or not self._max_bytes:
            return None
        question = (spool, request.frame_id, labels.labels, labels.templates, request.top_k, request.clip)
        return hashlib.blake2b(repr(question).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    async def answer(
        self, key: bytes | None, compute: Callable[[], Awaitable[pb.ClassifyResponse | None]]
    ) -> pb.ClassifyResponse | None:
        """The answer that `key` was given before, or what `compute` gives now, which is kept unless it is None.

        A repeat's timing is empty (batch_size 0). What `compute` raises is raised and not kept; who waited for
        it computes for itself.
        """
        if key is None:
            return await compute()
        while True:
            if (held := self._get(key)) is not None:
                self.counts["repeated"] += 1
                return held
            if (first := self._pending.get(key)) is None:
                break
            self.counts["joined"] += 1
            await asyncio.wait({first})
        done = self._pending[key] = asyncio.get_running_loop().create_future()
        try:
            response = await compute()
            self.keep(key, response)
            return response
        finally:
            del self._pending[key]
            done.set_result(None)

    def keep(self, key: bytes | None, response: pb.ClassifyResponse | None) -> None:
        """Keeps a final answer."""
        if key is None or response is None:
            return
        kept = pb.ClassifyResponse()
        kept.CopyFrom(response)
        kept.ClearField("timing")
        data = kept.SerializeToString()
        self._drop(key)
        self._held[key] = self._clock(), data
        self._held_bytes += len(data) + ENTRY_BYTES
        self.counts["kept"] += 1
        while self._held_bytes > self._max_bytes:
            self.counts["dropped"] += 1
            self._drop(next(iter(self._held)))

    def _get(self, key: bytes) -> pb.ClassifyResponse | None:
        since, data = self._held.get(key, (0.0, None))
        if data is None:
            return None
        if self._clock() - since > self._max_age_s:
            self.counts["dropped"] += 1
            self._drop(key)
            return None
        self._held.move_to_end(key)
        return pb.ClassifyResponse.FromString(data)

    def _drop(self, key: bytes) -> None:
        if (entry := self._held.pop(key, None)) is not None:
            self._held_bytes -= len(entry[1]) + ENTRY_BYTES
