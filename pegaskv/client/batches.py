"""Many rows of any hash keys: cut by partition, sent side by side, put back in order.

A part holds at most 1 000 rows and about 1 MiB. Parts are independent of each other,
so a batch is not atomic: when one fails, the others have been tried all the same, and
the error says so.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from pegaskv.base.errors import InvalidArgument, InvalidData, RequestError, Timeout, Unavailable
from pegaskv.base.limits import BATCH_ROWS_MAX
from pegaskv.client.arguments import as_hash_key, as_sort_key, as_value
from pegaskv.client.calls import Call, Calls, malformed
from pegaskv.codec.operations import Operation

__all__ = ["batch_get", "batch_write", "rows_of"]

PART_BYTES_MAX: Final = 1024 * 1024
# So many parts are under way at once: they hold the rows twice.
_PARTS_AT_ONCE: Final = 64


class _Part:
    """Rows of one partition in one request."""

    __slots__ = ("bytes", "flat", "hash", "positions")

    def __init__(self, partition_hash: int) -> None:
        self.hash = partition_hash
        self.flat: list[bytes] = []
        self.positions: list[int] = []
        self.bytes = 0


def rows_of(rows: Iterable[Sequence[Any]], width: int) -> list[tuple[bytes, ...]]:
    """Check a caller's rows: (hash key, sort key) or (hash key, sort key, value).

    Raises:
        InvalidArgument: there is none, or one of them is not such a row; the message says
            which.

    """
    names = "(hash_key, sort_key)" if width == 2 else "(hash_key, sort_key, value)"
    if isinstance(rows, str | bytes | bytearray | memoryview) or not hasattr(rows, "__iter__"):
        raise InvalidArgument(f"a batch is a list of {names}, not {type(rows).__name__}")
    checked: list[tuple[bytes, ...]] = []
    for number, row in enumerate(rows):
        if not isinstance(row, tuple | list) or len(row) != width:
            raise InvalidArgument(f"row {number} must be {names}, not {row!r:.80}")
        try:
            key = (as_hash_key(row[0]), as_sort_key(row[1]))
            checked.append(key if width == 2 else (*key, as_value(row[2])))
        except InvalidArgument as error:
            raise InvalidArgument(f"row {number}: {error.message}", hint=error.hint) from None
    if not checked:
        # As in Pegasus, and as for the other operations on many rows.
        raise InvalidArgument("the batch is empty", hint=f"name at least one {names}")
    return checked


def _cut(rows: list[tuple[bytes, ...]], mask: int) -> list[_Part]:
    """Cut rows into parts by partition, each within the bounds of a request."""
    open_parts: dict[int, _Part] = {}
    parts: list[_Part] = []
    for position, row in enumerate(rows):
        partition_hash = xxh3_64_intdigest(row[0] or row[1])
        size = sum(map(len, row))
        part = open_parts.get(partition_hash & mask)
        if (
            part is None
            or len(part.positions) >= BATCH_ROWS_MAX
            or part.bytes + size > PART_BYTES_MAX
        ):
            part = open_parts[partition_hash & mask] = _Part(partition_hash)
            parts.append(part)
        part.flat += row
        part.positions.append(position)
        part.bytes += size
    return parts


async def batch_get(
    calls: Calls, rows: list[tuple[bytes, ...]], *, timeout_ms: int
) -> list[bytes | None]:
    """Return the rows' values in order, None for absent ones."""
    values: list[bytes | None] = [None] * len(rows)
    todo = await _parts(calls, rows, timeout_ms)
    started_ms = calls.clock.monotonic_ms()
    while todo:
        parts, todo = todo[:_PARTS_AT_ONCE], todo[_PARTS_AT_ONCE:]
        made = [
            Call(
                Operation.BATCH_GET,
                part.hash,
                (part.flat,),
                timeout_ms,
                weight=part.bytes,
                started_ms=started_ms,
            )
            for part in parts
        ]
        for call, part, outcome in zip(made, parts, await calls.run_all(made), strict=True):
            if isinstance(outcome, InvalidData) and len(part.positions) > 1:
                # The values are too many bytes for one reply.
                todo += _halves(part)
                continue
            if isinstance(outcome, RequestError):
                raise outcome
            _take_values(call, part, outcome, values)
    return values


def _take_values(call: Call, part: _Part, reply: list[Any], values: list[bytes | None]) -> None:
    found = reply[2] if len(reply) > 2 else None
    if type(found) is not list or len(found) != len(part.positions):
        raise malformed(call, "it must hold one value for each row")
    for position, value in zip(part.positions, found, strict=True):
        if value is not None and type(value) is not bytes:
            raise malformed(call, "a value is bytes or nil")
        values[position] = value


def _halves(part: _Part) -> list[_Part]:
    middle = len(part.positions) // 2
    halves = []
    for span in (slice(None, middle), slice(middle, None)):
        half = _Part(part.hash)
        half.positions = part.positions[span]
        edges = [2 * edge if edge is not None else None for edge in (span.start, span.stop)]
        half.flat = part.flat[edges[0] : edges[1]]
        half.bytes = sum(map(len, half.flat))
        halves.append(half)
    return halves


async def batch_write(
    calls: Calls,
    operation: Operation,
    rows: list[tuple[bytes, ...]],
    *,
    tail: tuple[int, ...] = (),
    timeout_ms: int,
    retry_unknown: bool,
) -> None:
    """Write all rows; `tail` is what follows the rows of a request.

    Raises:
        RequestError: the first failure, after every part has ended; `maybe_applied` says
            that some rows of the parts that failed may have been written.

    """
    todo = await _parts(calls, rows, timeout_ms)
    started_ms = calls.clock.monotonic_ms()
    failures: list[tuple[_Part, RequestError]] = []
    for begin in range(0, len(todo), _PARTS_AT_ONCE):
        parts = todo[begin : begin + _PARTS_AT_ONCE]
        made = [
            Call(
                operation,
                part.hash,
                (part.flat, *tail),
                timeout_ms,
                weight=part.bytes,
                retry_unknown=retry_unknown,
                started_ms=started_ms,
            )
            for part in parts
        ]
        for part, outcome in zip(parts, await calls.run_all(made), strict=True):
            if isinstance(outcome, RequestError):
                failures.append((part, outcome))
    if failures:
        raise _failed(operation, len(rows), failures)


def _failed(
    operation: Operation, row_count: int, failures: list[tuple[_Part, RequestError]]
) -> RequestError:
    """Return the first failure, with what it means for the batch; one of unknown outcome first."""
    part, error = next(
        (
            (part, error)
            for part, error in failures
            if isinstance(error, Timeout | Unavailable) and error.maybe_applied
        ),
        failures[0],
    )
    failed = sum(len(each.positions) for each, _ in failures)
    error.message = (
        f"{operation.name.lower()}: {failed} of {row_count} rows were not written for sure, "
        f"row {part.positions[0]} the first of its part; the others were: {error.message}"
    )
    error.args = (error.message,)
    return error


async def _parts(calls: Calls, rows: list[tuple[bytes, ...]], timeout_ms: int) -> list[_Part]:
    if not rows:
        return []
    return _cut(rows, (await calls.routed(timeout_ms)).mask)
