"""A TCP proxy on loopback, on an event loop and a thread of its own: what the emulated links have in common."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from typing import Self


class LoopbackProxy:
    """Listens on a free loopback port, `address`; subclasses carry each connection on to `target` ("HOST:PORT").

    Use as a context manager. `_serve` runs once a connection and is cancelled at the end; it keeps its own task in
    `_tasks`.
    """

    def __init__(self, target: str, thread_name: str) -> None:
        self._host, _, port = target.rpartition(":")
        self._port = int(port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=thread_name, daemon=True)
        self._tasks: set[asyncio.Task] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection by RST, as a line that went away does, not by a polite FIN."""
    with contextlib.suppress(OSError, AttributeError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
