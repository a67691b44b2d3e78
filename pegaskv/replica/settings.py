"""What a table's envs and state mean for its replicas, from the moment on that it is pushed."""

from pegaskv.base.types import TableInfo
from pegaskv.replica.guards import guard
from pegaskv.replica.replica import Replica

__all__ = ["take_settings"]


def take_settings(replica: Replica, table: TableInfo) -> None:
    """Bring a replica in line with its table, apart from what takes time to change."""
    replica.follower = table.follower
    replica.default_ttl = int(table.envs.get("default_ttl", "0"))
    guard(replica, table)
