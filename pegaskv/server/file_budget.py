"""How the files that a process may have open are shared out.

A server that runs out of them cannot begin a log segment, and no connection is worth
that. So each kind of thing gets a part from the start: who asks for more is refused in
words. Connections are also counted against what is really open at that moment, since
storage may need more than its part.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["FileBudget"]

# Standing in/out/err, the loop, workers' wake-ups, locks, log segments, the two listeners.
_OWN: Final = 20
# What flushes, compactions, log switches and table changes open for a moment.
_PASSING: Final = 12
# Lock, manifest and two logs of an engine, and now and then a file for a short while.
_PER_PARTITION: Final = 5
_CONNECTIONS_MIN: Final = 8
_PARTITIONS_MIN: Final = 1
_HTTP_MAX: Final = 64


@dataclass(frozen=True, slots=True)
class FileBudget:
    """What may be open, of `files` in all.

    A connection whose descriptor is above `connection_descriptor_max` is refused: so
    many files are open already that the rest is for storage.
    """

    files: int
    connections: int
    partitions: int
    http_connections: int
    connection_descriptor_max: int

    @classmethod
    def of(cls, files: int) -> "FileBudget":
        """Share out `files`: half of what is left for connections, half for partitions."""
        http = max(4, min(_HTTP_MAX, files // 16))
        left = max(0, files - _OWN - _PASSING - http)
        connections = max(_CONNECTIONS_MIN, left // 2)
        partitions = max(_PARTITIONS_MIN, (left - connections) // _PER_PARTITION)
        return cls(files, connections, partitions, http, files - _PASSING)
