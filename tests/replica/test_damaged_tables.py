"""A rotten block of a table: its rows are refused with what to do, all others are served.

With real tables, since what LevelDB does of itself is half of the matter.
"""

import logging
from pathlib import Path
from random import Random

import pytest

import pegaskv
from pegaskv.base.errors import CorruptionError
from pegaskv.base.types import Gpid
from pegaskv.errors import PartitionClosed, RequestError
from pegaskv.server.standalone import Standalone
from pegaskv.storage.leveldb_files import live_tables
from pegaskv.storage.local_disk import LocalDisk
from tests.helpers import poll_until
from tests.server.test_standalone import running

ROWS = 400


def value(number: int) -> bytes:
    """Bytes that no compression hides."""
    return Random(number).randbytes(100)


async def loaded(data: Path) -> Gpid:
    """A table with rows in one LevelDB table and a published checkpoint; return its partition."""
    async with (
        running(data) as server,
        pegaskv.connect(server.address, timeout=20.0) as client,
    ):
        made = await client.admin.create_table("t", 1)
        table = await client.table("t")
        await table.multi_set("h", {b"%04d" % number: value(number) for number in range(ROWS)})
        gpid = Gpid(made.table_id, 0)
        await flushed(server, gpid)
        return gpid


async def flushed(server: Standalone, gpid: Gpid) -> None:
    assert server.stub is not None
    await server.stub._flush(server.stub._replicas[gpid])


def engine_path(data: Path, gpid: Gpid) -> Path:
    return data / "replicas" / str(gpid) / "engine"


def rot(path: Path) -> Path:
    """Flip a bit of the block that holds row 200, where every link to the file has it."""
    needle = value(200)[:50]
    for table in live_tables(LocalDisk(), path):
        file = path / table.name
        data = bytearray(file.read_bytes())
        place = data.find(needle)
        if place >= 0:
            data[place + 2] ^= 0x40
            with file.open("r+b") as handle:
                handle.write(data)
            return file
    raise AssertionError(f"{needle!r} is in no table")


def split_link(file: Path) -> None:
    """Give the engine a file of its own, as if a compaction had written it after the checkpoint."""
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data)


async def answers(table: pegaskv.Table) -> tuple[list[bytes], dict[bytes, RequestError]]:
    """Which rows are served, and what the others are answered with."""
    served: list[bytes] = []
    refused: dict[bytes, RequestError] = {}
    for number in range(ROWS):
        key = b"%04d" % number
        try:
            assert await table.get("h", key, timeout=3.0) == value(number)
            served.append(key)
        except RequestError as error:
            refused[key] = error
    return served, refused


async def settled(server: Standalone, gpid: Gpid) -> None:
    stub = server.stub
    assert stub is not None
    await poll_until(lambda: gpid in stub.damaged)


async def test_a_damaged_block_is_refused_with_what_to_do_and_all_other_rows_are_served_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpid = await loaded(tmp_path)
    rot(engine_path(tmp_path, gpid))
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=5.0) as client,
    ):
        table = await client.table("t")
        engine = server.stub._replicas[gpid].engine  # type: ignore[union-attr]
        with caplog.at_level(logging.WARNING):
            with pytest.raises(RequestError):
                await table.get("h", "0200")
            await settled(server, gpid)
            served, refused = await answers(table)
        assert b"0200" in refused
        assert 1 <= len(refused) < 100
        assert len(served) + len(refused) == ROWS
        for error in refused.values():
            assert str(gpid) in str(error)
            assert "--accept-loss" in str(error)
            assert "backup" in str(error)
        # Nothing was opened again, nothing is written twice into the log.
        assert server.stub._replicas[gpid].engine is engine  # type: ignore[union-attr]
        said = [line for line in caplog.messages if "its other rows are served" in line]
        assert len(said) == 1
        assert len([line for line in caplog.messages if "is damaged" in line]) <= 2
        # Writes go on, also over a damaged row, and are read.
        await table.set("h", "0200", "mended by a write")
        assert await table.get("h", "0200") == b"mended by a write"
        assert any(str(gpid) in reason for reason in server.health())
        metrics = {each.name: each.samples for each in server.stub.metrics()}  # type: ignore[union-attr]
        assert metrics["pegaskv_replicas_damaged"] == (((), 1.0),)


async def test_a_whole_checkpoint_takes_the_place_of_damaged_tables_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    gpid = await loaded(tmp_path)
    path = engine_path(tmp_path, gpid)
    for table in live_tables(LocalDisk(), path):
        split_link(path / table.name)
    rot(path)
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=20.0) as client,
    ):
        table = await client.table("t")
        await table.set("h", "later", "in the log alone")
        # It is mended while the client tries again.
        assert await table.get("h", "0200") == value(200)
        assert not (await answers(table))[1]
        assert await table.get("h", "later") == b"in the log alone"
        assert server.stub is not None
        assert server.stub.damaged == {}
        assert server.health() == []
        await table.set("h", "after", "1")
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=20.0) as client,
    ):
        table = await client.table("t")
        assert await table.get("h", "after") == b"1"
        assert await table.sort_key_count("h") == ROWS + 2


async def test_when_a_compaction_meets_the_block_reads_and_scans_go_on_and_writes_are_refused(
    tmp_path: Path,
) -> None:
    gpid = await loaded(tmp_path)
    rot(engine_path(tmp_path, gpid))
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=5.0) as client,
    ):
        table = await client.table("t")
        stub = server.stub
        assert stub is not None
        replica = stub._replicas[gpid]
        for key in ("0100", "0300"):
            await table.set("h", key, "new")
        replica.apply_now()
        # As LevelDB does by itself some day.
        with pytest.raises(CorruptionError):
            replica.engine.compact()
        await table.set("h", "0101", "acknowledged before the engine refused")
        await poll_until(lambda: bool(replica.read_only))
        with pytest.raises(PartitionClosed, match="accept-loss"):
            await table.set("h", "0102", "refused")
        openings = replica.engine
        assert await table.get("h", "0101") == b"acknowledged before the engine refused"
        assert await table.get("h", "0399") == value(399)
        found = await table.multi_get("h", start="0100", stop="0103")
        assert found[b"0101"] == b"acknowledged before the engine refused"
        assert replica.engine is openings
        assert replica.serving
    # And after a restart it is there.
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=5.0) as client,
    ):
        table = await client.table("t")
        assert await table.get("h", "0101") == b"acknowledged before the engine refused"


async def test_accept_loss_gives_up_the_damaged_rows_once_and_the_partition_is_whole_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gpid = await loaded(tmp_path)
    rot(engine_path(tmp_path, gpid))
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=5.0) as client,
    ):
        table = await client.table("t")
        with pytest.raises(RequestError):
            await table.get("h", "0200")
        await settled(server, gpid)
        _, refused = await answers(table)
        await table.set("h", "new", "1")
    # It is said again before anybody has read the row.
    async with running(tmp_path) as server:
        assert any("damaged" in reason for reason in server.health())
    with caplog.at_level(logging.ERROR):
        async with (
            running(tmp_path, accept_loss=True) as server,
            pegaskv.connect(server.address, timeout=5.0) as client,
        ):
            table = await client.table("t")
            rows = await table.multi_get("h", max_count=1_000)
            assert rows.complete
            assert set(rows) == {b"%04d" % number for number in range(ROWS)} - set(refused) | {
                b"new"
            }
            assert server.health() == []
            await table.set("h", "0200", "again")
    assert any("accepts the loss of rows" in line for line in caplog.messages)
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=5.0) as client,
    ):
        assert server.health() == []
        assert await (await client.table("t")).get("h", "0200") == b"again"


async def test_a_file_that_was_put_back_is_found_whole_at_the_next_start(tmp_path: Path) -> None:
    gpid = await loaded(tmp_path)
    path = engine_path(tmp_path, gpid)
    (table_file,) = [path / table.name for table in live_tables(LocalDisk(), path)]
    backup = table_file.read_bytes()
    rot(path)
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=5.0) as client,
    ):
        with pytest.raises(RequestError):
            await (await client.table("t")).get("h", "0200")
        await settled(server, gpid)
    table_file.write_bytes(backup)
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=5.0) as client,
    ):
        stub = server.stub
        assert stub is not None
        await poll_until(lambda: not stub.damaged)
        assert await (await client.table("t")).get("h", "0200") == value(200)
        assert server.health() == []
    assert not (tmp_path / "replicas" / str(gpid) / "damage").exists()


async def test_a_missing_table_closes_the_partition_until_its_loss_is_accepted(
    tmp_path: Path,
) -> None:
    gpid = await loaded(tmp_path)
    path = engine_path(tmp_path, gpid)
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=5.0) as client,
    ):
        await (await client.table("t")).set("h", "other", "1")
        await flushed(server, gpid)
    big = max(live_tables(LocalDisk(), path), key=lambda table: table.size)
    for link in (tmp_path / "replicas" / str(gpid)).rglob(big.name):
        link.unlink()
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=3.0) as client,
    ):
        with pytest.raises(PartitionClosed, match=r"lacks decrees 1 to .*--accept-loss"):
            await (await client.table("t")).get("h", "other")
    async with (
        running(tmp_path, accept_loss=True) as server,
        pegaskv.connect(server.address, timeout=3.0) as client,
    ):
        table = await client.table("t")
        assert await table.get("h", "other") == b"1"
        assert await table.get("h", "0001") is None
        await table.set("h", "0001", "new")
    async with (
        running(tmp_path) as server,
        pegaskv.connect(server.address, timeout=3.0) as client,
    ):
        assert await (await client.table("t")).get("h", "0001") == b"new"
