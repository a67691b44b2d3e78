"""pure: the guardian: every partition gets as many members as its table wants, and no more.

It never changes a configuration. It tells a primary which node shall learn, and the primary
proposes that node as a member when it has everything; so a guardian that is wrong or late
costs copies, and never data. A partition whose primary is gone is the members' own affair.

A node that was a member lately has most of the rows: it is waited for a while, unless too
few members are left to take writes. Once a node was chosen it stays so while its copy goes
on. What lies on a node that is no member is thrown away when all members are there.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pegaskv.base.limits import REPLICA_COUNT_MAX
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_meta import Order, OrderKind
from pegaskv.meta.cluster import PartitionRecord, TableRecord
from pegaskv.meta.effects import Effect, Obey
from pegaskv.meta.events import OrderEnded
from pegaskv.meta.host import Host
from pegaskv.meta.nodes import Node
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.orders import Orders
from pegaskv.meta.placement import Layout, min_write_replicas

__all__ = ["Guardian"]

# So many replicas a node throws away at a time.
_DISCARDS_MAX: Final = 20
# More than so many partitions that lack something are looked at when their time comes.
_AT_ONCE_MAX: Final = 1_000


@dataclass(slots=True)
class _Copy:
    """A node that learns, or shall."""

    node_id: str
    progress_ms: int
    seen: tuple[int, int] | None = None


class Guardian:
    """Looks after all partitions; `host` knows the records and the nodes."""

    def __init__(self, host: Host, orders: Orders, options: MetaOptions) -> None:
        self._host = host
        self._orders = orders
        self._options = options
        # Whether more than single partitions may be other than they were.
        self._look_at_all = True
        # Partitions that lack something, and since when (monotonic, Unix seconds).
        self._unfit: dict[Gpid, tuple[int, int]] = {}
        self._unled: dict[Gpid, int] = {}
        self._copies: dict[Gpid, _Copy] = {}
        # Of whom a copy, or a removal, did not succeed lately.
        self._failed: dict[tuple[Gpid, str], int] = {}
        # Partitions that are being moved: more members than wanted are right there.
        self.moved: set[Gpid] = set()

    # What happens.

    def look_at_all(self) -> None:
        """Nodes, tables or the level have changed."""
        self._look_at_all = True

    def on_stored(self, records: Iterable[PartitionRecord]) -> list[Effect]:
        """Partitions have other configurations; where copies ended, others may begin."""
        some_ended = False
        for record in records:
            copy = self._copies.get(record.gpid)
            if copy is not None and copy.node_id in record.members:
                del self._copies[record.gpid]
                some_ended = True
            self._judge(record.gpid)
        # Only now, when it is known of all which copies have ended: who has just become a member
        # must not be taken for a learner that is needed no more.
        return self.repair() if some_ended and len(self._unfit) <= _AT_ONCE_MAX else []

    def on_time(self) -> list[Effect]:
        """Do what is due."""
        host, now = self._host, self._host.now_ms
        if self._look_at_all:
            self._look_at_all = False
            self._judge_all()
        if not host.nodes.settled:
            # Who is not here may only be late.
            return []
        self._orders.forget_old(now)
        patience_ms = self._options.learner_patience_ms
        self._failed = {one: ms for one, ms in self._failed.items() if now - ms < patience_ms}
        effects = self.repair()
        if host.level.balances:
            effects += self._discard()
        return effects

    def repair(self) -> list[Effect]:
        """Order what the partitions that lack something need."""
        effects: list[Effect] = []
        if not self._host.nodes.settled or not self._host.level.fails_over:
            return effects
        layout: list[Layout] = []
        for gpid in sorted({*self._unfit, *self._copies} - self.moved):
            record = self._host.cluster.partition(gpid)
            table = self._host.cluster.tables.get(gpid.table_id)
            if record is None or table is None or table.status is not TableStatus.AVAILABLE:
                self._copies.pop(gpid, None)
                continue
            effects += self._repair_one(record, table, layout)
        return effects

    def on_reported(self, node_id: str) -> None:
        """A node has come: what it could not do before it may do now."""
        for one in [one for one in self._failed if one[1] == node_id]:
            del self._failed[one]
        self.look_at_all()

    def on_leaving(self, node: Node) -> list[Effect]:
        """A node stops: its secondaries are taken out where that leaves enough."""
        self.look_at_all()
        return self._take_out(node) if self._host.level.fails_over else []

    def on_order_ended(self, event: OrderEnded) -> None:
        """A node has thrown a replica away, or could not."""
        node = self._host.nodes.get(event.node_id)
        gpid = event.order.gpid
        if event.order.kind is not OrderKind.DISCARD or node is None:
            return
        if gpid not in node.discarding:
            return
        node.discarding.discard(gpid)
        if event.error:
            self._failed[(gpid, event.node_id)] = self._host.now_ms
        else:
            node.strays.discard(gpid)
            node.replicas.pop(gpid, None)

    # What is known.

    @property
    def all_fit(self) -> bool:
        """Whether nothing is to be repaired, as far as it was looked at."""
        return not self._unfit and not self._look_at_all

    def unled_since(self, gpid: Gpid) -> int:
        """Since when nobody leads a partition, in Unix seconds; 0 = somebody does."""
        return self._unled.get(gpid, 0)

    def learner(self, gpid: Gpid) -> str | None:
        """Return the node that learns a partition, or shall."""
        copy = self._copies.get(gpid)
        return None if copy is None else copy.node_id

    def copies_to(self, node_id: str) -> int:
        """Return how many copies a node gets at the moment."""
        return sum(one.node_id == node_id for one in self._copies.values())

    def is_fit(self, record: PartitionRecord, table: TableRecord) -> bool:
        """Whether a partition has all that its table wants."""
        nodes = self._host.nodes
        return (
            len(record.members) == table.replica_count
            and all(nodes.is_alive(one) and not nodes[one].leaving for one in record.members)
            and not nodes.why_not_led(record)
        )

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        for gpid, copy in self._copies.items():
            record = self._host.cluster.partition(gpid)
            assert record is None or copy.node_id not in record.members

    # Judging.

    def _judge_all(self) -> None:
        seen = set()
        for table_id, partitions in self._host.cluster.partitions.items():
            for index in partitions:
                gpid = Gpid(table_id, index)
                seen.add(gpid)
                self._judge(gpid)
        for gpid in [one for one in self._unfit if one not in seen]:
            del self._unfit[gpid]
            self._unled.pop(gpid, None)

    def _judge(self, gpid: Gpid) -> None:
        record = self._host.cluster.partition(gpid)
        table = self._host.cluster.tables.get(gpid.table_id)
        if record is None or table is None or table.status is not TableStatus.AVAILABLE:
            self._unfit.pop(gpid, None)
            self._unled.pop(gpid, None)
            return
        if self.is_fit(record, table):
            self._unfit.pop(gpid, None)
        else:
            self._unfit.setdefault(gpid, (self._host.now_ms, self._host.now))
        if self._host.nodes.why_not_led(record):
            self._unled.setdefault(gpid, self._host.now)
        else:
            self._unled.pop(gpid, None)

    # Repairing.

    def _repair_one(
        self, record: PartitionRecord, table: TableRecord, layout: list[Layout]
    ) -> list[Effect]:
        nodes = self._host.nodes
        if not nodes.is_alive(record.primary):
            return []
        staying = [one for one in record.members if one not in nodes or not nodes[one].leaving]
        effects: list[Effect] = []
        for node_id in record.secondaries:
            if node_id not in staying:
                effects += self._take_out_one(record, table, node_id)
        if not self._host.level.repairs:
            return effects
        if len(staying) < table.replica_count and len(record.members) < REPLICA_COUNT_MAX:
            return effects + self._add(record, table, layout)
        if (learner := self.learner(record.gpid)) is not None:
            # Somebody else has come back meanwhile.
            return effects + self.give_up(record, learner)
        if len(record.members) > table.replica_count:
            effects += self._remove_redundant(record, layout)
        return effects

    def _add(
        self, record: PartitionRecord, table: TableRecord, layout: list[Layout]
    ) -> list[Effect]:
        copy = self._copies.get(record.gpid)
        if copy is not None:
            effects = self.go_on_learning(record)
            if record.gpid in self._copies:
                return effects
        else:
            effects = []
        node_id = self._choose(record, table, layout)
        if node_id is None:
            return effects
        return effects + self.learn(record, node_id)

    def learn(self, record: PartitionRecord, node_id: str) -> list[Effect]:
        """Let a node learn a partition: it is told again until it is a member or given up."""
        assert record.gpid not in self._copies
        assert node_id not in record.members
        node = self._host.nodes[node_id]
        # What it has by then is left over if nothing comes of it.
        node.strays.add(record.gpid)
        self._copies[record.gpid] = _Copy(node_id, self._host.now_ms)
        return self._orders.to_primary(record, OrderKind.ADD_LEARNER, node_id, self._host.now_ms)

    def go_on_learning(self, record: PartitionRecord) -> list[Effect]:
        """Repeat the order, or give the copy up when it does not go on."""
        copy, now = self._copies[record.gpid], self._host.now_ms
        node = self._host.nodes.get(copy.node_id)
        seen = None if node is None else node.learning.get(record.gpid)
        if seen is not None and seen != copy.seen:
            copy.seen, copy.progress_ms = seen, now
        stuck = now - copy.progress_ms >= self._options.learner_patience_ms
        if node is None or not node.takes_replicas or stuck:
            return self.give_up(record, copy.node_id)
        return self._orders.to_primary(record, OrderKind.ADD_LEARNER, copy.node_id, now)

    def give_up(self, record: PartitionRecord, node_id: str) -> list[Effect]:
        """Let a node not learn any more."""
        self._copies.pop(record.gpid, None)
        self._failed[(record.gpid, node_id)] = self._host.now_ms
        return self._orders.to_primary(record, OrderKind.REMOVE, node_id, self._host.now_ms)

    def may_learn(self, gpid: Gpid, node: Node) -> bool:
        """Whether a copy to a node can be begun now."""
        return (
            node.takes_replicas
            and gpid not in node.discarding
            and self.copies_to(node.node_id) < self._options.learners_per_node_max
        )

    def _choose(
        self, record: PartitionRecord, table: TableRecord, layout: list[Layout]
    ) -> str | None:
        """Return who shall learn, or None for now."""
        nodes, gpid = self._host.nodes, record.gpid
        others = [one for one in nodes.takers if one.node_id not in record.members]
        fresh = [one for one in others if (gpid, one.node_id) not in self._failed]
        found = {one.node_id: one for one in fresh or others}
        # Former members first, the last of them before the others.
        for node_id in reversed(record.dropped):
            if node_id in found:
                return node_id if self.may_learn(gpid, found[node_id]) else None
        leaving = [one for one in record.members if one in nodes and nodes[one].leaving]
        if len(record.members) - len(leaving) >= min_write_replicas(table.replica_count):
            since_ms, _ = self._unfit.get(gpid, (self._host.now_ms, 0))
            waited_ms = self._host.now_ms - since_ms
            away = [*leaving, *(one for one in record.dropped if self._may_return(one))]
            if away and waited_ms < self._options.replica_assign_delay_ms:
                return None
        able = [one for one in found.values() if self.may_learn(gpid, one)]
        has = [one for one in able if gpid in one.replicas]
        if has:
            return max(has, key=lambda one: _knowledge(one, gpid)).node_id
        if not able:
            return None
        node_id = self._layout(layout).emptiest(gpid.table_id, [one.node_id for one in able])
        self._layout(layout).add_member(gpid, node_id)
        return node_id

    def _may_return(self, node_id: str) -> bool:
        node = self._host.nodes.get(node_id)
        if node is None:
            return True
        return not self._host.nodes.is_replaced(node) and (not node.alive or node.leaving)

    def _layout(self, layout: list[Layout]) -> Layout:
        """Return how all lies, made once for a round."""
        if not layout:
            takers = [one.node_id for one in self._host.nodes.takers]
            layout.append(Layout.of(self._host.cluster, takers))
            for gpid, copy in self._copies.items():
                layout[0].add_member(gpid, copy.node_id)
        return layout[0]

    def _remove_redundant(self, record: PartitionRecord, layout: list[Layout]) -> list[Effect]:
        nodes = self._host.nodes
        gone = [one for one in record.secondaries if not nodes.is_alive(one)]
        full = [one for one in record.secondaries if one in nodes and nodes[one].disk_full]
        among = gone or full or record.secondaries
        node_id = self._layout(layout).fullest(record.gpid.table_id, among)
        return self._orders.to_primary(record, OrderKind.REMOVE, node_id, self._host.now_ms)

    # A node that leaves.

    def _take_out(self, node: Node) -> list[Effect]:
        effects: list[Effect] = []
        for record, table in self.named(node.node_id):
            if node.node_id != record.primary:
                effects += self._take_out_one(record, table, node.node_id)
        return effects

    def _take_out_one(
        self, record: PartitionRecord, table: TableRecord, node_id: str
    ) -> list[Effect]:
        """Take a secondary out, unless writes would be refused for the lack of it."""
        if len(record.members) - 1 < min_write_replicas(table.replica_count):
            return []
        return self._orders.to_primary(record, OrderKind.REMOVE, node_id, self._host.now_ms)

    def named(self, node_id: str) -> Iterable[tuple[PartitionRecord, TableRecord]]:
        """Yield the partitions of tables in use that name a node."""
        for table_id, table in sorted(self._host.cluster.tables.items()):
            if table.status is not TableStatus.DROPPED:
                for _, record in sorted(self._host.cluster.partitions[table_id].items()):
                    if node_id in record.members:
                        yield record, table

    # What nobody needs.

    def _discard(self) -> list[Effect]:
        effects: list[Effect] = []
        for node in self._host.nodes.alive:
            for gpid in sorted(node.strays - node.discarding):
                if len(node.discarding) >= _DISCARDS_MAX:
                    break
                if (gpid, node.node_id) not in self._failed and self._is_useless(node, gpid):
                    node.discarding.add(gpid)
                    effects.append(Obey(node.node_id, self._discard_order(node, gpid)))
        return effects

    def _is_useless(self, node: Node, gpid: Gpid) -> bool:
        cluster = self._host.cluster
        assert cluster.record is not None
        table = cluster.tables.get(gpid.table_id)
        if table is None:
            # Of a table that was purged while the node was away; a strange one is never touched.
            return cluster.record.was_given(gpid.table_id)
        record = cluster.partition(gpid)
        if record is None or table.status is not TableStatus.AVAILABLE or gpid in self.moved:
            return False
        return self.learner(gpid) is None and self.is_fit(record, table)

    def _discard_order(self, node: Node, gpid: Gpid) -> Order:
        record, replica = self._host.cluster.partition(gpid), node.replicas.get(gpid)
        stored = 0 if record is None else record.ballot
        ballot = max(stored, 0 if replica is None else replica.ballot)
        return Order(OrderKind.DISCARD, gpid, ballot, node.node_id, node.address)


def _knowledge(node: Node, gpid: Gpid) -> tuple[bool, int, int, str]:
    replica = node.replicas[gpid]
    return (not replica.closed, replica.ballot, replica.last_decree, node.node_id)
