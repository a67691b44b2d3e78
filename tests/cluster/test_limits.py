"""Real servers at their limits: refused politely, the others served, and all well afterwards."""

import asyncio
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

import pegaskv
from pegaskv.base.errors import Busy, InvalidArgument, PegasKVError, Unavailable
from pegaskv.runtime.tasks import TaskScope
from tests.cluster.process import ServerProcess, running_server
from tests.helpers import poll_until
from tests.net.test_connection_sockets import Client


def limited(**limits: int) -> tuple[str, ...]:
    return ("prlimit", *(f"--{name}={value}:{value}" for name, value in limits.items()))


def cpu_seconds(server: ServerProcess) -> float:
    assert server.process is not None
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def health(server: ServerProcess) -> int:
    try:
        with urllib.request.urlopen(f"http://{server.http}/health", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_a_flood_of_connections_at_the_limit_of_files_ends_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path, http=True, prefix=limited(nofile=128)) as server:
        port = int(server.address.rpartition(":")[2])
        async with pegaskv.connect(server.address) as polite:
            await polite.admin.create_table("t", partition_count=8)
            table = await polite.table("t")
            flood = [await Client.connect(port) for _ in range(250)]
            # Those of the other port too: they cost files as well.
            http = int(server.http.rpartition(":")[2])
            flood += [await Client.connect(http) for _ in range(100)]
            told = await flood[249].receive()
            assert told[:2] == [0, Busy.code]
            assert "connections" in told[2]
            with pytest.raises(Unavailable, match=r"connections .*use one connection for many"):
                await pegaskv.connect(server.address)
            before = cpu_seconds(server)
            for number in range(100):
                await table.set(b"k", b"%d" % number, bytes(100_000))
                assert len(await table.get(b"k", b"%d" % number) or b"") == 100_000
            # No loop that accepts in vain: a hundred requests and little else.
            assert cpu_seconds(server) - before < 2.0
            with pytest.raises(InvalidArgument, match="ulimit -n"):
                await polite.admin.create_table("more", partition_count=64)
            assert await asyncio.to_thread(health, server) == 200
            for each in flood:
                each.writer.transport.abort()

            async def is_let_in() -> bool:
                try:
                    async with pegaskv.connect(server.address) as late:
                        return len(await late.admin.list_tables()) == 1
                except PegasKVError:
                    return False

            await poll_until(is_let_in, what="a new connection")
        assert await asyncio.to_thread(server.stop) == 0
        assert "Traceback" not in server.log()
        assert "failed" not in server.log()


async def test_a_server_without_memory_says_so_and_keeps_what_it_acknowledged(
    tmp_path: Path,
) -> None:
    taken: dict[bytes, bytes] = {}
    refused = 0
    with running_server(tmp_path, prefix=limited(**{"as": 1_000 << 20})) as server:
        assert "memory is tight" in server.log()

        async def push(number: int, count: int) -> None:
            nonlocal refused
            async with pegaskv.connect(server.address) as client:
                table = await client.table("t")
                for step in range(count):
                    key, value = b"%d-%d" % (number, step), bytes([number]) * 700_000
                    try:
                        await table.multi_set(key, {b"s": value})
                        taken[key] = value
                        found = await table.multi_get(key)
                        assert found == {b"s": value}
                    except PegasKVError:
                        refused += 1

        async with pegaskv.connect(server.address) as client:
            await client.admin.create_table("t", partition_count=4)
            async with TaskScope("pushing") as scope:
                for number in range(40):
                    scope.start("push", push(number, 5))
            assert server.running
            await push(99, 2)
        server.kill()
        assert "Traceback" not in server.log()
    server.prefix = ()
    await asyncio.to_thread(server.start)
    try:
        assert len(taken) > 20
        async with pegaskv.connect(server.address) as client:
            table = await client.table("t")
            for key, value in taken.items():
                assert await table.get(key, b"s") == value
    finally:
        await asyncio.to_thread(server.stop)


async def test_one_address_gets_its_share_of_connections_and_no_more(
    tmp_path: Path,
) -> None:
    config = "[server]\nconnections_per_address_max = 50\n"
    with running_server(tmp_path, config=config) as server:
        port = int(server.address.rpartition(":")[2])
        greeted = [await Client.greeted(port) for _ in range(50)]
        late = await Client.connect(port)
        assert "has its 50 connections already" in (await late.receive())[2]
        assert await late.closed()
        await greeted.pop().close()
        again = await Client.greeted(port)
        for each in (*greeted, again, late):
            await each.close()


async def test_what_is_measured_parses_and_an_idle_server_is_small(tmp_path: Path) -> None:
    with running_server(tmp_path, http=True) as server:
        async with pegaskv.connect(server.address) as client:
            await client.admin.create_table("t", partition_count=8)

        def fetch() -> str:
            with urllib.request.urlopen(f"http://{server.http}/metrics", timeout=5) as answer:
                return str(answer.read().decode())

        text = await asyncio.to_thread(fetch)
        families = list(text_string_to_metric_families(text))
        names = [family.name for family in families]
        assert len(names) == len(set(names)) > 20
        for family in families:
            assert family.documentation, family.name
            assert family.type in ("counter", "gauge"), family.name
            samples = [(sample.name, tuple(sample.labels.items())) for sample in family.samples]
            assert len(samples) == len(set(samples)), family.name
        resident = next(one for one in families if one.name == "process_resident_memory_bytes")
        assert resident.samples[0].value < 60 << 20
