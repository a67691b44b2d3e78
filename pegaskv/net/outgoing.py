"""Replies to many connections leave together. On the hot path.

A write wakes its reader. Where each reply is written as soon as it is made, a client with many
connections has read it and fallen asleep before the next one comes, and every write pays for
another wake-up: a tenth and more of a small read. Written one after the other, they cost one.
"""

import asyncio
from typing import Final, Protocol

__all__ = ["Outgoing"]

# So many wait for each other at most, and about so many bytes: less than a millisecond of others'
# small reads, and next to nothing in memory.
_CONNECTIONS_MAX: Final = 64
_BYTES_MAX: Final = 256 * 1024
# What a reply without a row takes.
_REPLY_BYTES: Final = 256


class Replying(Protocol):
    """A connection with replies in `out`."""

    out: list[object]
    out_bytes: int

    def flush(self) -> None:
        """Write them."""
        ...

    def abort(self) -> None:
        """Close at once."""
        ...


class Outgoing:
    """Connections whose replies are written when this turn of the loop has read its requests.

    `last` came here last; whoever finds itself there again calls alone, and writes at once.
    """

    __slots__ = ("_room", "_scheduled", "last", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Replying] = []
        self.last: Replying | None = None
        self._room = _BYTES_MAX
        self._scheduled = False

    def add(self, connection: Replying) -> None:
        """Flush `connection` at the end of this turn, or as soon as too many wait."""
        self.last = connection
        self.waiting.append(connection)
        self._room -= connection.out_bytes + _REPLY_BYTES * len(connection.out)
        if self._room < 0 or len(self.waiting) >= _CONNECTIONS_MAX:
            self.write()
        elif not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._end_turn)

    def write(self) -> None:
        """Flush those who wait; for whoever is about to hold the loop, too."""
        if not self.waiting:
            return
        waiting, self.waiting = self.waiting, []
        self._room = _BYTES_MAX
        for connection in waiting:
            try:
                connection.flush()
            except MemoryError:
                # Its peer asks again elsewhere, or later; the others have their replies.
                connection.abort()

    def forget(self, connection: Replying) -> None:
        """It has ended."""
        if self.last is connection:
            self.last = None

    def _end_turn(self) -> None:
        self._scheduled = False
        self.write()
