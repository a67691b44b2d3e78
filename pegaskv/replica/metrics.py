"""What a replica server counts, as families for whoever shows them."""

from collections.abc import Callable, Collection, Iterator
from typing import Final

from pegaskv.base.metrics import Metric
from pegaskv.replica.counts import COUNTS
from pegaskv.replica.replica import Replica

__all__ = ["replica_metrics"]

_PLAIN: Final = {
    "replicas_closed": "Replicas that do not serve: they wait for an operator or for the disk.",
    "replicas_damaged": "Replicas with rows that cannot be read any more.",
    "rows_expired_total": "Expired rows removed.",
    "disk_free_bytes": "Free bytes on the data disk.",
    "disk_full": "1 while writes are refused.",
    "log_appends_total": "Blocks appended to the log.",
    "log_syncs_total": "Syncs of the log.",
    "throttled_requests": "Requests that wait for replica.*_throttling at the moment.",
}


def replica_metrics(
    replicas: Collection[Replica], table_name: Callable[[int], str], **plain: int
) -> Iterator[Metric]:
    """Yield one family for each count; `plain` has those of the server as a whole."""
    for attribute, text in COUNTS.items():
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
