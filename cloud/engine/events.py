"""Events of the engine and its front for observers: one interface; a failing observer affects nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cloud.engine.items import Answer, Item
    from cloud.engine.prepared import Embedded

log = logging.getLogger(__name__)


WENT = ("first", "fused", "alone")
"""The first packet was enough, or had to do; both were fused; the second was answered by itself (its first was no
longer held, or no calibration says how to fuse them)."""


@dataclass(frozen=True, eq=False)
class AnsweredFrame:
    """One image that a client got its final answer to. Exactly one of `packet` and `image_file` is set.

    at: seconds since 1970. device_id: see `cloud.front.admission.device_of`. labels: what was asked, () for Embed.
    went: how far a frame of which several packets were offered went, see `WENT`; "" for others. packet: its last one.
    """

    at: float
    device_id: str
    packet: bytes | None
    image_file: bytes | None
    labels: tuple[str, ...]
    answer: Answer
    clip: str  # the CLIP's name, as in replies
    clip_id: str  # its name and a hash of its weights: vectors of two ids never meet
    went: str = ""

    @property
    def input_bytes(self) -> int:
        return len(self.packet or self.image_file or b"")


class Observer:
    """Override the events you need. Methods are called on the engine's threads or the front's event loop: they
    must be thread-safe, take microseconds, and keep no reference to `Item`s (they hold arrays)."""

    def refused(self, reason: str) -> None:
        """The engine did not accept a submission; `reason` as in ErrorInfo (QUEUE_FULL, SHUTTING_DOWN)."""

    def settled(self, item: Item, outcome: str, value: object) -> None:
        """An accepted item left the engine: "answered" (value: Answer or array), "failed" or "expired" (value: the
        error), "cancelled" (value: None)."""

    def ran(self, batch_size: int, result: Embedded) -> None:
        """The device ran a batch."""

    def answered(self, seen: AnsweredFrame) -> None:
        """A client got the final answer to an image. Called within the RPC's own context."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """An RPC ended with gRPC status `code` ("OK", "NOT_FOUND", ...). Of a stream, `seconds` is its duration."""


class Observers(Observer):
    """Passes every event on to all observers. What one of them raises is logged once, and stops nothing."""

    def __init__(self) -> None:
        self._all: tuple[Observer, ...] = ()
        self._complained: set[tuple[int, str]] = set()

    def add(self, *observers: Observer) -> None:
        self._all = (*self._all, *observers)

    @property
    def all(self) -> tuple[Observer, ...]:
        return self._all

    def replace(self, observers: Iterable[Observer]) -> None:
        """Replaces all observers by these."""
        self._all = tuple(observers)

    def __bool__(self) -> bool:
        return bool(self._all)

    def refused(self, reason: str) -> None:
        self._tell("refused", reason)

    def settled(self, item: Item, outcome: str, value: object) -> None:
        self._tell("settled", item, outcome, value)

    def ran(self, batch_size: int, result: Embedded) -> None:
        self._tell("ran", batch_size, result)

    def answered(self, seen: AnsweredFrame) -> None:
        self._tell("answered", seen)

    def rpc(self, method: str, code: str, seconds: float) -> None:
        self._tell("rpc", method, code, seconds)

    def _tell(self, moment: str, *what: object) -> None:
        for observer in self._all:
            try:
                getattr(observer, moment)(*what)
            except Exception as error:
                if (key := (id(observer), moment)) not in self._complained:
                    self._complained.add(key)
                    log.error("%s failed at %r; further failures are not logged", observer, moment, exc_info=error)
