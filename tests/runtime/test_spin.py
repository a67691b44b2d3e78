"""A loop is kept awake for a moment, only where requests come quickly, and never for long."""

from collections.abc import Callable
from typing import Any

from pegaskv.runtime.spin import Spinner


class Loop:
    """Turns of a loop, each of which takes 10 microseconds."""

    def __init__(self) -> None:
        self.now_us = 1_000_000
        self.useful = True
        self.calls: list[Callable[[], Any]] = []
        self.spinner = Spinner(
            100,
            now_us=lambda: self.now_us,
            call_soon=self.calls.append,
            is_useful=lambda: self.useful,
        )

    def turns(self) -> int:
        """Run until the loop would sleep; how many turns that took."""
        count = 0
        while self.calls:
            self.now_us += 10
            count += 1
            self.calls.pop()()
            assert count < 1_000
        return count


def test_it_stays_awake_for_so_long_after_the_last_request() -> None:
    loop = Loop()
    loop.spinner.wake()
    # The first one after silence says nothing about the next.
    assert loop.turns() == 0
    loop.now_us += 300
    loop.spinner.wake()
    assert loop.turns() == 10
    loop.spinner.wake()
    loop.calls.pop()()
    loop.now_us += 50
    # One more on the way: still one chain of turns.
    loop.spinner.wake()
    assert len(loop.calls) == 1
    assert loop.turns() == 10


def test_requests_that_are_far_apart_cost_nothing() -> None:
    loop = Loop()
    for _ in range(5):
        loop.spinner.wake()
        assert loop.turns() == 0
        loop.now_us += 401


def test_it_ends_when_it_is_of_no_use_or_the_clock_jumps() -> None:
    loop = Loop()
    loop.spinner.wake()
    loop.spinner.wake()
    loop.useful = False
    assert loop.turns() == 1
    loop.useful = True
    loop.spinner.wake()
    loop.now_us -= 1_000_000
    assert loop.turns() == 1
