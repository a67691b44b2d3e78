"""The bounded queue of events in front of one machine.

Events come from connections, timers and other tasks, faster than the machine
can act on them when a disk or a peer is slow. A bound makes that seen at the
sender: who can wait, waits in `put`; who cannot, is told `Busy`, which is also
the right answer to a request.
"""

import asyncio
from typing import Generic, TypeVar

from pegaskv.base.errors import Busy

__all__ = ["Mailbox"]

Event = TypeVar("Event")


class Mailbox(Generic[Event]):
    """First in, first out; never holds more than `limit` events."""

    def __init__(self, name: str, *, limit: int) -> None:
        assert limit > 0
        self.name = name
        self.limit = limit
        self._events: asyncio.Queue[Event] = asyncio.Queue(limit)

    def __len__(self) -> int:
        return self._events.qsize()

    async def put(self, event: Event) -> None:
        """Add `event`, when there is room for it."""
        await self._events.put(event)

    def put_nowait(self, event: Event) -> None:
        """Add `event` at once. Raises Busy when the mailbox is full."""
        if self._events.full():
            raise Busy(f"{self.name} has {self.limit} events to handle already")
        self._events.put_nowait(event)

    async def get(self) -> Event:
        """Take the oldest event, when there is one."""
        return await self._events.get()
