"""pure: what the meta server answers to those who only look.

These are read from memory, which holds committed records alone, so they need no place
in the queue of changes.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pegaskv.base.metrics import Metric
from pegaskv.base.types import Durability, Gpid, TableStatus
from pegaskv.codec.messages_meta import table_to_wire
from pegaskv.meta import tables
from pegaskv.meta.cluster import Cluster, PartitionRecord, TableRecord
from pegaskv.meta.duplication_views import Views, source_map
from pegaskv.meta.live import LiveStates
from pegaskv.meta.machine import MetaMachine
from pegaskv.meta.placement import min_write_replicas

__all__ = [
    "cluster_health",
    "list_nodes",
    "list_tables",
    "query_config",
    "state_metrics",
    "table_info",
]


def query_config(machine: MetaMachine, name: str | int) -> tuple[Any, ...]:
    """Return the reply's fields for a table by name or id: who serves each partition, by address.

    Raises TableNotFound or BusyCreating.
    """
    cluster = machine.cluster
    if isinstance(name, int):
        table = tables.find_by_id(cluster, name)
    else:
        table = tables.find(cluster, name)
    if table.status is TableStatus.CREATING:
        raise tables.being_created(table, machine.delivery.failure(table.table_id))
    # Of one that is unalive too: it may serve although this server does not hear it.
    address = {node.node_id: node.address for node in machine.nodes.values()}
    partitions = [
        [
            index,
            one.ballot,
            None if one.primary is None else address.get(one.primary),
            [address[node] for node in one.secondaries if node in address],
        ]
        for index, one in _partitions(machine.cluster, table)
    ]
    durability = table.envs.get("durability", Durability.FSYNC.value)
    return (table.table_id, table.partition_count, table.version, partitions, durability)


def table_info(
    machine: MetaMachine, name: str, live: LiveStates, duplications: Views
) -> tuple[Any, ...]:
    """Return the reply's fields: the table, and who serves each partition, by node id.

    The state of the primary stands beside it, and then those of all replicas that were told.
    """
    table = tables.find(machine.cluster, name)
    missing = set(machine.cluster.missing(table))
    partitions = []
    for index, one in _partitions(machine.cluster, table):
        state = live.replica(one.gpid, one.primary)
        if index in missing:
            state = {**state, "closed": "its record is missing at the meta server"}
        elif table.status is TableStatus.AVAILABLE and not state:
            why = machine.nodes.why_not_led(one)
            state = {"closed": why} if why else {}
        replicas = live.replicas(one.gpid)
        partitions.append([index, one.ballot, one.primary, list(one.secondaries), state, replicas])
    shown = table_to_wire(table.info())
    shown["sources"] = source_map(table)
    shown["duplications"] = duplications.of_table(name, live)
    return (shown, partitions)


def list_tables(cluster: Cluster, *, with_dropped: bool) -> list[dict[str, Any]]:
    """Return all tables, by id."""
    return [
        table_to_wire(table.info())
        for _, table in sorted(cluster.tables.items())
        if with_dropped or table.status is not TableStatus.DROPPED
    ]


def list_nodes(machine: MetaMachine) -> list[list[Any]]:
    """Return [node id, address, status, detail] of all that reported or are named."""
    primaries: Counter[str] = Counter()
    secondaries: Counter[str] = Counter()
    for table_id, table in machine.cluster.tables.items():
        if table.status is not TableStatus.DROPPED:
            for one in machine.cluster.partitions[table_id].values():
                primaries.update([one.primary] if one.primary else [])
                secondaries.update(one.secondaries)
    rows: list[list[Any]] = []
    for node_id in sorted({*machine.nodes, *primaries, *secondaries}):
        node = machine.nodes.get(node_id)
        detail = {"primaries": primaries[node_id], "secondaries": secondaries[node_id]}
        if node is None:
            rows.append([node_id, "", "not seen", detail])
            continue
        if node.watched:
            detail["last_beacon_ms"] = max(0, machine.now_ms - node.heard_ms)
            detail["learning"] = len(node.learning)
        if node.free_bytes is not None:
            detail["free_bytes"] = node.free_bytes
            detail["disk_full"] = node.disk_full
        rows.append([node_id, node.address, node.status, detail])
    return rows


def cluster_health(machine: MetaMachine) -> dict[str, Any]:
    """Return how well nodes and partitions are, as CLUSTER_INFO shows it."""
    nodes, cluster = machine.nodes, machine.cluster
    count: Counter[str] = Counter()
    primaries: Counter[str] = Counter()
    for table_id, table in cluster.tables.items():
        if table.status is not TableStatus.AVAILABLE:
            continue
        for record in cluster.partitions[table_id].values():
            alive = sum(nodes.is_alive(one) for one in record.members)
            readable = not nodes.why_not_led(record)
            writable = readable and alive >= min_write_replicas(table.replica_count)
            healthy = writable and alive >= table.replica_count
            count.update(
                readable=readable, writable=writable, healthy=healthy, unhealthy=not healthy
            )
            primaries.update([record.primary] if record.primary else [])
    takers = [primaries[node.node_id] for node in nodes.takers]
    named = {one for table_id in cluster.tables for one in cluster.members(table_id)}
    return {
        "meta_function_level": machine.level.value,
        "nodes_alive": len(nodes.alive),
        "nodes_unalive": len({*nodes, *named}) - len(nodes.alive),
        "partitions_healthy": count["healthy"],
        "partitions_readable": count["readable"],
        "partitions_writable": count["writable"],
        "partitions_unhealthy": count["unhealthy"],
        "balance_operations": machine.moves.count,
        "balanced": machine.moves.even,
        "primary_spread": max(takers) - min(takers) if takers else 0,
    }


def state_metrics(machine: MetaMachine) -> Iterable[Metric]:
    """Yield what the records hold now."""
    cluster = machine.cluster
    status = Counter(table.status.value for table in cluster.tables.values())
    yield Metric(
        "pegaskv_meta_tables",
        "gauge",
        "Tables by status.",
        tuple(((("status", one.value),), status[one.value]) for one in TableStatus),
    )
    partitions = cluster.partition_count
    yield Metric(
        "pegaskv_meta_partitions",
        "gauge",
        "Partitions of all tables, dropped ones included.",
        (((), partitions),),
    )
    yield Metric(
        "pegaskv_meta_nodes_alive",
        "gauge",
        "Replica servers that are alive.",
        (((), len(machine.nodes.alive)),),
    )
    health = cluster_health(machine)
    for name, text in (
        ("nodes_unalive", "Replica servers that are named or were seen, and are not heard."),
        ("partitions_healthy", "Partitions in use that have all their members."),
        ("partitions_readable", "Partitions in use whose primary is there."),
        ("partitions_writable", "Those of them that have members enough to take writes."),
        ("partitions_unhealthy", "Partitions in use that lack something."),
        ("balance_operations", "Replicas that are being moved."),
    ):
        yield Metric(f"pegaskv_meta_{name}", "gauge", text, (((), health[name]),))


def _partitions(cluster: Cluster, table: TableRecord) -> Iterable[tuple[int, PartitionRecord]]:
    there = cluster.partitions[table.table_id]
    for index in range(table.partition_count):
        yield index, there.get(index) or PartitionRecord(Gpid(table.table_id, index))
