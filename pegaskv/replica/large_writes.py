"""Writes of many rows, as steps of the lane; those of a few rows are one step.

A request is checked in whole before it changes anything. A batch_* request then goes in
parts, row by row as it promises; its answer waits for the last of them. A multi-operation
is one operation of one mutation: only its checks, and the making of its stored keys, are cut
into steps. The last one takes two milliseconds for 10 000 rows.
"""

from typing import Any

from pegaskv.base.errors import InvalidArgument
from pegaskv.codec.keys import encode_key
from pegaskv.net.connection import ServerConnection
from pegaskv.replica.fields import check_multi_size, check_row, check_ttl
from pegaskv.replica.filling import (
    add_multi_delete,
    add_multi_put,
    add_operation,
    add_puts,
    answer,
    batch_rows,
    expiry_of,
    hash_of,
)
from pegaskv.replica.lane import SLICE_BYTES, SLICE_ROWS, Steps
from pegaskv.replica.replica import Replica

__all__ = [
    "Mutations",
    "Unbroken",
    "answer_deferred",
    "check_mutations",
    "multi_delete",
    "multi_set",
    "write_batch",
]

# Stored key to (value or None = delete, time to live).
Mutations = dict[bytes, tuple[bytes | None, int]]

_Rows = list[tuple[int, bytes, bytes]]


class Unbroken:
    """Sees that nothing which was put into open batches since has been refused.

    Nor may be void: another server may have led for a while.
    """

    __slots__ = ("_refused", "_replica", "_term")

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._refused = replica.batches_refused
        self._term = replica.shipping.terms

    def check(self) -> None:
        """Raise if the parts before this one are in no mutation, or may never be committed."""
        replica = self._replica
        if replica.batches_refused != self._refused or replica.shipping.terms != self._term:
            raise replica.refusal()


def answer_deferred(replica: Replica, connection: ServerConnection, reply: list[Any]) -> None:
    """Answer a request of the lane when the open batch is committed."""
    # The lane has counted it, and so will this.
    connection.in_flight -= 1
    answer(replica, connection, reply)


def write_batch(
    connection: ServerConnection,
    request_id: int,
    replica: Replica,
    flat: list[Any],
    ttl: int | None,
) -> Steps:
    """Put (or, without a time to live, delete) the rows of a flat list."""
    width = 2 if ttl is None else 3
    step = width * SLICE_ROWS
    parts: list[tuple[_Rows, int]] = []
    for begin in range(0, len(flat), step):
        if begin:
            yield
        parts += _cut(*batch_rows(replica, flat[begin : begin + step], width))
    unbroken = Unbroken(replica)
    for number, (rows, size) in enumerate(parts):
        if number:
            yield
            unbroken.check()
        batch = replica.open_batch(size)
        if ttl is None:
            for partition_hash, key, _ in rows:
                add_operation(replica, partition_hash, [(key, None, 0)])
        else:
            add_puts(replica, rows, expiry_of(replica, ttl, batch.now))
    answer_deferred(replica, connection, [request_id, 0, 0])


def _cut(rows: _Rows, size: int) -> list[tuple[_Rows, int]]:
    """Cut rows into parts of no more bytes than a step should take, or of one row."""
    if size <= SLICE_BYTES or len(rows) == 1:
        return [(rows, size)]
    parts: list[tuple[_Rows, int]] = []
    part: _Rows = []
    held = 0
    for row in rows:
        weight = len(row[1]) + len(row[2])
        if part and held + weight > SLICE_BYTES:
            parts.append((part, held))
            part, held = [], 0
        part.append(row)
        held += weight
    parts.append((part, held))
    return parts


def multi_set(
    connection: ServerConnection,
    request_id: int,
    replica: Replica,
    hash_key: bytes,
    flat: list[Any],
    ttl: int,
) -> Steps:
    """Put rows of one hash key, atomically; of a sort key named twice the last value stays."""
    size = 0
    prefix = encode_key(hash_key, b"")
    rows: dict[bytes, bytes] = {}
    for begin in range(0, len(flat), 2 * SLICE_ROWS):
        if begin:
            yield
        pairs = iter(flat[begin : begin + 2 * SLICE_ROWS])
        for sort_key, value in zip(pairs, pairs, strict=True):
            check_row(hash_key, sort_key, value)
            size += len(sort_key) + len(value)
            rows[prefix + sort_key] = value
    check_multi_size(hash_key, len(rows), size)
    partition_hash = hash_of(replica, hash_key, b"")
    expiry = expiry_of(replica, ttl, replica.open_batch(size).now)
    add_multi_put(replica, partition_hash, rows, expiry)
    answer_deferred(replica, connection, [request_id, 0, 0])


def multi_delete(
    connection: ServerConnection,
    request_id: int,
    replica: Replica,
    hash_key: bytes,
    sort_keys: list[Any],
) -> Steps:
    """Delete rows of one hash key, atomically; answers how many were named, there or not."""
    size = 0
    prefix = encode_key(hash_key, b"")
    keys: dict[bytes, None] = {}
    for begin in range(0, len(sort_keys), SLICE_ROWS):
        if begin:
            yield
        for sort_key in sort_keys[begin : begin + SLICE_ROWS]:
            check_row(hash_key, sort_key)
            size += len(sort_key)
            keys[prefix + sort_key] = None
    check_multi_size(hash_key, len(sort_keys), size)
    partition_hash = hash_of(replica, hash_key, b"")
    replica.open_batch()
    add_multi_delete(replica, partition_hash, keys)
    answer_deferred(replica, connection, [request_id, 0, 0, len(sort_keys)])


def check_mutations(hash_key: bytes, mutations: list[Any], changes: Mutations) -> Steps:
    """Check the mutations of a check_and_mutate and fill `changes` with them."""
    size = 0
    prefix = encode_key(hash_key, b"")
    for position, mutation in enumerate(mutations):
        if position and position % SLICE_ROWS == 0:
            yield
        match mutation:
            case [1 as kind, sort_key, value, ttl] if type(kind) is int:
                check_row(hash_key, sort_key, value)
                check_ttl(ttl)
                change: tuple[bytes | None, int] = (value, ttl)
            case [2 as kind, sort_key] if type(kind) is int:
                check_row(hash_key, sort_key)
                change = (None, 0)
            case _:
                raise InvalidArgument("a mutation is [1, sort key, value, ttl] or [2, sort key]")
        size += len(sort_key) + len(change[0] or b"")
        # The last mutation of a key wins; it also stands where it was named last.
        key = prefix + sort_key
        changes.pop(key, None)
        changes[key] = change
    check_multi_size(hash_key, len(changes), size)
