"""Commands that look at the cluster: its name, its nodes, the server that answers."""

from shell.context import Context
from shell.registry import command
from shell.render import Fields, Result, Table

__all__: list[str] = []


@command(
    "cluster_info",
    help="show the cluster's name, id, state and counts",
    examples=("cluster_info",),
    json="an object of names and values",
)
async def show_cluster_info(context: Context) -> Result:
    """Show what the meta server says about the cluster."""
    data = dict(await (await context.client()).admin.cluster_info(timeout=context.timeout_s))
    return Result(data, Fields(data))


@command(
    "nodes",
    help="list the replica servers with their state",
    examples=("nodes",),
    json="a list of {node_id, address, status, …}",
)
async def list_nodes(context: Context) -> Result:
    """List the nodes that the meta server knows."""
    nodes = await (await context.client()).admin.nodes(timeout=context.timeout_s)
    rows = [(node.address, node.status, node.node_id, node.detail) for node in nodes]
    data = [
        {"node_id": node_id, "address": address, "status": status, **detail}
        for address, status, node_id, detail in rows
    ]
    return Result(data, Table(("address", "status", "node_id", "detail"), rows))


@command(
    "server_info",
    help="show the version, the start time and the limits of the server that answers",
    examples=("server_info",),
    json="an object of names and values",
)
async def show_server_info(context: Context) -> Result:
    """Show what the server that this session is connected to says about itself."""
    data = dict(await (await context.client()).admin.server_info(timeout=context.timeout_s))
    return Result(data, Fields(data))
