"""Many labels over a thin link: compressed, in pieces, each well within its deadline, none of them twice.

Sends nothing itself: a generator gives the messages and takes the answers, for blocking and asyncio clients alike.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

from edge.errors import ServerTimeout
from thinwire.errors import ThinwireError
from thinwire.v1 import inference_pb2 as pb

WHOLE_BYTES = 2048  # a registration up to this size goes in one message
FIRST_BYTES = 8192  # labels up to this size go as they are with the first image that is asked about
PART_BYTES = (256, 2048, 16384)  # least, first and most of a piece
QUICK_S = 1.0  # a piece that takes less is followed by one of twice the size
MAX_RESTARTS = 3  # of the server, or lost pieces, before it is given up

Upload = Generator[pb.RegisterLabelsPartRequest, pb.RegisterLabelsPartResponse, pb.RegisterLabelsResponse]


@dataclass
class Progress:
    """held_bytes of total_bytes have crossed; sent_bytes: messages in all, repeats included. Then the server has made
    the vectors of texts_done of `texts` (labels times templates); 0 of 0 where it does not say."""

    total_bytes: int
    held_bytes: int = 0
    sent_bytes: int = 0
    texts_done: int = 0
    texts: int = 0

    def __str__(self) -> str:
        if self.held_bytes < self.total_bytes:
            return f"{100 * self.held_bytes // self.total_bytes} % of {self.total_bytes:,} bytes have crossed"
        if not self.texts:
            return "the server prepares them"
        return f"the server makes their vectors: {self.texts_done:,} of {self.texts:,} texts"


def in_pieces(registration: pb.RegisterLabelsRequest) -> bool:
    """Whether labels are better sent in pieces."""
    return registration.ByteSize() > WHOLE_BYTES


def too_many_at_once(registration: pb.RegisterLabelsRequest) -> bool:
    """Whether labels are too many to go with an image."""
    return registration.ByteSize() > FIRST_BYTES


def upload(registration: pb.RegisterLabelsRequest, tell: Callable[[Progress], None] = lambda progress: None) -> Upload:
    """The messages of one upload: send each that comes out, put its answer in; the reply of RegisterLabels is returned.

    An exception of a call is thrown in: after a `ServerTimeout` a smaller piece comes out, until the least one times
    out too; others come back out. A later upload of the same labels goes on where this one ended.
    """
    data = zlib.compress(registration.SerializeToString(deterministic=True), 9)
    digest = hashlib.sha256(data).digest()
    progress = Progress(len(data))
    size, restarts = PART_BYTES[1], 0
    held = 0
    ask = True  # first how far the server is: an earlier attempt may have got somewhere
    while True:
        piece = b"" if ask else data[held : held + size]
        request = pb.RegisterLabelsPartRequest(upload=digest, total_bytes=len(data), offset=held, data=piece)
        progress.sent_bytes += request.ByteSize()
        started = time.monotonic()
        try:
            reply = yield request
        except ServerTimeout:
            if size <= PART_BYTES[0]:
                raise
            size, ask = max(PART_BYTES[0], size // 4), True
            continue
        if reply.HasField("registered"):
            progress.held_bytes = len(data)
            tell(progress)
            return reply.registered
        progress.held_bytes = min(reply.held_bytes, len(data))
        if progress.held_bytes == len(data):  # all of it is there; the server makes the labels' vectors
            held, ask = len(data), True
            progress.texts_done, progress.texts = reply.texts_done, reply.texts
            tell(progress)
            continue
        if reply.held_bytes < held or (not ask and reply.held_bytes == held):
            restarts += 1
            if restarts > MAX_RESTARTS:
                raise ServerTimeout("the server does not keep the pieces of the labels: try again later")
        elif not ask and time.monotonic() - started < QUICK_S:
            size = min(PART_BYTES[2], 2 * size)
        ask, held = False, reply.held_bytes
        tell(progress)


def run_upload(
    registration: pb.RegisterLabelsRequest,
    send: Callable[[pb.RegisterLabelsPartRequest], pb.RegisterLabelsPartResponse],
    tell: Callable[[Progress], None] = lambda progress: None,
) -> pb.RegisterLabelsResponse:
    """The whole upload by a blocking call. Raises as `send`."""
    steps = upload(registration, tell)
    try:
        request = next(steps)
        while True:
            try:
                reply = send(request)
            except ThinwireError as error:
                request = steps.throw(error)
            else:
                request = steps.send(reply)
    except StopIteration as end:
        return end.value
