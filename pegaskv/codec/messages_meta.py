"""What meta and replica servers tell each other, and how a table travels.

In a standalone server these values are handed over as they are; between
processes they are packed. Either way a push is sent after its content was
stored, never before, and a receiver ignores a version at or below the one it has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final

from pegaskv.base.errors import WireError
from pegaskv.base.types import (
    Gpid,
    PartitionConfiguration,
    ReplicaStatus,
    TableInfo,
    TableStatus,
)
from pegaskv.codec.messages_duplication import DuplicationOrder, SourceOrder

__all__ = [
    "NodeBeacon",
    "NodeReport",
    "Order",
    "OrderKind",
    "Proposal",
    "ProposalKind",
    "ReplicaReport",
    "TablePush",
    "table_from_wire",
    "table_to_wire",
]


@dataclass(frozen=True, slots=True)
class ReplicaReport:
    """A replica that a node has on its disk; `closed` says why it does not serve, or is empty.

    `status` is its role at this moment: right after a start every replica is inactive, and when
    a meta server is new it hears who leads what. `amnesiac`: it may lack what it acknowledged,
    so it must learn, and is primary only when no other member can be.
    """

    gpid: Gpid
    ballot: int
    last_decree: int
    committed_decree: int
    closed: str = ""
    status: ReplicaStatus = ReplicaStatus.INACTIVE
    amnesiac: bool = False


@dataclass(frozen=True, slots=True)
class NodeReport:
    """A replica server tells a meta server who it is and what it holds.

    Sent when it has started, and whenever it meets a meta server that does not know it.
    `address` is HOST:PORT for clients and other servers, or "" for "where you reached the meta
    server" (standalone behind a wildcard). `process` is made anew by every start of the server.
    """

    node_id: str
    address: str
    replicas: tuple[ReplicaReport, ...] = ()
    process: str = ""


@dataclass(frozen=True, slots=True)
class NodeBeacon:
    """A replica server is alive; sent each second. `learning` are the copies under way to it.

    Each of `learning`: (partition, copied bytes, all bytes; both 0 while unknown).
    """

    node_id: str
    process: str
    free_bytes: int = 0
    disk_full: bool = False
    learning: tuple[tuple[Gpid, int, int], ...] = ()


class ProposalKind(IntEnum):
    """Which change of its configuration a replica asks for; numbers on the wire."""

    # A secondary that has not heard its primary for the grace: it leads, without the old primary.
    CLAIM = 1
    # By the primary: `node_id`, a secondary, goes.
    REMOVE = 2
    # By the primary: `node_id`, a learner that has all that is committed, becomes a secondary.
    UPGRADE = 3
    # By the primary, which has stopped and drained: `node_id`, a secondary, leads. `keep` says
    # whether the proposer stays as a secondary.
    HANDOVER = 4


@dataclass(frozen=True, slots=True)
class Proposal:
    """A replica asks for the next ballot of its partition, by compare-and-set from `ballot`.

    What a process asked for before it ended must not be done after its successor has reported:
    the proposal of another `process` than the node's last is refused.
    """

    proposer: str
    gpid: Gpid
    ballot: int
    kind: ProposalKind
    node_id: str = ""
    keep: bool = False
    process: str = ""


class OrderKind(IntEnum):
    """What the meta server asks of a primary (or of a node that is no member); on the wire."""

    # The primary lets `node_id` learn, and proposes it as a secondary when it has all.
    ADD_LEARNER = 1
    # The primary proposes to remove the secondary (or gives up the learner) `node_id`.
    REMOVE = 2
    # The primary drains and hands over to the secondary `node_id`, and stays as a secondary.
    MOVE_PRIMARY = 3
    # The node's replica belongs to nobody: its directory goes to the trash.
    DISCARD = 4


@dataclass(frozen=True, slots=True)
class Order:
    """One order about one partition, valid under `ballot` only; repeated while it is wanted.

    Obeying twice changes nothing. `address` is that of `node_id`.
    """

    kind: OrderKind
    gpid: Gpid
    ballot: int
    node_id: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True)
class TablePush:
    """A table and the configurations of its partitions that changed, as they are stored.

    `partitions` are sent to every node that is a member now, or was before the change.
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
    # Where all nodes are that the partitions name, by node id.
    addresses: Mapping[str, str] = field(default_factory=dict)
    # Partitions (indices) whose new primary leads with what it has, although it is amnesiac: all
    # members were, or an operator has accepted the loss.
    accept_amnesia: frozenset[int] = frozenset()
    # The process of the node that it is for, as that reported: its successor must not believe
    # what was stored before it reported itself.
    process: str = ""


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
