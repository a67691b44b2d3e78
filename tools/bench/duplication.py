"""Duplication between two standalone servers, beside a Redis replica.

What is measured, each round on a fresh table: the time from one write after silence to
the moment when the other cluster serves it (both sides synced to disk; the peer syncs
nothing), the time from `add_dup` to DS_LOG for empty tables, rows copied in a second, and
writes of a paused duplication shipped in a second.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pegaskv
from pegaskv.runtime.tasks import TaskScope
from tools.bench.peers import redis_server
from tools.bench.processes import pegaskv_server
from tools.bench.report import OURS, Report

__all__ = ["run"]

VALUE = bytes(100)
WRITES = 200
SILENCE_S = 0.01
BATCH = 500


def _rank(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def _load(table: pegaskv.Table, prefix: bytes, rows: int) -> None:
    """Write `rows` rows, a few batches at a time."""
    names = [b"%s%08d" % (prefix, number) for number in range(rows)]
    batches = [
        [(name, b"s", VALUE) for name in names[begin : begin + BATCH]]
        for begin in range(0, rows, BATCH)
    ]
    todo = iter(batches)

    async def load() -> None:
        for batch in todo:
            await table.batch_set(batch)

    async with TaskScope("load") as scope:
        for _ in range(8):
            scope.start("load", load())


class _Clusters:
    def __init__(self, source: pegaskv.Client, target: pegaskv.Client) -> None:
        self.source = source
        self.target = target
        self._names = 0

    async def table(self, partitions: int) -> tuple[str, pegaskv.Table]:
        self._names += 1
        name = f"bench{self._names}"
        await self.source.admin.create_table(name, partitions)
        return name, await self.source.table(name)

    async def duplicate(self, name: str) -> float:
        """Add a duplication; return the seconds to DS_LOG."""
        began = time.perf_counter()
        await self.source.admin.add_duplication(name, "beta")
        while True:
            (one,) = await self.source.admin.query_duplication(name)
            if one.status.value == "DS_LOG":
                return time.perf_counter() - began
            await asyncio.sleep(0.002)


async def _last_write(clusters: _Clusters) -> list[float]:
    """Milliseconds from each write after silence until the target serves it."""
    name, table = await clusters.table(8)
    await clusters.duplicate(name)
    there = await clusters.target.table(name)
    taken = []
    for number in range(WRITES):
        await asyncio.sleep(SILENCE_S)
        value = b"%d" % number
        began = time.perf_counter()
        await table.set(b"h%d" % (number % 64), b"s", value)
        while await there.get(b"h%d" % (number % 64), b"s") != value:
            pass
        taken.append((time.perf_counter() - began) * 1_000)
    return taken


async def _copy(clusters: _Clusters, rows: int) -> float:
    """Rows a second of a copy."""
    name, table = await clusters.table(8)
    await _load(table, b"row", rows)
    return rows / await clusters.duplicate(name)


async def _backlog(clusters: _Clusters, rows: int) -> float:
    """Writes a second that a duplication catches up."""
    name, table = await clusters.table(8)
    await clusters.duplicate(name)
    (one,) = await clusters.source.admin.query_duplication(name)
    await clusters.source.admin.pause_duplication(name, one.dupid)
    await _load(table, b"late", rows)
    began = time.perf_counter()
    await clusters.source.admin.start_duplication(name, one.dupid)
    await clusters.source.admin.wait_duplicated(name, timeout=300)
    return rows / (time.perf_counter() - began)


def _redis_last_write(source: Any, target: Any) -> list[float]:
    taken = []
    for number in range(WRITES):
        time.sleep(SILENCE_S)
        value = b"%d" % number
        began = time.perf_counter()
        source.set(b"h%d" % (number % 64), value)
        while target.get(b"h%d" % (number % 64)) != value:
            pass
        taken.append((time.perf_counter() - began) * 1_000)
    return taken


def _redis_copy(source: Any, target: Any, source_port: int, rows: int) -> float:
    target.replicaof("NO", "ONE")
    source.flushall()
    with source.pipeline(transaction=False) as pipeline:
        for number in range(rows):
            pipeline.set(b"row%08d" % number, VALUE)
        pipeline.execute()
    began = time.perf_counter()
    target.replicaof("127.0.0.1", source_port)
    while target.info("replication").get("master_link_status") != "up":
        time.sleep(0.002)
    while target.dbsize() < rows:
        time.sleep(0.002)
    return rows / (time.perf_counter() - began)


class _Redis:
    """A Redis with a replica, if there is one to be had."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        import redis

        source = stack.enter_context(redis_server())
        target = stack.enter_context(redis_server())
        self.there = source is not None and target is not None
        self.port = 0
        if source is not None and target is not None:
            self.port = source.port
            self.source = redis.Redis(port=source.port)
            self.target = redis.Redis(port=target.port)

    def measure(self, what: Callable[..., Any], *arguments: Any) -> Any:
        return what(self.source, self.target, *arguments) if self.there else None


async def _compare(seconds: float, rounds: int) -> Report:
    rows = int(100_000 * seconds)
    report = Report("duplication", __doc__ or "")
    p50, p99, empty8, empty64, copy, backlog = [
        report.start(name, unit)
        for name, unit in (
            ("last write, idle, 50th percentile", "ms"),
            ("last write, idle, 99th percentile", "ms"),
            ("add_dup to DS_LOG, 8 empty partitions", "s"),
            ("add_dup to DS_LOG, 64 empty partitions", "s"),
            (f"copy of {rows:,} rows of 100 bytes", "rows/s"),
            (f"backlog of {rows:,} writes of 100 bytes", "writes/s"),
        )
    ]
    with contextlib.ExitStack() as stack:
        alpha = stack.enter_context(pegaskv_server(cluster="alpha", cluster_id=1)).port
        beta = stack.enter_context(pegaskv_server(cluster="beta", cluster_id=2)).port
        redis = _Redis(stack)
        async with (
            pegaskv.connect(f"127.0.0.1:{alpha}", timeout=60) as source,
            pegaskv.connect(f"127.0.0.1:{beta}", timeout=60) as target,
        ):
            await source.admin.add_cluster("beta", f"127.0.0.1:{beta}", 2)
            clusters = _Clusters(source, target)
            for _ in range(rounds):
                theirs = redis.measure(_redis_copy, redis.port, rows)
                copy.add({OURS: await _copy(clusters, rows), "Redis": theirs})
                ours = await _last_write(clusters)
                theirs = redis.measure(_redis_last_write)
                for comparison, share in ((p50, 0.5), (p99, 0.99)):
                    comparison.add(
                        {OURS: _rank(ours, share), "Redis": theirs and _rank(theirs, share)}
                    )
                for comparison, partitions in ((empty8, 8), (empty64, 64)):
                    name, _ = await clusters.table(partitions)
                    comparison.add({OURS: await clusters.duplicate(name)})
                backlog.add({OURS: await _backlog(clusters, rows)})
    return report


def run(seconds: float, rounds: int) -> Report:
    """Measure; a copy and a backlog have 100 000 rows for each of `seconds`."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_compare(seconds, rounds))
