"""Whether a server stays prompt while it works hard in the background.

25 tasks read and 25 write 100 bytes, each every 20 ms; a call counts from the moment when it was
due. So quiet is measured, and then each of these in the same table of 8 partitions:

* 1-KB rows that cannot be compressed, written as fast as another process can, for a minute:
  flushes, checkpoints, new segments and LevelDB's own compactions of gigabytes, one behind the
  other;
* a log that switches its segments;
* three checkpoints of a partition of 1 GB, the only one of another table;
* a full compaction of that partition, ordered as an operator orders it;
* a sweep of 1 million expired rows of another table.

Peer is quiet, measured right before. A stop is the longest time in which not one read, or not one
write, was answered. The last row of each says how late the measuring process itself was: it shares
the processors with the server, and its lateness is a part of what it measures.
"""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pegaskv
from pegaskv.base.compaction import MANUAL_COMPACT_ONCE
from pegaskv.runtime.tasks import TaskScope
from tools.bench import flood
from tools.bench.loading import VALUE, load, names
from tools.bench.processes import Server, calm, pegaskv_server
from tools.bench.report import OURS, Report

__all__ = ["QUIET", "run"]

QUIET: Final = "quiet"
TASKS: Final = 50
CALL_EVERY_S: Final = 0.02
PROBED: Final = names(b"probe", 10_000)
# At the full run, for `seconds` of 1 and more; less below.
FLOOD_S: Final = 60
FLOOD_KEYS: Final = 1_000_000
BIG_ROWS: Final = 1_000_000
EXPIRING_ROWS: Final = 1_000_000
# Segments of 16 MiB that are filled, and the rows a second that fill them.
SEGMENTS: Final = 5
SEGMENT_ROWS: Final = 16_000
SEGMENT_RATE: Final = 8_000
CHECKPOINTS: Final = 3
QUIET_S: Final = 5
# All rows of a sweep expire so long after the first was written, on a machine that is not slow
# after the last one and after quiet was measured.
EXPIRE_S: Final = 40
PATIENCE_S: Final = 600
# The table with one large partition.
BIG: Final = "big"
CONFIG: Final = "[replica]\nexpiry_sweep_interval_ms = 1000\n"

_Work = Callable[[], Awaitable[Any]]


@dataclass
class _Calls:
    """What one kind of call met, in milliseconds."""

    taken: list[float] = field(default_factory=list)
    # The longest time without an answer, and when the last one came.
    stop: float = 0.0
    last: float = 0.0

    def add(self, due: float, now: float) -> None:
        self.taken.append((now - due) * 1_000)
        self.stop = max(self.stop, (now - self.last) * 1_000)
        self.last = now

    def figures(self, kind: str) -> dict[str, float]:
        return {
            f"{kind}, p50": _rank(self.taken, 0.5),
            f"{kind}, p99": _rank(self.taken, 0.99),
            f"{kind}, longest": max(self.taken),
            f"{kind}, longest stop": self.stop,
        }


@dataclass
class _Taken:
    """What the 50 tasks met."""

    reads: _Calls
    writes: _Calls
    own: float = 0.0

    def figures(self) -> dict[str, float]:
        return {
            **self.reads.figures("read"),
            **self.writes.figures("write"),
            "lateness of the bench itself": self.own,
        }


def _rank(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def _probe(table: pegaskv.Table, work: _Work) -> _Taken:
    """Call while `work` is under way."""
    clock = time.perf_counter
    taken = _Taken(_Calls(), _Calls())
    stop = False

    async def call(task: int) -> None:
        reads = task % 2 == 0
        due = clock() + CALL_EVERY_S * task / TASKS
        number = task
        while not stop:
            await asyncio.sleep(due - clock())
            name = PROBED[number * 7_919 % len(PROBED)]
            if reads:
                await table.get(name, b"s")
                taken.reads.add(due, clock())
            else:
                await table.set(name, b"s", VALUE)
                taken.writes.add(due, clock())
            number += TASKS
            due += CALL_EVERY_S

    async def watch_itself() -> None:
        while not stop:
            due = clock() + 0.001
            await asyncio.sleep(0.001)
            taken.own = max(taken.own, (clock() - due) * 1_000)

    async with TaskScope("probe") as scope:
        for task in range(TASKS):
            scope.start("call", call(task))
        scope.start("watch", watch_itself())
        # The first calls of a connection are not what is measured.
        await asyncio.sleep(0.2)
        taken.reads = _Calls(last=clock())
        taken.writes = _Calls(last=clock())
        taken.own = 0.0
        await work()
        stop = True
    return taken


@dataclass(frozen=True)
class _Flood:
    """A process that writes rows."""

    process: asyncio.subprocess.Process

    def begin(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def write_all(self) -> None:
        """Let it write; return when it has ended by itself."""
        assert self.process.stdout is not None
        self.begin()
        said = await self.process.stdout.readline()
        if not said.strip().isdigit() or int(said) < 1:
            raise SystemExit("the process that writes rows has failed")


class _Bench:
    # The directory of the replica of the large partition.
    _big = ""

    def __init__(
        self, server: Server, client: pegaskv.Client, seconds: float, report: Report
    ) -> None:
        self._server = server
        self._client = client
        self._share = min(1.0, seconds)
        self._report = report
        self._taken: dict[str, list[tuple[_Taken, _Taken]]] = {}

    async def table(self, name: str, partitions: int) -> pegaskv.Table:
        await self._client.admin.create_table(name, partitions, envs={"durability": "os"})
        return await self._client.table(name)

    async def compare(
        self, phase: str, probed: pegaskv.Table, work: _Work, between: _Work | None = None
    ) -> None:
        """Measure quiet, then `work`; do `between` before that."""
        await calm(self._server)
        quiet = await _probe(probed, lambda: asyncio.sleep(QUIET_S * self._share))
        if between is not None:
            await between()
        loud = await _probe(probed, work)
        self._taken.setdefault(phase, []).append((loud, quiet))

    def show(self) -> None:
        for phase, rounds in self._taken.items():
            for figure in rounds[0][0].figures():
                comparison = self._report.start(f"{phase}: {figure}", "ms")
                for loud, quiet in rounds:
                    comparison.add({OURS: loud.figures()[figure], QUIET: quiet.figures()[figure]})

    @contextlib.asynccontextmanager
    async def flood(
        self, table: str, prefix: str, rows: int, **how: Any
    ) -> AsyncIterator["_Flood"]:
        """Have another process ready to write."""
        process = await asyncio.create_subprocess_exec(
            *flood.command(self._server.listen, table, prefix=prefix, rows=rows, **how),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            if await process.stdout.readline() != b"ready\n":
                raise SystemExit("the process that writes rows does not start")
            yield _Flood(process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    # --- The phases ------------------------------------------------------------------------

    async def writes(self, probed: pegaskv.Table, rounds: int) -> None:
        seconds = FLOOD_S * self._share / rounds
        rows = max(1_000, int(FLOOD_KEYS * self._share))
        for _ in range(rounds):
            async with self.flood(probed.name, "flood", rows, seconds=seconds) as writer:
                await self.compare("rows at full speed", probed, writer.write_all)

    async def segments(self, probed: pegaskv.Table) -> None:
        count = max(1, round(SEGMENTS * self._share))
        rows = SEGMENT_ROWS
        async with self.flood(
            probed.name, "segment", rows, seconds=PATIENCE_S, rate=SEGMENT_RATE
        ) as writer:

            async def fill() -> None:
                before = self._newest_segment()
                writer.begin()
                await self._until(lambda: self._newest_segment() >= before + count)

            await self.compare("new segments of the log", probed, fill)

    async def big(self) -> int:
        """Make a table of one partition; return its rows."""
        rows = max(1_000, int(BIG_ROWS * self._share))
        table = await self._client.admin.table_info((await self.table(BIG, 1)).name)
        self._big = f"{table.table.table_id}.0"
        async with self.flood(BIG, "row", rows) as writer:
            await writer.write_all()
        return rows

    async def checkpoint(self, probed: pegaskv.Table, rows: int) -> None:
        """Checkpoints come with every flush; 8 MiB of log bring a flush."""
        self._report.note(f"Each checkpoint was of {rows / 1e6:g} GB.")
        async with self.flood(
            BIG, "row", rows, seconds=PATIENCE_S, rate=SEGMENT_RATE // 2
        ) as writer:

            async def fill() -> None:
                before = self._newest_checkpoint()
                writer.begin()
                await self._until(lambda: self._newest_checkpoint() >= before + CHECKPOINTS)

            await self.compare("checkpoints", probed, fill)

    async def compaction(self, probed: pegaskv.Table) -> None:
        """Each order is for a later second than the last one."""
        admin = self._client.admin
        before = self._compacted()

        async def compact() -> None:
            await admin.set_envs(BIG, {MANUAL_COMPACT_ONCE: str(int(before) + 1)})
            await self._until(lambda: self._compacted() > before)

        await self.compare("a full compaction", probed, compact)

    async def _until(self, reached: Callable[[], bool]) -> None:
        # In a thread: what is asked here must not make the calls wait that are measured.
        deadline = time.perf_counter() + PATIENCE_S
        while not await asyncio.to_thread(reached):
            if time.perf_counter() > deadline:
                raise SystemExit("what was to be measured did not happen")
            await asyncio.sleep(0.2)

    async def sweep(self, probed: pegaskv.Table) -> None:
        rows = max(1_000, int(EXPIRING_ROWS * self._share))
        self._report.note(f"The sweep was of {rows:,} rows.")
        await self.table("expiring", 8)
        before = self._swept()
        ttl = 3 + int(EXPIRE_S * self._share)
        async with self.flood("expiring", "row", rows, ttl=ttl, size=100) as writer:
            expired = time.perf_counter() + ttl
            await writer.write_all()

        async def expire() -> None:
            if self._swept() > before:
                self._report.note("Rows expired before the sweep was measured.")
            await asyncio.sleep(expired - time.perf_counter())

        await self.compare(
            "a sweep", probed, lambda: self._until(lambda: self._swept() >= before + rows), expire
        )
        await self._client.admin.drop_table("expiring", 0)

    # --- What the server shows -------------------------------------------------------------

    def _newest_segment(self) -> int:
        log = self._server.directory / "data" / "log"
        return max(int(path.stem) for path in log.glob("*.log"))

    def _newest_checkpoint(self) -> int:
        checkpoints = self._server.directory / "data" / "replicas" / self._big / "checkpoint"
        numbers = [int(path.name) for path in checkpoints.glob("*") if path.name.isdecimal()]
        return max(numbers, default=0)

    def _compacted(self) -> float:
        return self._server.metrics()["pegaskv_manual_compactions_total"]

    def _swept(self) -> float:
        return self._server.metrics()["pegaskv_rows_expired_total"]


async def _measure(report: Report, seconds: float, rounds: int) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(pegaskv_server(http=True, config=CONFIG))
        client = await stack.enter_async_context(pegaskv.connect(server.listen, timeout=60))
        bench = _Bench(server, client, seconds, report)
        probed = await bench.table("probed", 8)
        await load(probed, PROBED)
        await bench.writes(probed, rounds)
        rows = await bench.big()
        for _ in range(rounds):
            await bench.segments(probed)
            await bench.checkpoint(probed, rows)
            await bench.compaction(probed)
            await bench.sweep(probed)
        bench.show()


def run(seconds: float, rounds: int) -> Report:
    """Measure; with `seconds` below 1 that share of the rows and of the minute."""
    import uvloop

    report = Report("steadiness", __doc__ or "")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(report, seconds, rounds))
    return report
