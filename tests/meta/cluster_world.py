"""Replica servers without disks or sockets, which do what their meta server and peers ask.

Their replicas count decrees instead of holding rows. A write is acknowledged at once or not at
all: when every member, as the primary knows them, takes it. So whoever leads without all that
was acknowledged shows a mistake in who was made a member or a primary.
"""

from dataclasses import dataclass, field
from random import Random

from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus, TableStatus
from pegaskv.codec.messages_meta import (
    NodeBeacon,
    NodeReport,
    Order,
    OrderKind,
    Proposal,
    ProposalKind,
    ReplicaReport,
    TablePush,
)

__all__ = ["Peers", "Replica", "Server"]

INACTIVE, PRIMARY = ReplicaStatus.INACTIVE, ReplicaStatus.PRIMARY
SECONDARY, LEARNER = ReplicaStatus.SECONDARY, ReplicaStatus.POTENTIAL_SECONDARY


@dataclass
class Replica:
    """One partition on one node."""

    ballot: int
    decree: int = 0
    status: ReplicaStatus = INACTIVE
    amnesiac: bool = False
    primary: str = ""
    secondaries: tuple[str, ...] = ()
    # Of a primary: who learns; a change that it has asked for; of a secondary: its claim.
    learners: set[str] = field(default_factory=set)
    proposal: Proposal | None = None
    # The meta server has spoken of it to this process.
    told: bool = False


class Peers:
    """All servers, and what was acknowledged of each partition."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.servers: dict[str, Server] = {}
        self.acknowledged: dict[Gpid, int] = {}
        # Who led under which ballot.
        self.led: dict[tuple[Gpid, int], str] = {}
        self.forced: set[Gpid] = set()
        # As they are stored.
        self.ballots: dict[Gpid, int] = {}

    def up(self, node_id: str) -> "Server | None":
        server = self.servers.get(node_id)
        return server if server is not None and server.up and server.reachable else None


class Server:
    """One replica server."""

    def __init__(self, node_id: str, peers: Peers) -> None:
        self.node_id = node_id
        self.address = f"{node_id}:34801"
        self.peers = peers
        peers.servers[node_id] = self
        self.replicas: dict[Gpid, Replica] = {}
        self.up = True
        # Whether its peers and its meta server hear it.
        self.reachable = True
        self.life = 1
        self.versions: dict[int, int] = {}
        # Tables that clients may have heard of.
        self.available: set[int] = set()
        self.discarded = 0

    @property
    def process(self) -> str:
        return f"{self.node_id}/{self.life}"

    # Life.

    def stop(self) -> None:
        self.up = False

    def start(self, *, wiped: bool = False, amnesiac: bool = False) -> None:
        """Begin a new process; nobody goes on in an old role."""
        self.up, self.reachable = True, True
        self.life += 1
        self.versions = {}
        if wiped:
            self.replicas = {}
        for replica in self.replicas.values():
            replica.status, replica.told = INACTIVE, False
            replica.learners, replica.proposal = set(), None
            replica.amnesiac = replica.amnesiac or amnesiac

    def report(self) -> NodeReport:
        replicas = tuple(
            ReplicaReport(gpid, one.ballot, one.decree, one.decree, "", one.status, one.amnesiac)
            for gpid, one in sorted(self.replicas.items())
        )
        return NodeReport(self.node_id, self.address, replicas, self.process)

    def beacon(self) -> NodeBeacon:
        learning = tuple(
            (gpid, one.decree, 0)
            for gpid, one in sorted(self.replicas.items())
            if one.status is LEARNER
        )
        return NodeBeacon(self.node_id, self.process, 1 << 40, False, learning)

    # What the meta server says.

    def configure(self, push: TablePush) -> None:
        table = push.table
        if push.purged:
            for gpid in [one for one in self.replicas if one.table_id == table.table_id]:
                del self.replicas[gpid]
            return
        if push.process != self.process:
            return
        # Of a table the newest version counts, of a partition the highest ballot: a push may
        # come after a later one.
        if table.version >= self.versions.get(table.table_id, 0):
            self.versions[table.table_id] = table.version
            self.available.discard(table.table_id)
            if table.status is TableStatus.AVAILABLE:
                self.available.add(table.table_id)
            elif table.expires_at:
                for gpid, replica in self.replicas.items():
                    if gpid.table_id == table.table_id:
                        replica.status = INACTIVE
        for one in push.partitions:
            index = one.gpid.partition_index
            self._take(one, first=index in push.first_assignment)
            if index in push.accept_amnesia and one.primary == self.node_id:
                self._accept(one, first=index in push.first_assignment)

    def _take(self, one: PartitionConfiguration, *, first: bool) -> None:
        replica = self.replicas.get(one.gpid)
        member = self.node_id in (one.primary, *one.secondaries)
        if replica is None:
            if not first or not member:
                return
            # An empty replica in the place of one with data would be the worst mistake; an order
            # of before comes too late to be one, since its ballot is past.
            late = one.ballot < self.peers.ballots.get(one.gpid, 0)
            if one.gpid not in self.peers.forced and not late:
                assert not self.peers.acknowledged.get(one.gpid), "an empty replica was ordered"
            replica = self.replicas[one.gpid] = Replica(0)
        if one.ballot < replica.ballot or (member and replica.amnesiac):
            return
        replica.told = True
        if one.primary == self.node_id:
            if one.ballot > replica.ballot:
                self.lead(one)
        elif replica.status is not LEARNER or member:
            self.follow(one)

    def _accept(self, one: PartitionConfiguration, *, first: bool) -> None:
        replica = self.replicas.get(one.gpid)
        if replica is not None and (replica.amnesiac or first or replica.ballot < one.ballot):
            self.peers.acknowledged[one.gpid] = replica.decree
            replica.amnesiac = False
            if one.ballot > replica.ballot:
                self.lead(one)

    def lead(self, one: PartitionConfiguration) -> None:
        """Become primary under a ballot that nobody led under before."""
        gpid, replica = one.gpid, self.replicas[one.gpid]
        key = (gpid, one.ballot)
        assert self.peers.led.setdefault(key, self.process) == self.process, "a ballot led twice"
        assert not replica.amnesiac
        if gpid in self.peers.forced:
            self.peers.acknowledged[gpid] = replica.decree
        replica.ballot, replica.status = one.ballot, PRIMARY
        replica.primary, replica.secondaries = self.node_id, one.secondaries
        replica.learners -= {*one.secondaries}
        replica.proposal = None

    def follow(self, one: PartitionConfiguration) -> None:
        replica = self.replicas[one.gpid]
        member = self.node_id in one.secondaries
        if one.ballot > replica.ballot or replica.status is not PRIMARY:
            if one.ballot > replica.ballot:
                replica.proposal = None
            replica.ballot = one.ballot
            replica.status = SECONDARY if member else INACTIVE
            replica.primary, replica.secondaries = one.primary or "", one.secondaries

    def obey(self, order: Order) -> str:
        """Take an order; a problem is returned in words."""
        replica = self.replicas.get(order.gpid)
        if order.kind is OrderKind.DISCARD:
            if replica is not None and replica.status in (PRIMARY, SECONDARY):
                return "it is in use"
            if replica is None or replica.ballot > order.ballot:
                return "" if replica is None else "it is newer"
            del self.replicas[order.gpid]
            self.discarded += 1
            return ""
        if replica is None or replica.status is not PRIMARY or replica.ballot != order.ballot:
            return "it is not the primary"
        node_id = order.node_id
        match order.kind:
            case OrderKind.ADD_LEARNER:
                if node_id not in replica.secondaries:
                    replica.learners.add(node_id)
            case OrderKind.REMOVE:
                replica.learners.discard(node_id)
                if node_id in replica.secondaries:
                    self._propose(order.gpid, ProposalKind.REMOVE, node_id)
            case OrderKind.MOVE_PRIMARY:
                if node_id in replica.secondaries:
                    self._propose(order.gpid, ProposalKind.HANDOVER, node_id, keep=True)
        return ""

    # What it does by itself.

    def _propose(
        self, gpid: Gpid, kind: ProposalKind, node_id: str = "", *, keep: bool = False
    ) -> None:
        replica = self.replicas[gpid]
        if replica.proposal is None:
            replica.proposal = Proposal(
                self.node_id, gpid, replica.ballot, kind, node_id, keep, self.process
            )

    def proposals(self) -> list[Proposal]:
        """What it asks for, again until it is answered."""
        return [one.proposal for one in self.replicas.values() if one.proposal is not None]

    def on_answer(self, proposal: Proposal, stored: PartitionConfiguration) -> None:
        """What is stored is obeyed, whether it is what was asked for or not."""
        replica = self.replicas.get(proposal.gpid)
        if replica is None or replica.proposal != proposal or proposal.process != self.process:
            return
        replica.proposal = None
        if stored.ballot <= replica.ballot:
            return
        if stored.primary == self.node_id:
            self.lead(stored)
        else:
            self.follow(stored)

    def act(self, gpid: Gpid) -> None:
        """Go on with one partition."""
        replica = self.replicas[gpid]
        if replica.status is PRIMARY:
            self._act_as_primary(gpid, replica)
        elif replica.status is SECONDARY and replica.told and not replica.amnesiac:
            leader = self.peers.up(replica.primary)
            heard = leader is not None and gpid in leader.replicas
            leads = heard and leader.replicas[gpid].status is PRIMARY  # type: ignore[union-attr]
            # It has been silent for the grace by now, or has not.
            if not leads and self.peers.random.random() < 0.3:
                self._propose(gpid, ProposalKind.CLAIM)

    def _act_as_primary(self, gpid: Gpid, replica: Replica) -> None:
        for node_id in replica.secondaries:
            if not self._takes(gpid, node_id, replica):
                self._propose(gpid, ProposalKind.REMOVE, node_id)
                return
        for node_id in sorted(replica.learners):
            self._teach(gpid, node_id, replica)
        if gpid.table_id not in self.available:
            return
        # All members follow: from here on it answers, so it must have what was acknowledged.
        has = self.peers.acknowledged.get(gpid, 0)
        assert replica.decree >= has, f"{self.node_id} leads {gpid} without {has}"
        # A hand-over has drained: nothing is written any more.
        if replica.proposal is None or replica.proposal.kind is not ProposalKind.HANDOVER:
            self.write(gpid)

    def _takes(self, gpid: Gpid, node_id: str, replica: Replica) -> bool:
        """Whether a secondary adopts this primary's ballot, and follows it."""
        server = self.peers.up(node_id)
        other = None if server is None else server.replicas.get(gpid)
        if other is None or other.amnesiac or not other.told or other.ballot > replica.ballot:
            return False
        if other.proposal is not None and other.proposal.kind is ProposalKind.CLAIM:
            return False
        if other.decree < replica.decree and self.peers.random.random() < 0.2:
            # It lacks too much.
            return False
        other.ballot, other.status = replica.ballot, SECONDARY
        other.primary, other.secondaries = self.node_id, replica.secondaries
        other.decree = replica.decree
        return True

    def _teach(self, gpid: Gpid, node_id: str, replica: Replica) -> None:
        server = self.peers.up(node_id)
        if server is None or self.peers.random.random() < 0.5:
            return
        other = server.replicas.get(gpid)
        if other is not None and other.ballot > replica.ballot:
            return
        if other is None or other.status is not LEARNER:
            server.replicas[gpid] = Replica(replica.ballot, 0, LEARNER, told=True)
            return
        other.decree, other.ballot = replica.decree, replica.ballot
        other.told = True
        self._propose(gpid, ProposalKind.UPGRADE, node_id)

    def write(self, gpid: Gpid) -> None:
        """Acknowledge a write if every member takes it, and who may have become one."""
        replica = self.replicas[gpid]
        proposal = replica.proposal
        joins = proposal is not None and proposal.kind is ProposalKind.UPGRADE
        both = [*replica.secondaries, *([proposal.node_id] if proposal and joins else [])]
        others: list[Replica] = []
        for node_id in both:
            server = self.peers.up(node_id)
            other = None if server is None else server.replicas.get(gpid)
            if other is None or other.amnesiac or other.ballot != replica.ballot:
                return
            if other.status not in (SECONDARY, LEARNER) or other.proposal is not None:
                return
            others.append(other)
        replica.decree += 1
        for other in others:
            other.decree = replica.decree
        self.peers.acknowledged[gpid] = replica.decree
