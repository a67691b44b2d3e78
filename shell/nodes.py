"""Nodes and partitions as the shell shows them: addresses for ids, and how well all is served."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from shell.context import Context

if TYPE_CHECKING:
    from pegaskv.client import Health, NodeInfo, PartitionInfo, TableDetails

__all__ = [
    "PARTITION_COLUMNS",
    "NodeNames",
    "health_data",
    "health_line",
    "health_of_cluster",
    "known_nodes",
    "partition_data",
    "partition_row",
    "share_lines",
]

_COUNTS: Final = ("partitions_healthy", "partitions_readable", "partitions_writable")


class NodeNames:
    """What the nodes are called: by their addresses, as far as those are known and told apart."""

    def __init__(self, nodes: Iterable["NodeInfo"]) -> None:
        self.statuses = {node.node_id: node.status for node in nodes}
        taken = Counter(node.address for node in nodes)
        self._names = {
            node.node_id: node.address for node in nodes if node.address and taken[node.address] < 2
        }

    def name(self, node_id: str | None) -> str | None:
        """Return the address of a node, or its id; None stays."""
        return None if node_id is None else self._names.get(node_id, node_id)

    def marked(self, node_id: str | None) -> str | None:
        """The same, with the node's status behind it when it is not alive."""
        status = self.statuses.get(node_id or "", "alive")
        name = self.name(node_id)
        return name if status == "alive" else f"{name} ({status})"

    def rewrite(self, text: str) -> str:
        """Return a sentence of the meta server with addresses in place of ids."""
        for node_id, name in self._names.items():
            # A whole word, since nobody but us makes ids so long.
            text = re.sub(rf"(?<![\w-]){re.escape(node_id)}(?![\w-])", name, text)
        return text


async def known_nodes(context: Context) -> NodeNames:
    """Ask the meta server for the nodes."""
    client = await context.client()
    return NodeNames(await client.admin.nodes(timeout=context.timeout_s))


def health_data(health: "Health") -> dict[str, Any]:
    """Return the JSON form of how many partitions are well."""
    return dict(zip(_COUNTS, health[1:], strict=True))


def health_of_cluster(info: Mapping[str, Any]) -> "Health | None":
    """Return how many partitions are well, as `cluster_info` tells; None: it does not."""
    from pegaskv.client import Health

    counts = [info.get(name) for name in (*_COUNTS, "partitions_unhealthy")]
    known = [each for each in counts if type(each) is int]
    if len(known) < len(counts):
        return None
    healthy, readable, writable, unhealthy = known
    return Health(healthy + unhealthy, healthy, readable, writable)


def health_line(health: "Health") -> str:
    """Return the sentence for a person."""
    if health.healthy == health.partitions:
        return f"{health.partitions} partitions, all healthy"
    return (
        f"{health.partitions} partitions: {health.healthy} healthy, "
        f"{health.readable} readable, {health.writable} writable"
    )


def partition_data(each: "PartitionInfo") -> dict[str, Any]:
    """Return the JSON form of a partition: members by node id, and what their replicas say."""
    data = {
        "index": each.index,
        "ballot": each.ballot,
        "primary": each.primary,
        "secondaries": list(each.secondaries),
        **{name: value for name, value in each.state.items() if name != "ballot"},
    }
    return data | {"replicas": each.replicas} if each.replicas else data


PARTITION_COLUMNS: Final = (
    "index",
    "ballot",
    "replicas",
    "health",
    "primary",
    "secondaries",
    "committed",
    "size_bytes",
    "remarks",
)


def partition_row(details: "TableDetails", each: "PartitionInfo", names: NodeNames) -> list[Any]:
    """Return the cells of a partition, in the order of `PARTITION_COLUMNS`."""
    from pegaskv.client import health_of

    count = details.table.replica_count
    state = each.state
    return [
        each.index,
        each.ballot,
        f"{len(each.members)}/{count}",
        health_of(each, count, names.statuses).word,
        names.marked(each.primary),
        [names.marked(node) for node in each.secondaries],
        state.get("committed_decree"),
        state.get("size_bytes"),
        names.rewrite("; ".join(_remarks(each, names))),
    ]


def _remarks(each: "PartitionInfo", names: NodeNames) -> list[str]:
    """Whatever somebody who looks at a partition should know besides."""
    found = [str(each.state[name]) for name in ("closed", "storage_error") if each.state.get(name)]
    found += [
        f"{names.name(node)} does not answer"
        for node in each.mute
        if names.statuses.get(node, "alive") == "alive"
    ]
    for node, state in each.replicas.items():
        if node == each.primary:
            continue
        trouble = state.get("closed") or state.get("storage_error")
        if trouble:
            found.append(f"{names.name(node)}: {trouble}")
        elif node not in each.members:
            found.append(f"{names.name(node)}: {state.get('status', 'no member')}")
    return found


def share_lines(partitions: Sequence["PartitionInfo"], names: NodeNames) -> list[str]:
    """Return a line for each node: how much of a table it serves."""
    primaries = Counter(each.primary for each in partitions if each.primary)
    secondaries = Counter(node for each in partitions for node in each.secondaries)
    return [
        f"{names.marked(node)}: {primaries[node]} primaries, {secondaries[node]} secondaries"
        for node in sorted({*primaries, *secondaries}, key=lambda node: names.name(node) or "")
    ]
