"""What a process that serves sets for itself before it does anything else."""

from __future__ import annotations

import sys

from synthesis.memory import keep_freed_memory

# How long a thread that wants Python's lock waits before it asks for it. The device thread wants it after each of some
# hundred operations of a batch; at the default of 5 ms every one may wait for a whole burst of requests that are parsed
# or refused on the event loop, and every reply for packets that are being decoded.
SWITCH_S = 0.0002


def settle_process() -> None:
    """Short turns of Python's threads, and freed memory is kept. Both hold for the whole process."""
    sys.setswitchinterval(SWITCH_S)
    keep_freed_memory()
