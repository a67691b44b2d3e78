"""What can be configured of a meta server; section `[meta]`."""

from dataclasses import dataclass

from pegaskv.base.errors import ConfigurationError
from pegaskv.base.hashing import is_power_of_two
from pegaskv.base.limits import PARTITION_COUNT_MAX, REPLICA_COUNT_MAX

__all__ = ["RESERVE_SECONDS_MAX", "MetaOptions"]

# Ten years: a dropped table that is kept for longer was not meant to be dropped.
RESERVE_SECONDS_MAX = 10 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class MetaOptions:
    """Defaults of new tables, times and bounds of the meta server."""

    # For tables that are created without saying how many.
    default_partition_count: int = 8
    default_replica_count: int = 1
    # How long a dropped table can be recalled: a week.
    drop_reserve_seconds: int = 604_800
    # How often dropped tables whose time has come are looked for.
    collect_interval_ms: int = 10_000
    # A replica server that could not take a change is told again after a pause that doubles.
    push_retry_ms_min: int = 100
    push_retry_ms_max: int = 5_000
    # A store that failed is tried again after this.
    store_retry_ms: int = 500
    # Dropped tables count until they are purged.
    tables_max: int = 4_000
    partitions_max: int = 16_384
    # Changes that may be under way or wait at a time.
    requests_max: int = 1_024
    # A replica server that is silent for so long is unalive: it is not waited for any more.
    node_dead_ms: int = 10_000
    # How often nodes and partitions are looked at.
    guardian_interval_ms: int = 1_000
    # A member that went is waited for so long before another node gets a copy, unless too few
    # are left to take writes: it would have most of the rows already.
    replica_assign_delay_ms: int = 60_000
    # A copy that makes no progress for so long is given up, and made on another node.
    learner_patience_ms: int = 30_000
    # Copies that one node receives at a time.
    learners_per_node_max: int = 5
    # An order to a replica server is repeated after this while it is not carried out.
    order_repeat_ms: int = 2_000
    # Replicas are moved in rounds, so many at a time, and not before the nodes have been
    # there for a while.
    balance_interval_ms: int = 2_000
    balance_moves_max: int = 10
    balance_settle_ms: int = 5_000
    # So long an operator's forced assignment waits, so that whoever led has stopped: the lease
    # and the grace of the replica servers together.
    forced_move_wait_ms: int = 9_000
    # So long replica servers are waited for when their state is shown.
    states_timeout_ms: int = 1_000

    def validate(self) -> None:
        """Raise ConfigurationError if a value or a combination cannot be."""
        for name in self.__dataclass_fields__:
            if getattr(self, name) < (0 if name == "drop_reserve_seconds" else 1):
                raise ConfigurationError(f"[meta] {name} is too small: {getattr(self, name)}")
        if not (
            is_power_of_two(self.default_partition_count)
            and self.default_partition_count <= PARTITION_COUNT_MAX
        ):
            raise ConfigurationError(
                "[meta] default_partition_count must be a power of two "
                f"from 1 to {PARTITION_COUNT_MAX}, not {self.default_partition_count}"
            )
        if self.default_replica_count > REPLICA_COUNT_MAX:
            raise ConfigurationError(
                f"[meta] default_replica_count is at most {REPLICA_COUNT_MAX}, "
                f"not {self.default_replica_count}"
            )
        if self.drop_reserve_seconds > RESERVE_SECONDS_MAX:
            raise ConfigurationError("[meta] drop_reserve_seconds is more than ten years")
        if self.push_retry_ms_min > self.push_retry_ms_max:
            raise ConfigurationError("[meta] push_retry_ms_min is above push_retry_ms_max")
        if self.guardian_interval_ms * 2 > self.node_dead_ms:
            raise ConfigurationError(
                "[meta] guardian_interval_ms is more than half of node_dead_ms"
            )
        # A reply that lists all tables is one array.
        if self.tables_max > 4_000:
            raise ConfigurationError("[meta] tables_max is at most 4000")
