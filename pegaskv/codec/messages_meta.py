"""What meta and replica servers tell each other, and how a table travels.

In a standalone server these values are handed over as they are; between
processes they are packed. Either way a push is sent after its content was
stored, never before, and a receiver ignores a version at or below the one it has.
"""

from dataclasses import dataclass
from typing import Any, Final

from pegaskv.base.errors import WireError
from pegaskv.base.types import Gpid, PartitionConfiguration, TableInfo, TableStatus
from pegaskv.codec.messages_duplication import DuplicationOrder, SourceOrder

__all__ = [
    "NodeReport",
    "ReplicaReport",
    "TablePush",
    "table_from_wire",
    "table_to_wire",
]


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica that a node has on its disk; `closed` says why it does not serve, or is empty."""

    gpid: Gpid
    ballot: int
    last_decree: int
    committed_decree: int
    closed: str = ""


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A replica server tells the meta server who it is and what it holds, once when it starts.

    `address` is HOST:PORT for clients, or "" for "where you reached the meta server".
    """

    node_id: str
    address: str
    replicas: tuple[ReplicaReport, ...] = ()


@dataclass(frozen=True, slots=True)
class TablePush:
    """A table and the configurations of its partitions that changed, as they are stored.

    `first_assignment` names the partitions (indices) that may be opened empty, since no
    client can have written to them: their stored ballot was 0 before this one, or the table
    is being created still (a crash may have come between the ballot and the replica). A
    dropped table is pushed with its status; a table that was purged is pushed with
    `purged`, and its replicas are removed. `duplications` and `sources` are the orders
    about what goes out of the table and what comes in, those that have ended included until
    every replica obeyed.
    """

    table: TableInfo
    partitions: tuple[PartitionConfiguration, ...] = ()
    first_assignment: frozenset[int] = frozenset()
    purged: bool = False
    duplications: tuple[DuplicationOrder, ...] = ()
    sources: tuple[SourceOrder, ...] = ()


_FIELD_TYPES: Final[dict[str, type]] = {
    "table_id": int,
    "name": str,
    "status": str,
    "partition_count": int,
    "replica_count": int,
    "envs": dict,
    "created_at": int,
    "dropped_at": int,
    "expires_at": int,
    "version": int,
    "follower": bool,
}


def table_to_wire(table: TableInfo) -> dict[str, Any]:
    """Return the map that a reply carries."""
    return {
        "table_id": table.table_id,
        "name": table.name,
        "status": table.status.value,
        "partition_count": table.partition_count,
        "replica_count": table.replica_count,
        "envs": dict(table.envs),
        "created_at": table.created_at,
        "dropped_at": table.dropped_at,
        "expires_at": table.expires_at,
        "version": table.version,
        "follower": table.follower,
    }


def table_from_wire(fields: Any) -> TableInfo:
    """Read what `table_to_wire` made; unknown fields of a newer server are ignored.

    Raises:
        WireError: a field is missing or has a wrong type.

    """
    try:
        values = {name: fields[name] for name in _FIELD_TYPES}
        wrong = [name for name, kind in _FIELD_TYPES.items() if type(values[name]) is not kind]
        if wrong:
            raise TypeError(f"wrong type of {', '.join(wrong)}")
        values["status"] = TableStatus(values["status"])
        return TableInfo(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"not a table: {error!r}") from None
