"""Labels that cross the wire once: a set is registered with the server, and requests name it by its handle.

A hundred labels are about 1 kB beside a packet of 500 bytes; a handle is 34. The first request of a question carries
its labels as they are (a lone image needs no second round trip); a client that asks again registers them first. A
server that does not know a handle, or no longer, answers UNKNOWN_LABEL_SET: the labels are registered again, and the
request is repeated.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from edge.errors import Refused
from edge.line.label_upload import too_many_at_once
from thinwire.contract import Reason
from thinwire.v1 import inference_pb2 as pb

HANDLE_BYTES = 34  # tag, length and 32 characters
LEAST_SAVED_BYTES = 32  # of a request; below it labels are as good
MAX_QUESTIONS = 256  # remembered at a time: a program may ask with other labels each time, for months
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


@dataclass
class _Question:
    """One list of labels with its prompt set. handle: "" where none is held; given_at: perf_counter seconds;
    saved_bytes: of each request that names it; met: asked before; refused: its labels go as they are."""

    handle: str = ""
    given_at: float = 0.0
    saved_bytes: int = 0
    met: bool = False
    refused: bool = False

    @property
    def settled(self) -> bool:
        return bool(self.handle) or self.refused


class LabelHandles:
    """What one server holds for us, by labels and prompt set. Sends nothing itself; may be shared by threads.

    A server without RegisterLabels, or that refuses a registration, gets labels with every request.
    """

    def __init__(self) -> None:
        self.counts = LabelCounts()
        self._questions: OrderedDict[Key, _Question] = OrderedDict()  # the least recently asked first
        self._usable = True
        self._lock = threading.Lock()

    def registration(self, request: pb.ClassifyRequest, at_once: bool = False) -> pb.RegisterLabelsRequest | None:
        """What to register before `request` is sent; None where nothing is to be.

        Nothing is for labels that are as short as a handle, held already, or refused before; nor for those met for the
        first time, unless `at_once` is set or they are so many that they cross in pieces.
        """
        key = _key(request)
        with self._lock:
            if not self._usable or self._asked(key).settled:
                return None
            wanted = pb.RegisterLabelsRequest(labels=key[0], prompt_set=key[1])
            if wanted.ByteSize() < HANDLE_BYTES + LEAST_SAVED_BYTES:
                return None
            question = self._asked(key)
            first, question.met = not question.met, True
            return None if first and not at_once and not too_many_at_once(wanted) else wanted

    def registered(self, registration: pb.RegisterLabelsRequest, reply: pb.RegisterLabelsResponse) -> None:
        with self._lock:
            question = self._asked((tuple(registration.labels), registration.prompt_set))
            question.handle, question.given_at = reply.label_set, time.perf_counter()
            # The same fields stand in a request, in as many bytes
            question.saved_bytes = registration.ByteSize() - HANDLE_BYTES
            self.counts.registered += 1
            self.counts.registered_bytes += registration.ByteSize()

    def assume(self, registration: pb.RegisterLabelsRequest, handle: str) -> None:
        """A handle that was given at another time, to another process: the same labels have the same everywhere."""
        with self._lock:
            question = self._asked((tuple(registration.labels), registration.prompt_set))
            question.handle, question.given_at = handle, time.perf_counter()
            question.saved_bytes = registration.ByteSize() - HANDLE_BYTES

    def refused(self, registration: pb.RegisterLabelsRequest, error: Refused) -> None:
        """These labels go as they are from now on; all do, where the server knows no handles. A busy one is asked again
        with the next request."""
        if error.server_reason in BUSY:
            return
        with self._lock:
            self._usable &= error.server_reason != Reason.UNIMPLEMENTED
            self._asked((tuple(registration.labels), registration.prompt_set)).refused = True

    def shortened(self, request: pb.ClassifyRequest) -> pb.ClassifyRequest:
        """`request` with its labels' handle in their place; itself where none is held."""
        with self._lock:
            question = self._questions.get(_key(request))
            handle = question.handle if question else ""
        if not handle:
            return request
        return pb.ClassifyRequest(image=request.image, top_k=request.top_k, frame_id=request.frame_id, label_set=handle)

    def sent(self, request: pb.ClassifyRequest) -> None:
        """Counts a request that `shortened` gave and that goes out now."""
        with self._lock:
            if request.label_set:
                self.counts.by_handle += 1
                held = (each for each in self._questions.values() if each.handle == request.label_set)
                self.counts.saved_bytes += next((each.saved_bytes for each in held), 0)

    def forget(self, handle: str, sent_at: float = float("inf")) -> bool:
        """After UNKNOWN_LABEL_SET. False where others were told so before: the handle is gone, or was given again since
        the request was sent (perf_counter seconds)."""
        with self._lock:
            gone = [each for each in self._questions.values() if each.handle == handle and each.given_at <= sent_at]
            for question in gone:
                question.handle = ""
            return bool(gone)

    def forget_all(self) -> bool:
        """The server was started again. False where nothing was held."""
        with self._lock:
            held = [each for each in self._questions.values() if each.handle]
            for question in held:
                question.handle = ""
            return bool(held)

    def _asked(self, key: Key) -> _Question:
        """What is known of a question, which is now the most recent one."""
        question = self._questions.setdefault(key, _Question())
        self._questions.move_to_end(key)
        while len(self._questions) > MAX_QUESTIONS:
            self._questions.popitem(last=False)
        return question


def is_unknown(error: Exception, request: pb.ClassifyRequest) -> bool:
    """Whether `request` was refused for its handle alone."""
    return bool(request.label_set) and isinstance(error, Refused) and error.server_reason == Reason.UNKNOWN_LABEL_SET


def _key(request: pb.ClassifyRequest) -> Key:
    return tuple(request.labels), request.prompt_set
