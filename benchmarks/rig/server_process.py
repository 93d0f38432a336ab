"""The real server as a process of its own, for as long as a benchmark needs it."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from edge.defaults import DEFAULT_BUNDLE
from synthesis.adapter import NONE
from thinwire.errors import ThinwireError

ROOT = Path(__file__).resolve().parents[2]
DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
READY = "listening on "
TAIL_LINES = 30


class ServiceFailed(ThinwireError):
    """The server process did not come up, or not in time; the message ends with what it last wrote."""

    reason: ClassVar[str] = "SERVICE_FAILED"


@contextlib.contextmanager
def running_service(
    clip: str = "clip-lite",
    bundle: str | os.PathLike[str] = DEFAULT_BUNDLE,
    *more: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = NONE,
    decoder: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    timeout_s: float = 180.0,
    grace_s: float = 25.0,
) -> Iterator[str]:
    """Starts `thinwire-cloud serve` on a free loopback port and yields "127.0.0.1:PORT"; SIGTERM at the end.

    `more`: further bundles. `adapter`: None for what a server takes by itself, instead of the plain tower. `timeout_s`:
    how long models may take to load. `grace_s`: how long the process may take to stop before it is killed.
    Raises `ServiceFailed`, with the end of the server's stderr, when it exits early or is not ready in time.
    """
    command = [sys.executable, "-m", "cloud.cli", "serve", "--port", "0", "--clip", clip, "--bundle", os.fspath(bundle)]
    for each in more:
        command += ["--bundle", os.fspath(each)]
    if adapter is not None:
        command += ["--adapter", os.fspath(adapter)]
    if decoder is not None:
        command += ["--decoder", os.fspath(decoder)]
    if threads is not None:
        command += ["--threads", str(threads)]
    with serving(command, timeout_s=timeout_s, grace_s=grace_s) as address:
        yield address


@contextlib.contextmanager
def serving(command: list[str], *, timeout_s: float, grace_s: float = 25.0) -> Iterator[str]:
    """Runs `command` until it writes `listening on HOST:PORT` to stderr, yields that address, stops it at the end.

    It also ends when this process is killed: see `benchmarks.rig.die_with_parent`.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(DIE_WITH_PARENT), str(grace_s), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
    )
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    ready: queue.Queue[str | None] = queue.Queue()

    def drain() -> None:
        # Reads to the very end: a server whose stderr pipe is full stands still in the middle of a measurement.
        for line in process.stderr:
            tail.append(line.rstrip())
            if line.startswith(READY):
                ready.put(line[len(READY) :].split()[0])
        ready.put(None)

    drainer = threading.Thread(target=drain, name="service-stderr", daemon=True)
    drainer.start()
    started = time.monotonic()
    try:
        try:
            address = ready.get(timeout=timeout_s)
        except queue.Empty:
            raise ServiceFailed(f"the server was not ready after {timeout_s:g} s{_ending(tail)}") from None
        if address is None:
            code = process.wait()
            took_s = time.monotonic() - started
            raise ServiceFailed(f"the server ended with code {code} after {took_s:.1f} s{_ending(tail)}")
        yield address
    finally:
        process.stdin.close()  # ends it (die_with_parent)
        process.wait()
        drainer.join(5)
        process.stderr.close()


def _ending(tail: deque[str]) -> str:
    return "; its stderr ended with:\n  " + "\n  ".join(tail) if tail else "; it wrote nothing to stderr"
