"""`fail_mode = skip`: what the target finds invalid, and an account of what was left out.

Only rows that can never be taken are left out, one operation or one copied row at a time:
never for a clock, for space, load, rights or a version. What was counted is stored before
anything behind it is sent, so no restart forgets it or counts it twice.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from pegaskv.codec.messages_duplication import PartitionProgress, ShippedRecord
from pegaskv.codec.mutations import (
    OperationKind,
    decode_mutation,
    encode_mutation,
    encode_operation,
    mutation_timestamps,
)

__all__ = ["Skipped", "invalid_left_out"]

_KEYS_MAX: Final = 1_000
# As much of a key is kept. Of the keys so many are shown: partitions may be thousands.
_KEY_BYTES_MAX: Final = 64
_KEYS_SHOWN_MAX: Final = 5
# So many mutations without an invalid row, and they go many at once again.
_CLEAN_MAX: Final = 64


class Skipped:
    """How many operations and copied rows were left out, and the keys of the last of them.

    `isolating` says that mutations go one by one, to find those that cannot go.
    """

    def __init__(self, stored: PartitionProgress) -> None:
        self.count = stored.skipped
        # Mutations up to this one are counted, however often they are looked at.
        self.decree = stored.skipped_decree
        self._keys: deque[tuple[int, bytes]] = deque(maxlen=_KEYS_MAX)
        self._isolated = 0

    @property
    def isolating(self) -> bool:
        """Whether mutations go one by one."""
        return self._isolated > 0

    def isolate(self) -> None:
        """The target found something invalid."""
        self._isolated = _CLEAN_MAX

    def passed(self) -> None:
        """A mutation went whole."""
        self._isolated = max(0, self._isolated - 1)

    def add(self, decree: int, operations: list[list[bytes]]) -> bool:
        """These operations of a mutation were left out; whether that is new."""
        self.isolate()
        if decree <= self.decree:
            return False
        self.decree = decree
        self.count += len(operations)
        self._keys += [(decree, key[:_KEY_BYTES_MAX]) for keys in operations for key in keys]
        return True

    def add_row(self, decree: int, key: bytes) -> None:
        """A row of a copy was left out."""
        self.count += 1
        self._keys.append((decree, key[:_KEY_BYTES_MAX]))

    def keys(self) -> list[tuple[int, bytes]]:
        """The last (decree, stored key) that were left out, as far as they are shown."""
        return list(self._keys)[-_KEYS_SHOWN_MAX:]


async def invalid_left_out(
    record: ShippedRecord, is_valid: Callable[[int, bytes], Awaitable[bool]]
) -> tuple[ShippedRecord, list[list[bytes]]]:
    """Return the mutation without what is invalid, and the stored keys of each such operation.

    `is_valid` is asked with the hash of an operation and a mutation that holds it alone.
    """
    first, _ = mutation_timestamps(record.payload)
    kept = []
    left_out: list[list[bytes]] = []
    for kind, partition_hash, fields in decode_mutation(record.payload):
        operation = encode_operation(kind, partition_hash, fields)
        if kind is OperationKind.WRITE and not await is_valid(
            partition_hash, encode_mutation(first, [operation])
        ):
            left_out.append(fields[::2])
        else:
            kept.append(operation)
    if left_out:
        record = ShippedRecord(record.decree, encode_mutation(first, kept))
    return record, left_out
