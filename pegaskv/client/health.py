"""pure: how well the partitions of a table are served, by who serves them and who is alive.

A partition is *readable* while its primary serves, *writable* while enough replicas are
left besides, and *healthy* when none is missing. What is known comes from the meta server
and is some seconds old at most; it is shown, and nothing is decided by it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Health", "PartitionInfo", "health_of", "min_write_replicas", "sum_health"]


@dataclass(frozen=True, slots=True)
class PartitionInfo:
    """A partition: who serves it, as the meta server names nodes, and its primary's own report.

    `replicas` has the report of each node that told one, by node id, learners included.
    """

    index: int
    ballot: int
    primary: str | None
    secondaries: tuple[str, ...]
    state: dict[str, Any] = field(default_factory=dict)
    replicas: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def members(self) -> tuple[str, ...]:
        """All nodes of the configuration, the primary first."""
        return self.secondaries if self.primary is None else (self.primary, *self.secondaries)

    @property
    def mute(self) -> tuple[str, ...]:
        """The members that told nothing of their replicas: those that do not answer."""
        if self.state and not self.replicas:
            # An older server tells of the primary alone.
            return ()
        return tuple(node for node in self.members if node not in self.replicas)


class Health(NamedTuple):
    """How many partitions there are, and how many of them are well in each way."""

    partitions: int = 0
    healthy: int = 0
    readable: int = 0
    writable: int = 0

    @property
    def word(self) -> str:
        """The state of the worst partition: healthy, degraded, read only or unavailable."""
        if self.readable < self.partitions:
            return "unavailable"
        if self.writable < self.partitions:
            return "read only"
        return "healthy" if self.healthy == self.partitions else "degraded"


def min_write_replicas(replica_count: int) -> int:
    """How many replicas a partition must have left to take writes."""
    return 1 if replica_count <= 2 else 2


def health_of(
    partition: PartitionInfo, replica_count: int, statuses: Mapping[str, str] | None = None
) -> Health:
    """Return the health of one partition; `statuses` are those of the nodes, by node id.

    A node without a known status is taken for alive, and one that says nothing of its replica
    for gone: it is noticed sooner so than by its status.
    """
    statuses = statuses or {}
    # One that is leaving serves until it has handed over.
    present = [
        node
        for node in partition.members
        if statuses.get(node, "alive") in ("alive", "leaving") and node not in partition.mute
    ]
    state = partition.state
    readable = (
        partition.primary in present
        and not state.get("closed")
        and state.get("serving", True) is not False
    )
    writable = readable and len(present) >= min_write_replicas(replica_count)
    healthy = writable and len(present) >= replica_count
    return Health(1, int(healthy), int(readable), int(writable))


def sum_health(parts: Iterable[Health]) -> Health:
    """Add up."""
    rows = list(parts)
    return Health(*(sum(column) for column in zip(*rows, strict=True))) if rows else Health()
