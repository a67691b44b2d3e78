"""What clients of a simulated cluster do, and a note of everything that they saw.

All of them meet at few rows, of four sorts: *registers*, which are only set and read, for the
judge that needs nobody's word; *mixed* rows, which are also deleted and exchanged; *pairs*,
which are written and read together; and *counters*. What was answered, when, and at which
decree, is in `History`; whether it may be so is for `checkers` to say.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from pegaskv.base.errors import PegasKVError, RequestError
from pegaskv.client import Client, ClientOptions, Table, connect
from pegaskv.client.routing import outcome_unknown
from tests.simulation.checkers import NEVER, Act, Key, Op, Outcome
from tests.simulation.world import World

__all__ = ["STEADY_ROWS", "History", "Writer", "open_client", "steady_key"]

REGISTERS: Final = 6
MIXED: Final = 4
PAIRS: Final = 3
COUNTERS: Final = 3
STEADY_ROWS: Final = 24


@dataclass
class History:
    """All that clients of one run saw."""

    registers: list[Op] = field(default_factory=list)
    others: list[Op] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    # Counted by counter: acknowledged, and of unknown outcome.
    counted: Counter[Key] = field(default_factory=Counter)
    doubtful: Counter[Key] = field(default_factory=Counter)
    done: int = 0
    unknown: int = 0
    refused: int = 0
    scans: int = 0
    # When each finished call began and ended, for the bounds of the liveness phase.
    last_done_us: int = 0


def steady_key(number: int) -> tuple[bytes, bytes]:
    """A row that is written once, before all faults."""
    return b"steady %d" % (number % 7), b"%d" % number


async def open_client(world: World, life: Any, metas: str, *, limit_s: float = 60.0) -> Client:
    """Return a client as soon as a meta server answers."""
    end_ms = world.now_ms + int(limit_s * 1_000)
    while True:
        try:
            return await connect(
                metas,
                timeout=5.0,
                options=ClientOptions(),
                network=life.network,
                clock=life.clock,
                random=life.random(f"client {world.now_ms}"),
            )
        except PegasKVError:
            if world.now_ms > end_ms:
                raise
            await world.sleep_ms(100)


class Writer:
    """One task of one client."""

    def __init__(
        self,
        world: World,
        name: str,
        table: Table,
        history: History,
        random: Random,
        *,
        call_s: float,
    ) -> None:
        self._world = world
        self._name = name.encode()
        self._table = table
        self._history = history
        self._random = random
        self._call_s = call_s
        self._sequence = 0
        self._decrees = _noted_decrees(table)
        # What it read last of each mixed row.
        self._known: dict[Key, bytes | None] = {}

    async def run(self, goes_on: Callable[[], bool], pace_ms: int) -> None:
        """Do one thing after another."""
        while goes_on():
            await self.step()
            pause_ms = self._random.choice([0, 1, 5, pace_ms, 2 * pace_ms])
            if pause_ms:
                await self._world.sleep_ms(pause_ms)

    async def step(self) -> None:
        """Do one thing."""
        random = self._random
        match random.randrange(20):
            case 0 | 1 | 2 | 3:
                await self._write(self._register(), self._value())
            case 4 | 5 | 6 | 7:
                await self.read(self._register())
            case 8 | 9:
                await self._write(self._mixed(), self._value())
            case 10 | 11:
                await self.read(self._mixed())
            case 12:
                await self._delete(self._mixed())
            case 13 | 14:
                await self._exchange(self._mixed())
            case 15:
                await self._set_pair()
            case 16:
                await self._get_pair()
            case 17 | 18:
                await self._count()
            case _:
                if random.random() < 0.1:
                    await self._scan()
                else:
                    await self.read(self._key(b"steady %d", 7, b"0"), check=False)

    # Rows.

    def _key(self, pattern: bytes, count: int, sort_key: bytes = b"s") -> Key:
        return self._table.name, pattern % self._random.randrange(count), sort_key

    def _register(self) -> Key:
        return self._key(b"register %d", REGISTERS)

    def _mixed(self) -> Key:
        return self._key(b"mixed %d", MIXED)

    def _value(self) -> bytes:
        self._sequence += 1
        padding = b"." * self._random.choice([0, 0, 0, 40, 800])
        return b"%s %d %s" % (self._name, self._sequence, padding)

    # What is done.

    async def read(self, key: Key, *, check: bool = True) -> None:
        """Read a row."""
        op = self._begin(Act.READ, key, None)

        async def call() -> None:
            op.value = await self._table.get(key[1], key[2], timeout=self._call_s)

        await self._do([op], call(), check=check)
        if op.outcome is Outcome.DONE:
            self._known[key] = op.value

    async def _write(self, key: Key, value: bytes) -> None:
        op = self._begin(Act.WRITE, key, value)
        await self._do([op], self._table.set(key[1], key[2], value, timeout=self._call_s))

    async def _delete(self, key: Key) -> None:
        op = self._begin(Act.WRITE, key, None)
        await self._do([op], self._table.delete(key[1], key[2], timeout=self._call_s))

    async def _exchange(self, key: Key) -> None:
        expected = self._known.get(key)
        op = self._begin(Act.EXCHANGE, key, self._value())
        op.expected = expected

        async def call() -> None:
            found = await self._table.compare_exchange(
                key[1], key[2], expected, op.value or b"", timeout=self._call_s
            )
            op.passed, op.seen = found.passed, found.value
            if found.passed and found.value != expected:
                self._history.wrong.append(f"{op}: passed, and was {found.value!r}")
            self._known[key] = op.value if found.passed else found.value

        await self._do([op], call())

    async def _set_pair(self) -> None:
        left, value = self._key(b"pair %d", PAIRS, b"left"), self._value()
        right = (*left[:2], b"right")
        ops = [self._begin(Act.WRITE, key, value) for key in (left, right)]
        rows = {b"left": value, b"right": value}
        await self._do(ops, self._table.multi_set(left[1], rows, timeout=self._call_s))

    async def _get_pair(self) -> None:
        left = self._key(b"pair %d", PAIRS, b"left")
        ops = [self._begin(Act.READ, (*left[:2], side), None) for side in (b"left", b"right")]

        async def call() -> None:
            rows = await self._table.multi_get(left[1], timeout=self._call_s)
            for op in ops:
                op.value = rows.get(op.key[2])
            if ops[0].value != ops[1].value:
                self._history.wrong.append(f"half a pair: {ops[0]} and {ops[1].value!r}")

        await self._do(ops, call())

    async def _count(self) -> None:
        key = self._key(b"counter %d", COUNTERS, b"c")
        op = self._begin(Act.COUNT, key, None)

        async def call() -> None:
            op.value = b"%d" % await self._table.incr(key[1], key[2], timeout=self._call_s)

        await self._do([op], call())
        if op.outcome is Outcome.DONE:
            self._history.counted[key] += 1
        elif op.outcome is Outcome.UNKNOWN:
            self._history.doubtful[key] += 1

    async def _scan(self) -> None:
        """Rows that were there all the time are found once each."""
        found: Counter[tuple[bytes, bytes]] = Counter()
        try:
            async for row in self._table.full_scan(timeout=self._call_s):
                found[row.hash_key, row.sort_key] += 1
        except RequestError:
            return
        self._history.scans += 1
        for number in range(STEADY_ROWS):
            key = steady_key(number)
            if found[key] != 1:
                self._history.wrong.append(
                    f"a scan of {self._table.name} finds {key} {found[key]} times"
                )
        twice = [key for key, count in found.items() if count > 1]
        if twice:
            self._history.wrong.append(f"a scan of {self._table.name} finds {twice} twice")

    # Notes.

    def _begin(self, act: Act, key: Key, value: bytes | None) -> Op:
        return Op(act, key, value, self._world.loop.now_us)

    async def _do(self, ops: list[Op], call: Awaitable[Any], *, check: bool = True) -> None:
        history = self._history
        task = asyncio.current_task()
        self._decrees.pop(task, None)
        outcome = Outcome.DONE
        try:
            await call
        except RequestError as error:
            outcome = Outcome.UNKNOWN if outcome_unknown(error) else Outcome.REFUSED
        ended = self._world.loop.now_us
        if outcome is Outcome.DONE:
            history.done += 1
            history.last_done_us = ended
        elif outcome is Outcome.UNKNOWN:
            history.unknown += 1
        else:
            history.refused += 1
        for op in ops:
            op.outcome = outcome
            op.ended = NEVER if outcome is Outcome.UNKNOWN else ended
            if op.act is not Act.READ and outcome is Outcome.DONE:
                op.decree = self._decrees.get(task, 0)
            if not check:
                continue
            if op.key[1].startswith(b"register"):
                history.registers.append(op)
            else:
                history.others.append(op)


def _noted_decrees(table: Table) -> dict[Any, int]:
    """Note the decree in each reply, by the task that waits for it; callers never see it."""
    calls: Any = table._calls
    if hasattr(calls, "noted"):
        return calls.noted  # type: ignore[no-any-return]
    decrees: dict[Any, int] = {}
    calls.noted = decrees
    run, send = calls.run, calls.send

    def note(reply: Any) -> Any:
        if len(reply) > 2 and type(reply[2]) is int:
            decrees[asyncio.current_task()] = reply[2]
        return reply

    async def running(*arguments: Any, **named: Any) -> Any:
        return note(await run(*arguments, **named))

    async def sending(*arguments: Any, **named: Any) -> Any:
        return note(await send(*arguments, **named))

    calls.run, calls.send = running, sending
    return decrees
