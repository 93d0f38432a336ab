"""A link between two real sockets: an asyncio proxy on a thread of its own that delays, paces and cuts what it passes.

client ── TCP on loopback ── LinkProxy (schedule of `benchmarks.rig.links`) ── TCP on loopback ── server
"""

from __future__ import annotations

import asyncio
import time

from benchmarks.rig.links import Link, Schedule, segments
from benchmarks.rig.loopback import LoopbackProxy, reset
from benchmarks.rig.wire_log import ConnectionLog, Exchange

READ_BYTES = 1 << 16
SEGMENTS_ON_THE_WAY = 512  # per direction; beyond it the sender waits, as with any full send buffer
RESET, END = "reset", "end"


class LinkProxy(LoopbackProxy):
    """Listens on a free loopback port and passes connections on to `target` ("HOST:PORT") over an emulated link.

    Connections share the link's rate. A new one first costs a round trip, TCP's handshake. Use as a context manager.
    Counters: bytes_up and bytes_down of TCP payload that entered the link; connections; resets.
    exchanges: the HTTP/2 requests that passed, in the order they were opened (`forget` clears them).
    """

    def __init__(self, link: Link, target: str, seed: int = 0) -> None:
        super().__init__(target, "link-proxy")
        self.link = link
        self._up, self._down = Schedule(link, link.up_bps, 2 * seed), Schedule(link, link.down_bps, 2 * seed + 1)
        self.bytes_up = self.bytes_down = self.connections = self.resets = 0
        self.exchanges: list[Exchange] = []

    def forget(self) -> None:
        """Leaves earlier exchanges out of `exchanges`. Call it while nothing is on its way."""
        self.exchanges.clear()

    def cpu_s(self) -> float:
        """CPU seconds that the emulation has cost so far, so that they are not counted as the client's."""
        return time.clock_gettime(time.pthread_getcpuclockid(self._thread.ident))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._tasks.add(task)
        self.connections += 1
        log = ConnectionLog(self.exchanges)
        writers = [writer]
        try:
            await asyncio.sleep(2 * self.link.delay_ms / 1000)
            there, back = await asyncio.open_connection(self._host, self._port)
            writers.append(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, back, self._up, log.from_client, log.to_server))
                group.create_task(self._carry(there, writer, self._down, log.from_server, log.to_client))
            for each in writers:
                each.close()
        except* (OSError, asyncio.CancelledError):  # an end, or the link, is gone: so is the connection
            for each in writers:
                reset(each)
        finally:
            self._tasks.discard(task)

    async def _carry(self, reader, writer, schedule: Schedule, entered, left) -> None:
        """One direction of one connection. Raises `ConnectionError` when it ends, which ends the other one too."""
        on_the_way: asyncio.Queue[tuple[float, bytes | str]] = asyncio.Queue(SEGMENTS_ON_THE_WAY)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._enter(reader, schedule, on_the_way, entered))
            group.create_task(self._leave(writer, on_the_way, left))

    async def _enter(self, reader, schedule: Schedule, on_the_way: asyncio.Queue, entered) -> None:
        while data := await reader.read(READ_BYTES):
            now_s = time.monotonic()
            entered(data, now_s)
            if schedule is self._up:
                self.bytes_up += len(data)
            else:
                self.bytes_down += len(data)
            for segment in segments(data):
                passage = schedule.place(now_s, len(segment))
                await on_the_way.put((passage.arrives_s, RESET if passage.reset else segment))
        await on_the_way.put((schedule.place(time.monotonic(), 0).arrives_s, END))

    async def _leave(self, writer, on_the_way: asyncio.Queue, left) -> None:
        while True:
            arrives_s, what = await on_the_way.get()
            pause_s = arrives_s - time.monotonic()
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            if what is RESET:
                self.resets += 1
                raise ConnectionResetError("the link cut this connection")
            if what is END:
                writer.write_eof()
                return
            left(what, time.monotonic())
            writer.write(what)
            await writer.drain()
