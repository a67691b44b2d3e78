"""kill -9 at random moments under load: every acknowledged write is there, none is invented."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import pegaskv
from pegaskv.errors import Busy, RequestError, Timeout, Unavailable
from pegaskv.runtime.tasks import TaskScope
from tests.cluster.process import ServerProcess, running_server
from tests.helpers import poll_until

pytestmark = pytest.mark.process

TASKS = 50
# Short, so that writers notice soon that the server is gone.
CALL_S = 0.5


@dataclass
class Writer:
    """One task's own keys: what it was told, and what it tried last."""

    name: bytes
    attempted: int = 0
    done: int = 0
    # The last acknowledged number of each kind of write.
    acknowledged: dict[int, int] = field(default_factory=dict)
    increments: int = 0
    unknown_increments: int = 0


@dataclass
class Table:
    """A table under test with its writers."""

    table: pegaskv.Table
    writers: list[Writer] = field(default_factory=list)


async def write_until_it_breaks(table: pegaskv.Table, writer: Writer) -> None:
    """Write growing numbers until the server is gone."""
    while True:
        number = writer.attempted = writer.attempted + 1
        value = b"%d" % number
        try:
            match number % 3:
                case 0:
                    rows = {b"left": value, b"right": value}
                    await table.multi_set(writer.name, rows, timeout=CALL_S)
                case 1:
                    await table.set(writer.name, b"single", value, timeout=CALL_S)
                case _:
                    try:
                        await table.incr(writer.name, b"counter", timeout=CALL_S)
                    except (Timeout, Unavailable):
                        writer.unknown_increments += 1
                        raise
                    writer.increments += 1
        except Busy:
            continue
        except RequestError:
            return
        writer.acknowledged[number % 3] = number
        writer.done += 1


async def check(table: pegaskv.Table, writer: Writer) -> None:
    """Compare what is there with what the writer knows."""
    rows = await table.multi_get(writer.name)
    left, right = rows.get(b"left"), rows.get(b"right")
    assert left == right, f"half a multi_set of {writer.name!r}: {left!r}, {right!r}"
    for sort_key, remainder in ((b"left", 0), (b"single", 1)):
        last = writer.acknowledged.get(remainder, -1)
        got = int(rows.get(sort_key, b"-1"))
        assert last <= got <= writer.attempted, f"{writer.name!r}: told {last}, found {got}"
        assert got < 0 or got % 3 == remainder, f"{writer.name!r}: invented {got}"
    counter = int(rows.get(b"counter", b"0"))
    assert writer.increments <= counter <= writer.increments + writer.unknown_increments


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ServerProcess]:
    with running_server(tmp_path / "server") as server:
        yield server


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rounds", [4, pytest.param(30, marks=pytest.mark.soak)])
async def test_no_acknowledged_write_is_lost_by_kill_9(server: ServerProcess, rounds: int) -> None:
    rng = random.Random(0)
    async with pegaskv.connect(server.address, timeout=20.0) as client:
        tables = []
        for durability in ("fsync", "os"):
            await client.admin.create_table(durability, 4, envs={"durability": durability})
            tables.append(Table(await client.table(durability)))
        for number, table in enumerate(tables):
            table.writers = [Writer(b"writer-%d-%d" % (number, task)) for task in range(TASKS // 2)]
        for _ in range(rounds):
            async with TaskScope("writers") as scope:
                for table in tables:
                    for writer in table.writers:
                        scope.start("writer", write_until_it_breaks(table.table, writer))
                # At once, or when some thousands of writes were acknowledged.
                goal = told(tables) + rng.randrange(6_000)
                await poll_until(
                    lambda goal=goal: told(tables) >= goal,  # type: ignore[misc]
                    deadline_s=60.0,
                    what="that many writes",
                )
                await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for table in tables:
                for writer in table.writers:
                    await check(table.table, writer)
                    # What is there now is the truth for the next round.
                    await settle(table.table, writer)
        assert told(tables) > rounds * TASKS, "hardly anything was written"


def told(tables: list[Table]) -> int:
    """How many writes were acknowledged so far."""
    return sum(writer.done for table in tables for writer in table.writers)


async def settle(table: pegaskv.Table, writer: Writer) -> None:
    """Resolve what was unknown, so that doubt does not add up over the rounds."""
    value = await table.get(writer.name, b"counter")
    writer.increments = int(value or b"0")
    writer.unknown_increments = 0
