"""The second half of the bench `replication`: how long a death is felt, how fast a copy is made."""

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pegaskv
from pegaskv.errors import PegasKVError
from pegaskv.runtime.tasks import TaskScope
from tools.bench.clusters import Cluster, members, running_cluster, until, whole
from tools.bench.processes import Server
from tools.bench.report import OURS, Report

__all__ = ["measure_copies", "measure_failover"]

PARTITIONS: Final = 16
# What clients take by default.
TIMEOUT_S: Final = 5
AGAIN_S: Final = 0.02
# What an empty server gets a copy of; in a trial of the bench itself, a little.
MEGABYTES: Final = 1_000
_TRIAL_MEGABYTES: Final = 2
VALUE_BYTES: Final = 1_000
_BATCH: Final = 200
_LOADERS: Final = 8
_PROBES: Final = 16
_PROBE_EVERY_S: Final = 0.02


def _rank(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


# --- A server dies ---------------------------------------------------------------------------


def _one_key_each(table: pegaskv.Table) -> list[bytes]:
    """Return a hash key of each partition."""
    found: dict[int, bytes] = {}
    number = 0
    while len(found) < PARTITIONS:
        key = b"key%d" % number
        found.setdefault(table.partition_of(key), key)
        number += 1
    return [found[index] for index in range(PARTITIONS)]


@dataclass
class _Watch:
    """When each partition answered first a call that was made after `since`."""

    since: float = 0.0
    writes: dict[int, float] = field(default_factory=dict)
    reads: dict[int, float] = field(default_factory=dict)
    failed: int = 0
    stop: bool = False

    def begin(self) -> None:
        """From now on it counts."""
        self.writes.clear()
        self.reads.clear()
        self.since = time.perf_counter()

    def whole(self) -> bool:
        """Whether all have answered."""
        return len(self.writes) == len(self.reads) == PARTITIONS

    async def ask(self, index: int, call: Callable[[], Awaitable[Any]], kind: str) -> None:
        """Call until the end."""
        answers = self.writes if kind == "write" else self.reads
        while not self.stop:
            began = time.perf_counter()
            try:
                await call()
            except PegasKVError:
                self.failed += 1
                await asyncio.sleep(AGAIN_S)
            else:
                if began >= self.since:
                    answers.setdefault(index, time.perf_counter() - self.since)
                await asyncio.sleep(AGAIN_S / 4)


@dataclass
class _Gaps:
    """Seconds, by what the dead server was to a partition and what was asked."""

    # Of each death, one for each partition.
    taken: dict[tuple[str, str], list[list[float]]] = field(default_factory=dict)
    redundant: list[float] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)

    def add(self, watch: _Watch, roles: list[str]) -> None:
        """Take what one death has cost."""
        for kind, answers in (("writes", watch.writes), ("reads", watch.reads)):
            for role in set(roles):
                seconds = [answers[index] for index in answers if roles[index] == role]
                self.taken.setdefault((role, kind), []).append(seconds)
        self.failed.append(watch.failed)

    def report(self, report: Report) -> None:
        """Say it."""
        for (role, kind), deaths in sorted(self.taken.items()):
            title = f"kill -9 of a {role}: {kind} again"
            middle = report.start(f"{title}, p50", "s")
            for seconds in deaths:
                middle.add({OURS: statistics.median(seconds)})
            every = [value for seconds in deaths for value in seconds]
            report.start(f"{title}, p99", "s").add({OURS: _rank(every, 0.99)})
        for name, unit, values in (
            ("kill -9: calls that failed, default options", "calls", self.failed),
            ("kill -9: all replicas again, from the restart on", "s", self.redundant),
        ):
            comparison = report.start(name, unit)
            for value in values:
                comparison.add({OURS: value})


async def measure_failover(report: Report, rounds: int) -> None:
    """End the server that leads most, and count until every partition serves again."""
    gaps = _Gaps()
    with running_cluster(3) as cluster:
        async with pegaskv.connect(cluster.address, timeout=TIMEOUT_S) as client:
            await client.admin.create_table("t", PARTITIONS, 3)
            await until(lambda: whole(client, "t"), "three replicas")
            table = await client.table("t")
            watch = _Watch()
            async with TaskScope("callers") as scope:
                for index, key in enumerate(_one_key_each(table)):
                    scope.start("writer", watch.ask(index, _writes(table, key), "write"))
                    scope.start("reader", watch.ask(index, _reads(table, key), "read"))
                for _ in range(rounds):
                    await until(watch.whole, "answers of all partitions")
                    await _one_death(cluster, client, watch, gaps)
                watch.stop = True
    gaps.report(report)


def _writes(table: pegaskv.Table, key: bytes) -> Callable[[], Awaitable[Any]]:
    return lambda: table.set(key, b"s", b"value")


def _reads(table: pegaskv.Table, key: bytes) -> Callable[[], Awaitable[Any]]:
    return lambda: table.get(key, b"s")


async def _one_death(cluster: Cluster, client: pegaskv.Client, watch: _Watch, gaps: _Gaps) -> None:
    before = await members(client, "t")
    led = [one[0] for one in before]
    victim_id = max(set(led), key=led.count)
    victim = await _server_of(cluster, client, victim_id)
    watch.failed = 0
    victim.kill()
    watch.begin()
    await until(watch.whole, "answers of all partitions after a death")
    gaps.add(watch, ["primary" if one == victim_id else "secondary" for one in led])
    began = time.perf_counter()
    await asyncio.to_thread(victim.start)
    await until(lambda: whole(client, "t"), "three replicas after a death")
    gaps.redundant.append(time.perf_counter() - began)


async def _server_of(cluster: Cluster, client: pegaskv.Client, node_id: str) -> Server:
    for server in cluster.replicas:
        if await cluster.node_id(client, server) == node_id:
            return server
    raise SystemExit(f"no server is node {node_id}")


# --- A copy is made --------------------------------------------------------------------------


def _batches(rows: int) -> Iterator[list[tuple[bytes, bytes, bytes]]]:
    """Rows that cannot be compressed."""
    pool = random.Random(1).randbytes(1 << 20)
    for begin in range(0, rows, _BATCH):
        batch = []
        for number in range(begin, min(rows, begin + _BATCH)):
            place = number * 7_919 % (len(pool) - VALUE_BYTES)
            batch.append((b"row%09d" % number, b"s", pool[place : place + VALUE_BYTES]))
        yield batch


async def _fill(table: pegaskv.Table, rows: int) -> None:
    batches = _batches(rows)

    async def write() -> None:
        for batch in batches:
            await table.batch_set(batch)

    async with TaskScope("load") as scope:
        for _ in range(_LOADERS):
            scope.start("load", write())


@dataclass
class _Probe:
    """Calls that go on meanwhile."""

    table: pegaskv.Table
    rows: int
    taken: list[float] = field(default_factory=list)
    failed: int = 0
    stop: bool = False

    async def run(self, task: int) -> None:
        """Read and write until the end."""
        number = task
        while not self.stop:
            began = time.perf_counter()
            key = b"row%09d" % (number * 7_919 % self.rows)
            try:
                if number % 2:
                    await self.table.set(key, b"other", b"value")
                else:
                    await self.table.get(key, b"s")
            except PegasKVError:
                self.failed += 1
            else:
                self.taken.append((time.perf_counter() - began) * 1_000)
            number += _PROBES + 1
            await asyncio.sleep(_PROBE_EVERY_S)


async def measure_copies(report: Report, *, trial: bool) -> None:
    """Let an empty server have a copy of everything."""
    megabytes = _TRIAL_MEGABYTES if trial else MEGABYTES
    rows = megabytes * 1_000_000 // VALUE_BYTES
    with running_cluster(2) as cluster:
        async with pegaskv.connect(cluster.address, timeout=TIMEOUT_S) as client:
            # What is moved is what is asked for, and nothing for balance.
            await client.admin.set_meta_level("steady")
            await client.admin.create_table("t", 8, 2, {"durability": "os"})
            await until(lambda: whole(client, "t"), "two replicas")
            table = await client.table("t")
            await _fill(table, rows)
            await asyncio.to_thread(cluster.add)
            probe = _Probe(table, rows)
            async with TaskScope("probe") as scope:
                for task in range(_PROBES):
                    scope.start("probe", probe.run(task))
                await asyncio.sleep(_PROBE_EVERY_S * 10)
                probe.taken.clear()
                cpu = cluster.cpu_seconds()
                await client.admin.set_replica_count("t", 3)
                taken = await until(lambda: whole(client, "t"), "three replicas")
                cpu = cluster.cpu_seconds() - cpu
                probe.stop = True
    for name, unit, value in (
        (f"a copy to an empty server, {megabytes} MB", "MB/s", megabytes / taken),
        ("server CPU of the copy", "ms/MB", cpu * 1_000 / megabytes),
        ("calls during the copy, p99", "ms", _rank(probe.taken, 0.99)),
        ("calls during the copy, longest", "ms", max(probe.taken)),
        ("calls that failed during the copy", "calls", probe.failed),
    ):
        report.start(name, unit).add({OURS: value})
