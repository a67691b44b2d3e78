"""Who goes on next among connections that have more to handle than one turn of the loop takes.

A peer that sends without end keeps its socket readable, and the loop would read and handle
its requests before anybody else's. So a connection handles a bounded number of requests, then
waits here; one goes on in each turn of the loop, and however many wait, everybody else waits
for the share of one.

That alone leaves the loop no idle moment, and gives the threads that flush and compact what was
written the other processor: a call of somebody else waits for both. So between their turns
clients with much to do also rest, as long as others call at all (`Pace`).
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

__all__ = [
    "DECODED_BYTES_MAX",
    "FULL_READ_BYTES",
    "TURN_BYTES",
    "TURN_MESSAGES",
    "Pace",
    "Turns",
    "cut",
]

# So many requests of one connection are handled in a turn. More than a busy client has under way.
TURN_MESSAGES: Final = 256
# After so many bytes of replies it is the others' turn: a kernel takes megabytes of each at once,
# and hundreds that ask for large rows would keep the rest waiting for seconds.
TURN_BYTES: Final = 256 * 1024
# The same after a read that brought about as much as a read can: the loop would read on at once,
# and again, as fast as the peer writes.
FULL_READ_BYTES: Final = 250_000
# What is behind so many bytes of small frames is decoded in the next turn.
DECODED_BYTES_MAX: Final = 32 * 1024
# A rest is as long as this at least, since a loop's timers know whole milliseconds; what is owed
# before waits. No turn takes longer than this: then it was the clock that jumped.
_REST_US_MIN: Final = 2_000
_TURN_US_MAX: Final = 10_000


class Waiting(Protocol):
    """Whoever waits for a turn."""

    def take_turn(self) -> None:
        """Go on."""
        ...


class Pace:
    """How long large work rests, so that it has at most its share of the loop's time.

    Only while others call: `heard` is set whenever somebody did who has little to do. Then a
    turn of a millisecond is followed by a rest of three at a share of 25 percent; who is alone
    never rests. `now_us` may jump.
    """

    __slots__ = ("_owed_us", "_per_spent", "heard", "now_us", "rested_us")

    def __init__(self, now_us: Callable[[], int], share_percent: int) -> None:
        self.now_us = now_us
        self.heard = False
        self._per_spent = (100 - share_percent) / share_percent
        self._owed_us = 0.0
        # All rests so far.
        self.rested_us = 0.0

    def rest_s(self, began_us: int) -> float:
        """Return how long to rest after what began at `began_us`, in seconds; mostly 0."""
        if self.heard:
            self.heard = False
            spent_us = min(max(self.now_us() - began_us, 0), _TURN_US_MAX)
            self._owed_us += spent_us * self._per_spent
        if self._owed_us < _REST_US_MIN:
            return 0.0
        owed_us, self._owed_us = self._owed_us, 0.0
        self.rested_us += owed_us
        return owed_us / 1_000_000


class Turns:
    """A queue; each turn of the loop lets one go on, unless the pace wants a rest."""

    __slots__ = ("_began_us", "_busy", "_pace", "_waiting")

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        # A dictionary keeps its order, and who asks twice waits once.
        self._waiting: dict[Waiting, None] = {}
        # Whether a call is scheduled, and when the turn before it began.
        self._busy = False
        self._began_us = 0

    def wait(self, who: Waiting, began_us: int) -> None:
        """Call `who.take_turn` in a later turn of the loop, behind those who wait already.

        The turn that it has just had began at `began_us`.
        """
        self._waiting[who] = None
        if not self._busy:
            self._busy = True
            self._began_us = began_us
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        # What the last turn has caused is done by now too: a tick, mostly.
        rest_s = self._pace.rest_s(self._began_us)
        if rest_s:
            asyncio.get_running_loop().call_later(rest_s, self._give)
        else:
            self._give()

    def _give(self) -> None:
        if not self._waiting:
            self._busy = False
            return
        who = next(iter(self._waiting))
        del self._waiting[who]
        self._began_us = self._pace.now_us()
        try:
            who.take_turn()
        finally:
            asyncio.get_running_loop().call_soon(self._next)


def cut(frames: list[list[Any]]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Return the requests that one turn takes, and those behind them."""
    room = TURN_MESSAGES
    for number, messages in enumerate(frames):
        if len(messages) > room:
            now = frames[:number]
            if room:
                now.append(messages[:room])
            return now, [messages[room:], *frames[number + 1 :]]
        room -= len(messages)
    return frames, []
