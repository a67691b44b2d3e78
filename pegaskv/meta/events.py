"""Everything that can happen to the meta server.

`request_id` is the service's: the effect that answers the request carries it. The types
of fields were checked by whoever read them; their values were not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pegaskv.codec.messages_meta import NodeReport

__all__ = [
    "ClearEnvs",
    "CollectDue",
    "Committed",
    "CreateTable",
    "DeleteEnvs",
    "DropTable",
    "Event",
    "NodeReported",
    "PushDue",
    "PushEnded",
    "RecallTable",
    "RenameTable",
    "Request",
    "SetEnvs",
    "Started",
]


@dataclass(frozen=True, slots=True)
class Started:
    """The server leads. `new_uuid` becomes the cluster's if it has none yet."""

    new_uuid: str


@dataclass(frozen=True, slots=True)
class NodeReported:
    """A replica server has started, and says what it holds."""

    request_id: int
    report: NodeReport


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


Request: TypeAlias = (
    CreateTable | DropTable | RecallTable | RenameTable | SetEnvs | DeleteEnvs | ClearEnvs
)

Event: TypeAlias = Started | NodeReported | Request | Committed | PushEnded | PushDue | CollectDue
