"""Duplication between two replicated clusters of real processes, while servers come and go."""

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import pegaskv
from pegaskv.errors import PegasKVError
from pegaskv.runtime.tasks import TaskScope
from tests.cluster.servers import META, Servers
from tests.helpers import pause, poll_until
from tests.scenarios.pair import Pair, running_pair

pytestmark = pytest.mark.process

_TASKS = 6
_KEYS = 40
# Longer than the lease and the grace.
_STOPPED_S = 7.0


class Writers:
    """Tasks that write all the time, each to keys of its own; what was acknowledged is known."""

    def __init__(self, table: pegaskv.Table) -> None:
        self._table = table
        self._going = True
        self.acknowledged: dict[bytes, int] = {}
        self.writes = 0

    async def run(self, number: int) -> None:
        count = 0
        while self._going:
            count += 1
            key = b"writer %d %d" % (number, count % _KEYS)
            try:
                await self._table.set(key, b"s", b"%d" % count, timeout=30.0, retry_unknown=True)
            except PegasKVError:
                continue
            self.acknowledged[key] = count
            self.writes += 1

    def stop(self) -> None:
        self._going = False

    async def check(self, *tables: pegaskv.Table) -> None:
        """All that was acknowledged is there, or something later."""
        assert self.acknowledged
        for table in tables:
            for key, count in self.acknowledged.items():
                found = await table.get(key, b"s", timeout=20.0)
                assert found is not None, key
                assert int(found) >= count, key


@asynccontextmanager
async def writing(table: pegaskv.Table) -> AsyncIterator[Writers]:
    writers = Writers(table)
    async with TaskScope("writers") as scope:
        for number in range(_TASKS):
            scope.start("writer", writers.run(number))
        try:
            yield writers
        finally:
            writers.stop()


async def table_of(pair: Pair, rows: int, partitions: int = 4) -> pegaskv.Table:
    await pair.source.admin.create_table("t", partitions, replica_count=3)
    table = await pair.source.table("t")
    batch = [(b"h%d" % number, b"s", bytes(200)) for number in range(rows)]
    for begin in range(0, rows, 500):
        await table.batch_set(batch[begin : begin + 500])
    return table


async def arrives(pair: Pair, table: pegaskv.Table, within_s: float) -> float:
    """Write once more, and return how long after the answer it was at the target."""
    there = await pair.target.table("t")
    value = b"%d" % time.monotonic_ns()
    await table.set(b"last", b"s", value, timeout=30.0, retry_unknown=True)
    began = time.monotonic()

    async def arrived() -> bool:
        return await there.get(b"last", b"s", timeout=20.0) == value

    await poll_until(arrived, deadline_s=within_s, what="the last write at the target")
    return time.monotonic() - began


async def test_replica_servers_of_both_sides_restart_in_turn_and_nothing_waits(
    tmp_path: Path,
) -> None:
    async with running_pair(tmp_path, replicas=3) as pair:
        table = await table_of(pair, 2_000)
        async with writing(table) as writers:
            await pair.source.admin.add_duplication("t", "beta")
            for cluster in (pair.alpha, pair.beta):
                cluster.restart("replica1")
            await pair.reach("t", "DS_LOG", within_s=10.0)
            assert await arrives(pair, table, 3.0) < 3.0
        await pair.equal("t")
        await writers.check(table, await pair.target.table("t"))
        (found,) = await pair.source.admin.query_duplication("t")
        assert (found.failure, found.gap) == ("", 0)
        assert found.remote_replica_count == 3


async def strike(cluster: Servers, name: str, how: str) -> None:
    """Let one process die, or stand still, and come back."""
    member = cluster.by_name[name]
    if how == "SIGSTOP":
        member.signal(signal.SIGSTOP)
        await pause(_STOPPED_S)
        member.signal(signal.SIGCONT)
        return
    if how == "SIGTERM":
        member.stop()
    else:
        member.kill()
    await pause(1.0)
    member.start()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP", "SIGTERM"])
@pytest.mark.parametrize("phase", ["DS_PREPARE", "DS_APP", "DS_LOG"])
async def test_each_server_of_both_sides_is_struck_in_each_phase(
    tmp_path: Path, phase: str, how: str
) -> None:
    options = "[duplication]\ncopy_bytes_per_second = 40000\n" if phase == "DS_APP" else ""
    async with running_pair(tmp_path, replicas=3, options=options) as pair:
        table = await table_of(pair, 4_000)
        async with writing(table) as writers:
            if phase == "DS_PREPARE":
                pair.proxy.cut()
            await pair.source.admin.add_duplication("t", "beta")
            await pair.reach("t", phase, within_s=10.0)
            for cluster in (pair.alpha, pair.beta):
                for name in (*cluster.replicas, META):
                    await strike(cluster, name, how)
            pair.proxy.heal()
            pair.proxy.reset()
            await pair.reach("t", "DS_LOG", within_s=60.0)
            await arrives(pair, table, 15.0)
        await pair.equal("t", within_s=20.0)
        await writers.check(table, await pair.target.table("t"))
        (found,) = await pair.source.admin.query_duplication("t")
        assert (found.failure, found.gap) == ("", 0)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_server_that_learned_while_it_was_paused_has_the_log_from_where_it_stopped(
    tmp_path: Path,
) -> None:
    async with running_pair(tmp_path, replicas=3) as pair:
        admin = pair.source.admin
        table = await table_of(pair, 500)
        await admin.add_duplication("t", "beta")
        await pair.reach("t", "DS_LOG", within_s=10.0)
        await admin.pause_duplication("t", "beta")
        async with writing(table) as writers:
            await pause(2.0)
        # All that were members go, one after another; others learn in their place.
        old = pair.alpha.replicas
        for _ in old:
            pair.alpha.start(pair.alpha.add())
        for name in old:
            pair.alpha.stop(name)

            async def whole() -> bool:
                details = await admin.table_info("t", timeout=20.0)
                return all(one.primary and len(one.secondaries) == 2 for one in details.partitions)

            await poll_until(whole, deadline_s=60.0, what="three members of each partition")
        await admin.start_duplication("t", "beta")
        await pair.equal("t", within_s=20.0)
        await writers.check(table, await pair.target.table("t"))
        (found,) = await admin.query_duplication("t")
        assert (found.failure, found.gap) == ("", 0)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_two_ways_end_equal_whoever_dies(tmp_path: Path) -> None:
    async with running_pair(tmp_path, replicas=3) as pair:
        table = await table_of(pair, 200)
        await pair.source.admin.add_duplication("t", "beta")
        await pair.reach("t", "DS_LOG", within_s=10.0)
        await pair.target.admin.add_duplication("t", "alpha")
        there = await pair.target.table("t")

        async def write(side: pegaskv.Table, name: bytes) -> None:
            for number in range(1_500):
                key = b"shared %d" % (number % 20)
                try:
                    if number % 7:
                        await side.set(key, b"s", name + b" %d" % number, retry_unknown=True)
                    else:
                        await side.delete(key, b"s", retry_unknown=True)
                except PegasKVError:
                    continue

        async with TaskScope("writers") as scope:
            scope.start("alpha", write(table, b"alpha"))
            scope.start("beta", write(there, b"beta"))
            for cluster in (pair.alpha, pair.beta):
                for name in cluster.replicas[:2]:
                    await strike(cluster, name, "SIGKILL")
        await pair.source.admin.wait_duplicated("t", timeout=40.0)
        await pair.target.admin.wait_duplicated("t", timeout=40.0)
        await pair.source.admin.wait_duplicated("t", timeout=40.0)
        assert await pair.differences("t") == []
