"""pure: from a mutation to the rows that it leaves in the engine.

The same function serves a restart's replay, a tail that is proposed again and,
later, secondaries. Its result depends on the mutation and its decree alone, so
applying a mutation twice changes nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pegaskv.base.errors import CorruptionError
from pegaskv.codec.keys import RESERVED_PREFIX
from pegaskv.codec.mutations import OperationKind, decode_mutation
from pegaskv.replica.prepare_list import Mutation
from pegaskv.storage.mutation_log import LogRecord

__all__ = [
    "DURABILITY_KEY",
    "FENCE_KEY",
    "PIN_PREFIX",
    "History",
    "control_rows",
    "mutation_rows",
    "split_history",
]

# Reserved keys, beside `STATE_KEY` of the engine.
DURABILITY_KEY: Final = RESERVED_PREFIX + b"durability"
FENCE_KEY: Final = RESERVED_PREFIX + b"fence"
PIN_PREFIX: Final = RESERVED_PREFIX + b"pin/"

_WRITE: Final = OperationKind.WRITE
_RECEIVED: Final = OperationKind.RECEIVED


def mutation_rows(payload: bytes, decree: int) -> list[bytes | None]:
    """Return the flat list [key, row, key, None = remove, ...] of a mutation, in order.

    Raises:
        UnsupportedFormat: an operation of a kind that this software does not know: the
            replica must close, never skip it.
        CorruptionError: the bytes are not a mutation.

    """
    rows: list[bytes | None] = []
    for kind, _hash, fields in decode_mutation(payload):
        if kind is _WRITE:
            for position in range(0, len(fields) - 1, 2):
                row = fields[position + 1]
                rows.append(fields[position])
                rows.append(None if row[11] & 1 else row)
        elif kind is _RECEIVED:
            rows += fields
        else:
            rows += control_rows(kind, fields, decree)
    return rows


def control_rows(kind: OperationKind, fields: list[bytes], decree: int) -> list[bytes | None]:
    """Return what an order leaves under the reserved keys.

    Raises:
        CorruptionError: the order does not carry exactly one byte string.

    """
    if len(fields) != 1 or type(fields[0]) is not bytes:
        raise CorruptionError(f"the order {kind.name} carries {fields!r}")
    if kind is OperationKind.PIN:
        return [PIN_PREFIX + fields[0], decree.to_bytes(8, "big")]
    if kind is OperationKind.UNPIN:
        return [PIN_PREFIX + fields[0], None]
    if kind is OperationKind.FENCE:
        return [FENCE_KEY, fields[0]]
    assert kind is OperationKind.DURABILITY
    return [DURABILITY_KEY, fields[0]]


@dataclass(frozen=True, slots=True)
class History:
    """What a restart found of one replica above its tables: to apply, and to propose again.

    `gap` says why the history cannot be whole, or is empty; `gap_at` is the first decree that
    is missing, the rest is what lies before it.
    """

    committed: list[LogRecord]
    tail: list[Mutation]
    gap: str = ""
    gap_at: int = 0


def split_history(valid: Iterable[LogRecord], flushed_decree: int) -> History:
    """Split a valid history (ascending decrees) at the commit point that it proves itself.

    Records at or below `flushed_decree` are in the tables already. Each record carries
    the commit point of its time; what lies above the highest of them was prepared only.
    """
    records = [record for record in valid if record.decree > flushed_decree]
    gap, gap_at = "", 0
    for place, record in enumerate(records):
        expected = flushed_decree + 1 + place
        if record.decree != expected:
            gap = f"the log lacks decrees {expected} to {record.decree - 1} of this replica"
            gap_at = expected
            records = records[:place]
            break
    commit_point = max((record.committed for record in records), default=flushed_decree)
    committed = [record for record in records if record.decree <= commit_point]
    tail = [
        Mutation(
            record.ballot,
            record.decree,
            record.first_timestamp_us,
            record.first_timestamp_us,
            record.payload,
        )
        for record in records
        if record.decree > commit_point
    ]
    return History(committed, tail, gap, gap_at)
