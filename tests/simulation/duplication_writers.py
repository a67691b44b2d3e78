"""What the clients of the two clusters write, and what must be found of it.

Most writes go to few rows that all writers share, so that deletes, expiries, checks and
late writes meet, also within one tick. Beside them each writer has rows that nobody else
writes to: of those it is known what must be there in the end, on both clusters. That is
more than that both are equal: they could have lost the same write.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from pegaskv.base.errors import RequestError
from pegaskv.client import Table
from pegaskv.client.options import Check, CheckResult, Delete, Put

__all__ = ["BEFORE_HASH_KEYS", "Rows", "Writer", "key_before"]

# (hash key, sort key) -> (value, when it expires or None)
Rows = dict[tuple[bytes, bytes], tuple[bytes, int | None]]

BEFORE_HASH_KEYS: Final = 37
_CALL_S: Final = 5.0
# An unanswered write is not applied so long after it was sent: its connection is gone.
_LATE_MS: Final = 30_000
_OWN_KEYS: Final = (b"k0", b"k1", b"k2")
_COUNTER: Final = b"counter"


def key_before(number: int) -> tuple[bytes, bytes]:
    """The key of a row that was there before the duplication."""
    return b"h%d" % (number % BEFORE_HASH_KEYS), b"s%d" % number


@dataclass
class _Own:
    """A row of one writer: what it may be now."""

    # Of the last acknowledged write; several when they were sent at once. None = deleted.
    last: tuple[bytes | None, ...] = (None,)
    # (when, what) of writes that nobody answered, and that may have come after it.
    doubtful: list[tuple[int, bytes | None]] = field(default_factory=list)

    def acknowledged(self, sent_ms: int, values: tuple[bytes | None, ...]) -> None:
        self.last = values
        self.doubtful = [one for one in self.doubtful if one[0] > sent_ms - _LATE_MS]

    def may_be(self) -> set[bytes | None]:
        return {*self.last, *(value for _, value in self.doubtful)}


class Writer:
    """One client task; its own rows stay its own from round to round."""

    def __init__(
        self,
        name: bytes,
        random: Random,
        now_ms: Callable[[], int],
        *,
        rows_before: int = 0,
        wrong: list[str],
    ) -> None:
        self.name = name
        self.hash_key = b"own " + name
        self.acknowledged = 0
        self.unknown = 0
        self.checked = 0
        self._random = random
        self._now_ms = now_ms
        self._rows_before = rows_before
        self._wrong = wrong
        self._sequence = 0
        self._own = {sort_key: _Own() for sort_key in _OWN_KEYS}
        self._counter = 0
        self._counter_doubtful = 0
        # The server lost power and may have lost what it acknowledged.
        self.may_have_lost = False

    async def write(self, table: Table) -> None:
        """Write once; whether that was acknowledged is counted, not raised."""
        self._sequence += 1
        value = b"%s.%d" % (self.name, self._sequence)
        try:
            if self._random.random() < 0.3:
                await self._write_own(table, value)
            elif self._rows_before and self._random.random() < 0.2:
                await self._write_before(table, value)
            else:
                await self._write_shared(table, value)
        except RequestError:
            self.unknown += 1
            raise
        self.acknowledged += 1

    # Rows that all writers share.

    async def _write_shared(self, table: Table, value: bytes) -> None:
        random = self._random
        hash_key = b"h%d" % random.randrange(12)
        sort_keys = [b"s%d" % random.randrange(4) for _ in range(3)]
        first = sort_keys[0]
        ttl = random.choice([0, 0, 0, 2, 86_400])
        match random.randrange(11):
            case 0 | 1:
                await table.set(hash_key, first, value, ttl=ttl, timeout=_CALL_S)
            case 2:
                await table.delete(hash_key, first, timeout=_CALL_S)
            case 3:
                rows = dict.fromkeys(sort_keys, value)
                await table.multi_set(hash_key, rows, ttl=ttl, timeout=_CALL_S)
            case 4:
                await table.multi_delete(hash_key, sort_keys, timeout=_CALL_S)
            case 5:
                await table.incr(hash_key, _COUNTER, ttl=random.choice([0, 2]), timeout=_CALL_S)
            case 6:
                await table.batch_set(
                    [(hash_key, sort_key, value) for sort_key in sort_keys], timeout=_CALL_S
                )
            case 7:
                check = random.choice([Check.EXIST, Check.NOT_EXIST])
                await table.check_and_set(
                    hash_key, first, check,
                    set_sort_key=sort_keys[1], value=value, ttl=ttl, timeout=_CALL_S,
                )  # fmt: skip
            case 8:
                await table.check_and_mutate(
                    hash_key, first, Check.NO_CHECK,
                    mutations=[Delete(sort_keys[0]), Put(sort_keys[1], value, ttl)],
                    timeout=_CALL_S,
                )  # fmt: skip
            case _:
                # Two writes to one row in one tick, in either order.
                await _at_once(
                    table.set(hash_key, first, value, ttl=ttl, timeout=_CALL_S),
                    random.choice(
                        [
                            lambda: table.delete(hash_key, first, timeout=_CALL_S),
                            lambda: table.set(hash_key, first, value + b"'", timeout=_CALL_S),
                        ]
                    )(),
                )

    async def _write_before(self, table: Table, value: bytes) -> None:
        """Touch what is perhaps being copied at this moment."""
        random = self._random
        number = random.randrange(self._rows_before)
        hash_key, sort_key = key_before(number)
        if random.random() < 0.7:
            same = range(number, self._rows_before, BEFORE_HASH_KEYS)
            sort_keys = [key_before(one)[1] for one in same]
            await table.multi_delete(hash_key, sort_keys, timeout=_CALL_S)
        else:
            await table.set(hash_key, sort_key, value, ttl=random.choice([0, 2]), timeout=_CALL_S)

    # Rows of its own.

    async def _write_own(self, table: Table, value: bytes) -> None:
        random, hash_key = self._random, self.hash_key
        first, second = random.sample(_OWN_KEYS, 2)
        match random.randrange(9):
            case 0 | 1:
                await self._put(
                    {first: (value,)}, table.set(hash_key, first, value, timeout=_CALL_S)
                )
            case 2:
                await self._put({first: (None,)}, table.delete(hash_key, first, timeout=_CALL_S))
            case 3:
                both: dict[bytes, tuple[bytes | None, ...]] = {first: (value,), second: (value,)}
                rows = {first: value, second: value}
                await self._put(both, table.multi_set(hash_key, rows, timeout=_CALL_S))
            case 4:
                call = table.multi_delete(hash_key, [first, second], timeout=_CALL_S)
                await self._put({first: (None,), second: (None,)}, call)
            case 5:
                later = value + b"'"
                await self._put(
                    {first: (value, later)},
                    _at_once(
                        table.set(hash_key, first, value, timeout=_CALL_S),
                        table.set(hash_key, first, later, timeout=_CALL_S),
                    ),
                )
            case 6:
                mutations = [Put(first, value), Delete(second)]
                await self._put(
                    {first: (value,), second: (None,)},
                    table.check_and_mutate(
                        hash_key, first, Check.NO_CHECK, mutations=mutations, timeout=_CALL_S
                    ),
                )
            case 7:
                await self._exchange(table, first, value)
            case _:
                await self._count(table)

    async def _put(
        self, values: dict[bytes, tuple[bytes | None, ...]], call: Awaitable[object]
    ) -> None:
        sent_ms = self._now_ms()
        try:
            await call
        except RequestError:
            for sort_key, tried in values.items():
                self._own[sort_key].doubtful += [(sent_ms, value) for value in tried]
            raise
        for sort_key, tried in values.items():
            self._own[sort_key].acknowledged(sent_ms, tried)

    async def _exchange(self, table: Table, sort_key: bytes, value: bytes) -> None:
        """Write if the row is what it must be; when that is known, it is."""
        own = self._own[sort_key]
        expected = own.may_be()
        assumed = self._random.choice(sorted(expected, key=repr))
        result: CheckResult | None = None
        sent_ms = self._now_ms()
        try:
            result = await table.compare_exchange(
                self.hash_key, sort_key, assumed, value, timeout=_CALL_S
            )
        except RequestError:
            own.doubtful.append((sent_ms, value))
            raise
        if result.passed:
            own.acknowledged(sent_ms, (value,))
        elif len(expected) == 1 and not self.may_have_lost:
            self._wrong.append(f"{self.name!r} {sort_key!r}: {result}, and it is {assumed!r}")

    async def _count(self, table: Table) -> None:
        try:
            await table.incr(self.hash_key, _COUNTER, timeout=_CALL_S)
        except RequestError:
            self._counter_doubtful += 1
            raise
        self._counter += 1

    # The end.

    def check(self, where: str, rows: Rows) -> None:
        """Compare what a cluster shows with what was acknowledged; nothing is under way."""
        if self.may_have_lost:
            return
        for sort_key, own in self._own.items():
            found, _ = rows.get((self.hash_key, sort_key), (None, None))
            self.checked += 1
            if found not in own.may_be():
                self._wrong.append(
                    f"{where}: {self.name!r} {sort_key!r} is {found!r}, must be {own.may_be()}"
                )
        counted = int(rows.get((self.hash_key, _COUNTER), (b"0", None))[0])
        if not self._counter <= counted <= self._counter + self._counter_doubtful:
            self._wrong.append(
                f"{where}: {self.name!r} counted {counted}, must be {self._counter} to "
                f"{self._counter + self._counter_doubtful}"
            )


async def _at_once(*calls: Coroutine[Any, Any, object]) -> None:
    """Send several requests in one turn of the loop; raise what one of them met."""
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(call) for call in calls]
    await asyncio.wait(tasks)
    failures = [task.exception() for task in tasks]
    for failure in failures:
        if failure is not None:
            raise failure
