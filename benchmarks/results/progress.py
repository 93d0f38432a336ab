"""What a run tells while it goes, and how it is ended."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass
class Progress:
    """Calls that a measuring loop makes; `progress_bar` puts a bar behind them."""

    images: Callable[[int], object] = lambda n: None  # that many measured
    skipped: Callable[[int], object] = lambda n: None  # that many found on disk
    planned: Callable[[int], object] = lambda n: None  # that many more to come
    point: Callable[[str], object] = lambda name: None  # what is measured now


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on stderr with rate and ETA of what this run measures itself."""
    from tqdm import tqdm

    pause_s = 0.2 if sys.stderr.isatty() else 10.0  # a log file needs no line for every batch
    with tqdm(
        total=0, desc=title, unit="image", file=sys.stderr, smoothing=0, dynamic_ncols=True, mininterval=pause_s
    ) as bar:

        def planned(count: int) -> None:
            bar.total += count

        def skipped(count: int) -> None:
            bar.initial += count
            bar.update(count)

        yield Progress(bar.update, skipped, planned, lambda name: bar.set_postfix_str(name, refresh=False))


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, so that no server outlives it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
