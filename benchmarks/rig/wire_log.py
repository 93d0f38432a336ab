"""When requests and replies passed the proxy, read off HTTP/2 frame headers.

A client knows how long a call took and the server how long it worked; how the rest falls to the way there and the way
back neither can say without a common clock. The proxy stands on the same machine as both and sees the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # what a client begins with, RFC 9113 section 3.4
FRAME_HEADER_BYTES = 9  # length 3, type 1, flags 1, stream 4: RFC 9113 section 4.1
DATA, HEADERS = 0, 1
END_STREAM = 1


class FrameReader:
    """Bytes of one direction of one connection, as they come → frames that are complete."""

    def __init__(self, preface: bytes = b"") -> None:
        self._skip = len(preface)
        self._header = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, int, int]]:
        """(type, flags, stream) of each frame whose last byte is in `data`."""
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip -= step
                at += step
                if not self._skip and self._header:
                    yield self._frame()
                continue
            take = FRAME_HEADER_BYTES - len(self._header)
            self._header += data[at : at + take]
            at += take
            if len(self._header) == FRAME_HEADER_BYTES:
                self._skip = int.from_bytes(self._header[:3])
                if not self._skip:
                    yield self._frame()

    def _frame(self) -> tuple[int, int, int]:
        kind, flags, stream = self._header[3], self._header[4], int.from_bytes(self._header[5:]) & 0x7FFFFFFF
        self._header = b""
        return kind, flags, stream


@dataclass
class Exchange:
    """One request and its reply. Monotonic seconds; None for what has not happened."""

    opened_s: float  # its first bytes came from the client
    request_s: float | None = None  # its last byte was handed to the server
    reply_s: float | None = None  # the first bytes of the reply came from the server
    closed_s: float | None = None  # the last byte of the reply was handed to the client


class ConnectionLog:
    """Both directions of one connection, each seen where it enters and where it leaves the link."""

    def __init__(self, exchanges: list[Exchange]) -> None:
        self._all = exchanges
        self._mine: dict[int, Exchange] = {}
        self._up_in, self._up_out = FrameReader(PREFACE), FrameReader(PREFACE)
        self._down_in, self._down_out = FrameReader(), FrameReader()

    def from_client(self, data: bytes, now_s: float) -> None:
        for kind, _, stream in self._up_in.feed(data):
            if kind == HEADERS and stream not in self._mine:
                self._mine[stream] = Exchange(now_s)
                self._all.append(self._mine[stream])

    def to_server(self, data: bytes, now_s: float) -> None:
        for kind, flags, stream in self._up_out.feed(data):
            if kind in (DATA, HEADERS) and flags & END_STREAM and stream in self._mine:
                self._mine[stream].request_s = now_s

    def from_server(self, data: bytes, now_s: float) -> None:
        for kind, _, stream in self._down_in.feed(data):
            if kind == HEADERS and stream in self._mine and self._mine[stream].reply_s is None:
                self._mine[stream].reply_s = now_s

    def to_client(self, data: bytes, now_s: float) -> None:
        for kind, flags, stream in self._down_out.feed(data):
            if kind in (DATA, HEADERS) and flags & END_STREAM and stream in self._mine:
                self._mine.pop(stream).closed_s = now_s


def match(calls: Sequence[tuple[float, float]], exchanges: Sequence[Exchange]) -> list[Exchange | None]:
    """The exchange of each call, given the calls' (started, answered), monotonic seconds, in the order they started.

    Streams are opened in the order of calls, so equal numbers pair off. Where a connection was lost and calls were
    tried again, a call gets the exchange that ended last before its answer; None where there is none.
    """
    whole = [each for each in exchanges if None not in (each.request_s, each.reply_s, each.closed_s)]
    if len(whole) == len(exchanges) == len(calls):
        pairs = list(zip(calls, whole))
        if all(start <= each.opened_s and each.closed_s <= end for (start, end), each in pairs):
            return [each for _, each in pairs]
    found: list[Exchange | None] = []
    for start, end in calls:
        fitting = [each for each in whole if start <= each.opened_s and each.closed_s <= end]
        best = max(fitting, key=lambda each: each.closed_s, default=None)
        if best is not None:
            whole.remove(best)
        found.append(best)
    return found
