"""The only door to time.

Everything below a service takes `now_ms` as an argument; services hold a
`Clock`. Wall time is for timestamps and expiry alone: it may jump. Every lease,
deadline and pause counts monotonic milliseconds, which go on while the machine
is suspended.
"""

import asyncio
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """What production code knows of time; the simulation has its own."""

    def monotonic_ms(self) -> int:
        """Milliseconds that never go back and count suspension."""
        ...

    def wall_us(self) -> int:
        """Unix time in microseconds; it may jump either way."""
        ...

    async def sleep_ms(self, milliseconds: int) -> None:
        """Return after so long; 0 lets others run once."""
        ...

    def timeout_ms(self, milliseconds: int) -> asyncio.Timeout:
        """An `async with` block that raises `TimeoutError` after so long."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic_ms(self) -> int:
        """CLOCK_BOOTTIME: it goes on while the machine is suspended."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000

    def wall_us(self) -> int:
        """The wall clock."""
        return time.time_ns() // 1_000

    async def sleep_ms(self, milliseconds: int) -> None:
        """Sleep on the running loop."""
        await asyncio.sleep(milliseconds / 1_000)

    def timeout_ms(self, milliseconds: int) -> asyncio.Timeout:
        """The loop's own timeout."""
        return asyncio.timeout(milliseconds / 1_000)
