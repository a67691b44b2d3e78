"""Commands that look at the cluster: its name, its nodes, the servers one by one."""

from collections import Counter
from typing import Any, Final

from shell.context import Context
from shell.nodes import health_line, health_of_cluster
from shell.registry import Argument, Kind, Option, Source, command
from shell.render import Fields, Result, Table

__all__: list[str] = []

STATUSES: Final = ("all", "alive", "unalive", "leaving")
# What every node tells; the rest of its details follows.
_COLUMNS: Final = ("primaries", "secondaries")


@command(
    "cluster_info",
    help="show the cluster's name, id, state, counts and how many partitions are well",
    details="A partition is readable while its primary serves, writable while enough replicas are "
    "left besides,\nand healthy when none is missing.",
    examples=("cluster_info",),
    json="an object of names and values",
)
async def show_cluster_info(context: Context) -> Result:
    """Show what the meta server says about the cluster."""
    data = dict(await (await context.client()).admin.cluster_info(timeout=context.timeout_s))
    health = health_of_cluster(data)
    bad = health is not None and health.healthy < health.partitions
    note = health_line(health) if health is not None and bad else ""
    return Result(data, Fields(data), note)


@command(
    "nodes",
    help="list the replica servers with their state",
    options=(
        Option(
            "detailed",
            "also how many replicas each has, and what else it tells",
            Kind.SWITCH,
            default=False,
            short="-d",
        ),
        Option(
            "status",
            "only nodes in this state",
            Kind.CHOICE,
            choices=STATUSES,
            default="all",
            short="-s",
        ),
    ),
    examples=("nodes", "nodes -d", "nodes -s unalive"),
    json="a list of {node_id, address, status, …}",
)
async def list_nodes(context: Context, detailed: bool, status: str) -> Result:
    """List the nodes that the meta server knows."""
    nodes = await (await context.client()).admin.nodes(timeout=context.timeout_s)
    counts = Counter(node.status for node in nodes)
    # One that is named and has not reported since the meta server started is not alive either.
    wanted = [
        node
        for node in nodes
        if status in ("all", node.status)
        or (status == "unalive" and node.status not in ("alive", "leaving"))
    ]
    wanted.sort(key=lambda node: (node.address, node.node_id))
    data: list[dict[str, Any]] = [
        {"node_id": node.node_id, "address": node.address, "status": node.status, **node.detail}
        for node in wanted
    ]
    told = dict.fromkeys(name for node in wanted for name in node.detail)
    more = [*(name for name in _COLUMNS if name in told), *(n for n in told if n not in _COLUMNS)]
    columns = ("address", "status", "node_id", *(more if detailed else ()))
    rows = [[each.get(name) for name in columns] for each in data]
    summary = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    note = f"{len(nodes)} nodes: {summary}" if nodes else "no nodes have reported"
    return Result(data, Table(columns, rows) if rows else None, note)


@command(
    "server_info",
    help="show the version, the start time and the limits of a server",
    arguments=(
        Argument(
            "address",
            "the server's HOST:PORT (when not given, the meta server that answers)",
            Kind.TEXT,
            required=False,
            completes=Source.NODES,
        ),
    ),
    examples=("server_info", "server_info 127.0.0.1:34801"),
    json="an object of names and values",
)
async def show_server_info(context: Context, address: str | None) -> Result:
    """Show what one server says about itself."""
    admin = (await context.client()).admin
    data = dict(await admin.server_info(address, timeout=context.timeout_s))
    return Result(data, Fields(data))
