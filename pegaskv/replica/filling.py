"""How rows get into the open batch of a partition. On the hot path.

Whatever may find no memory is made first: the batch takes all of an operation or nothing.
"""

from struct import Struct
from typing import Any

from xxhash import xxh3_64_intdigest

from pegaskv.base.errors import InvalidArgument, InvalidData, RequestError, WrongPartition
from pegaskv.base.limits import BATCH_ROWS_MAX, MUTATION_BYTES_MAX, MUTATION_OPERATIONS_MAX
from pegaskv.codec.keys import encode_key
from pegaskv.codec.mutations import OperationKind, encode_operation
from pegaskv.codec.packing import pack
from pegaskv.codec.values import expiry_from_ttl, pack_row_header
from pegaskv.net.connection import ServerConnection
from pegaskv.replica.control import limit_batch
from pegaskv.replica.fields import check_row
from pegaskv.replica.replica import Replica

__all__ = [
    "Change",
    "add_multi_delete",
    "add_multi_put",
    "add_operation",
    "add_puts",
    "answer",
    "batch_row_count",
    "batch_rows",
    "expiry_of",
    "hash_of",
    "pending_row",
    "wrong_partition",
]

# Stored key, value or None = delete, expiry.
Change = tuple[bytes, bytes | None, int]

_WRITE = int(OperationKind.WRITE)
# What a row takes in memory beside its bytes, until the engine has it: thousands of tiny ones
# count for what they are.
_ROW_MEMORY = 128
_EXPIRY_MAX = (1 << 32) - 1
_pack_operation = Struct(">IQB").pack


def wrong_partition(replica: Replica) -> RequestError:
    """Return the error for a row of another partition."""
    return WrongPartition(f"the row does not belong to partition {replica.gpid}")


def hash_of(replica: Replica, hash_key: bytes, sort_key: bytes) -> int:
    """Return the hash of a row, which must be one of the partition.

    Raises:
        WrongPartition: it is not.

    """
    partition_hash = xxh3_64_intdigest(hash_key or sort_key)
    if partition_hash & replica.mask != replica.index:
        raise wrong_partition(replica)
    return partition_hash


def expiry_of(replica: Replica, ttl: int, now: int) -> int:
    """Resolve a time to live to an expiry, when the write is logged and at no other time."""
    # The clock may be wrong: what the field cannot hold is as good as for ever.
    expiry = min(expiry_from_ttl(ttl or replica.default_ttl, now), _EXPIRY_MAX)
    if expiry:
        replica.expires = True
    return expiry


def pending_row(replica: Replica, hash_key: bytes, sort_key: bytes) -> bytes | None:
    """Return the row as the last pending write leaves it: what atomic operations see."""
    key = encode_key(hash_key, sort_key)
    if replica.open is not None and key in replica.open.rows:
        return replica.open.rows[key]
    for batches in (replica.full, replica.in_flight):
        for batch in reversed(batches):
            if key in batch.rows:
                return batch.rows[key]
    return replica.get(key)


def batch_row_count(flat: Any, width: int) -> int:
    """Check the shape of a batch's flat list; return its number of rows.

    Raises:
        InvalidArgument: it is none.
        InvalidData: it has too many rows.

    """
    if type(flat) is not list or not flat or len(flat) % width:
        raise InvalidArgument(f"the rows must be a flat list, {width} elements a row")
    if len(flat) > width * BATCH_ROWS_MAX:
        raise InvalidData(f"a batch holds at most {BATCH_ROWS_MAX} rows")
    return len(flat) // width


def batch_rows(
    replica: Replica, flat: list[Any], width: int
) -> tuple[list[tuple[int, bytes, bytes]], int]:
    """Check rows of a flat list; return (hash, stored key, value) of each, and their bytes."""
    rows = []
    size = 0
    for position in range(0, len(flat), width):
        hash_key, sort_key = flat[position], flat[position + 1]
        value = flat[position + 2] if width == 3 else b""
        check_row(hash_key, sort_key, value)
        rows.append((hash_of(replica, hash_key, sort_key), encode_key(hash_key, sort_key), value))
        size += len(hash_key) + len(sort_key) + len(value)
    return rows, size


def add_puts(replica: Replica, rows: list[tuple[int, bytes, bytes]], expiry: int) -> None:
    """Add (hash, stored key, value) rows to the open batch, each an operation of its own."""
    batch = replica.open
    assert batch is not None
    for partition_hash, key, value in rows:
        if batch.size >= MUTATION_BYTES_MAX or len(batch.operations) >= MUTATION_OPERATIONS_MAX:
            batch = replica.continue_batch()
        timestamp = replica.last_timestamp_us + 1
        row = pack_row_header(expiry, timestamp << 8 | replica.cluster_bits) + value
        body = pack([key, row])
        operation = _pack_operation(len(body), partition_hash, _WRITE) + body
        replica.last_timestamp_us = timestamp
        batch.operations.append(operation)
        batch.rows[key] = row
        batch.size += len(operation)


def add_operation(replica: Replica, partition_hash: int, rows: list[Change]) -> None:
    """Add one operation to the open batch."""
    timetag = _next_timetag(replica)
    tombstone = pack_row_header(0, timetag | 1)
    gone = tombstone if _keeps_tombstones(replica) else None
    fields: list[bytes] = []
    changes: dict[bytes, bytes | None] = {}
    # Thousands of rows mostly have one expiry.
    known_expiry, header = 0, pack_row_header(0, timetag)
    for key, value, expiry in rows:
        if value is None:
            fields += (key, tombstone)
            changes[key] = gone
        else:
            if expiry != known_expiry:
                known_expiry, header = expiry, pack_row_header(expiry, timetag)
            row = header + value
            fields += (key, row)
            changes[key] = row
    _add(replica, timetag, encode_operation(_WRITE, partition_hash, fields), changes)


def add_multi_put(
    replica: Replica, partition_hash: int, rows: dict[bytes, bytes], expiry: int
) -> None:
    """Add one operation that puts rows, by stored key, with one expiry for all.

    What `add_operation` does in four times as long: nobody else is served meanwhile.
    """
    timetag = _next_timetag(replica)
    header = pack_row_header(expiry, timetag)
    stored = [header + value for value in rows.values()]
    fields = [b""] * (2 * len(rows))
    fields[::2] = rows
    fields[1::2] = stored
    operation = encode_operation(_WRITE, partition_hash, fields)
    _add(replica, timetag, operation, dict(zip(rows, stored, strict=True)))


def add_multi_delete(replica: Replica, partition_hash: int, keys: dict[bytes, None]) -> None:
    """Add one operation that deletes the rows of these stored keys, as `add_multi_put` puts."""
    timetag = _next_timetag(replica)
    tombstone = pack_row_header(0, timetag | 1)
    fields = [tombstone] * (2 * len(keys))
    fields[::2] = keys
    operation = encode_operation(_WRITE, partition_hash, fields)
    gone = tombstone if _keeps_tombstones(replica) else None
    _add(replica, timetag, operation, dict.fromkeys(keys, gone))


def _next_timetag(replica: Replica) -> int:
    """Return the timetag of the operation that `_add` will add."""
    batch = replica.open
    assert batch is not None
    if batch.size >= MUTATION_BYTES_MAX or len(batch.operations) >= MUTATION_OPERATIONS_MAX:
        replica.continue_batch()
    return (replica.last_timestamp_us + 1) << 8 | replica.cluster_bits


def _keeps_tombstones(replica: Replica) -> bool:
    """Whether a delete stays as a row: while the table takes part in a duplication."""
    keeps = replica.proposed.keeps_tombstones
    if keeps:
        replica.expires = True
    return keeps


def _add(
    replica: Replica, timetag: int, operation: bytes, changes: dict[bytes, bytes | None]
) -> None:
    batch = replica.open
    assert batch is not None
    replica.last_timestamp_us = timetag >> 8
    batch.operations.append(operation)
    batch.rows.update(changes)
    batch.size += len(operation)


def answer(replica: Replica, connection: ServerConnection, reply: list[Any]) -> None:
    """Answer when the batch that holds the last added operation is committed."""
    batch = replica.open
    assert batch is not None
    batch.replies.append((connection, reply))
    connection.defer()
    replica.writes += 1
    if batch.size >= MUTATION_BYTES_MAX or len(batch.operations) >= MUTATION_OPERATIONS_MAX:
        limit_batch(replica)
