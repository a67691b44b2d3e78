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
    RequestError,
)
from pegaskv.base.limits import (
    HASH_KEY_BYTES_MAX,
    MUTATION_BYTES_MAX,
    MUTATION_OPERATIONS_MAX,
    SORT_KEY_BYTES_MAX,
    TTL_SECONDS_MAX,
    VALUE_BYTES_MAX,
)
from pegaskv.codec.keys import encode_key
from pegaskv.codec.mutations import OperationKind
from pegaskv.codec.operations import Operation
from pegaskv.codec.packing import pack
from pegaskv.codec.values import (
    ROW_HEADER_BYTES,
    is_visible,
    pack_row_header,
    row_expiry,
    seconds_since_epoch,
)
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.net.detour import Detour
from pegaskv.replica.checks import INT64_MAX, INT64_MIN, check_passes, incremented
from pegaskv.replica.control import limit_batch
from pegaskv.replica.fields import (
    check_integer,
    check_row,
    check_ttl,
    explain_target,
    require_hash_key,
)
from pegaskv.replica.filling import (
    add_operation,
    answer,
    batch_row_count,
    expiry_of,
    hash_of,
    pending_row,
    wrong_partition,
)
from pegaskv.replica.lane import Lane, Steps
from pegaskv.replica.large_writes import (
    Mutations,
    check_mutations,
    multi_delete,
    multi_set,
    write_batch,
)
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock

__all__ = ["WriteHandlers"]

_WRITE = int(OperationKind.WRITE)
_pack_length = Struct(">H").pack
_pack_operation = Struct(">IQB").pack
# The same with the beginning of its body: an array of two, bytes of a length below 256.
_pack_short = Struct(">IQBBBB").pack
_SHORT_BYTES = [bytes((0xC4, length)) for length in range(256)]


class WriteHandlers:
    """The handlers of all write operations, over one server's replicas."""

    def __init__(
        self,
        replicas: dict[tuple[int, int], Replica],
        closed: dict[tuple[int, int], str],
        *,
        clock: Clock,
        lane: Lane,
        on_corruption: Callable[[Replica, BaseException], RequestError],
        guarded: Handler,
    ) -> None:
        self._replicas = replicas
        self._closed = closed
        self._clock = clock
        self._lane = lane
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
            raise wrong_partition(replica)
        batch = replica.open
        if batch is None or replica.checks_writes:
            if replica.writes_guarded:
                self._guarded(connection, message)
                return
            batch = replica.open_batch(len(value))
        timestamp = replica.last_timestamp_us + 1
        expiry = 0
        if ttl or replica.default_ttl:
            expiry = expiry_of(replica, ttl, batch.now)
        row = pack_row_header(expiry, timestamp << 8 | replica.cluster_bits) + value
        key = _pack_length(len(hash_key)) + hash_key + sort_key
        # `encode_operation` of [key, row], written out.
        key_bytes, row_bytes = len(key), len(row)
        if key_bytes < 256 and row_bytes < 256:
            size = 5 + key_bytes + row_bytes
            head = _pack_short(size, partition_hash, _WRITE, 0x92, 0xC4, key_bytes)
            operation = head + key + _SHORT_BYTES[row_bytes] + row
        else:
            body = pack([key, row])
            size = len(body)
            operation = _pack_operation(size, partition_hash, _WRITE) + body
        # Whatever may find no memory has been made: the batch takes all of it or nothing.
        replica.last_timestamp_us = timestamp
        batch.operations.append(operation)
        batch.rows[key] = row
        batch.replies.append((connection, [request_id, 0, 0]))
        connection.in_flight += 1
        batch.size += size
        replica.writes += 1
        if batch.size >= MUTATION_BYTES_MAX or len(batch.operations) >= MUTATION_OPERATIONS_MAX:
            limit_batch(replica)

    def on_delete(self, connection: ServerConnection, message: list[Any]) -> None:
        """One row; deleting an absent row is fine."""
        replica, (hash_key, sort_key) = self._target(message, 7)
        check_row(hash_key, sort_key)
        partition_hash = hash_of(replica, hash_key, sort_key)
        replica.open_batch()
        add_operation(replica, partition_hash, [(encode_key(hash_key, sort_key), None, 0)])
        answer(replica, connection, [message[0], 0, 0])

    def on_multi_set(self, connection: ServerConnection, message: list[Any]) -> None:
        """Rows of one hash key, atomically; of a sort key named twice the last value stays."""
        replica, (hash_key, flat, ttl) = self._target(message, 8)
        require_hash_key(hash_key)
        check_ttl(ttl)
        if type(flat) is not list or len(flat) % 2:
            raise InvalidArgument("the rows must be a flat list [sort key, value, ...]")
        self._lane.begin(
            connection,
            connection,
            message[0],
            multi_set(connection, message[0], replica, hash_key, flat, ttl),
            rows=len(flat) // 2,
        )

    def on_multi_delete(self, connection: ServerConnection, message: list[Any]) -> None:
        """Rows of one hash key, atomically; answers how many were named, there or not."""
        replica, (hash_key, sort_keys) = self._target(message, 7)
        require_hash_key(hash_key)
        if type(sort_keys) is not list:
            raise InvalidArgument("the sort keys must be a list")
        self._lane.begin(
            connection,
            connection,
            message[0],
            multi_delete(connection, message[0], replica, hash_key, sort_keys),
            rows=len(sort_keys),
        )

    def on_incr(self, connection: ServerConnection, message: list[Any]) -> None:
        """Add to a decimal number; absent, expired and empty count as 0."""
        replica, (hash_key, sort_key, by, ttl) = self._target(message, 9)
        check_row(hash_key, sort_key)
        check_integer("the increment", by)
        if not INT64_MIN <= by <= INT64_MAX:
            raise InvalidArgument("the increment must be a signed 64-bit integer")
        check_ttl(ttl, least=-1)
        partition_hash = hash_of(replica, hash_key, sort_key)
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
            expiry = expiry_of(replica, max(ttl, 0), now)
        replica.open_batch()
        add_operation(
            replica, partition_hash, [(encode_key(hash_key, sort_key), b"%d" % new, expiry)]
        )
        answer(replica, connection, [message[0], 0, 0, new])

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
            {encode_key(hash_key, set_sort_key): (value, ttl)},
        )

    def on_check_and_mutate(self, connection: ServerConnection, message: list[Any]) -> None:
        """Put and delete rows of one hash key if a row of it passes a check."""
        replica, fields = self._target(message, 11)
        hash_key, check_sort_key, check, operand, mutations, return_value = fields
        if type(mutations) is not list:
            raise InvalidArgument("the mutations must be a list")
        require_hash_key(hash_key)
        self._lane.begin(
            connection,
            connection,
            message[0],
            self._check_and_mutate(
                connection,
                message[0],
                replica,
                (hash_key, check_sort_key, check, operand, return_value),
                mutations,
            ),
            rows=len(mutations),
        )

    def _check_and_mutate(
        self,
        connection: ServerConnection,
        request_id: int,
        replica: Replica,
        question: tuple[Any, Any, Any, Any, Any],
        mutations: list[Any],
    ) -> Steps:
        changes: Mutations = {}
        yield from check_mutations(question[0], mutations, changes)
        self._check_then(connection, request_id, replica, question, changes)
        # The lane has counted it too.
        connection.in_flight -= 1

    def _check_then(
        self,
        connection: ServerConnection,
        request_id: int,
        replica: Replica,
        question: tuple[Any, Any, Any, Any, Any],
        changes: Mutations,
    ) -> None:
        hash_key, check_sort_key, check, operand, return_value = question
        require_hash_key(hash_key)
        check_row(hash_key, check_sort_key, operand)
        check_integer("the check's type", check)
        if type(return_value) is not bool:
            raise InvalidArgument("`return check value` must be true or false")
        partition_hash = hash_of(replica, hash_key, b"")
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
        expiries = {
            ttl: expiry_of(replica, ttl, now)
            for ttl in {ttl for new, ttl in changes.values() if new is not None}
        }
        add_operation(
            replica,
            partition_hash,
            [(key, new, expiries.get(ttl, 0)) for key, (new, ttl) in changes.items()],
        )
        answer(replica, connection, [request_id, 0, 0, True, *seen])

    def on_batch_set(self, connection: ServerConnection, message: list[Any]) -> None:
        """Many rows of one partition, each an operation of its own."""
        replica, (flat, ttl) = self._target(message, 7)
        check_ttl(ttl)
        self._write_batch(connection, message[0], replica, flat, ttl)

    def on_batch_delete(self, connection: ServerConnection, message: list[Any]) -> None:
        """Many rows of one partition, each an operation of its own."""
        replica, (flat,) = self._target(message, 6)
        self._write_batch(connection, message[0], replica, flat, None)

    def _write_batch(
        self,
        connection: ServerConnection,
        request_id: int,
        replica: Replica,
        flat: Any,
        ttl: int | None,
    ) -> None:
        rows = batch_row_count(flat, 2 if ttl is None else 3)
        steps = write_batch(connection, request_id, replica, flat, ttl)
        self._lane.begin(connection, connection, request_id, steps, rows=rows)

    def _current(self, replica: Replica, hash_key: bytes, sort_key: bytes) -> bytes | None:
        try:
            return pending_row(replica, hash_key, sort_key)
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
