"""The copy of one partition: every row that is there, in key order, in pages.

It goes on from the last confirmed key, whoever sent what came before. Rows that the target
finds invalid stop it; in fail mode skip they are looked for with ever smaller pages and left
out, and what the target has under their keys stays.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from pegaskv.base.errors import InvalidData
from pegaskv.codec.messages_duplication import CopyPage, DuplicationOrder
from pegaskv.codec.operations import Operation
from pegaskv.duplication.context import RunContext
from pegaskv.duplication.copying import split_page
from pegaskv.duplication.doors import SourcePartition
from pegaskv.duplication.machine import target_indices

__all__ = ["Copied", "Copier"]

_PAGE_ROWS: Final = 1_000
_FEWER: Final = 8

_Answer = asyncio.Future[list[Any]]
_Submit = Callable[[Operation, int, tuple[Any, ...], int], Awaitable[_Answer]]


class Copied(NamedTuple):
    """A page that the target has: rows there and rows that went; or the row that was left out."""

    rows: int
    removed: int
    left_out: tuple[int, bytes] | None
    more: bool


class _Sent(NamedTuple):
    page: CopyPage
    answers: list[_Answer]
    left_out: tuple[int, bytes] | None


class Copier:
    """`key`: everything below it is at the target; b"" at the start, and at the end.

    `submit` sends one request and returns the future of its answer; `go_on` raises what the
    copy must not go on against.
    """

    def __init__(
        self, source: SourcePartition, context: RunContext, key: bytes, submit: _Submit
    ) -> None:
        self.key = key
        self._source = source
        self._context = context
        self._submit = submit
        self._rows_max = _PAGE_ROWS
        # The row that was alone in a page when the target found that invalid; the same once it
        # is to be left out.
        self._alone: bytes | None = None
        self._invalid: bytes | None = None

    async def run(
        self,
        order: DuplicationOrder,
        go_on: Callable[[], None],
        on_copied: Callable[[Copied], None],
    ) -> None:
        """Copy all that is left; `on_copied` is called for each page, after `key` has moved.

        Raises:
            RequestError: the target refused a page, or did not answer.
            CorruptionError, OSError: the rows cannot be read at the moment.

        """
        options = self._context.options
        pages: deque[_Sent] = deque()
        key: bytes | None = self.key
        sent = 0
        try:
            while key is not None or pages:
                go_on()
                # Small pages look for a row, which is then the first that is not confirmed.
                most = options.pages_in_flight_max if self._rows_max == _PAGE_ROWS else 1
                if key is not None and len(pages) < most:
                    page = await self._source.read_rows(key, self._rows_max, options.batch_bytes)
                    size = sum(map(len, page.rows))
                    await self._context.throttle(size, sent)
                    sent += size
                    pages.append(await self._send(order, page, key))
                    key = page.next_key
                    if key is not None:
                        continue
                on_copied(await self._answered(pages.popleft()))
        finally:
            for one in pages:
                for answer in one.answers:
                    answer.cancel()

    def look_closer(self) -> None:
        """The target found a row invalid, and such rows are to be left out."""
        self._invalid = self._alone
        self._rows_max = max(1, self._rows_max // _FEWER)

    async def _answered(self, sent: _Sent) -> Copied:
        removed = 0
        try:
            for answer in sent.answers:
                removed += (await answer)[2]
        except InvalidData:
            self._alone = sent.page.rows[0] if len(sent.page.rows) == 2 else None
            raise
        self.key = sent.page.next_key or b""
        self._rows_max = min(_PAGE_ROWS, self._rows_max * 2)
        rows = 0 if sent.left_out else len(sent.page.rows) // 2
        return Copied(rows, removed, sent.left_out, sent.page.next_key is not None)

    async def _send(self, order: DuplicationOrder, page: CopyPage, key: bytes) -> _Sent:
        stop = page.next_key or b""
        if self._invalid is None or page.rows[:1] != [self._invalid] or len(page.rows) != 2:
            return _Sent(page, await self._send_range(order, page, page.rows, key, stop), None)
        # What the target has under this key stays; what it has around it is as in any range.
        row, self._invalid = self._invalid, None
        answers = await self._send_range(order, page, [], row + b"\0", stop)
        if key < row:
            answers += await self._send_range(order, page, [], key, row)
        return _Sent(page, answers, (page.decree, row))

    async def _send_range(
        self, order: DuplicationOrder, page: CopyPage, rows: list[bytes], start: bytes, stop: bytes
    ) -> list[_Answer]:
        source, count = self._source, order.remote_partition_count
        index = source.gpid.partition_index
        answers = []
        for target, part in split_page(
            rows, target_indices(index, source.partition_count, count), count
        ).items():
            fields = (
                order.uuid,
                source.partition_count,
                index,
                start,
                stop,
                page.clock_us,
                False,
                part,
            )
            size = sum(map(len, part))
            answers.append(await self._submit(Operation.COPY_RANGE, target, fields, size))
        return answers
