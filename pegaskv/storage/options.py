"""What can be configured of a storage engine."""

from dataclasses import dataclass

from pegaskv.base.errors import ConfigurationError

__all__ = ["StorageOptions"]

_KIB = 1024
_MIB = 1024 * _KIB


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """How LevelDB is run; every number is for one replica unless it says otherwise."""

    # Twice the unflushed log of a partition: the server's own flush comes before LevelDB's.
    write_buffer_bytes: int = 16 * _MIB
    # For all replicas of the server together, dealt out as they are opened.
    block_cache_bytes: int = 128 * _MIB
    block_bytes: int = 4 * _KIB
    bloom_bits: int = 10
    table_file_bytes: int = 32 * _MIB
    open_files_max: int = 128

    def validate(self) -> None:
        """Refuse what LevelDB would silently change, and what cannot work.

        Raises:
            ConfigurationError: an option is out of its range; the message names it.

        """
        bounds = {
            "write_buffer_bytes": (64 * _KIB, 1024 * _MIB),
            "block_cache_bytes": (0, 1 << 40),
            "block_bytes": (_KIB, 4 * _MIB),
            "bloom_bits": (0, 30),
            "table_file_bytes": (_MIB, 1024 * _MIB),
            "open_files_max": (74, 50_000),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigurationError(
                    f"[storage] {name} is {value}", hint=f"it must be {least} to {most}"
                )
