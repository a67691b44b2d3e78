"""What more than one test needs: waiting for real things, free ports, groups of seeds.

Nothing else in the tests sleeps.
"""

import asyncio
import itertools
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

__all__ = ["free_port", "groups", "pause", "poll_until", "wait_until"]


def groups(first: int, *, soak: int) -> list[Any]:
    """Numbers for groups of seeds: the first ones, and in the soak all of `soak`."""
    return [
        pytest.param(number, marks=[pytest.mark.soak] if number >= first else [])
        for number in range(soak)
    ]


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


# Not ports that the system picks itself: in between, one would be given to somebody else. Not those
# of a onebox either. Each process of a test run begins elsewhere, and none is named twice.
_PORTS = range(10_000, 20_000)
_turns = itertools.count(os.getpid() * 101)


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on, and that nobody is given by chance."""
    for turn in itertools.islice(_turns, len(_PORTS)):
        port = _PORTS[turn % len(_PORTS)]
        with socket.socket() as probe:
            # Without this, an old connection of the port would be in the way.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
