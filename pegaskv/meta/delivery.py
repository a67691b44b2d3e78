"""pure: which node still has to be told what about a table.

A node is told the whole of a table and those of its partitions that changed. One push
for each (node, table) is under way at a time: while it is, changes are gathered, so a
slow node is told the last state and not every step. A push that failed is sent again
after a pause that doubles, with what changed since. Acknowledged means: by version.
"""

from dataclasses import dataclass, field

from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_meta import NodeReport, TablePush
from pegaskv.meta.cluster import Cluster, TableRecord
from pegaskv.meta.effects import Effect, Push, PushLater
from pegaskv.meta.options import MetaOptions

__all__ = ["Delivery", "Node"]


@dataclass(slots=True)
class _Line:
    """What one node knows of one table, and what is on its way."""

    acknowledged: int = 0
    changed: set[int] = field(default_factory=set)
    first: set[int] = field(default_factory=set)
    push: TablePush | None = None
    push_id: int = 0
    # A pause after a failure.
    waiting: bool = False
    failures: int = 0
    error: str = ""


@dataclass(slots=True)
class Node:
    """A replica server that has reported since this meta server leads."""

    node_id: str
    address: str
    ballots: dict[Gpid, int]
    # Tables with replicas that did not open when it started: they obey nothing yet.
    closed: set[int] = field(default_factory=set)
    lines: dict[int, _Line] = field(default_factory=dict)


class Delivery:
    """All nodes that are alive, and what each has acknowledged.

    Invariants: a line is never both under way and waiting; nothing is acknowledged
    that was not pushed.
    """

    def __init__(self, cluster: Cluster, options: MetaOptions, *, next_push_id: int = 1) -> None:
        self._cluster = cluster
        self._options = options
        self.next_push_id = next_push_id
        self.nodes: dict[str, Node] = {}

    def on_reported(self, report: NodeReport) -> Node:
        """A node has started: it knows nothing of what was pushed before."""
        ballots = {replica.gpid: replica.ballot for replica in report.replicas}
        closed = {replica.gpid.table_id for replica in report.replicas if replica.closed}
        node = Node(report.node_id, report.address, ballots, closed)
        self.nodes[report.node_id] = node
        return node

    def change(self, table_id: int, indices: set[int], *, first: set[int]) -> list[Effect]:
        """Tell the nodes of a table that it, and these partitions of it, have changed."""
        effects: list[Effect] = []
        for node_id in self._cluster.members(table_id):
            node = self.nodes.get(node_id)
            if node is not None:
                line = node.lines.setdefault(table_id, _Line())
                line.changed |= indices
                line.first |= first
                effects += self.send(node_id, table_id)
        return effects

    def send(self, node_id: str, table_id: int) -> list[Effect]:
        """Push what the node does not know, unless a push is under way or has to wait."""
        node, table = self.nodes.get(node_id), self._cluster.tables.get(table_id)
        if node is None or table is None:
            return []
        line = node.lines.setdefault(table_id, _Line())
        if line.push is not None or line.waiting or line.acknowledged >= table.version:
            return []
        line.push_id = self.next_push_id
        self.next_push_id += 1
        line.push = self._push(table, line)
        return [Push(line.push_id, node_id, line.push)]

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
        if line is None or line.push is None or line.push_id != push_id:
            # Of a node before its restart, or a table before its purge.
            return None
        push, line.push, line.error = line.push, None, error
        if not error:
            line.failures = 0
            line.acknowledged = push.table.version
            return self.send(node_id, table_id)
        line.changed |= {one.gpid.partition_index for one in push.partitions}
        line.first |= push.first_assignment
        line.waiting = True
        least, most = self._options.push_retry_ms_min, self._options.push_retry_ms_max
        delay_ms = min(most, least << min(line.failures, 16))
        line.failures += 1
        return [PushLater(node_id, table_id, delay_ms)]

    def acknowledged(self, table_id: int, version: int) -> bool:
        """Whether every node that may hold data of the table knows this version of it."""
        for node_id in self._cluster.members(table_id):
            line = self._line(node_id, table_id)
            if line is None or line.acknowledged < version:
                return False
        return True

    def obeyed(self, table_id: int) -> bool:
        """Whether all that is stored about a table is in the logs of its replicas."""
        table = self._cluster.tables.get(table_id)
        if table is None or table.purging:
            return True
        return (
            table.status is TableStatus.AVAILABLE
            and self.acknowledged(table_id, table.version)
            and not any(table_id in node.closed for node in self.nodes.values())
        )

    def failure(self, table_id: int) -> str:
        """Return why a node could not take the table's last push, or nothing."""
        for node_id, node in self.nodes.items():
            line = node.lines.get(table_id)
            if line is not None and line.error:
                return f"node {node_id}: {line.error}"
        return ""

    def quiet(self, node_id: str, table_id: int) -> bool:
        """Whether the last push of the table to the node has ended, well or not."""
        line = self._line(node_id, table_id)
        return line is None or line.push is None

    def forget(self, table_id: int) -> None:
        """The table is gone from the records."""
        for node in self.nodes.values():
            node.lines.pop(table_id, None)

    def check(self, *, settled: bool) -> None:
        """Assert the invariants; `settled` says that no commit is under way."""
        for node in self.nodes.values():
            for table_id, line in node.lines.items():
                assert not (line.push is not None and line.waiting)
                version = self._cluster.tables[table_id].version
                assert line.acknowledged <= version
                if settled and line.acknowledged < version:
                    assert line.push is not None or line.waiting, "a node is never told"

    def _line(self, node_id: str, table_id: int) -> _Line | None:
        node = self.nodes.get(node_id)
        return None if node is None else node.lines.get(table_id)

    def _push(self, table: TableRecord, line: _Line) -> TablePush:
        info = table.info()
        orders = self._cluster.orders(table.table_id)
        sources = tuple(one.order for one in table.sources)
        changed, first = line.changed, frozenset(line.first)
        line.changed, line.first = set(), set()
        if info.expires_at or table.purging:
            # A dropped table is assigned to nobody; it gets new ballots when it returns.
            return TablePush(info, purged=table.purging, duplications=orders, sources=sources)
        records = self._cluster.partitions[info.table_id]
        partitions = tuple(
            records[index].configuration() for index in sorted(changed) if index in records
        )
        return TablePush(info, partitions, first, duplications=orders, sources=sources)
