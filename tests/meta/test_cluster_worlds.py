"""Clusters from seeds: whatever dies, is cut off or begins anew, and whatever is asked.

After every step: what is stored can be loaded, ballots never fall, nobody leads under a ballot
of another, nobody leads without all that was acknowledged. And when all is calm, every
partition has its members, spread evenly, and nothing is left lying about.
"""

from collections import Counter
from random import Random

import pytest

from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_meta import NodeBeacon
from pegaskv.meta.cluster import Cluster
from pegaskv.meta.events import (
    BalanceByHand,
    CollectDue,
    Event,
    NodeLeaving,
    NodeReported,
    OrderEnded,
    ProposeByHand,
    Proposed,
    PushDue,
    PushEnded,
    RecallTable,
    SetEnvs,
    SetLevel,
    SetReplicaCount,
    TimePassed,
)
from pegaskv.meta.levels import Level
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.placement import Layout
from tests.meta.cluster_world import Peers, Server
from tests.meta.harness import Crash, Meta, Records, create, drop

_OPTIONS = MetaOptions(replica_assign_delay_ms=6_000, balance_settle_ms=1_000)


class World:
    """One meta server, several replica servers, and the messages between them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.peers = Peers(self.random)
        self.servers = [Server(f"n{number}", self.peers) for number in range(1, 6)]
        for server in self.servers[4:]:
            server.stop()
        self.records = Records()
        self.records.crash_random = self.random
        self.now, self.now_ms = 1_700_000_000, 5_000
        self.seen: Counter[str] = Counter()
        self.request_id = 0
        self.asked: set[int] = set()
        self.beacons: list[tuple[NodeBeacon, int]] = []
        self.meta = self._start_meta()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._plan_crash()
            try:
                self._step()
            except Crash:
                self.seen["crash"] += 1
                self.meta = self._start_meta()
            self._observe()
        self._calm_down()

    def _start_meta(self) -> Meta:
        """The next process of the meta server: it knows what is stored, and no node."""
        self.records.crash_at = None
        self.asked = set()
        self.beacons = []
        return Meta(self.records, options=_OPTIONS, now=self.now, now_ms=self.now_ms)

    def _plan_crash(self) -> None:
        self.records.crash_at = None
        if self.random.random() < 0.1:
            self.records.crash_at = self.records.commits + self.random.choice((0, 0, 1))

    def next_id(self) -> int:
        self.request_id += 1
        self.asked.add(self.request_id)
        return self.request_id

    # Steps.

    def _step(self) -> None:
        self.meta.now, self.meta.now_ms = self.now, self.now_ms
        kind = self.random.random()
        if kind < 0.30:
            self._pass_time(self.random.choice((300, 1_000, 1_000, 3_000)))
        elif kind < 0.52:
            self._deliver()
        elif kind < 0.80:
            self._act()
        elif kind < 0.88:
            self._trouble()
        else:
            event = self._request()
            self.seen[type(event).__name__] += 1
            self.meta.feed(event)

    def _pass_time(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        self.now += 1
        self.meta.now, self.meta.now_ms = self.now, self.now_ms
        for server in self.servers:
            if server.up and server.reachable:
                self._beacon(server)
        beacons, self.beacons = self.beacons, []
        self.meta.feed(TimePassed(tuple(beacons)))
        if self.random.random() < 0.2:
            self.meta.feed(CollectDue())

    def _beacon(self, server: Server) -> None:
        node = self.meta.machine.nodes.get(server.node_id)
        if node is not None and node.alive and node.process == server.process:
            self.beacons.append((server.beacon(), self.now_ms))
        else:
            self.seen["reported"] += 1
            self.meta.feed(NodeReported(self.next_id(), server.report()))

    def _deliver(self, losses: float = 0.1) -> None:
        meta, random = self.meta, self.random
        if meta.later and random.random() < 0.3:
            later = meta.later.pop(random.randrange(len(meta.later)))
            meta.feed(PushDue(later.node_id, later.table_id))
        if meta.pushes:
            push = meta.pushes.pop(random.randrange(len(meta.pushes)))
            server = self.peers.up(push.node_id)
            error = "it is away"
            if server is not None and random.random() >= losses:
                server.configure(push.push)
                # The answer may be lost.
                error = "" if random.random() >= losses else "no answer"
                self.seen["pushed"] += 1
            meta.feed(PushEnded(push.push_id, push.node_id, push.push.table.table_id, error))
        if meta.orders:
            given = meta.orders.pop(random.randrange(len(meta.orders)))
            server = self.peers.up(given.node_id)
            error = "it is away" if server is None else server.obey(given.order)
            if not error:
                self.seen[given.order.kind.name] += 1
            meta.feed(OrderEnded(given.node_id, given.order, error))

    def _act(self, losses: float = 0.1) -> None:
        """A server goes on with a partition of its own, and asks for what it wants."""
        server = self.random.choice(self.servers)
        if not server.up or not server.replicas:
            return
        for gpid in self.random.sample(sorted(server.replicas), min(4, len(server.replicas))):
            server.act(gpid)
        if server.reachable and self.random.random() >= losses:
            proposals = server.proposals()
            asked = tuple((self.next_id(), one) for one in proposals)
            self.meta.feed(Proposed(asked))
            for request_id, proposal in asked:
                answer = self.meta.answers.get(request_id)
                if answer is not None and self.random.random() >= losses:
                    stored, _ = answer.more
                    self.seen["changed"] += stored.ballot > proposal.ballot
                    server.on_answer(proposal, stored)

    def _trouble(self) -> None:
        server = self.random.choice(self.servers)
        kind = self.random.random()
        if not server.up:
            self.seen["started"] += 1
            server.start(amnesiac=self.random.random() < 0.05)
        elif kind < 0.45:
            self.seen["died"] += 1
            server.stop()
        elif kind < 0.65:
            self.seen["cut off"] += 1
            server.reachable = False
        elif kind < 0.9:
            server.reachable = True
        else:
            self.meta.feed(NodeLeaving(self.next_id(), server.node_id, server.process))

    def _request(self) -> Event:
        random, request_id = self.random, self.next_id()
        name = random.choice(("a", "b"))
        tables = self.meta.machine.cluster.tables
        table_id = random.choice([*tables, 99])
        gpid = Gpid(table_id, random.randrange(4))
        first, second = (one.node_id for one in random.sample(self.servers, 2))
        match random.randrange(12):
            case 0 | 1 | 2:
                count = random.choice((1, 2, 3, 3, 3))
                return create(request_id, name, partitions=random.choice((1, 4)), replicas=count)
            case 3:
                return drop(request_id, name, reserve=random.choice((0, 5, -1)))
            case 4:
                return RecallTable(request_id, table_id, random.choice((None, "b")))
            case 5:
                return SetEnvs(request_id, name, {"default_ttl": str(random.randrange(9))})
            case 6 | 7:
                return SetReplicaCount(request_id, name, random.choice((1, 2, 3, 4)))
            case 8:
                return SetLevel(request_id, random.choice([*Level, Level.LIVELY]))
            case 9 | 10:
                kind = random.choice(("move_pri", "copy_pri", "copy_sec"))
                return BalanceByHand(request_id, gpid, kind, first, second)
            case _:
                kind = random.choice(("assign_primary", "add_secondary", "remove", "downgrade"))
                accept = kind == "assign_primary" and random.random() < 0.2
                if accept:
                    self.peers.forced.add(gpid)
                return ProposeByHand(request_id, gpid, kind, first, accept)

    # What must hold.

    def _observe(self) -> None:
        cluster = self.meta.machine.cluster
        stored = Cluster.load(self.records.entries)
        stored.check()
        assert not stored.problems
        assert stored.dump() == cluster.dump()
        for partitions in cluster.partitions.values():
            for record in partitions.values():
                assert record.ballot >= self.peers.ballots.get(record.gpid, 0), "a ballot went back"
                assert record.members or not self.peers.ballots.get(record.gpid), "nobody is left"
                self.peers.ballots[record.gpid] = record.ballot

    def _calm_down(self) -> None:
        """Without faults, everything comes to its end."""
        self.records.crash_at = None
        for server in self.servers:
            server.start()
        self.meta.feed(SetLevel(self.next_id(), Level.LIVELY))
        for _ in range(200):
            self._pass_time(1_000)
            self._go_on()
            if self._settled():
                break
        else:
            raise AssertionError(f"it never came to rest: {self._lacks()}")
        assert self.meta.answers.keys() | self.meta.refusals.keys() >= self.asked, "not answered"
        self._observe()
        self._check_spread()
        self.seen["partitions"] += sum(map(len, self.meta.machine.cluster.partitions.values()))
        self.seen["discarded"] += sum(one.discarded for one in self.servers)
        self.seen["writes"] += sum(self.peers.acknowledged.values())

    def _go_on(self) -> None:
        while self.meta.pushes or self.meta.orders or self.meta.later:
            if self.meta.later and not self.meta.pushes:
                later = self.meta.later.pop(0)
                self.meta.feed(PushDue(later.node_id, later.table_id))
            self._deliver(losses=0)
        for _ in range(20):
            self._act(losses=0)

    def _lacks(self) -> list[object]:
        machine = self.meta.machine
        found: list[object] = [
            (record, machine.nodes.why_not_led(record))
            for table_id, table in machine.cluster.tables.items()
            if table.status is TableStatus.AVAILABLE
            for record in machine.cluster.partitions[table_id].values()
            if not machine.guardian.is_fit(record, table) and not self._is_lost(record.gpid)
        ]
        found += [one for one in machine.cluster.tables.values() if one.purging]
        found += [
            one for one in machine.cluster.tables.values() if one.status is TableStatus.CREATING
        ]
        found += [(node.node_id, node.strays) for node in machine.nodes.alive if self._litter(node)]
        if not machine.moves.even and not self._lost():
            found.append("balance")
        return found

    def _settled(self) -> bool:
        return not self._lacks()

    def _is_lost(self, gpid: Gpid) -> bool:
        """Whether nobody can lead a partition: none of its members has a whole replica."""
        record = self.meta.machine.cluster.partition(gpid)
        assert record is not None
        replicas = [self.peers.servers[one].replicas.get(gpid) for one in record.members]
        return any(one is None for one in replicas) and all(
            one is None or one.amnesiac for one in replicas
        )

    def _lost(self) -> bool:
        machine = self.meta.machine
        return any(
            self._is_lost(Gpid(table_id, index))
            for table_id, table in machine.cluster.tables.items()
            if table.status is TableStatus.AVAILABLE
            for index in machine.cluster.partitions[table_id]
        )

    def _litter(self, node: object) -> bool:
        machine = self.meta.machine
        known = machine.nodes[node.node_id]  # type: ignore[attr-defined]
        tables = machine.cluster.tables
        return any(
            gpid in self.peers.servers[known.node_id].replicas
            and (
                gpid.table_id not in tables or tables[gpid.table_id].status is TableStatus.AVAILABLE
            )
            and not (gpid.table_id in tables and self._is_lost(gpid))
            for gpid in known.strays
        )

    def _check_spread(self) -> None:
        machine = self.meta.machine
        if self._lost():
            return
        layout = Layout.of(
            machine.cluster, [one.node_id for one in machine.nodes.takers], available=True
        )
        for table_id in layout.by_table:
            assert layout.spread(layout.primaries[table_id]) <= 1
            assert layout.spread(layout.replicas[table_id]) <= 1
        assert layout.spread(layout.members_all) <= 1
        self.seen["spread"] += 1


@pytest.mark.parametrize("seeds", range(3))
def test_any_deaths_cuts_and_requests_leave_whole_partitions(seeds: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(seeds * 8, seeds * 8 + 8):
        world = World(seed)
        try:
            world.run(250)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        seen += world.seen
    for what in (
        "crash", "died", "cut off", "started", "changed", "writes", "partitions", "spread",
        "ADD_LEARNER", "REMOVE", "MOVE_PRIMARY", "DISCARD",
    ):  # fmt: skip
        assert seen[what] > 1, f"the worlds were so calm that they tested no {what}: {seen}"
