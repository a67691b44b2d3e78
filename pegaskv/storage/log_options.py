"""What can be configured of the mutation log."""

from dataclasses import dataclass

from pegaskv.base.errors import ConfigurationError

__all__ = ["LogOptions"]

_KIB = 1024
_MIB = 1024 * _KIB


@dataclass(frozen=True, slots=True)
class LogOptions:
    """How the log is cut into segments, and when partitions are flushed to free it."""

    # Preallocated size of a segment.
    log_segment_bytes: int = 16 * _MIB
    # A partition is flushed when it has more unflushed log than this ...
    flush_partition_bytes: int = 8 * _MIB
    # ... or when all together come near this, which is what a restart replays at most: from half of
    # it on the largest are flushed, one after another ...
    flush_total_bytes: int = 64 * _MIB
    # ... or when its oldest unflushed record is this old, in time or in segments.
    flush_age_ms: int = 300_000
    flush_age_segments: int = 4

    def validate(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigurationError: an option is out of its range; the message names it.

        """
        bounds = {
            "log_segment_bytes": (64 * _KIB, 1024 * _MIB),
            "flush_partition_bytes": (64 * _KIB, 1 << 40),
            "flush_total_bytes": (64 * _KIB, 1 << 40),
            "flush_age_ms": (1_000, 86_400_000),
            "flush_age_segments": (1, 1_000),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigurationError(
                    f"[storage] {name} is {value}", hint=f"it must be {least} to {most}"
                )
        if self.flush_partition_bytes > self.flush_total_bytes:
            raise ConfigurationError(
                "[storage] flush_partition_bytes is above flush_total_bytes",
                hint="one partition cannot have more unflushed log than all together",
            )
