import asyncio
import subprocess
import sys
import threading
from typing import Any

import pytest

from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import ThreadWorker
from tests.helpers import poll_until


async def test_work_runs_in_one_other_thread_and_done_on_the_loop() -> None:
    worker = ThreadWorker("disk")
    threads: list[str] = []
    done: list[tuple[Any, BaseException | None, str]] = []
    for number in range(3):

        def work(number: int = number) -> int:
            threads.append(threading.current_thread().name)
            return number

        worker.submit(
            work,
            lambda result, error: done.append((result, error, threading.current_thread().name)),
        )
    assert worker.pending == 3
    await poll_until(lambda: len(done) == 3)
    assert threads == ["disk"] * 3
    here = threading.current_thread().name
    assert done == [(0, None, here), (1, None, here), (2, None, here)]
    assert worker.pending == 0
    await worker.close()


class Alarm(BaseException):
    """An error outside the tree of Exception."""


async def test_any_error_of_the_work_goes_to_done_and_the_thread_goes_on() -> None:
    worker = ThreadWorker("disk")
    errors: list[BaseException | None] = []
    for error in (ValueError("v"), Alarm("a"), SystemExit(3)):

        def work(error: BaseException = error) -> None:
            raise error

        worker.submit(work, lambda result, error: errors.append(error))
    assert await worker.run(lambda: "alive") == "alive"
    assert [repr(error) for error in errors] == ["ValueError('v')", "Alarm('a')", "SystemExit(3)"]
    await worker.close()


async def test_run_returns_the_result_or_raises_the_error() -> None:
    worker = ThreadWorker("disk")
    assert await worker.run(lambda: 6 * 7) == 42
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await worker.run(lambda: next(iter(())))
    await worker.close()


async def test_cancelling_the_caller_does_not_stop_the_work() -> None:
    worker = ThreadWorker("disk")
    gate = threading.Event()
    lines: list[str] = []

    def work() -> None:
        assert gate.wait(30)
        lines.append("finished")

    async with TaskScope("test") as scope:
        task = scope.start("run", worker.run(work))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert lines == []
    assert worker.pending == 1
    gate.set()
    await worker.close()
    assert lines == ["finished"]


async def test_close_runs_all_that_was_submitted_and_leaves_the_loop_free() -> None:
    worker = ThreadWorker("disk")
    gate = threading.Event()
    lines: list[int] = []
    worker.submit(lambda: gate.wait(30), lambda result, error: None)
    for number in range(5):
        worker.submit(lambda number=number: lines.append(number), lambda result, error: None)
    async with TaskScope("test") as scope:
        scope.start("close", worker.close())
        # The loop turns while the thread is held.
        await asyncio.sleep(0)
        assert lines == []
        with pytest.raises(RuntimeError, match="closed"):
            worker.submit(lambda: None, lambda result, error: None)
        gate.set()
    assert lines == [0, 1, 2, 3, 4]
    assert worker.pending == 0
    await worker.close()
    assert "disk" not in [thread.name for thread in threading.enumerate()]


def test_a_process_that_forgets_to_close_still_ends_and_finishes_its_work() -> None:
    program = """
import asyncio
from pegaskv.runtime.worker import ThreadWorker

async def main():
    worker = ThreadWorker("disk")
    for number in range(3):
        worker.submit(lambda number=number: print(number), lambda result, error: None)

asyncio.run(main())
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    assert answer.stdout.split() == ["0", "1", "2"]
    assert answer.stderr == ""
