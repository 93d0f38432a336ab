"""Runs one task at a time on a thread that ends, with its OpenMP threads, when no task is left.

Each thread that calls torch's CPU operations owns a set of OpenMP threads for as long as it lives. When these
outnumber the cores, libgomp stops spin-waiting between operations (its `gomp_throttled_spin_count_var`), and a lone
image takes CLIP 27 ms instead of 12. So only one thread keeps OpenMP threads, the engine's device thread; all other
code that runs a network does it here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")


class OneShotExecutor(Executor):
    """Runs what is submitted in order, one at a time. `initializer` runs first on each new thread."""

    def __init__(self, name: str, initializer: Callable[[], None] = lambda: None) -> None:
        self._name, self._initializer = name, initializer
        self._waiting: deque[tuple[Future, Callable[[], object]]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()

    def submit(self, fn: Callable[..., T], /, *args: object, **kwargs: object) -> Future[T]:
        """Raises `RuntimeError` after `shutdown`."""
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"{self._name} has been shut down")
            self._waiting.append((future, lambda: fn(*args, **kwargs)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name)
                self._thread.start()
        return future

    def submit_in_turns(self, steps: Generator[object, None, T]) -> Future[T]:
        """Runs a generator to its end, one step at a time: what is submitted meanwhile gets its turn between two steps.

        The future has what the generator returns. Raises `RuntimeError` after `shutdown`, the future too if it comes in
        between.
        """
        future: Future[T] = Future()

        def step() -> None:
            try:
                next(steps)
                again()
            except StopIteration as end:
                future.set_result(end.value)
            except BaseException as error:
                future.set_exception(error)

        def again() -> None:
            self.submit(step).add_done_callback(lambda turn: turn.cancelled() and future.cancel())

        again()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._closed, thread = True, self._thread
            if cancel_futures:
                for future, _ in self._waiting:
                    future.cancel()
        if wait and thread is not None:
            thread.join()

    def _run(self) -> None:
        self._initializer()
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                future, work = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, work  # nothing of a task outlives it


def on_one_shot_thread(fn: Callable[[], T]) -> T:
    """Runs `fn` on a thread of its own; returns what it returns, raises what it raises."""
    with OneShotExecutor("thinwire-once") as thread:
        return thread.submit(fn).result()


def finished(steps: Generator[object, None, T]) -> T:
    """What a generator returns, run to its end here."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
