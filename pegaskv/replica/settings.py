"""What options, and a table's envs and state from their push on, mean for a replica."""

from pegaskv.base.compaction import compaction_ordered_for
from pegaskv.base.types import ReplicaStatus, TableInfo
from pegaskv.replica.guards import guard
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.replica import Replica

__all__ = ["min_write_replicas", "take_bounds", "take_settings"]


def take_settings(replica: Replica, table: TableInfo) -> None:
    """Bring a replica in line with its table, apart from what takes time to change."""
    replica.follower = table.follower
    replica.default_ttl = int(table.envs.get("default_ttl", "0"))
    replica.compaction_ordered_for = compaction_ordered_for(table.envs)
    wanted = min_write_replicas(table.replica_count)
    if replica.machine.status is not ReplicaStatus.PRIMARY:
        # When it leads, somebody has gone.
        replica.growing = False
    elif wanted > replica.min_members:
        # Nobody is gone, more are to come: writes go on until they are here.
        replica.growing = True
    replica.min_members = wanted
    guard(replica, table)


def min_write_replicas(replica_count: int) -> int:
    """Return how many members a partition must have to take writes."""
    return 1 if replica_count <= 2 else 2


def take_bounds(replica: Replica, options: ReplicaOptions) -> None:
    """Set how much one partition may have under way."""
    replica.uncommitted_mutations_max = options.partition_uncommitted_mutations_max
    replica.uncommitted_bytes_max = options.partition_uncommitted_bytes_max
    replica.applying_bytes_max = options.partition_unapplied_bytes_max
