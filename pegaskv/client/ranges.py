"""pure: what range of stored keys a scan has to look at.

A filter that fixes the beginning of a key narrows the range, so that the server
does not look at rows which cannot pass. Stored order is by hash-key length first:
a hash-key prefix bounds the start of a scan and never its end.
"""

from typing import NamedTuple

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import SORT_KEY_BYTES_MAX
from pegaskv.base.types import FilterType
from pegaskv.client.arguments import BytesLike, as_bytes
from pegaskv.client.options import Filter, RangeOptions, ScanOptions
from pegaskv.codec.keys import encode_key, end_of_prefix, hash_key_range
from pegaskv.codec.operations import ScanFlag

__all__ = [
    "SortKeyRange",
    "check_scan_options",
    "filter_fields",
    "full_range",
    "hash_range",
    "scan_flags",
    "sort_range",
]


def check_scan_options(options: object) -> None:
    """Refuse options that are not those of a scan."""
    if not isinstance(options, ScanOptions):
        raise InvalidArgument(f"options of a scan must be ScanOptions, not {options!r}")


class SortKeyRange(NamedTuple):
    """Sort keys of one hash key; an empty `stop` is the end."""

    start: bytes
    start_inclusive: bool
    stop: bytes
    stop_inclusive: bool

    @property
    def is_empty(self) -> bool:
        """Whether no key can be inside."""
        if not self.stop:
            return False
        if self.start == self.stop:
            return not (self.start_inclusive and self.stop_inclusive)
        return self.start > self.stop


def sort_range(start: BytesLike, stop: BytesLike, options: RangeOptions) -> SortKeyRange:
    """Return the range of sort keys that a caller asked for.

    Raises:
        InvalidArgument: a bound is not bytes or text, or too long.

    """
    return SortKeyRange(
        as_bytes("start", start, SORT_KEY_BYTES_MAX),
        options.start_inclusive,
        as_bytes("stop", stop, SORT_KEY_BYTES_MAX),
        options.stop_inclusive,
    )


def hash_range(
    hash_key: bytes, wanted: SortKeyRange, sort_filter: Filter | None
) -> tuple[bytes, bytes] | None:
    """Return the stored keys [start, stop) of a scan of one hash key; None when it is empty."""
    first, end = hash_key_range(hash_key)
    start = first + wanted.start if wanted.start_inclusive else first + wanted.start + b"\x00"
    stop = end
    if wanted.stop:
        stop = first + wanted.stop + (b"\x00" if wanted.stop_inclusive else b"")
    if sort_filter is not None and sort_filter.pattern:
        fixed = first + sort_filter.pattern
        if sort_filter.type == FilterType.MATCH_PREFIX:
            start, stop = max(start, fixed), min(stop, end_of_prefix(fixed))
        elif sort_filter.type == FilterType.MATCH_EXACT:
            start, stop = max(start, fixed), min(stop, fixed + b"\x00")
    return (start, stop) if start < stop else None


def full_range(hash_filter: Filter | None) -> tuple[bytes, bytes]:
    """Return the stored keys [start, stop) of a scan of all hash keys; empty stop = the end."""
    if hash_filter is not None and hash_filter.pattern:
        if hash_filter.type == FilterType.MATCH_EXACT:
            return hash_key_range(hash_filter.pattern)
        if hash_filter.type == FilterType.MATCH_PREFIX:
            return encode_key(hash_filter.pattern, b""), b""
    return b"", b""


def filter_fields(wanted: Filter | None) -> tuple[int, bytes]:
    """Return (type, pattern) as they travel."""
    return (int(wanted.type), wanted.pattern) if wanted is not None else (0, b"")


def scan_flags(options: ScanOptions, *, count_only: bool = False) -> int:
    """Return the flags of SCAN."""
    flags = ScanFlag(0)
    if options.no_value:
        flags |= ScanFlag.NO_VALUE
    if options.return_expire:
        flags |= ScanFlag.RETURN_EXPIRY
    if count_only:
        flags |= ScanFlag.COUNT_ONLY
    return int(flags)
