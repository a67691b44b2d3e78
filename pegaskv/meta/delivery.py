"""pure: which node still has to be told what about a table.

A node is told the whole of a table and those of its partitions that changed and that it is,
or was, a member of. While a push for a (node, table) is under way, changes of the table are
gathered, so a slow node is told the last state and not every step; changes of who serves a
partition do not wait, since a push ends only when every partition in it serves, and that may
depend on others. A push that failed is sent again after a pause that doubles, with what
changed since. Acknowledged means: by version.

A node that is no member of a table any more is told that once. One that is unalive is
neither told nor waited for: when it comes back, it reports, and is told all that is its own.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from pegaskv.base.types import TableStatus
from pegaskv.codec.messages_meta import TablePush
from pegaskv.meta.cluster import Cluster, TableRecord
from pegaskv.meta.effects import Effect, Push, PushLater
from pegaskv.meta.nodes import Nodes
from pegaskv.meta.options import MetaOptions

__all__ = ["Delivery"]


# So many pushes of a table to a node are under way at a time.
_PUSHES_MAX: Final = 8


@dataclass(slots=True)
class _Line:
    """What one node knows of one table, and what is on its way."""

    # The version that was taken last; whether it is in force depends on earlier pushes too.
    taken: int = 0
    changed: set[int] = field(default_factory=set)
    first: set[int] = field(default_factory=set)
    accepted: set[int] = field(default_factory=set)
    # Under way, by their ids.
    pushes: dict[int, TablePush] = field(default_factory=dict)
    # A pause after a failure.
    waiting: bool = False
    failures: int = 0
    error: str = ""

    @property
    def acknowledged(self) -> int:
        """Up to which version all is in force."""
        under_way = min((one.table.version for one in self.pushes.values()), default=None)
        return self.taken if under_way is None else min(self.taken, under_way - 1)


class Delivery:
    """What each node has acknowledged since it reported.

    Invariants: nothing is acknowledged that was not pushed; a node that is alive and a member
    of a table knows its last version, or is being told.
    """

    def __init__(
        self, cluster: Cluster, nodes: Nodes, options: MetaOptions, *, next_push_id: int = 1
    ) -> None:
        self._cluster = cluster
        self._nodes = nodes
        self._options = options
        self.next_push_id = next_push_id
        self._lines: dict[str, dict[int, _Line]] = {}

    def on_reported(self, node_id: str) -> None:
        """A node has come: nothing is known of what it was told before."""
        self._lines[node_id] = {}

    def on_died(self, node_id: str) -> list[int]:
        """A node is unalive; return the tables that it was to be told of."""
        return sorted(self._lines.pop(node_id, {}))

    def change(
        self,
        table_id: int,
        indices: Collection[int] = (),
        *,
        first: Collection[int] = (),
        accepted: Collection[int] = (),
        former: Collection[tuple[str, int]] = (),
    ) -> list[Effect]:
        """Tell the nodes of a table that it, and these partitions of it, have changed.

        `former` are nodes that are no members any more, with the partition; `first` may be
        opened empty, and those of `accepted` be led by an amnesiac replica.
        """
        effects: list[Effect] = []
        partitions = self._cluster.partitions.get(table_id, {})
        concerned: dict[str, set[int]] = {one: set() for one in self._cluster.members(table_id)}
        for node_id, index in former:
            concerned.setdefault(node_id, set()).add(index)
        for index in indices:
            if index in partitions:
                for node_id in partitions[index].members:
                    concerned[node_id].add(index)
        for node_id in sorted(concerned):
            if self._nodes.is_alive(node_id):
                line = self._lines[node_id].setdefault(table_id, _Line())
                line.changed |= concerned[node_id]
                line.first |= concerned[node_id].intersection(first)
                line.accepted |= concerned[node_id].intersection(accepted)
                effects += self.send(node_id, table_id)
        return effects

    def note(
        self,
        node_id: str,
        table_id: int,
        indices: Collection[int] = (),
        first: Collection[int] = (),
    ) -> None:
        """Remember that a node, which has come, is to be told of a table; see `send_all`."""
        line = self._lines[node_id].setdefault(table_id, _Line())
        line.changed.update(indices)
        line.first.update(first)

    def send_all(self, node_id: str) -> list[Effect]:
        """Push to a node whatever it does not know."""
        effects: list[Effect] = []
        for table_id in list(self._lines[node_id]):
            effects += self.send(node_id, table_id)
        return effects

    def under_way(self, node_id: str) -> set[int]:
        """Return the tables that a node is being told of."""
        lines = self._lines.get(node_id, {})
        return {table_id for table_id, line in lines.items() if line.pushes}

    def send(self, node_id: str, table_id: int) -> list[Effect]:
        """Push what the node does not know, unless a push is under way or has to wait."""
        table = self._cluster.tables.get(table_id)
        if table is None or not self._nodes.is_alive(node_id):
            return []
        line = self._lines[node_id].setdefault(table_id, _Line())
        if line.waiting or len(line.pushes) >= (_PUSHES_MAX if line.changed else 1):
            return []
        if line.taken >= table.version and not line.changed:
            return []
        push_id = self.next_push_id
        self.next_push_id += 1
        push = line.pushes[push_id] = self._push(table, line, self._nodes[node_id].process)
        return [Push(push_id, node_id, push)]

    def on_due(self, node_id: str, table_id: int) -> list[Effect]:
        """The pause after a failure is over."""
        line = self._line(node_id, table_id)
        if line is None or not line.waiting:
            return []
        line.waiting = False
        return self.send(node_id, table_id)

    def on_ended(
        self, push_id: int, node_id: str, table_id: int, error: str
    ) -> list[Effect] | None:
        """A push was taken or failed; what changed meanwhile is sent. None: nobody waits for it."""
        line = self._line(node_id, table_id)
        push = None if line is None else line.pushes.pop(push_id, None)
        if line is None or push is None:
            # Of a node before its restart, or a table before its purge.
            return None
        line.error = error
        if not error:
            line.failures = 0
            line.taken = max(line.taken, push.table.version)
            idle = not (line.changed or line.pushes or line.waiting)
            if idle and node_id not in self._cluster.members(table_id):
                # It has heard that nothing here is its own any more.
                del self._lines[node_id][table_id]
                return []
            return self.send(node_id, table_id)
        line.taken = min(line.taken, push.table.version - 1)
        line.changed |= {one.gpid.partition_index for one in push.partitions}
        line.first |= push.first_assignment
        line.accepted |= push.accept_amnesia
        if line.waiting:
            return []
        line.waiting = True
        least, most = self._options.push_retry_ms_min, self._options.push_retry_ms_max
        delay_ms = min(most, least << min(line.failures, 16))
        line.failures += 1
        return [PushLater(node_id, table_id, delay_ms)]

    def acknowledged(self, table_id: int, version: int) -> bool:
        """Whether every member of the table knows this version of it; who is gone is left out."""
        for node_id in self._cluster.members(table_id):
            line = self._line(node_id, table_id)
            known = line is not None and line.acknowledged >= version
            if not known and not self._nodes.is_gone(node_id):
                return False
        return True

    def led(self, table_id: int) -> bool:
        """Whether the primary of every partition is alive."""
        partitions = self._cluster.partitions.get(table_id, {})
        return all(self._nodes.is_alive(one.primary) for one in partitions.values())

    def obeyed(self, table_id: int) -> bool:
        """Whether all that is stored about a table is in the logs of its replicas."""
        table = self._cluster.tables.get(table_id)
        if table is None or table.purging:
            return True
        return (
            table.status is TableStatus.AVAILABLE
            and self.acknowledged(table_id, table.version)
            and not any(
                self._nodes.why_not_led(one) for one in self._cluster.partitions[table_id].values()
            )
        )

    def failure(self, table_id: int) -> str:
        """Return why a node could not take the table's last push, or nothing."""
        for node_id, lines in self._lines.items():
            line = lines.get(table_id)
            if line is not None and line.error:
                return f"node {node_id}: {line.error}"
        return ""

    def quiet(self, node_id: str, table_id: int) -> bool:
        """Whether the last push of the table to the node has ended, well or not."""
        line = self._line(node_id, table_id)
        return line is None or not line.pushes

    def forget(self, table_id: int) -> None:
        """The table is gone from the records."""
        for lines in self._lines.values():
            lines.pop(table_id, None)

    def check(self, *, settled: bool) -> None:
        """Assert the invariants; `settled` says that no commit is under way."""
        assert {node.node_id for node in self._nodes.alive} == set(self._lines)
        for lines in self._lines.values():
            for table_id, line in lines.items():
                assert len(line.pushes) <= _PUSHES_MAX
                version = self._cluster.tables[table_id].version
                assert line.acknowledged <= version
                if settled and (line.taken < version or line.changed):
                    assert line.pushes or line.waiting, "a node is never told"

    def _line(self, node_id: str, table_id: int) -> _Line | None:
        return self._lines.get(node_id, {}).get(table_id)

    def _push(self, table: TableRecord, line: _Line, process: str) -> TablePush:
        info = table.info()
        orders = self._cluster.orders(table.table_id)
        sources = tuple(one.order for one in table.sources)
        changed, first, accepted = line.changed, frozenset(line.first), frozenset(line.accepted)
        line.changed, line.first, line.accepted = set(), set(), set()
        if info.expires_at or table.purging:
            # A dropped table is assigned to nobody; it gets new ballots when it returns.
            return TablePush(
                info,
                purged=table.purging,
                duplications=orders,
                sources=sources,
                process=process,
            )
        records = self._cluster.partitions[info.table_id]
        partitions = tuple(
            records[index].configuration() for index in sorted(changed) if index in records
        )
        return TablePush(
            info,
            partitions,
            first,
            duplications=orders,
            sources=sources,
            addresses=self._nodes.addresses(partitions),
            accept_amnesia=accepted,
            process=process,
        )
