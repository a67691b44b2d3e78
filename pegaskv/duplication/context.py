"""What a run of a duplication needs of the service around it."""

import asyncio
from random import Random
from typing import Protocol

from pegaskv.codec.messages_duplication import ProgressReport
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.runtime.clock import Clock

__all__ = ["RunContext"]


class RunContext(Protocol):
    """One for all runs of a server."""

    clock: Clock
    random: Random
    options: DuplicationOptions

    def report(self, report: ProgressReport) -> "asyncio.Future[None]":
        """Store progress at the meta server; the future ends when it is stored, or raises."""
        ...

    async def throttle(self, size: int, sent: int) -> None:
        """Wait until so many bytes may be sent, of a copy that has sent `sent` before."""
        ...

    def log_is_held_too_long(self, uuid: bytes) -> str:
        """Why a duplication must be given up for the log that is held; "" if it need not."""
        ...
