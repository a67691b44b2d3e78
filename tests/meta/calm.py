"""A cluster in which nothing happens unless a test says so."""

from random import Random
from typing import Any

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import OrderKind, Proposal
from pegaskv.meta.cluster import PartitionRecord
from pegaskv.meta.effects import Answer, Obey, Push
from pegaskv.meta.events import NodeReported, OrderEnded, Proposed, PushDue, PushEnded, TimePassed
from pegaskv.meta.options import MetaOptions
from tests.meta.cluster_world import Peers, Server
from tests.meta.harness import Meta, Records, create

__all__ = ["Calm"]


class Calm:
    """A meta server and servers n1, n2, ...; they are alive as long as they are `up`."""

    def __init__(self, count: int = 3, **options: Any) -> None:
        self.options = MetaOptions(**options)
        self.peers = Peers(Random(1))
        self.servers = {f"n{one}": Server(f"n{one}", self.peers) for one in range(1, count + 1)}
        self.records = Records()
        self.meta = Meta(self.records, options=self.options, now_ms=10_000)
        self.request_id = 0
        self.ordered: list[Obey] = []
        self.pushed: list[Push] = []
        self.join_all()

    @property
    def machine(self) -> Any:
        return self.meta.machine

    def next_id(self) -> int:
        self.request_id += 1
        return self.request_id

    def add(self, node_id: str, *, address: str = "") -> Server:
        """One more server comes, at an address of its own unless one is named."""
        server = self.servers[node_id] = Server(node_id, self.peers)
        server.address = address or server.address
        self.join(server)
        self.deliver()
        return server

    def join(self, server: Server) -> int:
        request_id = self.next_id()
        self.meta.feed(NodeReported(request_id, server.report()))
        return request_id

    def join_all(self) -> None:
        for server in self.servers.values():
            if server.up:
                self.join(server)
        self.deliver()

    def restart_meta(self) -> None:
        """The next process of the meta server: nodes report when they hear of it."""
        now_ms = self.meta.now_ms
        self.meta = Meta(self.records, options=self.options, now=self.meta.now, now_ms=now_ms)

    def record(self, table_id: int = 1, index: int = 0) -> PartitionRecord:
        found = self.meta.machine.cluster.partition(Gpid(table_id, index))
        assert found is not None
        return found

    def create(self, name: str = "t", *, partitions: int = 1, replicas: int = 3) -> int:
        """Make a table; return its id."""
        answer = self.ask(create(self.next_id(), name, partitions=partitions, replicas=replicas))
        assert answer.table is not None
        return answer.table.table_id

    def ask(self, event: Any) -> Answer:
        """Feed a request, let it be done, return its answer or raise its refusal."""
        self.meta.feed(event)
        self.deliver()
        if event.request_id in self.meta.refusals:
            raise self.meta.refusals[event.request_id]
        return self.meta.answers[event.request_id]

    def propose(self, *proposals: Proposal) -> list[Any]:
        """Feed proposals at once; return what is answered: configuration, addresses."""
        asked = tuple((self.next_id(), one) for one in proposals)
        self.meta.feed(Proposed(asked))
        return [self.meta.answers[request_id].more for request_id, _ in asked]

    # What goes on.

    def deliver(self) -> None:
        """Deliver all pushes and orders to who is up; failed ones are tried again later."""
        meta = self.meta
        while meta.pushes or meta.orders:
            for push in [meta.pushes.pop(0) for _ in range(len(meta.pushes))]:
                self.pushed.append(push)
                server = self.peers.up(push.node_id)
                if server is not None:
                    server.configure(push.push)
                error = "" if server is not None else "it is away"
                table_id = push.push.table.table_id
                meta.feed(PushEnded(push.push_id, push.node_id, table_id, error))
            for given in [meta.orders.pop(0) for _ in range(len(meta.orders))]:
                self.ordered.append(given)
                server = self.peers.up(given.node_id)
                error = "it is away" if server is None else server.obey(given.order)
                meta.feed(OrderEnded(given.node_id, given.order, error))

    def act(self) -> None:
        """Every server goes on with all its partitions."""
        for server in self.servers.values():
            if not server.up:
                continue
            for gpid in sorted(server.replicas):
                server.act(gpid)
            asked = tuple((self.next_id(), one) for one in server.proposals())
            self.meta.feed(Proposed(asked))
            for request_id, proposal in asked:
                if request_id in self.meta.answers:
                    server.on_answer(proposal, self.meta.answers[request_id].more[0])
        self.deliver()

    def pass_time(self, milliseconds: int) -> None:
        """Time passes in steps of a second, with beacons of who is up."""
        meta = self.meta
        while milliseconds > 0:
            step = min(1_000, milliseconds)
            milliseconds -= step
            meta.now_ms += step
            meta.now += 1
            beacons = []
            for server in self.servers.values():
                if not (server.up and server.reachable):
                    continue
                node = meta.machine.nodes.get(server.node_id)
                if node is not None and node.alive and node.process == server.process:
                    beacons.append((server.beacon(), meta.now_ms))
                else:
                    self.join(server)
            meta.feed(TimePassed(tuple(beacons)))
            later, meta.later = meta.later, []
            for one in later:
                meta.feed(PushDue(one.node_id, one.table_id))
            self.deliver()

    def settle(self, seconds: int) -> None:
        """Time passes, and everybody goes on with what there is to do."""
        for _ in range(seconds):
            self.pass_time(1_000)
            self.act()

    def orders(self, kind: OrderKind) -> list[Obey]:
        """Return the orders of a kind since the last time, and forget all."""
        found = [one for one in self.ordered if one.order.kind is kind]
        self.ordered = []
        return found
