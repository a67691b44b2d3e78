"""What a replica server counts, as families for whoever shows them."""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from pegaskv.base.metrics import Metric, gauges
from pegaskv.base.types import ReplicaStatus
from pegaskv.replica.counts import COUNTS
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.read_line import ReadLine
from pegaskv.replica.replica import Replica
from pegaskv.replica.row_cache import RowCaches
from pegaskv.replica.throttling import ThrottledLine

__all__ = ["bound_metrics", "replica_metrics", "role_metrics"]

_PLAIN: Final = {
    "replicas_closed": "Replicas that do not serve: they wait for an operator or for the disk.",
    "replicas_damaged": "Replicas with rows that cannot be read any more.",
    "rows_expired_total": "Expired rows removed.",
    "manual_compactions_total": "Replicas rewritten by an operator's order.",
    "manual_compactions_pending": "Replicas that are being rewritten, or wait for their turn.",
    "disk_free_bytes": "Free bytes on the data disk.",
    "disk_full": "1 while writes are refused.",
    "log_appends_total": "Blocks appended to the log.",
    "log_syncs_total": "Syncs of the log.",
    "log_unflushed_bytes": "Log that a restart would replay.",
    "log_unflushed_bytes_max": "From where on partitions are flushed, the largest first.",
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


def role_metrics(
    replicas: Collection[Replica],
    *,
    learning: int,
    teaching: int,
    proposals: int,
    stalls: int,
    followed: int,
    refused: int,
) -> Iterator[Metric]:
    """Yield what tells of a server as one of several; on one that is alone most is 0."""
    led = [each for each in replicas if each.machine.status is ReplicaStatus.PRIMARY]
    yield from gauges(
        ("replicas_led", "Replicas that are primary.", len(led)),
        (
            "replicas_unleased",
            "Those of them that serve nothing, since a member is silent.",
            sum(not each.leased for each in led),
        ),
        (
            "replicas_short_of_members",
            "Those of them that refuse writes, since too few members are left.",
            sum(bool(each.too_few_members) for each in led),
        ),
        ("replicas_learning", "Replicas that are being copied to this server.", learning),
        ("replicas_taught", "Copies that others make of replicas here.", teaching),
    )
    for name, text, count in (
        ("proposals", "Changes of members that replicas here asked for.", proposals),
        ("stalls", "Times that this process stood still for half a second or more.", stalls),
        ("followed_records", "Records taken from primaries elsewhere.", followed),
        ("refused_records", "Records refused, since they were of another ballot.", refused),
    ):
        yield Metric(f"pegaskv_{name}_total", "counter", text, (((), float(count)),))


def bound_metrics(
    replicas: Collection[Replica],
    options: ReplicaOptions,
    *,
    scans: ReadLine,
    line: ThrottledLine,
    row_caches: RowCaches,
) -> Iterable[Metric]:
    """Return what waits or is under way, beside what may."""
    most = "of the partition that has most."
    return gauges(
        ("scans_waiting", "Scans and range reads that wait for their thread.", scans.pending),
        ("scans_waiting_max", "Their bound.", options.scans_waiting_max),
        ("throttled_requests", "Requests that wait since their table is throttled.", line.waiting),
        ("throttled_requests_max", "Their bound.", line.waiting_max),
        (
            "partition_uncommitted_mutations",
            f"Mutations that are not committed, {most}",
            max((len(each.full) + len(each.in_flight) for each in replicas), default=0),
        ),
        (
            "partition_uncommitted_mutations_max",
            "Their bound.",
            options.partition_uncommitted_mutations_max,
        ),
        (
            "partition_uncommitted_bytes",
            f"Bytes of those, {most}",
            max((each.uncommitted_bytes for each in replicas), default=0),
        ),
        (
            "partition_uncommitted_bytes_max",
            "Their bound.",
            options.partition_uncommitted_bytes_max,
        ),
        (
            "partition_unapplied_bytes",
            f"Committed bytes that the engine has not taken, {most}",
            max((each.applying_bytes for each in replicas), default=0),
        ),
        ("partition_unapplied_bytes_max", "Their bound.", options.partition_unapplied_bytes_max),
        (
            "shipping_bytes",
            "Bytes of mutations in memory to be duplicated.",
            sum(each.shipping.recent_bytes for each in replicas),
        ),
        ("shipping_bytes_max", "Their bound.", options.shipping_bytes_max),
        (
            "row_cache_bytes",
            "Bytes of rows that were read lately.",
            row_caches.bytes,
        ),
        ("row_cache_bytes_max", "Their bound.", row_caches.bytes_max),
    )
