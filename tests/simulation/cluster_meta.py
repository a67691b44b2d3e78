"""A meta server that is nothing but compare-and-set: for groups of replicas without the real one.

It keeps configurations and obeys the same rules as the production meta server: (a) a first
assignment at ballot 0, (b) a new ballot for a primary whose process is a new one, (c) what
replicas propose, if the ballot is still the stored one. Beyond that it lets nodes learn where
members are missing. With it a run says what the replicas do by themselves, and is quicker.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pegaskv.base.errors import PegasKVError, TableNotFound
from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus, TableInfo, TableStatus
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
from pegaskv.net.hello import ServerIdentity
from pegaskv.net.peer import PeerConnections
from pegaskv.runtime.tasks import TaskScope
from pegaskv.server.node_door import NodeDoors
from pegaskv.server.node_handlers import node_handlers
from tests.simulation.cluster_servers import PORT, Machine
from tests.simulation.world import Life, World

__all__ = ["GroupStore", "group_meta_machine", "next_configuration"]

_NODE_DEAD_MS: Final = 6_000
_LOOK_MS: Final = 500


@dataclass
class GroupStore:
    """What the meta server has stored: outlives its processes."""

    tables: dict[int, TableInfo] = field(default_factory=dict)
    configurations: dict[Gpid, PartitionConfiguration] = field(default_factory=dict)
    # Partitions whose first primary has not said yet that it serves.
    first: set[Gpid] = field(default_factory=set)
    # Of each node the process that has reported last.
    processes: dict[str, str] = field(default_factory=dict)
    stored: int = 0

    def store(self, configuration: PartitionConfiguration) -> None:
        """Store a partition's next configuration."""
        assert configuration.ballot > self.configurations[configuration.gpid].ballot
        self.configurations[configuration.gpid] = configuration
        self.stored += 1

    def create(self, name: str, partitions: int, replicas: int, durability: str) -> TableInfo:
        """A new table; its partitions are assigned when there are nodes."""
        table_id = len(self.tables) + 1
        table = TableInfo(
            table_id, name, TableStatus.AVAILABLE, partitions, replicas,
            {"durability": durability},
        )  # fmt: skip
        self.tables[table_id] = table
        for index in range(partitions):
            gpid = Gpid(table_id, index)
            self.configurations[gpid] = PartitionConfiguration(gpid, 0, None, ())
        return table


def next_configuration(
    stored: PartitionConfiguration, proposal: Proposal
) -> PartitionConfiguration | None:
    """What a proposal asks for; None if it does not hold (any more)."""
    if stored.ballot != proposal.ballot or not stored.ballot:
        return None
    ballot, others = stored.ballot + 1, stored.secondaries
    proposer, node_id, gpid = proposal.proposer, proposal.node_id, stored.gpid
    leads = stored.primary == proposer
    match proposal.kind:
        case ProposalKind.CLAIM if proposer in others:
            return PartitionConfiguration(gpid, ballot, proposer, _without(others, proposer))
        case ProposalKind.REMOVE if leads and node_id in others:
            return PartitionConfiguration(gpid, ballot, proposer, _without(others, node_id))
        case ProposalKind.UPGRADE if leads and node_id != proposer and node_id not in others:
            return PartitionConfiguration(gpid, ballot, proposer, (*others, node_id))
        case ProposalKind.HANDOVER if leads and node_id in others:
            kept = (proposer,) if proposal.keep else ()
            rest = (*_without(others, node_id), *kept)
            return PartitionConfiguration(gpid, ballot, node_id, rest)
    return None


def _without(nodes: tuple[str, ...], node_id: str) -> tuple[str, ...]:
    return tuple(one for one in nodes if one != node_id)


class GroupMeta:
    """One process of it."""

    cluster_uuid = "group"

    def __init__(
        self, store: GroupStore, machine: Machine, life: Life, on_fatal: Callable[[Any], Any]
    ) -> None:
        self.store = store
        self._machine = machine
        self._life = life
        self._clock = life.clock
        self._scope = TaskScope("group meta", on_crash=on_fatal)
        self._peers = PeerConnections(
            network=life.network,
            clock=life.clock,
            scope=self._scope,
            random=life.random("peers"),
            cluster_id=1,
        )
        self._doors = NodeDoors(self._peers)
        self._addresses: dict[str, str] = {}
        self._heard_ms: dict[str, int] = {}
        self._disk_full: set[str] = set()
        self._leaving: set[str] = set()
        self._pushing: dict[str, asyncio.Event] = {}
        # Whose push was lost while nothing was heard of them.
        self._untold: set[str] = set()
        self._amnesiac: set[tuple[str | None, Gpid]] = set()

    async def start(self) -> None:
        """Listen, and look after partitions."""
        handlers = {
            **node_handlers(self, self._scope, cluster_name="pegaskv", cluster_id=1),
            int(Operation.QUERY_CONFIG): self._on_query,
        }
        identity = ServerIdentity("pegaskv", 1, self.cluster_uuid, "meta")
        acceptor = Acceptor(handlers, identity=identity, clock=self._clock)
        self._scope.start("connections", acceptor.run())
        await self._life.network.listen(acceptor, self._machine.node.address, PORT)
        self._scope.keep("guardian", self._look, pause=lambda: self._clock.sleep_ms(_LOOK_MS))

    async def stop(self) -> None:
        """End."""
        await self._scope.close()

    # What replica servers ask.

    async def report(self, report: NodeReport) -> None:
        """A node has started, or its connection is a new one."""
        store, node_id = self.store, report.node_id
        self._addresses[node_id] = report.address
        self._heard_ms[node_id] = self._clock.monotonic_ms()
        self._peers.set_addresses({node_id: report.address})
        if store.processes.get(node_id) != report.process:
            self._leaving.discard(node_id)
        store.processes[node_id] = report.process
        found = {each.gpid: each for each in report.replicas}
        for gpid, stored in list(store.configurations.items()):
            each = found.get(gpid)
            self._amnesiac.discard((node_id, gpid))
            if each is not None and each.amnesiac:
                self._amnesiac.add((node_id, gpid))
            if stored.primary != node_id:
                continue
            leads = (
                each is not None
                and each.status is ReplicaStatus.PRIMARY
                and each.ballot == stored.ballot
            )
            whole = each is not None and not each.closed and not each.amnesiac
            if whole and not leads:
                store.store(
                    PartitionConfiguration(gpid, stored.ballot + 1, node_id, stored.secondaries)
                )
                self._tell(gpid, stored)
        self._assign_first()
        self._poke(node_id)

    def beacon(self, beacon: NodeBeacon) -> bool:
        """A node is alive."""
        self._heard_ms[beacon.node_id] = self._clock.monotonic_ms()
        if beacon.node_id in self._untold:
            self._untold.discard(beacon.node_id)
            self._poke(beacon.node_id)
        if beacon.disk_full:
            self._disk_full.add(beacon.node_id)
        else:
            self._disk_full.discard(beacon.node_id)
        return (
            beacon.node_id in self._addresses
            and self.store.processes.get(beacon.node_id) == beacon.process
        )

    async def leaving(self, node_id: str, process: str) -> int:
        """A node is about to go."""
        if self.store.processes.get(node_id) == process:
            self._leaving.add(node_id)
        named = 0
        for gpid, stored in self.store.configurations.items():
            if node_id in stored.secondaries and stored.primary is not None:
                self._order(OrderKind.REMOVE, gpid, stored.primary, node_id)
            named += node_id in (stored.primary, *stored.secondaries)
        return named

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, Mapping[str, str]]:
        """Change a configuration by compare-and-set; return what is stored now."""
        store, gpid = self.store, proposal.gpid
        stored = store.configurations.get(gpid)
        if stored is None:
            raise TableNotFound(f"no partition {gpid}")
        known = store.processes.get(proposal.proposer) == proposal.process
        leads = {
            ProposalKind.CLAIM: proposal.proposer,
            ProposalKind.HANDOVER: proposal.node_id,
        }.get(proposal.kind)
        refused = (leads, gpid) in self._amnesiac
        following = next_configuration(stored, proposal) if known and not refused else None
        if following is not None:
            store.store(following)
            if proposal.kind is ProposalKind.UPGRADE:
                # It has learned all that it may have lacked.
                self._amnesiac.discard((proposal.node_id, gpid))
            self._tell(gpid, stored)
        configuration = store.configurations[gpid]
        members = (configuration.primary or "", *configuration.secondaries)
        return configuration, self._addresses_of(members)

    async def report_progress(self, reports: Any) -> Any:
        """Nothing is duplicated here."""
        return []

    # What clients ask.

    def _on_query(self, connection: Any, message: list[Any]) -> None:
        name = message[3]
        for table in self.store.tables.values():
            if name in (table.name, table.table_id):
                break
        else:
            raise TableNotFound(f"no table {name}")
        partitions = []
        version = 0
        for gpid, stored in self.store.configurations.items():
            if gpid.table_id == table.table_id:
                version += stored.ballot
                primary = self._addresses.get(stored.primary or "")
                partitions.append([gpid.partition_index, stored.ballot, primary, []])
        connection.out.append(
            (message[0], 0, table.table_id, table.partition_count, version, partitions,
             table.envs["durability"])
        )  # fmt: skip

    # What it does by itself.

    def _alive(self) -> list[str]:
        now_ms = self._clock.monotonic_ms()
        return sorted(
            node_id
            for node_id, heard_ms in self._heard_ms.items()
            if now_ms - heard_ms < _NODE_DEAD_MS and node_id not in self._leaving
        )

    def _assign_first(self) -> None:
        store, alive = self.store, self._alive()
        for gpid, stored in list(store.configurations.items()):
            wanted = store.tables[gpid.table_id].replica_count
            if stored.ballot or len(alive) < wanted:
                continue
            start = (gpid.partition_index + gpid.table_id) % len(alive)
            chosen = (alive[start:] + alive[:start])[:wanted]
            store.first.add(gpid)
            store.store(PartitionConfiguration(gpid, 1, chosen[0], tuple(chosen[1:])))
            self._tell(gpid, stored)

    async def _look(self) -> None:
        alive = self._alive()
        self._assign_first()
        for gpid, stored in self.store.configurations.items():
            members = (stored.primary, *stored.secondaries)
            wanted = self.store.tables[gpid.table_id].replica_count
            if stored.primary not in alive or len(members) >= wanted:
                continue
            free = [each for each in alive if each not in members and each not in self._disk_full]
            if free:
                free.sort(key=self._load)
                self._order(OrderKind.ADD_LEARNER, gpid, stored.primary, free[0])

    def _load(self, node_id: str) -> int:
        return sum(
            node_id in (each.primary, *each.secondaries)
            for each in self.store.configurations.values()
        )

    def move(self, gpid: Gpid, node_id: str) -> None:
        """An operator moves a primary."""
        stored = self.store.configurations[gpid]
        if stored.primary is not None:
            self._order(OrderKind.MOVE_PRIMARY, gpid, stored.primary, node_id)

    def _order(self, kind: OrderKind, gpid: Gpid, target: str, node_id: str) -> None:
        address = self._addresses.get(node_id, "")
        ballot = self.store.configurations[gpid].ballot
        order = Order(kind, gpid, ballot, node_id, address)
        known = self._addresses.get(target)
        if known is None or self._scope.closed:
            return
        door = self._doors.door(target, known)

        async def give() -> None:
            try:
                await door.obey(order)
            except PegasKVError:
                return

        self._scope.start(f"order {kind.name} {gpid}", give())

    # Pushes: to whoever is named, or was, again and again until all is in force.

    def _tell(self, gpid: Gpid, before: PartitionConfiguration) -> None:
        now = self.store.configurations[gpid]
        for node_id in {
            each: None
            for each in (now.primary, *now.secondaries, before.primary, *before.secondaries)
            if each is not None
        }:
            self._poke(node_id)

    def _poke(self, node_id: str) -> None:
        wanted = self._pushing.get(node_id)
        if wanted is None:
            wanted = self._pushing[node_id] = asyncio.Event()
            self._scope.start(f"push to {node_id}", self._push(node_id, wanted))
        wanted.set()

    async def _push(self, node_id: str, wanted: asyncio.Event) -> None:
        """Everything each time: what was lost on the way is sent with the next."""
        while True:
            await wanted.wait()
            wanted.clear()
            address = self._addresses.get(node_id)
            if address is None:
                continue
            door = self._doors.door(node_id, address)
            for table in list(self.store.tables.values()):
                partitions = tuple(
                    each
                    for each in self.store.configurations.values()
                    if each.gpid.table_id == table.table_id and each.ballot
                )
                first = frozenset(
                    each.gpid.partition_index
                    for each in partitions
                    if each.gpid in self.store.first
                )
                members = {
                    one for each in partitions for one in (each.primary or "", *each.secondaries)
                }
                push = TablePush(
                    table,
                    partitions,
                    first,
                    addresses=self._addresses_of(sorted(members)),
                    # Its successor must not lead by what came too late.
                    process=self.store.processes.get(node_id, ""),
                )
                self._scope.start(f"configure {node_id}", self._configure(door, push, node_id))

    async def _configure(self, door: Any, push: TablePush, node_id: str) -> None:
        try:
            await door.configure(push)
        except PegasKVError:
            if node_id in self._alive():
                await self._clock.sleep_ms(300)
                self._poke(node_id)
            else:
                self._untold.add(node_id)
            return
        for each in push.partitions:
            if each.primary == node_id:
                # All members have acknowledged its barrier: none of them is empty by mistake.
                self.store.first.discard(each.gpid)

    def _addresses_of(self, members: Iterable[str]) -> dict[str, str]:
        return {each: self._addresses[each] for each in members if each in self._addresses}


def group_meta_machine(world: World, store: GroupStore) -> Machine:
    """A machine with such a meta server; what it stores is in `store`, not on its disk."""

    def make(machine: Machine, life: Life, on_fatal: Callable[[Any], Any]) -> GroupMeta:
        return GroupMeta(store, machine, life, on_fatal)

    return Machine(world, "meta", make)
