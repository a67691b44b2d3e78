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
  its stored ballot was 0, or its table was never available;
* a purge is stored before any row is removed, and the records go after the rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, assert_never

from pegaskv.base.errors import InvalidArgument, RequestError
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_meta import NodeReport
from pegaskv.meta import envs, tables
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
    ClearEnvs,
    CollectDue,
    Committed,
    CreateTable,
    DeleteEnvs,
    DropTable,
    Event,
    NodeReported,
    OpenTable,
    PushDue,
    PushEnded,
    RecallTable,
    RemotesChanged,
    RenameTable,
    SetEnvs,
    SourceRequest,
    Started,
    TableRequest,
    TargetRequest,
)
from pegaskv.meta.host import Identity
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.sources import Sources
from pegaskv.meta.targets import Targets
from pegaskv.meta.waiting import Need, Waiter, Waiters

__all__ = ["MetaMachine"]


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
        self.delivery = Delivery(cluster, options, next_push_id=next_push_id)
        self.identity = identity
        self.sources = Sources(self)
        self.targets = Targets(self, options)
        self._options = options
        self._pending: _Pending | None = None
        self.now = 0
        # Work that the records ask for.
        self._half_made: list[int] = []
        self._unassigned: dict[int, dict[int, str]] = {}
        self._opened: list[int] = []
        self._to_purge: list[int] = []
        self._to_remove: list[int] = []
        # Of tables whose assignment takes more than one commit.
        self._assigned: dict[int, tuple[set[int], set[int]]] = {}
        # Requests.
        self._waiters = Waiters(cluster, self.delivery)
        self._reports: dict[str, tuple[int, set[int]]] = {}

    @property
    def ready(self) -> bool:
        """Whether the cluster has its record: requests before that are not taken."""
        return self.cluster.record is not None

    def step(self, event: Event, *, unix_seconds: int) -> list[Effect]:
        """Take one event; return what must be done, in this order."""
        self.now = unix_seconds
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
            case NodeReported(request_id, report):
                return self._on_node_reported(request_id, report)
            case Committed(revision):
                return self._on_committed(revision)
            case PushEnded():
                return self._on_push_ended(event)
            case PushDue(node_id, table_id):
                return self.delivery.on_due(node_id, table_id)
            case CollectDue():
                return self._on_collect_due()
            case RemotesChanged():
                return self.sources.on_remotes_changed(event)
            case _:
                if isinstance(event, SourceRequest):
                    return self.sources.on_request(event)
                if isinstance(event, TargetRequest):
                    return self.targets.on_request(event)
                return self._on_request(event)

    def _on_request(self, event: TableRequest) -> list[Effect]:
        match event:
            case CreateTable():
                return self._on_create(event)
            case DropTable():
                return self._on_drop(event)
            case RecallTable(request_id, table_id, new_name):
                return self._on_recall(request_id, table_id, new_name)
            case RenameTable(request_id, name, new_name):
                return self._on_rename(request_id, name, new_name)
            case SetEnvs(request_id, name, values):
                table = tables.find_available(self.cluster, name)
                new = envs.merged(table.envs, envs.checked(values))
                return self._set_envs(request_id, table, new, warn=True)
            case DeleteEnvs(request_id, name, names):
                table = tables.find_available(self.cluster, name)
                envs.check_deleted(names, table.envs)
                left = {env: value for env, value in table.envs.items() if env not in names}
                return self._set_envs(request_id, table, left)
            case ClearEnvs(request_id, name, prefix):
                table = tables.find_available(self.cluster, name)
                return self._set_envs(request_id, table, envs.cleared(table.envs, prefix))
            case OpenTable(request_id, name):
                return self._on_open(request_id, name)
            case _:
                assert_never(event)

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        if self.ready:
            self.cluster.check()
        if self._pending is None:
            assert not self.sources.has_work
            assert not self.targets.has_work
        self.delivery.check(settled=self._pending is None)
        if self._pending is None:
            assert not self._half_made
            assert not self._unassigned
            assert not self._assigned
            assert not self._opened
            assert not self._to_purge
            assert not self._to_remove
        self._waiters.check()

    # Starting, and nodes.

    def _on_started(self, new_uuid: str) -> list[Effect]:
        effects: list[Effect] = [Warn(problem) for problem in self.cluster.problems]
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

    def _on_node_reported(self, request_id: int, report: NodeReport) -> list[Effect]:
        """A node has started: all that is its own gets a new ballot before it serves."""
        effects: list[Effect] = []
        earlier = self._reports.pop(report.node_id, None)
        if earlier is not None:
            effects.append(Answer(earlier[0], None))
        node = self.delivery.on_reported(report)
        told: set[int] = set()
        for table in self.cluster.tables.values():
            if table.status is not TableStatus.DROPPED:
                if self._plan(table, node.node_id):
                    told.add(table.table_id)
            elif node.node_id in self.cluster.members(table.table_id):
                told.add(table.table_id)
                effects += self.delivery.send(node.node_id, table.table_id)
        self._reports[node.node_id] = (request_id, told)
        if not told:
            effects += self._answer_report(node.node_id)
        return effects + self._on_unknown_tables(node.node_id, node.ballots)

    def _on_unknown_tables(self, node_id: str, ballots: Mapping[Gpid, int]) -> list[Effect]:
        """Never touch data that no record speaks of, nor give its table id to another."""
        strange = sorted({gpid.table_id for gpid in ballots} - set(self.cluster.tables))
        if not strange:
            return []
        named = ", ".join(map(str, strange[:10]))
        effects: list[Effect] = [
            Warn(f"node {node_id} holds data of tables that are not recorded ({named}); it is kept")
        ]
        record = self.cluster.record
        assert record is not None
        if strange[-1] >= record.next_table_id:
            following = replace(record, next_table_id=strange[-1] + 1)
            effects += self.store(Change(cluster=following))
        return effects

    def _plan(self, table: TableRecord, only: str | None = None) -> bool:
        """Plan new ballots: all of the table's, or those that concern one node."""
        wanted: dict[int, str] = {}
        load: dict[str, int] = {}
        for index, partition in self.cluster.partitions[table.table_id].items():
            primary = partition.primary
            if partition.ballot == 0 and self.delivery.nodes:
                load = load or self._load()
                primary = min(load, key=lambda node_id: (load[node_id], node_id))
                load[primary] += 1
            if primary is not None and primary in self.delivery.nodes and only in (None, primary):
                wanted[index] = primary
        if wanted:
            self._unassigned[table.table_id] = wanted
        return bool(wanted)

    def _load(self) -> dict[str, int]:
        """Return how many partitions each node is primary of, or soon will be."""
        load = dict.fromkeys(self.delivery.nodes, 0)
        stored = [one.primary for all_ in self.cluster.partitions.values() for one in all_.values()]
        planned = [node_id for wanted in self._unassigned.values() for node_id in wanted.values()]
        for node_id in [*stored, *planned]:
            if node_id in load:
                load[node_id] += 1
        return load

    # Requests.

    def _on_create(self, event: CreateTable) -> list[Effect]:
        options = self._options
        name = tables.check_name(event.name)
        count = tables.check_partition_count(
            event.partition_count or options.default_partition_count
        )
        replicas = event.replica_count or options.default_replica_count
        values = envs.merged({}, envs.checked(event.envs))
        table = self.cluster.named(name)
        if table is not None:
            return self._on_create_existing(event, table, count, replicas, values)
        tables.check_replica_count(replicas, len(self.delivery.nodes))
        tables.check_room(self.cluster, count, options)
        table = TableRecord(
            table_id=self.cluster.next_table_id,
            name=name,
            status=TableStatus.CREATING,
            partition_count=count,
            replica_count=replicas,
            envs=values,
            created_at=self.now,
        )
        more = (True, envs.warnings(values, replicas))
        return self.begin_creation(event.request_id, table, more, Need.AVAILABLE)

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
            self._waiters.add(table.table_id, Waiter(request_id, table.version, more, need))
            self._half_made.append(table.table_id)
            return []

        return self.store(change, then)

    def _on_create_existing(
        self,
        event: CreateTable,
        table: TableRecord,
        count: int,
        replicas: int,
        values: Mapping[str, str],
    ) -> list[Effect]:
        other = tables.differences(table, count, replicas, values)
        if event.same_is_fine and not other:
            more = (False, envs.warnings(table.envs, table.replica_count))
            if table.status is TableStatus.CREATING:
                waiter = Waiter(event.request_id, table.version, more, need=Need.AVAILABLE)
                self._waiters.add(table.table_id, waiter)
                return self._waiters.settle(table.table_id)
            return [Answer(event.request_id, table.info(), more)]
        if table.status is TableStatus.CREATING:
            raise tables.being_created(table, self.delivery.failure(table.table_id))
        raise tables.exists(table, other=other)

    def _on_drop(self, event: DropTable) -> list[Effect]:
        reserve = tables.reserve_seconds(event.reserve_seconds, self._options)
        if event.missing_is_fine and self.cluster.named(event.name) is None:
            return [Answer(event.request_id, None)]
        table = tables.find_available(self.cluster, event.name)
        if not event.force:
            tables.check_takes_no_part(self.cluster, table)
        dropped = table.changed(
            status=TableStatus.DROPPED,
            dropped_at=self.now,
            # Never 0, which would mean "not dropped".
            expires_at=max(1, self.now + reserve),
        )
        return self._change_table(event.request_id, dropped)

    def _on_open(self, request_id: int, name: str) -> list[Effect]:
        table = tables.find_available(self.cluster, name)
        more = (tables.open_warnings(table),)
        if not table.follower:
            return [Answer(request_id, table.info(), more)]
        return self._change_table(request_id, table.changed(follower=False), more)

    def _on_recall(self, request_id: int, table_id: int, new_name: str | None) -> list[Effect]:
        table = tables.recallable(self.cluster, table_id, self.now)
        name = table.name if new_name is None else tables.check_name(new_name)
        tables.name_taken(
            self.cluster, name, hint=f"recall it under another name: `recall {table_id} NEW_NAME`"
        )
        back = table.changed(name=name, status=TableStatus.AVAILABLE, dropped_at=0, expires_at=0)

        def then() -> list[Effect]:
            # As after a restart: whoever served it does not go on in its old role.
            self._plan(back)
            if table_id not in self._unassigned:
                return self.told(request_id, back.table_id)
            self._waiters.add(table_id, Waiter(request_id, back.version + 1, ()))
            return []

        return self.store(Change(tables=(back,)), then)

    def _on_rename(self, request_id: int, name: str, new_name: str) -> list[Effect]:
        table = tables.find_available(self.cluster, name)
        tables.check_name(new_name)
        if new_name == name:
            raise InvalidArgument(f"the table is named `{name}` already")
        tables.name_taken(self.cluster, new_name, hint="choose another name, or rename that table")
        return self._change_table(request_id, table.changed(name=new_name))

    def _set_envs(
        self, request_id: int, table: TableRecord, values: Mapping[str, str], *, warn: bool = False
    ) -> list[Effect]:
        more = (envs.warnings(values, table.replica_count),) if warn else ()
        if values == table.envs:
            return [Answer(request_id, table.info(), more)]
        return self._change_table(request_id, table.changed(envs=dict(values)), more)

    def _change_table(
        self, request_id: int, table: TableRecord, more: tuple[Any, ...] = ()
    ) -> list[Effect]:
        """Store a table, tell its nodes, and answer when they know."""
        return self.store(
            Change(tables=(table,)), lambda: self.told(request_id, table.table_id, more)
        )

    def told(
        self,
        request_id: int,
        table_id: int,
        more: tuple[Any, ...] = (),
        need: Need = Need.STORED,
    ) -> list[Effect]:
        """Tell a table's nodes what is stored, and answer the request when they know."""
        version = self.cluster.tables[table_id].version
        self._waiters.add(table_id, Waiter(request_id, version, more, need))
        effects = self.delivery.change(table_id, set(), first=set())
        return effects + self._waiters.settle(table_id)

    # Time.

    def _on_collect_due(self) -> list[Effect]:
        self.sources.on_time()
        for table in self.cluster.tables.values():
            expired = table.status is TableStatus.DROPPED and table.expires_at <= self.now
            if expired and not table.purging:
                self._to_purge.append(table.table_id)
        return []

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
        self.cluster.apply(pending.change, revision)
        return [] if pending.then is None else pending.then()

    def _next_commit(self) -> list[Effect]:
        """Return the next commit that the records ask for, if there is one."""
        effects: list[Effect] = []
        while self._pending is None:
            if self._half_made:
                effects += self._add_partitions(self._half_made[0])
            elif self._unassigned:
                effects += self._assign()
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
            self._plan(table)
            return []
        partitions = tuple(PartitionRecord(Gpid(table_id, index)) for index in missing)
        return self.store(Change(partitions=partitions))

    def _assign(self) -> list[Effect]:
        """Give out new ballots, of several tables at once; whole tables are then pushed."""
        room = CHANGE_OPERATIONS_MAX
        changed_tables: list[TableRecord] = []
        changed: list[PartitionRecord] = []
        done: list[int] = []
        for table_id, wanted in list(self._unassigned.items()):
            if room < 2:
                break
            table = self.cluster.tables[table_id]
            indices, first = self._assigned.setdefault(table_id, (set(), set()))
            taken = list(wanted.items())[: room - 1]
            for index, node_id in taken:
                old = self.cluster.partitions[table_id][index]
                if old.ballot == 0 or table.status is TableStatus.CREATING:
                    first.add(index)
                indices.add(index)
                reported = self.delivery.nodes[node_id].ballots.get(old.gpid, 0)
                ballot = max(old.ballot, reported) + 1
                changed.append(replace(old, ballot=ballot, primary=node_id))
                del wanted[index]
            changed_tables.append(table.changed())
            room -= 1 + len(taken)
            if not wanted:
                del self._unassigned[table_id]
                done.append(table_id)
        change = Change(tables=tuple(changed_tables), partitions=tuple(changed))
        return self.store(change, lambda: self._on_assigned(done))

    def _on_assigned(self, table_ids: list[int]) -> list[Effect]:
        effects: list[Effect] = []
        for table_id in table_ids:
            indices, first = self._assigned.pop(table_id)
            version = self.cluster.tables[table_id].version
            # Whoever waits for the table waits for its partitions.
            self._waiters.raise_version(table_id, version)
            effects += self.delivery.change(table_id, indices, first=first)
        return effects

    def _make_available(self, table_id: int) -> list[Effect]:
        table = self.cluster.tables[table_id].changed(status=TableStatus.AVAILABLE)
        return self.store(
            Change(tables=(table,)),
            lambda: self.delivery.change(table_id, set(), first=set()),
        )

    def _begin_purge(self) -> list[Effect]:
        batch = self._to_purge[:CHANGE_OPERATIONS_MAX]
        del self._to_purge[: len(batch)]

        def then() -> list[Effect]:
            effects: list[Effect] = []
            for table_id in batch:
                effects += self.delivery.change(table_id, set(), first=set())
                self._consider_removal(self.cluster.tables[table_id])
                self.sources.on_table_changed(table_id)
            return effects

        marked = tuple(self.cluster.tables[one].changed(purging=True) for one in batch)
        return self.store(Change(tables=marked), then)

    def _remove_records(self, table_id: int) -> list[Effect]:
        """Remove the partitions' records in batches, and the table's with the last of them."""
        left = list(self.cluster.partitions[table_id])
        batch = tuple(Gpid(table_id, index) for index in left[: CHANGE_OPERATIONS_MAX - 1])
        if len(batch) < len(left):
            return self.store(Change(removed_partitions=batch))
        self._to_remove.remove(table_id)

        def then() -> list[Effect]:
            self.delivery.forget(table_id)
            self.sources.on_table_changed(table_id)
            return self._waiters.end(table_id)

        return self.store(Change(removed_partitions=batch, removed_table=table_id), then)

    def _consider_removal(self, table: TableRecord) -> None:
        """Remove the records when every node has removed its rows."""
        if self.delivery.acknowledged(table.table_id, table.version):
            self._to_remove.append(table.table_id)

    # Pushes and answers.

    def _on_push_ended(self, event: PushEnded) -> list[Effect]:
        node_id, table_id = event.node_id, event.table_id
        effects = self.delivery.on_ended(event.push_id, node_id, table_id, event.error)
        if effects is None:
            return []
        table = self.cluster.tables.get(table_id)
        if table is not None and self.delivery.acknowledged(table_id, table.version):
            if table.status is TableStatus.CREATING:
                self._opened.append(table_id)
            elif table.purging:
                self._consider_removal(table)
            self.sources.on_table_changed(table_id)
            self.targets.on_obeyed(table_id)
        effects += self._waiters.settle(table_id)
        report = self._reports.get(node_id)
        if report is not None and self.delivery.quiet(node_id, table_id):
            report[1].discard(table_id)
            if not report[1]:
                effects += self._answer_report(node_id)
        return effects

    def _answer_report(self, node_id: str) -> list[Effect]:
        request_id, left = self._reports.pop(node_id)
        assert not left
        return [Answer(request_id, None)]
