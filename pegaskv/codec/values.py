"""Expiry and timetag to the stored row and back.

A stored row is: expiry u32 (seconds since 2016, 0 = never), timetag u64, data;
big-endian. A timetag is microseconds << 8 | cluster id << 1 | deleted: the eight
bytes compare as bytes in last-writer-wins order.
"""

from struct import Struct
from typing import Final

from pegaskv.base.types import EPOCH_UNIX_SECONDS

__all__ = [
    "LEAST_EXPIRY",
    "ROW_HEADER_BYTES",
    "TIMESTAMP_MAX",
    "decode_row",
    "expiry_from_ttl",
    "is_deleted",
    "is_visible",
    "make_timetag",
    "pack_row_header",
    "row_data",
    "row_expiry",
    "row_timetag",
    "seconds_since_epoch",
]

_HEADER: Final = Struct(">IQ")
ROW_HEADER_BYTES: Final = _HEADER.size
# A row begins with its expiry, so those from here on expire some day.
LEAST_EXPIRY: Final = b"\x00\x00\x00\x01"

# Timestamps at or above are refused: their timetags would not fit eight bytes.
TIMESTAMP_MAX: Final = 1 << 55

# (expiry, timetag) to the twelve bytes in front of a row's data.
pack_row_header = _HEADER.pack
_unpack_header = _HEADER.unpack_from
_expiry = Struct(">I").unpack_from


def make_timetag(timestamp_us: int, cluster_id: int, *, deleted: bool = False) -> int:
    """Return the timetag of an operation at `timestamp_us` (Unix) in cluster 1 to 127."""
    return timestamp_us << 8 | cluster_id << 1 | deleted


def row_expiry(row: bytes) -> int:
    """The row's expiry in seconds since 2016, 0 = never."""
    return _expiry(row)[0]  # type: ignore[no-any-return]


def row_timetag(row: bytes) -> int:
    """The row's timetag."""
    return int.from_bytes(row[4:12], "big")


def row_data(row: bytes) -> bytes:
    """The user's value."""
    return row[ROW_HEADER_BYTES:]


def is_deleted(row: bytes) -> bool:
    """Whether the row is a tombstone."""
    return bool(row[11] & 1)


def is_visible(row: bytes, now: int) -> bool:
    """Whether the row exists for a client at `now`, in seconds since 2016."""
    expiry = _expiry(row)[0]
    return (expiry == 0 or expiry > now) and not row[11] & 1


def decode_row(row: bytes) -> tuple[int, int, bytes]:
    """Return (expiry, timetag, data)."""
    expiry, timetag = _unpack_header(row)
    return expiry, timetag, row[ROW_HEADER_BYTES:]


def seconds_since_epoch(wall_us: int) -> int:
    """Return whole seconds since 2016 for a Unix time in microseconds; 0 before.

    A machine without a battery wakes in 1970: its rows must still be storable.
    """
    return max(wall_us // 1_000_000 - EPOCH_UNIX_SECONDS, 0)


def expiry_from_ttl(ttl_seconds: int, now: int) -> int:
    """Return the expiry of a row that lives `ttl_seconds` (0 = for ever) from `now`."""
    return now + ttl_seconds if ttl_seconds > 0 else 0
