"""One range of a copy: what the source has of it is taken, what it has no more goes.

The rows that are here are looked at in a thread, page by page, since the range may hold
millions that the source lacks. What a page found is compared on the loop with the versions
of that moment: writes go on meanwhile. Each page that goes is final, so a copy that is cut
off and begun again has less to do.
"""

from collections.abc import Callable
from typing import Final

from pegaskv.base.errors import PegasKVError, RequestError, Timeout
from pegaskv.base.limits import PAGE_TIME_MS_MAX
from pegaskv.net.connection import ServerConnection
from pegaskv.replica.control import call_after_pending
from pegaskv.replica.lane import Lane, Steps
from pegaskv.replica.large_writes import Unbroken
from pegaskv.replica.received_rows import (
    PAIR_BYTES,
    PART_ROWS,
    Chunks,
    Contest,
    Removals,
    in_parts,
)
from pegaskv.replica.receiving import (
    as_request_error,
    count_contest,
    current_lookup,
    log_received,
)
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Snapshot

__all__ = ["LOOKED_AT_MAX", "CopiedRange"]

# Rows that one look in the thread passes, and bytes of those that it found.
LOOKED_AT_MAX: Final = 5_000
_FOUND_BYTES_MAX: Final = 512 * 1024
_ROWS_PER_CLOCK: Final = 64

_Found = tuple[list[tuple[bytes, bytes]], bytes | None]


class CopiedRange:
    """One COPY_RANGE request, from its first look to its answer. `begin` once."""

    def __init__(
        self,
        connection: ServerConnection,
        request_id: int,
        replica: Replica,
        *,
        rows: list[list[bytes]],
        newest_us: int,
        overwrite_equal: bool,
        stale_until: bytes,
        removals: Removals,
        is_listed: Callable[[], bool],
        refuse_unlisted: Callable[[], RequestError],
        clock: Clock,
        worker: Worker,
        lane: Lane,
        give_up_at_ms: int,
        on_corruption: Callable[[Replica, BaseException], RequestError],
    ) -> None:
        self._connection = connection
        self._request_id = request_id
        self._replica = replica
        self._rows = rows
        self._newest_us = newest_us
        self._overwrite_equal = overwrite_equal
        self._stale_until = stale_until
        self._removals = removals
        self._is_listed = is_listed
        self._refuse_unlisted = refuse_unlisted
        self._clock = clock
        self._worker = worker
        self._lane = lane
        self._give_up_at_ms = give_up_at_ms
        self._on_corruption = on_corruption
        self._next_key: bytes | None = removals.start
        self._removed = 0

    def begin(self) -> None:
        """Take the request over; it is answered when all of it is committed."""
        self._connection.defer()
        self._look()

    def _look(self) -> None:
        start = self._next_key
        if start is None or start >= self._removals.end:
            self._in_turns(self._finish())
        else:
            self._replica.snapshot_then(self._submit)

    def _submit(self, snapshot: Snapshot | BaseException) -> None:
        if isinstance(snapshot, BaseException):
            self._fail(snapshot)
        else:
            self._worker.submit(lambda: self._find(snapshot), self._found)

    def _find(self, snapshot: Snapshot) -> _Found:
        """Return versions that may go, and where to look next. In the thread."""
        if self._abandoned():
            # While it waited for the thread. Those behind it may still be in time.
            snapshot.close()
            return [], self._next_key
        removals, clock = self._removals, self._clock
        started_ms = clock.monotonic_ms()
        found: list[tuple[bytes, bytes]] = []
        size = 0
        start = self._next_key
        assert start is not None
        try:
            for seen, (key, row) in enumerate(snapshot.iterate(start, removals.end, marks=True)):
                late = (
                    seen
                    and (seen % _ROWS_PER_CLOCK == 0 or not row)
                    and clock.monotonic_ms() - started_ms > PAGE_TIME_MS_MAX
                )
                if late or seen >= LOOKED_AT_MAX or size >= _FOUND_BYTES_MAX:
                    return found, key
                if row and removals.covers(key, row):
                    found.append((key, row))
                    size += len(key) + len(row)
            return found, None
        finally:
            snapshot.close()

    def _found(self, result: _Found | None, error: BaseException | None) -> None:
        if result is None:
            assert error is not None
            self._fail(error)
            return
        found, self._next_key = result
        if found:
            self._in_turns(self._remove(found))
        else:
            self._go_on()

    def _go_on(self) -> None:
        if self._next_key is not None and self._abandoned():
            self._fail(Timeout("the range has more rows to remove than the time limit allows"))
            return
        self._look()

    def _abandoned(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self._connection.closed or self._clock.monotonic_ms() > self._give_up_at_ms

    def _remove(self, found: list[tuple[bytes, bytes]]) -> Steps:
        replica = self._replica
        for begin in range(0, len(found), PART_ROWS):
            if begin:
                yield
            part = found[begin : begin + PART_ROWS]
            self._admit(sum(len(key) for key, _ in part))
            current = current_lookup(replica)
            gone = Chunks()
            count = 0
            for key, row in part:
                # A newer version came meanwhile, or somebody else has removed this one.
                if current(key) == row:
                    gone.add({key: None}, len(key) + PAIR_BYTES)
                    count += 1
            if count:
                log_received(replica, gone, 0)
            self._removed += count
            replica.rows_removed_by_copies += count
        self._go_on()

    def _finish(self) -> Steps:
        """Take the rows that the page names, and answer."""
        replica = self._replica
        unbroken = Unbroken(replica)
        lost = 0
        for number, rows in enumerate(in_parts(self._rows)):
            if number:
                yield
            unbroken.check()
            self._admit(sum(len(key) + len(row) for key, row in rows))
            contest = Contest(
                current_lookup(replica),
                self._removals.cluster_id,
                overwrite_equal=self._overwrite_equal,
                stale_until=self._stale_until,
            )
            contest.judge(rows)
            if contest.won.chunks[0]:
                log_received(replica, contest.won, self._newest_us)
            count_contest(replica, contest, len(rows))
            lost += contest.lost
        reply = [self._request_id, 0, 0, lost, self._removed]
        connection = self._connection
        if not replica.fsync:
            # The source never sends these rows again, and has no other way to hear of a power cut.
            ballot = replica.machine.ballot
            call_after_pending(
                replica, lambda: replica.after_sync(lambda: self._answer(reply, ballot))
            )
            return
        # It is deferred already, and this counts once more when it has to wait.
        connection.in_flight -= 1
        replica.answer_after_pending(connection, reply)
        connection.flush()

    def _answer(self, reply: list[int], ballot: int) -> None:
        if self._replica.serving and self._replica.machine.ballot == ballot:
            reply[2] = self._replica.machine.committed
            self._connection.finish(tuple(reply))
            self._connection.flush()
        else:
            # It was refused meanwhile, or nobody knows: the source sends it again.
            self._fail(self._replica.refusal())

    def _admit(self, size: int) -> None:
        self._replica.admit_received(size)
        if not self._is_listed():
            raise self._refuse_unlisted()

    def _in_turns(self, steps: Steps) -> None:
        """Make steps on the loop, one in a turn; what one of them raises is the answer."""
        self._lane.queue(self, self._connection, self._request_id, self._attempt(steps))

    def _attempt(self, steps: Steps) -> Steps:
        try:
            yield from steps
        except (PegasKVError, OSError, MemoryError) as error:
            self._fail(error)
        finally:
            # The request is deferred beside its steps.
            self._connection.in_flight -= 1

    def _fail(self, error: BaseException) -> None:
        request_error = as_request_error(self._replica, error, self._on_corruption)
        connection = self._connection
        connection.finish(connection.error(self._request_id, request_error))
        connection.flush()
