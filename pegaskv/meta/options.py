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
        # A reply that lists all tables is one array.
        if self.tables_max > 4_000:
            raise ConfigurationError("[meta] tables_max is at most 4000")
