"""What a replica server counts, as families for whoever shows them."""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from pegaskv.base.metrics import Metric
from pegaskv.replica.replica import Replica

__all__ = ["replica_metrics"]

# Attribute of a replica: the meaning of its sum over a table.
_PER_TABLE: Final = {
    "reads": "Single rows read.",
    "scans": "Range reads and pages of scans.",
    "writes": "Write requests taken into a mutation.",
    "rows_received": "Rows that came in from other clusters.",
    "rows_received_lost": "Rows that came in and lost against a larger timetag.",
    "conflicts_overwritten": "Rows that came in and lost against a write of another cluster.",
    "rows_removed_by_copies": "Rows removed since the source of a copy has them no more.",
    "tombstones_swept": "Tombstones removed once no late write can need them.",
}
_PLAIN: Final = {
    "replicas_closed": "Replicas that do not serve: they wait for an operator or for the disk.",
    "replicas_damaged": "Replicas with rows that cannot be read any more.",
    "rows_expired_total": "Expired rows removed.",
    "disk_free_bytes": "Free bytes on the data disk.",
    "disk_full": "1 while writes are refused.",
    "log_appends_total": "Blocks appended to the log.",
    "log_syncs_total": "Syncs of the log.",
}


def replica_metrics(
    replicas: Collection[Replica], table_name: Callable[[int], str], **plain: int
) -> Iterator[Metric]:
    """Yield one family for each count; `plain` has those of the server as a whole."""
    for attribute, text in _PER_TABLE.items():
        sums: dict[int, int] = {}
        for replica in replicas:
            table_id = replica.gpid.table_id
            sums[table_id] = sums.get(table_id, 0) + getattr(replica, attribute)
        samples = tuple(
            ((("table", table_name(table_id)),), float(value)) for table_id, value in sums.items()
        )
        yield Metric(f"pegaskv_{attribute}_total", "counter", text, samples)
    yield Metric("pegaskv_replicas", "gauge", "Open replicas.", (((), float(len(replicas))),))
    for name, text in _PLAIN.items():
        value = (((), float(plain[name])),)
        if name.endswith("_total"):
            yield Metric(f"pegaskv_{name}", "counter", text, value)
        else:
            yield Metric(f"pegaskv_{name}", "gauge", text, value)
