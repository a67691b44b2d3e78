"""From winners to the log, and the clock that goes along; shared by batches and copies."""

from collections.abc import Callable
from typing import Any, Final

from pegaskv.base.errors import (
    Busy,
    ClockSkew,
    CorruptionError,
    InternalError,
    InvalidArgument,
    InvalidData,
    RequestError,
)
from pegaskv.base.limits import MUTATION_BYTES_MAX, MUTATION_OPERATIONS_MAX
from pegaskv.codec.mutations import OperationKind, encode_operation
from pegaskv.codec.values import TIMESTAMP_MAX
from pegaskv.replica.control import limit_batch
from pegaskv.replica.participation import PROGRESS_PREFIX, pack_progress
from pegaskv.replica.received_rows import Chunks, Contest
from pegaskv.replica.replica import Replica

__all__ = ["as_request_error", "check_clock", "count_contest", "current_lookup", "log_received"]

# How far ahead of the clock here a timestamp from elsewhere may be.
_AHEAD_US_MAX: Final = 300_000_000
_RECEIVED: Final = int(OperationKind.RECEIVED)
_MISSING: Final[Any] = object()


def check_clock(source_clock_us: Any, newest: bytes, wall_us: int) -> int:
    """Check the source's clock and its newest timetag; return the newest timestamp.

    Raises:
        InvalidArgument: the clock is no timestamp.
        InvalidData: it will be none for a thousand years.
        ClockSkew: it is too far ahead of the clock here.

    """
    if type(source_clock_us) is not int or source_clock_us < 0:
        raise InvalidArgument("the source's clock must be microseconds since 1970")
    if source_clock_us >= TIMESTAMP_MAX:
        raise InvalidData("the source's clock has more than 55 bits")
    newest_us = int.from_bytes(newest, "big") >> 8
    ahead_us = max(source_clock_us, newest_us) - wall_us
    if ahead_us > _AHEAD_US_MAX:
        raise ClockSkew(
            f"the source is {ahead_us // 1_000_000} s ahead of the clock of this server; at most "
            f"{_AHEAD_US_MAX // 1_000_000} s are taken",
            hint="set the clocks of both clusters",
            details=ahead_us,
        )
    return newest_us


def current_lookup(replica: Replica) -> Callable[[bytes], bytes | None]:
    """Return what finds the version of a stored key as all pending writes leave it.

    To be used at once: what is pending later is not in it.
    """
    overlays = [batch.rows for batch in (*replica.in_flight, *replica.full)]
    if replica.open is not None:
        overlays.append(replica.open.rows)
    overlays.reverse()
    overlays.append(replica.applying)
    overlays = [overlay for overlay in overlays if overlay]
    get = replica.engine.get
    missing = _MISSING

    def current(key: bytes) -> bytes | None:
        for overlay in overlays:
            row = overlay.get(key, missing)
            if row is not missing:
                return row  # type: ignore[no-any-return]
        return get(key)

    return current


def log_received(
    replica: Replica,
    won: Chunks,
    newest_us: int,
    stream: bytes = b"",
    progress: tuple[int, int] = (0, 0),
) -> None:
    """Put received rows into the open batch, or several; the stream's progress with the last.

    Each operation has a timestamp at or above those of its rows, so that whoever reads the
    log knows the clock from the timestamps of mutations alone.
    """
    last = len(won.chunks) - 1
    for number, chunk in enumerate(won.chunks):
        if number == last and stream:
            chunk[PROGRESS_PREFIX + stream] = pack_progress(*progress)
        fields = [part for pair in chunk.items() for part in pair]
        operation = encode_operation(_RECEIVED, replica.index, fields)
        batch = replica.open
        if batch is not None and (
            batch.size + len(operation) > MUTATION_BYTES_MAX
            or len(batch.operations) >= MUTATION_OPERATIONS_MAX
            or replica.last_timestamp_us + 1 < newest_us
        ):
            limit_batch(replica)
            batch = None
        if batch is None:
            replica.last_timestamp_us = max(replica.last_timestamp_us, newest_us - 1)
            batch = replica.open = replica.begin_batch()
        replica.last_timestamp_us += 1
        batch.operations.append(operation)
        batch.rows.update(chunk)
        batch.size += len(operation)
        if number == last and stream:
            batch.progress = {**(batch.progress or {}), stream: progress}
            replica.proposed.progress[stream] = progress


def as_request_error(
    replica: Replica,
    error: BaseException,
    on_corruption: Callable[[Replica, BaseException], RequestError],
) -> RequestError:
    """Return what a peer is told of an error that reading the tables met."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return Busy(f"no memory for partition {replica.gpid}", details={"retry_after_ms": 200})
    if isinstance(error, CorruptionError):
        return on_corruption(replica, error)
    return InternalError(f"reading partition {replica.gpid} failed: {error}")


def count_contest(replica: Replica, contest: Contest, rows: int) -> None:
    """Add a contest to what the replica counts."""
    replica.rows_received += rows
    replica.rows_received_lost += contest.lost
    replica.conflicts_overwritten += contest.conflicts
    replica.expires = replica.expires or contest.expires
