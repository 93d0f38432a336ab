"""Waiting for what another thread or process is about to do. A test that sleeps for a fixed time instead passes without
having seen it, or fails on a busy machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

POLL_S = 0.005


def until(condition: Callable[[], object], seconds: float = 60.0, what: str = "") -> None:
    """Returns once `condition()` is true; fails the test after `seconds`, naming `what` was waited for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds:g} s still not so: {what or condition}"
        time.sleep(POLL_S)


async def until_async(condition: Callable[[], object], seconds: float = 60.0, what: str = "") -> None:
    """`until` for tests that share their event loop with what they wait for."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"after {seconds:g} s still not so: {what or condition}"
        await asyncio.sleep(POLL_S)
