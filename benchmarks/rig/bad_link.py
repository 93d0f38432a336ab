"""A TCP proxy on loopback whose rate changes with time and whose connections can be cut: the bad link of the field.

For fixed kinds of links see the emulator of `benchmarks.rig.links`; this one is about what changes while a client runs.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Self

from benchmarks.rig.loopback import LoopbackProxy, reset

CHUNK_BYTES = 512
HEADER_SHARE = 1.05  # TCP and IP headers on full segments, about


def swinging(low_bps: float, high_bps: float, seed: int = 0) -> Callable[[float], float]:
    """A rate that stays at one end or the other for 3 s to 8 s: seconds since the start → bit/s."""
    draw = random.Random(seed)
    ends = [0.0]
    while ends[-1] < 3600:
        ends.append(ends[-1] + draw.uniform(3, 8))
    return lambda t: low_bps if sum(end <= t % 3600 for end in ends) % 2 else high_bps


class BadLink(LoopbackProxy):
    """Passes connections on to `target` ("HOST:PORT", which may be down) at `rate_bps(seconds since start)` each way.

    A chunk enters when the one before it has left, and arrives `delay_s` later. `cut` resets every connection.
    """

    def __init__(self, target: str, rate_bps: Callable[[float], float] | None = None, delay_s: float = 0.0) -> None:
        super().__init__(target, "bad-link")
        self._rate, self._delay_s = rate_bps, delay_s
        self.connections = self.cuts = self.bytes_up = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._free_at = {True: 0.0, False: 0.0}  # by direction; connections share the link

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        return super().__enter__()

    def cut(self) -> None:
        """Ends every connection by RST, as a radio that lost its cell."""
        self.cuts += 1
        self._loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for writer in list(self._writers):
            reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        self.connections += 1
        mine = {writer}
        self._writers |= mine
        try:
            there, back = await asyncio.open_connection(self._host, self._port)
            mine.add(back)
            self._writers.add(back)
            await asyncio.gather(self._carry(reader, back, True), self._carry(there, writer, False))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for each in mine:
                each.transport.abort()
            self._writers -= mine
            self._tasks.discard(asyncio.current_task())

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        while data := await reader.read(CHUNK_BYTES):
            self.bytes_up += len(data) if up else 0
            now = time.monotonic()
            if self._rate is not None:
                bps = self._rate(now - self._started)
                self._free_at[up] = max(self._free_at[up], now) + 8 * HEADER_SHARE * len(data) / bps
                await asyncio.sleep(self._free_at[up] - now)
            self._loop.call_later(self._delay_s, self._write, writer, data)
        raise ConnectionResetError("one end closed")

    @staticmethod
    def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
        if not writer.is_closing():
            writer.write(data)
