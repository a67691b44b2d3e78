"""The second act of the demonstration: a table on two clusters, and what may go wrong.

A second cluster starts. Half of the Unicode table is there when `add_dup` is typed, the
other half is written while it is copied. The source is killed with SIGKILL during the
copy, the target while the log is shipped. A second `add_dup` shows what is there. Then
the rows of both clusters are compared: key, value and expiry.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.console import Console

import pegaskv
from pegaskv.errors import Busy, PegasKVError, Timeout, Unavailable
from pegaskv.runtime.tasks import TaskScope
from tools.demo_server import Server

__all__ = ["Figures", "duplicate"]

TABLE = "characters"
CHUNK_ROWS = 250
LOADERS = 4
LAST_WRITES = 50
SILENCE_S = 0.05

Row = tuple[bytes, bytes, bytes]


@dataclass
class Figures:
    """What the second act measured."""

    phases: dict[str, float] = field(default_factory=dict)
    last_write_ms: list[float] = field(default_factory=list)
    copied_rows: int = 0
    compared: int = 0
    differ: int = 0
    second_add_status: int = 0

    def lines(self) -> Iterable[tuple[str, str]]:
        """What the report shows."""
        for phase, seconds in self.phases.items():
            yield f"seconds from add_dup to {phase}", f"{seconds:.2f}"
        yield "rows sent by the copy", f"{self.copied_rows}"
        yield (
            "last single write until the target serves it",
            f"{statistics.median(self.last_write_ms):.1f} ms (median of {LAST_WRITES})",
        )
        yield "exit status of the second add_dup", f"{self.second_add_status}"
        yield "rows compared on both clusters", f"{self.compared}"
        yield "rows that differ between the clusters", f"{self.differ}"


class _Act:
    def __init__(
        self, console: Console, alpha: Server, beta: Server, clients: tuple[pegaskv.Client, ...]
    ) -> None:
        self.console = console
        self.alpha = alpha
        self.beta = beta
        self.source, self.target = clients
        self.out = Figures()
        self.added = 0.0

    def shell(self, *commands: str, status: int | None = 0) -> int:
        """Type commands into the shell of the source; show them and what comes back."""
        for command in commands:
            self.console.print(f"[cyan]pegaskv> {command}[/]", markup=True)
        arguments = [word for command in commands for word in ("-e", command)]
        done = subprocess.run(
            [sys.executable, "-m", "shell", "--cluster", self.alpha.listen, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        for text in (done.stdout.strip(), done.stderr.strip()):
            if text:
                self.console.print(text, markup=False, soft_wrap=True)
        if status is not None and done.returncode != status:
            raise SystemExit(f"the shell ended with {done.returncode}, not with {status}")
        return done.returncode

    async def load(self, table: pegaskv.Table, rows: list[Row]) -> None:
        """Write rows by several tasks; what a dead server did not answer is sent again."""
        chunks = iter([rows[n : n + CHUNK_ROWS] for n in range(0, len(rows), CHUNK_ROWS)])

        async def loader() -> None:
            for chunk in chunks:
                while True:
                    try:
                        await table.batch_set(chunk, timeout=2.0)
                    except (Unavailable, Timeout, Busy):
                        await asyncio.sleep(0.05)
                    else:
                        break

        async with TaskScope("load") as scope:
            for _ in range(LOADERS):
                scope.start("loader", loader())

    async def state(self) -> pegaskv.Duplication | None:
        """The duplication as the source shows it, or None while nobody answers."""
        try:
            (found,) = await self.source.admin.query_duplication(TABLE, timeout=1.0)
        except PegasKVError:
            return None
        phase = found.status.value
        self.out.phases.setdefault(phase, time.perf_counter() - self.added)
        self.out.copied_rows = max(
            self.out.copied_rows, sum(one.copied_rows or 0 for one in found.partitions)
        )
        return found

    async def reach(self, *phases: str) -> None:
        """Wait until the duplication is in one of these phases."""
        while True:
            found = await self.state()
            if found is not None and found.status.value in phases:
                return
            await asyncio.sleep(0.01)

    async def kill(self, server: Server, what: str) -> None:
        self.console.print(f"[red]kill -9[/] of {what}, and a new start")
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

    async def play(self, rows: list[Row]) -> Figures:
        console = self.console
        await asyncio.to_thread(self.shell, f"add_cluster beta {self.beta.listen} 2")
        await self.source.admin.create_table(TABLE, partition_count=8)
        table = await self.source.table(TABLE)
        half = len(rows) // 2
        await self.load(table, rows[:half])
        console.print(f"{half} rows are there; the others are written while they are copied")
        self.added = time.perf_counter()
        await asyncio.to_thread(self.shell, f"add_dup {TABLE} beta")
        async with TaskScope("second act") as scope:
            loading = scope.start("load", self.load(table, rows[half:]))
            await self.reach("DS_APP", "DS_LOG")
            await self.kill(self.alpha, "the source during the copy")
            await self.reach("DS_LOG")
            await self.kill(self.beta, "the target while the log is shipped")
            await loading
        await self.source.admin.wait_duplicated(TABLE, timeout=60)
        await asyncio.to_thread(self.shell, f"watch query_dup {TABLE} --count 1")
        console.print("and once more, with another name for the remote table:")
        self.out.second_add_status = await asyncio.to_thread(
            lambda: self.shell(f"add_dup {TABLE} beta -a another", status=4)
        )
        await self._last_writes(table)
        await self._compare(table)
        return self.out

    async def _last_writes(self, table: pegaskv.Table) -> None:
        """One write after silence, and how long until the target serves it."""
        there = await self.target.table(TABLE)
        for number in range(LAST_WRITES):
            await asyncio.sleep(SILENCE_S)
            value = b"%d" % number
            began = time.perf_counter()
            await table.set(b"last", b"write", value, ttl=3_600)
            while await there.get(b"last", b"write") != value:
                pass
            self.out.last_write_ms.append((time.perf_counter() - began) * 1_000)

    async def _compare(self, table: pegaskv.Table) -> None:
        await self.source.admin.wait_duplicated(TABLE, timeout=60)
        options = pegaskv.ScanOptions(return_expire=True)
        here = {
            (row.hash_key, row.sort_key): (row.value, row.expires_at)
            async for row in table.full_scan(options=options)
        }
        there = await self.target.table(TABLE)
        async for row in there.full_scan(options=options):
            self.out.compared += 1
            if here.pop((row.hash_key, row.sort_key), None) != (row.value, row.expires_at):
                self.out.differ += 1
        self.out.differ += len(here)


async def duplicate(
    console: Console, alpha: Server, beta: Server, client: pegaskv.Client, rows: list[Row]
) -> Figures:
    """Play the second act on a running source; `beta` is started here."""
    seconds = await asyncio.to_thread(beta.start)
    console.print(f"\n[bold]a second cluster[/], beta, on {beta.listen}, after {seconds:.2f} s")
    async with pegaskv.connect(beta.listen, timeout=10) as target:
        return await _Act(console, alpha, beta, (client, target)).play(rows)
