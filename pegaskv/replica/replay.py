"""pure: from a mutation to the rows that it leaves in the engine.

The same function serves a restart's replay, a tail that is proposed again and,
later, secondaries. Its result depends on the mutation, its decree and what the log
has made of the partition before it, so a replay ends where the first time did.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pegaskv.codec.mutations import OperationKind, decode_mutation
from pegaskv.replica.participation import Participation
from pegaskv.replica.prepare_list import Mutation
from pegaskv.storage.log_recovery import valid_history
from pegaskv.storage.mutation_log import LogRecord

__all__ = [
    "History",
    "mutation_effects",
    "mutation_rows",
    "split_history",
    "whole_history",
]

_WRITE: Final = OperationKind.WRITE
_RECEIVED: Final = OperationKind.RECEIVED


def mutation_rows(
    payload: bytes, decree: int, participation: Participation | None = None
) -> list[bytes | None]:
    """Return the flat list [key, row, key, None = remove, ...] of a mutation, in order.

    `participation` is what the log before it has made (None: nothing), and goes along.

    Raises:
        UnsupportedFormat: an operation of a kind that this software does not know: the
            replica must close, never skip it.
        CorruptionError: the bytes are not a mutation.

    """
    return mutation_effects(
        payload, decree, Participation() if participation is None else participation
    )[0]


def mutation_effects(
    payload: bytes, decree: int, state: Participation
) -> tuple[list[bytes | None], list[tuple[OperationKind, list[bytes]]]]:
    """Return what `mutation_rows` does, and the orders of the mutation.

    Raises:
        UnsupportedFormat, CorruptionError: see there.

    """
    rows: list[bytes | None] = []
    controls: list[tuple[OperationKind, list[bytes]]] = []
    for kind, _hash, fields in decode_mutation(payload):
        if kind is _WRITE:
            if state.keeps_tombstones:
                rows += fields
                continue
            for position in range(0, len(fields) - 1, 2):
                row = fields[position + 1]
                rows.append(fields[position])
                rows.append(None if row[11] & 1 else row)
        elif kind is _RECEIVED:
            rows += fields
            state.note_received(fields)
        else:
            rows += state.obey(kind, fields, decree)
            controls.append((kind, fields))
    return rows, controls


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


def whole_history(records: Sequence[LogRecord]) -> str:
    """Why these records are not all since a replica was created; empty when they are."""
    history = list(valid_history(records))
    if not history:
        return "the log has none of its records"
    return split_history(history, 0).gap
