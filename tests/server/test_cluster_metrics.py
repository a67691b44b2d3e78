"""What a replica server shows of itself as one of several."""

from pathlib import Path

import pegaskv
from tests.helpers import poll_until
from tests.server.cluster import Cluster, cluster

PARTITIONS = 4


def shown(servers: Cluster, name: str) -> float:
    """The sum of a metric over all replica servers that run."""
    return sum(
        value
        for server_name, server in servers.servers.items()
        if server_name.startswith("replica")
        for source in server.metric_sources()
        for metric in source()
        if metric.name == f"pegaskv_{name}"
        for _, value in metric.samples
    )


async def test_who_leads_and_follows_is_counted(tmp_path: Path) -> None:
    async with (
        cluster(tmp_path) as servers,
        pegaskv.connect(servers.address, timeout=10) as client,
    ):
        await client.admin.create_table("t", partition_count=PARTITIONS)
        table = await client.table("t")
        await table.set(b"h", b"s", b"v")
        assert shown(servers, "replicas_led") == PARTITIONS
        assert shown(servers, "replicas_unleased") == 0
        assert shown(servers, "replicas_short_of_members") == 0
        assert shown(servers, "proposals_total") == 0
        # The write and the barriers, each on two others.
        assert shown(servers, "followed_records_total") >= 2 * (PARTITIONS + 1)
        await servers.stop("replica2", hand_over=True)
        await poll_until(lambda: shown(servers, "replicas_led") == PARTITIONS)
        assert shown(servers, "proposals_total") > 0
        assert await table.get(b"h", b"s") == b"v"
