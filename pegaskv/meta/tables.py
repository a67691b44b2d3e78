"""pure: what a table may be called and made of, and how to say that it may not.

These rules answer strangers, so they raise errors that can be read by whoever
typed the command: what is wrong, what is allowed, and what is probably meant.
"""

import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Final

from pegaskv.base.errors import (
    BusyCreating,
    InvalidArgument,
    NotReady,
    RequestError,
    TableExists,
    TableNotFound,
)
from pegaskv.base.hashing import is_power_of_two
from pegaskv.base.limits import PARTITION_COUNT_MAX, REPLICA_COUNT_MAX, TABLE_NAME_BYTES_MAX
from pegaskv.base.options import nearest
from pegaskv.base.types import TableStatus
from pegaskv.codec.messages_meta import table_to_wire
from pegaskv.meta.cluster import Cluster, TableRecord
from pegaskv.meta.duplications import Source
from pegaskv.meta.options import RESERVE_SECONDS_MAX, MetaOptions

__all__ = [
    "being_created",
    "check_name",
    "check_partition_count",
    "check_replica_count",
    "check_room",
    "check_takes_no_part",
    "differences",
    "exists",
    "find",
    "find_available",
    "find_by_id",
    "name_taken",
    "open_warnings",
    "recallable",
    "reserve_seconds",
]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)


def check_name(name: str) -> str:
    """Return `name`; raise InvalidArgument if no table can have it."""
    if not name:
        raise InvalidArgument("a table needs a name")
    # The first test is of characters, so that a long name is not encoded for nothing.
    if len(name) > TABLE_NAME_BYTES_MAX or not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"a table cannot be named {name[:80]!r}",
            hint=f"1 to {TABLE_NAME_BYTES_MAX} letters, digits, `_`, `.` and `-`, "
            "beginning with a letter or a digit",
        )
    return name


def check_partition_count(count: int) -> int:
    """Return `count`; raise InvalidArgument if no table can have so many partitions."""
    if not (is_power_of_two(count) and count <= PARTITION_COUNT_MAX):
        raise InvalidArgument(
            f"a table cannot have {count} partitions",
            hint=f"a power of two from 1 to {PARTITION_COUNT_MAX}",
        )
    return count


def check_replica_count(count: int, alive: int) -> int:
    """Return `count`; raise if it is out of range, or if too few nodes are alive."""
    if not 1 <= count <= REPLICA_COUNT_MAX:
        raise InvalidArgument(
            f"a table cannot have {count} replicas", hint=f"from 1 to {REPLICA_COUNT_MAX}"
        )
    if alive == 0:
        raise NotReady("no replica server has reported yet", hint="try again in a moment")
    if count > alive:
        nodes = "1 replica server is" if alive == 1 else f"{alive} replica servers are"
        raise InvalidArgument(
            f"{count} replicas need {count} replica servers, and {nodes} alive",
            hint=f"create the table with {alive} or fewer replicas, or start more servers",
        )
    return count


def check_room(cluster: Cluster, partition_count: int, options: MetaOptions) -> None:
    """Raise InvalidArgument when one more table would pass a bound of the cluster."""
    hint = "dropped tables count until they are purged"
    if len(cluster.tables) >= options.tables_max:
        raise InvalidArgument(f"the cluster has {options.tables_max} tables already", hint=hint)
    if cluster.partition_count + partition_count > options.partitions_max:
        raise InvalidArgument(
            f"the cluster has {cluster.partition_count} partitions; with {partition_count} more "
            f"it would pass its limit of {options.partitions_max}",
            hint=f"{hint}; the limit is [meta] partitions_max, or less where the server may "
            "have few files open (ulimit -n)",
        )


def check_takes_no_part(cluster: Cluster, table: TableRecord) -> None:
    """Raise InvalidArgument when a table is the source or the target of a duplication."""
    parts = [
        f"it is duplicated to cluster `{one.remote_cluster}` (duplication {one.dupid})"
        for one in cluster.book.of_table(table.table_id)
    ]
    parts += [f"it gets the rows of {_named(one)}" for one in table.live_sources]
    if parts:
        raise InvalidArgument(
            f"table `{table.name}` takes part in a duplication: {'; '.join(parts)}",
            hint="`remove_dup` ends a duplication, at the cluster that it comes from; "
            "`drop --force` drops the table all the same",
        )


def open_warnings(table: TableRecord) -> list[str]:
    """Return what somebody who opens a table should know."""
    return [
        f"{_named(one)} goes on to send its rows here; what is written here does not go "
        "there unless the table is duplicated there"
        for one in table.live_sources
        if table.follower
    ]


def _named(source: Source) -> str:
    order = source.order
    return f"table {order.table_id} of cluster `{order.cluster_name}`"


def reserve_seconds(wanted: int, options: MetaOptions) -> int:
    """Return how long a dropped table is kept; -1 asks for the default."""
    if wanted == -1:
        return options.drop_reserve_seconds
    if not 0 <= wanted <= RESERVE_SECONDS_MAX:
        raise InvalidArgument(
            f"a dropped table cannot be kept for {wanted} seconds",
            hint=f"from 0 to {RESERVE_SECONDS_MAX}, or -1 for the server's default",
        )
    return wanted


def find(cluster: Cluster, name: str) -> TableRecord:
    """Return the table that has this name now, dropped ones excluded.

    Raises:
        TableNotFound: its hint names the nearest table, or how to bring a dropped one back.

    """
    table = cluster.named(name)
    if table is None:
        raise TableNotFound(f"no table is named `{name[:80]}`", hint=_hint(cluster, name))
    return table


def find_by_id(cluster: Cluster, table_id: int) -> TableRecord:
    """Return the table with this id. Raises TableNotFound: there is none, or it is dropped."""
    table = cluster.tables.get(table_id)
    if table is None or table.purging:
        raise _no_such_id(cluster, table_id)
    if table.status is TableStatus.DROPPED:
        raise TableNotFound(
            f"table `{table.name}` (id {table_id}) was dropped",
            hint=f"`recall {table_id}` brings it back",
        )
    return table


def _no_such_id(cluster: Cluster, table_id: int) -> TableNotFound:
    record = cluster.record
    if record is None or not 0 < table_id < cluster.next_table_id:
        return TableNotFound(f"no table has the id {table_id}", hint="`ls` shows the tables")
    # Ids are given once: who looks for this one will never find it, and knows who says so.
    return TableNotFound(
        f"table {table_id} was dropped for good",
        hint="its rows are gone; `ls` shows the tables that are there",
        details={"purged": True, "cluster_uuid": record.uuid},
    )


def find_available(cluster: Cluster, name: str) -> TableRecord:
    """Return the table for a change of it. Raises TableNotFound or BusyCreating."""
    table = find(cluster, name)
    if table.status is TableStatus.CREATING:
        raise being_created(table)
    return table


def being_created(table: TableRecord, reason: str = "") -> BusyCreating:
    """Say that the table cannot be used yet; `reason` is why it takes long, if it does."""
    text = f"table `{table.name}` (id {table.table_id}) is being created"
    return BusyCreating(f"{text}: {reason}" if reason else text, hint="try again in a moment")


def name_taken(cluster: Cluster, name: str, *, hint: str = "") -> None:
    """Raise TableExists if a table has this name."""
    table = cluster.named(name)
    if table is not None:
        raise exists(table, hint=hint)


def exists(table: TableRecord, *, other: Collection[str] = (), hint: str = "") -> RequestError:
    """Say that the table is there, and how it differs from what was asked for."""
    text = f"table `{table.name}` is there already, with id {table.table_id}"
    if other:
        text += f" and other options: {'; '.join(other)}"
    return TableExists(text, hint=hint, details=table_to_wire(table.info()))


def differences(
    table: TableRecord, partition_count: int, replica_count: int, envs: Mapping[str, str]
) -> list[str]:
    """Return how `table` differs from what was asked for, in words."""
    found = []
    if table.partition_count != partition_count:
        found.append(f"its partition count is {table.partition_count}, not {partition_count}")
    if table.replica_count != replica_count:
        found.append(f"its replica count is {table.replica_count}, not {replica_count}")
    for name in sorted({*table.envs, *envs}):
        has, wanted = table.envs.get(name), envs.get(name)
        if has != wanted:
            found.append(
                f"env {name} is {'not set' if has is None else has}, "
                f"not {'unset' if wanted is None else wanted}"
            )
    return found


def recallable(cluster: Cluster, table_id: int, unix_seconds: int) -> TableRecord:
    """Return the dropped table with this id that can still be brought back.

    Raises:
        TableExists: it is not dropped.
        TableNotFound: there is none, or its time has passed.

    """
    table = cluster.tables.get(table_id)
    if table is None:
        kept = [one for one in cluster.tables.values() if _can_return(one, unix_seconds)]
        names = ", ".join(f"{one.table_id} (`{one.name}`)" for one in kept[:5])
        raise TableNotFound(
            f"no dropped table has id {table_id}",
            hint=f"dropped and kept: {names}" if names else "no dropped table is kept",
        )
    if table.status is not TableStatus.DROPPED:
        raise exists(table, hint="only a dropped table can be recalled")
    if not _can_return(table, unix_seconds):
        raise TableNotFound(
            f"table `{table.name}` (id {table_id}) was kept until {_time(table.expires_at)}: "
            "it cannot be recalled any more"
        )
    return table


def _can_return(table: TableRecord, unix_seconds: int) -> bool:
    return (
        table.status is TableStatus.DROPPED
        and not table.purging
        and table.expires_at > unix_seconds
    )


def _hint(cluster: Cluster, name: str) -> str:
    dropped = [
        table
        for table in cluster.tables.values()
        if table.name == name and table.status is TableStatus.DROPPED and not table.purging
    ]
    if dropped:
        last = max(dropped, key=lambda table: table.table_id)
        return (
            f"one of that name was dropped and is kept until {_time(last.expires_at)}: "
            f"`recall {last.table_id}` brings it back"
        )
    guess = nearest(name[:TABLE_NAME_BYTES_MAX], cluster.names)
    if guess is not None:
        return f"did you mean `{guess}`?"
    return "`ls` lists the tables" if cluster.names else "there are no tables yet: `create` one"


def _time(unix_seconds: int) -> str:
    try:
        return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"Unix second {unix_seconds}"
