"""What answers each operation of the meta server.

Whoever only looks is answered from memory at once. A change is read here, queued, and
answered when the machine has done it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final, Protocol

from pegaskv.base.errors import DuplicationExists, RequestError
from pegaskv.base.types import TableInfo, TableStatus
from pegaskv.codec.messages_duplication import UUID_BYTES
from pegaskv.codec.messages_meta import table_to_wire
from pegaskv.codec.operations import Operation
from pegaskv.meta import views
from pegaskv.meta.duplication_views import Views, cluster_map
from pegaskv.meta.events import ModifyDuplication, Request
from pegaskv.meta.machine import MetaMachine
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.requests import (
    no_fields,
    one_flag,
    one_name,
    one_name_or_id,
    pattern_and_match,
    read_request,
)
from pegaskv.net.connection import Handler

__all__ = ["Connection", "Handlers", "Reply"]

_TABLE_CHANGES: Final = (
    Operation.CREATE_TABLE,
    Operation.DROP_TABLE,
    Operation.RECALL_TABLE,
    Operation.RENAME_TABLE,
    Operation.SET_ENVS,
    Operation.DELETE_ENVS,
    Operation.CLEAR_ENVS,
    Operation.OPEN_TABLE,
)

# What a request gets: its answer's table and further fields, or an error.
Reply = Callable[[TableInfo | None, tuple[Any, ...], RequestError | None], None]
# What of that is on the wire.
_Render = Callable[[TableInfo | None, tuple[Any, ...]], tuple[Any, ...]]


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
    returns why changes are refused at the moment.
    """

    def __init__(
        self,
        machine: Callable[[], MetaMachine],
        *,
        queue: Callable[[Callable[[int], Request], Reply], None],
        random: Random,
        options: MetaOptions,
        replica_state: views.ReplicaState,
        duplications: Views,
        trouble: Callable[[], BaseException | None],
    ) -> None:
        self._get_machine = machine
        self._queue = queue
        self._random = random
        self._options = options
        self._replica_state = replica_state
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
        }
        renders: dict[Operation, _Render] = dict.fromkeys(_TABLE_CHANGES, self._render_table)
        renders |= {
            Operation.ADD_DUPLICATION: self._render_duplication,
            Operation.MODIFY_DUPLICATION: self._render_duplication,
            Operation.ADD_CLUSTER: self._render_cluster,
            Operation.REMOVE_CLUSTER: self._render_cluster,
            Operation.ENSURE_DUPLICATION: self._render_ensured,
            Operation.FORGET_DUPLICATION: self._render_forgotten,
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
                if error is not None:
                    connection.finish(connection.error(wire_id, self._with_live_state(error)))
                else:
                    connection.finish((wire_id, 0, *render(table, more)))
                connection.flush()

            self._queue(lambda request_id: self._read(operation, request_id, fields), reply)
            connection.defer()

        return handle

    def _read(self, operation: Operation, request_id: int, fields: list[Any]) -> Request:
        new_uuid = self._random.getrandbits(128).to_bytes(UUID_BYTES, "big")
        event = read_request(operation, request_id, fields, new_uuid=new_uuid)
        if isinstance(event, ModifyDuplication):
            stalled = self._duplications.stalled(event.table, event.dupid)
            return dataclasses.replace(event, stalled=stalled)
        return event

    def _with_live_state(self, error: RequestError) -> RequestError:
        if isinstance(error, DuplicationExists):
            existing = error.existing
            entry = self._machine.cluster.book.get(existing["table_id"], existing["dupid"])
            if entry is not None:
                error.details["existing"] = self._duplications.entry(entry)
        return error

    def _render_table(self, table: TableInfo | None, more: tuple[Any, ...]) -> tuple[Any, ...]:
        return (None if table is None else table_to_wire(table), *more)

    def _render_duplication(
        self, _table: TableInfo | None, more: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        (table_id, dupid), warnings = more
        entry = self._machine.cluster.book.get(table_id, dupid)
        return (None if entry is None else self._duplications.entry(entry), warnings)

    def _render_cluster(self, _table: TableInfo | None, more: tuple[Any, ...]) -> tuple[Any, ...]:
        return (cluster_map(self._machine.cluster, more[0]),)

    def _render_ensured(self, table: TableInfo | None, more: tuple[Any, ...]) -> tuple[Any, ...]:
        outcome, text = more
        table_id, count = (0, 0) if table is None else (table.table_id, table.partition_count)
        record = self._machine.cluster.record
        assert record is not None
        own_id = self._machine.identity.cluster_id
        return (outcome, table_id, count, own_id, record.uuid, text)

    def _render_forgotten(self, _table: TableInfo | None, more: tuple[Any, ...]) -> tuple[Any, ...]:
        return more

    # Looking.

    def _query_config(self, connection: Connection, message: list[Any]) -> None:
        name = one_name_or_id(message[3:])
        connection.out.append((message[0], 0, *views.query_config(self._machine, name)))

    def _table_info(self, connection: Connection, message: list[Any]) -> None:
        name = one_name(message[3:])
        fields = views.table_info(self._machine, name, self._replica_state, self._duplications)
        connection.out.append((message[0], 0, *fields))

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
        found = self._duplications.of_table(one_name(message[3:]))
        connection.out.append((message[0], 0, found))

    def _list_duplications(self, connection: Connection, message: list[Any]) -> None:
        pattern, match = pattern_and_match(message[3:])
        connection.out.append((message[0], 0, self._duplications.matching(pattern, match)))

    def _list_clusters(self, connection: Connection, message: list[Any]) -> None:
        no_fields(message[3:])
        cluster = self._machine.cluster
        found = [cluster_map(cluster, one) for _, one in sorted(cluster.remotes.items())]
        connection.out.append((message[0], 0, found))

    def _describe(self) -> Mapping[str, Any]:
        cluster, identity = self._machine.cluster, self._machine.identity
        dropped = [one for one in cluster.tables.values() if one.status is TableStatus.DROPPED]
        trouble = self._trouble()
        return {
            "cluster_name": identity.name,
            "cluster_id": identity.cluster_id,
            "cluster_uuid": "" if cluster.record is None else cluster.record.uuid,
            "nodes_alive": len(self._machine.delivery.nodes),
            "tables": len(cluster.tables) - len(dropped),
            "dropped_tables": len(dropped),
            "partitions": cluster.partition_count,
            "duplications": sum(one.live for one in cluster.book.all()),
            "default_partition_count": self._options.default_partition_count,
            "default_replica_count": self._options.default_replica_count,
            "drop_reserve_seconds": self._options.drop_reserve_seconds,
            "meta_store": "usable" if trouble is None else str(trouble),
        }
