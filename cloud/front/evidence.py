"""Frames that wait for more of themselves: what has come of each, until it is answered, too old, or in the way.

A hostile client cannot make it grow: all frames together hold at most `max_bytes`, and what goes for a newcomer is the
oldest frame of the owner that holds most.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thinwire.packet import Packet
from thinwire.v1 import inference_pb2 as pb

ENTRY_BYTES = 1000  # of Python's own beside a frame, about
EXPIRE_EVERY_S = 1.0
MAX_OFFERS = 8  # bundles, and numbers of layers of each: what else an edge offers is not looked at


@dataclass(frozen=True, eq=False)
class Waiting:
    """A frame whose edge may send more.

    request: without its image; packet: what has come; progressive: what was offered.
    vector, bundle, layers, clip_id: what the packet was answered from, once it was (a unit vector (D,), of that CLIP).
    """

    request: pb.ClassifyRequest
    packet: Packet
    progressive: pb.Progressive
    vector: np.ndarray | None = None
    bundle: str = ""
    layers: int = 0
    clip_id: str = ""

    @property
    def nbytes(self) -> int:
        vector = 0 if self.vector is None else self.vector.nbytes
        return ENTRY_BYTES + len(self.packet) + vector + self.request.ByteSize() + self.progressive.ByteSize()

    @property
    def offers(self) -> dict[bytes, tuple[int, ...]]:
        """Numbers of layers by model id of the bundles that were offered."""
        return {offer.model_id: tuple(offer.layers[:MAX_OFFERS]) for offer in self.progressive.others[:MAX_OFFERS]}


class Evidence:
    """Waiting frames by owner (a spool, or a stream) and frame_id. For one event loop.

    max_bytes: of all of them; max_frames: of one owner; max_age_s: of each. counts: `kept`, `taken`, `dropped`.
    """

    def __init__(
        self, max_bytes: int, max_frames: int, max_age_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes, self._max_frames, self._max_age_s, self._clock = max_bytes, max_frames, max_age_s, clock
        self._held: dict[str, OrderedDict[int, tuple[float, Waiting]]] = {}
        self._bytes: dict[str, int] = {}
        self.held_bytes = 0
        self._expired_at = clock()
        self.counts = dict.fromkeys(("kept", "taken", "dropped"), 0)

    def keep(self, owner: str, frame_id: int, waiting: Waiting) -> None:
        """Takes a frame, in place of what was held of it."""
        self._remove(owner, frame_id)
        self._expire()
        size = waiting.nbytes
        if size > self._max_bytes:
            return
        self._held.setdefault(owner, OrderedDict())[frame_id] = self._clock(), waiting
        self._add(owner, size)
        self.counts["kept"] += 1
        while len(self._held[owner]) > self._max_frames:
            self._drop_oldest(owner)
        while self.held_bytes > self._max_bytes:
            self._drop_oldest(max(self._bytes, key=self._bytes.__getitem__))

    def take(self, owner: str, frame_id: int) -> Waiting | None:
        """The frame, which stops waiting; None where it is not, or no longer, held."""
        since, _ = self._held.get(owner, {}).get(frame_id, (0.0, None))
        waiting = self._remove(owner, frame_id)
        if waiting is None:
            return None
        late = self._clock() - since > self._max_age_s
        self.counts["dropped" if late else "taken"] += 1
        return None if late else waiting

    def forget(self, owner: str) -> None:
        """All frames of an owner that is gone."""
        for frame_id in list(self._held.get(owner, ())):
            self._remove(owner, frame_id)

    def _expire(self) -> None:
        now = self._clock()
        if now - self._expired_at < EXPIRE_EVERY_S:
            return
        self._expired_at, edge = now, now - self._max_age_s
        for owner in [owner for owner, held in self._held.items() if next(iter(held.values()))[0] < edge]:
            while owner in self._held and next(iter(self._held[owner].values()))[0] < edge:
                self._drop_oldest(owner)

    def _drop_oldest(self, owner: str) -> None:
        self._remove(owner, next(iter(self._held[owner])))
        self.counts["dropped"] += 1

    def _remove(self, owner: str, frame_id: int) -> Waiting | None:
        held = self._held.get(owner)
        if held is None or frame_id not in held:
            return None
        _, waiting = held.pop(frame_id)
        self._add(owner, -waiting.nbytes)
        if not held:
            del self._held[owner], self._bytes[owner]
        return waiting

    def _add(self, owner: str, size: int) -> None:
        self._bytes[owner] = self._bytes.get(owner, 0) + size
        self.held_bytes += size
