"""Walks over the rows of a table, page by page, however long that takes.

Each page is one snapshot of one partition. A server keeps nothing for a scan: the reply
says where the next page begins, so a scan survives a restart, a new primary and a lost
reply. A row that is there throughout is returned exactly once, in key order within a
partition; rows that are written meanwhile may or may not be.

While one page is unpacked and its rows are handed out, the next one is already asked for, as
a plain future: a scanner that is dropped half-way leaves nothing behind. The loop gets two
turns to send it (one packs, one writes), since whoever takes the rows may give it none: client
and server are to work at the same time.
"""

import asyncio
from collections.abc import Iterator
from itertools import repeat
from operator import lt
from typing import Any, Final

from pegaskv.base.errors import WireError
from pegaskv.base.limits import PAGE_BYTES_MAX, PAGE_ROWS_MAX
from pegaskv.base.types import EPOCH_UNIX_SECONDS
from pegaskv.client.calls import Call, Calls, malformed
from pegaskv.client.options import Row, ScanOptions
from pegaskv.client.ranges import filter_fields, scan_flags
from pegaskv.codec.operations import Operation

__all__ = ["Scanner", "count_rows", "scan_fields"]

_new_row = tuple.__new__
_ROW: Final = repeat(Row)
# How many partitions are counted at the same time.
_PAGES_AT_ONCE: Final = 64


def scan_fields(
    start: bytes, stop: bytes, options: ScanOptions, *, count_only: bool = False
) -> tuple[Any, ...]:
    """Return the fields of SCAN behind the partition."""
    return (
        start,
        stop,
        scan_flags(options, count_only=count_only),
        *filter_fields(options.hash_key_filter),
        *filter_fields(options.sort_key_filter),
        *filter_fields(options.value_filter),
        min(options.batch_size, PAGE_ROWS_MAX),
        PAGE_BYTES_MAX,
    )


class Scanner:
    """An asynchronous iterator of `Row`; made by `Table.scan` and its like.

    Iteration raises what a read raises (`Timeout`, `Unavailable`, `TableNotFound`); after
    that it may be gone on with, from the row behind the last one. `timeout` is for each
    page. Several tasks may take from one scanner; each row goes to one of them.
    """

    def __init__(
        self,
        calls: Calls,
        partitions: list[int] | int | None,
        bounds: tuple[bytes, bytes] | None,
        options: ScanOptions,
        *,
        timeout_ms: int,
    ) -> None:
        # A list of partitions, the hash of the one key that is scanned, or None for all.
        self._calls = calls
        self._partitions = partitions
        self._options = options
        self._timeout_ms = timeout_ms
        self._start, self._stop = bounds or (b"", b"")
        self._rows: Iterator[Row] = iter(())
        self._table_id: int | None = None
        # Where the next page begins: which of the partitions, and the stored key.
        self._ordinal = 0
        self._next = self._start
        self._done = bounds is None or partitions == []
        self._closed = False
        self._ahead: tuple[Call, asyncio.Future[Any], str] | None = None
        self._turning = asyncio.Lock()

    def __aiter__(self) -> "Scanner":
        return self

    async def __anext__(self) -> Row:
        while True:
            for row in self._rows:
                return row
            if self._done:
                raise StopAsyncIteration
            await self._turn()

    async def __aenter__(self) -> "Scanner":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def next_page(self) -> list[Row]:
        """Return all rows that are at hand, after a page was fetched if there are none.

        An empty list means the end.
        """
        while True:
            rows = list(self._rows)
            if rows or self._done:
                return rows
            await self._turn()

    async def aclose(self) -> None:
        """End the scan; what was asked for ahead is dropped. May be called again."""
        self._done = self._closed = True
        self._rows = iter(())
        self._drop_ahead()

    async def _turn(self) -> None:
        """Get the next page, or find that there is none."""
        rows_before = self._rows
        async with self._turning:
            if self._rows is not rows_before or self._done:
                # Another task has turned the page meanwhile.
                return
            if self._partitions is None or self._table_id is None:
                await self._begin()
            call, reply = await self._page()
            if self._done:
                return
            where = self._next, self._ordinal
            try:
                self._advance(_resume_of(call, reply))
                if self._send_ahead():
                    await self._calls.clock.sleep_ms(0)
                    await self._calls.clock.sleep_ms(0)
                    if self._closed:
                        return
                rows = self._read(call, reply)
            except BaseException as error:
                # This page was not handed out: it is asked for again.
                self._drop_ahead()
                self._next, self._ordinal = where
                self._done = self._closed
                if isinstance(error, WireError | ValueError | TypeError | IndexError):
                    raise malformed(call, str(error)) from None
                raise
            self._rows = iter(rows)

    def _send_ahead(self) -> bool:
        """Ask for the next page if there is one and that needs no waiting."""
        if self._done:
            return False
        ahead = self._call()
        sent = self._calls.send_now(ahead)
        if sent is None:
            return False
        self._ahead = (ahead, *sent)
        return True

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None

    async def _begin(self) -> None:
        """Learn which table this is: a scan never goes on in another one of the same name."""
        call = self._call()
        route = self._calls.route or await self._calls.looked_up(None, self._calls.deadline(call))
        self._table_id = route.table_id
        if self._partitions is None:
            self._partitions = list(range(route.mask + 1))

    async def _page(self) -> tuple[Call, list[Any]]:
        if self._ahead is None:
            call = self._call()
            return call, await self._calls.run(call)
        call, future, address = self._ahead
        # If this is cancelled the page is asked for again.
        self._ahead = None
        reply = await future
        if type(reply) is list and reply[1] == 0:
            return call, reply
        # It may have failed long ago, while the caller was busy with rows: its time begins now.
        call.started_ms = None
        if type(reply) is not list:
            return call, await self._calls.run(call)
        return call, await self._calls.run(call, first=(reply, address))

    def _call(self) -> Call:
        if isinstance(self._partitions, list):
            target = self._partitions[self._ordinal]
        else:
            target = self._partitions or 0
        return Call(
            Operation.SCAN,
            target,
            scan_fields(self._next, self._stop, self._options),
            self._timeout_ms,
            table_id=self._table_id,
        )

    def _advance(self, resume: bytes | None) -> None:
        if resume is not None:
            self._next = resume
            return
        self._next = self._start
        self._ordinal += 1
        if not isinstance(self._partitions, list) or self._ordinal >= len(self._partitions):
            self._done = True

    def _read(self, call: Call, reply: list[Any]) -> list[Row]:
        """Check a page and make its rows."""
        resume, _count, flat = reply[2:5]
        with_expiry = self._options.return_expire
        width = 3 if with_expiry else 2
        if type(flat) is not list or len(flat) % width:
            raise WireError("the rows are not a flat list")
        keys = flat[::width]
        values = flat[1::width]
        start: bytes = call.fields[0]
        if not (set(map(type, keys)) | set(map(type, values))) <= {bytes}:
            raise WireError("keys and values are bytes")
        if keys and not (
            start <= keys[0]
            and (not self._stop or keys[-1] < self._stop)
            and all(map(lt, keys, keys[1:]))
        ):
            raise WireError("rows outside of the range, or not in their order")
        if resume is not None and resume <= (keys[-1] if keys else start):
            # Whatever else it is, such a page would be asked for again and again.
            raise WireError("the next page does not begin behind this one")
        if with_expiry:
            expiries: Any = [
                EPOCH_UNIX_SECONDS + expiry if expiry else None for expiry in flat[2::3]
            ]
        else:
            expiries = repeat(None)
        hash_keys, sort_keys = _split(keys)
        return list(map(_new_row, _ROW, zip(hash_keys, sort_keys, values, expiries, strict=False)))


def _resume_of(call: Call, reply: list[Any]) -> bytes | None:
    """Return where the next page begins; the page itself is looked at later."""
    resume = reply[2]
    if resume is not None and (type(resume) is not bytes or resume <= call.fields[0]):
        raise WireError("the next page does not begin behind this one")
    return resume


async def count_rows(
    calls: Calls,
    targets: list[int],
    bounds: tuple[bytes, bytes],
    options: ScanOptions,
    *,
    timeout_ms: int,
) -> int:
    """Count rows at the servers, all of `targets` side by side and page by page.

    A target is a partition's index, or a hash where one hash key is counted.
    """
    start, stop = bounds
    route = await calls.routed(timeout_ms)
    todo = [(target, start) for target in targets]
    total = 0
    while todo:
        made = [
            Call(
                Operation.SCAN,
                target,
                scan_fields(first, stop, options, count_only=True),
                timeout_ms,
                table_id=route.table_id,
            )
            for target, first in todo[:_PAGES_AT_ONCE]
        ]
        todo = todo[_PAGES_AT_ONCE:]
        for call, outcome in zip(made, await calls.run_all(made), strict=True):
            if not isinstance(outcome, list):
                raise outcome
            resume, count = outcome[2:4] if len(outcome) > 3 else (None, None)
            if type(count) is not int or count < 0:
                raise malformed(call, "a number of rows is a whole number")
            if resume is not None:
                if type(resume) is not bytes or resume <= call.fields[0]:
                    raise malformed(call, "the next page does not begin behind this one")
                todo.append((call.key_hash, resume))
            total += count
    return total


def _split(keys: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Cut stored keys, which are in order, into hash keys and sort keys."""
    # No stored key begins with this, and none that does would stand before others.
    prefix = b"\xff\xff"
    if keys and keys[-1].startswith(prefix):
        raise WireError("not a stored key")
    if len({key[:2] for key in keys}) == 1:
        # Hash keys of one length, as they mostly are: half of the time that the loop takes.
        end = 2 + int.from_bytes(keys[0][:2], "big")
        if min(map(len, keys)) >= end:
            if keys[0][:end] == keys[-1][:end]:
                return [keys[0][2:end]] * len(keys), [key[end:] for key in keys]
            return [key[2:end] for key in keys], [key[end:] for key in keys]
    hash_keys: list[bytes] = []
    sort_keys: list[bytes] = []
    end = 0
    hash_key = b""
    for key in keys:
        if not key.startswith(prefix):
            end = 2 + int.from_bytes(key[:2], "big")
            prefix = key[:end]
            if len(key) < end:
                raise WireError("not a stored key")
            hash_key = prefix[2:]
        hash_keys.append(hash_key)
        sort_keys.append(key[end:])
    return hash_keys, sort_keys
