"""Duplications through the service: what clients and other parts of the server see."""

import asyncio
from typing import Any

import pytest

from pegaskv.base.errors import DuplicationExists, InvalidArgument, RequestError, TableNotFound
from pegaskv.base.types import DuplicationStatus, Gpid
from pegaskv.codec.messages_duplication import EnsureAnswer, PartitionProgress, ProgressReport
from pegaskv.codec.operations import Operation
from pegaskv.duplication.doors import MetaDoor
from pegaskv.runtime.tasks import TaskScope
from tests.meta.service_world import Process, run_process

LOG = DuplicationStatus.DS_LOG


async def add(process: Process, table: str = "users", **options: bool) -> dict[str, Any]:
    await process.client.ask(Operation.ADD_CLUSTER, "beta", "h:1", 2, "", "")
    await process.client.create(table)
    fields = (table, "beta", None, True, 0, options)
    entry: dict[str, Any] = (await process.client.ask(Operation.ADD_DUPLICATION, *fields))[0]
    return entry


async def ensured(process: Process, entry: dict[str, Any]) -> MetaDoor:
    door: MetaDoor = process.service
    answer = EnsureAnswer("CREATED", 5, 4, 2, "uuid of beta", "made")
    await door.ensured(entry["dupid"], bytes.fromhex(entry["uuid"]), answer)
    return door


def report(entry: dict[str, Any], index: int, failure: str = "") -> ProgressReport:
    progress = PartitionProgress(index, LOG, 3, 4)
    gpid = Gpid(entry["table_id"], index)
    return ProgressReport(gpid, entry["dupid"], bytes.fromhex(entry["uuid"]), progress, failure)


def test_a_duplication_goes_through_its_life_and_is_shown_in_it() -> None:
    async def test(process: Process) -> None:
        client = process.client
        entry = await add(process)
        assert entry["status"] == "DS_PREPARE"
        assert (entry["remote_cluster"], entry["remote_table"]) == ("beta", "users")
        assert [one["index"] for one in entry["partitions"]] == [0, 1, 2, 3]
        [work] = process.service.remote_work()
        assert (work.kind, work.metas) == ("ensure", "h:1")
        assert process.remote_work == 1
        door = await ensured(process, entry)
        assert door.remote_work() == []
        assert process.remote_work == 2
        stored = await door.report_progress([report(entry, index) for index in range(4)])
        assert [one.confirmed_decree for one in stored] == [4] * 4
        [[shown]] = await client.ask(Operation.QUERY_DUPLICATION, "users")
        assert (shown["status"], shown["remote_table_id"]) == ("DS_LOG", 5)
        info, _ = await client.ask(Operation.TABLE_INFO, "users")
        assert info["duplications"] == [shown]
        with pytest.raises(DuplicationExists) as caught:
            await client.ask(Operation.ADD_DUPLICATION, "users", "beta", "x", True, 0, {})
        assert caught.value.existing == shown
        shown, warnings = await client.ask(
            Operation.MODIFY_DUPLICATION, "users", entry["dupid"], "fail_mode", "skip"
        )
        assert shown["fail_mode"] == "skip"
        assert "left out" in warnings[0]
        shown, _ = await client.ask(
            Operation.MODIFY_DUPLICATION, "users", entry["dupid"], "remove", None
        )
        assert shown["status"] == "DS_REMOVED"
        assert await client.ask(Operation.QUERY_DUPLICATION, "users") == [[]]
        [work] = door.remote_work()
        assert work.fields == (5, bytes.fromhex(entry["uuid"]))
        await door.forgotten(work.dupid, work.uuid)
        assert door.remote_work() == []
        assert process.remote_work == 4

    run_process(test)


def test_a_removal_that_is_over_before_it_was_shown_is_answered() -> None:
    async def test(process: Process) -> None:
        entry = await add(process)
        door = await ensured(process, entry)
        gate = process.node.states_gate = asyncio.Event()
        fields = ("users", entry["dupid"], "remove", None)
        async with TaskScope("test") as scope:
            removed = scope.start(
                "remove", process.client.ask(Operation.MODIFY_DUPLICATION, *fields)
            )
            while not (works := door.remote_work()):
                await process.life.clock.sleep_ms(1)
            await door.forgotten(works[0].dupid, works[0].uuid)
            book = process.service._machine.cluster.book
            while [*book.all()]:
                await process.life.clock.sleep_ms(1)
            assert not removed.done()
            gate.set()
            shown, warnings = await removed
        assert (shown["dupid"], shown["status"]) == (entry["dupid"], "DS_REMOVED")
        assert warnings == []

    run_process(test)


def test_what_runs_is_shown_beside_what_is_stored() -> None:
    async def test(process: Process) -> None:
        client = process.client
        entry = await add(process)
        process.remote = {"last_error": "nobody answers", "error_class": "unreachable"}
        [[shown]] = await client.ask(Operation.QUERY_DUPLICATION, "users")
        assert (shown["last_error"], shown["error_class"]) == ("nobody answers", "unreachable")
        assert (shown["attempts"], shown["stalled_since"]) == (0, 0)
        door = await ensured(process, entry)
        await door.report_progress([report(entry, index) for index in range(4)])
        process.live = {
            "status": "DS_APP",
            "gap": 3,
            "lag_ms": 40,
            "shipped": 7,
            "bytes_held": 10,
            "conflicts": 1,
            "skipped": 0,
            "retries": 2,
            "caught_up": True,
            "last_committed_decree": 9,
        }
        process.stalled = {2: 50.0, 3: 20.0}
        [[shown]] = await client.ask(Operation.QUERY_DUPLICATION, "users")
        sums = ("gap", "lag_ms", "shipped", "bytes_held", "conflicts", "retries")
        assert [shown[name] for name in sums] == [12, 40, 28, 40, 4, 8]
        assert (shown["status"], shown["caught_up"], shown["incomplete"]) == ("DS_LOG", True, False)
        assert (shown["last_error"], shown["stalled_since"]) == ("partition 3 waits", 20.0)
        assert shown["partitions"][3]["error"] == "partition 3 waits"
        assert shown["partitions"][0]["status"] == "DS_LOG"
        await client.ask(Operation.MODIFY_DUPLICATION, "users", entry["dupid"], "start", None)
        assert process.node.server.orders[1].duplications[0].attempt == 1
        await door.report_progress([report(entry, 1, "the source lost decrees 5 to 9")])
        [[shown]] = await client.ask(Operation.QUERY_DUPLICATION, "users")
        assert shown["error_class"] == "source_lost"
        assert shown["last_error"] == shown["failure"]
        assert "lost decrees 5 to 9" in shown["failure"]
        assert shown["stalled_since"] > 0
        process.live["skipped"] = 1
        [[shown]] = await client.ask(Operation.QUERY_DUPLICATION, "users")
        assert (shown["skipped"], shown["incomplete"]) == (4, True)
        values = {
            metric.name: metric.samples
            for metric in process.service.metrics()
            if metric.name.startswith("pegaskv_meta_duplication_")
        }
        labels = (("table", "users"), ("remote_cluster", "beta"), ("dupid", str(entry["dupid"])))
        assert values == {
            "pegaskv_meta_duplication_phase": ((labels, 3),),
            "pegaskv_meta_duplication_paused": ((labels, 0),),
            "pegaskv_meta_duplication_broken": ((labels, 1),),
        }

    run_process(test)


def test_duplications_are_listed_by_pattern_those_of_dropped_tables_too() -> None:
    async def test(process: Process) -> None:
        client = process.client
        await add(process, "users")
        await add(process, "orders")
        await client.ask(Operation.DROP_TABLE, "orders", -1, "fail", True)

        async def names(pattern: str, match: str) -> list[str]:
            [found] = await client.ask(Operation.LIST_DUPLICATIONS, pattern, match)
            return [one["table"] for one in found]

        assert await names("", "all") == ["users", "orders"]
        assert await names("users", "exact") == ["users"]
        assert await names("user", "exact") == []
        assert await names("er", "anywhere") == ["users", "orders"]
        assert await names("o", "prefix") == ["orders"]
        assert await names("ers", "postfix") == ["users", "orders"]
        [found] = await client.ask(Operation.LIST_DUPLICATIONS, "orders", "exact")
        assert (found[0]["paused"], found[0]["table_dropped"]) == (True, True)
        for wrong in (("", "exact"), ("a", "some"), (b"a", "all")):
            with pytest.raises(InvalidArgument):
                await client.ask(Operation.LIST_DUPLICATIONS, *wrong)

    run_process(test)


def test_clusters_are_shown_without_secrets_and_read_again() -> None:
    async def test(process: Process) -> None:
        client = process.client
        await add(process)
        await client.ask(Operation.ADD_CLUSTER, "gamma", "h:1,h:2", 3, "me", "/secret")
        [clusters] = await client.ask(Operation.LIST_CLUSTERS)
        assert [one["name"] for one in clusters] == ["beta", "gamma"]
        assert clusters[1] == {
            "name": "gamma",
            "metas": "h:1,h:2",
            "cluster_id": 3,
            "cluster_uuid": "",
            "user": "me",
            "password_file": "/secret",
            "configured": False,
            "duplications": 0,
        }
        process.service.set_remote_clusters({"beta": Section("new:1", 2)})
        await process.life.clock.sleep_ms(10)
        [clusters] = await client.ask(Operation.LIST_CLUSTERS)
        assert (clusters[0]["metas"], clusters[0]["configured"]) == ("new:1", True)
        assert process.service.remote_work()[0].metas == "new:1"
        assert process.node.server.orders[1].duplications[0].metas == "new:1"
        [gone] = await client.ask(Operation.REMOVE_CLUSTER, "gamma")
        assert gone["name"] == "gamma"

    run_process(test)


class Section:
    """As the configuration has it."""

    def __init__(self, metas: str, number: int) -> None:
        self.metas, self.id = metas, number
        self.user = self.password_file = ""


def test_a_table_is_found_by_its_id_until_it_is_dropped() -> None:
    async def test(process: Process) -> None:
        client = process.client
        await client.create("users")
        by_name = await client.ask(Operation.QUERY_CONFIG, "users")
        assert await client.ask(Operation.QUERY_CONFIG, 1) == by_name
        with pytest.raises(TableNotFound, match="no table has the id 2"):
            await client.ask(Operation.QUERY_CONFIG, 2)
        await client.ask(Operation.DROP_TABLE, "users", -1, "fail")
        with pytest.raises(TableNotFound, match="was dropped") as caught:
            await client.ask(Operation.QUERY_CONFIG, 1)
        assert "`recall 1`" in caught.value.hint

    run_process(test)


def test_the_target_answers_with_its_identity() -> None:
    async def test(process: Process) -> None:
        uuid = b"u" * 16
        fields = [uuid, "other", 9, "omega", 5, "t", "create", 4, 1, {}]
        answer = await process.client.ask(Operation.ENSURE_DUPLICATION, *fields)
        assert answer[:5] == ["CREATED", 1, 4, 7, process.service.cluster_uuid]
        again = await process.client.ask(Operation.ENSURE_DUPLICATION, *fields, {})
        assert again[0] == "ALREADY_YOURS"
        info, _ = await process.client.ask(Operation.TABLE_INFO, "t")
        assert info["follower"]
        assert info["sources"][0]["cluster"] == "omega"
        assert await process.client.ask(Operation.FORGET_DUPLICATION, 1, uuid) == [True]
        assert await process.client.ask(Operation.FORGET_DUPLICATION, 1, uuid) == [False]
        opened, warnings = await process.client.ask(Operation.OPEN_TABLE, "t")
        assert (opened["follower"], warnings) == (False, [])

    run_process(test)


def test_many_who_add_at_once_make_one() -> None:
    async def test(process: Process) -> None:
        client = process.client
        await client.ask(Operation.ADD_CLUSTER, "beta", "h:1", 2, "", "")
        await client.create("users")
        outcomes: list[str] = []

        async def one(number: int) -> None:
            fields = ("users", "beta", f"t{number}", number % 2 == 0, 0, {})
            try:
                await client.ask(Operation.ADD_DUPLICATION, *fields)
            except DuplicationExists as error:
                outcomes.append(error.existing["uuid"])
            else:
                outcomes.append("added")

        async with TaskScope("adders") as scope:
            for number in range(10):
                scope.start("add", one(number))
        assert outcomes.count("added") == 1
        assert len(set(outcomes)) == 2
        [found] = await client.ask(Operation.QUERY_DUPLICATION, "users")
        assert len(found) == 1

    run_process(test)


def test_while_the_store_is_away_nothing_is_known_of_progress() -> None:
    async def test(process: Process) -> None:
        entry = await add(process)
        door = await ensured(process, entry)
        await process.service.stop()
        for call in (
            door.report_progress([report(entry, 0)]),
            door.forgotten(1, b"u" * 16),
            door.ensured(1, b"u" * 16, EnsureAnswer("CREATED", 1, 1, 2, "", "")),
        ):
            with pytest.raises(RequestError):
                await call

    run_process(test)
