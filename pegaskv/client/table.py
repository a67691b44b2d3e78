"""The operations on the rows of one table.

`get`, `set`, `delete`, `exist`, `ttl` and `incr` are on the hot path: when routing and
connection are there and the row is small, they send at once and only look at the
reply; everything else goes through `Calls.run`, which also takes over whenever the
first answer is not a plain success.

Every method takes `timeout=` in seconds (the client's by default), and raises
`InvalidArgument` before anything is sent, `TableNotFound`, `Busy`, `Timeout` or
`Unavailable` (`maybe_applied` says whether a write may have been applied), or another
`RequestError` that the server answered. Writes that were certainly not applied are
repeated inside the deadline; `retry_unknown=True` also repeats one of unknown outcome,
where a write of another client in between may be overwritten.
"""

# ruff: noqa: ASYNC109 - deadlines are kept by the connection, which costs nothing per call.

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import TTL_SECONDS_MAX
from pegaskv.base.types import FilterType
from pegaskv.client import batches
from pegaskv.client.arguments import (
    BytesLike,
    as_bool,
    as_hash_key,
    as_int64,
    as_sort_key,
    as_sort_keys,
    as_timeout_ms,
    as_ttl,
    as_value,
    as_values,
    check_operation,
    weight_of,
)
from pegaskv.client.calls import HEAVY_BYTES, Call, Calls, malformed
from pegaskv.client.checks import check_fields, check_result, mutation_fields
from pegaskv.client.multi_get import RangeRead, read_pages
from pegaskv.client.options import (
    Check,
    CheckResult,
    Delete,
    MultiGetResult,
    Put,
    RangeOptions,
    ScanOptions,
    SortKeys,
)
from pegaskv.client.ranges import check_scan_options, full_range, hash_range, sort_range
from pegaskv.client.scanner import Scanner, count_rows
from pegaskv.codec.operations import Operation

__all__ = ["Table", "value_of"]

_GET: Final = int(Operation.GET)
_SET: Final = int(Operation.SET)
_DELETE_RANGE_ROWS: Final = 100
_DEFAULT_RANGE: Final = RangeOptions()
_DEFAULT_SCAN: Final = ScanOptions()


class Table:
    """One table of a cluster, by its name; made by `Client.table`."""

    def __init__(self, calls: Calls, *, timeout_ms: int) -> None:
        self._calls = calls
        self._timeout_ms = timeout_ms

    @property
    def name(self) -> str:
        """The table's name."""
        return self._calls.name

    @property
    def partition_count(self) -> int:
        """The number of partitions, as far as it is known (0 = not at this moment)."""
        route = self._calls.route
        return route.mask + 1 if route is not None else 0

    def partition_of(self, hash_key: BytesLike, sort_key: BytesLike = b"") -> int:
        """Return the index of the partition that holds a row."""
        key = as_hash_key(hash_key) or as_sort_key(sort_key)
        return xxh3_64_intdigest(key) & max(0, self.partition_count - 1)

    # One row.

    async def get(
        self, hash_key: BytesLike, sort_key: BytesLike, *, timeout: float | None = None
    ) -> bytes | None:
        """Return a row's value, or None when it is absent or expired."""
        # The hottest method of all, so `_send` is written out here.
        route = self._calls.route
        if (
            timeout is None
            and route is not None
            and type(hash_key) is bytes
            and type(sort_key) is bytes
            and len(hash_key) + len(sort_key) <= HEAVY_BYTES
        ):
            partition_hash = xxh3_64_intdigest(hash_key or sort_key)
            index = partition_hash & route.mask
            node = route.nodes[index]
            connection = node.connection
            if connection is not None:
                future = connection.submit(
                    (_GET, self._timeout_ms, route.table_id, index, hash_key, sort_key)
                )
                if future is not None:
                    started_ms = connection.now_ms
                    reply = await future
                    if len(reply) == 3 and reply[1] == 0:
                        value = reply[2]
                        if value is None or type(value) is bytes:
                            return value
                    call = self._row_call(Operation.GET, hash_key, sort_key, (), timeout)
                    call.started_ms = started_ms
                    return value_of(call, await self._calls.run(call, (reply, node.address)))
        call = self._row_call(Operation.GET, hash_key, sort_key, (), timeout)
        return value_of(call, await self._calls.run(call))

    async def set(
        self,
        hash_key: BytesLike,
        sort_key: BytesLike,
        value: BytesLike,
        ttl: int = 0,
        *,
        timeout: float | None = None,
        retry_unknown: bool = False,
    ) -> None:
        """Write a row that lives `ttl` seconds; 0 = the table's default, or for ever."""
        route = self._calls.route
        if (
            timeout is None
            and route is not None
            and type(hash_key) is bytes
            and type(sort_key) is bytes
            and type(value) is bytes
            and len(hash_key) + len(sort_key) + len(value) <= HEAVY_BYTES
            and type(ttl) is int
            and 0 <= ttl <= TTL_SECONDS_MAX
        ):
            partition_hash = xxh3_64_intdigest(hash_key or sort_key)
            index = partition_hash & route.mask
            node = route.nodes[index]
            connection = node.connection
            if connection is not None:
                future = connection.submit(
                    (_SET, self._timeout_ms, route.table_id, index, hash_key, sort_key, value, ttl),
                    0,
                    route.early,
                )
                if future is not None:
                    started_ms = connection.now_ms
                    reply = await future
                    if reply[1] == 0:
                        return
                    call = self._row_call(
                        Operation.SET, hash_key, sort_key, (value, ttl), timeout, retry_unknown
                    )
                    call.started_ms = started_ms
                    await self._calls.run(call, (reply, node.address))
                    return
        tail = (as_value(value), as_ttl(ttl))
        call = self._row_call(Operation.SET, hash_key, sort_key, tail, timeout, retry_unknown)
        await self._calls.run(call)

    async def delete(
        self,
        hash_key: BytesLike,
        sort_key: BytesLike,
        *,
        timeout: float | None = None,
        retry_unknown: bool = False,
    ) -> None:
        """Delete a row; an absent one is fine."""
        call = self._row_call(Operation.DELETE, hash_key, sort_key, (), timeout, retry_unknown)
        await self._calls.send(call)

    async def exist(
        self, hash_key: BytesLike, sort_key: BytesLike, *, timeout: float | None = None
    ) -> bool:
        """Whether a row is there and not expired."""
        return await self.ttl(hash_key, sort_key, timeout=timeout) != -2

    async def ttl(
        self, hash_key: BytesLike, sort_key: BytesLike, *, timeout: float | None = None
    ) -> int:
        """Return the seconds that a row has left; -1 when it lives for ever, -2 when absent."""
        call = self._row_call(Operation.TTL, hash_key, sort_key, (), timeout)
        reply = await self._calls.send(call)
        if len(reply) < 3 or type(reply[2]) is not int or reply[2] < -2:
            raise malformed(call, "a time to live is a whole number")
        return reply[2]

    async def incr(
        self,
        hash_key: BytesLike,
        sort_key: BytesLike,
        by: int = 1,
        ttl: int = 0,
        *,
        timeout: float | None = None,
    ) -> int:
        """Add `by` to a decimal number and return the new one; absent and empty count as 0.

        `ttl` 0 keeps the expiry, above 0 sets it in seconds, -1 clears it. A value that is
        no number, and a sum outside of 64 bits, raise `InvalidArgument` and change nothing.
        """
        tail = (as_int64("by", by), as_ttl(ttl, least=-1))
        call = self._row_call(Operation.INCR, hash_key, sort_key, tail, timeout)
        reply = await self._calls.send(call)
        if len(reply) < 4 or type(reply[3]) is not int:
            raise malformed(call, "the new value is a whole number")
        return reply[3]

    # One hash key, atomically.

    async def multi_set(
        self,
        hash_key: BytesLike,
        values: Mapping[Any, BytesLike],
        ttl: int = 0,
        *,
        timeout: float | None = None,
        retry_unknown: bool = False,
    ) -> None:
        """Write rows of one hash key, all or none: `{sort_key: value, ...}`."""
        tail = (as_values(values), as_ttl(ttl))
        call = self._multi_call(Operation.MULTI_SET, hash_key, tail, timeout, retry_unknown)
        await self._calls.send(call)

    async def multi_get(
        self,
        hash_key: BytesLike,
        sort_keys: Iterable[BytesLike] | None = None,
        *,
        start: BytesLike = b"",
        stop: BytesLike = b"",
        options: RangeOptions = _DEFAULT_RANGE,
        max_count: int = 100,
        max_bytes: int = 1_000_000,
        timeout: float | None = None,
    ) -> MultiGetResult:
        """Return the rows named by `sort_keys`, or those of a range when that is None.

        `max_count` rows or `max_bytes` of sort keys and values at most, 0 or less = no
        limit; `complete` of the result is False if and only if one of these ended it. A
        result that fits one page (1 000 rows, 1 MiB) is one snapshot; a larger one is read
        in pages, and writes in between may show in a part of it.
        """
        hashed = as_hash_key(hash_key, empty_allowed=False)
        wanted = sort_range(start, stop, options)
        keys = None if sort_keys is None else sorted(set(as_sort_keys(sort_keys)))
        read = RangeRead(hashed, keys, wanted, options, self._limit_ms(timeout))
        rows, complete = await read_pages(self._calls, read, max_count, max_bytes)
        return MultiGetResult(rows, complete=complete)

    async def multi_get_sort_keys(
        self,
        hash_key: BytesLike,
        *,
        max_count: int = 100,
        max_bytes: int = 1_000_000,
        timeout: float | None = None,
    ) -> SortKeys:
        """Return the sort keys of one hash key; limits and `complete` as in `multi_get`."""
        hashed = as_hash_key(hash_key, empty_allowed=False)
        everything = sort_range(b"", b"", _DEFAULT_RANGE)
        read = RangeRead(
            hashed, None, everything, RangeOptions(no_value=True), self._limit_ms(timeout)
        )
        rows, complete = await read_pages(self._calls, read, max_count, max_bytes)
        return SortKeys((key for key, _ in rows), complete=complete)

    async def multi_delete(
        self,
        hash_key: BytesLike,
        sort_keys: Iterable[BytesLike],
        *,
        timeout: float | None = None,
        retry_unknown: bool = False,
    ) -> int:
        """Delete rows of one hash key, all or none.

        Return how many sort keys were named, whether their rows were there or not; one that
        is named twice counts twice.
        """
        keys = as_sort_keys(sort_keys)
        check_operation("sort_keys", rows=len(keys), byte_count=sum(map(len, keys)))
        call = self._multi_call(Operation.MULTI_DELETE, hash_key, (keys,), timeout, retry_unknown)
        reply = await self._calls.send(call)
        if len(reply) < 4 or type(reply[3]) is not int:
            raise malformed(call, "the number of sort keys is a whole number")
        return reply[3]

    async def delete_range(
        self,
        hash_key: BytesLike,
        start: BytesLike = b"",
        stop: BytesLike = b"",
        options: RangeOptions = _DEFAULT_RANGE,
        *,
        timeout: float | None = None,
    ) -> int:
        """Delete the rows of a range and return how many were found there.

        It goes in parts of 100 rows and is not atomic; `timeout` is for each part. After
        an error some parts are deleted, and calling it again goes on.
        """
        if options.reverse:
            raise InvalidArgument("delete_range goes forward only")
        scanner = self.scan(
            hash_key,
            start,
            stop,
            ScanOptions(
                start_inclusive=options.start_inclusive,
                stop_inclusive=options.stop_inclusive,
                sort_key_filter=options.sort_key_filter,
                no_value=True,
                batch_size=_DELETE_RANGE_ROWS,
            ),
            timeout=timeout,
        )
        deleted = 0
        async with scanner:
            while rows := await scanner.next_page():
                keys = [row.sort_key for row in rows]
                deleted += await self.multi_delete(hash_key, keys, timeout=timeout)
        return deleted

    async def sort_key_count(self, hash_key: BytesLike, *, timeout: float | None = None) -> int:
        """Return the number of rows of one hash key, counted at the server; `timeout` a page."""
        hashed = as_hash_key(hash_key, empty_allowed=False)
        bounds = hash_range(hashed, sort_range(b"", b"", _DEFAULT_RANGE), None)
        assert bounds is not None
        return await count_rows(
            self._calls,
            [xxh3_64_intdigest(hashed)],
            bounds,
            _DEFAULT_SCAN,
            timeout_ms=self._limit_ms(timeout),
        )

    async def check_and_set(
        self,
        hash_key: BytesLike,
        check_sort_key: BytesLike,
        check: Check | int,
        operand: BytesLike = b"",
        *,
        set_sort_key: BytesLike | None = None,
        value: BytesLike,
        ttl: int = 0,
        return_check_value: bool = False,
        timeout: float | None = None,
    ) -> CheckResult:
        """Write a row if the row `check_sort_key` of the same hash key passes `check`.

        `set_sort_key` None writes the checked row itself.
        """
        fields = (
            *check_fields(check_sort_key, check, operand),
            None if set_sort_key is None else as_sort_key(set_sort_key, "set_sort_key"),
            as_value(value),
            as_ttl(ttl),
            as_bool("return_check_value", return_check_value),
        )
        call = self._multi_call(Operation.CHECK_AND_SET, hash_key, fields, timeout)
        return check_result(call, await self._calls.send(call))

    async def check_and_mutate(
        self,
        hash_key: BytesLike,
        check_sort_key: BytesLike,
        check: Check | int,
        operand: BytesLike = b"",
        mutations: Sequence[Put | Delete] = (),
        *,
        return_check_value: bool = False,
        timeout: float | None = None,
    ) -> CheckResult:
        """Put and delete rows of one hash key, all or none, if a row of it passes `check`."""
        fields = (
            *check_fields(check_sort_key, check, operand),
            mutation_fields(mutations),
            as_bool("return_check_value", return_check_value),
        )
        call = self._multi_call(Operation.CHECK_AND_MUTATE, hash_key, fields, timeout)
        return check_result(call, await self._calls.send(call))

    async def compare_exchange(
        self,
        hash_key: BytesLike,
        sort_key: BytesLike,
        expected: BytesLike | None,
        desired: BytesLike,
        ttl: int = 0,
        *,
        timeout: float | None = None,
    ) -> CheckResult:
        """Write `desired` if the row's value is `expected` (None = the row must be absent).

        The result always tells what the row was.
        """
        operand = b"" if expected is None else as_value(expected, "expected")
        return await self.check_and_set(
            hash_key,
            sort_key,
            Check.NOT_EXIST if expected is None else Check.BYTES_EQUAL,
            operand,
            value=as_value(desired, "desired"),
            ttl=ttl,
            return_check_value=True,
            timeout=timeout,
        )

    # Many rows, any hash keys.

    async def batch_get(
        self, keys: Iterable[Sequence[BytesLike]], *, timeout: float | None = None
    ) -> list[bytes | None]:
        """Return the values of `(hash_key, sort_key)` rows in order, None for absent ones."""
        return await batches.batch_get(
            self._calls, batches.rows_of(keys, 2), timeout_ms=self._limit_ms(timeout)
        )

    async def batch_set(
        self,
        rows: Iterable[Sequence[BytesLike]],
        ttl: int = 0,
        *,
        timeout: float | None = None,
        retry_unknown: bool = False,
    ) -> None:
        """Write `(hash_key, sort_key, value)` rows; side by side and not atomically."""
        await batches.batch_write(
            self._calls,
            Operation.BATCH_SET,
            batches.rows_of(rows, 3),
            tail=(as_ttl(ttl),),
            timeout_ms=self._limit_ms(timeout),
            retry_unknown=retry_unknown,
        )

    async def batch_delete(
        self,
        keys: Iterable[Sequence[BytesLike]],
        *,
        timeout: float | None = None,
        retry_unknown: bool = False,
    ) -> None:
        """Delete `(hash_key, sort_key)` rows; side by side and not atomically."""
        await batches.batch_write(
            self._calls,
            Operation.BATCH_DELETE,
            batches.rows_of(keys, 2),
            timeout_ms=self._limit_ms(timeout),
            retry_unknown=retry_unknown,
        )

    # Scans.

    def scan(
        self,
        hash_key: BytesLike,
        start: BytesLike = b"",
        stop: BytesLike = b"",
        options: ScanOptions = _DEFAULT_SCAN,
        *,
        timeout: float | None = None,
    ) -> Scanner:
        """Return an iterator over rows of one hash key in sort-key order; `timeout` a page."""
        hashed = as_hash_key(hash_key, empty_allowed=False)
        check_scan_options(options)
        bounds = hash_range(hashed, sort_range(start, stop, options), options.sort_key_filter)
        return self._scanner(xxh3_64_intdigest(hashed), bounds, options, timeout)

    def full_scan(
        self, options: ScanOptions = _DEFAULT_SCAN, *, timeout: float | None = None
    ) -> Scanner:
        """Return an iterator over all rows, partition by partition; `timeout` a page."""
        check_scan_options(options)
        wanted = options.hash_key_filter
        partitions: int | None = None
        if wanted is not None and wanted.type == FilterType.MATCH_EXACT and wanted.pattern:
            partitions = xxh3_64_intdigest(wanted.pattern)
        return self._scanner(partitions, full_range(wanted), options, timeout)

    async def unordered_scanners(
        self,
        max_split_count: int,
        options: ScanOptions = _DEFAULT_SCAN,
        *,
        timeout: float | None = None,
    ) -> list[Scanner]:
        """Return at most `max_split_count` scanners that share the partitions evenly."""
        if type(max_split_count) is not int or max_split_count <= 0:
            raise InvalidArgument(f"max_split_count must be 1 or more, not {max_split_count!r}")
        check_scan_options(options)
        count = await self._count_partitions(timeout)
        split = min(max_split_count, count)
        edges = [count * number // split for number in range(split + 1)]
        return [
            self._scanner(
                list(range(edges[number], edges[number + 1])),
                full_range(options.hash_key_filter),
                options,
                timeout,
            )
            for number in range(split)
        ]

    async def count(
        self, options: ScanOptions = _DEFAULT_SCAN, *, timeout: float | None = None
    ) -> int:
        """Return the number of rows, counted at the servers; `timeout` is for each page."""
        check_scan_options(options)
        partitions = list(range(await self._count_partitions(timeout)))
        return await count_rows(
            self._calls,
            partitions,
            full_range(options.hash_key_filter),
            options,
            timeout_ms=self._limit_ms(timeout),
        )

    # Below: what the methods above share.

    async def _count_partitions(self, timeout: float | None) -> int:
        return (await self._calls.routed(self._limit_ms(timeout))).mask + 1

    def _scanner(
        self,
        partitions: list[int] | int | None,
        bounds: tuple[bytes, bytes] | None,
        options: ScanOptions,
        timeout: float | None,
    ) -> Scanner:
        return Scanner(self._calls, partitions, bounds, options, timeout_ms=self._limit_ms(timeout))

    def _limit_ms(self, timeout: float | None) -> int:
        return self._timeout_ms if timeout is None else as_timeout_ms(timeout)

    def _row_call(
        self,
        operation: Operation,
        hash_key: BytesLike,
        sort_key: BytesLike,
        tail: tuple[Any, ...],
        timeout: float | None,
        retry_unknown: bool = False,
    ) -> Call:
        hashed, sorted_ = as_hash_key(hash_key), as_sort_key(sort_key)
        weight = len(hashed) + len(sorted_) + sum(len(x) for x in tail if type(x) is bytes)
        return Call(
            operation,
            xxh3_64_intdigest(hashed or sorted_),
            (hashed, sorted_, *tail),
            self._limit_ms(timeout),
            weight,
            retry_unknown,
        )

    def _multi_call(
        self,
        operation: Operation,
        hash_key: BytesLike,
        tail: tuple[Any, ...],
        timeout: float | None,
        retry_unknown: bool = False,
    ) -> Call:
        hashed = as_hash_key(hash_key, empty_allowed=False)
        return Call(
            operation,
            xxh3_64_intdigest(hashed),
            (hashed, *tail),
            self._limit_ms(timeout),
            len(hashed) + weight_of(tail),
            retry_unknown,
        )


def value_of(call: Call, reply: list[Any]) -> bytes | None:
    """Return the value in the reply to a GET. Raises Unavailable: it is no such reply."""
    if len(reply) < 3 or not (reply[2] is None or type(reply[2]) is bytes):
        raise malformed(call, "a value is bytes or nil")
    return reply[2]
