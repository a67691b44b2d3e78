"""Chaos on both sides of a duplication with real processes, then peace, then equality.

Servers are killed with SIGKILL and stopped with SIGSTOP in turn on either side, the link
is cut in either direction and reset, while writers go on. When everything is well again
no acknowledged write is missing at the source, and the rows of both sides are equal soon.
"""

import asyncio
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import pegaskv
from pegaskv.errors import PegasKVError, RequestError
from pegaskv.runtime.tasks import TaskScope
from tests.cluster.process import ServerProcess
from tests.helpers import pause, poll_until
from tests.scenarios.pair import Pair, running_pair

pytestmark = pytest.mark.process

WRITERS = 12
CALL_S = 1.0
EQUAL_WITHIN_S = 10.0


@dataclass
class Writer:
    """One task with keys of its own, so that it knows what must be there."""

    name: bytes
    # What each sort key may hold: the acknowledged value, and those that may have come since.
    maybe: dict[bytes, set[bytes | None]] = field(default_factory=dict)
    acknowledged: int = 0


async def write(client: pegaskv.Client, writer: Writer, stop: asyncio.Event, seed: int) -> None:
    rng = random.Random(seed)
    table = await client.table("t")
    number = 0
    while not stop.is_set():
        number += 1
        sort_key = b"%d" % rng.randrange(20)
        value: bytes | None = None if rng.random() < 0.25 else b"%s %d" % (writer.name, number)
        maybe = writer.maybe.setdefault(sort_key, {None})
        maybe.add(value)
        try:
            if value is None:
                await table.delete(writer.name, sort_key, timeout=CALL_S)
            else:
                ttl = rng.choice([0, 0, 86_400])
                await table.set(writer.name, sort_key, value, ttl=ttl, timeout=CALL_S)
        except RequestError:
            continue
        writer.maybe[sort_key] = {value}
        writer.acknowledged += 1


async def disturb(pair: Pair, rng: random.Random) -> str:
    victim: ServerProcess = rng.choice([pair.alpha, pair.beta])
    match rng.randrange(5):
        case 0 | 1:
            await asyncio.to_thread(victim.kill)
            await pause(rng.choice([0.0, 0.3, 1.0]))
            await asyncio.to_thread(victim.start)
            return "kill -9"
        case 2:
            victim.signal(signal.SIGSTOP)
            await pause(rng.choice([0.2, 1.5]))
            victim.signal(signal.SIGCONT)
            return "SIGSTOP"
        case 3:
            pair.proxy.cut(requests=rng.random() < 0.7, replies=rng.random() < 0.7)
            await pause(rng.choice([0.2, 2.0]))
            pair.proxy.heal()
            return "cut"
        case _:
            pair.proxy.reset()
            return "reset"


async def chaos(pair: Pair, *, seconds: float, seed: int, two_way: bool) -> None:
    rng = random.Random(seed)
    await pair.source.admin.create_table("t", 4)
    await pair.source.admin.add_duplication("t", "beta")
    await pair.reach("t", "DS_LOG", within_s=10.0)
    sides = [pair.source]
    if two_way:
        await pair.target.admin.add_duplication("t", "alpha")
        sides.append(pair.target)
    stop = asyncio.Event()
    writers: list[Writer] = []
    seen: set[str] = set()
    async with TaskScope("chaos") as scope:
        for number in range(WRITERS):
            side = number % len(sides)
            writer = Writer(b"writer-%d" % number)
            writers.append(writer)
            scope.start("writer", write(sides[side], writer, stop, seed + number))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await pause(rng.uniform(0.1, 1.0))
            seen.add(await disturb(pair, rng))
        pair.proxy.heal()
        stop.set()
    assert sum(writer.acknowledged for writer in writers) > 100
    assert len(seen) > 1
    await settled(pair, sides)
    assert await pair.differences("t") == []
    table = await pair.source.table("t")
    for writer in writers:
        rows = await table.multi_get(writer.name)
        for sort_key, maybe in writer.maybe.items():
            assert rows.get(sort_key) in maybe, f"{writer.name!r} {sort_key!r}"


async def settled(pair: Pair, sides: list[pegaskv.Client]) -> None:
    """Both are healthy: rows are equal within ten seconds, with nothing for anybody to do."""

    async def reachable() -> bool:
        try:
            for client in (pair.source, pair.target):
                await client.admin.list_tables(timeout=1.0)
        except PegasKVError:
            return False
        return True

    await poll_until(reachable, deadline_s=20.0, what="both servers answer")
    end = time.monotonic() + EQUAL_WITHIN_S
    for client in sides:
        await client.admin.wait_duplicated("t", timeout=max(0.1, end - time.monotonic()))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "two_way",
    [pytest.param(False, id="one way", marks=pytest.mark.soak), pytest.param(True, id="two ways")],
)
async def test_chaos_and_then_equality(tmp_path: Path, *, two_way: bool) -> None:
    async with running_pair(tmp_path) as pair:
        await chaos(pair, seconds=5.0, seed=1, two_way=two_way)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("two_way", [False, True], ids=["one way", "two ways"])
async def test_chaos_for_as_long_as_it_is_given(tmp_path: Path, *, two_way: bool) -> None:
    seconds = 60 * float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    async with running_pair(tmp_path) as pair:
        seed = time.time_ns() % 1_000_000
        try:
            await chaos(pair, seconds=seconds, seed=seed, two_way=two_way)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}") from error
