import time

import pytest

from pegaskv.runtime.clock import SystemClock


async def test_monotonic_time_is_in_milliseconds_and_counts_suspension() -> None:
    clock = SystemClock()
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    assert before <= clock.monotonic_ms() <= before + 5_000


async def test_wall_time_is_unix_microseconds() -> None:
    clock = SystemClock()
    before = time.time_ns() // 1_000
    assert before <= clock.wall_us() <= before + 5_000_000


async def test_sleep_waits_at_least_so_long() -> None:
    clock = SystemClock()
    before = clock.monotonic_ms()
    await clock.sleep_ms(20)
    # The loop's own clock is rounded to a millisecond at either end.
    assert clock.monotonic_ms() - before >= 18


async def test_a_timeout_raises() -> None:
    clock = SystemClock()
    with pytest.raises(TimeoutError):
        async with clock.timeout_ms(10):
            await clock.sleep_ms(60_000)
