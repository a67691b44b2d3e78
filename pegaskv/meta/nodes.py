"""pure: the replica servers: who has reported, who is alive, and what each has on its disk.

What is known here decides where replicas are put and what is shown, never who may serve:
that is between the members of a partition. So a node that is wrongly taken for dead costs
a copy, and no data.

A node that no longer answers is `unalive` after a while, and is not waited for any more.
One that has not reported since this meta server leads may still come for as long; until
then nothing is concluded from its silence.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus
from pegaskv.codec.messages_meta import NodeBeacon, NodeReport, ReplicaReport
from pegaskv.meta.cluster import Cluster, PartitionRecord

__all__ = ["Node", "Nodes"]


@dataclass(slots=True)
class Node:
    """A replica server that has reported since this meta server leads.

    `watched` nodes must send beacons; one in the meta server's own process need not.
    """

    node_id: str
    address: str
    process: str
    # What it has, as it reported, with what is known of it since.
    replicas: dict[Gpid, ReplicaReport]
    watched: bool
    # On the meta server's monotonic clock.
    since_ms: int
    heard_ms: int
    alive: bool = True
    leaving: bool = False
    # As its last beacon said; None before the first.
    free_bytes: int | None = None
    disk_full: bool = False
    # What it copies: bytes done, bytes in all.
    learning: dict[Gpid, tuple[int, int]] = field(default_factory=dict)
    # What may be on its disk although it is no member; and of that, what it throws away now.
    strays: set[Gpid] = field(default_factory=set)
    discarding: set[Gpid] = field(default_factory=set)

    @property
    def status(self) -> str:
        """How it is shown."""
        if not self.alive:
            return "unalive"
        return "leaving" if self.leaving else "alive"

    @property
    def takes_replicas(self) -> bool:
        """Whether a replica may be put on it."""
        return self.alive and not self.leaving and not self.disk_full


class Nodes(Mapping[str, Node]):
    """All of them by node id, the unalive ones included.

    `dead_ms` is how long a node may be silent.
    """

    def __init__(self, cluster: Cluster, *, dead_ms: int) -> None:
        self._cluster = cluster
        self._dead_ms = dead_ms
        self._nodes: dict[str, Node] = {}
        self._started_ms: int | None = None
        self._looked_ms = 0
        # Whether whoever has not reported by now is gone.
        self.settled = False

    def __getitem__(self, node_id: str) -> Node:
        return self._nodes[node_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    # What happens.

    def on_started(self, now_ms: int) -> None:
        """The meta server leads from now on."""
        self._started_ms = self._looked_ms = now_ms

    def on_reported(self, report: NodeReport, now_ms: int, *, watched: bool) -> Node:
        """Take who it is and what it has; return the node, which is alive."""
        earlier = self._nodes.get(report.node_id)
        node = Node(
            report.node_id,
            report.address,
            report.process,
            {replica.gpid: replica for replica in report.replicas},
            watched,
            since_ms=now_ms,
            heard_ms=now_ms,
        )
        if earlier is not None and same_process(earlier, report):
            node.leaving, node.disk_full = earlier.leaving, earlier.disk_full
            node.free_bytes = earlier.free_bytes
            node.since_ms = earlier.since_ms if earlier.alive else now_ms
        for gpid in node.replicas:
            record = self._cluster.partition(gpid)
            if record is None or node.node_id not in record.members:
                node.strays.add(gpid)
        self._nodes[node.node_id] = node
        return node

    def on_time(self, beacons: Iterable[tuple[NodeBeacon, int]], now_ms: int) -> list[Node]:
        """Take the beacons since the last time, each with when it came; return who died.

        Time in which this server itself did not run is nobody's silence.
        """
        gap_ms = now_ms - self._looked_ms
        self._looked_ms = now_ms
        if gap_ms > self._dead_ms // 2:
            for node in self._nodes.values():
                node.heard_ms += gap_ms
            if self._started_ms is not None:
                self._started_ms += gap_ms
        for beacon, at_ms in beacons:
            known = self._nodes.get(beacon.node_id)
            if known is not None and known.process == beacon.process and known.alive:
                known.heard_ms = max(known.heard_ms, at_ms)
                known.free_bytes, known.disk_full = beacon.free_bytes, beacon.disk_full
                known.learning = {gpid: (done, of) for gpid, done, of in beacon.learning}
        died = [
            node
            for node in self._nodes.values()
            if node.alive and node.watched and now_ms - node.heard_ms >= self._dead_ms
        ]
        for node in died:
            node.alive = False
            node.learning = {}
            node.discarding.clear()
        return died

    def settle(self, now_ms: int) -> bool:
        """Return whether it is known only since now who is there and who is gone."""
        if self.settled or self._started_ms is None:
            return False
        self.settled = (
            now_ms - self._started_ms >= self._dead_ms or self._named() <= self._nodes.keys()
        )
        return self.settled

    def on_stored(
        self, old: PartitionRecord, new: PartitionRecord, *, sound: Collection[str] = ()
    ) -> None:
        """A partition has another configuration, in which the replicas of `sound` have all."""
        gpid = new.gpid
        for node_id in old.members:
            node = self._nodes.get(node_id)
            if node is not None and node_id not in new.members:
                node.strays.add(gpid)
        for node_id in new.members:
            node = self._nodes.get(node_id)
            if node is None:
                continue
            node.strays.discard(gpid)
            node.discarding.discard(gpid)
            if node_id in sound:
                leads = node_id == new.primary
                status = ReplicaStatus.PRIMARY if leads else ReplicaStatus.SECONDARY
                known = node.replicas.get(gpid)
                decree = 0 if known is None else known.last_decree
                node.replicas[gpid] = ReplicaReport(gpid, new.ballot, decree, decree, "", status)

    def on_purged(self, table_id: int) -> None:
        """A table's records are gone; whoever was away still has its replicas."""
        for node in self._nodes.values():
            if node.alive:
                for gpid in [one for one in node.replicas if one.table_id == table_id]:
                    del node.replicas[gpid]
                node.strays = {one for one in node.strays if one.table_id != table_id}
                node.discarding &= node.strays

    # What is known.

    def is_replaced(self, node: Node) -> bool:
        """Whether another one lives at its address: the server began anew, on an empty disk."""
        return bool(node.address) and any(
            one.alive and one.address == node.address and one.node_id != node.node_id
            for one in self._nodes.values()
        )

    @property
    def alive(self) -> list[Node]:
        """Who is alive, by node id."""
        return [self._nodes[one] for one in sorted(self._nodes) if self._nodes[one].alive]

    @property
    def takers(self) -> list[Node]:
        """Who may be given replicas, by node id."""
        return [node for node in self.alive if node.takes_replicas]

    def is_alive(self, node_id: str | None) -> bool:
        """Whether it has reported and goes on to be heard."""
        node = None if node_id is None else self._nodes.get(node_id)
        return node is not None and node.alive

    def is_gone(self, node_id: str) -> bool:
        """Whether nobody waits for it: it is unalive, or has not come in its time."""
        node = self._nodes.get(node_id)
        return self.settled if node is None else not node.alive

    def replica(self, node_id: str, gpid: Gpid) -> ReplicaReport | None:
        """Return what is known of a replica."""
        node = self._nodes.get(node_id)
        return None if node is None else node.replicas.get(gpid)

    def highest_ballot(self, gpid: Gpid) -> int:
        """Return the highest ballot that any node has reported of a partition."""
        found = (node.replicas.get(gpid) for node in self._nodes.values())
        return max((one.ballot for one in found if one is not None), default=0)

    def addresses(self, configurations: Iterable[PartitionConfiguration]) -> dict[str, str]:
        """Return where the nodes are that these name, as far as it is known."""
        named = {
            node_id
            for one in configurations
            for node_id in (one.primary, *one.secondaries)
            if node_id is not None and node_id in self._nodes
        }
        return {one: address for one in sorted(named) if (address := self._nodes[one].address)}

    def why_not_led(self, record: PartitionRecord) -> str:
        """Return why nobody leads a partition, by what was reported; empty: its primary does."""
        primary = record.primary
        if primary is None:
            return "it was never assigned to a replica server"
        node = self._nodes.get(primary)
        if node is None:
            return f"its primary, node {primary}, has not reported since the meta server started"
        if not node.alive:
            return f"its primary, node {primary}, is unalive"
        replica = node.replicas.get(record.gpid)
        if replica is None:
            return f"its primary, node {primary}, has no such replica"
        if replica.amnesiac:
            return f"its primary, node {primary}, may lack writes that it acknowledged"
        if replica.closed:
            return f"its primary, node {primary}, has closed it: {replica.closed}"
        return ""

    def counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return of how many partitions each node is primary, and member; dropped ones count."""
        primaries: dict[str, int] = {}
        members: dict[str, int] = {}
        for partitions in self._cluster.partitions.values():
            for record in partitions.values():
                if record.primary is not None:
                    primaries[record.primary] = primaries.get(record.primary, 0) + 1
                for node_id in record.members:
                    members[node_id] = members.get(node_id, 0) + 1
        return primaries, members

    def _named(self) -> set[str]:
        return {
            node_id
            for partitions in self._cluster.partitions.values()
            for record in partitions.values()
            for node_id in (*record.members, *record.dropped)
        }

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        for node_id, node in self._nodes.items():
            assert node.node_id == node_id
            assert node.discarding <= node.strays, "a member's replica is thrown away"
            assert node.alive or not node.learning
            for gpid in node.strays:
                record = self._cluster.partition(gpid)
                assert record is None or node_id not in record.members


def same_process(node: Node, report: NodeReport) -> bool:
    """Whether the server has not been started again since it reported; unknown means it has."""
    return bool(report.process) and node.process == report.process
