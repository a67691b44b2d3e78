"""pure: the envs that order a manual compaction, by the names of Pegasus.

`manual_compact.once.trigger_time` is a time in seconds since 1970. From then on each server
rewrites its replicas of the table once, one after another; a later time orders it again.
`manual_compact.disabled` keeps or stops it.
"""

from collections.abc import Mapping
from typing import Final

__all__ = [
    "MANUAL_COMPACT_DISABLED",
    "MANUAL_COMPACT_ONCE",
    "compaction_ordered_for",
]

MANUAL_COMPACT_DISABLED: Final = "manual_compact.disabled"
MANUAL_COMPACT_ONCE: Final = "manual_compact.once.trigger_time"


def compaction_ordered_for(envs: Mapping[str, str]) -> int:
    """Return the time, in seconds since 1970, for which a table's envs order one; 0 = none."""
    if envs.get(MANUAL_COMPACT_DISABLED) == "true":
        return 0
    return int(envs.get(MANUAL_COMPACT_ONCE, "0"))
