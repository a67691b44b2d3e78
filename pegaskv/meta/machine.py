"""pure: what the meta server does about every event: what it stores, then says, then answers.

The records say what has to be done, and the machine does the next thing that they lack:
a table that is `creating` gets its missing partitions, then nodes, then is `available`;
one that is `purging` loses its partitions, then its record. So there is no difference
between going on and starting again, and a crash between any two commits is made good by
the next start.

It promises:

* memory changes when a commit is done and not before; pushes and answers come after it;
* every commit is guarded by the revisions of all that it writes;
* a table id is given once, a partition's ballot only grows;
* an empty replica is ordered only for a partition that no client can have written to:
  its stored ballot was 0, or its table was never available (or an operator said so);
* a purge is stored before any row is removed, and the records go after the rows of all
  nodes that are alive; the others remove theirs when they come back.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pegaskv.base.errors import RequestError
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.meta.assignment import Assignments
from pegaskv.meta.cluster import (
    CHANGE_OPERATIONS_MAX,
    Change,
    Cluster,
    ClusterRecord,
    PartitionRecord,
    TableRecord,
)
from pegaskv.meta.delivery import Delivery
from pegaskv.meta.effects import Answer, Commit, Effect, Refuse, Warn
from pegaskv.meta.events import (
    CollectDue,
    Committed,
    Ensured,
    Event,
    Forgotten,
    NodeLeaving,
    NodeReported,
    OrderEnded,
    Proposed,
    PushDue,
    PushEnded,
    RemotesChanged,
    ReplicaRequest,
    ReportProgress,
    SourceRequest,
    Started,
    TargetRequest,
    TimePassed,
)
from pegaskv.meta.guardian import Guardian
from pegaskv.meta.hands import Hands
from pegaskv.meta.host import Identity
from pegaskv.meta.levels import Level, check_changes_allowed
from pegaskv.meta.moves import Moves
from pegaskv.meta.nodes import Node, Nodes, same_process
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.orders import Orders
from pegaskv.meta.proposals import Proposals
from pegaskv.meta.sources import Sources
from pegaskv.meta.table_requests import TableRequests
from pegaskv.meta.targets import Targets
from pegaskv.meta.waiting import Need, Waiter, Waiters

__all__ = ["MetaMachine"]

# What the cluster itself says of duplications, at any level.
_PROGRESS = (ReportProgress, Ensured, Forgotten)


@dataclass(frozen=True, slots=True)
class _Pending:
    """The commit under way, and what follows it."""

    change: Change
    then: Callable[[], list[Effect]] | None


class MetaMachine:
    """The tables of one cluster; `step` is its only door.

    Invariants (`check`): those of the records; between two events nothing is left to
    commit that could be committed; at most one commit is under way.
    """

    def __init__(
        self,
        cluster: Cluster,
        options: MetaOptions,
        *,
        next_push_id: int = 1,
        identity: Identity = Identity(),  # noqa: B008 - it cannot be changed
    ) -> None:
        self.cluster = cluster
        self.nodes = Nodes(cluster, dead_ms=options.node_dead_ms)
        self.delivery = Delivery(cluster, self.nodes, options, next_push_id=next_push_id)
        self.waiters = Waiters(cluster, self.delivery, self.nodes)
        self.identity = identity
        self.now = 0
        self.now_ms = 0
        self.sources = Sources(self)
        self.targets = Targets(self, options)
        self._assignments = Assignments(self)
        self._proposals = Proposals(self)
        self._tables = TableRequests(self, self._assignments, options)
        orders = Orders(self.nodes, repeat_ms=options.order_repeat_ms)
        self.guardian = Guardian(self, orders, options)
        self.moves = Moves(self, self.guardian, orders, options)
        self._hands = Hands(self, self._assignments, self.guardian, self.moves, orders, options)
        self._pending: _Pending | None = None
        # Work that the records ask for.
        self._half_made: list[int] = []
        self._opened: list[int] = []
        self._to_purge: list[int] = []
        self._to_remove: list[int] = []
        # Who has reported, and is told what is theirs once it is stored; whether its place is new.
        self._to_tell: list[tuple[str, bool]] = []
        # Reports that wait for the end of their first pushes.
        self._reports: dict[str, tuple[int, set[int]]] = {}

    @property
    def ready(self) -> bool:
        """Whether the cluster has its record: requests before that are not taken."""
        return self.cluster.record is not None

    @property
    def level(self) -> Level:
        """How much is to be done."""
        record = self.cluster.record
        return Level.LIVELY if record is None else record.level

    def step(self, event: Event, *, unix_seconds: int, now_ms: int) -> list[Effect]:
        """Take one event; return what must be done, in this order."""
        self.now, self.now_ms = unix_seconds, now_ms
        # The result of a commit comes before any other event.
        assert (self._pending is not None) == isinstance(event, Committed)
        try:
            effects = self._on(event)
        except RequestError as error:
            request_id = getattr(event, "request_id", None)
            if request_id is None:
                raise
            assert self._pending is None
            return [Refuse(request_id, error)]
        if self._pending is None:
            effects += self._next_commit()
        assert not any(isinstance(effect, Commit) for effect in effects[:-1])
        return effects

    def _on(self, event: Event) -> list[Effect]:
        match event:
            case Started(new_uuid):
                return self._on_started(new_uuid)
            case NodeReported():
                return self._on_node_reported(event)
            case NodeLeaving():
                return self._on_node_leaving(event)
            case Proposed(proposals):
                self._proposals.add(proposals)
                return []
            case TimePassed():
                return self._on_time(event)
            case Committed(revision):
                return self._on_committed(revision)
            case PushEnded():
                return self._on_push_ended(event)
            case PushDue(node_id, table_id):
                return self.delivery.on_due(node_id, table_id)
            case OrderEnded():
                self.guardian.on_order_ended(event)
                return []
            case CollectDue():
                return self._on_collect_due()
            case RemotesChanged():
                return self.sources.on_remotes_changed(event)
            case _:
                if isinstance(event, ReplicaRequest):
                    return self._hands.on_request(event)
                if not isinstance(event, _PROGRESS):
                    check_changes_allowed(self.level)
                if isinstance(event, SourceRequest):
                    return self.sources.on_request(event)
                if isinstance(event, TargetRequest):
                    return self.targets.on_request(event)
                return self._tables.on_request(event)

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        if self.ready:
            self.cluster.check()
        self.delivery.check(settled=self._pending is None)
        self.nodes.check()
        self.guardian.check()
        self.moves.check()
        if self._pending is None:
            assert not self.sources.has_work
            assert not self.targets.has_work
            assert not self._half_made
            assert not self._proposals.has_work
            assert not self._opened
            assert not self._to_purge
            assert not self._to_remove
            assert not self._to_tell
            self._assignments.check()
        self.waiters.check()

    # Starting, and nodes.

    def _on_started(self, new_uuid: str) -> list[Effect]:
        effects: list[Effect] = [Warn(problem) for problem in self.cluster.problems]
        self.nodes.on_started(self.now_ms)
        for table in self.cluster.tables.values():
            if table.status is TableStatus.CREATING:
                self._half_made.append(table.table_id)
            elif table.purging:
                self._consider_removal(table)
        self.sources.on_started()
        if self.cluster.record is None:
            record = ClusterRecord(new_uuid, self.cluster.next_table_id)
            effects += self.store(Change(cluster=record))
        return effects

    def _on_node_reported(self, event: NodeReported) -> list[Effect]:
        """A node has come: what it led in an earlier life gets a new ballot before it serves."""
        report, effects = event.report, list[Effect]()
        earlier = self._reports.pop(report.node_id, None)
        if earlier is not None:
            effects.append(Answer(earlier[0], None))
        known = self.nodes.get(report.node_id)
        new_process = known is None or not same_process(known, report)
        node = self.nodes.on_reported(report, self.now_ms, watched=event.watched)
        self.delivery.on_reported(node.node_id)
        self.guardian.on_reported(node.node_id)
        self.moves.look_again()
        for table in self.cluster.tables.values():
            table_id = table.table_id
            if table.status is TableStatus.DROPPED:
                has = any(gpid.table_id == table_id for gpid in node.replicas)
                if has or node.node_id in self.cluster.members(table_id):
                    self.delivery.note(node.node_id, table_id)
                continue
            told = self._assignments.on_reported(node, table, new_process=new_process)
            self._assignments.place_new(table)
            if told:
                first = told if table.status is TableStatus.CREATING else ()
                self.delivery.note(node.node_id, table_id, told, first)
        # Only once the new ballots are stored: nobody hears of the old ones any more.
        self._to_tell.append((node.node_id, known is None or known.address != report.address))
        self._reports[node.node_id] = (event.request_id, set())
        return effects + self._on_unknown_tables(node)

    def _tell_reported(self) -> list[Effect]:
        """Tell a node that has reported what is stored of its own."""
        node_id, moved = self._to_tell.pop()
        node = self.nodes[node_id]
        effects = self.delivery.send_all(node_id)
        if moved:
            effects += self._tell_others(node)
        _, left = self._reports[node.node_id]
        if not node.watched:
            # One in this process is not ready before everything is in force.
            left |= self.delivery.under_way(node.node_id)
        if not left:
            effects += self._answer_report(node.node_id)
        return effects

    def _tell_others(self, node: Node) -> list[Effect]:
        """Tell those that have partitions with a node where it is: any one push says so."""
        told = {node.node_id}
        effects: list[Effect] = []
        for record, _ in self.guardian.named(node.node_id):
            gpid = record.gpid
            for member in [one for one in record.members if one not in told]:
                told.add(member)
                if self.nodes.is_alive(member):
                    self.delivery.note(member, gpid.table_id, {gpid.partition_index})
                    effects += self.delivery.send(member, gpid.table_id)
        return effects

    def _on_unknown_tables(self, node: Node) -> list[Effect]:
        """Never touch data that no record speaks of, nor give its table id to another."""
        record = self.cluster.record
        assert record is not None
        there = {gpid.table_id for gpid in node.replicas} - set(self.cluster.tables)
        strange = sorted(one for one in there if not record.was_given(one))
        if not strange:
            return []
        named = ", ".join(map(str, strange[:10]))
        effects: list[Effect] = [
            Warn(
                f"node {node.node_id} holds data of tables that are not recorded ({named}); "
                "it is kept"
            )
        ]
        if strange[-1] >= record.next_table_id:
            effects += self.store(Change(cluster=record.passing_over(strange[-1])))
        return effects

    def _on_node_leaving(self, event: NodeLeaving) -> list[Effect]:
        node = self.nodes.get(event.node_id)
        if node is None or node.process != event.process:
            return [Answer(event.request_id, None, (0,))]
        node.leaving = True
        self._look_at_nodes()
        effects = self.guardian.on_leaving(node)
        # Of what nobody else has, nobody else can take over.
        left = sum(len(record.members) > 1 for record, _ in self.guardian.named(node.node_id))
        return [*effects, Answer(event.request_id, None, (left,))]

    # Time.

    def _on_time(self, event: TimePassed) -> list[Effect]:
        effects: list[Effect] = []
        died = self.nodes.on_time(event.beacons, self.now_ms)
        for node in died:
            effects.append(Warn(f"node {node.node_id} is unalive: no beacon for a while"))
            self.delivery.on_died(node.node_id)
            if (report := self._reports.pop(node.node_id, None)) is not None:
                effects.append(Answer(report[0], None))
        if self.nodes.settle(self.now_ms) or died:
            self._look_at_nodes()
            effects += self._on_waited_for()
        for table in self.cluster.tables.values():
            if table.status is TableStatus.CREATING:
                self._assignments.place_new(table)
        effects += self.guardian.on_time()
        effects += self.moves.on_time()
        return effects + self._hands.on_time()

    def _on_waited_for(self) -> list[Effect]:
        """Nodes are not waited for any more: whatever waited for them alone goes on."""
        effects: list[Effect] = []
        for table_id in list(self.cluster.tables):
            effects += self._look_at_told(table_id)
        return effects

    def _look_at_nodes(self) -> None:
        self.guardian.look_at_all()
        self.moves.look_again()

    def _on_collect_due(self) -> list[Effect]:
        self.sources.on_time()
        for table in self.cluster.tables.values():
            expired = table.status is TableStatus.DROPPED and table.expires_at <= self.now
            if expired and not table.purging and self.level.balances:
                self._to_purge.append(table.table_id)
        return []

    # Tables.

    def begin_creation(
        self, request_id: int, table: TableRecord, more: tuple[Any, ...], need: Need
    ) -> list[Effect]:
        """Store a new table, with the next id, and make it."""
        record = self.cluster.record
        assert record is not None
        first = range(min(table.partition_count, CHANGE_OPERATIONS_MAX - 2))
        change = Change(
            cluster=replace(record, next_table_id=table.table_id + 1),
            tables=(table,),
            partitions=tuple(PartitionRecord(Gpid(table.table_id, index)) for index in first),
        )

        def then() -> list[Effect]:
            self.waiters.add(table.table_id, Waiter(request_id, table.version, more, need))
            self._half_made.append(table.table_id)
            return []

        return self.store(change, then)

    def told(
        self,
        request_id: int,
        table_id: int,
        more: tuple[Any, ...] = (),
        need: Need = Need.STORED,
    ) -> list[Effect]:
        """Tell a table's nodes what is stored, and answer the request when they know."""
        version = self.cluster.tables[table_id].version
        self.waiters.add(table_id, Waiter(request_id, version, more, need))
        effects = self.delivery.change(table_id)
        return effects + self.waiters.settle(table_id)

    # Commits.

    def store(self, change: Change, then: Callable[[], list[Effect]] | None = None) -> list[Effect]:
        """Commit a change; `then` says what follows."""
        assert self._pending is None
        touched = len(change.touched())
        assert 0 < touched <= CHANGE_OPERATIONS_MAX
        self._pending = _Pending(change, then)
        return [Commit(self.cluster.guards(change), change.puts(), change.deletes())]

    def _on_committed(self, revision: int) -> list[Effect]:
        pending, self._pending = self._pending, None
        assert pending is not None
        change = pending.change
        if any(self._is_other(table) for table in change.tables) or change.removed_table:
            self._look_at_nodes()
        self.cluster.apply(change, revision)
        effects = [] if pending.then is None else pending.then()
        orders = self.guardian.on_stored(change.partitions)
        for record in change.partitions:
            orders += self.moves.on_stored(record)
        # A commit is the last effect.
        place = len(effects) - 1 if self._pending is not None else len(effects)
        return effects[:place] + orders + effects[place:]

    def _is_other(self, table: TableRecord) -> bool:
        """Whether a table that is stored differs in what its partitions need."""
        old = self.cluster.tables.get(table.table_id)
        if old is None:
            return True
        return (old.status, old.replica_count) != (table.status, table.replica_count)

    def _next_commit(self) -> list[Effect]:
        """Return the next commit that the records ask for, if there is one."""
        effects: list[Effect] = []
        while self._pending is None:
            if self._half_made:
                effects += self._add_partitions(self._half_made[0])
            elif self._assignments.has_work:
                effects += self._assignments.next_commit()
            elif self._to_tell:
                effects += self._tell_reported()
            elif self._proposals.has_work:
                effects += self._proposals.next_commit()
            elif self._opened:
                effects += self._make_available(self._opened.pop(0))
            elif self._to_purge:
                effects += self._begin_purge()
            elif self._to_remove:
                effects += self._remove_records(self._to_remove[0])
            elif self.sources.has_work:
                effects += self.sources.next_commit()
            elif self.targets.has_work:
                effects += self.targets.next_commit()
            else:
                break
        return effects

    def _add_partitions(self, table_id: int) -> list[Effect]:
        table = self.cluster.tables[table_id]
        missing = self.cluster.missing(table)[:CHANGE_OPERATIONS_MAX]
        if not missing:
            self._half_made.remove(table_id)
            self._assignments.place_new(table)
            return []
        partitions = tuple(PartitionRecord(Gpid(table_id, index)) for index in missing)
        return self.store(Change(partitions=partitions))

    def _make_available(self, table_id: int) -> list[Effect]:
        table = self.cluster.tables[table_id].changed(status=TableStatus.AVAILABLE)
        return self.store(Change(tables=(table,)), lambda: self.delivery.change(table_id))

    def _begin_purge(self) -> list[Effect]:
        batch = self._to_purge[:CHANGE_OPERATIONS_MAX]
        del self._to_purge[: len(batch)]

        def then() -> list[Effect]:
            effects: list[Effect] = []
            for table_id in batch:
                # Also those who have leftovers.
                strays = self._with_strays(table_id)
                effects += self.delivery.change(table_id, former=strays)
                self._consider_removal(self.cluster.tables[table_id])
                self.sources.on_table_changed(table_id)
            return effects

        marked = tuple(self.cluster.tables[one].changed(purging=True) for one in batch)
        return self.store(Change(tables=marked), then)

    def _with_strays(self, table_id: int) -> set[tuple[str, int]]:
        return {
            (node.node_id, gpid.partition_index)
            for node in self.nodes.alive
            for gpid in node.strays
            if gpid.table_id == table_id
        }

    def _remove_records(self, table_id: int) -> list[Effect]:
        """Remove the partitions' records in batches, and the table's with the last of them."""
        left = list(self.cluster.partitions[table_id])
        batch = tuple(Gpid(table_id, index) for index in left[: CHANGE_OPERATIONS_MAX - 1])
        if len(batch) < len(left):
            return self.store(Change(removed_partitions=batch))
        self._to_remove.remove(table_id)

        def then() -> list[Effect]:
            self.delivery.forget(table_id)
            self.nodes.on_purged(table_id)
            self.sources.on_table_changed(table_id)
            return self.waiters.end(table_id)

        return self.store(Change(removed_partitions=batch, removed_table=table_id), then)

    def _consider_removal(self, table: TableRecord) -> None:
        """Remove the records when every node that is there has removed its rows."""
        table_id = table.table_id
        if table_id not in self._to_remove and self.delivery.acknowledged(table_id, table.version):
            self._to_remove.append(table_id)

    # Pushes and answers.

    def _on_push_ended(self, event: PushEnded) -> list[Effect]:
        node_id, table_id = event.node_id, event.table_id
        effects = self.delivery.on_ended(event.push_id, node_id, table_id, event.error)
        if effects is None:
            return []
        effects += self._look_at_told(table_id)
        report = self._reports.get(node_id)
        if report is not None and self.delivery.quiet(node_id, table_id):
            report[1].discard(table_id)
            if not report[1]:
                effects += self._answer_report(node_id)
        return effects

    def _look_at_told(self, table_id: int) -> list[Effect]:
        """Go on with whatever waits until a table's nodes know what is stored."""
        table = self.cluster.tables.get(table_id)
        if table is not None and self.delivery.acknowledged(table_id, table.version):
            if table.status is TableStatus.CREATING:
                if table_id not in self._opened and self.delivery.led(table_id):
                    self._opened.append(table_id)
            elif table.purging:
                self._consider_removal(table)
            self.sources.on_table_changed(table_id)
            self.targets.on_obeyed(table_id)
        return self.waiters.settle(table_id)

    def _answer_report(self, node_id: str) -> list[Effect]:
        request_id, left = self._reports.pop(node_id)
        assert not left
        return [Answer(request_id, None)]
