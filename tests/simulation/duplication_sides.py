"""The clusters of a simulated duplication, and how to reach them."""

from abc import ABC, abstractmethod
from typing import Any, Final

from pegaskv.base.errors import PegasKVError
from pegaskv.client import Client, ClientOptions, connect
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.replica.options import ReplicaOptions
from pegaskv.server.config import ClusterOptions, Config, RemoteClusterOptions
from tests.simulation.servers import PORT, serve, tiny_log
from tests.simulation.world import Life, Node, World

__all__ = ["Cluster", "Side"]

# Longer than any absence of a server.
_ABSENT_MS_MAX: Final = 300_000


class Side(ABC):
    """One of the clusters, and how to reach it."""

    address: str

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.number = number
        self.clients = world.node(f"client {name}").spawn()
        self.others: list[Any] = []

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether it runs."""

    @abstractmethod
    def start(self) -> None:
        """Start it."""

    @abstractmethod
    def copies_slowly(self) -> None:
        """Let a copy take so long that much happens in between."""

    def remotes(self) -> dict[str, RemoteClusterOptions]:
        """What its configuration says of the others."""
        return {
            other.name: RemoteClusterOptions(metas=other.address, id=other.number)
            for other in self.others
        }

    async def connect(self, *, limit_s: float) -> Client:
        """A client; raises PegasKVError when the server does not answer in time."""
        life = self.clients
        return await connect(
            self.address,
            timeout=limit_s,
            options=ClientOptions(),
            network=life.network,
            clock=life.clock,
            random=life.random("client"),
        )

    async def connected(self) -> Client:
        """A client, as soon as the server answers."""
        end_ms = self.world.now_ms + _ABSENT_MS_MAX
        while True:
            try:
                return await self.connect(limit_s=60.0)
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(50)


class Cluster(Side):
    """One standalone server."""

    def __init__(self, world: World, name: str, number: int) -> None:
        super().__init__(world, name, number)
        self.node: Node = world.node(name)
        self.wall_error_us = 0
        random = world.random(f"config {name}")
        self.log = tiny_log(random)
        self.duplication = DuplicationOptions(
            batch_bytes=random.choice([4_096, 32_768, 262_144]),
            confirm_interval_ms=random.choice([10, 100, 1_000]),
        )

    def copies_slowly(self) -> None:
        """Let a copy take so long that much happens in between."""
        self.duplication = DuplicationOptions(batch_bytes=4_096, copy_bytes_per_second=20_000)

    @property
    def address(self) -> str:  # type: ignore[override]
        """Where it listens."""
        return f"{self.node.address}:{PORT}"

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.node.alive

    def start(self) -> None:
        """Start the server; it comes back with what its disk kept."""
        self.node.start(self._serve)

    async def _serve(self, life: Life) -> None:
        config = Config(
            cluster=ClusterOptions(self.name, self.number),
            clusters=self.remotes(),
            replica=ReplicaOptions(expiry_sweep_interval_ms=500),
            storage_log=self.log,
            duplication=self.duplication,
        )
        await serve(life, config)
