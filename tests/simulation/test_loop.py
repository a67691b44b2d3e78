import asyncio
import time
from random import Random

import pytest

from pegaskv.runtime.tasks import TaskScope
from tests.simulation.loop import Deadlock, SimulationLoop, TimeLimit, Trace


def make(seed: int = 0, **options: float) -> SimulationLoop:
    return SimulationLoop(Random(seed), Trace(), **options)


def test_a_day_takes_no_time() -> None:
    loop = make()
    before, real = loop.now_us, time.monotonic()
    loop.run_until_complete(asyncio.sleep(86_400))
    assert loop.now_us - before == pytest.approx(86_400_000_000, abs=1_000)
    assert time.monotonic() - real < 5
    loop.close()


def test_time_is_exact_to_the_microsecond_after_many_sleeps() -> None:
    loop = make(turn_us_max=0)

    async def main() -> None:
        for _ in range(1_000):
            await asyncio.sleep(0.000_001)
            await asyncio.sleep(0.123_456)

    before = loop.now_us
    loop.run_until_complete(main())
    assert loop.now_us - before == 123_457_000
    loop.close()


def test_timers_fire_in_the_order_of_their_times() -> None:
    loop = make()
    fired: list[int] = []

    async def main() -> None:
        for delay in (30, 10, 20):
            loop.call_later(delay, fired.append, delay)
        loop.call_later(15, fired.append, 15).cancel()
        await asyncio.sleep(60)

    loop.run_until_complete(main())
    assert fired == [10, 20, 30]
    loop.close()


def order_of_ten(seed: int, shuffle: float) -> list[int]:
    loop = make(seed, shuffle=shuffle)
    order: list[int] = []

    async def main() -> None:
        for number in range(10):
            loop.call_soon(order.append, number)
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    loop.close()
    return order


def test_ready_callbacks_run_in_an_order_from_the_seed() -> None:
    orders = [order_of_ten(seed, 1.0) for seed in range(20)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) > 15
    assert orders == [order_of_ten(seed, 1.0) for seed in range(20)]


def test_without_shuffling_the_order_is_that_of_asyncio() -> None:
    assert order_of_ten(1, 0.0) == list(range(10))


def test_a_deadlock_is_reported_with_the_place_where_each_task_waits() -> None:
    loop = make()

    async def wait_for_nothing() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with TaskScope("stuck") as scope:
            scope.start("waiter", wait_for_nothing())

    task = loop.create_task(main())
    with pytest.raises(Deadlock, match=r"stuck: waiter \(-\): .*wait_for_nothing:\d+ > Event.wait"):
        loop.run_until_complete(task)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()


def test_a_task_that_spins_for_ever_meets_the_time_limit() -> None:
    loop = make()

    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    loop.limit_us = loop.now_us + 10_000
    task = loop.create_task(spin())
    with pytest.raises(TimeLimit, match="spin"):
        loop.run_until_complete(task)
    loop.limit_us = None
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.close()


def test_an_executor_runs_inline_a_little_later() -> None:
    loop = make()
    before = loop.now_us
    assert loop.run_until_complete(loop.run_in_executor(None, divmod, 7, 2)) == (3, 1)
    assert loop.now_us > before
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(loop.run_in_executor(None, divmod, 7, 0))
    loop.close()


def test_an_error_in_a_callback_is_kept() -> None:
    loop = make()

    def fail() -> None:
        raise ValueError("boom")

    async def main() -> None:
        loop.call_soon(fail)
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert len(loop.problems) == 1
    assert "ValueError('boom')" in loop.problems[0]
    loop.close()


@pytest.mark.parametrize("seed", range(5))
def test_many_cancelled_timers_are_forgotten(seed: int) -> None:
    loop = make(seed)

    async def main() -> int:
        most = 0
        for _ in range(2_000):
            async with asyncio.timeout(1_000):
                await asyncio.sleep(0)
            most = max(most, len(loop._scheduled))
        return most

    assert loop.run_until_complete(main()) < 500
    loop.close()


def test_real_sockets_are_refused() -> None:
    loop = make()
    with pytest.raises(AssertionError, match="real connection"):
        loop.run_until_complete(asyncio.open_connection("127.0.0.1", 1))
    with pytest.raises(AssertionError, match="real server"):
        loop.run_until_complete(asyncio.start_server(print, "127.0.0.1", 1))
    loop.close()


def test_two_runs_of_a_seed_have_one_trace_and_two_seeds_have_two() -> None:
    def digest(seed: int) -> str:
        loop = make(seed)

        async def work() -> None:
            for _ in range(5):
                await asyncio.sleep(0.1)

        async def main() -> None:
            async with TaskScope("test") as scope:
                for number in range(5):
                    scope.start(f"work {number}", work())

        loop.run_until_complete(main())
        loop.close()
        return loop.trace.digest()

    digests = [digest(seed) for seed in range(10)]
    assert digests == [digest(seed) for seed in range(10)]
    assert len(set(digests)) == 10
