"""Two clusters as real processes, one reached through a proxy that can be cut.

Each is one server, or a meta server with some replica servers; of these only the meta server
is behind the proxy.
"""

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pegaskv
from pegaskv.client.ranges import ScanOptions
from tests.cluster.process import running_server
from tests.cluster.proxy import Proxy, running_proxy
from tests.cluster.servers import running_servers
from tests.helpers import poll_until

__all__ = ["Pair", "running_pair"]

_CONFIG = """
[cluster]
name = "{name}"
id = {number}
"""


# Of a side of several servers.
_FAST = """
[meta]
replica_assign_delay_ms = 1000
balance_settle_ms = 60000
"""


@dataclass
class Pair:
    """`alpha` duplicates to `beta`; what alpha sends there goes through `proxy`."""

    alpha: Any
    beta: Any
    proxy: Proxy
    source: pegaskv.Client
    target: pegaskv.Client
    # How much longer than promised anything may take here, where processes share the machine
    # with whatever else it does. The simulation measures what is promised.
    patience: float = 5.0

    async def status(self, table: str) -> str:
        """The phase of the table's only duplication."""
        (duplication,) = await self.source.admin.query_duplication(table)
        return duplication.status.value

    async def reach(self, table: str, status: str, *, within_s: float) -> Any:
        """Wait for a phase; return the duplication."""

        async def there() -> bool:
            return await self.status(table) == status

        limit_s = within_s * self.patience
        await poll_until(there, deadline_s=limit_s, what=f"{table} in {status}")
        (duplication,) = await self.source.admin.query_duplication(table)
        return duplication

    async def differences(self, table: str, remote: str | None = None) -> list[str]:
        """Rows that are not the same on both sides."""
        here = await _rows(await self.source.table(table))
        there = await _rows(await self.target.table(remote or table))
        return [
            f"{key}: {here.get(key)} and {there.get(key)}"
            for key in sorted({*here, *there})
            if here.get(key) != there.get(key)
        ]

    async def equal(self, table: str, remote: str | None = None, *, within_s: float = 10.0) -> None:
        """Wait until every committed write is on both sides, and compare all rows."""
        await self.source.admin.wait_duplicated(table, timeout=within_s * self.patience)
        assert await self.differences(table, remote) == []


async def _rows(table: pegaskv.Table) -> dict[tuple[bytes, bytes], tuple[bytes, int | None]]:
    found = {}
    async for row in table.full_scan(options=ScanOptions(return_expire=True)):
        found[row.hash_key, row.sort_key] = (row.value, row.expires_at)
    return found


@contextlib.asynccontextmanager
async def running_pair(
    directory: Path, *, options: str = "", replicas: int = 0
) -> AsyncIterator[Pair]:
    """Both clusters, connected, each knowing the other; `options` are more of alpha's.

    `replicas`: so many replica servers each, 0 = one server for all.
    """
    with contextlib.ExitStack() as stack:
        alpha, beta = (
            stack.enter_context(_running_side(directory / name, config, replicas=replicas))
            for name, config in (
                ("alpha", _CONFIG.format(name="alpha", number=1) + options),
                ("beta", _CONFIG.format(name="beta", number=2)),
            )
        )
        async with _connected(alpha, beta) as pair:
            yield pair


@contextlib.contextmanager
def _running_side(directory: Path, config: str, *, replicas: int) -> Iterator[Any]:
    if replicas:
        with running_servers(directory, replicas, config=config + _FAST) as servers:
            yield servers
        return
    # Behind a wildcard clients stay on the address by which they came: the proxy's.
    host = "0.0.0.0" if directory.name == "beta" else "127.0.0.1"
    with running_server(directory, config=config, address=f"{host}:0") as server:
        yield server


@contextlib.asynccontextmanager
async def _connected(alpha: Any, beta: Any) -> AsyncIterator[Pair]:
    beta_port = beta.address.rsplit(":", 1)[1]
    direct = f"127.0.0.1:{beta_port}"
    async with (
        running_proxy(direct) as proxy,
        pegaskv.connect(alpha.address, timeout=20.0) as source,
        pegaskv.connect(direct, timeout=20.0) as target,
    ):
        await source.admin.add_cluster("beta", proxy.address, 2)
        await target.admin.add_cluster("alpha", alpha.address, 1)
        yield Pair(alpha, beta, proxy, source, target)
