"""Duplication between two standalone servers, beside a Redis and its replica.

Times run from the sending of a write at one cluster to the moment when the other one serves it,
seen by a reader that asks again and again: after silence, and while 5 000 writes a second flow.
Ours is synced to disk on both sides, Redis syncs nothing. A copy is the time from `add_dup` to
DS_LOG, or Redis's full sync of a new replica: with the 5 s that it waits by default, and without
them. A stream is as many rows written in batches of 500 as 8 writers can, until both ends have
them. A backlog is what was written while a duplication was paused; its peers are the stream, and
a replica of Redis whose process was stopped meanwhile. Each round has fresh tables.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import pegaskv
from pegaskv.runtime.tasks import TaskScope
from tools.bench.loading import VALUE, load, names
from tools.bench.peers import NO_REDIS, Peer, redis_server
from tools.bench.processes import pegaskv_server
from tools.bench.report import OURS, Report

__all__ = ["REDIS", "STREAM", "run"]

REDIS: Final = "Redis"
STREAM: Final = "Redis, stream"
STOPPED: Final = "Redis, stopped"
NO_DELAY: Final = "Redis, no delay"
# Rows of a copy and of a backlog, for each of `seconds` up to one.
ROWS: Final = 1_000_000
# Writes after silence, for each of `seconds`.
IDLE_WRITES: Final = 200
SILENCE_S: Final = 0.01
# Writers of the steady load and how often each one writes: 5 000 writes a second.
WRITERS: Final = 50
WRITE_EVERY_S: Final = 0.01
REMOTE: Final = "beta"


def _rank(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@dataclass(frozen=True)
class _Path:
    """A write at one end, a read at the other."""

    set: Callable[[bytes, bytes], Awaitable[Any]]
    get: Callable[[bytes], Awaitable[bytes | None]]

    async def lag_ms(self, number: int) -> float:
        """Milliseconds from a write until the other end serves it."""
        name, value = b"marker%d" % (number % 64), b"%d" % number
        began = time.perf_counter()
        await self.set(name, value)
        while await self.get(name) != value:
            pass
        return (time.perf_counter() - began) * 1_000

    async def idle(self, writes: int) -> list[float]:
        """The lag of each of `writes` writes, after silence."""
        taken: list[float] = []
        for number in range(writes):
            await asyncio.sleep(SILENCE_S)
            taken.append(await self.lag_ms(number))
        return taken

    async def under_load(self, seconds: float) -> tuple[list[float], float]:
        """The lag of single writes while others flow, and how many of those did a second."""
        written = 0
        end = time.perf_counter() + seconds

        async def write(number: int) -> None:
            nonlocal written
            due = time.perf_counter() + WRITE_EVERY_S * number / WRITERS
            while due < end:
                await asyncio.sleep(due - time.perf_counter())
                await self.set(b"load%d.%d" % (number, written % 400), VALUE)
                written += 1
                due += WRITE_EVERY_S

        taken: list[float] = []
        began = time.perf_counter()
        async with TaskScope("load") as scope:
            for number in range(WRITERS):
                scope.start("write", write(number))
            while time.perf_counter() < end or not taken:
                taken.append(await self.lag_ms(len(taken)))
                await asyncio.sleep(0.002)
        return taken, written / (time.perf_counter() - began)


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
        await self.source.admin.add_duplication(name, REMOTE)
        while True:
            (one,) = await self.source.admin.query_duplication(name)
            if one.status.value == "DS_LOG":
                return time.perf_counter() - began
            await asyncio.sleep(0.002)

    async def drop(self, name: str) -> None:
        """End the table at both ends, so that it is in nobody's way."""
        (one,) = await self.source.admin.query_duplication(name)
        await self.source.admin.remove_duplication(name, one.dupid)
        for client in (self.source, self.target):
            await client.admin.drop_table(name, 0, force=True)

    async def empty(self, partitions: int) -> float:
        """Seconds to DS_LOG of an empty table."""
        name, _ = await self.table(partitions)
        taken = await self.duplicate(name)
        await self.drop(name)
        return taken

    async def lags(self, seconds: float) -> "_Lags":
        name, table = await self.table(8)
        await self.duplicate(name)
        there = await self.target.table(name)
        lags = await _Lags.of(
            _Path(lambda key, value: table.set(key, b"s", value), lambda key: there.get(key, b"s")),
            seconds,
        )
        await self.drop(name)
        return lags

    async def copy(self, rows: int) -> float:
        """Rows a second of a copy."""
        name, table = await self.table(8)
        await load(table, names(b"row", rows))
        rate = rows / await self.duplicate(name)
        await self.drop(name)
        return rate

    async def stream(self, rows: int) -> float:
        """Rows a second that are written and shipped at the same time."""
        name, table = await self.table(8)
        await self.duplicate(name)
        began = time.perf_counter()
        await load(table, names(b"row", rows))
        await self.source.admin.wait_duplicated(name, timeout=300)
        rate = rows / (time.perf_counter() - began)
        await self.drop(name)
        return rate

    async def backlog(self, rows: int) -> float:
        """Rows a second that a duplication catches up."""
        name, table = await self.table(8)
        await self.duplicate(name)
        admin = self.source.admin
        (one,) = await admin.query_duplication(name)
        await admin.pause_duplication(name, one.dupid)
        await load(table, names(b"late", rows))
        began = time.perf_counter()
        await admin.start_duplication(name, one.dupid)
        await admin.wait_duplicated(name, timeout=300)
        rate = rows / (time.perf_counter() - began)
        await self.drop(name)
        return rate


@dataclass(frozen=True)
class _Lags:
    idle: list[float]
    loaded: list[float]
    writes_per_second: float

    @classmethod
    async def of(cls, path: _Path, seconds: float) -> "_Lags":
        idle = await path.idle(max(5, int(IDLE_WRITES * seconds)))
        loaded, rate = await path.under_load(max(0.2, 2 * seconds))
        return cls(idle, loaded, rate)


class _RedisPair:
    """A Redis and another one that becomes its replica, each round anew."""

    def __init__(self, source: Peer, target: Peer) -> None:
        import redis.asyncio as redis

        self._source_port = source.port
        self._target_pid = target.pid
        self.source: Any = redis.Redis(port=source.port, max_connections=256)
        self.target: Any = redis.Redis(port=target.port, max_connections=256)

    async def aclose(self) -> None:
        await self.source.aclose()
        await self.target.aclose()

    async def _load(self, prefix: bytes, rows: int) -> None:
        """Write `rows` rows, as `loading.load` does."""
        keys = names(prefix, rows)
        batches = (keys[begin : begin + 500] for begin in range(0, rows, 500))

        async def write() -> None:
            for batch in batches:
                async with self.source.pipeline(transaction=False) as calls:
                    for name in batch:
                        calls.set(name, VALUE)
                    await calls.execute()

        async with TaskScope("load") as scope:
            for _ in range(8):
                scope.start("load", write())

    async def _reach(self, rows: int) -> None:
        while True:
            if await self.target.dbsize() >= rows:
                return
            await asyncio.sleep(0.002)

    async def _attach(self, *, delay_s: int = 0) -> None:
        await self.source.config_set("repl-diskless-sync-delay", delay_s)
        await self.target.replicaof("127.0.0.1", self._source_port)
        while True:
            state = await self.target.info("replication")
            if state.get("master_link_status") == "up":
                return
            await asyncio.sleep(0.002)

    async def _detach(self) -> None:
        await self.target.replicaof("NO", "ONE")
        await self.source.flushall()
        await self.target.flushall()

    async def lags(self, seconds: float) -> _Lags:
        await self._attach()
        lags = await _Lags.of(_Path(self.source.set, self.target.get), seconds)
        await self._detach()
        return lags

    async def copies(self, rows: int) -> dict[str, float | None]:
        """Rows a second of a full sync, as it comes and without its delay."""
        taken: dict[str, float | None] = {}
        for name, delay_s in ((REDIS, 5), (NO_DELAY, 0)):
            await self._load(b"row", rows)
            began = time.perf_counter()
            await self._attach(delay_s=delay_s)
            await self._reach(rows)
            taken[name] = rows / (time.perf_counter() - began)
            await self._detach()
        return taken

    async def stream(self, rows: int) -> float:
        """Rows a second that are written and reach the replica at the same time."""
        await self._attach()
        began = time.perf_counter()
        await self._load(b"row", rows)
        await self._reach(rows)
        rate = rows / (time.perf_counter() - began)
        await self._detach()
        return rate

    async def backlog(self, rows: int) -> float:
        """Rows a second that a replica catches up which was stopped."""
        await self._attach()
        os.kill(self._target_pid, signal.SIGSTOP)
        try:
            await self._load(b"late", rows)
        finally:
            began = time.perf_counter()
            os.kill(self._target_pid, signal.SIGCONT)
        await self._reach(rows)
        rate = rows / (time.perf_counter() - began)
        await self._detach()
        return rate


async def _redis_pair(stack: contextlib.AsyncExitStack, report: Report) -> _RedisPair | None:
    source = stack.enter_context(redis_server())
    target = stack.enter_context(redis_server())
    if source is None or target is None:
        report.note(NO_REDIS)
        return None
    pair = _RedisPair(source, target)
    stack.push_async_callback(pair.aclose)
    return pair


async def _clusters(stack: contextlib.AsyncExitStack) -> _Clusters:
    alpha = stack.enter_context(pegaskv_server(cluster="alpha", cluster_id=1))
    beta = stack.enter_context(pegaskv_server(cluster=REMOTE, cluster_id=2))
    source = await stack.enter_async_context(pegaskv.connect(alpha.listen, timeout=60))
    target = await stack.enter_async_context(pegaskv.connect(beta.listen, timeout=60))
    await source.admin.add_cluster(REMOTE, beta.listen, 2)
    return _Clusters(source, target)


def _add_lags(report: Report, ours: list[_Lags], theirs: list[_Lags | None]) -> None:
    for what, title in (("idle", "last write, idle"), ("loaded", "lag at 5,000 writes/s")):
        for share, percentile in ((0.5, "p50"), (0.99, "p99")):
            comparison = report.start(f"{title}, {percentile}", "ms")
            for mine, other in zip(ours, theirs, strict=True):
                comparison.add(
                    {
                        OURS: _rank(getattr(mine, what), share),
                        REDIS: _rank(getattr(other, what), share) if other else None,
                    }
                )
    flowed = report.start("writes that flowed meanwhile", "writes/s")
    for mine, other in zip(ours, theirs, strict=True):
        flowed.add(
            {OURS: mine.writes_per_second, REDIS: other.writes_per_second if other else None}
        )


async def _measure(report: Report, seconds: float, rounds: int) -> None:
    rows = max(1_000, int(ROWS * min(1.0, seconds)))
    async with contextlib.AsyncExitStack() as stack:
        clusters = await _clusters(stack)
        redis = await _redis_pair(stack, report)
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(await clusters.lags(seconds))
            theirs.append(await redis.lags(seconds) if redis else None)
        _add_lags(report, ours, theirs)
        for partitions in (8, 64):
            empty = report.start(f"add_dup to DS_LOG, {partitions} empty partitions", "s")
            for _ in range(rounds):
                empty.add({OURS: await clusters.empty(partitions)})
        copy = report.start(f"copy of {rows:,} rows", "rows/s")
        stream = report.start(f"stream of {rows:,} rows", "rows/s")
        backlog = report.start(f"backlog of {rows:,} rows", "rows/s")
        for _ in range(rounds):
            copy.add(
                {OURS: await clusters.copy(rows), **(await redis.copies(rows) if redis else {})}
            )
            their_stream = await redis.stream(rows) if redis else None
            stream.add({OURS: await clusters.stream(rows), STREAM: their_stream})
            backlog.add(
                {
                    OURS: await clusters.backlog(rows),
                    STREAM: their_stream,
                    STOPPED: await redis.backlog(rows) if redis else None,
                }
            )


def run(seconds: float, rounds: int) -> Report:
    """Measure; with `seconds` below 1 that share of the rows."""
    import uvloop

    report = Report("duplication", __doc__ or "")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(report, seconds, rounds))
    return report
