"""(hash key, sort key) to the stored key and back.

A stored key is the hash key's length (u16, big-endian), the hash key and the
sort key. So the rows of one hash key are neighbours in sort-key order, and all
rows are ordered by hash-key *length* first. Keys that begin with FF FF are the
server's own: no hash key is 65 535 bytes long.
"""

from struct import Struct
from typing import Final

__all__ = [
    "RESERVED_PREFIX",
    "decode_key",
    "encode_key",
    "end_of_prefix",
    "hash_key_range",
]

_LENGTH: Final = Struct(">H")
_pack_length = _LENGTH.pack

# Everything at or above is the server's: state, pins, progress, sources.
RESERVED_PREFIX: Final = b"\xff\xff"


def encode_key(hash_key: bytes, sort_key: bytes) -> bytes:
    """Return the stored key of a row; the hash key is at most 65 534 bytes."""
    return _pack_length(len(hash_key)) + hash_key + sort_key


def decode_key(key: bytes) -> tuple[bytes, bytes]:
    """Return (hash key, sort key) of a stored key.

    Raises:
        ValueError: `key` is not a stored key of a row.

    """
    end = 2 + int.from_bytes(key[:2], "big")
    if len(key) < end or key[:2] == RESERVED_PREFIX:
        raise ValueError(f"not the key of a row: {key[:16]!r}")
    return key[2:end], key[end:]


def end_of_prefix(prefix: bytes) -> bytes:
    """Return the first key after all keys that begin with `prefix`.

    A prefix of FF bytes alone (or an empty one) has no such key: b"" is returned.
    """
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b""
    return stripped[:-1] + bytes((stripped[-1] + 1,))


def hash_key_range(hash_key: bytes) -> tuple[bytes, bytes]:
    """Return the stored keys [first, end) that hold all rows of `hash_key`."""
    first = encode_key(hash_key, b"")
    return first, end_of_prefix(first)
