"""Administration of a cluster: tables, their environments, nodes, duplications.

Each call is one request to the meta server that leads. One that changes something is
never repeated once it may have been done: `Timeout` and `Unavailable` then carry
`maybe_applied`, and a look at the table says what became of it.
"""

# ruff: noqa: ASYNC109 - deadlines are kept by the connection, which costs nothing per call.

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.types import TableInfo
from pegaskv.client.admin_cluster import ClusterAdmin, NodeInfo
from pegaskv.client.admin_duplications import DuplicationAdmin
from pegaskv.client.admin_requests import (
    ChangedTable,
    as_envs,
    as_name,
    as_positive,
    as_whole,
    malformed,
)
from pegaskv.client.arguments import as_bool
from pegaskv.client.health import Health, PartitionInfo, health_of, sum_health
from pegaskv.codec.operations import Operation

__all__ = [
    "AdminClient",
    "ChangedTable",
    "NodeInfo",
    "PartitionInfo",
    "TableDetails",
]


class TableDetails(NamedTuple):
    """A table with its partitions in the order of their indices."""

    table: TableInfo
    partitions: list[PartitionInfo]

    def health(self, statuses: Mapping[str, str] | None = None) -> Health:
        """Return how many partitions are well; `statuses` are those of nodes by node id."""
        count = self.table.replica_count
        return sum_health(health_of(each, count, statuses) for each in self.partitions)


class AdminClient(ClusterAdmin, DuplicationAdmin):
    """What the shell does; `Client.admin`. `timeout=` in seconds on every call.

    Every call raises `Timeout` or `Unavailable` when no meta server answers, and the
    server's own error otherwise: `InvalidArgument`, `TableNotFound`, `TableExists`,
    `BusyCreating`, `BusyDropping`, `StateFreezed`; about duplications `DuplicationExists`
    and `DuplicationNotFound` too.
    """

    async def create_table(
        self,
        name: str,
        partition_count: int = 8,
        replica_count: int | None = None,
        envs: Mapping[str, str] | None = None,
        if_exists: Literal["fail", "same"] = "fail",
        *,
        timeout: float | None = None,
    ) -> ChangedTable:
        """Make a table; `replica_count` None = the server's default.

        With `if_exists="same"` a table that is there with the same options is fine.
        """
        if if_exists not in ("fail", "same"):
            raise InvalidArgument(f'if_exists must be "fail" or "same", not {if_exists!r}')
        if replica_count is not None:
            as_positive("replica_count", replica_count)
        fields = (
            as_name(name),
            as_positive("partition_count", partition_count),
            replica_count or 0,
            as_envs(envs or {}),
            if_exists,
        )
        reply, _ = await self._ask(Operation.CREATE_TABLE, fields, timeout)
        created = len(reply) > 1 and reply[1] is True
        return self._changed(reply, 2, created=created)

    async def drop_table(
        self,
        name: str,
        reserve_seconds: int | None = None,
        *,
        if_not_exists: Literal["fail", "ok"] = "fail",
        force: bool = False,
        timeout: float | None = None,
    ) -> TableInfo | None:
        """Drop a table; it can be recalled for `reserve_seconds` (None = the server's default).

        With `if_not_exists="ok"` an unknown table is fine, and None is returned. A table that
        takes part in a duplication is dropped with `force` only: a duplication from it holds
        until the table is recalled or purged.
        """
        if if_not_exists not in ("fail", "ok"):
            raise InvalidArgument(f'if_not_exists must be "fail" or "ok", not {if_not_exists!r}')
        if reserve_seconds is not None and as_whole("reserve_seconds", reserve_seconds) < 0:
            raise InvalidArgument(f"reserve_seconds must be 0 or more, not {reserve_seconds}")
        reserve = -1 if reserve_seconds is None else reserve_seconds
        fields: tuple[Any, ...] = (as_name(name), reserve, if_not_exists)
        if as_bool("force", force):
            # A server of before duplications knows three fields.
            fields += (True,)
        reply, _ = await self._ask(Operation.DROP_TABLE, fields, timeout)
        return None if reply and reply[0] is None else self._table(reply)

    async def recall_table(
        self, table_id: int, new_name: str | None = None, *, timeout: float | None = None
    ) -> TableInfo:
        """Bring a dropped table back, by its id, under its old name or a new one."""
        fields = (
            as_whole("table_id", table_id),
            None if new_name is None else as_name(new_name, "new_name"),
        )
        reply, _ = await self._ask(Operation.RECALL_TABLE, fields, timeout)
        return self._table(reply)

    async def rename_table(
        self, old_name: str, new_name: str, *, timeout: float | None = None
    ) -> TableInfo:
        """Give a table another name."""
        fields = (as_name(old_name, "old_name"), as_name(new_name, "new_name"))
        reply, _ = await self._ask(Operation.RENAME_TABLE, fields, timeout)
        return self._table(reply)

    async def list_tables(
        self, with_dropped: bool = False, *, timeout: float | None = None
    ) -> list[TableInfo]:
        """Return all tables; with those that were dropped and can still be recalled if asked."""
        fields = (as_bool("with_dropped", with_dropped),)
        reply, _ = await self._ask(Operation.LIST_TABLES, fields, timeout)
        tables = reply[0] if reply else None
        if not isinstance(tables, list):
            raise malformed(Operation.LIST_TABLES)
        return [self._table([table]) for table in tables]

    async def table_info(self, name: str, *, timeout: float | None = None) -> TableDetails:
        """Return a table and its partitions."""
        reply, asked = await self._ask(Operation.TABLE_INFO, (as_name(name),), timeout)
        table = self._table(reply)
        partitions = []
        try:
            for index, ballot, primary, secondaries, *states in reply[1]:
                state = states[0] if states else None
                replicas: Mapping[Any, Any] = (states[1] if len(states) > 1 else None) or {}
                partitions.append(
                    PartitionInfo(
                        int(index),
                        int(ballot),
                        None if primary is None else str(primary) or asked,
                        tuple(str(each) or asked for each in secondaries),
                        dict(state or {}),
                        {str(node): dict(each) for node, each in replicas.items()},
                    )
                )
        except (AttributeError, IndexError, TypeError, ValueError):
            raise malformed(Operation.TABLE_INFO) from None
        partitions.sort(key=lambda partition: partition.index)
        return TableDetails(table, partitions)

    async def set_envs(
        self, table: str, envs: Mapping[str, str], *, timeout: float | None = None
    ) -> ChangedTable:
        """Set environments of a table; the server checks names and values."""
        values = as_envs(envs)
        if not values:
            raise InvalidArgument("envs is empty", hint="name at least one")
        reply, _ = await self._ask(Operation.SET_ENVS, (as_name(table, "table"), values), timeout)
        return self._changed(reply, 1)

    async def get_envs(self, table: str, *, timeout: float | None = None) -> dict[str, str]:
        """Return the environments of a table."""
        return (await self.table_info(table, timeout=timeout)).table.envs

    async def delete_envs(
        self, table: str, names: Iterable[str], *, timeout: float | None = None
    ) -> TableInfo:
        """Delete environments of a table.

        A known one that is not set is fine; a name that is neither known nor set is refused.
        """
        if isinstance(names, str):
            raise InvalidArgument("names must be a list of names", hint="one is given as [name]")
        wanted = [as_name(name, "an environment's name") for name in names]
        if not wanted:
            raise InvalidArgument("names is empty", hint="clear_envs deletes all of them")
        fields = (as_name(table, "table"), wanted)
        reply, _ = await self._ask(Operation.DELETE_ENVS, fields, timeout)
        return self._table(reply)

    async def clear_envs(
        self, table: str, prefix: str | None = None, *, timeout: float | None = None
    ) -> TableInfo:
        """Delete all environments of a table, or those named `prefix` + "." + anything."""
        fields = (as_name(table, "table"), None if prefix is None else as_name(prefix, "prefix"))
        reply, _ = await self._ask(Operation.CLEAR_ENVS, fields, timeout)
        return self._table(reply)
