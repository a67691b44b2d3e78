"""What many partitions cost: sets by 50 tasks into tables of 8, 32, 64 and 256 of them.

Each table is the only one of its own server. The time of one set is that of the whole path,
client and server; the processor time is the server's alone. Peer is the table of 8 partitions
of the same round. All partitions share one log, so a tick of the server is synced once,
however many of them it touches: the last rows count that.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Final

import pegaskv
from tools.bench.loading import VALUE, call_rate, load, names
from tools.bench.processes import Server, calm, cpu_seconds, pegaskv_server
from tools.bench.report import OURS, Report, turns

__all__ = ["run"]

COUNTS: Final = (8, 32, 64, 256)
TASKS: Final = 50
KEYS: Final = 20_000
NAMES: Final = names(b"user", KEYS)
FEWEST: Final = f"{COUNTS[0]} partitions"
# Less than this is a trial of the bench itself: it has the first counts and a part of the keys.
TRIAL_S: Final = 0.1


@dataclass
class _Round:
    """One side in one round."""

    wall_us: float
    cpu_us: float
    syncs_per_tick: float


async def _measure_one(server: Server, table: pegaskv.Table, seconds: float) -> _Round:
    def set_(number: int) -> Awaitable[Any]:
        return table.set(NAMES[number % KEYS], b"s", VALUE)

    before, cpu_before, began = server.metrics(), cpu_seconds(server.pid), time.perf_counter()
    rate = await call_rate(set_, TASKS, seconds)
    taken, cpu, after = (
        time.perf_counter() - began,
        cpu_seconds(server.pid) - cpu_before,
        server.metrics(),
    )
    syncs, ticks = (
        after[name] - before[name]
        for name in ("pegaskv_log_syncs_total", "pegaskv_log_appends_total")
    )
    return _Round(1e6 / rate, cpu * 1e6 / (rate * taken), syncs / ticks)


async def _measure(report: Report, seconds: float, rounds: int) -> None:
    trial = seconds < TRIAL_S
    counts = COUNTS[:2] if trial else COUNTS
    async with contextlib.AsyncExitStack() as stack:
        servers, clients = {}, {}
        for count in counts:
            servers[count] = stack.enter_context(pegaskv_server(http=True))
            clients[count] = await stack.enter_async_context(
                pegaskv.connect(f"127.0.0.1:{servers[count].port}", timeout=60)
            )
        for durability in ("os", "fsync"):
            tables = {}
            for count, client in clients.items():
                await client.admin.create_table(durability, count, envs={"durability": durability})
                tables[count] = await client.table(durability)
                await load(tables[count], NAMES[:1_000] if trial else NAMES)
            # What was dropped before is purged in the background, 256 directories of it.
            for server in servers.values():
                await calm(server)
            figures: dict[int, list[_Round]] = {count: [] for count in counts}
            for number in range(rounds):
                for _, count in turns({str(count): count for count in counts}, number):
                    figures[count].append(
                        await _measure_one(servers[count], tables[count], seconds)
                    )
            _report(report, durability, figures)
            for client in clients.values():
                await client.admin.drop_table(durability, 0)


def _report(report: Report, durability: str, figures: dict[int, list[_Round]]) -> None:
    for what in ("wall_us", "cpu_us"):
        title = "set" if what == "wall_us" else "server CPU of a set"
        for count in figures:
            comparison = report.start(f"{title}, {durability}, {count} partitions", "us")
            for number, taken in enumerate(figures[count]):
                least = None if count == COUNTS[0] else getattr(figures[COUNTS[0]][number], what)
                comparison.add({OURS: getattr(taken, what), FEWEST: least})
    if durability == "fsync":
        for count in figures:
            comparison = report.start(f"syncs a tick, fsync, {count} partitions", "fdatasync")
            for taken in figures[count]:
                comparison.add({OURS: taken.syncs_per_tick})


def run(seconds: float, rounds: int) -> Report:
    """Measure; `seconds` a side and round."""
    import uvloop

    report = Report("partitions", __doc__ or "")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(report, seconds, rounds))
    return report
