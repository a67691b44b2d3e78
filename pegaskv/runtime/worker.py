"""One thread beside the loop, for work that blocks.

A worker runs what it is given one after another and calls back on the loop. A
queue and `call_soon_threadsafe` are all there is: an executor with futures
costs more on the path of every synced write. A disk has at least two workers,
so that a sync never waits behind a scan.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker(Protocol):
    """Runs functions in order, off the loop; the simulation runs them inline, later."""

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], Any]
    ) -> None:
        """Run `work`; then, on the loop, `done(result, None)` or `done(None, error)`."""
        ...

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` and return its result or raise its error.

        Work that has started is never abandoned: cancelling the caller leaves it running.
        """
        ...

    @property
    def pending(self) -> int:
        """How many functions wait or run."""
        ...

    async def close(self) -> None:
        """Run all that was submitted, then end the thread."""
        ...
