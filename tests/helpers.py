"""What more than one test needs: waiting for real things, and free ports.

Nothing else in the tests sleeps.
"""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable

__all__ = ["free_port", "pause", "poll_until", "wait_until"]


async def poll_until(
    condition: Callable[[], bool] | Callable[[], Awaitable[bool]],
    *,
    deadline_s: float = 10.0,
    what: str = "the condition",
) -> None:
    """Return when `condition()` holds; fail the test when the deadline passes first."""
    end = time.monotonic() + deadline_s
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return
        assert time.monotonic() < end, f"{what} did not come true within {deadline_s} s"
        await asyncio.sleep(0.01)


async def pause(seconds: float) -> None:
    """Let real processes live for a while: how long a fault lasts, never a way to wait."""
    await asyncio.sleep(seconds)


def wait_until(
    condition: Callable[[], bool], *, deadline_s: float = 10.0, what: str = "the condition"
) -> None:
    """The same for code without a loop."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true within {deadline_s} s"
        time.sleep(0.01)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
