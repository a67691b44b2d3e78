"""What one replica counts, and what each count means: plain integers, added to on the hot path."""

from collections.abc import Mapping
from typing import Final

__all__ = ["COUNTS", "ReplicaCounts"]


class ReplicaCounts:
    """The counts of a replica, each 0 until there is something to count."""

    reads = 0
    writes = 0
    row_cache_misses = 0
    scans = 0
    slow_read_requests = 0
    slow_write_requests = 0
    throttling_delayed_read_requests = 0
    throttling_rejected_read_requests = 0
    throttling_delayed_write_requests = 0
    throttling_rejected_write_requests = 0
    rows_received = 0
    rows_received_lost = 0
    conflicts_overwritten = 0
    rows_removed_by_copies = 0
    tombstones_swept = 0


# Attribute: the meaning of its sum over a table, which is what metrics show.
COUNTS: Final[Mapping[str, str]] = {
    "reads": "Single rows read.",
    "row_cache_misses": "Rows read that were not in memory, but in the storage or nowhere.",
    "scans": "Range reads and pages of scans.",
    "writes": "Write requests taken into a mutation.",
    "slow_read_requests": "Reads that took longer than replica.slow_query_threshold.",
    "slow_write_requests": "Writes in batches that took longer than that.",
    "throttling_delayed_read_requests": "Reads that waited for replica.read_throttling.",
    "throttling_rejected_read_requests": "Reads refused for it, or for their size.",
    "throttling_delayed_write_requests": "Writes that waited for replica.write_throttling.",
    "throttling_rejected_write_requests": "Writes refused for it.",
    "rows_received": "Rows that came in from other clusters.",
    "rows_received_lost": "Rows that came in and lost against a larger timetag.",
    "conflicts_overwritten": "Rows that came in and lost against a write of another cluster.",
    "rows_removed_by_copies": "Rows removed since the source of a copy has them no more.",
    "tombstones_swept": "Tombstones removed once no late write can need them.",
}
