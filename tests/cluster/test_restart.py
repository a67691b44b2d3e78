"""Stops, restarts and lost files of a real server, as an operator meets them."""

import asyncio
import shutil
from pathlib import Path

import pytest

import pegaskv
from pegaskv.errors import PartitionClosed, RequestError
from pegaskv.runtime.tasks import TaskScope
from tests.cluster.process import running_server
from tests.helpers import poll_until

pytestmark = pytest.mark.process


async def test_sigterm_under_load_loses_nothing_and_exits_with_0(tmp_path: Path) -> None:
    acknowledged: list[tuple[bytes, bytes]] = []

    async def write(table: pegaskv.Table, name: bytes) -> None:
        number = 0
        while True:
            number += 1
            try:
                await table.set(name, b"%d" % number, b"v", timeout=0.3)
            except RequestError:
                return
            acknowledged.append((name, b"%d" % number))

    with running_server(tmp_path / "server") as server:
        async with pegaskv.connect(server.address, timeout=10.0) as client:
            for durability in ("fsync", "os"):
                await client.admin.create_table(durability, 4, envs={"durability": durability})
            tables = [await client.table(name) for name in ("fsync", "os")]
            async with TaskScope("writers") as scope:
                for number in range(20):
                    scope.start("writer", write(tables[number % 2], b"%d" % number))
                await poll_until(lambda: len(acknowledged) > 2_000)
                assert await asyncio.to_thread(server.stop) == 0
            await asyncio.to_thread(server.start)
            for parity, table in enumerate(tables):
                mine = [row for row in acknowledged if int(row[0]) % 2 == parity]
                assert mine
                assert None not in await table.batch_get(mine)
        assert "Traceback" not in server.log()


async def test_a_table_is_whole_or_gone_when_the_server_is_killed_while_it_is_made(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path / "server") as server:
        for attempt in range(3):
            name = f"t{attempt}"
            async with (
                pegaskv.connect(server.address, timeout=10.0) as client,
                TaskScope("creation") as scope,
            ):
                scope.start("create", _create(client, name))
                # The kill comes at another step of the creation each time.
                for _ in range(attempt * 40):
                    await asyncio.sleep(0)
                await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            async with pegaskv.connect(server.address, timeout=10.0) as client:
                names = [table.name for table in await client.admin.list_tables()]
                if name in names:
                    table = await client.table(name)
                    await table.batch_set([(b"%d" % n, b"s", b"v") for n in range(200)])
                    assert await table.count() == 200
                else:
                    await client.admin.create_table(name, 32)


async def _create(client: pegaskv.Client, name: str) -> None:
    try:
        await client.admin.create_table(name, 32, timeout=1.0)
    except RequestError:
        return


async def test_a_replica_whose_files_are_gone_stays_closed_and_says_so(tmp_path: Path) -> None:
    with running_server(tmp_path / "server") as server:
        async with pegaskv.connect(server.address) as client:
            made = await client.admin.create_table("t", 2)
            table = await client.table("t")
            keys = [b"%d" % number for number in range(20)]
            for key in keys:
                await table.set(key, b"s", b"v")
            lost = [key for key in keys if table.partition_of(key) == 1]
            kept = [key for key in keys if table.partition_of(key) == 0]
        server.stop()
        shutil.rmtree(tmp_path / "server" / "data" / "replicas" / f"{made.table_id}.1")
        server.start()
        async with pegaskv.connect(server.address, timeout=3.0) as client:
            table = await client.table("t")
            assert await table.get(kept[0], b"s") == b"v"
            with pytest.raises(PartitionClosed, match="missing"):
                await table.get(lost[0], b"s")
            with pytest.raises(PartitionClosed, match="missing"):
                await table.set(lost[0], b"s", b"new")


async def test_a_flipped_byte_in_the_log_closes_what_may_have_lost_rows_until_it_is_accepted(
    tmp_path: Path,
) -> None:
    with running_server(tmp_path / "server") as server:
        async with pegaskv.connect(server.address) as client:
            await client.admin.create_table("t", 1)
            table = await client.table("t")
            for number in range(5):
                await table.set(b"h", b"%d" % number, b"needle-%d-" % number * 20)
        server.kill()
        _flip(tmp_path / "server" / "data" / "log", b"needle-2-")
        server.start()
        async with pegaskv.connect(server.address, timeout=3.0) as client:
            with pytest.raises(PartitionClosed, match="accept-loss"):
                await (await client.table("t")).get(b"h", b"0")
        server.stop()
        server.arguments += ("--accept-loss",)
        server.start()
        async with pegaskv.connect(server.address, timeout=3.0) as client:
            table = await client.table("t")
            assert await table.get(b"h", b"1") is not None
            await table.set(b"h", b"new", b"v")
            assert await table.get(b"h", b"new") == b"v"


def _flip(directory: Path, needle: bytes) -> None:
    for path in sorted(directory.iterdir()):
        data = bytearray(path.read_bytes())
        place = data.find(needle)
        if place >= 0:
            data[place] ^= 1
            path.write_bytes(data)
            return
    raise AssertionError(f"{needle!r} is in no segment")
