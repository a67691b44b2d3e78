"""pure: new ballots that nobody proposed: the first, and those after a start of a node.

Nobody goes on in an old role. So a primary whose process is new leads again only under a
new ballot, with the same members. An empty replica is ordered only for a partition that
no client can have written to: its stored ballot was 0, or its table was never available.

If all members may lack what they acknowledged and all of them are there, the one that has
most leads, and what it lacks is lost; one that is missing is waited for. More than that is
an operator's decision.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pegaskv.base.types import Gpid, ReplicaStatus, TableStatus
from pegaskv.codec.messages_meta import ReplicaReport
from pegaskv.meta.balancer import spread_primaries
from pegaskv.meta.cluster import CHANGE_OPERATIONS_MAX, Change, PartitionRecord, TableRecord
from pegaskv.meta.effects import Effect, Warn
from pegaskv.meta.host import Host
from pegaskv.meta.nodes import Node
from pegaskv.meta.placement import Layout

__all__ = ["Assignments"]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Who shall serve a partition under the next ballot."""

    primary: str
    secondaries: tuple[str, ...]
    # May be opened empty; leads with what it has.
    first: bool = False
    accepted: bool = False
    # What others have may be lost by it.
    lossy: bool = False
    # Whose replicas are known to be whole then.
    sound: tuple[str, ...] = ()


class Assignments:
    """Ballots to be given out; `host` stores and tells.

    Invariant: between two events nothing is left in `_wanted` and `_given`.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._wanted: dict[int, dict[int, _Wanted]] = {}
        # Of tables whose assignment takes more than one commit: what changed, what may be
        # opened empty, what is accepted, and who is no member any more.
        self._given: dict[int, _Given] = {}

    @property
    def has_work(self) -> bool:
        """Whether `next_commit` has anything to store."""
        return bool(self._wanted)

    def check(self) -> None:
        """Assert the invariants between two events."""
        assert not self._wanted
        assert not self._given

    # What is wanted.

    def renew_all(self, table: TableRecord) -> bool:
        """A table is back: all its members that are there begin anew. False: none is there."""
        nodes = self._host.nodes
        for index, record in self._host.cluster.partitions[table.table_id].items():
            if record.primary is not None and any(nodes.is_alive(one) for one in record.members):
                self._want(record, index, _Wanted(record.primary, record.secondaries))
        return table.table_id in self._wanted

    def on_reported(self, node: Node, table: TableRecord, *, new_process: bool) -> set[int]:
        """Look at a node's own partitions of a table; return those that it must be told."""
        told: set[int] = set()
        for index, record in self._host.cluster.partitions[table.table_id].items():
            gpid = record.gpid
            if node.node_id not in record.members:
                if gpid in node.replicas:
                    told.add(index)
                continue
            told.add(index)
            replica = node.replicas.get(gpid)
            if record.primary == node.node_id and self._renewed(
                table, record, replica, new_process=new_process
            ):
                # One that is made empty is whole.
                sound = (node.node_id,) if replica is None else ()
                self._want(record, index, _Wanted(record.primary, record.secondaries, sound=sound))
            elif replica is not None and replica.amnesiac and not _leads(record, replica):
                self._look_at_amnesiacs(record, index)
        return told

    def _renewed(
        self,
        table: TableRecord,
        record: PartitionRecord,
        replica: ReplicaReport | None,
        *,
        new_process: bool,
    ) -> bool:
        """Whether the primary that has reported needs a new ballot to lead."""
        if replica is None:
            # It is made empty if no client can have written yet, else it stays closed.
            return table.status is TableStatus.CREATING and new_process
        if replica.amnesiac or _leads(record, replica):
            return False
        # A ballot that was given to this very process, and has not come there yet, holds.
        return new_process or (replica.ballot >= record.ballot and not replica.closed)

    def _look_at_amnesiacs(self, record: PartitionRecord, index: int) -> None:
        """If all members may lack something and all are there, the one that has most leads."""
        found: list[tuple[int, int, str]] = []
        for node_id in record.members:
            replica = self._host.nodes.replica(node_id, record.gpid)
            if replica is None or not replica.amnesiac or replica.closed:
                return
            if not self._host.nodes.is_alive(node_id):
                return
            found.append((replica.ballot, replica.last_decree, node_id))
        _, _, leader = max(found)
        self._want(record, index, _Wanted(leader, (), accepted=True, lossy=True, sound=(leader,)))

    def place_new(self, table: TableRecord) -> bool:
        """Choose the first members of a table's partitions, if there are nodes for them.

        Partitions whose every member is gone before the table was available count as new.
        """
        host = self._host
        partitions = host.cluster.partitions[table.table_id]
        new = [index for index, record in sorted(partitions.items()) if self._is_new(table, record)]
        takers = [node.node_id for node in host.nodes.takers]
        enough = len(takers) >= table.replica_count
        if not new or not takers or not (enough or host.nodes.settled):
            return False
        fresh = self._around(takers)
        for index in new:
            members = fresh.choose(table.table_id, table.replica_count)
            leader = fresh.least_primaries(table.table_id, members)
            fresh.put(Gpid(table.table_id, index), leader, members)
        spread_primaries(fresh, table.table_id)
        for index in new:
            gpid = Gpid(table.table_id, index)
            primary, members_ = fresh.primary[gpid], fresh.members[gpid]
            secondaries = tuple(one for one in members_ if one != primary)
            # Leftovers of an earlier attempt lack nothing that anybody wrote.
            again = partitions[index].ballot > 0
            wanted_ = _Wanted(primary, secondaries, first=True, accepted=again, sound=members_)
            self._want(partitions[index], index, wanted_)
        return True

    def _around(self, takers: list[str]) -> Layout:
        """Return a layout without partitions whose totals are those of all there are."""
        layout = Layout.of(self._host.cluster, takers)
        for table_id, planned in self._wanted.items():
            for index, wanted in planned.items():
                gpid = Gpid(table_id, index)
                if gpid not in layout.primary:
                    layout.put(gpid, wanted.primary, (wanted.primary, *wanted.secondaries))
        fresh = Layout(takers)
        fresh.primaries_all, fresh.members_all = layout.primaries_all, layout.members_all
        return fresh

    def _is_new(self, table: TableRecord, record: PartitionRecord) -> bool:
        if record.ballot == 0:
            return True
        creating = table.status is TableStatus.CREATING
        return creating and all(self._host.nodes.is_gone(one) for one in record.members)

    def force(self, record: PartitionRecord, node_id: str, *, empty: bool) -> None:
        """An operator has decided who leads, whatever is lost."""
        wanted = _Wanted(node_id, (), first=empty, accepted=True, lossy=True, sound=(node_id,))
        self._want(record, record.gpid.partition_index, wanted)

    def _want(self, record: PartitionRecord, index: int, wanted: _Wanted) -> None:
        self._wanted.setdefault(record.gpid.table_id, {})[index] = wanted

    # What is stored.

    def next_commit(self) -> list[Effect]:
        """Give out new ballots, of several tables at once; whole tables are then told."""
        host = self._host
        room = CHANGE_OPERATIONS_MAX
        tables: list[TableRecord] = []
        changed: list[tuple[PartitionRecord, PartitionRecord, _Wanted]] = []
        done: list[int] = []
        for table_id, wanted in list(self._wanted.items()):
            if room < 2:
                break
            table = host.cluster.tables[table_id]
            given = self._given.setdefault(table_id, _Given())
            taken = list(wanted.items())[: room - 1]
            for index, one in taken:
                old = host.cluster.partitions[table_id][index]
                given.take(table, old, one)
                ballot = max(old.ballot, host.nodes.highest_ballot(old.gpid)) + 1
                new = old.under(
                    ballot, one.primary, one.secondaries, replica_count=table.replica_count
                )
                changed.append((old, new, one))
                del wanted[index]
            tables.append(table.changed())
            room -= 1 + len(taken)
            if not wanted:
                del self._wanted[table_id]
                done.append(table_id)
        change = Change(tables=tuple(tables), partitions=tuple(new for _, new, _ in changed))

        def then() -> list[Effect]:
            effects: list[Effect] = []
            for old, new, one in changed:
                host.nodes.on_stored(old, new, sound=one.sound)
                effects += _said(old, new, one)
            return effects + self._tell(done)

        return host.store(change, then)

    def _tell(self, table_ids: Iterable[int]) -> list[Effect]:
        effects: list[Effect] = []
        for table_id in table_ids:
            given = self._given.pop(table_id)
            version = self._host.cluster.tables[table_id].version
            # Whoever waits for the table waits for its partitions.
            self._host.waiters.raise_version(table_id, version)
            effects += self._host.delivery.change(
                table_id,
                given.indices,
                first=given.first,
                accepted=given.accepted,
                former=given.former,
            )
        return effects


class _Given:
    """What of a table was stored and is to be told."""

    def __init__(self) -> None:
        self.indices: set[int] = set()
        self.first: set[int] = set()
        self.accepted: set[int] = set()
        self.former: set[tuple[str, int]] = set()

    def take(self, table: TableRecord, old: PartitionRecord, wanted: _Wanted) -> None:
        """Add what one partition will be."""
        index = old.gpid.partition_index
        self.indices.add(index)
        if wanted.first or table.status is TableStatus.CREATING:
            self.first.add(index)
        if wanted.accepted:
            self.accepted.add(index)
        members = {wanted.primary, *wanted.secondaries}
        self.former |= {(one, index) for one in old.members if one not in members}


def _leads(record: PartitionRecord, replica: ReplicaReport) -> bool:
    return replica.status is ReplicaStatus.PRIMARY and replica.ballot == record.ballot


def _said(old: PartitionRecord, new: PartitionRecord, wanted: _Wanted) -> list[Effect]:
    if not wanted.lossy:
        return []
    left = ", ".join(one for one in old.members if one != new.primary) or "no other node"
    return [
        Warn(
            f"partition {new.gpid} is led by node {new.primary} with what it has, from ballot "
            f"{new.ballot} on: acknowledged writes that it lacks are lost ({left} is left out)"
        )
    ]
