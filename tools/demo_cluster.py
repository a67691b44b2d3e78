"""The third act of the demonstration: a cluster, and what its clients see of a death.

One meta server and three replica servers start as processes of their own, as `pegaskv
onebox` starts them. While tasks write to a table of three replicas, the server that leads
most of it is killed with SIGKILL, others take over, it comes back and gets what it
missed. Then every row that was acknowledged is looked for.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

import pegaskv
from pegaskv.client.health import Health
from pegaskv.errors import Busy, PegasKVError, Timeout, Unavailable
from pegaskv.runtime.tasks import TaskScope
from pegaskv.server.onebox import Onebox, OneboxError

__all__ = ["Cluster", "Figures", "Witness", "play"]

TABLE = "visits"
PARTITIONS = 4
REPLICAS = 3
WRITERS = 16
PAUSE_S = 0.005
# Before the death, and when all is well again.
CALM_S = 0.5
LOOK_S = 0.05
HEALED_S = 30.0
# More than it takes others to lead: no call has to be repeated by the program.
TIMEOUT_S = 20.0

Row = tuple[bytes, bytes]


@dataclass
class Figures:
    """What the third act measured."""

    writes: int = 0
    failed: int = 0
    unknown: int = 0
    longest_s: float = 0.0
    took_over_s: float = 0.0
    healed_s: float = 0.0
    looked_for: int = 0
    lost: int = 0

    def lines(self) -> Iterable[tuple[str, str]]:
        """What the report shows."""
        yield "writes acknowledged, table of three replicas", f"{self.writes}"
        yield "writes refused", f"{self.failed}"
        yield "writes cut off by the death, sent again", f"{self.unknown}"
        yield "longest that a client waited for one write", f"{self.longest_s:.2f} s"
        yield "seconds from the death until all is served", f"{self.took_over_s:.2f}"
        yield "seconds from its new start until nothing lacks", f"{self.healed_s:.2f}"
        yield "acknowledged rows looked for", f"{self.looked_for}"
        yield "acknowledged rows lost", f"{self.lost}"


class Cluster:
    """The cluster of one directory. What is done to it is shown as it would be typed."""

    def __init__(
        self,
        directory: Path,
        console: Console,
        onebox: Callable[[Path, Callable[[str], None]], Onebox] = Onebox,
    ) -> None:
        self.directory = directory
        self._console = console
        self._onebox = onebox

    def start(self) -> None:
        """Start all servers."""
        self._do(
            f"start --replica {REPLICAS}",
            lambda box: box.start(replicas=REPLICAS, metas=None, config=None),
        )

    def kill(self, name: str) -> None:
        """End a server as a crash would."""
        self._do(f"kill {name}", lambda box: box.kill(name))

    def restart(self, name: str) -> None:
        """Start a server again."""
        self._do(f"restart {name}", lambda box: box.restart(name))

    def stop(self) -> None:
        """End whatever runs, by force if need be; harmless when nothing does."""
        names = self.addresses()
        if not names:
            return
        try:
            self._do("stop", lambda box: box.stop(), quiet=True)
        except OneboxError as error:
            self._console.print(f"[red]the cluster did not stop:[/] {error}", markup=True)
            for name in names:
                with suppress(OneboxError):
                    self.kill(name)

    def addresses(self) -> dict[str, str]:
        """Return where each server listens, by its name; empty before the first start."""
        file = self.directory / "onebox.json"
        if not file.exists():
            return {}
        return {one["name"]: one["listen"] for one in json.loads(file.read_text())["servers"]}

    def _do(self, typed: str, what: Callable[[Onebox], None], *, quiet: bool = False) -> None:
        if not quiet:
            self._console.print(f"[cyan]$ pegaskv onebox {typed}[/]", markup=True)
        box = self._onebox(self.directory, (lambda line: None) if quiet else self._say)
        try:
            what(box)
        finally:
            box.close()

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, soft_wrap=True)


@dataclass
class Witness:
    """Remembers what was acknowledged, and what clients saw meanwhile."""

    out: Figures
    acknowledged: dict[Row, bytes] = field(default_factory=dict)

    def on_written(self, row: Row, value: bytes, seconds: float) -> None:
        """A write was acknowledged after so long."""
        self.acknowledged[row] = value
        self.out.writes += 1
        self.out.longest_s = max(self.out.longest_s, seconds)

    def on_failed(self, error: Unavailable | Timeout | Busy) -> None:
        """A write was answered by an error."""
        if getattr(error, "maybe_applied", False):
            self.out.unknown += 1
        else:
            self.out.failed += 1

    def look_for(self, found: dict[Row, bytes]) -> None:
        """Count what was acknowledged and is not there, or is something else."""
        self.out.looked_for += len(self.acknowledged)
        self.out.lost += sum(found.get(row) != value for row, value in self.acknowledged.items())


class _Act:
    def __init__(self, console: Console, cluster: Cluster, client: pegaskv.Client) -> None:
        self.console = console
        self.cluster = cluster
        self.client = client
        self.out = Figures()
        self.witness = Witness(self.out)
        self.ended = False

    def shell(self, command: str) -> None:
        """Type a command into the shell; show it and what comes back."""
        self.console.print(f"[cyan]pegaskv> {command}[/]", markup=True)
        meta = self.cluster.addresses()["meta1"]
        done = subprocess.run(
            [sys.executable, "-m", "shell", "--cluster", meta, "-e", command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        for text in (done.stdout.rstrip(), done.stderr.rstrip()):
            if text:
                self.console.print(text, markup=False, soft_wrap=True)
        if done.returncode:
            raise SystemExit(f"the shell ended with {done.returncode}")

    async def write(self, table: pegaskv.Table, writer: int) -> None:
        """Write row after row until the end; each has a value of its own."""
        number = 0
        while not self.ended:
            number += 1
            row, value = (b"writer %02d" % writer, b"%06d" % number), b"%d" % (number * number)
            began = time.perf_counter()
            while True:
                try:
                    await table.set(*row, value)
                except (Unavailable, Timeout, Busy) as error:
                    # Nobody else writes this row: to set it again is harmless.
                    self.witness.on_failed(error)
                else:
                    break
            self.witness.on_written(row, value, time.perf_counter() - began)
            await asyncio.sleep(PAUSE_S)

    async def until(self, is_so: Callable[[Health], bool]) -> float:
        """Wait until the partitions are so; return the seconds that it took."""
        began = time.perf_counter()
        while True:
            seconds = time.perf_counter() - began
            if seconds > HEALED_S:
                raise SystemExit(f"the partitions are not well after {seconds:.0f} s")
            try:
                statuses = {one.node_id: one.status for one in await self.client.admin.nodes()}
                details = await self.client.admin.table_info(TABLE)
            except PegasKVError:
                continue
            if is_so(details.health(statuses)):
                return seconds
            await asyncio.sleep(LOOK_S)

    async def leading_server(self) -> str:
        """Return the name of the server that leads most partitions."""
        nodes = {one.node_id: one.address for one in await self.client.admin.nodes()}
        details = await self.client.admin.table_info(TABLE)
        led = [nodes[one.primary] for one in details.partitions if one.primary is not None]
        most = max(sorted(set(led)), key=led.count)
        return next(name for name, at in self.cluster.addresses().items() if at == most)

    async def play(self) -> Figures:
        console, cluster, out = self.console, self.cluster, self.out
        await self.client.admin.create_table(
            TABLE, partition_count=PARTITIONS, replica_count=REPLICAS
        )
        table = await self.client.table(TABLE)
        async with TaskScope("third act") as scope:
            tasks = [scope.start("writer", self.write(table, one)) for one in range(WRITERS)]
            try:
                await asyncio.sleep(CALM_S)
                name = await self.leading_server()
                console.print(f"{out.writes} rows are written; {name} leads most of them")
                await asyncio.to_thread(cluster.kill, name)
                out.took_over_s = await self.until(lambda seen: seen.writable == seen.partitions)
                await asyncio.to_thread(self.shell, f"app {TABLE} -d")
                began = time.perf_counter()
                await asyncio.to_thread(cluster.restart, name)
                await self.until(lambda seen: seen.word == "healthy")
                out.healed_s = time.perf_counter() - began
                console.print(f"all partitions have {REPLICAS} replicas again")
                await asyncio.sleep(CALM_S)
            finally:
                self.ended = True
            await asyncio.wait(tasks)
        found = {(row.hash_key, row.sort_key): row.value async for row in table.full_scan()}
        self.witness.look_for(found)
        return out


async def play(console: Console, cluster: Cluster) -> Figures:
    """Play the third act; `cluster` is started here, and stopped by the caller in any case."""
    console.print("\n[bold]a cluster[/] of one meta server and three replica servers")
    await asyncio.to_thread(cluster.start)
    meta = cluster.addresses()["meta1"]
    async with pegaskv.connect(meta, timeout=TIMEOUT_S) as client:
        return await _Act(console, cluster, client).play()
