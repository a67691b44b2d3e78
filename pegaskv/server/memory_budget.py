"""How much memory requests and unread replies may hold, from what the process may have.

A request exists several times on its way: as bytes that came, decoded, as the record for
the log and as the row for the engine. So it gets a small part of what is free, and a
server in a tight place answers Busy where it would otherwise run out in the middle.
"""

import resource
from pathlib import Path
from typing import Final

from pegaskv.base.limits import PROCESS_BYTES_IN_FLIGHT_MAX
from pegaskv.storage.disk import Disk

__all__ = ["bytes_in_flight_max", "free_memory"]

# Its first line is the size of the machine's memory in kB.
_MEMINFO: Final = Path("/proc/meminfo")
_UNKNOWN: Final = 1 << 40
_STATM: Final = Path("/proc/self/statm")
# The limit and the use of a container, in both versions of the kernel's interface.
_CONTAINER: Final = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)
_COPIES: Final = 16
_LEAST: Final = 4 * 1024 * 1024


def free_memory(disk: Disk) -> int:
    """Return the bytes that this process may still take; what is not known does not count."""
    free = [_number(disk, _MEMINFO, word=1) * 1_024 or _UNKNOWN]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        free.append(limit - _number(disk, _STATM) * resource.getpagesize())
    for most, used in _CONTAINER:
        if disk.exists(most) and (bytes_max := _number(disk, most)):
            free.append(bytes_max - _number(disk, used))
    return max(0, min(free))


def bytes_in_flight_max(free: int, most: int = PROCESS_BYTES_IN_FLIGHT_MAX) -> int:
    """Return what all requests under way may hold together when `free` bytes are free."""
    return min(most, max(_LEAST, free // _COPIES))


def _number(disk: Disk, path: Path, *, word: int = 0) -> int:
    """Return a number in a file of the kernel; 0 if there is none."""
    try:
        return int(disk.read_bytes(path).split()[word])
    except (OSError, ValueError, IndexError):
        return 0
