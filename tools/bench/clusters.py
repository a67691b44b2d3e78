"""A replicated cluster under measurement: a meta server and replica servers, each a process."""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final

import pegaskv
from tools.bench.processes import Server, cpu_seconds

__all__ = ["Cluster", "members", "running_cluster", "until", "whole"]

_PATIENCE_S: Final = 120.0


class Cluster:
    """The processes; `config` is what all of their files have in common."""

    def __init__(self, directory: Path, config: str = "") -> None:
        self._directory = directory
        self._config = f'[cluster]\nname = "bench"\nid = 1\n{config}'
        self.meta = self._server("meta")
        self.replicas: list[Server] = []

    def start(self, replicas: int) -> None:
        """Start the meta server and that many replica servers."""
        self.meta.start()
        for _ in range(replicas):
            self.add()

    def add(self) -> Server:
        """Start one more replica server, on an empty directory."""
        server = self._server("replica", "--meta", self.meta.listen)
        self.replicas.append(server)
        server.start()
        return server

    def _server(self, role: str, *arguments: str) -> Server:
        name = role if role == "meta" else f"{role}{len(self.replicas) + 1}"
        directory = self._directory / name
        directory.mkdir()
        return Server(directory, self._config, http="127.0.0.1:0", role=role, arguments=arguments)

    def stop(self) -> None:
        """End all of them; nobody has to take over, so it is not asked for."""
        for server in (*self.replicas, self.meta):
            if server.process is not None and server.process.poll() is None:
                server.kill()

    @property
    def address(self) -> str:
        """Where clients begin."""
        return self.meta.listen

    def cpu_seconds(self) -> float:
        """The processor time that all processes have had, the meta server's too."""
        return sum(cpu_seconds(server.pid) for server in (*self.replicas, self.meta))

    def count(self, *names: str) -> list[float]:
        """Return counters, summed over the replica servers."""
        found = [server.metrics() for server in self.replicas]
        return [sum(one[name] for one in found) for name in names]

    async def node_id(self, client: pegaskv.Client, server: Server) -> str:
        """Return the id of a replica server as configurations name it."""
        (found,) = [one for one in await client.admin.nodes() if one.address == server.listen]
        return found.node_id


@contextlib.contextmanager
def running_cluster(replicas: int, config: str = "") -> Iterator[Cluster]:
    """Yield a cluster on empty directories; all of it is ended and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench-pegaskv-") as directory:
        cluster = Cluster(Path(directory), config)
        try:
            cluster.start(replicas)
            yield cluster
        finally:
            cluster.stop()


async def members(client: pegaskv.Client, table: str) -> list[tuple[str, ...]]:
    """Return the node ids of each partition's members, the primary first."""
    return [one.members for one in (await client.admin.table_info(table)).partitions]


async def whole(client: pegaskv.Client, table: str) -> bool:
    """Whether every partition has all of its members, and all of them answer."""
    details = await client.admin.table_info(table)
    health = details.health({one.node_id: one.status for one in await client.admin.nodes()})
    return health.healthy == health.partitions


async def until(condition: Callable[[], bool | Awaitable[bool]], what: str) -> float:
    """Ask again and again; return the seconds until the answer was yes."""
    began = time.perf_counter()
    while True:
        answer = condition()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return time.perf_counter() - began
        if time.perf_counter() - began > _PATIENCE_S:
            raise SystemExit(f"{what}: not within {_PATIENCE_S:g} s")
        await asyncio.sleep(0.02)
