"""pure: the times of the lease protocol, and what must hold between them."""

from dataclasses import dataclass

from pegaskv.base.errors import ConfigurationError

__all__ = ["LeaseOptions"]


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """Times in milliseconds; the same on all servers of a cluster.

    A lease ends before the grace does although clocks drift: by at most (grace - lease) / lease.
    """

    beacon_interval_ms: int = 1_000
    lease_ms: int = 4_000
    grace_ms: int = 5_000
    # A secondary that does not answer a prepare or beacon for so long is removed.
    prepare_timeout_ms: int = 2_000

    def __post_init__(self) -> None:
        if not 0 < self.beacon_interval_ms * 2 <= self.lease_ms < self.grace_ms:
            raise ConfigurationError(
                "the lease must be at least two beacons long, and shorter than the grace: "
                f"beacon_interval_ms {self.beacon_interval_ms}, lease_ms {self.lease_ms}, "
                f"grace_ms {self.grace_ms}",
                hint="set beacon_interval_ms, lease_ms and grace_ms so that this holds",
            )
        if self.prepare_timeout_ms <= 0:
            raise ConfigurationError(
                f"prepare_timeout_ms must be above 0, and is {self.prepare_timeout_ms}"
            )
