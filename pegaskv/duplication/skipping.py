"""`fail_mode = skip`: which operations the target finds invalid, and a list of what was left out.

Only rows that can never be taken are left out, one operation at a time: never for a clock,
for space, load, rights or a version.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from pegaskv.codec.messages_duplication import ShippedRecord
from pegaskv.codec.mutations import (
    OperationKind,
    decode_mutation,
    encode_mutation,
    encode_operation,
    mutation_timestamps,
)

__all__ = ["SkippedRows", "without_invalid_rows"]

_KEYS_MAX: Final = 1_000


class SkippedRows:
    """How many operations were left out, and the keys of the last of them."""

    def __init__(self) -> None:
        self.count = 0
        self._keys: deque[tuple[int, bytes]] = deque(maxlen=_KEYS_MAX)

    def add(self, decree: int, keys: list[bytes]) -> None:
        """One operation of `decree` was left out."""
        self.count += 1
        self._keys += [(decree, key) for key in keys]

    def keys(self) -> list[tuple[int, bytes]]:
        """The last (decree, stored key) that were left out."""
        return list(self._keys)


async def without_invalid_rows(
    record: ShippedRecord,
    is_valid: Callable[[int, bytes], Awaitable[bool]],
    skipped: SkippedRows,
) -> bytes:
    """Return the mutation without the operations for which `is_valid(hash, mutation)` is false."""
    first, _ = mutation_timestamps(record.payload)
    kept = []
    left_out = False
    for kind, partition_hash, fields in decode_mutation(record.payload):
        operation = encode_operation(kind, partition_hash, fields)
        if kind is OperationKind.WRITE and not await is_valid(
            partition_hash, encode_mutation(first, [operation])
        ):
            left_out = True
            skipped.add(record.decree, fields[::2])
        else:
            kept.append(operation)
    return encode_mutation(first, kept) if left_out else record.payload
