"""What an operator may set of the replica server: section [replica]."""

from dataclasses import dataclass

from pegaskv.base.errors import ConfigurationError
from pegaskv.base.limits import (
    MUTATION_BYTES_MAX,
    PARTITION_BYTES_UNAPPLIED_MAX,
    PARTITION_BYTES_UNCOMMITTED_MAX,
    PARTITION_MUTATIONS_UNCOMMITTED_MAX,
)

__all__ = ["ReplicaOptions"]


@dataclass(frozen=True, slots=True)
class ReplicaOptions:
    """Options of the replicas of one server; the unit is in each name."""

    # Below this share of free disk space client writes are refused; they resume by themselves.
    min_free_percent: int = 5
    disk_check_interval_ms: int = 1_000
    # `os` tables are synced in the background at least this often.
    os_sync_interval_ms: int = 100
    # How often it is looked at whether a partition must be flushed and log can be given up.
    flush_interval_ms: int = 200
    # Expired rows are removed by a pass over a partition at most this often.
    expiry_sweep_interval_ms: int = 300_000
    # Scans and range reads that wait for their thread; more are answered Busy.
    scans_waiting_max: int = 256
    # What one partition may have under way, in mutations and in bytes, and committed bytes that a
    # stalled engine has not taken; above it writes are answered Busy.
    partition_uncommitted_mutations_max: int = PARTITION_MUTATIONS_UNCOMMITTED_MAX
    partition_uncommitted_bytes_max: int = PARTITION_BYTES_UNCOMMITTED_MAX
    partition_unapplied_bytes_max: int = PARTITION_BYTES_UNAPPLIED_MAX
    # The newest mutations that are kept in memory to be duplicated, of all partitions together;
    # older ones are read from the log.
    shipping_bytes_max: int = 64 * 1024 * 1024
    # Rows that were read lately, of all partitions together; 0 keeps none.
    row_cache_bytes: int = 32 * 1024 * 1024
    # Requests of throttled tables that wait their time; more are answered Busy.
    throttled_requests_max: int = 10_000
    # Lines about slow requests in ten seconds; all are counted.
    slow_request_lines_max: int = 10

    def validate(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigurationError: names the option and its range.

        """
        if not 0 <= self.min_free_percent <= 50:
            raise ConfigurationError("[replica] min_free_percent: must be from 0 to 50")
        for name in (
            "disk_check_interval_ms",
            "os_sync_interval_ms",
            "flush_interval_ms",
            "expiry_sweep_interval_ms",
            "scans_waiting_max",
            "partition_uncommitted_mutations_max",
            "throttled_requests_max",
            "slow_request_lines_max",
        ):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"[replica] {name}: must be at least 1")
        if self.shipping_bytes_max < 1024 * 1024:
            raise ConfigurationError("[replica] shipping_bytes_max: must be at least 1048576")
        if self.row_cache_bytes < 0:
            raise ConfigurationError("[replica] row_cache_bytes: must be at least 0")
        # The largest single write must fit, with its keys.
        least = 4 * MUTATION_BYTES_MAX
        for name in ("partition_uncommitted_bytes_max", "partition_unapplied_bytes_max"):
            if getattr(self, name) < least:
                raise ConfigurationError(f"[replica] {name}: must be at least {least}")
