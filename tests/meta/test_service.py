import asyncio

import pytest

from pegaskv.base.errors import (
    Busy,
    BusyCreating,
    DiskFull,
    InvalidArgument,
    NotReady,
    TableExists,
    TableNotFound,
    Unavailable,
)
from pegaskv.codec.operations import Operation
from pegaskv.meta.options import MetaOptions
from pegaskv.runtime.tasks import TaskScope
from tests.meta.service_world import Process, run_process
from tests.simulation.disk import Fault

GONE = OSError(24, "too many open files")


def test_a_table_can_be_used_when_its_creation_is_answered() -> None:
    async def test(process: Process) -> None:
        client = process.client
        table, created, warnings = await client.ask(
            Operation.CREATE_TABLE, "users", 4, 0, {"durability": "os"}, "fail"
        )
        assert created is True
        assert "power" in warnings[0]
        assert table["status"] == "available"
        assert table["envs"] == {"durability": "os"}
        assert len(process.node.server.open) == 4
        table_id, count, version, partitions, durability = await client.ask(
            Operation.QUERY_CONFIG, "users"
        )
        assert durability == "os"
        assert (table_id, count, version) == (table["table_id"], 4, table["version"])
        assert partitions == [[index, 1, "127.0.0.1:34801", []] for index in range(4)]
        table, created, warnings = await client.ask(
            Operation.CREATE_TABLE, "users", 4, 1, {"durability": "os"}, "same"
        )
        assert created is False
        with pytest.raises(TableExists, match="not 8") as caught:
            await client.ask(Operation.CREATE_TABLE, "users", 8, 0, {}, "same")
        assert caught.value.details["table_id"] == table_id

    run_process(test)


def test_tables_are_dropped_recalled_renamed_and_shown() -> None:
    async def test(process: Process) -> None:
        client = process.client
        await client.create("users")
        await client.create("orders", default_ttl="60")
        [dropped] = await client.ask(Operation.DROP_TABLE, "users", -1, "fail")
        assert dropped["status"] == "dropped"
        assert dropped["expires_at"] - dropped["dropped_at"] == 604_800
        assert await client.ask(Operation.DROP_TABLE, "users", -1, "ok") == [None]
        assert set(await client.tables()) == {"orders"}
        assert set(await client.tables(with_dropped=True)) == {"orders", "users"}
        with pytest.raises(TableNotFound) as caught:
            await client.ask(Operation.QUERY_CONFIG, "users")
        assert "`recall 1`" in caught.value.hint
        [back] = await client.ask(Operation.RECALL_TABLE, 1, "people")
        assert (back["name"], back["status"]) == ("people", "available")
        [renamed] = await client.ask(Operation.RENAME_TABLE, "people", "persons")
        assert renamed["name"] == "persons"
        shown, partitions = await client.ask(Operation.TABLE_INFO, "persons")
        assert shown == {**renamed, "sources": [], "duplications": []}
        state = {"open": True}
        assert partitions == [
            [index, 2, "node-1", [], state, {"node-1": state}] for index in range(4)
        ]

    run_process(test)


def test_envs_are_set_deleted_and_cleared() -> None:
    async def test(process: Process) -> None:
        client = process.client
        await client.create("users")
        table, warnings = await client.ask(
            Operation.SET_ENVS, "users", {"default_ttl": "060", "durability": "fsync"}
        )
        assert table["envs"] == {"default_ttl": "60", "durability": "fsync"}
        assert warnings == []
        [table] = await client.ask(Operation.DELETE_ENVS, "users", ["default_ttl"])
        assert table["envs"] == {"durability": "fsync"}
        assert process.node.server.tables[1].envs == {"durability": "fsync"}
        [table] = await client.ask(Operation.CLEAR_ENVS, "users", None)
        assert table["envs"] == {}
        with pytest.raises(InvalidArgument, match="unknown env"):
            await client.ask(Operation.SET_ENVS, "users", {"ttl": "1"})
        with pytest.raises(InvalidArgument, match="table name"):
            await client.ask(Operation.SET_ENVS, 5, {"default_ttl": "1"})

    run_process(test)


def test_the_cluster_and_its_nodes_are_shown_as_they_are() -> None:
    async def test(process: Process) -> None:
        client = process.client
        await client.create("users")
        await client.create("old")
        await client.ask(Operation.DROP_TABLE, "old", -1, "fail")
        [nodes] = await client.ask(Operation.LIST_NODES)
        assert nodes == [["node-1", "127.0.0.1:34801", "alive", {"primaries": 4, "secondaries": 0}]]
        [info] = await client.ask(Operation.CLUSTER_INFO)
        assert info == {
            "cluster_name": "here",
            "cluster_id": 7,
            "cluster_uuid": process.service.cluster_uuid,
            "meta_function_level": "lively",
            "nodes_alive": 1,
            "nodes_unalive": 0,
            "partitions_healthy": 4,
            "partitions_readable": 4,
            "partitions_writable": 4,
            "partitions_unhealthy": 0,
            "balance_operations": 0,
            "balanced": False,
            "primary_spread": 0,
            "tables": 1,
            "dropped_tables": 1,
            "partitions": 8,
            "duplications": 0,
            "default_partition_count": 8,
            "default_replica_count": 1,
            "drop_reserve_seconds": 604_800,
            "meta_store": "usable",
        }
        assert len(info["cluster_uuid"]) == 36
        for operation in (Operation.LIST_NODES, Operation.CLUSTER_INFO):
            with pytest.raises(InvalidArgument):
                await client.ask(operation, 1)

    run_process(test)


def test_every_operation_of_the_meta_server_has_a_handler() -> None:
    async def test(process: Process) -> None:
        wanted = {one for one in Operation if one >= Operation.QUERY_CONFIG}
        wanted.remove(Operation.SERVER_INFO)
        # What servers ask of each other is read by whoever connects them.
        wanted -= {one for one in Operation if one >= Operation.PREPARE}
        assert set(process.service.handlers()) == wanted

    run_process(test)


def test_what_is_counted_is_shown_as_metrics() -> None:
    async def test(process: Process) -> None:
        await process.client.create("users")
        await process.client.create("old")
        await process.client.ask(Operation.DROP_TABLE, "old", -1, "fail")
        values = {
            (metric.name, labels): value
            for metric in process.service.metrics()
            for labels, value in metric.samples
        }
        assert values[("pegaskv_meta_tables", (("status", "available"),))] == 1
        assert values[("pegaskv_meta_tables", (("status", "dropped"),))] == 1
        assert values[("pegaskv_meta_partitions", ())] == 8
        assert values[("pegaskv_meta_nodes_alive", ())] == 1
        assert values[("pegaskv_meta_store_usable", ())] == 1
        assert values[("pegaskv_meta_commits_total", ())] == 8
        assert values[("pegaskv_meta_pushes_total", ())] == 5
        assert values[("pegaskv_meta_push_failures_total", ())] == 0

    run_process(test)


def test_before_a_node_has_reported_tables_cannot_be_created_and_can_be_looked_at() -> None:
    async def test(process: Process) -> None:
        with pytest.raises(NotReady):
            await process.client.create("users")
        assert await process.client.tables() == {}
        await process.service.report(process.node.server.report(), watched=False)
        await process.client.create("users")

    run_process(test, report=False)


def test_a_table_being_created_is_not_routed_to() -> None:
    async def test(process: Process) -> None:
        process.node.gate = asyncio.Event()
        creating = process.scope.start("create", process.client.create("users"))
        await process.life.clock.sleep_ms(10_000)
        with pytest.raises(BusyCreating):
            await process.client.ask(Operation.QUERY_CONFIG, "users")
        assert not creating.done()
        process.node.gate.set()
        await creating
        await process.client.ask(Operation.QUERY_CONFIG, "users")

    run_process(test)


def test_a_node_that_fails_is_told_again_until_it_works() -> None:
    async def test(process: Process) -> None:
        process.node.error = GONE
        with pytest.raises(Unavailable, match="too many open files") as caught:
            await process.client.create("users")
        assert caught.value.details == {"maybe_applied": True}
        await process.life.clock.sleep_ms(60_000)
        assert 10 < process.node.failures < 30
        with pytest.raises(BusyCreating, match="too many open files"):
            await process.client.create("users")
        process.node.error = None
        await process.life.clock.sleep_ms(6_000)
        assert (await process.client.tables())["users"]["status"] == "available"
        assert len(process.node.server.open) == 4

    run_process(test)


def test_a_dropped_table_is_purged_when_its_time_has_come() -> None:
    async def test(process: Process) -> None:
        await process.client.create("users", 128)
        await process.client.ask(Operation.DROP_TABLE, "users", 600, "fail")
        await process.life.clock.sleep_ms(580_000)
        assert len(process.node.server.replicas) == 128
        await process.life.clock.sleep_ms(40_000)
        assert process.node.server.replicas == {}
        assert await process.client.tables(with_dropped=True) == {}
        entries, _ = await process.store.list("")
        assert list(entries) == ["cluster"]

    run_process(test)


def test_changes_under_way_are_bounded() -> None:
    async def test(process: Process) -> None:
        process.node.gate = asyncio.Event()
        async with TaskScope("test") as scope:
            for number in range(3):
                scope.start("create", process.client.create(f"t{number}"))
            await process.life.clock.sleep_ms(5_000)
            with pytest.raises(Busy):
                await process.client.create("more")
            await process.client.tables()
            process.node.gate.set()
        await process.client.create("more")

    run_process(test, options=MetaOptions(requests_max=3))


# The store fails.


def test_a_failed_commit_is_answered_as_unknown_and_the_service_comes_back() -> None:
    async def test(process: Process) -> None:
        client, clock = process.client, process.life.clock
        await client.create("users")
        process.life.disk.plan(1, Fault.FAIL)
        # One of them is under way when the disk fails, the other waits behind it.
        async with TaskScope("test") as scope:
            for name in ("first", "second"):
                scope.start(name, _unknown(process, name))
        assert process.service.health()
        with pytest.raises(NotReady, match="cannot be changed"):
            await client.ask(Operation.SET_ENVS, "users", {"default_ttl": "5"})
        # Data are served, and can be looked at.
        await client.ask(Operation.QUERY_CONFIG, "users")
        [info] = await client.ask(Operation.CLUSTER_INFO)
        assert info["meta_store"] != "usable"
        await clock.sleep_ms(10_000)
        assert process.service.health() == []
        found = await client.tables()
        assert len(found) <= 2, "both were refused, and both were done"
        for name in found:
            await client.ask(Operation.SET_ENVS, name, {"default_ttl": "5"})
        # As after a restart: new ballots, and everything is open.
        assert {one.table_id for one in process.node.server.open} == {
            table["table_id"] for table in found.values()
        }
        assert min(process.node.server.replicas.values()) >= 1

    for seed in range(5):
        run_process(test, seed=seed)


async def _unknown(process: Process, name: str) -> None:
    with pytest.raises(Unavailable) as caught:
        await process.client.create(name)
    assert caught.value.details == {"maybe_applied": True}


def test_a_full_disk_refuses_changes_with_the_reason_and_is_left_by_itself() -> None:
    async def test(process: Process) -> None:
        client, disk = process.client, process.life.disk
        await client.create("users")
        disk.set_capacity(1)
        with pytest.raises(Unavailable):
            await client.create("more")
        for _ in range(3):
            with pytest.raises(DiskFull, match="no space left"):
                await client.create("more")
            await client.ask(Operation.QUERY_CONFIG, "users")
            await process.life.clock.sleep_ms(5_000)
        disk.set_capacity(1 << 30)
        await process.life.clock.sleep_ms(5_000)
        await client.create("more")
        assert len(process.node.server.open) == 8

    run_process(test)


def test_a_node_that_reports_while_the_store_is_down_waits_for_it() -> None:
    async def test(process: Process) -> None:
        await process.client.create("users")
        process.life.disk.set_capacity(1)
        with pytest.raises(Unavailable):
            await process.client.create("more")
        process.node.server.restart()
        report = process.node.server.report()
        reported = process.scope.start("report", process.service.report(report, watched=False))
        await process.life.clock.sleep_ms(5_000)
        assert not reported.done()
        process.life.disk.set_capacity(1 << 30)
        await reported
        assert len(process.node.server.open) == 4

    run_process(test)


def test_requests_that_wait_when_the_server_stops_are_answered() -> None:
    async def test(process: Process) -> None:
        process.node.gate = asyncio.Event()
        async with TaskScope("test") as scope:
            scope.start("create", _stopped(process))
            await process.life.clock.sleep_ms(5_000)
            await process.scope.close()
            await process.service.stop()
        with pytest.raises(NotReady, match="stopping"):
            await process.client.create("more")
        assert process.client.in_flight == 0

    run_process(test)


async def _stopped(process: Process) -> None:
    with pytest.raises(NotReady, match="stopping"):
        await process.client.create("users")


# Another leader.


def test_what_another_server_has_changed_is_never_written_over() -> None:
    async def test(process: Process) -> None:
        client = process.client
        await client.create("users")
        entry = await process.store.get("tables/1")
        assert entry is not None
        theirs = entry.value.replace(b"users", b"USERS")
        await process.store.commit(puts={"tables/1": theirs})
        with pytest.raises(Unavailable, match="tables/1"):
            await client.ask(Operation.SET_ENVS, "users", {"default_ttl": "5"})
        entry = await process.store.get("tables/1")
        assert entry is not None
        assert entry.value == theirs
        await process.life.clock.sleep_ms(5_000)
        assert set(await client.tables()) == {"USERS"}
        await client.ask(Operation.SET_ENVS, "USERS", {"default_ttl": "5"})

    run_process(test)


def test_a_server_that_does_not_lead_any_more_writes_nothing_until_it_leads_again() -> None:
    async def test(process: Process) -> None:
        client, store = process.client, process.store
        await client.create("users")
        # As if its session had ended: others may lead now.
        assert process.service.fence is not None
        await store.resign(process.service.fence)
        session = await store.session(10_000)
        theirs = await store.campaign("meta", session, b"another")
        before = await store.list("")
        with pytest.raises(Unavailable, match="led by somebody else"):
            await client.create("more")
        await process.life.clock.sleep_ms(5_000)
        with pytest.raises(NotReady):
            await client.create("more")
        assert await store.list("") == before
        await store.resign(theirs)
        await process.life.clock.sleep_ms(5_000)
        await client.create("more")

    run_process(test)
