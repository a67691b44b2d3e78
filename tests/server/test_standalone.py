"""The composition of a standalone server, in the process of the test."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import pegaskv
from pegaskv.base.errors import (
    Busy,
    DirectoryUnusable,
    InvalidArgument,
    PegasKVError,
    Unavailable,
)
from pegaskv.base.version import VERSION
from pegaskv.codec.operations import Operation
from pegaskv.server.config import Config, config_from_text
from pegaskv.server.file_budget import FileBudget
from pegaskv.server.listening import ListenError
from pegaskv.server.standalone import Standalone
from tests.helpers import poll_until
from tests.net.test_connection_sockets import Client
from tests.server.cluster import make_meta, make_replica, serving

SMALL = "[server]\nlisten = '127.0.0.1:0'\nhttp = 'none'\n[storage]\nlog_segment_bytes = 65536\n"


def config(extra: str = "") -> Config:
    return config_from_text(SMALL + extra)


@asynccontextmanager
async def running(data: Path, extra: str = "", **parts: Any) -> AsyncIterator[Standalone]:
    server = Standalone(config(extra), data, **parts)
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def ask(server: Standalone, *fields: Any) -> list[Any]:
    client = await Client.greeted(int(server.address.rpartition(":")[2]))
    client.send([[2, *fields]])
    reply = await client.receive()
    await client.close()
    return reply


async def test_server_info_says_who_answers(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server:
        reply = await ask(server, Operation.SERVER_INFO, 1_000)
        assert reply[:2] == [2, 0]
        info = reply[2]
        assert info["version"] == VERSION
        assert info["role"] == "standalone"
        assert info["address"] == server.address
        assert info["http"] == "none"
        assert info["connections"] == 1
        assert info["health"] == []
        assert (await ask(server, Operation.SERVER_INFO, 1_000, "extra"))[1] != 0


async def test_hello_has_the_ids_of_cluster_and_node_and_they_stay(tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        async with running(tmp_path / "data") as server:
            info = (await ask(server, Operation.SERVER_INFO, 1_000))[2]
            cluster = (await ask(server, Operation.CLUSTER_INFO, 1_000))[2]
            seen.append((info["node_id"], cluster["cluster_uuid"]))
    assert seen[0] == seen[1]
    assert all(seen[0])


async def test_rows_are_there_after_a_stop_and_a_start(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server, pegaskv.connect(server.address) as client:
        await client.admin.create_table("t", partition_count=4)
        table = await client.table("t")
        for number in range(100):
            await table.set(b"%d" % number, b"", b"value %d" % number)
    async with running(tmp_path / "data") as server, pegaskv.connect(server.address) as client:
        table = await client.table("t")
        for number in range(100):
            assert await table.get(b"%d" % number, b"") == b"value %d" % number


async def test_a_second_server_on_the_directory_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "data") as server:
        with pytest.raises(DirectoryUnusable, match="in use"):
            async with running(tmp_path / "data"):
                pass
        assert (await ask(server, Operation.PING, 1_000))[1] == 0
    async with running(tmp_path / "data"):
        pass


async def test_a_start_that_failed_lets_the_directory_go(tmp_path: Path) -> None:
    async with running(tmp_path / "first") as server:
        taken = f"[server]\nlisten = '{server.address}'\nhttp = 'none'"
        other = Standalone(config_from_text(taken), tmp_path / "second")
        with pytest.raises(ListenError) as caught:
            await other.start()
        await other.stop()
        assert caught.value.in_use
        assert other.health() == ["the server is stopping"]
    async with running(tmp_path / "second") as server:
        assert server.health() == []


async def test_health_names_a_partition_whose_files_are_gone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with running(data) as server, pegaskv.connect(server.address) as client:
        await client.admin.create_table("t", partition_count=2)
    shutil.rmtree(data / "replicas" / "1.1")
    async with running(data) as server, pegaskv.connect(server.address) as client:
        [reason] = server.health()
        assert reason.startswith("partition 1.1 is closed: ")
        # The other one serves.
        table = await client.table("t")
        written = refused = 0
        for number in range(20):
            try:
                await table.set(b"%d" % number, b"", b"x", timeout=0.1)
                written += 1
            except PegasKVError:
                refused += 1
        assert written
        assert refused


def test_files_are_shared_out_and_never_given_twice() -> None:
    for files in range(48, 5_000):
        budget = FileBudget.of(files)
        given = budget.connections + 5 * budget.partitions + budget.http_connections
        assert given + 32 <= max(files, 57), files
        assert budget.connections >= 8
        assert budget.connection_descriptor_max < files
    assert FileBudget.of(1_024) == FileBudget(1_024, 464, 92, 64, 1_012)


async def test_a_table_that_would_take_too_many_files_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "data", files_max=512) as server:
        assert server._files.partitions == 44
        async with pegaskv.connect(server.address) as client:
            with pytest.raises(InvalidArgument, match=r"its limit of 44 .*ulimit -n"):
                await client.admin.create_table("large", partition_count=64)
            await client.admin.create_table("small", partition_count=1)


async def test_a_connection_is_refused_when_the_files_left_are_for_storage(
    tmp_path: Path,
) -> None:
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(128)]
    try:
        async with running(tmp_path / "data", files_max=128) as server:
            assert server._acceptor is not None
            refused = await Client.connect(int(server.address.rpartition(":")[2]))
            reply = await refused.receive()
            assert reply[:3] == [0, Busy.code, "the server may have no more files open (ulimit -n)"]
            assert await refused.closed()
            # It does not linger: its file is needed.
            await poll_until(lambda: not server._acceptor._lingering)
            await refused.close()
            with pytest.raises(Unavailable, match=r"ulimit -n\) \(use one connection for many"):
                await pegaskv.connect(server.address)
    finally:
        for descriptor in opened:
            os.close(descriptor)


async def test_the_front_and_the_connections_know_of_each_other(tmp_path: Path) -> None:
    """Who calls alone is answered at once, and no reply waits for a tick of others."""
    async with (
        running(tmp_path / "data") as server,
        serving(make_meta(tmp_path / "meta")) as meta,
        serving(make_replica(tmp_path / "replica", meta.address)) as replica,
    ):
        for acceptor, stub in (
            (server._acceptor, server._rows.stub),
            (replica._acceptor, replica._stub),  # type: ignore[attr-defined]
        ):
            assert acceptor.single.answer == stub._front._answer_single
            assert acceptor.single is stub._front._single
            assert stub._front.write_waiting == acceptor.outgoing.write


async def test_a_wildcard_address_is_reported_as_where_the_client_came(tmp_path: Path) -> None:
    wildcard = "[server]\nlisten = '0.0.0.0:0'\nhttp = 'none'"
    server = Standalone(config_from_text(wildcard), tmp_path / "data")
    try:
        await server.start()
        port = server.address.rpartition(":")[2]
        async with pegaskv.connect(f"127.0.0.1:{port}") as client:
            await client.admin.create_table("t")
            table = await client.table("t")
            await table.set(b"k", b"", b"v")
            assert await table.get(b"k", b"") == b"v"
    finally:
        await server.stop()


async def test_a_crash_of_background_work_is_a_failure_of_the_server(tmp_path: Path) -> None:
    told: list[PegasKVError] = []
    async with running(tmp_path / "data", on_fatal=told.append) as server:
        server.crashed(ValueError("a bug"))
        server.crashed(ValueError("another"))
        assert [str(each) for each in told] == ["internal error: ValueError: a bug"]
        assert server.health() == ["internal error: ValueError: a bug"]
