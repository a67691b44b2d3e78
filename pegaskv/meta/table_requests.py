"""pure: what clients ask of tables: create, drop, recall, rename, envs, replica count.

Whatever is wrong with a request is said before anything is stored; what is stored is told to
the table's nodes, and then answered.
"""

from collections.abc import Mapping
from typing import Any, assert_never

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.types import TableStatus
from pegaskv.meta import envs, tables
from pegaskv.meta.assignment import Assignments
from pegaskv.meta.cluster import Change, TableRecord
from pegaskv.meta.effects import Answer, Effect
from pegaskv.meta.events import (
    ClearEnvs,
    CreateTable,
    DeleteEnvs,
    DropTable,
    OpenTable,
    RecallTable,
    RenameTable,
    SetEnvs,
    SetReplicaCount,
    TableRequest,
)
from pegaskv.meta.host import Host
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.waiting import Need, Waiter

__all__ = ["TableRequests"]


class TableRequests:
    """Requests about tables; `host` stores and tells."""

    def __init__(self, host: Host, assignments: Assignments, options: MetaOptions) -> None:
        self._host = host
        self._assignments = assignments
        self._options = options

    def on_request(self, event: TableRequest) -> list[Effect]:
        """Take a request."""
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
                table = tables.find_available(self._host.cluster, name)
                new = envs.merged(table.envs, envs.checked(values))
                return self._set_envs(request_id, table, new, warn=True)
            case DeleteEnvs(request_id, name, names):
                table = tables.find_available(self._host.cluster, name)
                envs.check_deleted(names, table.envs)
                left = {env: value for env, value in table.envs.items() if env not in names}
                return self._set_envs(request_id, table, left)
            case ClearEnvs(request_id, name, prefix):
                table = tables.find_available(self._host.cluster, name)
                return self._set_envs(request_id, table, envs.cleared(table.envs, prefix))
            case OpenTable(request_id, name):
                return self._on_open(request_id, name)
            case SetReplicaCount():
                return self._on_replica_count(event)
            case _:
                assert_never(event)

    def _on_create(self, event: CreateTable) -> list[Effect]:
        options = self._options
        name = tables.check_name(event.name)
        count = tables.check_partition_count(
            event.partition_count or options.default_partition_count
        )
        replicas = event.replica_count or options.default_replica_count
        values = envs.merged({}, envs.checked(event.envs))
        table = self._host.cluster.named(name)
        if table is not None:
            return self._on_create_existing(event, table, count, replicas, values)
        tables.check_replica_count(replicas, len(self._host.nodes.takers))
        tables.check_room(self._host.cluster, count, options)
        table = TableRecord(
            table_id=self._host.cluster.next_table_id,
            name=name,
            status=TableStatus.CREATING,
            partition_count=count,
            replica_count=replicas,
            envs=values,
            created_at=self._host.now,
        )
        more = (True, envs.warnings(values, replicas))
        return self._host.begin_creation(event.request_id, table, more, Need.AVAILABLE)

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
                self._host.waiters.add(table.table_id, waiter)
                return self._host.waiters.settle(table.table_id)
            return [Answer(event.request_id, table.info(), more)]
        if table.status is TableStatus.CREATING:
            raise tables.being_created(table, self._host.delivery.failure(table.table_id))
        raise tables.exists(table, other=other)

    def _on_drop(self, event: DropTable) -> list[Effect]:
        reserve = tables.reserve_seconds(event.reserve_seconds, self._options)
        if event.missing_is_fine and self._host.cluster.named(event.name) is None:
            return [Answer(event.request_id, None)]
        table = tables.find_available(self._host.cluster, event.name)
        if not event.force:
            tables.check_takes_no_part(self._host.cluster, table)
        dropped = table.changed(
            status=TableStatus.DROPPED,
            dropped_at=self._host.now,
            # Never 0, which would mean "not dropped".
            expires_at=max(1, self._host.now + reserve),
        )
        return self._change_table(event.request_id, dropped)

    def _on_open(self, request_id: int, name: str) -> list[Effect]:
        table = tables.find_available(self._host.cluster, name)
        more = (tables.open_warnings(table),)
        if not table.follower:
            return [Answer(request_id, table.info(), more)]
        return self._change_table(request_id, table.changed(follower=False), more)

    def _on_recall(self, request_id: int, table_id: int, new_name: str | None) -> list[Effect]:
        table = tables.recallable(self._host.cluster, table_id, self._host.now)
        name = table.name if new_name is None else tables.check_name(new_name)
        tables.name_taken(
            self._host.cluster,
            name,
            hint=f"recall it under another name: `recall {table_id} NEW_NAME`",
        )
        back = table.changed(name=name, status=TableStatus.AVAILABLE, dropped_at=0, expires_at=0)

        def then() -> list[Effect]:
            # As after a restart: whoever served it does not go on in its old role.
            if not self._assignments.renew_all(back):
                return self._host.told(request_id, back.table_id)
            self._host.waiters.add(table_id, Waiter(request_id, back.version + 1, ()))
            return []

        return self._host.store(Change(tables=(back,)), then)

    def _on_rename(self, request_id: int, name: str, new_name: str) -> list[Effect]:
        table = tables.find_available(self._host.cluster, name)
        tables.check_name(new_name)
        if new_name == name:
            raise InvalidArgument(f"the table is named `{name}` already")
        tables.name_taken(
            self._host.cluster, new_name, hint="choose another name, or rename that table"
        )
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
        return self._host.store(
            Change(tables=(table,)), lambda: self._host.told(request_id, table.table_id, more)
        )

    def _on_replica_count(self, event: SetReplicaCount) -> list[Effect]:
        """Store how many there shall be; the guardian sees to it."""
        table = tables.find_available(self._host.cluster, event.name)
        # Fewer are always possible.
        alive = max(len(self._host.nodes.takers), table.replica_count)
        count = tables.check_replica_count(event.count, alive)
        more = (envs.warnings(table.envs, count),)
        if count == table.replica_count:
            return [Answer(event.request_id, table.info(), more)]
        return self._change_table(event.request_id, table.changed(replica_count=count), more)
