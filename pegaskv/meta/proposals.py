"""pure: changes of configurations that replicas ask for, by compare-and-set on the ballot.

A replica that asks says under which ballot it does. If that is still the stored one, and the
change is one that it may ask for, the next ballot is stored; else nothing changes. In
every case it is answered with what is stored then, so that asking again is harmless and
the first of many wins.

When a server dies, all partitions that it led ask at once: what waits is stored together.
"""

from dataclasses import dataclass

from pegaskv.base.errors import NotReady, RequestError, TableNotFound
from pegaskv.base.limits import REPLICA_COUNT_MAX
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_meta import Proposal, ProposalKind
from pegaskv.meta.cluster import CHANGE_OPERATIONS_MAX, Change, PartitionRecord
from pegaskv.meta.effects import Answer, Effect, Refuse
from pegaskv.meta.host import Host
from pegaskv.meta.levels import proposal_allowed

__all__ = ["Proposals"]


@dataclass(frozen=True, slots=True)
class _Next:
    """The configuration that a proposal asks for, and whose replicas are whole in it."""

    primary: str
    secondaries: tuple[str, ...]
    sound: tuple[str, ...] = ()


class Proposals:
    """What replicas ask for; `host` stores and tells."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._waiting: list[tuple[int, Proposal]] = []

    @property
    def has_work(self) -> bool:
        """Whether `next_commit` has anything to look at."""
        return bool(self._waiting)

    def add(self, proposals: tuple[tuple[int, Proposal], ...]) -> None:
        """Queue proposals with the ids of their requests."""
        self._waiting += proposals

    def next_commit(self) -> list[Effect]:
        """Store as many of those that wait as one commit may hold; answer the others."""
        host = self._host
        effects: list[Effect] = []
        later: list[tuple[int, Proposal]] = []
        taken: list[tuple[int, PartitionRecord, PartitionRecord, _Next]] = []
        changed: set[Gpid] = set()
        tables: set[int] = set()
        waiting, self._waiting = self._waiting, []
        for place, (request_id, proposal) in enumerate(waiting):
            gpid = proposal.gpid
            if len(taken) + len(tables) + 2 > CHANGE_OPERATIONS_MAX:
                later += waiting[place:]
                break
            if gpid in changed:
                # It sees what is stored first.
                later.append((request_id, proposal))
                continue
            record = host.cluster.partition(gpid)
            if record is None:
                effects.append(Refuse(request_id, _unknown(gpid)))
                continue
            if proposal.proposer not in host.nodes:
                # This meta server has just begun to lead: who asks is about to report, and to be
                # told "nothing has changed" would make it wait for another grace.
                effects.append(Refuse(request_id, NotReady("this node has not reported yet")))
                continue
            following = self._following(record, proposal)
            if following is None:
                effects.append(self._answer(request_id, gpid))
                continue
            changed.add(gpid)
            tables.add(gpid.table_id)
            taken.append((request_id, record, self._under(record, following), following))
        self._waiting = later
        if not taken:
            return effects
        change = Change(
            tables=tuple(host.cluster.tables[one].changed() for one in sorted(tables)),
            partitions=tuple(new for _, _, new, _ in taken),
        )
        return effects + host.store(change, lambda: self._on_stored(taken))

    def _on_stored(
        self, taken: list[tuple[int, PartitionRecord, PartitionRecord, _Next]]
    ) -> list[Effect]:
        host = self._host
        effects: list[Effect] = []
        indices: dict[int, set[int]] = {}
        former: dict[int, set[tuple[str, int]]] = {}
        for request_id, old, new, following in taken:
            host.nodes.on_stored(old, new, sound=following.sound)
            effects.append(self._answer(request_id, new.gpid))
            table_id, index = new.gpid
            indices.setdefault(table_id, set()).add(index)
            gone = {(one, index) for one in old.members if one not in new.members}
            former.setdefault(table_id, set()).update(gone)
        for table_id in sorted(indices):
            first: tuple[int, ...] = ()
            if host.cluster.tables[table_id].status is TableStatus.CREATING:
                first = tuple(indices[table_id])
            effects += host.delivery.change(
                table_id, indices[table_id], first=first, former=former[table_id]
            )
        return effects

    def _answer(self, request_id: int, gpid: Gpid) -> Answer:
        record = self._host.cluster.partition(gpid)
        assert record is not None
        configuration = record.configuration()
        addresses = self._host.nodes.addresses([configuration])
        return Answer(request_id, None, (configuration, addresses))

    def _under(self, record: PartitionRecord, following: _Next) -> PartitionRecord:
        table = self._host.cluster.tables[record.gpid.table_id]
        return record.under(
            record.ballot + 1,
            following.primary,
            following.secondaries,
            replica_count=table.replica_count,
        )

    def _following(self, record: PartitionRecord, proposal: Proposal) -> _Next | None:
        """Return what a proposal asks for; None: it does not hold, or is not allowed."""
        cluster = self._host.cluster
        assert cluster.record is not None
        if record.ballot != proposal.ballot or record.ballot == 0:
            return None
        if not proposal_allowed(cluster.record.level, proposal.kind):
            return None
        node = self._host.nodes.get(proposal.proposer)
        if node is None or node.process != proposal.process:
            # What a process asked for before it ended is not done for its successor.
            return None
        if cluster.tables[record.gpid.table_id].status is TableStatus.DROPPED:
            return None
        proposer, node_id, others = proposal.proposer, proposal.node_id, record.secondaries
        match proposal.kind:
            case ProposalKind.CLAIM:
                if proposer not in others or self._may_lack(proposer, record):
                    return None
                return _Next(proposer, _without(others, proposer), (proposer,))
            case ProposalKind.REMOVE:
                if record.primary != proposer or node_id not in others:
                    return None
                return _Next(proposer, _without(others, node_id))
            case ProposalKind.UPGRADE:
                if record.primary != proposer or not self._may_join(record, node_id):
                    return None
                return _Next(proposer, (*others, node_id), (proposer, node_id))
            case ProposalKind.HANDOVER:
                if record.primary != proposer or node_id not in others:
                    return None
                if self._may_lack(node_id, record):
                    # Its primary has not noticed yet that it began anew, and has all of it.
                    return None
                kept = (proposer,) if proposal.keep else ()
                return _Next(node_id, (*_without(others, node_id), *kept), (node_id,))

    def _may_lack(self, node_id: str, record: PartitionRecord) -> bool:
        """Whether a member has said that it may lack what it acknowledged."""
        replica = self._host.nodes.replica(node_id, record.gpid)
        return replica is not None and replica.amnesiac

    def _may_join(self, record: PartitionRecord, node_id: str) -> bool:
        if not node_id or node_id in record.members or len(record.members) >= REPLICA_COUNT_MAX:
            return False
        node = self._host.nodes.get(node_id)
        return node is None or not node.leaving


def _without(nodes: tuple[str, ...], node_id: str) -> tuple[str, ...]:
    return tuple(one for one in nodes if one != node_id)


def _unknown(gpid: Gpid) -> RequestError:
    return TableNotFound(f"there is no partition {gpid}: its table was dropped for good")
