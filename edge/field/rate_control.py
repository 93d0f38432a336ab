"""How much of a frame to send, and whether now: a link meter, a rate chooser, a bandwidth cap and a daily byte budget.

The link is modelled as `answer time = base + s_per_byte x bytes in flight`: on the slow links this is for, a frame's
time is its own and its predecessors' serialisation behind a fixed delay. base is the least time seen lately (the
windowed minimum of BBR, Cardwell et al., ACM Queue 14(5), 2016); s_per_byte follows a link that gets worse within two
answers and one that gets better within four. A frame that is still unanswered counts as soon as it is late.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.errors import ConnectionOptionsError
from edge.field.spool import Spool

FRAMING_BYTES = 64  # gRPC, HTTP/2 and TCP/IP around one message on an open stream, about (no TLS)
BASE_WINDOW_S = 60.0
WORSE, BETTER = 0.7, 0.3  # weight of a new sample
DEADLINE_SHARE = 0.6  # of the deadline is planned for; the rest is for what the model does not know
RESERVED_BYTES = 16 << 10  # of the day's budget are written down ahead, so that a crash cannot spend them twice


class LinkMeter:
    """Delay and slowness of the link, learned from frames sent and answered.

    One thread writes; others may read: what they iterate over is copied in one step.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._flying: dict[object, tuple[float, int]] = {}  # frame → (sent at, bytes in flight with it)
        self._sizes: dict[object, int] = {}
        self._delays: deque[tuple[float, float]] = deque()  # (when, delay)
        self._s_per_byte = 0.0
        self.samples = 0

    @property
    def in_flight_bytes(self) -> int:
        return sum(tuple(self._sizes.values()))

    @property
    def base_s(self) -> float:
        """The least delay of the last minute, without the server's own time; 0 before the first answer."""
        return min((delay for _, delay in tuple(self._delays)), default=0.0)

    @property
    def s_per_byte(self) -> float:
        """Seconds that each byte in flight adds, by answers and by what is overdue now."""
        now, base = self._clock(), self.base_s
        overdue = [(now - sent - base) / ahead for sent, ahead in tuple(self._flying.values())]
        return max(self._s_per_byte, *overdue, 0.0) if overdue else self._s_per_byte

    def sent(self, frame: object, size_bytes: int) -> None:
        self._sizes[frame] = size_bytes
        self._flying[frame] = (self._clock(), self.in_flight_bytes)

    def answered(self, frame: object, server_s: float = 0.0) -> float:
        """Returns the seconds since the frame was sent."""
        now = self._clock()
        sent, ahead = self._flying.pop(frame)
        del self._sizes[frame]
        delay = max(0.0, now - sent - server_s)
        self._delays.append((now, delay))
        while now - self._delays[0][0] > BASE_WINDOW_S:
            self._delays.popleft()
        sample = (delay - self.base_s) / ahead
        weight = (WORSE if sample > self._s_per_byte else BETTER) if self.samples else 1.0
        self._s_per_byte += weight * (sample - self._s_per_byte)
        self.samples += 1
        return now - sent

    def forget(self, frame: object) -> None:
        """The frame's answer tells nothing."""
        self._flying.pop(frame, None)
        self._sizes.pop(frame, None)

    def lost(self) -> None:
        """The connection is gone: nothing is in flight, and what was learned may no longer hold."""
        self._flying.clear()
        self._sizes.clear()


@dataclass(frozen=True)
class RateControl:
    """Chooses layers. fixed: always that many (a named rate); None: `--rate auto`.

    deadline_s: how soon after its acceptance a frame's answer is wanted.
    """

    deadline_s: float
    fixed: int | None = None

    def layers(
        self,
        sizes: Sequence[int],
        age_s: float,
        backlog: int,
        meter: LinkMeter,
        least_s_per_byte: float = 0.0,
        frame_bytes: float = float("inf"),
    ) -> int:
        """The most layers whose answer is expected in time, at least 1.

        sizes: bytes on the wire with 1, 2, ... layers. age_s: since acceptance. backlog: fresh frames waiting behind
        this one, which must get through in time too. least_s_per_byte: a bandwidth cap. frame_bytes: what the daily
        budget has for this frame. A frame that is late already is sent whole if no frame waits behind it: its answer is
        worth as much now as in a second.
        """
        if self.fixed is not None:
            return min(self.fixed, len(sizes))
        slow = max(meter.s_per_byte, least_s_per_byte)
        late = age_s >= self.deadline_s
        left_s = self.deadline_s * DEADLINE_SHARE - (0.0 if late else age_s)
        for count in range(len(sizes), 1, -1):
            size = sizes[count - 1]
            planned = meter.base_s + slow * (meter.in_flight_bytes + size * (1 + backlog))
            # Until a first answer, the link is taken for a slow one
            if size <= frame_bytes and planned <= left_s and (meter.samples or count <= (len(sizes) + 1) // 2):
                return count
        return 1

    def fits(
        self,
        size: int,
        age_s: float,
        behind_bytes: int,
        meter: LinkMeter,
        least_s_per_byte: float = 0.0,
        frame_bytes: float = float("inf"),
    ) -> bool:
        """Whether the answer to one more packet of `size` bytes on the wire is expected in time. As in `layers`.

        behind_bytes: of fresh frames that wait, which must get through in time too; few of them need such a packet.
        """
        late = age_s >= self.deadline_s
        left_s = self.deadline_s * DEADLINE_SHARE - (0.0 if late else age_s)
        slow = max(meter.s_per_byte, least_s_per_byte)
        planned = meter.base_s + slow * (meter.in_flight_bytes + size + behind_bytes)
        return size <= frame_bytes and planned <= left_s


class Cap:
    """`--max-kbps` as a token bucket of half a second (but never less than one frame). None: no cap."""

    def __init__(self, max_kbps: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        if max_kbps is not None and max_kbps <= 0:
            raise ConnectionOptionsError(f"a bandwidth cap is a number of kbit/s above 0, not {max_kbps}")
        self._bytes_per_s = None if max_kbps is None else max_kbps * 125
        self._clock, self._full_s = clock, 0.5
        self._free_at = clock()

    @property
    def s_per_byte(self) -> float:
        return 0.0 if self._bytes_per_s is None else 1 / self._bytes_per_s

    def wait_s(self) -> float:
        """How long to wait before the next frame; 0: send."""
        return max(0.0, self._free_at - self._clock()) if self._bytes_per_s else 0.0

    def spent(self, size_bytes: int) -> None:
        if self._bytes_per_s:
            self._free_at = max(self._free_at, self._clock() - self._full_s) + size_bytes / self._bytes_per_s


class Budget:
    """`--mb-per-day`: bytes of a UTC day, kept in the spool. A crash may waste up to 16 KiB of it, never exceed it.

    A clock that is set back does not open a new day.
    """

    def __init__(self, spool: Spool, bytes_per_day: int | None, clock: Callable[[], float] = time.time) -> None:
        if bytes_per_day is not None and bytes_per_day <= 0:
            raise ConnectionOptionsError(f"a daily budget is a number of bytes above 0, not {bytes_per_day}")
        self._spool, self._limit, self._clock = spool, bytes_per_day, clock
        book = spool.noted("run.budget") or {}
        self._day, self._reserved = book.get("day", 0), book.get("bytes", 0)
        self._used = self._reserved
        self._frames, self._since = 0.0, clock()

    @property
    def used_bytes(self) -> int:
        self._turn()
        return self._used

    def allows(self, size_bytes: int) -> bool:
        self._turn()
        return self._limit is None or self._used + size_bytes <= self._limit

    def resumes_in_s(self) -> float:
        """Seconds to the next UTC day."""
        return max(1.0, (self._day + 1) * 86400 - self._clock())

    def frame_bytes(self) -> float:
        """What is left of the day, spread evenly over the frames to be expected at the rate of the last while."""
        self._turn()
        passed_s = self._clock() - self._since
        if self._limit is None or self._frames < 8 or passed_s < 10:
            return float("inf")
        expected = max(1.0, self._frames / passed_s * self.resumes_in_s())
        return (self._limit - self._used) / expected

    def spent(self, size_bytes: int) -> None:
        self._turn()
        self._used += size_bytes
        self._frames += 1
        if self._limit is not None and self._used > self._reserved:
            self._reserved = min(self._used + RESERVED_BYTES, max(self._limit, self._used))
            self._spool.note("run.budget", {"day": self._day, "bytes": self._reserved, "limit": self._limit})

    def _turn(self) -> None:
        day = int(self._clock() // 86400)
        if day > self._day:
            self._day, self._used, self._reserved = day, 0, 0
