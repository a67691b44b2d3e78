"""pure: range reads and scans over a snapshot, page by page.

A page is bounded in rows, bytes and time, so it may be short or even empty while
there is more; it then carries where to go on. Expired rows, tombstones and the
server's own keys are invisible. Range reads run in a thread over a snapshot that
was taken on the loop.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from pegaskv.base.limits import PAGE_BYTES_MAX, PAGE_ROWS_MAX
from pegaskv.base.types import FilterType
from pegaskv.codec.keys import RESERVED_PREFIX, encode_key, end_of_prefix
from pegaskv.codec.operations import RangeFlag, ScanFlag
from pegaskv.codec.values import LEAST_EXPIRY, ROW_HEADER_BYTES, is_visible, row_expiry
from pegaskv.replica.checks import matches
from pegaskv.replica.fields import check_row
from pegaskv.storage.engine import Snapshot

__all__ = ["RangeRead", "ScanRead", "multi_get_keys", "multi_get_range", "scan"]

# How many rows are looked at between two looks at the clock.
_ROWS_PER_CLOCK: Final = 64
_value_of: Final = itemgetter(slice(ROW_HEADER_BYTES, None))
_flags_of: Final = itemgetter(ROW_HEADER_BYTES - 1)


@dataclass(frozen=True, slots=True)
class RangeRead:
    """A multi_get by range; limits <= 0 mean none of the caller's."""

    hash_key: bytes
    start: bytes
    stop: bytes
    flags: int
    filter_type: int
    pattern: bytes
    rows_max: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class ScanRead:
    """One page of a scan over stored keys [start, stop); limits <= 0 mean the page's own."""

    start: bytes
    stop: bytes
    flags: int
    hash_filter: int
    hash_pattern: bytes
    sort_filter: int
    sort_pattern: bytes
    value_filter: int
    value_pattern: bytes
    rows_max: int
    bytes_max: int


def multi_get_keys(
    get: Callable[[bytes], bytes | None],
    read: RangeRead,
    sort_keys: list[bytes],
    *,
    now: int,
    is_late: Callable[[], bool],
) -> tuple[bool, list[bytes], bytes | None]:
    """Return (complete, [sort key, value, ...] ascending, last key looked at unless complete).

    Of `read` only what does not concern ranges counts.

    Raises:
        InvalidArgument, InvalidData: a sort key is none.

    """
    hash_key = read.hash_key
    no_value = read.flags & RangeFlag.NO_VALUE
    for sort_key in sort_keys:
        check_row(hash_key, sort_key)
    rows_max, bytes_max = _bounded(read.rows_max, read.bytes_max)
    found: list[bytes] = []
    size = 0
    previous: bytes | None = None
    for seen, sort_key in enumerate(sorted(set(sort_keys))):
        if seen and seen % _ROWS_PER_CLOCK == 0 and is_late():
            return False, found, previous
        row = get(encode_key(hash_key, sort_key))
        if row is not None and is_visible(row, now):
            if len(found) >= 2 * rows_max or size >= bytes_max:
                return False, found, previous
            value = b"" if no_value else row[ROW_HEADER_BYTES:]
            found += (sort_key, value)
            size += len(sort_key) + len(value)
        previous = sort_key
    return True, found, None


def multi_get_range(
    snapshot: Snapshot, read: RangeRead, *, now: int, is_late: Callable[[], bool]
) -> tuple[bool, list[bytes], bytes | None]:
    """Return (complete, [sort key, value, ...] ascending, last key looked at unless complete)."""
    lower, upper = _range_bounds(read)
    if lower >= upper:
        return True, [], None
    rows_max, bytes_max = _bounded(read.rows_max, read.bytes_max)
    reverse = bool(read.flags & RangeFlag.REVERSE)
    no_value = read.flags & RangeFlag.NO_VALUE
    skip = 2 + len(read.hash_key)
    found: list[tuple[bytes, bytes]] = []
    size = 0
    complete = True
    previous: bytes | None = None
    rows = snapshot.iterate(lower, upper, reverse=reverse, marks=True)
    for seen, (key, row) in enumerate(rows, 1):
        if seen % _ROWS_PER_CLOCK == 0 and is_late():
            complete = False
            break
        sort_key = key[skip:]
        if not row:
            previous = sort_key
            if is_late():
                complete = False
                break
            continue
        if is_visible(row, now) and matches(read.filter_type, read.pattern, sort_key):
            if len(found) >= rows_max or size >= bytes_max:
                complete = False
                break
            value = b"" if no_value else row[ROW_HEADER_BYTES:]
            found.append((sort_key, value))
            size += len(sort_key) + len(value)
        previous = sort_key
    if reverse:
        found.reverse()
    return complete, [part for pair in found for part in pair], None if complete else previous


def scan(
    snapshot: Snapshot, read: ScanRead, *, now: int, is_late: Callable[[], bool]
) -> tuple[bytes | None, int, list[bytes | int]]:
    """Return (stored key to go on from or None, number of rows, the flat rows)."""
    stop = read.stop if b"" < read.stop < RESERVED_PREFIX else RESERVED_PREFIX
    if read.start >= stop:
        return None, 0, []
    rows_max, bytes_max = _bounded(read.rows_max, read.bytes_max)
    count_only = bool(read.flags & ScanFlag.COUNT_ONLY)
    if count_only:
        # Nothing is carried back: time alone bounds the page.
        rows_max = bytes_max = 1 << 62
    filtered = read.hash_filter or read.sort_filter or read.value_filter
    no_value = read.flags & ScanFlag.NO_VALUE
    with_expiry = read.flags & ScanFlag.RETURN_EXPIRY
    whole = not (filtered or count_only or no_value or with_expiry)
    found: list[bytes | int] = []
    count = size = 0
    begun = False
    for chunk in snapshot.chunks(read.start, stop):
        # A page always makes progress.
        if begun and is_late():
            return chunk[0][0], count, found
        begun = True
        if whole:
            # What the loop below does, for all of them at once.
            keys, rows = zip(*chunk, strict=True)
            more = sum(map(len, keys)) + sum(map(len, rows)) - ROW_HEADER_BYTES * len(rows)
            fits = count + len(keys) <= rows_max and size + more <= bytes_max
            if fits and _are_seen(rows):
                flat = [b""] * (2 * len(keys))
                flat[::2] = keys
                flat[1::2] = map(_value_of, rows)
                found += flat
                count += len(keys)
                size += more
                continue
        for key, row in chunk:
            if count >= rows_max or size >= bytes_max:
                return key, count, found
            if not row or ((row >= LEAST_EXPIRY or row[11] & 1) and not is_visible(row, now)):
                continue
            if filtered and not _passes(read, key, row):
                continue
            count += 1
            if count_only:
                continue
            value = b"" if no_value else row[ROW_HEADER_BYTES:]
            found.append(key)
            found.append(value)
            size += len(key) + len(value)
            if with_expiry:
                found.append(row_expiry(row))
    return None, count, found


def _are_seen(rows: tuple[bytes, ...]) -> bool:
    """Whether none of these is a mark, a tombstone, or a row that expires some day."""
    return (
        rows[-1] != b""
        and max(rows) < LEAST_EXPIRY
        and not any(flags & 1 for flags in set(map(_flags_of, rows)))
    )


def _passes(read: ScanRead, key: bytes, row: bytes) -> bool:
    middle = 2 + int.from_bytes(key[:2], "big")
    return (
        matches(read.hash_filter, read.hash_pattern, key[2:middle])
        and matches(read.sort_filter, read.sort_pattern, key[middle:])
        and (
            read.value_filter == FilterType.NO_FILTER
            or matches(read.value_filter, read.value_pattern, row[ROW_HEADER_BYTES:])
        )
    )


def _bounded(rows_max: int, bytes_max: int) -> tuple[int, int]:
    """Bring the caller's limits (<= 0 = none) under those of a page."""
    return (
        min(rows_max, PAGE_ROWS_MAX) if rows_max > 0 else PAGE_ROWS_MAX,
        min(bytes_max, PAGE_BYTES_MAX) if bytes_max > 0 else PAGE_BYTES_MAX,
    )


def _range_bounds(read: RangeRead) -> tuple[bytes, bytes]:
    """Return the stored keys [lower, upper) that the range and a prefix filter leave."""
    lower = encode_key(read.hash_key, read.start)
    if not read.flags & RangeFlag.START_INCLUSIVE:
        lower += b"\x00"
    if read.stop:
        upper = encode_key(read.hash_key, read.stop)
        if read.flags & RangeFlag.STOP_INCLUSIVE:
            upper += b"\x00"
    else:
        upper = end_of_prefix(encode_key(read.hash_key, b""))
    if read.filter_type == FilterType.MATCH_PREFIX and read.pattern:
        prefix = encode_key(read.hash_key, read.pattern)
        lower = max(lower, prefix)
        upper = min(upper, end_of_prefix(prefix))
    return lower, upper
