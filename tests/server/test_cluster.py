"""Meta and replica servers together: the compositions, in the process of the test."""

import logging
import random
from pathlib import Path
from typing import Any

import pytest

import pegaskv
from pegaskv.base.errors import DirectoryUnusable
from pegaskv.codec.operations import Operation
from pegaskv.server.config import config_from_text
from pegaskv.server.standalone import Standalone
from tests.cluster.proxy import running_proxy
from tests.helpers import pause, poll_until
from tests.net.connection_support import hello
from tests.net.test_connection_sockets import Client
from tests.server.cluster import Cluster, cluster, make_meta, make_replica, serving
from tests.server.test_hostile_requests import RIGHT, spoiled

BETWEEN_SERVERS = [one for one in Operation if one >= Operation.PREPARE]


async def server_client(address: str) -> Client:
    """A connection that says it is a server's."""
    client = await Client.connect(int(address.rpartition(":")[2]))
    client.send([[*hello()[:7], ["server"], []]])
    assert (await client.receive())[:2] == [1, 0]
    return client


async def ask(address: str, *fields: Any) -> list[Any]:
    client = await server_client(address)
    client.send([[2, *fields]])
    reply = await client.receive()
    await client.close()
    return reply


async def whole(client: pegaskv.Client, table: str = "t", count: int = 3) -> bool:
    """Whether every partition has so many members."""
    found = await client.admin.table_info(table)
    return all(1 + len(one.secondaries) == count and one.primary for one in found.partitions)


async def test_a_table_is_kept_on_three_servers_and_survives_a_stop_of_all(tmp_path: Path) -> None:
    async with cluster(tmp_path) as servers:
        async with pegaskv.connect(servers.address) as client:
            await client.admin.create_table("t", partition_count=2)
            table = await client.table("t")
            for number in range(20):
                await table.set(b"%d" % number, b"", b"value %d" % number)
            assert await whole(client)
            # Written once, kept three times.
            info = await ask(servers.servers["replica2"].address, Operation.REPLICA_STATES, 0, 0)
            assert {state["status"] for _, _, state, _ in info[2]} <= {"primary", "secondary"}
            assert len(info[2]) == 2
        for name in ("replica1", "replica2", "replica3", "meta1"):
            await servers.stop(name)
        for name in ("meta1", "replica3", "replica2", "replica1"):
            await servers.start(name)
        async with pegaskv.connect(servers.address, timeout=20) as client:
            table = await client.table("t")
            for number in range(20):
                assert await table.get(b"%d" % number, b"") == b"value %d" % number
            await poll_until(lambda: whole(client), deadline_s=20)


async def test_a_replica_server_waits_for_its_meta_server_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with serving(make_meta(tmp_path / "meta")) as meta:
        address = meta.address
    replica = make_replica(tmp_path / "replica", address)
    try:
        await replica.start()
        await poll_until(lambda: "no meta server answers" in caplog.text)
        assert not replica.ready.is_set()
        starting, *reasons = replica.health()
        assert starting == "the server is starting"
        assert any("nothing listens there" in reason for reason in reasons)
        async with serving(make_meta(tmp_path / "meta", listen=address)):
            await poll_until(replica.ready.is_set)
            assert replica.health() == []
            info = await ask(replica.address, Operation.SERVER_INFO, 0)
            assert info[2]["role"] == "replica"
            assert info[2]["cluster_name"] == "pegaskv"
    finally:
        await replica.stop()


async def test_a_meta_server_that_comes_back_knows_its_nodes_and_rows_are_served_meanwhile(
    tmp_path: Path,
) -> None:
    async with (
        cluster(tmp_path, replicas=2) as servers,
        pegaskv.connect(servers.address) as client,
    ):
        await client.admin.create_table("t", partition_count=2, replica_count=2)
        table = await client.table("t")
        await table.set(b"k", b"", b"1")
        await servers.stop("meta1")
        await table.set(b"k", b"", b"2")
        await poll_until(lambda: bool(servers.servers["replica1"].health()))
        assert await table.get(b"k", b"") == b"2"
        ballots = await replica_ballots(servers)
        await servers.start("meta1")

        async def all_known() -> bool:
            nodes = await client.admin.nodes()
            return [node.status for node in nodes] == ["alive", "alive"]

        await poll_until(all_known)
        await table.set(b"k", b"", b"3")
        # Who leads goes on: a meta server that is new changes nothing.
        assert await replica_ballots(servers) == ballots
        await poll_until(lambda: not servers.servers["replica1"].health())


async def replica_ballots(servers: Cluster) -> list[tuple[int, str]]:
    found = []
    for name in ("replica1", "replica2"):
        reply = await ask(servers.servers[name].address, Operation.REPLICA_STATES, 0, 0)
        found += [(state["ballot"], state["status"]) for _, _, state, _ in reply[2]]
    return found


async def test_a_server_that_stops_hands_over_and_no_call_fails(tmp_path: Path) -> None:
    async with cluster(tmp_path) as servers, pegaskv.connect(servers.address) as client:
        await client.admin.create_table("t", partition_count=4)
        table = await client.table("t")
        await poll_until(lambda: whole(client))
        for name in ("replica1", "replica2"):
            for number in range(10):
                await table.set(b"%d" % number, b"", name.encode())
            await servers.stop(name, hand_over=True)
            for number in range(10):
                assert await table.get(b"%d" % number, b"") == name.encode()
            info = await client.admin.table_info("t")
            gone = servers.path / name
            assert gone.is_dir()
            left = [(one.primary, one.secondaries) for one in info.partitions]
            assert all(primary and len(secondaries) == 1 for primary, secondaries in left), left
            await servers.start(name)
            await poll_until(lambda: whole(client))


async def test_who_is_alone_stops_without_waiting_for_others(tmp_path: Path) -> None:
    async with cluster(tmp_path, replicas=1) as servers:
        async with pegaskv.connect(servers.address) as client:
            await client.admin.create_table("t", partition_count=2, replica_count=1)
            table = await client.table("t")
            await table.set(b"k", b"", b"v")
        replica = servers.servers["replica1"]
        began_ms = replica.clock.monotonic_ms()
        await servers.stop("replica1", hand_over=True)
        assert replica.clock.monotonic_ms() - began_ms < 5_000
        await servers.start("replica1")
        async with pegaskv.connect(servers.address) as client:
            table = await client.table("t")
            assert await table.get(b"k", b"") == b"v"


async def test_a_server_behind_a_wildcard_is_found_by_others(tmp_path: Path) -> None:
    async with (
        serving(make_meta(tmp_path / "meta")) as meta,
        serving(make_replica(tmp_path / "replica", meta.address, listen="0.0.0.0:0")) as replica,
        pegaskv.connect(meta.address) as client,
    ):
        (node,) = await client.admin.nodes()
        assert node.address == f"127.0.0.1:{replica.address.rpartition(':')[2]}"
        await client.admin.create_table("t", partition_count=1, replica_count=1)
        table = await client.table("t")
        await table.set(b"k", b"", b"v")


async def test_a_server_is_reached_where_it_says_and_not_where_it_listens(tmp_path: Path) -> None:
    async with serving(make_meta(tmp_path / "meta")) as meta:
        async with serving(make_replica(tmp_path / "replica", meta.address)) as replica:
            listen = replica.address
        async with running_proxy(listen) as proxy:
            extra = f"advertise = '{proxy.address}'\n"
            again = make_replica(tmp_path / "replica", meta.address, listen=listen, extra=extra)
            async with serving(again), pegaskv.connect(meta.address) as client:
                (node,) = await client.admin.nodes()
                assert node.address == proxy.address
                await client.admin.create_table("t", partition_count=1, replica_count=1)
                before = proxy.connections
                table = await client.table("t")
                await table.set(b"k", b"", b"v")
                assert proxy.connections > before


async def test_a_replica_server_stays_with_the_cluster_that_it_joined_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with serving(make_meta(tmp_path / "first")) as first:
        async with serving(make_replica(tmp_path / "replica", first.address)):
            pass
        uuid = (tmp_path / "replica" / "cluster").read_text().strip()
        assert uuid == first.cluster_uuid()
    async with serving(make_meta(tmp_path / "second")) as second:
        replica = make_replica(tmp_path / "replica", second.address)
        try:
            await replica.start()
            await poll_until(lambda: "belongs to another cluster" in caplog.text)
            assert not replica.ready.is_set()
        finally:
            await replica.stop()


async def test_a_directory_is_of_one_kind_of_server(tmp_path: Path) -> None:
    async with serving(make_meta(tmp_path / "data")) as meta:
        address = meta.address
    other = make_replica(tmp_path / "data", address)
    with pytest.raises(DirectoryUnusable, match="data directory of a meta server") as met:
        await other.start()
    await other.stop()
    assert "pegaskv meta" in met.value.hint
    async with serving(make_meta(tmp_path / "data")):
        pass


async def test_a_directory_of_before_is_a_standalone_server_s(tmp_path: Path) -> None:
    config = config_from_text("[server]\nlisten = '127.0.0.1:0'\nhttp = 'none'\n")
    async with serving(Standalone(config, tmp_path / "data")):
        pass
    (tmp_path / "data" / "role").unlink()
    meta = make_meta(tmp_path / "data")
    with pytest.raises(DirectoryUnusable, match="standalone"):
        await meta.start()
    await meta.stop()
    async with serving(Standalone(config, tmp_path / "data")):
        assert (tmp_path / "data" / "role").read_text() == "standalone\n"
    (tmp_path / "data" / "role").write_text("somebody\n")
    spoilt = Standalone(config, tmp_path / "data")
    with pytest.raises(DirectoryUnusable, match="damaged"):
        await spoilt.start()
    await spoilt.stop()


async def test_a_start_that_found_no_use_for_a_directory_leaves_its_marks_alone(
    tmp_path: Path,
) -> None:
    """A stop is clean only if all that was acknowledged is synced; nobody looked at that."""
    async with serving(make_meta(tmp_path / "meta")) as meta:
        async with serving(make_replica(tmp_path / "replica", meta.address)):
            running = (tmp_path / "replica" / "boot").read_bytes()
        clean = (tmp_path / "replica" / "boot").read_bytes()
        assert clean != running
        (tmp_path / "replica" / "boot").write_bytes(running)
        (tmp_path / "replica" / "cluster").write_text("x" * 100)
        replica = make_replica(tmp_path / "replica", meta.address)
        with pytest.raises(DirectoryUnusable, match="cluster is damaged"):
            await replica.start()
        await replica.stop()
        assert (tmp_path / "replica" / "boot").read_bytes() != clean


@pytest.mark.parametrize("seed", range(2))
async def test_whatever_a_server_says_to_another_is_answered(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    answered: set[Operation] = set()
    async with (
        cluster(tmp_path, replicas=1) as servers,
        pegaskv.connect(servers.address) as polite,
    ):
        await polite.admin.create_table("t", partition_count=1, replica_count=1)
        table = await polite.table("t")
        await table.set(b"polite", b"", b"value")
        for server in servers.servers.values():
            rude = await server_client(server.address)
            sent = {}
            for request_id in range(2, 200):
                operation = sent[request_id] = chance.choice(BETWEEN_SERVERS)
                fields = spoiled(chance, RIGHT[operation])
                rude.send([[request_id, int(operation), 1_000, *fields]])
            while sent:
                reply = await rude.receive()
                answered.add(sent.pop(reply[0]))
                assert reply[1] == 0 or len(reply) == 5
            await rude.close()
            assert server._acceptor is not None
            assert server._acceptor.handler_failures == 0
        assert await table.get(b"polite", b"") == b"value"
    assert answered == set(BETWEEN_SERVERS)


async def test_beacons_are_sent_and_their_end_is_noticed(tmp_path: Path) -> None:
    quick = "node_dead_ms = 600\nguardian_interval_ms = 100\n"
    async with (
        serving(make_meta(tmp_path / "meta", extra=quick)) as meta,
        pegaskv.connect(meta.address) as client,
    ):
        often = "beacon_interval_ms = 100\n"
        async with serving(make_replica(tmp_path / "replica", meta.address, extra=often)):
            await pause(1.0)
            (node,) = await client.admin.nodes()
            assert node.status == "alive"

        async def is_gone() -> bool:
            (node,) = await client.admin.nodes()
            return node.status == "unalive"

        await poll_until(is_gone)
