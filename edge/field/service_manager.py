"""What a service manager is told (sd_notify, https://www.freedesktop.org/software/systemd/man/sd_notify.html).

READY=1 once frames are taken, WATCHDOG=1 while the main loop turns, STOPPING=1 at the end. Nothing without
`NOTIFY_SOCKET` in the environment.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable

WATCHDOG = "WATCHDOG=1"


def service_manager(environ: dict[str, str] | None = None) -> Callable[[str], None]:
    """A function that sends one state, such as "READY=1". It never raises and never waits."""
    environ = os.environ if environ is None else environ
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return lambda state: None
    address = "\0" + address[1:] if address.startswith("@") else address
    # As often as the manual asks: at half of the time that the unit allows
    every_s = _number(environ.get("WATCHDOG_USEC")) / 2e6 if _ours(environ.get("WATCHDOG_PID")) else 0.0
    told_at = 0.0
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

    def tell(state: str) -> None:
        nonlocal told_at
        if state == WATCHDOG:
            if not every_s or time.monotonic() - told_at < every_s:
                return
            told_at = time.monotonic()
        with contextlib.suppress(OSError):  # no listener, or no longer: not a reason to stop
            channel.sendto(state.encode(), address)

    return tell


def _ours(pid: str | None) -> bool:
    return pid is None or pid == str(os.getpid())


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
