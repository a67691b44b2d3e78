"""Clients that abuse a real server: it stays within its bounds, and others are served."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pegaskv
from pegaskv.base.errors import Busy
from pegaskv.codec.operations import Operation
from pegaskv.runtime.tasks import TaskScope
from tests.cluster.abusers import ABUSERS, LARGE_BYTES, LARGE_ROWS, PARTITIONS, index_of
from tests.cluster.process import ServerProcess, running_server
from tests.helpers import pause, poll_until
from tests.net.test_connection_sockets import Client

MIB = 1 << 20
# What requests and unread replies may take together, and all the rest of a server. A request of
# little values takes a multiple of its bytes once it is decoded.
IN_FLIGHT, UNSENT, ALL_ELSE = 16 * MIB, 32 * MIB, 160 * MIB
DECODED = 8
CONFIG = f"""
[server]
in_flight_bytes_max = {IN_FLIGHT}
unsent_bytes_max = {UNSENT}
connections_per_address_max = 500
"""


# What the short test lets loose at once; `slow_senders` show nothing in so short a time.
TOGETHER = (
    ("never_reads", "half_frames", "bombs"),
    ("tiny_requests", "tiny_writes", "connections"),
    ("giant_batches", "giant_operations", "scans"),
)


@contextmanager
def abusers(
    server: ServerProcess, table_id: int, *names: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that abuses the server until the end of the block."""
    assert set(names) <= set(ABUSERS)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.cluster.abusers",
            str(port_of(server)),
            str(table_id),
            *names,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"begun\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def resident(server: ServerProcess) -> int:
    assert server.process is not None
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1_024
    raise AssertionError("the server has ended")


def port_of(server: ServerProcess) -> int:
    return int(server.address.rpartition(":")[2])


async def prepare(client: pegaskv.Client) -> tuple[pegaskv.Table, int]:
    """Make a polite table and a rude one; return the first and the id of the second."""
    await client.admin.create_table("polite", partition_count=PARTITIONS)
    made = await client.admin.create_table(
        "rude", partition_count=PARTITIONS, envs={"durability": "os"}
    )
    rude = await client.table("rude")
    for number in range(LARGE_ROWS):
        await rude.set(b"large%d" % number, b"", bytes(LARGE_BYTES))
    return await client.table("polite"), made.table_id


async def test_others_are_served_and_memory_is_bounded_beside_abuse(tmp_path: Path) -> None:
    with running_server(tmp_path, config=CONFIG) as server:
        async with pegaskv.connect(server.address, timeout=20) as client:
            polite, rude = await prepare(client)
            for names in TOGETHER:
                peak = 0
                with abusers(server, rude, *names) as process:
                    for number in range(12):
                        await polite.set(b"k%d" % number, b"s", b"v%d" % number)
                        assert await polite.get(b"k%d" % number, b"s") == b"v%d" % number
                        peak = max(peak, resident(server))
                    assert process.poll() is None
                assert peak < DECODED * IN_FLIGHT + UNSENT + ALL_ELSE, names
        assert await asyncio.to_thread(server.stop) == 0
        assert "Traceback" not in server.log()


async def test_scans_go_on_to_the_end_behind_removed_rows(tmp_path: Path) -> None:
    count = 100_000
    with running_server(tmp_path) as server:
        async with pegaskv.connect(server.address, timeout=20) as client:
            await client.admin.create_table("t", partition_count=1, envs={"durability": "os"})
            table = await client.table("t")
            names = [b"s%06d" % number for number in range(count)]
            for begin in range(0, count, 10_000):
                await table.multi_set(b"h", dict.fromkeys(names[begin : begin + 10_000], b""))
            for begin in range(0, count, 10_000):
                await table.multi_delete(b"h", names[begin : begin + 10_000])
            assert await table.count() == 0
            assert [row async for row in table.full_scan()] == []
            await table.set(b"h", b"s100000", b"alive")
            assert await table.count() == 1


async def test_who_sends_too_much_at_once_is_told_busy_and_when_to_come_back(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path) as server:
        async with pegaskv.connect(server.address) as client:
            _, rude = await prepare(client)
            raw = await Client.greeted(port_of(server))
            # Beyond what one partition may have uncommitted; all of them at once.
            value = bytes(MIB)
            for request_id in range(1, 64):
                raw.send([[request_id, Operation.SET, 9_000, rude, 3, *_row(3), value, 0]])
            codes = [(await raw.receive())[1:] for _ in range(1, 64)]
            assert [each for each in codes if each[0] == 0]
            for code, message, _hint, details in (each for each in codes if each[0]):
                assert code == Busy.code, message
                assert details["retry_after_ms"] > 0
            await raw.close()


def _row(index: int) -> tuple[bytes, bytes]:
    key = next(b"b%d" % n for n in range(1_000) if index_of(b"b%d" % n) == index)
    return key, b""


# The figures, on a machine that does nothing else: `make soak`.

SECONDS = 5.0
# Below that it is the machine's other work that is measured.
QUIET_S = 0.005


async def percentile(table: pegaskv.Table, seconds: float) -> float:
    """The 99th percentile in seconds of reads by three tasks that pause between."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    async def read(chance: random.Random) -> None:
        while time.perf_counter() < end:
            began = time.perf_counter()
            assert await table.get(b"k%d" % chance.randrange(100), b"s") == b"v"
            taken.append(time.perf_counter() - began)
            await pause(chance.random() * 0.004)

    async with TaskScope("readers") as scope:
        for number in range(3):
            scope.start("read", read(random.Random(number)))
    return sorted(taken)[len(taken) * 99 // 100]


@pytest.mark.soak
@pytest.mark.parametrize("name", ABUSERS)
async def test_others_wait_at_most_twice_as_long_beside(name: str, tmp_path: Path) -> None:
    with running_server(tmp_path) as server:
        async with pegaskv.connect(server.address, timeout=20) as client:
            polite, rude = await prepare(client)
            await polite.batch_set([(b"k%d" % number, b"s", b"v") for number in range(100)])
            quiet = await percentile(polite, SECONDS)
            with abusers(server, rude, name):
                await pause(1.0)
                beside = await percentile(polite, SECONDS)
            assert beside <= 2 * max(quiet, QUIET_S)
            assert resident(server) < 800 * MIB


async def page_by_page(server: ServerProcess, table_id: int) -> None:
    """Scan the partition of `h`: each page is answered soon, and says where to go on."""
    raw = await Client.greeted(port_of(server))
    start: bytes | None = b""
    pages = 0
    while start is not None:
        pages += 1
        scan = (start, b"", 0, 0, b"", 0, b"", 0, b"", 1_000, 0)
        raw.send([[pages, Operation.SCAN, 2_000, table_id, index_of(b"h"), *scan]])
        _, status, next_key, *_ = await raw.receive()
        assert status == 0
        assert next_key is None or next_key > start
        start = next_key
    # A page ends after 20 ms, and a million removed rows take longer on any machine.
    assert pages > 2
    await raw.close()


@pytest.mark.soak
async def test_ten_million_removed_rows_are_in_nobodys_way(tmp_path: Path) -> None:
    count = 10_000_000 if os.environ.get("PEGASKV_SOAK_MINUTES") else 1_000_000
    with running_server(tmp_path) as server:
        async with pegaskv.connect(server.address, timeout=60) as client:
            polite, rude_id = await prepare(client)
            await polite.batch_set([(b"k%d" % number, b"s", b"v") for number in range(100)])
            rude = await client.table("rude")
            for operation in (
                lambda names: rude.multi_set(b"h", dict.fromkeys(names, b"")),
                lambda names: rude.multi_delete(b"h", names),
            ):
                for begin in range(0, count, 10_000):
                    await operation([b"s%08d" % number for number in range(begin, begin + 10_000)])
            quiet = await percentile(polite, SECONDS)
            await page_by_page(server, rude_id)
            async with TaskScope("scans") as scope:
                counting = scope.start("count", rude.count(timeout=600))
                beside = await percentile(polite, SECONDS)
                assert await counting == LARGE_ROWS
            assert beside <= 2 * max(quiet, QUIET_S)
            await poll_until(lambda: resident(server) < 800 * MIB)
