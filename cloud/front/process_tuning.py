"""Settings of the whole process that a server makes before it starts: GIL switch interval and allocator."""

from __future__ import annotations

import sys

from synthesis.memory import keep_freed_memory

# GIL switch interval (sys.setswitchinterval). The device thread takes the GIL after each of some hundred operations of
# a batch. At Python's default of 5 ms each of them may wait while the event loop parses or refuses a burst of requests,
# and each reply may wait for packets that are being decoded.
SWITCH_S = 0.0002


def settle_process() -> None:
    """Sets a short GIL switch interval, and keeps freed memory in the process instead of returning it to the system."""
    sys.setswitchinterval(SWITCH_S)
    keep_freed_memory()
