"""Removes versions that nobody can see in the background: expired rows and tombstones.

They are invisible at once; this gives their space back. A pass walks a partition in a
thread, a bounded page at a time, and what it found is removed on the loop if it is still the
same: a newer version of the key stays. Removal is not logged: a replay that brings a version
back brings it back invisible, and the next pass removes it again.

While the table takes part in a duplication such a version may still have to win against a
write that comes late. It goes when its timestamp is at or below what every outgoing
duplication has confirmed, and what every incoming one has brought in full. What a target
confirmed does not count while it has pinned its log for a duplication to here that is not
known here: that one will bring writes of before.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pegaskv.base.errors import PegasKVError
from pegaskv.base.types import Gpid
from pegaskv.codec.keys import RESERVED_PREFIX
from pegaskv.codec.values import LEAST_EXPIRY, row_expiry, seconds_since_epoch
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Engine, Snapshot

__all__ = ["InvisiblePage", "Sweeper", "find_invisible", "remove_rows", "sweep", "sweep_limit"]

_log = logging.getLogger(__name__)

# A page takes half a millisecond: the loop waits at each of its system calls while the thread has
# the interpreter, and of pages of 10 ms one call in six felt that.
_PAGE_ROWS_MAX: Final = 400
_PAGE_BYTES_MAX: Final = 400 * 1024
_PAGE_MARKS_MAX: Final = 16
_REMOVED_PER_TURN: Final = 200
_PAUSE_MS: Final = 2

# Timetags up to which invisible versions go: of no row, and of every row.
NOTHING: Final = b""
EVERYTHING: Final = b"\xff" * 8

_Rows = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class InvisiblePage:
    """What one page of a pass found; `next_key` is None at the end of the partition."""

    expired: _Rows = field(default_factory=list)
    tombstones: _Rows = field(default_factory=list)
    # Whether there are invisible versions that have to stay.
    left: bool = False
    next_key: bytes | None = None
    # The earliest expiry among the rows that are still alive, 0 when none has one.
    earliest: int = 0


def sweep_limit(replica: Replica) -> bytes:
    """Return the timetag up to which invisible versions may go.

    What was ordered counts as soon as it was proposed, and until its end is committed.
    """
    clocks: list[int] = []
    for state in (replica.proposed, replica.participation):
        # A broken one has let the log go: only its new copy knows what the target lacks.
        clocks += [
            replica.shipping.confirmed_us(uuid, replica.participation) if start_decree else 0
            for uuid, start_decree in state.pins.items()
        ]
        clocks += [_watermark_us(replica, uuid) for uuid in state.sources]
    if not clocks:
        return EVERYTHING
    limit_us = min(clocks)
    return (limit_us << 8 | 0xFF).to_bytes(8, "big") if limit_us > 0 else NOTHING


def _watermark_us(replica: Replica, uuid: bytes) -> int:
    """Return the clock up to which all writes of an incoming duplication are here; 0 = none."""
    streams = list(replica.participation.streams(uuid))
    if not streams:
        return 0
    source_count = streams[0][0].source_count
    # As many source partitions write to this one.
    expected = max(source_count // (replica.mask + 1), 1)
    if len(streams) < expected:
        return 0
    return min(clock_us for _, _, clock_us in streams)


def find_invisible(snapshot: Snapshot, start: bytes, now: int, limit: bytes) -> InvisiblePage:
    """Look at a page of rows from `start` on; `limit` is that of `sweep_limit`."""
    page = InvisiblePage()
    marks = size = 0
    for seen, (key, row) in enumerate(snapshot.iterate(start, RESERVED_PREFIX, marks=True)):
        if seen == _PAGE_ROWS_MAX or marks > _PAGE_MARKS_MAX or size >= _PAGE_BYTES_MAX:
            page.next_key = key
            break
        if not row:
            # Thousands of removed rows that cost time as well.
            marks += 1
            continue
        size += len(row)
        if row < LEAST_EXPIRY and not row[11] & 1:
            continue
        expiry = row_expiry(row)
        is_tombstone = row[11] & 1
        if is_tombstone or (expiry and expiry <= now):
            if row[4:12] > limit:
                page.left = True
            elif is_tombstone:
                page.tombstones.append((key, row))
            else:
                page.expired.append((key, row))
        elif expiry and (page.earliest == 0 or expiry < page.earliest):
            page.earliest = expiry
    return page


def remove_rows(replica: Replica, rows: _Rows) -> int:
    """Remove (key, row) pairs that are still the same from the engine; return how many.

    For rows that no client can see: it is not logged and takes no decree.
    """
    replica.apply_now()
    if replica.engine_failed is not None or replica.behind or not replica.sweepable:
        return 0
    engine = replica.engine
    gone: list[bytes | None] = []
    try:
        for key, row in rows:
            if engine.get(key) == row:
                gone += (key, None)
        if gone:
            engine.write(gone, engine.state())
            replica.forget_read(dict(rows))
    except (OSError, PegasKVError) as error:
        replica.fail_engine(error)
        return 0
    return len(gone) // 2


@dataclass(slots=True)
class Swept:
    """What a pass did: rows removed, what it left, and up to which timetag it might go."""

    expired: int = 0
    tombstones: int = 0
    left: bool = False
    earliest: int = 0
    limit: bytes = NOTHING


async def sweep(replica: Replica, *, clock: Clock, worker: Worker) -> Swept:
    """Make one pass.

    Raises:
        OSError, CorruptionError: the engine could not be read.

    """
    swept = Swept(limit=sweep_limit(replica))
    start: bytes | None = b""
    while start is not None and replica.sweepable and replica.engine_failed is None:
        now = seconds_since_epoch(clock.wall_us())
        look = partial(_look, replica.engine, start, now, swept.limit)
        page = await worker.run(look)
        if page.earliest and (swept.earliest == 0 or page.earliest < swept.earliest):
            swept.earliest = page.earliest
        swept.left = swept.left or page.left
        for rows, is_expired in ((page.expired, True), (page.tombstones, False)):
            for first in range(0, len(rows), _REMOVED_PER_TURN):
                if sweep_limit(replica) < swept.limit:
                    # The table takes part in more than when the pass began.
                    swept.left = True
                    return swept
                removed = remove_rows(replica, rows[first : first + _REMOVED_PER_TURN])
                if is_expired:
                    swept.expired += removed
                else:
                    swept.tombstones += removed
                await clock.sleep_ms(0)
        start = page.next_key
        await clock.sleep_ms(_PAUSE_MS)
    return swept


def _look(engine: Engine, start: bytes, now: int, limit: bytes) -> InvisiblePage:
    snapshot = engine.snapshot()
    try:
        return find_invisible(snapshot, start, now, limit)
    finally:
        snapshot.close()


class Sweeper:
    """Sweeps a server's replicas, each as often as its interval says and there is something."""

    def __init__(self, *, clock: Clock, worker: Worker, interval_ms: int) -> None:
        self._clock = clock
        self._worker = worker
        self._interval_ms = interval_ms
        self._due: dict[Gpid, int] = {}
        # The limit of a pass that had to leave something.
        self._left: dict[Gpid, bytes] = {}
        # One pass at a time: of two over one replica, the one that began first must not have the
        # last word on what is left there.
        self._passing = asyncio.Lock()
        self.rows_expired = 0

    def forget(self, gpid: Gpid) -> None:
        """The replica is gone."""
        self._due.pop(gpid, None)
        self._left.pop(gpid, None)

    async def sweep_due(self, replicas: list[Replica]) -> None:
        """Sweep those whose turn it is, one after another."""
        now_ms = self._clock.monotonic_ms()
        for replica in replicas:
            if (
                replica.sweepable
                and now_ms >= self._due.get(replica.gpid, 0)
                and self._has_work(replica)
            ):
                await self.sweep(replica)
                self._due[replica.gpid] = now_ms + self._interval_ms

    def _has_work(self, replica: Replica) -> bool:
        earliest = replica.earliest_expiry
        if replica.expires or (earliest and earliest <= seconds_since_epoch(self._clock.wall_us())):
            return True
        left = self._left.get(replica.gpid)
        return left is not None and sweep_limit(replica) > left

    async def sweep(self, replica: Replica) -> None:
        """Make one pass over a replica, behind the one that is under way."""
        async with self._passing:
            await self._pass(replica)

    async def _pass(self, replica: Replica) -> None:
        # What the engine has not taken yet is for the next pass.
        replica.apply_now()
        replica.expires = replica.owes_vanishing
        try:
            swept = await sweep(replica, clock=self._clock, worker=self._worker)
        except (OSError, PegasKVError) as error:
            _log.warning("the expiry sweep of %s was interrupted: %s", replica.gpid, error)
            replica.expires = True
            return
        replica.earliest_expiry = swept.earliest
        replica.tombstones_swept += swept.tombstones
        self.rows_expired += swept.expired
        if swept.left:
            self._left[replica.gpid] = swept.limit
        else:
            self._left.pop(replica.gpid, None)
