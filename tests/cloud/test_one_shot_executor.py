from __future__ import annotations

import threading

import pytest

from cloud.engine.one_shot_executor import OneShotExecutor, on_one_shot_thread


def named(name):
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_tasks_run_in_order_one_at_a_time_and_the_thread_ends_with_the_last():
    done, running = [], threading.Lock()

    def task(number):
        assert running.acquire(blocking=False)
        done.append((number, threading.current_thread()))
        running.release()
        return number

    with OneShotExecutor("brief-order") as threads:
        futures = [threads.submit(task, number) for number in range(50)]
        assert [future.result(60) for future in futures] == list(range(50))
        assert [number for number, _ in done] == list(range(50))
        done[-1][1].join(60)
        assert not named("brief-order")
        assert threads.submit(task, 50).result(60) == 50  # and another one takes what comes later


def test_what_a_task_raises_is_its_own():
    with OneShotExecutor("brief-raise") as threads:
        bad, good = threads.submit(lambda: 1 // 0), threads.submit(lambda: 2)
        assert good.result(60) == 2
        with pytest.raises(ZeroDivisionError):
            bad.result(60)


def test_each_thread_is_initialised():
    counts = []
    with OneShotExecutor("brief-init", lambda: counts.append(threading.current_thread())) as threads:
        assert threads.submit(threading.current_thread).result(60) is counts[0]


def test_shutdown_cancels_what_has_not_begun_and_takes_nothing_more():
    threads, go, begun = OneShotExecutor("brief-shut"), threading.Event(), threading.Event()

    def first():
        begun.set()
        return go.wait(60)

    running, waiting = threads.submit(first), threads.submit(lambda: 1)
    assert begun.wait(60)
    threads.shutdown(wait=False, cancel_futures=True)
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="shut down"):
        threads.submit(lambda: 1)
    go.set()
    threads.shutdown()
    assert running.result(0)
    assert not named("brief-shut")


def test_once_gives_back_what_came_of_it():
    assert on_one_shot_thread(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        on_one_shot_thread(lambda: 1 // 0)
