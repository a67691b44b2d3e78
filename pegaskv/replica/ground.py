"""What the parts of one replica server share: its partitions, and what they stand on."""

from dataclasses import dataclass, field

from pegaskv.base.types import Gpid, TableInfo
from pegaskv.replica.front import Front
from pegaskv.replica.recovery import RecoveredReplica
from pegaskv.replica.replica import Replica
from pegaskv.replica.workers import Workers
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import EngineFactory
from pegaskv.storage.mutation_log import MutationLog

__all__ = ["Ground", "Partitions"]


@dataclass(slots=True)
class Partitions:
    """The partitions of one server, by what they are at the moment.

    `replicas` are open; `recovered` is what the start found of the others; `closed` says why a
    partition that is configured here has no open replica; `tables` are as they were pushed.
    """

    replicas: dict[tuple[int, int], Replica] = field(default_factory=dict)
    recovered: dict[Gpid, RecoveredReplica] = field(default_factory=dict)
    closed: dict[tuple[int, int], str] = field(default_factory=dict)
    tables: dict[int, TableInfo] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ground:
    """What all partitions of one server stand on."""

    directory: DataDirectory
    disk: Disk
    factory: EngineFactory
    log: MutationLog
    front: Front
    clock: Clock
    workers: Workers
    scope: TaskScope

    @property
    def node_id(self) -> str:
        """Of this server, made once in its data directory."""
        return self.directory.node_id
