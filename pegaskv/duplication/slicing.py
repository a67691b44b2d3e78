"""pure: what of a mutation a target partition gets. Nothing is decoded.

Only a client's own operations are shipped: what came from another cluster stands in
operations of its own, which stay here, and so nothing travels in circles.
"""

from struct import Struct
from typing import Final, NamedTuple

from pegaskv.base.errors import CorruptionError
from pegaskv.codec.keys import RESERVED_PREFIX
from pegaskv.codec.mutations import OperationKind, encode_mutation

__all__ = ["Content", "content_of", "slice_for"]

_HEADER: Final = Struct(">BQI")
_OPERATION: Final = Struct(">IQB")
_WRITE: Final = int(OperationKind.WRITE)
_RECEIVED: Final = int(OperationKind.RECEIVED)
# How the body of a RECEIVED operation begins that holds its progress and no row: an array of
# two, and a reserved key of less than 256 bytes.
_PAIR: Final = b"\x92\xc4"
_RESERVED: Final = slice(3, 3 + len(RESERVED_PREFIX))


class Content(NamedTuple):
    """What a mutation holds: own operations, all of them own, and rows of other clusters."""

    own: int
    pure: bool
    received_rows: bool


def content_of(payload: bytes) -> Content:
    """Look at the kinds of its operations."""
    _version, _first, count = _HEADER.unpack_from(payload)
    position = _HEADER.size
    own = 0
    received = False
    for _ in range(count):
        length, _hash, kind = _OPERATION.unpack_from(payload, position)
        if kind == _WRITE:
            own += 1
        position += _OPERATION.size
        if kind == _RECEIVED and not received:
            start = payload[position : position + 8]
            received = not start.startswith(_PAIR) or start[_RESERVED] != RESERVED_PREFIX
        position += length
    if position != len(payload):
        raise CorruptionError("the lengths of a mutation's operations do not add up")
    return Content(own, own == count, received)


def slice_for(payload: bytes, index: int, mask: int) -> bytes:
    """Return the mutation with the own operations of target partition `index`; b"" for none.

    `mask` is the target's partition count less 1.
    """
    _version, first, count = _HEADER.unpack_from(payload)
    position = _HEADER.size
    kept: list[bytes] = []
    for _ in range(count):
        length, partition_hash, kind = _OPERATION.unpack_from(payload, position)
        end = position + _OPERATION.size + length
        if kind == _WRITE and partition_hash & mask == index:
            kept.append(payload[position:end])
        position = end
    if len(kept) == count:
        return payload
    return encode_mutation(first, kept) if kept else b""
