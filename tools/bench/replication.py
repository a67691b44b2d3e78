"""What three replicas cost beside one, and what clients meet when a server dies.

Three replica servers and a meta server, each a process. Tables of three replicas are written
and read by tasks of one client, in turns with tables of one replica on the same servers, and on a
standalone server. Processor time is that of all server processes together, the meta server's too,
without the client's and with it; latencies are the client's.

Then tables of 8 and of 256 partitions, all of three replicas; a tick is what a server's log takes
at once. Then the server that leads most is ended by `kill -9`, while a task for each of 16
partitions writes and another one reads without pause: an answer counts if its call was made after
the kill. At last a third, empty replica server is to have a copy of everything that two others
have, 1 GB of rows that cannot be compressed, while others read and write.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import pegaskv
from pegaskv.runtime.tasks import TaskScope
from tools.bench.clusters import Cluster, running_cluster, until
from tools.bench.failover import measure_copies, measure_failover
from tools.bench.loading import VALUE, load, names
from tools.bench.processes import cpu_seconds, pegaskv_server
from tools.bench.report import OURS, Report, turns

__all__ = ["run"]

ONE_REPLICA: Final = "1 replica"
ONE_SERVER: Final = "1 server"
REPLICAS: Final = 3
PARTITIONS: Final = 8
TASKS: Final = (50, 200)
KEYS: Final = 20_000
NAMES: Final = names(b"user", KEYS)
COUNTS: Final = (8, 256)
FEWEST: Final = f"{COUNTS[0]} partitions"
# Less than this is a trial of the bench itself: few keys, and no 256 partitions.
TRIAL_S: Final = 0.1
_WARM_UP: Final = 0.1

Call = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True)
class _Round:
    """One side in one round."""

    rate: float
    cpu_us: float
    # The client's too.
    all_cpu_us: float
    p50_ms: float
    p99_ms: float

    @property
    def wall_us(self) -> float:
        """The time of one call, all tasks together."""
        return 1e6 / self.rate


@dataclass(frozen=True)
class _Side:
    """A table, and the processor time of whoever serves it."""

    table: pegaskv.Table
    cpu_seconds: Callable[[], float]

    def set(self, number: int) -> Awaitable[Any]:
        return self.table.set(NAMES[number % KEYS], b"s", VALUE)

    def get(self, number: int) -> Awaitable[Any]:
        return self.table.get(NAMES[number % KEYS], b"s")

    async def measure(self, call: Call, tasks: int, seconds: float) -> _Round:
        """Let `tasks` tasks call one after another."""
        clock = time.perf_counter
        taken: list[float] = []
        stop = False

        async def caller(number: int) -> None:
            number *= 7_919
            while not stop:
                began = clock()
                await call(number)
                taken.append(clock() - began)
                number += 1

        async with TaskScope("bench") as scope:
            for number in range(tasks):
                scope.start("caller", caller(number))
            await asyncio.sleep(seconds * _WARM_UP)
            taken.clear()
            cpu, own, began = self.cpu_seconds(), time.process_time(), clock()
            await asyncio.sleep(seconds)
            # One whole call of each task at least, however short the time.
            await until(lambda: len(taken) >= tasks, "an answer to each task")
            ended, done, cpu = clock(), len(taken), self.cpu_seconds() - cpu
            own = time.process_time() - own
            stop = True
        ordered = sorted(taken[:done])
        return _Round(
            rate=done / (ended - began),
            cpu_us=cpu * 1e6 / done,
            all_cpu_us=(cpu + own) * 1e6 / done,
            p50_ms=ordered[done // 2] * 1_000,
            p99_ms=ordered[done * 99 // 100] * 1_000,
        )


@dataclass
class _Bench:
    report: Report
    seconds: float
    rounds: int

    @property
    def trial(self) -> bool:
        return self.seconds < TRIAL_S

    async def measure(
        self, sides: dict[str, _Side], call: Callable[[_Side], Call], tasks: int
    ) -> dict[str, list[_Round]]:
        """Return the rounds of each side."""
        taken: dict[str, list[_Round]] = {name: [] for name in sides}
        for number in range(self.rounds):
            for name, side in turns(sides, number):
                taken[name].append(await side.measure(call(side), tasks, self.seconds))
        return taken

    def add(self, name: str, unit: str, rounds: dict[str, list[_Round]], what: str) -> None:
        """Report one figure of all sides."""
        comparison = self.report.start(name, unit)
        for number in range(self.rounds):
            comparison.add({side: getattr(taken[number], what) for side, taken in rounds.items()})


async def _costs(bench: _Bench) -> None:
    """Three replicas beside one."""
    async with contextlib.AsyncExitStack() as stack:
        cluster = stack.enter_context(running_cluster(REPLICAS))
        alone = stack.enter_context(pegaskv_server())
        client = await stack.enter_async_context(pegaskv.connect(cluster.address, timeout=60))
        client_alone = await stack.enter_async_context(pegaskv.connect(alone.listen, timeout=60))
        for durability in ("os", "fsync"):
            sides: dict[str, _Side] = {}
            envs = {"durability": durability}
            for kind, count in ((OURS, REPLICAS), (ONE_REPLICA, 1)):
                name = f"{durability}{count}"
                await client.admin.create_table(name, PARTITIONS, count, envs)
                sides[kind] = _Side(await client.table(name), cluster.cpu_seconds)
            await client_alone.admin.create_table(durability, PARTITIONS, 1, envs)
            sides[ONE_SERVER] = _Side(
                await client_alone.table(durability), lambda: cpu_seconds(alone.pid)
            )
            for side in sides.values():
                await load(side.table, NAMES[:1_000] if bench.trial else NAMES)
            for tasks in TASKS:
                await _compare_kind(bench, "set", durability, sides, tasks)
                if durability == "os":
                    await _compare_kind(bench, "get", durability, sides, tasks)
            for side in sides.values():
                owner = client_alone if side is sides[ONE_SERVER] else client
                await owner.admin.drop_table(side.table.name, 0)


async def _compare_kind(
    bench: _Bench, kind: str, durability: str, sides: dict[str, _Side], tasks: int
) -> None:
    taken = await bench.measure(sides, lambda side: side.get if kind == "get" else side.set, tasks)
    title = f"{kind}, {durability}, {tasks} tasks"
    bench.add(title, "calls/s", taken, "rate")
    bench.add(f"server CPU of a {title}", "us", taken, "cpu_us")
    bench.add(f"CPU of a {title}, client and servers", "us", taken, "all_cpu_us")
    bench.add(f"{title}: latency, p50", "ms", taken, "p50_ms")
    bench.add(f"{title}: latency, p99", "ms", taken, "p99_ms")


async def _partitions(bench: _Bench) -> None:
    """Many partitions beside few."""
    counts = COUNTS[:1] if bench.trial else COUNTS
    async with contextlib.AsyncExitStack() as stack:
        sides: dict[str, _Side] = {}
        clusters: dict[str, Cluster] = {}
        clients: dict[str, pegaskv.Client] = {}
        for count in counts:
            side = OURS if count == COUNTS[-1] else FEWEST
            cluster = clusters[side] = stack.enter_context(running_cluster(REPLICAS))
            clients[side] = await stack.enter_async_context(
                pegaskv.connect(cluster.address, timeout=60)
            )
        for durability in ("os", "fsync"):
            for count, side in zip(counts, clusters, strict=True):
                envs = {"durability": durability}
                await clients[side].admin.create_table(durability, count, REPLICAS, envs)
                table = await clients[side].table(durability)
                sides[side] = _Side(table, clusters[side].cpu_seconds)
                await load(table, NAMES[:1_000] if bench.trial else NAMES)
            before = {side: cluster.count(*_TICKS) for side, cluster in clusters.items()}
            taken = await bench.measure(sides, lambda side: side.set, TASKS[0])
            after = {side: cluster.count(*_TICKS) for side, cluster in clusters.items()}
            title = f"set, {durability}, {COUNTS[-1]} partitions"
            if OURS in taken:
                bench.add(title, "us", taken, "wall_us")
                bench.add(f"server CPU of a {title}", "us", taken, "cpu_us")
            for count, side in zip(counts, clusters, strict=True):
                if durability == "fsync":
                    syncs, ticks = (
                        now - then for now, then in zip(after[side], before[side], strict=True)
                    )
                    name = f"syncs a tick, fsync, {count} partitions"
                    bench.report.start(name, "fdatasync").add({OURS: syncs / ticks})
                await clients[side].admin.drop_table(durability, 0)


_TICKS: Final = ("pegaskv_log_syncs_total", "pegaskv_log_appends_total")


async def _measure(report: Report, seconds: float, rounds: int) -> None:
    bench = _Bench(report, seconds, rounds)
    await _costs(bench)
    await _partitions(bench)
    await measure_failover(report, rounds)
    await measure_copies(report, trial=bench.trial)


def run(seconds: float, rounds: int) -> Report:
    """Measure; `seconds` a side and round, and 200 MB to be copied for each."""
    import uvloop

    report = Report("replication", __doc__ or "")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(report, seconds, rounds))
    return report
