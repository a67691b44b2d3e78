"""The main job on real data: load, ask, kill, go on, and compare every row.

A standalone server runs as a process of its own in a temporary directory. A table
with 8 partitions takes the Unicode character database that Python ships, a second
one counters and rows that expire. In the middle of the load the server is killed
with SIGKILL and started again. Every row is compared with its source. Then a second
cluster starts and the table is duplicated to it, with both killed on the way.

Exits 1 if any row differs. DEMO_KEEP=1 keeps the directory.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

import pegaskv
from pegaskv.errors import Busy, PegasKVError, Timeout, Unavailable
from pegaskv.runtime.tasks import TaskScope
from tools import demo_cluster, demo_duplication
from tools.demo_server import Server

CHUNK_ROWS = 250
LOADERS = 8
COUNTERS = 16
INCREMENTS = 400

console = Console(highlight=False)


def unicode_rows() -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield (hash key, sort key, value) of every named code point."""
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        name = unicodedata.name(character, "")
        if name:
            value = (
                name,
                unicodedata.category(character),
                unicodedata.bidirectional(character),
                str(unicodedata.numeric(character, "")),
                unicodedata.decomposition(character),
            )
            yield (
                b"%04X" % (code >> 8),
                b"%06X" % code,
                "; ".join(value).encode(),
            )


@dataclass
class Figures:
    """What the demo measured."""

    rows: int = 0
    load_seconds: float = 0.0
    restart_seconds: float = 0.0
    resent: int = 0
    compared: int = 0
    compare_seconds: float = 0.0
    differ: int = 0
    notes: list[str] = field(default_factory=list)
    second: demo_duplication.Figures | None = None
    third: demo_cluster.Figures | None = None

    @property
    def lost(self) -> int:
        """Rows that the cluster acknowledged and has not."""
        return self.third.lost if self.third is not None else 0


async def load(
    client: pegaskv.Client, server: Server, rows: list[tuple[bytes, bytes, bytes]], out: Figures
) -> None:
    """Load all rows by several tasks; kill the server in the middle and go on."""
    table = await client.table("unicode")
    chunks = [rows[begin : begin + CHUNK_ROWS] for begin in range(0, len(rows), CHUNK_ROWS)]
    todo = iter(chunks)
    loaded = 0
    killed = False
    halfway = asyncio.Event()
    began = time.perf_counter()

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("loading", total=len(rows))

        async def loader() -> None:
            nonlocal loaded
            for chunk in todo:
                # Setting a row twice is harmless, so an unknown outcome is sent again.
                while True:
                    try:
                        await table.batch_set(chunk, timeout=2.0)
                    except (Unavailable, Timeout, Busy):
                        out.resent += 1
                        await asyncio.sleep(0.05)
                    else:
                        break
                loaded += len(chunk)
                progress.update(bar, completed=loaded)
                if loaded >= len(rows) // 2:
                    halfway.set()

        async def killer() -> None:
            nonlocal killed
            await halfway.wait()
            killed = True
            await asyncio.to_thread(server.kill)
            progress.console.print(
                f"[red]kill -9[/] of the server after {loaded} acknowledged rows, and a new start"
            )
            out.restart_seconds = await asyncio.to_thread(server.start)
            progress.console.print(
                f"ready again after {out.restart_seconds:.2f} s, loading goes on"
            )

        async with TaskScope("load") as scope:
            scope.start("killer", killer())
            for _ in range(LOADERS):
                scope.start("loader", loader())
    assert killed
    out.rows = len(rows)
    out.load_seconds = time.perf_counter() - began


async def count(client: pegaskv.Client, out: Figures) -> None:
    """Counters from many tasks at once, and rows that expire."""
    table = await client.table("counters")

    async def add(counter: int) -> None:
        for _ in range(INCREMENTS):
            await table.incr(b"counter", b"%02d" % (counter % COUNTERS))

    async with TaskScope("counters") as scope:
        for counter in range(2 * COUNTERS):
            scope.start("counter", add(counter))
    got = await table.multi_get(b"counter")
    wrong = sum(int(value) != 2 * INCREMENTS for value in got.values())
    out.differ += wrong
    out.notes.append(
        f"{len(got)} counters, {2 * COUNTERS} tasks, {2 * COUNTERS * INCREMENTS} increments: "
        f"{wrong} wrong"
    )
    await table.multi_set(b"session", {b"short": b"1", b"long": b"2"}, ttl=1)
    await table.set(b"session", b"long", b"3", ttl=3_600)
    await asyncio.sleep(2.1)
    left = await table.multi_get(b"session")
    if dict(left) != {b"long": b"3"}:
        out.differ += 1
    out.notes.append(f"of 2 sessions {len(left)} is left after the first one's time to live")


def ask(server: Server) -> None:
    """Ask the shell, as it would be typed."""
    questions = [
        "use unicode",
        "get 0000 000041",
        "multi_get_range 0026 002600 002604",
        "hash_scan 01F6 01F600 01F605",
        "count 0003",
        "count_data",
        "use counters",
        "get counter 07",
        "ttl session long",
        "ls",
    ]
    console.print(f"\n[bold]$ pegaskv-shell --cluster {server.listen}[/]")
    for question in questions:
        console.print(f"[cyan]>>> {question}[/]", markup=True)
        uses = "use counters" if question.startswith(("get counter", "ttl")) else "use unicode"
        command = [sys.executable, "-m", "shell", "--cluster", server.listen]
        if not question.startswith(("use", "ls")):
            command += ["-e", uses]
        done = subprocess.run(
            [*command, "-e", question], capture_output=True, text=True, check=False, timeout=30
        )
        shown = done.stdout.strip() or done.stderr.strip()
        console.print(shown, markup=False, soft_wrap=True)
        if done.returncode:
            raise SystemExit(f"the shell failed with status {done.returncode}: {done.stderr}")


async def compare(
    client: pegaskv.Client, rows: list[tuple[bytes, bytes, bytes]], out: Figures
) -> None:
    """Read every row back and compare it with its source."""
    table = await client.table("unicode")
    expected = {(hash_key, sort_key): value for hash_key, sort_key, value in rows}
    began = time.perf_counter()
    async for row in table.full_scan():
        out.compared += 1
        if expected.pop((row.hash_key, row.sort_key), None) != row.value:
            out.differ += 1
    out.differ += len(expected)
    out.compare_seconds = time.perf_counter() - began


def report(out: Figures) -> None:
    """Print what was measured."""
    grid = Grid(title="what it did", show_header=False)
    grid.add_row("rows loaded", f"{out.rows}")
    grid.add_row(
        "rows/s, with the kill and the restart in it", f"{out.rows / out.load_seconds:.0f}"
    )
    grid.add_row("seconds from the new start to serving", f"{out.restart_seconds:.2f}")
    grid.add_row("batches sent again after the kill", f"{out.resent}")
    grid.add_row("rows/s read back", f"{out.compared / out.compare_seconds:.0f}")
    for note in out.notes:
        grid.add_row("counters and times to live", note)
    grid.add_row("rows compared with their source", f"{out.compared}")
    for act in (out.second, out.third):
        if act is not None:
            for name, figure in act.lines():
                grid.add_row(name, figure)
    grid.add_row("rows that differ", f"[{'red' if out.differ else 'green'}]{out.differ}[/]")
    console.print(grid)


async def run(server: Server, beta: Server, cluster: demo_cluster.Cluster) -> Figures:
    """The whole demonstration against servers that are about to start."""
    out = Figures()
    seconds = server.start()
    console.print(f"pegaskv standalone on {server.listen}, ready after {seconds:.2f} s")
    rows = list(unicode_rows())
    async with pegaskv.connect(server.listen) as client:
        await client.admin.create_table("unicode", partition_count=8)
        await client.admin.create_table("counters", partition_count=4)
        console.print(
            f"the Unicode character database {unicodedata.unidata_version}: {len(rows)} rows "
            "into a table of 8 partitions, every write synced to disk"
        )
        await load(client, server, rows, out)
        await count(client, out)
        await asyncio.to_thread(ask, server)
        await compare(client, rows, out)
        out.second = await demo_duplication.duplicate(console, server, beta, client, rows)
        out.differ += out.second.differ
    for one in (server, beta):
        if await asyncio.to_thread(one.stop) != 0:
            out.differ += 1
            out.notes.append(f"{one.name} did not stop cleanly")
    out.third = await demo_cluster.play(console, cluster)
    return out


def clear(directory: Path) -> None:
    """Remove what the demo wrote, unless it is to be looked at."""
    if os.environ.get("DEMO_KEEP"):
        console.print(f"kept: {directory}")
    else:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    """Run; return the exit status."""
    directory = Path(tempfile.mkdtemp(prefix="pegaskv-demo-"))
    server = Server(directory / "alpha")
    beta = Server(directory / "beta", name="beta", cluster_id=2)
    cluster = demo_cluster.Cluster(directory / "cluster", console)
    # Whoever ends it does not mean to leave its servers behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with ExitStack() as ends:
            ends.callback(clear, directory)
            for one in (server, beta, cluster):
                ends.callback(one.stop)
            out = asyncio.run(run(server, beta, cluster))
    except PegasKVError as error:
        console.print(f"[red]the demo failed:[/] {error}", markup=True)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    report(out)
    return 1 if out.differ or out.lost else 0


if __name__ == "__main__":
    sys.exit(main())
