"""The meta servers as a replica server sees them: whoever leads is asked, and told again."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pegaskv.base.errors import ForwardToOthers, NotReady, Timeout, Unavailable, WireError
from pegaskv.base.types import DuplicationStatus, Gpid, PartitionConfiguration
from pegaskv.codec.messages_duplication import PartitionProgress, ProgressReport
from pegaskv.codec.messages_meta import (
    NodeBeacon,
    NodeReport,
    Order,
    OrderKind,
    Proposal,
    ProposalKind,
    TablePush,
)
from pegaskv.codec.operations import Operation
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.net.hello import ServerIdentity
from pegaskv.net.peer import PeerConnections
from pegaskv.runtime.tasks import TaskScope
from pegaskv.server.meta_door import Cluster, MetaDoor, MetaSession
from pegaskv.server.node_door import NodeDoors
from pegaskv.server.node_handlers import control_handlers, node_handlers
from tests.codec.test_wire_meta import PUSH
from tests.simulation.network import NetworkOptions
from tests.simulation.world import Life, Node, World

NEAR = NetworkOptions(latency_us=(100, 200), jitter_us=50)
PORT = 34_601
GPID = Gpid(1, 0)
REPORT = NodeReport("n1", "a:1", (), "p1")
BEACON = NodeBeacon("n1", "p1")
STORED = PartitionConfiguration(GPID, 4, "n1", ("n2",))


class FakeMeta:
    """A meta server that leads, or says who does."""

    cluster_uuid = "c1"

    def __init__(self, node: Node) -> None:
        self.node = node
        self.leader: str | None = None
        self.known = False
        self.failure: Exception | None = None
        self.reports: list[NodeReport] = []
        self.beacons = 0
        self.asked: list[Any] = []

    @property
    def address(self) -> str:
        return f"{self.node.address}:{PORT}"

    def start(self) -> None:
        self.known = False
        self.node.start(self._serve)

    async def _serve(self, life: Life) -> None:
        scope = TaskScope("fake meta")
        handlers = node_handlers(self, scope, cluster_name="here", cluster_id=5)
        acceptor = Acceptor(
            {operation: self._led(handler) for operation, handler in handlers.items()},
            identity=ServerIdentity("here", 5, "c1", self.node.name),
            clock=life.clock,
        )
        await life.network.listen(acceptor, life.node.address, PORT)
        await acceptor.run()

    def _led(self, handler: Handler) -> Handler:
        def handle(connection: ServerConnection, message: list[Any]) -> None:
            if self.leader is not None:
                raise ForwardToOthers("another one leads", details=self.leader)
            handler(connection, message)

        return handle

    async def report(self, report: NodeReport) -> None:
        self.known = True
        self.reports.append(report)

    def beacon(self, beacon: NodeBeacon) -> bool:
        self.beacons += 1
        return self.known

    async def leaving(self, node_id: str, process: str) -> int:
        self.asked.append((node_id, process))
        return 3

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, dict[str, str]]:
        self.asked.append(proposal)
        if self.failure is not None:
            raise self.failure
        return STORED, {"n1": "a:1", "n2": "a:2", "n3": "a:3"}

    async def report_progress(self, reports: list[ProgressReport]) -> list[PartitionProgress]:
        self.asked += reports
        return [report.progress for report in reports]


class Site:
    """A replica server's side, and some meta servers."""

    def __init__(self, world: World, count: int) -> None:
        self.world = world
        self.metas = [FakeMeta(world.node(f"meta{number}")) for number in range(1, count + 1)]
        self.life = world.node("replica").spawn()
        self.scope = TaskScope("test")
        self.peers = PeerConnections(
            network=self.life.network,
            clock=self.life.clock,
            scope=self.scope,
            random=self.life.random("peers"),
            cluster_id=5,
        )
        self.door = MetaDoor([meta.address for meta in self.metas], peers=self.peers)
        self.joined: list[Cluster] = []

    def session(self) -> MetaSession:
        session = MetaSession(
            self.door,
            clock=self.life.clock,
            report=lambda: REPORT,
            beacon=lambda: BEACON,
            beacon_interval_ms=1_000,
            on_joined=self.joined.append,
        )
        self.peers.on_connected(lambda node_id: session.poke())
        self.scope.start("session", session.run())
        return session


def run(main: Callable[[World, Site], Coroutine[Any, Any, None]], *, metas: int = 1) -> None:
    with World(1, network=NEAR) as world:
        site = Site(world, metas)

        async def whole() -> None:
            try:
                await site.life.task(main(world, site))
            finally:
                await site.scope.close()

        world.run(whole())


def test_everything_that_is_asked_arrives_and_is_answered() -> None:
    async def main(world: World, site: Site) -> None:
        (meta,) = site.metas
        meta.start()
        assert await site.door.report(REPORT) == ("here", 5, "c1")
        assert meta.reports == [REPORT]
        assert await site.door.beacon(BEACON)
        meta.known = False
        assert not await site.door.beacon(BEACON)
        assert await site.door.leaving("n1", "p1") == 3
        proposal = Proposal("n1", GPID, 3, ProposalKind.CLAIM, process="p1")
        found, addresses = await site.door.propose(proposal)
        assert found == STORED
        assert addresses == {"n1": "a:1", "n2": "a:2"}
        progress = PartitionProgress(0, DuplicationStatus.DS_LOG, 1, 2)
        reports = [ProgressReport(GPID, 1, b"u" * 16, progress)]
        assert await site.door.report_progress(reports) == [progress]
        assert meta.asked == [("n1", "p1"), proposal, *reports]
        assert site.door.own_host == site.life.node.address

    run(main)


def test_what_cannot_be_done_now_is_told_with_its_reason() -> None:
    async def main(world: World, site: Site) -> None:
        (meta,) = site.metas
        meta.start()
        meta.failure = OSError("the disk is slow")
        proposal = Proposal("n1", GPID, 3, ProposalKind.CLAIM)
        with pytest.raises(NotReady, match="the disk is slow"):
            await site.door.propose(proposal)
        meta.node.stall()
        with pytest.raises((Timeout, Unavailable)) as met:
            await site.door.propose(proposal)
        assert met.value.maybe_applied
        meta.node.resume()

    run(main)


def test_the_one_that_leads_is_asked_from_then_on() -> None:
    async def main(world: World, site: Site) -> None:
        first, second, third = site.metas
        for meta in site.metas:
            meta.start()
        first.leader = third.address
        assert await site.door.leaving("n1", "p1") == 3
        assert await site.door.leaving("n1", "p1") == 3
        assert (len(first.asked), len(second.asked), len(third.asked)) == (0, 0, 2)
        assert site.door.address == third.address
        # Nobody leads, and each thinks that the other does: that ends.
        first.leader, second.leader, third.leader = "", "", first.address
        with pytest.raises(Unavailable, match="none of the meta servers leads"):
            await site.door.leaving("n1", "p1")
        first.leader = None
        assert await site.door.leaving("n1", "p1") == 3
        assert len(first.asked) == 1

    run(main, metas=3)


def test_one_that_is_away_is_passed_over() -> None:
    async def main(world: World, site: Site) -> None:
        first, second = site.metas
        second.start()
        assert await site.door.leaving("n1", "p1") == 3
        assert len(second.asked) == 1
        second.node.crash(power=False)
        first.start()
        # What was sent to it just before may have been done: that is not asked again by itself.
        await world.until(lambda: not site.peers.at(second.address).connected)
        assert await site.door.leaving("n1", "p1") == 3
        assert len(first.asked) == 1

    run(main, metas=2)


def test_a_session_reports_once_then_beacons_each_second() -> None:
    async def main(world: World, site: Site) -> None:
        (meta,) = site.metas
        session = site.session()
        await world.sleep_ms(2_500)
        assert "nothing listens there" in session.trouble
        assert "for 2 s" in session.trouble
        meta.start()
        await world.until(lambda: site.joined == [("here", 5, "c1")], limit_ms=1_600)
        assert session.trouble == ""
        before = meta.beacons
        await world.sleep_ms(10_000)
        assert len(meta.reports) == 1
        assert 9 <= meta.beacons - before <= 11

    run(main)


def test_a_session_reports_again_on_each_new_connection_and_when_it_is_not_known() -> None:
    async def main(world: World, site: Site) -> None:
        (meta,) = site.metas
        meta.start()
        session = site.session()
        await world.until(lambda: len(meta.reports) == 1)
        # Forgotten: the next beacon says so.
        meta.known = False
        await world.until(lambda: len(meta.reports) == 2, limit_ms=1_200)
        # The same server on a new connection: at once.
        world.network.reset(site.life.node.address, meta.node.address)
        await world.until(lambda: len(meta.reports) == 3, limit_ms=200)
        # A server that was away for long.
        meta.node.crash(power=False)
        await world.sleep_ms(20_000)
        assert "no meta server answers, for " in session.trouble
        meta.start()
        await world.until(lambda: len(meta.reports) == 4, limit_ms=1_600)
        await world.until(lambda: session.trouble == "", limit_ms=100)

    run(main)


class Waits(FakeMeta):
    """A meta server whose store takes for ever."""

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, dict[str, str]]:
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody ends this")


def test_whoever_waits_is_answered_when_a_server_stops() -> None:
    async def main(world: World, site: Site) -> None:
        scopes: list[TaskScope] = []
        meta = Waits(site.metas[0].node)

        async def serve(life: Life) -> None:
            scopes.append(TaskScope("requests"))
            acceptor = Acceptor(
                node_handlers(meta, scopes[0], cluster_name="here", cluster_id=5),
                identity=ServerIdentity("here", 5, "c1", "meta"),
                clock=life.clock,
            )
            await life.network.listen(acceptor, life.node.address, PORT)
            await acceptor.run()

        meta.node.start(serve)
        waiting = site.life.task(site.door.propose(Proposal("n1", GPID, 3, ProposalKind.CLAIM)))
        await world.until(lambda: bool(scopes) and scopes[0].running == 1)
        await scopes[0].close()
        with pytest.raises(NotReady, match="the server is stopping"):
            await waiting
        with pytest.raises(NotReady, match="the server is stopping"):
            await site.door.report(REPORT)

    run(main)


# The other way round.


class FakeNode:
    """A replica server's parts."""

    def __init__(self) -> None:
        self.pushes: list[TablePush] = []
        self.orders: list[Order] = []
        self.failure: Exception | None = None

    async def configure(self, push: TablePush) -> None:
        if self.failure is not None:
            raise self.failure
        self.pushes.append(push)

    async def obey(self, order: Order) -> str:
        self.orders.append(order)
        return "it is done"

    async def states(self, table_id: int) -> list[Any]:
        return [(Gpid(table_id, 0), {"status": "primary"}, {b"u" * 16: {"lag_ms": 1}})]


def test_a_node_is_told_and_says_how_it_is() -> None:
    async def main(world: World, site: Site) -> None:
        node = FakeNode()

        async def serve(life: Life) -> None:
            acceptor = Acceptor(
                control_handlers(node, TaskScope("fake node")),
                identity=ServerIdentity("here", 5, "c1", "n7"),
                clock=life.clock,
            )
            await life.network.listen(acceptor, life.node.address, PORT)
            await acceptor.run()

        machine = world.node("n7")
        machine.start(serve)
        door = NodeDoors(site.peers).door("n7", f"{machine.address}:{PORT}")
        await door.configure(PUSH)
        order = Order(OrderKind.MOVE_PRIMARY, GPID, 3, "n2", "a:2")
        assert await door.obey(order) == "it is done"
        assert (node.pushes, node.orders) == ([PUSH], [order])
        assert await door.states(1) == [
            (Gpid(1, 0), {"status": "primary"}, {b"u" * 16: {"lag_ms": 1}})
        ]
        for failure in (WireError("not now"), OSError("not now"), NotReady("not now")):
            node.failure = failure
            with pytest.raises(NotReady, match="not now"):
                await door.configure(PUSH)
        assert Operation.CONFIGURE in control_handlers(node, site.scope)

    run(main)
