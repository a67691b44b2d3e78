"""Several replica servers through the service: reports, beacons, proposals, what is shown."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from pegaskv.base.errors import DiskFull, InvalidArgument, NotReady, StateFreezed, Unavailable
from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import NodeBeacon, NodeReport, OrderKind, Proposal, ProposalKind
from pegaskv.codec.operations import Operation
from pegaskv.meta.options import MetaOptions
from pegaskv.runtime.tasks import TaskScope
from tests.meta.service_world import Node, Process, run_process

NODES = ("n1", "n2", "n3")


class Cluster:
    """A meta server and three nodes that send beacons while they are `up`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.service, self.client = process.service, process.client
        self.clock = process.life.clock
        self.nodes = {node_id: Node(node_id) for node_id in NODES}
        process.doors = self.nodes
        self.up = set(NODES)
        self.reports: list[str] = []

    def report(self, node_id: str) -> NodeReport:
        report = self.nodes[node_id].server.report()
        return replace(report, process=f"process of {node_id}", address=f"{node_id}:1")

    async def join(self, node_id: str) -> None:
        self.reports.append(node_id)
        await self.service.report(self.report(node_id))

    async def beacons(self) -> None:
        for node_id in sorted(self.up):
            beacon = NodeBeacon(node_id, f"process of {node_id}", 77, False)
            if not self.service.beacon(beacon):
                await self.join(node_id)

    def proposal(self, node_id: str, kind: ProposalKind, ballot: int, index: int = 0) -> Proposal:
        process = f"process of {node_id}"
        return Proposal(node_id, Gpid(1, index), ballot, kind, "", process=process)


def run(
    test: Callable[[Cluster], Coroutine[Any, Any, None]], options: MetaOptions | None = None
) -> None:
    async def main(process: Process) -> None:
        cluster = Cluster(process)
        for node_id in NODES:
            await cluster.join(node_id)
        process.scope.keep("beacons", cluster.beacons, pause=lambda: cluster.clock.sleep_ms(1_000))
        await test(cluster)

    run_process(main, options=options, report=False)


async def create(cluster: Cluster, partitions: int = 1, replicas: int = 3) -> None:
    await cluster.client.ask(Operation.CREATE_TABLE, "t", partitions, replicas, {}, "fail")


def test_nodes_are_shown_with_what_their_beacons_say() -> None:
    async def test(cluster: Cluster) -> None:
        await create(cluster, partitions=4)
        cluster.up.remove("n3")
        await cluster.clock.sleep_ms(5_000)
        [rows] = await cluster.client.ask(Operation.LIST_NODES)
        assert [(row[0], row[1], row[2]) for row in rows] == [
            ("n1", "n1:1", "alive"), ("n2", "n2:1", "alive"), ("n3", "n3:1", "alive"),
        ]  # fmt: skip
        assert rows[0][3]["last_beacon_ms"] < 3_000 < rows[2][3]["last_beacon_ms"]
        assert rows[0][3]["free_bytes"] == 77
        assert [row[3]["primaries"] for row in rows] == [2, 1, 1]
        assert [row[3]["secondaries"] for row in rows] == [2, 3, 3]
        await cluster.clock.sleep_ms(8_000)
        [rows] = await cluster.client.ask(Operation.LIST_NODES)
        assert [row[2] for row in rows] == ["alive", "alive", "unalive"]
        [info] = await cluster.client.ask(Operation.CLUSTER_INFO)
        assert (info["nodes_alive"], info["nodes_unalive"]) == (2, 1)
        assert info["partitions_healthy"] == 0
        assert info["partitions_readable"] == info["partitions_writable"] == 3
        assert info["partitions_unhealthy"] == 4
        # Where the silent one was is still told: it may serve.
        config = await cluster.client.ask(Operation.QUERY_CONFIG, "t")
        assert {row[2] for row in config[3]} == {"n1:1", "n2:1", "n3:1"}
        cluster.up.add("n3")
        await cluster.clock.sleep_ms(3_000)
        [rows] = await cluster.client.ask(Operation.LIST_NODES)
        assert [row[2] for row in rows] == ["alive"] * 3
        assert cluster.reports == ["n1", "n2", "n3", "n3"]

    run(test)


def test_a_proposal_is_stored_answered_and_told() -> None:
    async def test(cluster: Cluster) -> None:
        await create(cluster)
        stored, addresses = await cluster.service.propose(
            cluster.proposal("n2", ProposalKind.CLAIM, 1)
        )
        assert (stored.ballot, stored.primary, stored.secondaries) == (2, "n2", ("n3",))
        assert addresses == {"n2": "n2:1", "n3": "n3:1"}
        await cluster.clock.sleep_ms(100)
        versions = [node.server.versions[1] for node in cluster.nodes.values()]
        # The one that is no member any more has heard of it too.
        assert versions == [4, 4, 4]

    run(test)


def test_proposals_that_come_together_are_stored_together() -> None:
    async def test(cluster: Cluster) -> None:
        await create(cluster, partitions=64)
        before, found = cluster.service.commits, []
        _, partitions = await cluster.client.ask(Operation.TABLE_INFO, "t")

        async def claim(index: int, heir: str) -> None:
            proposal = cluster.proposal(heir, ProposalKind.CLAIM, 1, index)
            found.append((await cluster.service.propose(proposal))[0].primary == heir)

        async with TaskScope("test") as scope:
            for index, _, _, secondaries, *_ in partitions:
                scope.start("claim", claim(index, secondaries[0]))
        assert found == [True] * 64
        assert cluster.service.commits - before <= 2

    run(test)


def test_while_the_store_is_down_a_proposal_is_unknown_and_nodes_report_when_it_is_back() -> None:
    async def test(cluster: Cluster) -> None:
        await create(cluster)
        disk = cluster.process.life.disk
        disk.set_capacity(1)
        claim = cluster.proposal("n2", ProposalKind.CLAIM, 1)
        with pytest.raises(Unavailable):
            await cluster.service.propose(claim)
        with pytest.raises(DiskFull):
            await cluster.service.propose(claim)
        cluster.reports.clear()
        disk.set_capacity(1 << 30)
        await cluster.clock.sleep_ms(5_000)
        assert sorted(cluster.reports) == list(NODES)
        stored, _ = await cluster.service.propose(claim)
        assert stored.primary in ("n1", "n2")

    run(test)


def test_a_node_that_stops_is_answered_what_others_must_take_over() -> None:
    async def test(cluster: Cluster) -> None:
        await create(cluster, partitions=2)
        assert await cluster.service.leaving("n3", "process of n3") == 2
        await cluster.clock.sleep_ms(100)
        orders = [one for node in cluster.nodes.values() for one in node.orders]
        assert {(one.kind, one.node_id) for one in orders} == {(OrderKind.REMOVE, "n3")}
        assert await cluster.service.leaving("n9", "x") == 0
        [rows] = await cluster.client.ask(Operation.LIST_NODES)
        assert [row[2] for row in rows] == ["alive", "alive", "leaving"]

    run(test)


def test_levels_counts_moves_and_changes_by_hand_go_over_the_wire() -> None:
    async def test(cluster: Cluster) -> None:
        ask = cluster.client.ask
        await create(cluster)
        level, meaning = await ask(Operation.GET_META_LEVEL)
        assert level == "lively"
        assert meaning
        assert await ask(Operation.SET_META_LEVEL, "freezed") == ["lively", "freezed"]
        with pytest.raises(StateFreezed):
            await ask(Operation.SET_REPLICA_COUNT, "t", 2)
        assert await ask(Operation.SET_META_LEVEL, "steady") == ["freezed", "steady"]
        table, warnings = await ask(Operation.SET_REPLICA_COUNT, "t", 2)
        assert (table["replica_count"], warnings) == (2, [])
        with pytest.raises(InvalidArgument, match="3 replica servers are alive"):
            await ask(Operation.SET_REPLICA_COUNT, "t", 4)
        [text] = await ask(Operation.BALANCE, 1, 0, "move_pri", "n1", "n2")
        assert "n2" in text
        [text] = await ask(Operation.PROPOSE_CHANGE, 1, 0, "remove", "n3", False)
        assert "n3" in text
        assert await ask(Operation.DIAGNOSE, None) == [[]]
        for operation, fields in (
            (Operation.SET_META_LEVEL, ["x"]),
            (Operation.SET_META_LEVEL, [1]),
            (Operation.GET_META_LEVEL, [1]),
            (Operation.SET_REPLICA_COUNT, ["t"]),
            (Operation.BALANCE, [1, 0, "move", "n1", "n2"]),
            (Operation.PROPOSE_CHANGE, [1, 0, "remove", "n3", 1]),
            (Operation.DIAGNOSE, [7]),
        ):
            with pytest.raises(InvalidArgument):
                await ask(operation, *fields)

    run(test)


def test_states_of_all_replicas_are_shown_and_who_does_not_answer_is_left_out() -> None:
    async def test(cluster: Cluster) -> None:
        await create(cluster)
        gpid = Gpid(1, 0)
        for node in cluster.nodes.values():
            node.server.replicas.setdefault(gpid, 1)
            node.server.open.add(gpid)
        _, [row] = await cluster.client.ask(Operation.TABLE_INFO, "t")
        assert row[:4] == [0, 1, "n1", ["n2", "n3"]]
        assert row[4] == {"open": True}
        assert row[5] == {node_id: {"open": True} for node_id in NODES}
        cluster.nodes["n1"].states_gate = asyncio.Event()
        cluster.nodes["n3"].states_gate = asyncio.Event()
        began_ms = cluster.clock.monotonic_ms()
        _, [row] = await cluster.client.ask(Operation.TABLE_INFO, "t")
        assert 900 < cluster.clock.monotonic_ms() - began_ms < 2_500
        assert row[4] == {}
        assert list(row[5]) == ["n2"]

    run(test)


def test_a_partition_that_nobody_serves_is_diagnosed() -> None:
    async def test(cluster: Cluster) -> None:
        await create(cluster, partitions=1, replicas=1)
        cluster.up.remove("n1")
        await cluster.clock.sleep_ms(13_000)
        [[[table_id, index, detail]]] = await cluster.client.ask(Operation.DIAGNOSE, "t")
        assert (table_id, index) == (1, 0)
        assert "n1, is unalive" in detail["reason"]
        assert detail["members"][0]["has_replica"] is True
        assert "start node n1" in detail["advice"]

    run(test)


def test_orders_are_counted_and_a_node_that_refuses_them_stops_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        async def refuse(_order: object) -> str:
            raise NotReady("not now")

        await create(cluster, replicas=2)
        for node in cluster.nodes.values():
            node.obey = refuse  # type: ignore[method-assign,assignment]
        await cluster.client.ask(Operation.SET_REPLICA_COUNT, "t", 3)
        await cluster.clock.sleep_ms(10_000)
        values = {one.name: one.samples[0][1] for one in cluster.service.metrics() if one.samples}
        assert 2 < values["pegaskv_meta_orders_total"] < 8
        assert values["pegaskv_meta_order_failures_total"] == values["pegaskv_meta_orders_total"]
        assert values["pegaskv_meta_partitions_unhealthy"] == 1

    run(test)
