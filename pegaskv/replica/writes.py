"""Client writes into the open batches. On the hot path: handlers, not tasks.

Each handler checks its message, finds the replica, and adds one operation to the
open batch of the partition (a batch_* request adds one for each row). Atomic
operations are evaluated here, against the engine and all pending writes, and become
plain puts and deletes: what is logged holds results, never questions.
"""

from collections.abc import Callable
from struct import Struct
from typing import Any

from xxhash import xxh3_64_intdigest

from pegaskv.base.errors import (
    CorruptionError,
    InvalidArgument,
    InvalidData,
    RequestError,
    WrongPartition,
)
from pegaskv.base.limits import (
    BATCH_ROWS_MAX,
    HASH_KEY_BYTES_MAX,
    MUTATION_BYTES_MAX,
    MUTATION_OPERATIONS_MAX,
    SORT_KEY_BYTES_MAX,
    TTL_SECONDS_MAX,
    VALUE_BYTES_MAX,
)
from pegaskv.codec.keys import encode_key
from pegaskv.codec.mutations import OperationKind, encode_operation
from pegaskv.codec.operations import Operation
from pegaskv.codec.packing import pack
from pegaskv.codec.values import (
    ROW_HEADER_BYTES,
    expiry_from_ttl,
    is_visible,
    pack_row_header,
    row_expiry,
    seconds_since_epoch,
)
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.net.detour import Detour
from pegaskv.replica.checks import INT64_MAX, INT64_MIN, check_passes, incremented
from pegaskv.replica.fields import (
    check_integer,
    check_multi_size,
    check_row,
    check_ttl,
    explain_target,
    require_hash_key,
)
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock

__all__ = ["WriteHandlers"]

_WRITE = int(OperationKind.WRITE)
_EXPIRY_MAX = (1 << 32) - 1
_pack_length = Struct(">H").pack
_pack_operation = Struct(">IQB").pack


class WriteHandlers:
    """The handlers of all write operations, over one server's replicas."""

    def __init__(
        self,
        replicas: dict[tuple[int, int], Replica],
        closed: dict[tuple[int, int], str],
        *,
        clock: Clock,
        on_corruption: Callable[[Replica, BaseException], RequestError],
        guarded: Handler,
    ) -> None:
        self._replicas = replicas
        self._closed = closed
        self._clock = clock
        self._on_corruption = on_corruption
        self._guarded = guarded

    def handlers(self) -> dict[int, Handler]:
        """Return the handler of each operation."""
        return {
            Operation.SET: self.on_set,
            Operation.DELETE: self.on_delete,
            Operation.MULTI_SET: self.on_multi_set,
            Operation.MULTI_DELETE: self.on_multi_delete,
            Operation.INCR: self.on_incr,
            Operation.CHECK_AND_SET: self.on_check_and_set,
            Operation.CHECK_AND_MUTATE: self.on_check_and_mutate,
            Operation.BATCH_SET: self.on_batch_set,
            Operation.BATCH_DELETE: self.on_batch_delete,
        }

    def on_set(self, connection: ServerConnection, message: list[Any]) -> None:
        """One row; the hottest write, so `_add` is written out here."""
        try:
            request_id, _, _, table_id, index, hash_key, sort_key, value, ttl = message
            replica = self._replicas[table_id, index]
        except (ValueError, KeyError, TypeError):
            raise explain_target(message, 9, self._closed) from None
        if (
            type(hash_key) is not bytes
            or type(sort_key) is not bytes
            or type(value) is not bytes
            or len(hash_key) > HASH_KEY_BYTES_MAX
            or len(sort_key) > SORT_KEY_BYTES_MAX
            or len(value) > VALUE_BYTES_MAX
        ):
            check_row(hash_key, sort_key, value)
        # True and 1.0 find what 1 finds.
        if type(table_id) is not int or type(index) is not int:
            raise explain_target(message, 9, self._closed)
        if type(ttl) is not int or not 0 <= ttl <= TTL_SECONDS_MAX:
            check_ttl(ttl)
        partition_hash = xxh3_64_intdigest(hash_key or sort_key)
        if partition_hash & replica.mask != index:
            raise _wrong_partition(replica)
        batch = replica.open
        if batch is None or replica.checks_writes:
            if replica.writes_guarded:
                raise Detour(self._guarded)
            batch = replica.open_batch(len(value))
        timestamp = replica.last_timestamp_us + 1
        expiry = 0
        if ttl or replica.default_ttl:
            expiry = _expiry(replica, ttl, batch.now)
        row = pack_row_header(expiry, timestamp << 8 | replica.cluster_bits) + value
        key = _pack_length(len(hash_key)) + hash_key + sort_key
        body = pack([key, row])
        operation = _pack_operation(len(body), partition_hash, _WRITE) + body
        # Whatever may find no memory has been made: the batch takes all of it or nothing.
        replica.last_timestamp_us = timestamp
        batch.operations.append(operation)
        batch.rows += (key, row)
        batch.overlay[key] = row
        batch.replies.append((connection, [request_id, 0, 0]))
        connection.in_flight += 1
        batch.size += len(body)
        replica.writes += 1
        if batch.size >= MUTATION_BYTES_MAX or len(batch.operations) >= MUTATION_OPERATIONS_MAX:
            _limit_batch(replica)

    def on_delete(self, connection: ServerConnection, message: list[Any]) -> None:
        """One row; deleting an absent row is fine."""
        replica, (hash_key, sort_key) = self._target(message, 7)
        check_row(hash_key, sort_key)
        partition_hash = _hash_of(replica, hash_key, sort_key)
        replica.open_batch()
        _add(replica, partition_hash, [(encode_key(hash_key, sort_key), None, 0)])
        _answer(replica, connection, [message[0], 0, 0])

    def on_multi_set(self, connection: ServerConnection, message: list[Any]) -> None:
        """Rows of one hash key, atomically; of a sort key named twice the last value stays."""
        replica, (hash_key, flat, ttl) = self._target(message, 8)
        require_hash_key(hash_key)
        check_ttl(ttl)
        if type(flat) is not list or len(flat) % 2:
            raise InvalidArgument("the rows must be a flat list [sort key, value, ...]")
        size = 0
        rows: dict[bytes, tuple[bytes, int]] = {}
        for position in range(0, len(flat), 2):
            sort_key, value = flat[position], flat[position + 1]
            check_row(hash_key, sort_key, value)
            size += len(sort_key) + len(value)
            rows[sort_key] = (value, ttl)
        check_multi_size(hash_key, len(rows), size)
        partition_hash = _hash_of(replica, hash_key, b"")
        now = replica.open_batch(size).now
        _add(
            replica,
            partition_hash,
            [
                (encode_key(hash_key, sort_key), value, _expiry(replica, lifetime, now))
                for sort_key, (value, lifetime) in rows.items()
            ],
        )
        _answer(replica, connection, [message[0], 0, 0])

    def on_multi_delete(self, connection: ServerConnection, message: list[Any]) -> None:
        """Rows of one hash key, atomically; answers how many were named, there or not."""
        replica, (hash_key, sort_keys) = self._target(message, 7)
        require_hash_key(hash_key)
        if type(sort_keys) is not list:
            raise InvalidArgument("the sort keys must be a list")
        for sort_key in sort_keys:
            check_row(hash_key, sort_key)
        check_multi_size(hash_key, len(sort_keys), sum(map(len, sort_keys)))
        partition_hash = _hash_of(replica, hash_key, b"")
        replica.open_batch()
        _add(
            replica,
            partition_hash,
            [(encode_key(hash_key, sort_key), None, 0) for sort_key in dict.fromkeys(sort_keys)],
        )
        _answer(replica, connection, [message[0], 0, 0, len(sort_keys)])

    def on_incr(self, connection: ServerConnection, message: list[Any]) -> None:
        """Add to a decimal number; absent, expired and empty count as 0."""
        replica, (hash_key, sort_key, by, ttl) = self._target(message, 9)
        check_row(hash_key, sort_key)
        check_integer("the increment", by)
        if not INT64_MIN <= by <= INT64_MAX:
            raise InvalidArgument("the increment must be a signed 64-bit integer")
        check_ttl(ttl, least=-1)
        partition_hash = _hash_of(replica, hash_key, sort_key)
        replica.admit()
        now = seconds_since_epoch(self._clock.wall_us())
        row = self._current(replica, hash_key, sort_key)
        if row is not None and not is_visible(row, now):
            row = None
        try:
            new = incremented(None if row is None else row[ROW_HEADER_BYTES:], by)
        except InvalidArgument as error:
            replica.answer_after_pending(connection, connection.error(message[0], error))
            return
        expiry = row_expiry(row) if row is not None and ttl == 0 else 0
        if not expiry:
            expiry = _expiry(replica, max(ttl, 0), now)
        replica.open_batch()
        _add(replica, partition_hash, [(encode_key(hash_key, sort_key), b"%d" % new, expiry)])
        _answer(replica, connection, [message[0], 0, 0, new])

    def on_check_and_set(self, connection: ServerConnection, message: list[Any]) -> None:
        """Set a row if a row of the same hash key passes a check."""
        replica, fields = self._target(message, 13)
        hash_key, check_sort_key, check, operand, set_sort_key, value, ttl, return_value = fields
        if set_sort_key is None:
            set_sort_key = check_sort_key
        check_row(hash_key, set_sort_key, value)
        check_ttl(ttl)
        self._check_then(
            connection,
            message[0],
            replica,
            (hash_key, check_sort_key, check, operand, return_value),
            {set_sort_key: (value, ttl)},
        )

    def on_check_and_mutate(self, connection: ServerConnection, message: list[Any]) -> None:
        """Put and delete rows of one hash key if a row of it passes a check."""
        replica, fields = self._target(message, 11)
        hash_key, check_sort_key, check, operand, mutations, return_value = fields
        if type(mutations) is not list:
            raise InvalidArgument("the mutations must be a list")
        changes: dict[bytes, tuple[bytes | None, int]] = {}
        size = 0
        for mutation in mutations:
            match mutation:
                case [1 as kind, sort_key, value, ttl] if type(kind) is int:
                    check_row(hash_key, sort_key, value)
                    check_ttl(ttl)
                    change: tuple[bytes | None, int] = (value, ttl)
                case [2 as kind, sort_key] if type(kind) is int:
                    check_row(hash_key, sort_key)
                    change = (None, 0)
                case _:
                    raise InvalidArgument(
                        "a mutation is [1, sort key, value, ttl] or [2, sort key]"
                    )
            size += len(sort_key) + len(change[0] or b"")
            # The last mutation of a key wins; it also stands where it was named last.
            changes.pop(sort_key, None)
            changes[sort_key] = change
        require_hash_key(hash_key)
        check_multi_size(hash_key, len(changes), size)
        self._check_then(
            connection,
            message[0],
            replica,
            (hash_key, check_sort_key, check, operand, return_value),
            changes,
        )

    def _check_then(
        self,
        connection: ServerConnection,
        request_id: int,
        replica: Replica,
        question: tuple[Any, Any, Any, Any, Any],
        changes: dict[bytes, tuple[bytes | None, int]],
    ) -> None:
        hash_key, check_sort_key, check, operand, return_value = question
        require_hash_key(hash_key)
        check_row(hash_key, check_sort_key, operand)
        check_integer("the check's type", check)
        if type(return_value) is not bool:
            raise InvalidArgument("`return check value` must be true or false")
        partition_hash = _hash_of(replica, hash_key, b"")
        replica.admit(sum(len(value or b"") for value, _ in changes.values()))
        now = seconds_since_epoch(self._clock.wall_us())
        row = self._current(replica, hash_key, check_sort_key)
        value = row[ROW_HEADER_BYTES:] if row is not None and is_visible(row, now) else None
        seen: list[Any] = [value is not None, value] if return_value else [None, None]
        try:
            passed = check_passes(check, value, operand)
        except InvalidArgument as error:
            replica.answer_after_pending(connection, connection.error(request_id, error))
            return
        if not passed:
            replica.answer_after_pending(connection, [request_id, 0, 0, False, *seen])
            return
        replica.open_batch()
        _add(
            replica,
            partition_hash,
            [
                (
                    encode_key(hash_key, sort_key),
                    new,
                    0 if new is None else _expiry(replica, ttl, now),
                )
                for sort_key, (new, ttl) in changes.items()
            ],
        )
        _answer(replica, connection, [request_id, 0, 0, True, *seen])

    def on_batch_set(self, connection: ServerConnection, message: list[Any]) -> None:
        """Many rows of one partition, each an operation of its own."""
        replica, (flat, ttl) = self._target(message, 7)
        check_ttl(ttl)
        rows, size = _batch_rows(replica, flat, 3)
        now = replica.open_batch(size).now
        expiry = _expiry(replica, ttl, now)
        for partition_hash, key, value in rows:
            _add(replica, partition_hash, [(key, value, expiry)])
        _answer(replica, connection, [message[0], 0, 0])

    def on_batch_delete(self, connection: ServerConnection, message: list[Any]) -> None:
        """Many rows of one partition, each an operation of its own."""
        replica, (flat,) = self._target(message, 6)
        rows, size = _batch_rows(replica, flat, 2)
        replica.open_batch(size)
        for partition_hash, key, _ in rows:
            _add(replica, partition_hash, [(key, None, 0)])
        _answer(replica, connection, [message[0], 0, 0])

    def _current(self, replica: Replica, hash_key: bytes, sort_key: bytes) -> bytes | None:
        try:
            return replica.current(hash_key, sort_key)
        except CorruptionError as error:
            raise self._on_corruption(replica, error) from error

    def _target(self, message: list[Any], length: int) -> tuple[Replica, list[Any]]:
        """Return the replica that a message names, and the fields behind it."""
        try:
            replica = self._replicas[message[3], message[4]]
        except (IndexError, KeyError, TypeError):
            raise explain_target(message, length, self._closed) from None
        if len(message) != length or type(message[3]) is not int or type(message[4]) is not int:
            raise explain_target(message, length, self._closed)
        if replica.writes_guarded:
            raise Detour(self._guarded)
        return replica, message[5:]


def _batch_rows(
    replica: Replica, flat: Any, width: int
) -> tuple[list[tuple[int, bytes, bytes]], int]:
    """Check a flat list of rows; return (hash, stored key, value) of each, and their bytes."""
    if type(flat) is not list or not flat or len(flat) % width:
        raise InvalidArgument(f"the rows must be a flat list, {width} elements a row")
    if len(flat) > width * BATCH_ROWS_MAX:
        raise InvalidData(f"a batch holds at most {BATCH_ROWS_MAX} rows")
    rows = []
    size = 0
    for position in range(0, len(flat), width):
        hash_key, sort_key = flat[position], flat[position + 1]
        value = flat[position + 2] if width == 3 else b""
        check_row(hash_key, sort_key, value)
        rows.append((_hash_of(replica, hash_key, sort_key), encode_key(hash_key, sort_key), value))
        size += len(hash_key) + len(sort_key) + len(value)
    return rows, size


def _expiry(replica: Replica, ttl: int, now: int) -> int:
    """Resolve a time to live to an expiry, when the write is logged and at no other time."""
    # The clock may be wrong: what the field cannot hold is as good as for ever.
    expiry = min(expiry_from_ttl(ttl or replica.default_ttl, now), _EXPIRY_MAX)
    if expiry:
        replica.expires = True
    return expiry


def _hash_of(replica: Replica, hash_key: bytes, sort_key: bytes) -> int:
    partition_hash = xxh3_64_intdigest(hash_key or sort_key)
    if partition_hash & replica.mask != replica.index:
        raise _wrong_partition(replica)
    return partition_hash


def _wrong_partition(replica: Replica) -> RequestError:
    return WrongPartition(f"the row does not belong to partition {replica.gpid}")


def _add(
    replica: Replica, partition_hash: int, rows: list[tuple[bytes, bytes | None, int]]
) -> None:
    """Add one operation of (stored key, value or None = delete, expiry) rows to the open batch."""
    batch = replica.open
    assert batch is not None
    if batch.size >= MUTATION_BYTES_MAX or len(batch.operations) >= MUTATION_OPERATIONS_MAX:
        batch = replica.continue_batch()
    timestamp = replica.last_timestamp_us + 1
    timetag = timestamp << 8 | replica.cluster_bits
    # A delete stays as a row while the table takes part in a duplication.
    keeps = replica.proposed.keeps_tombstones
    if keeps:
        replica.expires = True
    fields: list[bytes] = []
    changes: list[bytes | None] = []
    for key, value, expiry in rows:
        if value is None:
            tombstone = pack_row_header(0, timetag | 1)
            fields += (key, tombstone)
            changes += (key, tombstone if keeps else None)
        else:
            row = pack_row_header(expiry, timetag) + value
            fields += (key, row)
            changes += (key, row)
    operation = encode_operation(_WRITE, partition_hash, fields)
    overlay = dict(zip(changes[::2], changes[1::2], strict=True))
    # Whatever may find no memory has been made: the batch takes all of it or nothing.
    replica.last_timestamp_us = timestamp
    batch.operations.append(operation)
    batch.rows += changes
    batch.overlay.update(overlay)  # type: ignore[arg-type]
    batch.size += len(operation)


def _answer(replica: Replica, connection: ServerConnection, reply: list[Any]) -> None:
    """Answer when the batch that holds the last added operation is committed."""
    batch = replica.open
    assert batch is not None
    batch.replies.append((connection, reply))
    connection.defer()
    replica.writes += 1
    if batch.size >= MUTATION_BYTES_MAX or len(batch.operations) >= MUTATION_OPERATIONS_MAX:
        _limit_batch(replica)


def _limit_batch(replica: Replica) -> None:
    """The open batch is full: what comes next goes into the next mutation."""
    batch = replica.open
    assert batch is not None
    batch.last_timestamp_us = replica.last_timestamp_us
    replica.full.append(batch)
    replica.uncommitted_bytes += batch.size
    replica.open = None
