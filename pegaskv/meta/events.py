"""Everything that can happen to the meta server.

`request_id` is the service's: the effect that answers the request carries it. The types
of fields were checked by whoever read them; their values were not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_duplication import EnsureAnswer, ProgressReport
from pegaskv.codec.messages_meta import NodeBeacon, NodeReport, Order, Proposal
from pegaskv.meta.levels import Level
from pegaskv.meta.remotes import RemoteClusterInfo

__all__ = [
    "AddCluster",
    "AddDuplication",
    "BalanceByHand",
    "ClearEnvs",
    "CollectDue",
    "Committed",
    "CreateTable",
    "DeleteEnvs",
    "DropTable",
    "EnsureDuplication",
    "Ensured",
    "Event",
    "ForgetDuplication",
    "Forgotten",
    "ModifyDuplication",
    "NodeLeaving",
    "NodeReported",
    "OpenTable",
    "OrderEnded",
    "ProposeByHand",
    "Proposed",
    "PushDue",
    "PushEnded",
    "RecallTable",
    "RemotesChanged",
    "RemoveCluster",
    "RenameTable",
    "ReplicaRequest",
    "ReportProgress",
    "Request",
    "SetEnvs",
    "SetLevel",
    "SetReplicaCount",
    "SourceRequest",
    "Started",
    "TableRequest",
    "TargetRequest",
    "TimePassed",
]


@dataclass(frozen=True, slots=True)
class Started:
    """The server leads. `new_uuid` becomes the cluster's if it has none yet."""

    new_uuid: str


@dataclass(frozen=True, slots=True)
class NodeReported:
    """A replica server has started, or has met this meta server, and says what it holds.

    One that is not `watched` need not send beacons: it ends with this process.
    """

    request_id: int
    report: NodeReport
    watched: bool = True


@dataclass(frozen=True, slots=True)
class NodeLeaving:
    """A replica server stops; it is answered how many partitions others must take over first."""

    request_id: int
    node_id: str
    process: str


@dataclass(frozen=True, slots=True)
class Proposed:
    """Replicas ask for other configurations; each with the id of its request."""

    proposals: tuple[tuple[int, Proposal], ...]


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Time to look after nodes and partitions; with the beacons since, and when each came."""

    beacons: tuple[tuple[NodeBeacon, int], ...] = ()


@dataclass(frozen=True, slots=True)
class OrderEnded:
    """A node has carried an order out or taken it on, or could not: then `error` says why."""

    node_id: str
    order: Order
    error: str = ""


@dataclass(frozen=True, slots=True)
class CreateTable:
    """Somebody wants a table; counts of 0 ask for the default."""

    request_id: int
    name: str
    partition_count: int
    replica_count: int
    envs: Mapping[str, str]
    same_is_fine: bool


@dataclass(frozen=True, slots=True)
class DropTable:
    """Somebody wants a table gone; -1 seconds ask for the default."""

    request_id: int
    name: str
    reserve_seconds: int
    missing_is_fine: bool
    force: bool = False


@dataclass(frozen=True, slots=True)
class RecallTable:
    """Somebody wants a dropped table back, under its old name if `new_name` is None."""

    request_id: int
    table_id: int
    new_name: str | None


@dataclass(frozen=True, slots=True)
class RenameTable:
    """Somebody wants another name for a table."""

    request_id: int
    name: str
    new_name: str


@dataclass(frozen=True, slots=True)
class SetEnvs:
    """Somebody sets envs of a table."""

    request_id: int
    name: str
    envs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DeleteEnvs:
    """Somebody takes envs of a table away."""

    request_id: int
    name: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClearEnvs:
    """Somebody takes all envs `prefix.*` away, or all envs if it is None."""

    request_id: int
    name: str
    prefix: str | None


@dataclass(frozen=True, slots=True)
class OpenTable:
    """Somebody wants to write to a table that a duplication made."""

    request_id: int
    name: str


@dataclass(frozen=True, slots=True)
class SetReplicaCount:
    """Somebody wants more or fewer replicas of a table."""

    request_id: int
    name: str
    count: int


@dataclass(frozen=True, slots=True)
class SetLevel:
    """Somebody wants the meta server to do more or less."""

    request_id: int
    level: Level


@dataclass(frozen=True, slots=True)
class BalanceByHand:
    """Somebody moves a replica: `move_pri`, `copy_pri` or `copy_sec`."""

    request_id: int
    gpid: Gpid
    kind: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class ProposeByHand:
    """Somebody changes a configuration.

    By `assign_primary`, `add_secondary`, `remove` or `downgrade`.
    """

    request_id: int
    gpid: Gpid
    kind: str
    node_id: str
    accept_loss: bool


@dataclass(frozen=True, slots=True)
class AddDuplication:
    """Somebody wants a table on another cluster; it gets `new_uuid`."""

    request_id: int
    table: str
    remote_cluster: str
    remote_table: str | None
    checkpoint: bool
    # 0 = as many as the table has.
    remote_replica_count: int
    mesh: bool
    merge: bool
    new_uuid: bytes


@dataclass(frozen=True, slots=True)
class ModifyDuplication:
    """Somebody wants a duplication otherwise; `stalled` = it does not go on at the moment."""

    request_id: int
    table: str
    dupid: int
    action: str
    argument: str | None
    new_uuid: bytes
    stalled: bool = False


@dataclass(frozen=True, slots=True)
class AddCluster:
    """Somebody makes another cluster known."""

    request_id: int
    info: RemoteClusterInfo


@dataclass(frozen=True, slots=True)
class RemoveCluster:
    """Somebody wants a cluster forgotten."""

    request_id: int
    name: str


@dataclass(frozen=True, slots=True)
class EnsureDuplication:
    """Another cluster wants to send its table `source_table_id` here.

    `known_table_id` is the table here that it means, 0 = the one that has this name.
    """

    request_id: int
    uuid: bytes
    cluster_uuid: str
    cluster_id: int
    cluster_name: str
    source_table_id: int
    name: str
    wanted: str
    partition_count: int
    replica_count: int
    envs: Mapping[str, str]
    mesh: bool = False
    known_table_id: int = 0
    # The other side's, 0 when it does not say.
    dupid: int = 0
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class ForgetDuplication:
    """Another cluster has removed a duplication to this one; table id 0 = it never knew it."""

    request_id: int
    table_id: int
    uuid: bytes


@dataclass(frozen=True, slots=True)
class ReportProgress:
    """Duplications of this cluster went on, or never can."""

    request_id: int
    reports: tuple[ProgressReport, ...]


@dataclass(frozen=True, slots=True)
class Ensured:
    """A target has answered."""

    request_id: int
    dupid: int
    uuid: bytes
    answer: EnsureAnswer


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A target has forgotten a removed duplication."""

    request_id: int
    dupid: int
    uuid: bytes


@dataclass(frozen=True, slots=True)
class RemotesChanged:
    """The configuration was read again; these are all its clusters."""

    clusters: Mapping[str, RemoteClusterInfo]


@dataclass(frozen=True, slots=True)
class Committed:
    """The last `Commit` is stored, at `revision`."""

    revision: int


@dataclass(frozen=True, slots=True)
class PushEnded:
    """A node has taken a push, or could not: then `error` says why."""

    push_id: int
    node_id: str
    table_id: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class PushDue:
    """The pause after a failed push has passed."""

    node_id: str
    table_id: int


@dataclass(frozen=True, slots=True)
class CollectDue:
    """It is time to look for dropped tables that nobody can recall any more."""


TableRequest: TypeAlias = (
    CreateTable
    | DropTable
    | RecallTable
    | RenameTable
    | SetEnvs
    | DeleteEnvs
    | ClearEnvs
    | OpenTable
    | SetReplicaCount
)
SourceRequest: TypeAlias = (
    AddDuplication
    | ModifyDuplication
    | AddCluster
    | RemoveCluster
    | ReportProgress
    | Ensured
    | Forgotten
)
TargetRequest: TypeAlias = EnsureDuplication | ForgetDuplication

ReplicaRequest: TypeAlias = SetLevel | BalanceByHand | ProposeByHand

Request: TypeAlias = TableRequest | SourceRequest | TargetRequest | ReplicaRequest

Event: TypeAlias = (
    Started
    | NodeReported
    | NodeLeaving
    | Proposed
    | TimePassed
    | Request
    | Committed
    | PushEnded
    | PushDue
    | OrderEnded
    | CollectDue
    | RemotesChanged
)
