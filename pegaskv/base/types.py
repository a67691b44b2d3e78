"""The nouns of the system: what a table, a partition and a replica are called.

Everything that travels between parts as a plain value stands here, so that
each word means one thing in code, messages, logs and the shell.
"""

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final, NamedTuple

__all__ = [
    "EPOCH_UNIX_SECONDS",
    "CheckType",
    "DuplicationStatus",
    "Durability",
    "FailMode",
    "FilterType",
    "Gpid",
    "PartitionConfiguration",
    "ReplicaStatus",
    "TableInfo",
    "TableStatus",
]

# Expiry counts seconds from 2016-01-01T00:00:00Z, as in Pegasus.
EPOCH_UNIX_SECONDS: Final = 1_451_606_400


class Gpid(NamedTuple):
    """A partition: the table's id and the partition's index, written `5.3`."""

    table_id: int
    partition_index: int

    def __str__(self) -> str:
        return f"{self.table_id}.{self.partition_index}"


class Durability(Enum):
    """When a write counts as done: synced to disk, or handed to the operating system."""

    FSYNC = "fsync"
    OS = "os"


class TableStatus(Enum):
    """The life of a table."""

    CREATING = "creating"
    AVAILABLE = "available"
    DROPPED = "dropped"


class ReplicaStatus(Enum):
    """The role of a replica in its partition."""

    INACTIVE = "inactive"
    PRIMARY = "primary"
    SECONDARY = "secondary"
    POTENTIAL_SECONDARY = "potential_secondary"
    ERROR = "error"


class DuplicationStatus(Enum):
    """The phase of a duplication; DS_PAUSE is what one in DS_LOG shows while it is paused."""

    DS_INIT = "DS_INIT"
    DS_PREPARE = "DS_PREPARE"
    DS_APP = "DS_APP"
    DS_LOG = "DS_LOG"
    DS_PAUSE = "DS_PAUSE"
    DS_REMOVED = "DS_REMOVED"


class FailMode(Enum):
    """What a duplication does with a row that the target finds invalid: try again, or skip it."""

    SLOW = "slow"
    SKIP = "skip"


class CheckType(IntEnum):
    """What `check_and_set` and `check_and_mutate` ask of the checked row (Pegasus's numbers)."""

    NO_CHECK = 0
    NOT_EXIST = 1
    NOT_EXIST_OR_EMPTY = 2
    EXIST = 3
    NOT_EMPTY = 4
    MATCH_ANYWHERE = 5
    MATCH_PREFIX = 6
    MATCH_POSTFIX = 7
    BYTES_LESS = 8
    BYTES_LESS_OR_EQUAL = 9
    BYTES_EQUAL = 10
    BYTES_GREATER_OR_EQUAL = 11
    BYTES_GREATER = 12
    INT_LESS = 13
    INT_LESS_OR_EQUAL = 14
    INT_EQUAL = 15
    INT_GREATER_OR_EQUAL = 16
    INT_GREATER = 17


class FilterType(IntEnum):
    """How a filter's pattern is compared with a key or a value (Pegasus's numbers)."""

    NO_FILTER = 0
    MATCH_ANYWHERE = 1
    MATCH_PREFIX = 2
    MATCH_POSTFIX = 3
    MATCH_EXACT = 4


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table as the meta server stores it; times are Unix seconds, 0 = not so."""

    table_id: int
    name: str
    status: TableStatus
    partition_count: int
    replica_count: int
    envs: dict[str, str] = field(default_factory=dict)
    created_at: int = 0
    dropped_at: int = 0
    expires_at: int = 0
    version: int = 0
    # Made by a duplication and not opened since: it refuses client writes.
    follower: bool = False


@dataclass(frozen=True, slots=True)
class PartitionConfiguration:
    """Who serves a partition, by node id; only the leading meta server changes it.

    Ballot 0 means that the partition was never assigned to anyone.
    """

    gpid: Gpid
    ballot: int
    primary: str | None
    secondaries: tuple[str, ...] = ()
