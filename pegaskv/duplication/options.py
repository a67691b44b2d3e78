"""Options of duplication; section [duplication]."""

from dataclasses import dataclass

from pegaskv.base.errors import ConfigurationError

__all__ = ["DuplicationOptions"]


@dataclass(frozen=True, slots=True)
class DuplicationOptions:
    """How fast and how far duplications of this server go; all counts per server."""

    # Rows of existing data sent per second, all copies together; 0 = as fast as it goes.
    copy_bytes_per_second: int = 0
    # Log kept for an absent target, all duplications together; past it a duplication is broken.
    # 0 = half of the space that was free when the server started.
    max_log_bytes_held: int = 0
    # One batch of the log or one page of a copy.
    batch_bytes: int = 256 * 1024
    # Sent to one remote cluster and not answered yet.
    window_bytes: int = 16 * 1024 * 1024
    # In requests, to one of its servers; as long as it answers late it gets fewer.
    window_requests_max: int = 4_096
    # Of one partition to one target: batches of the log and pages of a copy on their way.
    batches_in_flight_max: int = 4
    pages_in_flight_max: int = 4
    # Confirmed decrees are stored at the meta server at most so often.
    confirm_interval_ms: int = 1_000
    # Where nothing is written, the target is asked so often whether it has all that it had.
    idle_check_interval_ms: int = 10_000
    # How long a request to the other cluster may take.
    timeout_ms: int = 3_000
    # Back-off after a failure.
    retry_ms_min: int = 100
    retry_ms_max: int = 30_000

    def validate(self) -> None:
        """Refuse numbers that cannot be.

        Raises:
            ConfigurationError: names the option and its range.

        """
        for name in ("copy_bytes_per_second", "max_log_bytes_held"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"[duplication] {name}: must be 0 or more")
        for name, least, most in (
            ("batch_bytes", 4_096, 1024 * 1024),
            ("window_bytes", 1024 * 1024, 1 << 30),
            ("window_requests_max", 1, 65_536),
            ("batches_in_flight_max", 1, 64),
            ("pages_in_flight_max", 1, 64),
            ("confirm_interval_ms", 10, 60_000),
            ("idle_check_interval_ms", 100, 3_600_000),
            ("timeout_ms", 100, 600_000),
            ("retry_ms_min", 1, 60_000),
            ("retry_ms_max", 1, 600_000),
        ):
            if not least <= getattr(self, name) <= most:
                raise ConfigurationError(f"[duplication] {name}: must be from {least} to {most}")
        if self.retry_ms_min > self.retry_ms_max:
            raise ConfigurationError("[duplication] retry_ms_min: must not exceed retry_ms_max")
