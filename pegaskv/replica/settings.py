"""What options, and a table's envs and state from their push on, mean for a replica."""

from pegaskv.base.types import TableInfo
from pegaskv.replica.guards import guard
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.replica import Replica

__all__ = ["take_bounds", "take_settings"]


def take_settings(replica: Replica, table: TableInfo) -> None:
    """Bring a replica in line with its table, apart from what takes time to change."""
    replica.follower = table.follower
    replica.default_ttl = int(table.envs.get("default_ttl", "0"))
    guard(replica, table)


def take_bounds(replica: Replica, options: ReplicaOptions) -> None:
    """Set how much one partition may have under way."""
    replica.uncommitted_mutations_max = options.partition_uncommitted_mutations_max
    replica.uncommitted_bytes_max = options.partition_uncommitted_bytes_max
    replica.applying_bytes_max = options.partition_unapplied_bytes_max
