"""A meta server and replica servers in the process of the test, over real sockets."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from pegaskv.server.config import config_from_text
from pegaskv.server.host import Host
from pegaskv.server.meta_server import MetaServer
from pegaskv.server.replica_server import ReplicaServer
from tests.helpers import poll_until

__all__ = ["Cluster", "cluster", "make_meta", "make_replica", "serving"]

SMALL = """
[server]
listen = '{listen}'
http = 'none'
[storage]
log_segment_bytes = 65536
[meta]
replica_assign_delay_ms = 1000
balance_settle_ms = 60000
"""


def make_meta(data: Path, *, listen: str = "127.0.0.1:0", extra: str = "") -> MetaServer:
    return MetaServer(config_from_text(SMALL.format(listen=listen) + extra, "meta"), data)


def make_replica(
    data: Path, metas: str, *, listen: str = "127.0.0.1:0", extra: str = "", **parts: Any
) -> ReplicaServer:
    text = SMALL.format(listen=listen) + f"[replica]\nmetas = '{metas}'\n" + extra
    return ReplicaServer(config_from_text(text, "replica"), data, **parts)


@asynccontextmanager
async def serving(server: Host, *, hand_over: bool = False) -> AsyncIterator[Host]:
    """Started, ready, and stopped at the end."""
    try:
        await server.start()
        await poll_until(server.ready.is_set, what=f"ready: {server.health()}")
        yield server
    finally:
        await server.stop(hand_over=hand_over)


class Cluster:
    """The servers by name; each can be stopped and started again on its directory and port."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.servers: dict[str, Host] = {}
        self._listen: dict[str, str] = {}

    @property
    def address(self) -> str:
        return self._listen["meta1"]

    async def start(self, name: str) -> Host:
        listen = self._listen.get(name, "127.0.0.1:0")
        if name.startswith("meta"):
            server: Host = make_meta(self.path / name, listen=listen)
        else:
            server = make_replica(self.path / name, self.address, listen=listen)
        self.servers[name] = server
        await server.start()
        self._listen[name] = server.address
        await poll_until(server.ready.is_set, what=f"{name} is ready: {server.health()}")
        return server

    async def stop(self, name: str, *, hand_over: bool = False) -> None:
        await self.servers.pop(name).stop(hand_over=hand_over)

    async def close(self) -> None:
        for name in sorted(self.servers, reverse=True):
            await self.stop(name)


@asynccontextmanager
async def cluster(path: Path, replicas: int = 3) -> AsyncIterator[Cluster]:
    """One meta server and some replica servers, all ready."""
    async with AsyncExitStack() as stack:
        found = Cluster(path)
        stack.push_async_callback(found.close)
        await found.start("meta1")
        for number in range(1, replicas + 1):
            await found.start(f"replica{number}")
        yield found
