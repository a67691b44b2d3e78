"""pure: on which nodes the replicas of partitions are put, and how evenly they lie.

Two things are counted, primaries and members, each for a table and for all tables: a load is
rarely spread over tables evenly, so every table is spread by itself, and what is left over
goes where the least is. All choices are deterministic: equal nodes are taken by their ids.
"""

from collections.abc import Iterable, Mapping, Sequence

from pegaskv.base.types import Gpid, TableStatus
from pegaskv.meta.cluster import Cluster

__all__ = ["Layout", "min_write_replicas"]


def min_write_replicas(replica_count: int) -> int:
    """Return how many members a partition needs to take writes."""
    return 1 if replica_count <= 2 else 2


class Layout:
    """Who is primary and member of what, with the counts; a plan moves it around."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self.nodes = sorted(nodes)
        self.primary: dict[Gpid, str] = {}
        self.members: dict[Gpid, tuple[str, ...]] = {}
        self.by_table: dict[int, list[Gpid]] = {}
        # Counts by node: of all tables, and of each.
        self.primaries_all = dict.fromkeys(self.nodes, 0)
        self.members_all = dict.fromkeys(self.nodes, 0)
        self.primaries: dict[int, dict[str, int]] = {}
        self.replicas: dict[int, dict[str, int]] = {}

    @classmethod
    def of(cls, cluster: Cluster, nodes: Iterable[str], *, available: bool = False) -> "Layout":
        """Return how all partitions lie that were assigned, those of dropped tables excepted.

        With `available`, only tables count that are available.
        """
        layout = cls(nodes)
        for table_id, table in sorted(cluster.tables.items()):
            if table.status is TableStatus.DROPPED:
                continue
            if available and table.status is not TableStatus.AVAILABLE:
                continue
            for index, record in sorted(cluster.partitions[table_id].items()):
                if record.primary is not None:
                    layout.put(Gpid(table_id, index), record.primary, record.members)
        return layout

    def put(self, gpid: Gpid, primary: str, members: Sequence[str]) -> None:
        """Add a partition."""
        assert primary in members
        self.primary[gpid], self.members[gpid] = primary, tuple(members)
        self.by_table.setdefault(gpid.table_id, []).append(gpid)
        primaries, replicas = self._table(gpid.table_id)
        _count(primaries, self.primaries_all, primary, 1)
        for node_id in members:
            _count(replicas, self.members_all, node_id, 1)

    def move_primary(self, gpid: Gpid, node_id: str) -> None:
        """Another member leads."""
        assert node_id in self.members[gpid]
        primaries, _ = self._table(gpid.table_id)
        _count(primaries, self.primaries_all, self.primary[gpid], -1)
        _count(primaries, self.primaries_all, node_id, 1)
        self.primary[gpid] = node_id

    def move_member(self, gpid: Gpid, source: str, target: str) -> None:
        """Another node is a member in the place of one, and leads if that did."""
        members = self.members[gpid]
        assert source in members
        assert target not in members
        self.members[gpid] = tuple(target if one == source else one for one in members)
        _, replicas = self._table(gpid.table_id)
        _count(replicas, self.members_all, source, -1)
        _count(replicas, self.members_all, target, 1)
        if self.primary[gpid] == source:
            self.move_primary(gpid, target)

    def choose(self, table_id: int, count: int) -> list[str]:
        """Return the nodes that a new partition's members should be: where least is."""
        _, replicas = self._table(table_id)
        ranked = sorted(
            self.nodes, key=lambda one: (replicas.get(one, 0), self.members_all[one], one)
        )
        return ranked[:count]

    def emptiest(self, table_id: int, among: Iterable[str]) -> str:
        """Return who of these should get one more replica of a table."""
        _, replicas = self._table(table_id)
        return min(among, key=lambda one: (replicas.get(one, 0), self.members_all.get(one, 0), one))

    def fullest(self, table_id: int, among: Iterable[str]) -> str:
        """Return who of these should have one replica of a table less."""
        _, replicas = self._table(table_id)
        return max(among, key=lambda one: (replicas.get(one, 0), self.members_all.get(one, 0), one))

    def add_member(self, gpid: Gpid, node_id: str) -> None:
        """One more member, which is on its way there."""
        _, replicas = self._table(gpid.table_id)
        _count(replicas, self.members_all, node_id, 1)

    def least_primaries(self, table_id: int, among: Iterable[str]) -> str:
        """Return who of these should lead a new partition."""
        primaries, _ = self._table(table_id)
        return min(
            among, key=lambda one: (primaries.get(one, 0), self.primaries_all.get(one, 0), one)
        )

    def _table(self, table_id: int) -> tuple[dict[str, int], dict[str, int]]:
        if table_id not in self.primaries:
            self.primaries[table_id] = dict.fromkeys(self.nodes, 0)
            self.replicas[table_id] = dict.fromkeys(self.nodes, 0)
        return self.primaries[table_id], self.replicas[table_id]

    def spread(self, counts: Mapping[str, int]) -> int:
        """Return the difference between the node with most and the one with least."""
        found = [counts.get(one, 0) for one in self.nodes]
        return max(found) - min(found) if found else 0


def _count(table: dict[str, int], everywhere: dict[str, int], node_id: str, by: int) -> None:
    table[node_id] = table.get(node_id, 0) + by
    everywhere[node_id] = everywhere.get(node_id, 0) + by
