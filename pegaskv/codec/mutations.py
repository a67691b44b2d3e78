"""A mutation: all operations that one partition commits under one decree.

```
mutation   version u8, first timestamp u64, operation count u32, operations
operation  body length u32, hash u64, kind u8, body (msgpack)
```

Big-endian. Operation i has the timestamp *first + i*. The length and the hash
in front of each body let a duplication cut the slice of a partition without
decoding it. Kinds below 16 carry rows, the others are orders that must hold on
every replica and in every checkpoint:

| kind | body | meaning |
|---|---|---|
| WRITE | [key, row, key, row, ...] | a client's operation; the rows carry its timetag |
| RECEIVED | [key, row or nil = remove, ...] | winners of a duplicated batch and its progress |
| PIN | [uuid] | keep the log from here for this duplication, and tombstones |
| UNPIN | [uuid] or [uuid, "broken"] | that duplication is over; a broken one keeps tombstones |
| FENCE | [uuid] | no client write above this decree |
| DURABILITY | [name] | writes after this one are done by this rule |
| SOURCE | [uuid, source] | this duplication comes in from here on; tombstones are kept |
| FORGET | [uuid] | it comes in no more; its progress goes |

A mutation without operations is a barrier. A replica that meets a kind that it
does not know closes; it never skips one.
"""

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import Any, Final

from pegaskv.base.errors import CorruptionError, UnsupportedFormat, WireError
from pegaskv.base.version import MUTATION_FORMAT
from pegaskv.codec.packing import pack, unpack

__all__ = [
    "OperationKind",
    "decode_mutation",
    "encode_mutation",
    "encode_operation",
    "mutation_timestamps",
]

_HEADER: Final = Struct(">BQI")
_OPERATION: Final = Struct(">IQB")
_pack_header = _HEADER.pack
_pack_operation = _OPERATION.pack


class OperationKind(IntEnum):
    """What an operation is; the numbers are on disk."""

    WRITE = 1
    RECEIVED = 2
    PIN = 16
    UNPIN = 17
    FENCE = 18
    DURABILITY = 19
    SOURCE = 20
    FORGET = 21


# A look-up costs a tenth of the enumeration's call.
_KINDS: Final = {int(kind): kind for kind in OperationKind}


def encode_operation(kind: int, partition_hash: int, fields: list[Any]) -> bytes:
    """Return one operation; `fields` is its body as listed above."""
    body = pack(fields)
    return _pack_operation(len(body), partition_hash, kind) + body


def encode_mutation(first_timestamp_us: int, operations: list[bytes]) -> bytes:
    """Return the mutation that holds `operations`, each made by `encode_operation`."""
    return _pack_header(MUTATION_FORMAT, first_timestamp_us, len(operations)) + b"".join(operations)


def mutation_timestamps(mutation: bytes) -> tuple[int, int]:
    """Return (first timestamp, last timestamp); equal for a barrier.

    Raises:
        UnsupportedFormat: a version that this software does not know.
        CorruptionError: the mutation is cut off.

    """
    first, count = _read_header(mutation)
    return first, first + max(count - 1, 0)


def decode_mutation(mutation: bytes) -> Iterator[tuple[OperationKind, int, list[Any]]]:
    """Yield (kind, hash, body) of each operation in order.

    Raises:
        UnsupportedFormat: a version or a kind that this software does not know.
        CorruptionError: the lengths do not add up, or a body is not a list.

    """
    _first, count = _read_header(mutation)
    position = _HEADER.size
    for _ in range(count):
        if position + _OPERATION.size > len(mutation):
            raise CorruptionError("a mutation ends inside an operation")
        length, partition_hash, number = _OPERATION.unpack_from(mutation, position)
        position += _OPERATION.size
        body = mutation[position : position + length]
        if len(body) != length:
            raise CorruptionError("a mutation ends inside an operation's body")
        position += length
        kind = _KINDS.get(number)
        if kind is None:
            raise UnsupportedFormat(f"operation kind {number} is unknown here")
        try:
            fields = unpack(body, array_length_max=length)
        except WireError as error:
            # A mutation was checked before it was logged: these bytes have changed since.
            raise CorruptionError(f"an operation's body is {error}") from None
        if type(fields) is not list:
            raise CorruptionError("an operation's body is not a list")
        yield kind, partition_hash, fields
    if position != len(mutation):
        raise CorruptionError(f"{len(mutation) - position} bytes follow a mutation")


def _read_header(mutation: bytes) -> tuple[int, int]:
    if len(mutation) < _HEADER.size:
        raise CorruptionError(f"a mutation of {len(mutation)} bytes is cut off")
    version, first, count = _HEADER.unpack_from(mutation)
    if version != MUTATION_FORMAT:
        raise UnsupportedFormat(
            f"mutation version {version}; this software knows {MUTATION_FORMAT}"
        )
    return first, count
