"""pure: how long a call may take and how long it pauses between attempts.

A call has one deadline, whatever it meets on its way. The first new attempt
follows at once, since most refusals only say that the routing was stale; later
ones wait 8 ms, 16 ms and so on to a second, shortened by chance so that callers
who failed together do not come back together.
"""

from random import Random
from typing import Final

__all__ = ["PAUSE_MS_MAX", "BackOff", "Deadline"]

PAUSE_MS_FIRST: Final = 8
PAUSE_MS_MAX: Final = 1_000


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

    def next_ms(self, *, at_least_ms: int = 0) -> int:
        """Return the pause before the next attempt; a server may ask for more."""
        pause = 0
        if self._attempts > 0:
            # The exponent is bounded too: 2^n of a long call would be a very long number.
            ceiling = min(PAUSE_MS_MAX, PAUSE_MS_FIRST << min(self._attempts - 1, 10))
            pause = self._random.randint(ceiling // 2, ceiling)
        self._attempts += 1
        return max(pause, at_least_ms)
