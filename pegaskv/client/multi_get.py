"""Reads rows of one hash key, following the server's pages up to the caller's limit.

A page ends where the caller's limit or the server's own (1 000 rows, 1 MiB, 20 ms)
is reached. It then tells the last key that was looked at, and the next page goes on
behind it, or before it when the range is read in reverse.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from xxhash import xxh3_64_intdigest

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import OPERATION_ROWS_MAX
from pegaskv.client.arguments import weight_of
from pegaskv.client.calls import Call, Calls, malformed
from pegaskv.client.options import RangeOptions
from pegaskv.client.ranges import SortKeyRange, filter_fields
from pegaskv.codec.operations import Operation, RangeFlag

__all__ = ["RangeRead", "read_pages"]

_Page = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class RangeRead:
    """What is still to be read: `keys` (ascending), or `wanted` when that is None."""

    hash_key: bytes
    keys: list[bytes] | None
    wanted: SortKeyRange
    options: RangeOptions
    timeout_ms: int

    @property
    def reverse(self) -> bool:
        """Whether the range is read from its end; keys that are named are not."""
        return self.options.reverse and self.keys is None

    def behind(self, last: bytes) -> "RangeRead | None":
        """Return what is left after `last` was looked at, or None when nothing is."""
        if self.keys is not None:
            left = [key for key in self.keys if key > last]
            return replace(self, keys=left) if left else None
        if not self.reverse:
            return replace(self, wanted=self.wanted._replace(start=last, start_inclusive=False))
        # An empty stop would mean the end; before the empty key there is nothing.
        if not last:
            return None
        return replace(self, wanted=self.wanted._replace(stop=last, stop_inclusive=False))

    def makes_progress(self, last: Any) -> bool:
        """Whether a page that ended at `last` leaves less to read than there was."""
        if type(last) is not bytes:
            return False
        if self.keys is not None:
            return last >= self.keys[0]
        start, start_inclusive, stop, stop_inclusive = self.wanted
        if self.reverse:
            return not stop or last < stop or (stop_inclusive and last == stop)
        return last > start or (start_inclusive and last == start)


async def read_pages(
    calls: Calls, read: RangeRead, max_count: int, max_bytes: int
) -> tuple[_Page, bool]:
    """Return (rows in sort-key order, complete); limits of 0 or less are none.

    Raises:
        InvalidArgument: a limit is no whole number.
        RequestError: a page could not be read.

    """
    for name, limit in (("max_count", max_count), ("max_bytes", max_bytes)):
        if type(limit) is not int:
            raise InvalidArgument(f"{name} must be a whole number, not {limit!r}")
    if read.keys is None and read.wanted.is_empty:
        return [], True
    rows_left = max_count if 0 < max_count < 1 << 62 else 1 << 62
    bytes_left = max_bytes if 0 < max_bytes < 1 << 62 else 1 << 62
    pages: list[_Page] = []
    rest: RangeRead | None = read
    started_ms: int | None = None
    while rest is not None and rows_left > 0 and bytes_left > 0:
        call = _call(rest, rows_left, bytes_left)
        # All pages share one deadline.
        call.started_ms = started_ms
        reply = await calls.send(call)
        started_ms = call.started_ms
        complete, page, last = _read(call, reply, rest)
        pages.append(page)
        rows_left -= len(page)
        bytes_left -= sum(len(key) + len(value) for key, value in page)
        if not complete:
            rest = rest.behind(last)
        elif rest.keys is not None and len(rest.keys) > OPERATION_ROWS_MAX:
            rest = rest.behind(rest.keys[OPERATION_ROWS_MAX - 1])
        else:
            rest = None
    if read.reverse:
        pages.reverse()
    return [row for page in pages for row in page], rest is None


def _call(read: RangeRead, rows_left: int, bytes_left: int) -> Call:
    flags = RangeFlag(0)
    if read.wanted.start_inclusive:
        flags |= RangeFlag.START_INCLUSIVE
    if read.wanted.stop_inclusive:
        flags |= RangeFlag.STOP_INCLUSIVE
    if read.options.reverse:
        flags |= RangeFlag.REVERSE
    if read.options.no_value:
        flags |= RangeFlag.NO_VALUE
    fields = (
        read.hash_key,
        None if read.keys is None else read.keys[:OPERATION_ROWS_MAX],
        read.wanted.start,
        read.wanted.stop,
        int(flags),
        *filter_fields(read.options.sort_key_filter),
        rows_left if rows_left < 1 << 61 else 0,
        bytes_left if bytes_left < 1 << 61 else 0,
    )
    return Call(
        Operation.MULTI_GET,
        xxh3_64_intdigest(read.hash_key),
        fields,
        read.timeout_ms,
        weight_of(fields),
    )


def _read(call: Call, reply: list[Any], read: RangeRead) -> tuple[bool, _Page, bytes]:
    """Check a page; return complete, its rows, and the last key that was looked at."""
    if len(reply) < 5 or type(reply[2]) is not bool or type(reply[3]) is not list:
        raise malformed(call, "a page is a truth value, a list and a key")
    complete, flat, last = reply[2:5]
    if len(flat) % 2 or not set(map(type, flat)) <= {bytes}:
        raise malformed(call, "its rows are sort keys and values")
    keys = flat[::2]
    if any(a >= b for a, b in pairwise(keys)):
        raise malformed(call, "its rows are not in their order")
    if not complete and not read.makes_progress(last):
        # The same page would be asked for again and again.
        raise malformed(call, "the next page does not begin behind this one")
    return complete, list(zip(keys, flat[1::2], strict=True)), last
