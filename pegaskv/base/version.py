"""The version of this software, and of every format that it writes.

A reader knows the current version of a format and the previous one, and
refuses all others by name (`UnsupportedFormat`).
"""

from typing import Final

__all__ = [
    "ACCEPTED_FORMAT",
    "BOOT_FORMAT",
    "CHECKPOINT_FORMAT",
    "DATA_FORMAT",
    "LOG_FORMAT",
    "MANIFEST_FORMAT",
    "META_RECORD_FORMAT",
    "MUTATION_FORMAT",
    "PROTOCOL_VERSION",
    "PROTOCOL_VERSION_MIN",
    "STATE_FORMAT",
    "VERSION",
]

VERSION: Final = "0.1.0"

# What hello agrees on: the highest version that both sides know.
PROTOCOL_VERSION: Final = 1
PROTOCOL_VERSION_MIN: Final = 1

# The `FORMAT` file of a data directory.
DATA_FORMAT: Final = 1

# The file `boot` in it: who used it last, and whether that was a clean stop.
BOOT_FORMAT: Final = 1

# The header of a log segment, and the records in it.
LOG_FORMAT: Final = 1

# The first byte of a mutation.
MUTATION_FORMAT: Final = 1

# The manifest in a replica's directory.
MANIFEST_FORMAT: Final = 1

# The file `CHECKPOINT` of a published checkpoint.
CHECKPOINT_FORMAT: Final = 1

# How far an engine is, under its reserved key.
STATE_FORMAT: Final = 1

# The file `accepted` in a replica's directory: which losses an operator has accepted.
ACCEPTED_FORMAT: Final = 1

# The records of the embedded meta store.
META_RECORD_FORMAT: Final = 1
