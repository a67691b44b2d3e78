"""pure: what the meta server answers to those who only look.

These are read from memory, which holds committed records alone, so they need no place
in the queue of changes.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from pegaskv.base.metrics import Metric
from pegaskv.base.types import Durability, Gpid, TableStatus
from pegaskv.codec.messages_meta import table_to_wire
from pegaskv.meta import tables
from pegaskv.meta.cluster import Cluster, PartitionRecord, TableRecord
from pegaskv.meta.delivery import Node
from pegaskv.meta.duplication_views import Views, source_map
from pegaskv.meta.machine import MetaMachine

__all__ = [
    "ReplicaState",
    "list_nodes",
    "list_tables",
    "query_config",
    "state_metrics",
    "table_info",
]

ReplicaState = Callable[[Gpid], dict[str, Any]]


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
    address = {node.node_id: node.address for node in machine.delivery.nodes.values()}
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
    machine: MetaMachine, name: str, replica_state: ReplicaState, duplications: Views
) -> tuple[Any, ...]:
    """Return the reply's fields: the table, and who serves each partition, by node id."""
    table = tables.find(machine.cluster, name)
    missing = set(machine.cluster.missing(table))
    partitions = []
    for index, one in _partitions(machine.cluster, table):
        state = replica_state(one.gpid)
        if index in missing:
            state = {**state, "closed": "its record is missing at the meta server"}
        partitions.append([index, one.ballot, one.primary, list(one.secondaries), state])
    shown = table_to_wire(table.info())
    shown["sources"] = source_map(table)
    shown["duplications"] = duplications.of_table(name)
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
    nodes = machine.delivery.nodes
    primaries: Counter[str] = Counter()
    secondaries: Counter[str] = Counter()
    for table_id, table in machine.cluster.tables.items():
        if table.status is not TableStatus.DROPPED:
            for one in machine.cluster.partitions[table_id].values():
                primaries.update([one.primary] if one.primary else [])
                secondaries.update(one.secondaries)
    rows = []
    for node_id in sorted({*nodes, *primaries, *secondaries}):
        node: Node | None = nodes.get(node_id)
        detail = {"primaries": primaries[node_id], "secondaries": secondaries[node_id]}
        rows.append(
            [
                node_id,
                "" if node is None else node.address,
                "not seen" if node is None else "alive",
                detail,
            ]
        )
    return rows


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
        "Replica servers that have reported.",
        (((), len(machine.delivery.nodes)),),
    )


def _partitions(cluster: Cluster, table: TableRecord) -> Iterable[tuple[int, PartitionRecord]]:
    there = cluster.partitions[table.table_id]
    for index in range(table.partition_count):
        yield index, there.get(index) or PartitionRecord(Gpid(table.table_id, index))
