"""Removes expired rows in the background.

Expired rows are invisible at once; this gives their space back. A pass walks a
partition in a thread, a bounded page at a time, and the rows that it found are
removed on the loop if they are still the same: a newer write of the key stays.
Removal is not logged: a replay that brings an expired row back brings it back
invisible, and the next pass removes it again.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pegaskv.codec.keys import RESERVED_PREFIX
from pegaskv.codec.values import row_expiry, seconds_since_epoch
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Engine, Snapshot

__all__ = ["ExpiredPage", "find_expired", "sweep"]

PAGE_ROWS_MAX: Final = 5_000
_REMOVED_PER_TURN: Final = 200
_PAUSE_MS: Final = 20


@dataclass(slots=True)
class ExpiredPage:
    """What one page of a pass found; `next_key` is None at the end of the partition."""

    expired: list[tuple[bytes, bytes]] = field(default_factory=list)
    next_key: bytes | None = None
    # The earliest expiry among the rows that are still alive, 0 when none has one.
    earliest: int = 0


def find_expired(snapshot: Snapshot, start: bytes, now: int) -> ExpiredPage:
    """Look at up to PAGE_ROWS_MAX rows from `start` on."""
    page = ExpiredPage()
    for seen, (key, row) in enumerate(snapshot.iterate(start, RESERVED_PREFIX)):
        if seen == PAGE_ROWS_MAX:
            page.next_key = key
            break
        expiry = row_expiry(row)
        if expiry and expiry <= now:
            page.expired.append((key, row))
        elif expiry and (page.earliest == 0 or expiry < page.earliest):
            page.earliest = expiry
    return page


async def sweep(replica: Replica, *, clock: Clock, worker: Worker) -> tuple[int, int]:
    """Make one pass; return (rows removed, earliest expiry that is left or 0).

    Raises:
        OSError, CorruptionError: the engine could not be read.

    """
    removed = earliest = 0
    start: bytes | None = b""
    while start is not None and replica.serving and replica.engine_failed is None:
        now = seconds_since_epoch(clock.wall_us())
        page = await worker.run(partial(_look, replica.engine, start, now))
        if page.earliest and (earliest == 0 or page.earliest < earliest):
            earliest = page.earliest
        for first in range(0, len(page.expired), _REMOVED_PER_TURN):
            removed += replica.remove_rows(page.expired[first : first + _REMOVED_PER_TURN])
            await clock.sleep_ms(0)
        start = page.next_key
        await clock.sleep_ms(_PAUSE_MS)
    return removed, earliest


def _look(engine: Engine, start: bytes, now: int) -> ExpiredPage:
    snapshot = engine.snapshot()
    try:
        return find_expired(snapshot, start, now)
    finally:
        snapshot.close()
