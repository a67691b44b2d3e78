"""Writers and readers of a table, each call remembered, and the judgement of what they saw.

A writer's row has a number that grows with each write, so that every value is written once; it
counts by `incr` in another row. Readers are other tasks, and read any row. At the end the
histories of all rows must be linearizable, and each counter must be what its writer was told,
apart from what it was told that nobody knows.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import pegaskv
from pegaskv.errors import RequestError
from pegaskv.runtime.tasks import TaskScope
from tests.helpers import pause, poll_until
from tests.simulation.checkers import Act, Op, Outcome, check_zones

__all__ = ["Failure", "Workload", "now_us", "running_workload"]

WRITERS = 50
READERS = 10
WRITE_EVERY_S = 0.04
READ_EVERY_S = 0.02
COUNTS_EACH = 4


@dataclass(frozen=True)
class Failure:
    """A call that ended with an error."""

    at_us: int
    what: str
    taken_s: float
    error: RequestError

    def __str__(self) -> str:
        return f"{self.what} after {self.taken_s:.2f} s: {type(self.error).__name__}: {self.error}"


@dataclass
class _Counter:
    acknowledged: int = 0
    unknown: int = 0


def now_us() -> int:
    """The time by which calls are remembered."""
    return time.monotonic_ns() // 1_000


@dataclass
class Workload:
    """The tasks of one table; made by `running_workload`."""

    table: pegaskv.Table
    writers: int = WRITERS
    readers: int = READERS
    ops: list[Op] = field(default_factory=list)
    counters: dict[bytes, _Counter] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    stop: bool = False

    def hash_key(self, number: int) -> bytes:
        """Return the hash key of a writer's rows."""
        return b"writer%d" % number

    async def write(self, writer: int) -> None:
        """Write and count until the end."""
        name = self.hash_key(writer)
        counter = self.counters[name] = _Counter()
        number = 0
        while not self.stop:
            number += 1
            if number % COUNTS_EACH == 0:
                await self._count(name, counter)
            else:
                await self._set(name, b"%d" % number)
            await pause(WRITE_EVERY_S)

    async def _set(self, name: bytes, value: bytes) -> None:
        op = Op(Act.WRITE, ("t", name, b"s"), value, now_us())
        self.ops.append(op)
        try:
            await self.table.set(name, b"s", value)
        except RequestError as error:
            unknown = getattr(error, "maybe_applied", False)
            op.outcome = Outcome.UNKNOWN if unknown else Outcome.REFUSED
            self._fail("set", op.began, error)
        else:
            op.outcome, op.ended = Outcome.DONE, now_us()

    async def _count(self, name: bytes, counter: _Counter) -> None:
        began = now_us()
        try:
            await self.table.incr(name, b"counter")
        except RequestError as error:
            counter.unknown += bool(getattr(error, "maybe_applied", False))
            self._fail("incr", began, error)
        else:
            counter.acknowledged += 1

    async def read(self, chance: Random) -> None:
        """Read until the end."""
        while not self.stop:
            await self._get(self.hash_key(chance.randrange(self.writers)))
            await pause(READ_EVERY_S)

    async def _get(self, name: bytes) -> None:
        op = Op(Act.READ, ("t", name, b"s"), None, now_us())
        try:
            op.value = await self.table.get(name, b"s")
        except RequestError as error:
            self._fail("get", op.began, error)
        else:
            op.outcome, op.ended = Outcome.DONE, now_us()
            self.ops.append(op)

    def _fail(self, what: str, began: int, error: RequestError) -> None:
        now = now_us()
        self.failures.append(Failure(now, what, (now - began) / 1e6, error))

    # What is asked of it meanwhile.

    @property
    def acknowledged(self) -> int:
        """How many calls were answered."""
        return sum(op.outcome is Outcome.DONE for op in self.ops)

    async def gaps(self, since_us: int, *, deadline_s: float) -> dict[int, float]:
        """Wait until each partition has taken a write made after `since_us`.

        Returns the seconds that it took, by the index of the partition.
        """
        partition = {
            ("t", self.hash_key(each), b"s"): self.table.partition_of(self.hash_key(each))
            for each in range(self.writers)
        }
        first: dict[int, int] = {}
        looked = next((at for at, op in enumerate(self.ops) if op.began >= since_us), len(self.ops))

        def all_have() -> bool:
            for op in self.ops[looked:]:
                if op.act is Act.WRITE and op.outcome is Outcome.DONE and op.began >= since_us:
                    index = partition[op.key]
                    first[index] = min(first.get(index, op.ended), op.ended)
            return len(first) == len(set(partition.values()))

        await poll_until(all_have, deadline_s=deadline_s, what="a write of each partition")
        return {index: (ended - since_us) / 1e6 for index, ended in first.items()}

    @asynccontextmanager
    async def none_fails(self) -> AsyncIterator[None]:
        """Fail the test if a call fails in the block."""
        before = len(self.failures)
        yield
        failed = [str(each) for each in self.failures[before:]]
        assert failed == [], f"{len(failed)} calls failed: {failed[:3]}"

    # The end.

    async def judge(self) -> None:
        """Read all rows once more, then compare everything with what was promised."""
        assert self.stop
        for writer in range(self.writers):
            await self._get(self.hash_key(writer))
        assert self.acknowledged > 10 * self.writers, "hardly anything was written"
        wrong = check_zones(self.ops)
        assert wrong == [], f"{len(wrong)} contradictions: {wrong[:5]}"
        for name, counter in self.counters.items():
            value = int(await self.table.get(name, b"counter") or b"0")
            most = counter.acknowledged + counter.unknown
            assert counter.acknowledged <= value <= most, (name, value, counter)


@asynccontextmanager
async def running_workload(
    table: pegaskv.Table, *, writers: int = WRITERS, readers: int = READERS, seed: int = 0
) -> AsyncIterator[Workload]:
    """Tasks that write and read until the end of the block, which judges what they saw."""
    load = Workload(table, writers, readers)
    async with TaskScope("workload") as scope:
        for writer in range(writers):
            scope.start("writer", load.write(writer))
        for reader in range(readers):
            scope.start("reader", load.read(Random(f"{seed} {reader}")))
        await poll_until(lambda: len(load.ops) > writers, what="the first writes")
        yield load
        load.stop = True
    await load.judge()
