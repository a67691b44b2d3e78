"""pure: how long a call may take and how long it pauses between attempts.

A call has one deadline, whatever it meets on its way. The first new attempt
follows at once, since most refusals only say that the routing was stale; later
ones wait 8 ms, 16 ms and so on to a second, shortened by chance so that callers
who failed together do not come back together. Where the routing is at fault they wait a
quarter of a second at most, since a new primary serves from one moment to the next.

What all callers ask for together, the routing of a table, has a pace of its own.
"""

from random import Random
from typing import Final

__all__ = ["PAUSE_MS_MAX", "ROUTING_PAUSE_MS_MAX", "BackOff", "Deadline", "Pace"]

PAUSE_MS_FIRST: Final = 8
PAUSE_MS_MAX: Final = 1_000
ROUTING_PAUSE_MS_MAX: Final = 250
# After so long without a question the next one is the first again.
_CALM_MS: Final = 2_000


class Deadline:
    """The monotonic millisecond at which a call ends, and how long it had in all."""

    __slots__ = ("ends_ms", "timeout_ms")

    def __init__(self, *, now_ms: int, timeout_ms: int) -> None:
        self.timeout_ms = timeout_ms
        self.ends_ms = now_ms + timeout_ms

    def remaining_ms(self, *, now_ms: int) -> int:
        """Milliseconds left; 0 when it has passed."""
        return max(0, self.ends_ms - now_ms)


class BackOff:
    """The pauses of one call: 0, then 8·2^n ms, between half of that and all of it."""

    __slots__ = ("_attempts", "_random")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._attempts = 0

    def next_ms(self, *, at_least_ms: int = 0, at_most_ms: int = PAUSE_MS_MAX) -> int:
        """Return the pause before the next attempt; a server may ask for more."""
        pause = _pause_ms(self._attempts, at_most_ms, self._random)
        self._attempts += 1
        return max(pause, at_least_ms)


class Pace:
    """When something that many want may be asked again: at once, then less and less often.

    The first question after a calm time waits for nothing, and those that follow keep
    8 ms, 16 ms and so on to a quarter of a second between their beginnings.
    """

    __slots__ = ("_asked", "_next_ms", "_random")

    def __init__(self, random: Random) -> None:
        self._random = random
        self._asked = 0
        self._next_ms = 0

    def wait_ms(self, *, now_ms: int) -> int:
        """Return the pause before the next question."""
        return max(0, self._next_ms - now_ms)

    def on_asked(self, *, now_ms: int) -> None:
        """A question is asked at this time."""
        if now_ms - self._next_ms > _CALM_MS:
            self._asked = 0
        self._asked += 1
        self._next_ms = now_ms + _pause_ms(self._asked, ROUTING_PAUSE_MS_MAX, self._random)


def _pause_ms(attempts: int, at_most_ms: int, random: Random) -> int:
    if not attempts:
        return 0
    # The exponent is bounded too: 2^n of a long call would be a very long number.
    ceiling = min(at_most_ms, PAUSE_MS_FIRST << min(attempts - 1, 10))
    return random.randint(ceiling // 2, ceiling)
