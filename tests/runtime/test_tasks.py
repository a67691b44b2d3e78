# ruff: noqa: PT012 - what a scope does inside the `raises` block is what these tests are about
import asyncio

import pytest

from pegaskv.runtime.tasks import TaskScope


class Recorder:
    """Tasks that write down how they ended."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def wait_for_ever(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.lines.append(f"{name} cancelled")
            raise

    async def end_slowly(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            self.lines.append(f"{name} cleaned up")


async def crash(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_block_waits_for_its_tasks() -> None:
    lines = []

    async def work(name: str) -> None:
        await turns()
        lines.append(name)

    async with TaskScope("scope") as scope:
        scope.start("a", work("a"))
        scope.start("b", work("b"))
        assert scope.running == 2
    assert lines == ["a", "b"]
    assert scope.closed


async def test_a_task_carries_the_name_of_its_scope() -> None:
    async with TaskScope("replica 3.0") as scope:
        task = scope.start("beacon", turns())
    assert task.get_name() == "replica 3.0: beacon"


async def test_start_returns_a_task_whose_result_can_be_awaited() -> None:
    async def answer() -> int:
        return 42

    async with TaskScope("scope") as scope:
        assert await scope.start("answer", answer()) == 42


async def test_a_crash_cancels_the_others_and_the_block_and_is_raised_with_the_name() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="boom") as caught:
        async with TaskScope("scope") as scope:
            scope.start("bystander", recorder.wait_for_ever("bystander"))
            scope.start("culprit", crash(ValueError("boom")))
            await recorder.wait_for_ever("block")
    assert caught.value.__notes__ == ["in task 'scope: culprit'"]
    assert recorder.lines == ["bystander cancelled", "block cancelled"]


async def test_a_crash_leaves_the_caller_uncancelled() -> None:
    with pytest.raises(ValueError, match="boom"):
        async with TaskScope("scope") as scope:
            scope.start("culprit", crash(ValueError("boom")))
            await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await turns()


async def test_a_crash_while_the_block_waits_at_its_end_is_raised() -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match="boom"):
        async with TaskScope("scope") as scope:
            scope.start("bystander", recorder.end_slowly("bystander"))
            scope.start("culprit", crash(ValueError("boom")))
    assert recorder.lines == ["bystander cleaned up"]


async def test_a_second_crash_is_a_note_on_the_first() -> None:
    async def fail_in_clean_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("second")

    with pytest.raises(ValueError, match="first") as caught:
        async with TaskScope("scope") as scope:
            scope.start("other", fail_in_clean_up())
            scope.start("culprit", crash(ValueError("first")))
    assert "task 'scope: other' failed after it: KeyError('second')" in caught.value.__notes__


async def test_an_error_in_the_block_cancels_the_tasks_and_goes_through() -> None:
    recorder = Recorder()
    with pytest.raises(LookupError):
        async with TaskScope("scope") as scope:
            scope.start("bystander", recorder.end_slowly("bystander"))
            await turns()
            raise LookupError
    assert recorder.lines == ["bystander cleaned up"]


async def test_cancellation_reaches_the_tasks_waits_for_them_and_is_not_swallowed() -> None:
    recorder = Recorder()

    async def host() -> None:
        async with TaskScope("inner") as scope:
            scope.start("task", recorder.end_slowly("task"))

    async with TaskScope("outer") as outer:
        task = outer.start("host", host())
        await turns()
        task.cancel()
    assert task.cancelled()
    assert recorder.lines == ["task cleaned up"]


async def test_a_second_cancellation_does_not_disturb_the_clean_up_of_tasks() -> None:
    recorder = Recorder()

    async def host() -> None:
        async with TaskScope("inner") as scope:
            scope.start("task", recorder.end_slowly("task"))

    async with TaskScope("outer") as outer:
        task = outer.start("host", host())
        await turns()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert recorder.lines == ["task cleaned up"]


async def test_a_timeout_around_a_scope_is_a_timeout() -> None:
    recorder = Recorder()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), TaskScope("scope") as scope:
            scope.start("task", recorder.end_slowly("task"))
            await recorder.wait_for_ever("block")
    assert recorder.lines == ["block cancelled", "task cleaned up"]


async def test_a_cancelled_task_is_no_crash() -> None:
    recorder = Recorder()
    async with TaskScope("scope") as scope:
        task = scope.start("task", recorder.wait_for_ever("task"))
        await turns()
        task.cancel()
    assert scope.crash is None


async def test_close_cancels_and_waits() -> None:
    recorder = Recorder()
    scope = TaskScope("member")
    scope.start("a", recorder.end_slowly("a"))
    scope.start("b", recorder.wait_for_ever("b"))
    await turns()
    await scope.close()
    assert scope.running == 0
    assert recorder.lines == ["b cancelled", "a cleaned up"]
    await scope.close()


async def test_a_closed_scope_starts_nothing() -> None:
    scope = TaskScope("member")
    await scope.close()
    with pytest.raises(RuntimeError, match="'late' was not started"):
        scope.start("late", turns())


async def test_close_raises_a_crash_that_nobody_was_told_of() -> None:
    scope = TaskScope("member")
    scope.start("culprit", crash(ValueError("boom")))
    await turns()
    assert scope.closed
    with pytest.raises(ValueError, match="boom"):
        await scope.close()


async def test_on_crash_is_told_at_once_and_close_is_then_quiet() -> None:
    told: list[BaseException] = []
    scope = TaskScope("member", on_crash=told.append)
    scope.start("culprit", crash(ValueError("boom")))
    await turns()
    assert [str(error) for error in told] == ["boom"]
    await scope.close()


async def test_a_cancelled_close_still_waits_for_the_tasks() -> None:
    recorder = Recorder()
    scope = TaskScope("member")
    scope.start("task", recorder.end_slowly("task"))
    await turns()
    async with TaskScope("test") as test:
        closing = test.start("close", scope.close())
        await asyncio.sleep(0)
        closing.cancel()
    assert closing.cancelled()
    assert recorder.lines == ["task cleaned up"]
    assert scope.running == 0


async def test_keep_repeats_with_a_pause_until_cancelled() -> None:
    lines = []

    async def beat() -> None:
        lines.append("beat")

    async def pause() -> None:
        lines.append("pause")
        await asyncio.sleep(0)
        if len(lines) == 6:
            await asyncio.Event().wait()

    scope = TaskScope("member")
    scope.keep("beacon", beat, pause=pause)
    await turns(10)
    await scope.close()
    assert lines == ["beat", "pause"] * 3


async def test_a_crash_of_a_kept_function_ends_the_scope() -> None:
    async def beat() -> None:
        raise ValueError("no beat")

    with pytest.raises(ValueError, match="no beat"):
        async with TaskScope("member") as scope:
            scope.keep("beacon", beat, pause=turns)
