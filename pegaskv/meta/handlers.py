"""What answers each operation of the meta server.

Whoever only looks is answered from memory at once. A change is read here, queued, and
answered when the machine has done it.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from random import Random
from typing import Any, Final, Protocol

from pegaskv.base.errors import DuplicationExists, RequestError
from pegaskv.base.types import TableInfo, TableStatus
from pegaskv.codec.messages_duplication import UUID_BYTES
from pegaskv.codec.messages_meta import table_to_wire
from pegaskv.codec.operations import Operation
from pegaskv.meta import tables, views
from pegaskv.meta.diagnosis import diagnose
from pegaskv.meta.duplication_views import Views, cluster_map
from pegaskv.meta.events import ModifyDuplication, Request
from pegaskv.meta.live import NO_STATES, LiveStates
from pegaskv.meta.machine import MetaMachine
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.requests import (
    no_fields,
    one_flag,
    one_name,
    one_name_or_id,
    one_name_or_none,
    pattern_and_match,
    read_request,
)
from pegaskv.net.connection import Handler
from pegaskv.runtime.tasks import TaskScope

__all__ = ["Connection", "Handlers", "Reply", "States"]

_TABLE_CHANGES: Final = (
    Operation.CREATE_TABLE,
    Operation.DROP_TABLE,
    Operation.RECALL_TABLE,
    Operation.RENAME_TABLE,
    Operation.SET_ENVS,
    Operation.DELETE_ENVS,
    Operation.CLEAR_ENVS,
    Operation.OPEN_TABLE,
    Operation.SET_REPLICA_COUNT,
)

# What a request gets: its answer's table and further fields, or an error.
Reply = Callable[[TableInfo | None, tuple[Any, ...], RequestError | None], None]
# What of that is on the wire, with what the replica servers say if that is asked for.
_Render = Callable[[TableInfo | None, tuple[Any, ...], LiveStates], tuple[Any, ...]]
# Asks the replica servers of these tables.
States = Callable[[Collection[int]], Awaitable[LiveStates]]

_ABOUT_DUPLICATIONS: Final = (Operation.ADD_DUPLICATION, Operation.MODIFY_DUPLICATION)


class Connection(Protocol):
    """What a handler needs of a client's connection."""

    out: list[Any]

    def defer(self) -> None:
        """The request at hand is answered later."""
        ...

    def finish(self, reply: tuple[Any, ...]) -> None:
        """Answer a deferred request."""
        ...

    def flush(self) -> None:
        """Send the answers."""
        ...

    def error(self, request_id: int, error: RequestError) -> tuple[Any, ...]:
        """Return the reply that carries `error`."""
        ...


class Handlers:
    """Reads requests and renders answers; `machine` returns the one of now.

    `queue` takes what makes the event of a request id, and who gets its answer; `trouble`
    returns why changes are refused at the moment; `states` asks the replica servers, by tasks
    of `scope`.
    """

    def __init__(
        self,
        machine: Callable[[], MetaMachine],
        *,
        queue: Callable[[Callable[[int], Request], Reply], None],
        random: Random,
        options: MetaOptions,
        states: States,
        scope: TaskScope,
        duplications: Views,
        trouble: Callable[[], BaseException | None],
    ) -> None:
        self._get_machine = machine
        self._queue = queue
        self._random = random
        self._options = options
        self._states = states
        self._scope = scope
        self._duplications = duplications
        self._trouble = trouble

    @property
    def _machine(self) -> MetaMachine:
        return self._get_machine()

    def table(self) -> dict[int, Handler]:
        """Return the handler of each operation."""
        found: dict[int, Handler] = {
            Operation.QUERY_CONFIG: self._query_config,
            Operation.LIST_TABLES: self._list_tables,
            Operation.TABLE_INFO: self._table_info,
            Operation.LIST_NODES: self._list_nodes,
            Operation.CLUSTER_INFO: self._cluster_info,
            Operation.QUERY_DUPLICATION: self._query_duplication,
            Operation.LIST_DUPLICATIONS: self._list_duplications,
            Operation.LIST_CLUSTERS: self._list_clusters,
            Operation.GET_META_LEVEL: self._get_level,
            Operation.DIAGNOSE: self._diagnose,
        }
        renders: dict[Operation, _Render] = dict.fromkeys(_TABLE_CHANGES, self._render_table)
        renders |= {
            Operation.ADD_DUPLICATION: self._render_duplication,
            Operation.MODIFY_DUPLICATION: self._render_duplication,
            Operation.ADD_CLUSTER: self._render_cluster,
            Operation.REMOVE_CLUSTER: self._render_cluster,
            Operation.ENSURE_DUPLICATION: self._render_ensured,
            Operation.FORGET_DUPLICATION: self._render_more,
            Operation.SET_META_LEVEL: self._render_more,
            Operation.BALANCE: self._render_more,
            Operation.PROPOSE_CHANGE: self._render_more,
        }
        for operation, render in renders.items():
            found[operation] = self._changing(operation, render)
        return found

    # Changes.

    def _changing(self, operation: Operation, render: _Render) -> Handler:
        def handle(connection: Connection, message: list[Any]) -> None:
            wire_id, _, _, *fields = message

            def reply(
                table: TableInfo | None, more: tuple[Any, ...], error: RequestError | None
            ) -> None:
                if isinstance(error, DuplicationExists):
                    ids = [error.existing["table_id"]]
                    self._finish_live(
                        connection, wire_id, ids, lambda live: self._exists(error, live)
                    )
                elif error is not None:
                    connection.finish(connection.error(wire_id, error))
                    connection.flush()
                elif operation in _ABOUT_DUPLICATIONS:
                    ids = [more[0][0]]
                    self._finish_live(
                        connection, wire_id, ids, lambda live: render(table, more, live)
                    )
                else:
                    connection.finish((wire_id, 0, *render(table, more, NO_STATES)))
                    connection.flush()

            if operation is Operation.MODIFY_DUPLICATION:
                event = self._read(operation, 0, fields)
                assert isinstance(event, ModifyDuplication)
                if event.action == "start":
                    connection.defer()
                    self._scope.start("start", self._start(event, reply))
                    return
            self._queue(lambda request_id: self._read(operation, request_id, fields), reply)
            connection.defer()

        return handle

    def _read(self, operation: Operation, request_id: int, fields: list[Any]) -> Request:
        new_uuid = self._random.getrandbits(128).to_bytes(UUID_BYTES, "big")
        return read_request(operation, request_id, fields, new_uuid=new_uuid)

    async def _start(self, event: ModifyDuplication, reply: Reply) -> None:
        """Queue the start of a duplication, with whether it stands still at the moment."""
        table = self._machine.cluster.named(event.table)
        live = await self._states([] if table is None else [table.table_id])
        stalled = self._duplications.stalled(event.table, event.dupid, live)
        try:
            self._queue(
                lambda request_id: replace(event, request_id=request_id, stalled=stalled), reply
            )
        except RequestError as error:
            reply(None, (), error)

    def _exists(self, error: DuplicationExists, live: LiveStates) -> tuple[Any, ...]:
        existing = error.existing
        entry = self._machine.cluster.book.get(existing["table_id"], existing["dupid"])
        if entry is not None:
            error.details["existing"] = self._duplications.entry(entry, live)
        raise error

    def _render_table(
        self, table: TableInfo | None, more: tuple[Any, ...], _live: LiveStates
    ) -> tuple[Any, ...]:
        return (None if table is None else table_to_wire(table), *more)

    def _render_duplication(
        self, _table: TableInfo | None, more: tuple[Any, ...], live: LiveStates
    ) -> tuple[Any, ...]:
        (table_id, dupid), warnings, changed = more
        # One that was removed may be gone since: then it is shown as the change has left it.
        entry = self._machine.cluster.book.get(table_id, dupid) or changed
        return (self._duplications.entry(entry, live), warnings)

    def _render_cluster(
        self, _table: TableInfo | None, more: tuple[Any, ...], _live: LiveStates
    ) -> tuple[Any, ...]:
        return (cluster_map(self._machine.cluster, more[0]),)

    def _render_ensured(
        self, table: TableInfo | None, more: tuple[Any, ...], _live: LiveStates
    ) -> tuple[Any, ...]:
        outcome, text = more
        table_id, count = (0, 0) if table is None else (table.table_id, table.partition_count)
        record = self._machine.cluster.record
        assert record is not None
        own_id = self._machine.identity.cluster_id
        return (outcome, table_id, count, own_id, record.uuid, text)

    def _render_more(
        self, _table: TableInfo | None, more: tuple[Any, ...], _live: LiveStates
    ) -> tuple[Any, ...]:
        return more

    # Looking.

    def _show_live(
        self,
        connection: Connection,
        message: list[Any],
        table_ids: Collection[int],
        render: Callable[[LiveStates], tuple[Any, ...]],
    ) -> None:
        """Answer by what the replica servers of these tables say now."""
        connection.defer()
        self._finish_live(connection, message[0], table_ids, render)

    def _finish_live(
        self,
        connection: Connection,
        wire_id: int,
        table_ids: Collection[int],
        render: Callable[[LiveStates], tuple[Any, ...]],
    ) -> None:
        async def finish() -> None:
            live = await self._states(table_ids)
            try:
                reply = (wire_id, 0, *render(live))
            except RequestError as error:
                reply = connection.error(wire_id, error)
            connection.finish(reply)
            connection.flush()

        self._scope.start("show replicas", finish())

    def _query_config(self, connection: Connection, message: list[Any]) -> None:
        name = one_name_or_id(message[3:])
        connection.out.append((message[0], 0, *views.query_config(self._machine, name)))

    def _table_info(self, connection: Connection, message: list[Any]) -> None:
        name = one_name(message[3:])
        table = tables.find(self._machine.cluster, name)

        def render(live: LiveStates) -> tuple[Any, ...]:
            return views.table_info(self._machine, name, live, self._duplications)

        self._show_live(connection, message, [table.table_id], render)

    def _list_tables(self, connection: Connection, message: list[Any]) -> None:
        with_dropped = one_flag(message[3:], "with dropped")
        found = views.list_tables(self._machine.cluster, with_dropped=with_dropped)
        connection.out.append((message[0], 0, found))

    def _list_nodes(self, connection: Connection, message: list[Any]) -> None:
        no_fields(message[3:])
        connection.out.append((message[0], 0, views.list_nodes(self._machine)))

    def _cluster_info(self, connection: Connection, message: list[Any]) -> None:
        no_fields(message[3:])
        connection.out.append((message[0], 0, self._describe()))

    def _query_duplication(self, connection: Connection, message: list[Any]) -> None:
        name = one_name(message[3:])
        table = tables.find(self._machine.cluster, name)

        def render(live: LiveStates) -> tuple[Any, ...]:
            return (self._duplications.of_table(name, live),)

        self._show_live(connection, message, [table.table_id], render)

    def _list_duplications(self, connection: Connection, message: list[Any]) -> None:
        pattern, match = pattern_and_match(message[3:])
        table_ids = self._duplications.tables_matching(pattern, match)

        def render(live: LiveStates) -> tuple[Any, ...]:
            return (self._duplications.matching(pattern, match, live),)

        self._show_live(connection, message, table_ids, render)

    def _list_clusters(self, connection: Connection, message: list[Any]) -> None:
        no_fields(message[3:])
        cluster = self._machine.cluster
        found = [cluster_map(cluster, one) for _, one in sorted(cluster.remotes.items())]
        connection.out.append((message[0], 0, found))

    def _get_level(self, connection: Connection, message: list[Any]) -> None:
        no_fields(message[3:])
        level = self._machine.level
        connection.out.append((message[0], 0, level.value, level.meaning))

    def _diagnose(self, connection: Connection, message: list[Any]) -> None:
        name, cluster = one_name_or_none(message[3:]), self._machine.cluster
        ids = [*cluster.tables] if name is None else [tables.find(cluster, name).table_id]

        def render(live: LiveStates) -> tuple[Any, ...]:
            return (diagnose(self._machine, name, live),)

        self._show_live(connection, message, ids, render)

    def _describe(self) -> Mapping[str, Any]:
        cluster, identity = self._machine.cluster, self._machine.identity
        dropped = [one for one in cluster.tables.values() if one.status is TableStatus.DROPPED]
        trouble = self._trouble()
        return {
            "cluster_name": identity.name,
            "cluster_id": identity.cluster_id,
            "cluster_uuid": "" if cluster.record is None else cluster.record.uuid,
            **views.cluster_health(self._machine),
            "tables": len(cluster.tables) - len(dropped),
            "dropped_tables": len(dropped),
            "partitions": cluster.partition_count,
            "duplications": sum(one.live for one in cluster.book.all()),
            "default_partition_count": self._options.default_partition_count,
            "default_replica_count": self._options.default_replica_count,
            "drop_reserve_seconds": self._options.drop_reserve_seconds,
            "meta_store": "usable" if trouble is None else str(trouble),
        }
