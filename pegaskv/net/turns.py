"""Who goes on next among connections that have more to handle than one turn of the loop takes.

A peer that sends without end keeps its socket readable, and the loop would read and handle
its requests before anybody else's. So a connection handles a bounded number of requests, then
waits here; one goes on in each turn of the loop, and however many wait, everybody else waits
for the share of one.
"""

import asyncio
from typing import Any, Final, Protocol

__all__ = ["DECODED_BYTES_MAX", "FULL_READ_BYTES", "TURN_BYTES", "TURN_MESSAGES", "Turns", "cut"]

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


class Waiting(Protocol):
    """Whoever waits for a turn."""

    def take_turn(self) -> None:
        """Go on."""
        ...


class Turns:
    """A queue; each turn of the loop lets one go on."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        # A dictionary keeps its order, and who asks twice waits once.
        self._waiting: dict[Waiting, None] = {}

    def wait(self, who: Waiting) -> None:
        """Call `who.take_turn` in a later turn of the loop, behind those who wait already."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._give)
        self._waiting[who] = None

    def _give(self) -> None:
        who = next(iter(self._waiting))
        del self._waiting[who]
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._give)
        who.take_turn()


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
