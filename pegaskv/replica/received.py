"""What comes in from other clusters: batches of a stream, ranges of a copy, progress.

Rows are compared with applied and pending versions here, on the leader and before they are
logged: the log holds winners and the stream's progress, in one mutation, so that a batch
counts exactly once. Winners raise the partition's clock: no later write of a client has a
timestamp at or below one that came in. What was compared with pending writes is answered
after those are committed.
"""

from collections.abc import Callable, Generator
from typing import Any, Final, NamedTuple

from pegaskv.base.errors import (
    Busy,
    DuplicationNotListed,
    InvalidArgument,
    PegasKVError,
    RequestError,
)
from pegaskv.codec.messages_duplication import progress_key
from pegaskv.codec.operations import Operation
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.replica.copied import CopiedRange
from pegaskv.replica.fields import explain_target
from pegaskv.replica.lane import Lane, Steps
from pegaskv.replica.large_writes import Unbroken
from pegaskv.replica.participation import PROGRESS_PREFIX, SourceFacts, unpack_progress
from pegaskv.replica.received_rows import (
    Contest,
    HashClass,
    Removals,
    in_parts,
    parse_batch,
    parse_page,
    parse_stream,
)
from pegaskv.replica.receiving import (
    as_request_error,
    check_clock,
    count_contest,
    current_lookup,
    log_received,
)
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker

__all__ = ["ReceivedHandlers"]

_DEFAULT_TIMEOUT_MS: Final = 30_000


# A batch of fewer bytes is handled at once.
_LITTLE_BYTES: Final = 8 * 1024


class Sent(NamedTuple):
    """A message of a stream: where it goes, which rows may be its, who sends, what it brings."""

    replica: Replica
    stream: bytes
    rows_of: HashClass
    facts: SourceFacts
    fields: list[Any]


class Ending(NamedTuple):
    """What the last part of a batch brings along."""

    uuid: bytes
    stream: bytes
    progress: tuple[int, int]


class ReceivedHandlers:
    """The handlers of what other clusters send, over one server's replicas."""

    def __init__(
        self,
        replicas: dict[tuple[int, int], Replica],
        closed: dict[tuple[int, int], str],
        *,
        clock: Clock,
        worker: Worker,
        lane: Lane,
        scans_waiting_max: int,
        on_corruption: Callable[[Replica, BaseException], RequestError],
    ) -> None:
        self._replicas = replicas
        self._closed = closed
        self._clock = clock
        self._worker = worker
        self._lane = lane
        self._scans_waiting_max = scans_waiting_max
        self._on_corruption = on_corruption

    def handlers(self) -> dict[int, Handler]:
        """Return the handler of each operation."""
        return {
            Operation.DUPLICATE: self.on_duplicate,
            Operation.COPY_RANGE: self.on_copy_range,
            Operation.DUPLICATION_PROGRESS: self.on_progress,
        }

    def on_duplicate(self, connection: ServerConnection, message: list[Any]) -> None:
        """One batch of a stream; counts once, however often it comes."""
        sent = self._sent(message, 12)
        connection.never_rest()
        steps = self._duplicate(connection, message, sent)
        # What comes later in a stream is compared with what came before.
        key = (sent.replica.gpid, sent.stream)
        if self._lane.holds(key) or _is_large(sent.fields[3]):
            self._lane.queue(key, connection, message[0], steps)
        else:
            self._lane.begin(key, connection, message[0], steps, rows=0)

    def _duplicate(self, connection: ServerConnection, message: list[Any], sent: Sent) -> Steps:
        replica, stream, rows_of, facts, fields = sent
        previous, last, source_clock_us, flat = fields
        progress, clock_us = replica.proposed.progress.get(stream, (0, 0))
        unbroken = Unbroken(replica)
        operations, newest = yield from parse_batch(
            flat,
            previous=previous,
            last=last,
            progress=progress,
            rows_of=rows_of,
            cluster_id=facts.cluster_id,
        )
        newest_us = check_clock(source_clock_us, newest, self._clock.wall_us())
        # What it was compared with may be void by now.
        unbroken.check()
        lost = 0
        if previous > progress or last <= progress:
            # Something is missing before it, or nothing is new in it.
            last = progress
        else:
            lost = yield from self._take(
                replica,
                operations,
                facts.cluster_id,
                newest_us,
                Ending(message[5], stream, (last, max(clock_us, source_clock_us))),
            )
        reply = [message[0], 0, 0, last, lost, _pinned_for(replica, facts.cluster_id)]
        # The lane has counted it, and this counts it once more when it has to wait.
        connection.in_flight -= 1
        replica.answer_after_pending(connection, reply)

    def _take(
        self,
        replica: Replica,
        operations: list[list[bytes]],
        cluster_id: int,
        newest_us: int,
        ending: Ending,
    ) -> Generator[None, None, int]:
        """Log what wins, part by part, and the stream's progress with the last; return losers.

        Each part is compared and logged in one step: no other write comes between. When a part
        is not logged the progress is not either, and the batch will come again.
        """
        parts = in_parts(operations)
        unbroken = Unbroken(replica)
        lost = 0
        for number, part in enumerate(parts, 1):
            if number > 1:
                yield
                unbroken.check()
            replica.admit_received(sum(len(row) for rows in part for row in rows))
            if ending.uuid not in replica.proposed.sources:
                raise _not_listed(replica)
            contest = Contest(current_lookup(replica), cluster_id)
            self._judge(replica, contest, part)
            if number == len(parts):
                log_received(replica, contest.won, newest_us, ending.stream, ending.progress)
            elif contest.won.chunks[0]:
                log_received(replica, contest.won, newest_us)
            count_contest(replica, contest, sum(map(len, part)) // 2)
            lost += contest.lost
        return lost

    def on_copy_range(self, connection: ServerConnection, message: list[Any]) -> None:
        """One range of a copy."""
        sent = self._sent(message, 13)
        connection.never_rest()
        if type(sent.fields[3]) is not bool:
            raise InvalidArgument("`overwrite equal` must be true or false")
        sent.replica.admit_received()
        if self._worker.pending >= self._scans_waiting_max:
            raise Busy("too many scans are waiting", details={"retry_after_ms": 50})
        self._lane.queue(
            (connection, message[0]),
            connection,
            message[0],
            self._copy(connection, message, sent),
        )

    def _copy(self, connection: ServerConnection, message: list[Any], sent: Sent) -> Steps:
        replica, stream, rows_of, facts, fields = sent
        start, stop, source_clock_us, overwrite_equal, flat = fields
        rows, newest = yield from parse_page(flat, start, stop, rows_of)
        newest_us = check_clock(source_clock_us, newest, self._clock.wall_us())
        uuid = message[5]
        watermark_us = replica.proposed.progress.get(stream, (0, 0))[1]
        stale = source_clock_us < watermark_us and not overwrite_equal
        # It is deferred anew.
        connection.in_flight -= 1
        CopiedRange(
            connection,
            message[0],
            replica,
            rows=rows,
            newest_us=newest_us,
            overwrite_equal=overwrite_equal,
            stale_until=(watermark_us << 8 | 0xFF).to_bytes(8, "big") if stale else b"",
            removals=Removals(
                rows_of,
                facts.cluster_id,
                source_clock_us,
                frozenset(row[0] for row in rows),
                start,
                stop,
            ),
            is_listed=lambda: uuid in replica.proposed.sources,
            refuse_unlisted=lambda: _not_listed(replica),
            clock=self._clock,
            worker=self._worker,
            lane=self._lane,
            give_up_at_ms=self._clock.monotonic_ms() + _time_limit_ms(message[2]),
            on_corruption=self._on_corruption,
        ).begin()

    def on_progress(self, connection: ServerConnection, message: list[Any]) -> None:
        """How far a stream has come here; what is pending does not count."""
        replica, stream, _, facts, _ = self._sent(message, 8)
        try:
            row = replica.get(PROGRESS_PREFIX + stream)
        except (PegasKVError, OSError) as error:
            raise as_request_error(replica, error, self._on_corruption) from error
        decree, clock_us = unpack_progress(row) if row is not None else (0, 0)
        pinned = _pinned_for(replica, facts.cluster_id)
        connection.out.append((message[0], 0, decree, clock_us, pinned))

    def _judge(self, replica: Replica, contest: Contest, operations: list[list[bytes]]) -> None:
        try:
            contest.judge(operations)
        except (PegasKVError, OSError, MemoryError) as error:
            raise as_request_error(replica, error, self._on_corruption) from error

    def _sent(self, message: list[Any], length: int) -> Sent:
        """Return what a message of so many fields is for.

        Raises:
            RequestError: the replica does not serve, or takes nothing from there.

        """
        try:
            replica = self._replicas[message[3], message[4]]
        except (IndexError, KeyError, TypeError):
            raise explain_target(message, length, self._closed) from None
        if len(message) != length or type(message[3]) is not int or type(message[4]) is not int:
            raise explain_target(message, length, self._closed)
        uuid, source_count, source_index = message[5:8]
        rows_of = parse_stream(uuid, source_count, source_index, replica.mask, replica.index)
        if not replica.serving:
            raise replica.refusal()
        facts = replica.proposed.sources.get(uuid)
        if facts is None:
            raise _not_listed(replica)
        for known, _, _ in replica.proposed.streams(uuid):
            if known.source_count != source_count:
                raise InvalidArgument(
                    f"the source has {known.source_count} partitions, not {source_count}"
                )
            break
        stream = progress_key(uuid, source_count, source_index)
        return Sent(replica, stream, rows_of, facts, message[8:])


def _not_listed(replica: Replica) -> RequestError:
    return DuplicationNotListed(
        f"table {replica.gpid[0]} takes nothing from this duplication: it was removed, or never "
        "ensured here",
        hint="at the source `start_dup --copy` has it listed anew, `remove_dup` ends it",
    )


def _pinned_for(replica: Replica, cluster_id: int) -> list[bytes]:
    """Return the duplications to a cluster that the log is pinned for, or may be.

    Until it has heard of them, that cluster must not forget its deletes: an older write may be
    on its way.
    """
    remotes = replica.shipping.remotes
    # 0: no order has told yet where it goes.
    return [uuid for uuid in replica.proposed.pins if remotes.get(uuid, 0) in (0, cluster_id)]


def _time_limit_ms(field: Any) -> int:
    limit = field[0] if type(field) is list and field else field
    return limit if type(limit) is int and limit > 0 else _DEFAULT_TIMEOUT_MS


def _is_large(flat: Any) -> bool:
    """Whether a batch may have many rows; its shape is not checked yet."""
    if type(flat) is not list:
        return False
    return sum(len(part) for part in flat if type(part) is bytes) > _LITTLE_BYTES
