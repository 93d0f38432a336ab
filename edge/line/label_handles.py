"""Labels that cross the wire once: a set is registered with the server, and requests name it by its handle.

A hundred labels are about 1 kB beside a packet of 500 bytes; a handle is 34. The first request of a question carries
its labels as they are (a lone image needs no second round trip); whoever asks again registers them first. A server that
does not hold a handle (any more) says UNKNOWN_LABEL_SET: the labels are registered again and the request is repeated.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from edge.errors import Refused
from thinwire.contract import Reason
from thinwire.v1 import inference_pb2 as pb

HANDLE_BYTES = 34  # tag, length and 32 characters
LEAST_SAVED_BYTES = 32  # of a request; below it labels are as good
BUSY = frozenset((Reason.QUEUE_FULL, Reason.RATE_LIMITED, Reason.RESOURCE_EXHAUSTED, Reason.SHUTTING_DOWN))

Key = tuple[tuple[str, ...], str]


@dataclass
class LabelCounts:
    """registered, registered_bytes: RegisterLabels calls that were answered, and their messages; by_handle: requests
    that named a handle; saved_bytes: what their labels would have added to these requests, registering not deducted."""

    registered: int = 0
    registered_bytes: int = 0
    by_handle: int = 0
    saved_bytes: int = 0


class LabelHandles:
    """What one server holds for us, by labels and prompt set. Sends nothing itself; may be shared by threads.

    A server without RegisterLabels, or that refuses a registration, gets labels with every request.
    """

    def __init__(self) -> None:
        self.counts = LabelCounts()
        self._held: dict[Key, tuple[str, float]] = {}  # handle, and when it was given (perf_counter)
        self._saved_bytes: dict[str, int] = {}  # of each request, by handle
        self._seen: set[Key] = set()
        self._refused: set[Key] = set()
        self._usable = True
        self._lock = threading.Lock()

    def registration(self, request: pb.ClassifyRequest) -> pb.RegisterLabelsRequest | None:
        """What to register before `request` is sent; None where nothing is to be.

        Nothing is for labels that are as short as a handle, held already, met for the first time, or refused before.
        """
        key = _key(request)
        with self._lock:
            if not self._usable or key in self._held or key in self._refused:
                return None
            wanted = pb.RegisterLabelsRequest(labels=key[0], prompt_set=key[1])
            if wanted.ByteSize() < HANDLE_BYTES + LEAST_SAVED_BYTES:
                return None
            if key not in self._seen:
                self._seen.add(key)
                return None
            return wanted

    def registered(self, registration: pb.RegisterLabelsRequest, reply: pb.RegisterLabelsResponse) -> None:
        with self._lock:
            self._held[tuple(registration.labels), registration.prompt_set] = reply.label_set, time.perf_counter()
            # The same fields stand in a request, in as many bytes
            self._saved_bytes[reply.label_set] = registration.ByteSize() - HANDLE_BYTES
            self.counts.registered += 1
            self.counts.registered_bytes += registration.ByteSize()

    def refused(self, registration: pb.RegisterLabelsRequest, error: Refused) -> None:
        """These labels go as they are from now on; all do, where the server knows no handles. A busy one is asked again
        with the next request."""
        if error.server_reason in BUSY:
            return
        with self._lock:
            self._usable &= error.server_reason != Reason.UNIMPLEMENTED
            self._refused.add((tuple(registration.labels), registration.prompt_set))

    def shortened(self, request: pb.ClassifyRequest) -> pb.ClassifyRequest:
        """`request` with its labels' handle in their place; itself where none is held."""
        with self._lock:
            handle, _ = self._held.get(_key(request), ("", 0.0))
        if not handle:
            return request
        return pb.ClassifyRequest(image=request.image, top_k=request.top_k, frame_id=request.frame_id, label_set=handle)

    def sent(self, request: pb.ClassifyRequest) -> None:
        """Counts a request that `shortened` gave and that goes out now."""
        with self._lock:
            if request.label_set:
                self.counts.by_handle += 1
                self.counts.saved_bytes += self._saved_bytes.get(request.label_set, 0)

    def forget(self, handle: str, sent_at: float = float("inf")) -> bool:
        """After UNKNOWN_LABEL_SET. False where others were told so before: the handle is gone, or given anew since the
        request was sent (perf_counter seconds)."""
        with self._lock:
            gone = [key for key, (held, given_at) in self._held.items() if held == handle and given_at <= sent_at]
            for key in gone:
                del self._held[key]
            return bool(gone)

    def forget_all(self) -> bool:
        """The server was started anew. False where nothing was held."""
        with self._lock:
            held = bool(self._held)
            self._held.clear()
            return held


def is_unknown(error: Exception, request: pb.ClassifyRequest) -> bool:
    """Whether `request` was refused for its handle alone."""
    return bool(request.label_set) and isinstance(error, Refused) and error.server_reason == Reason.UNKNOWN_LABEL_SET


def _key(request: pb.ClassifyRequest) -> Key:
    return tuple(request.labels), request.prompt_set
