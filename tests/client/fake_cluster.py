"""A meta server and three replica servers in virtual time, which die, pause and move on order.

They share their rows, so what is asserted is what the client does with what it meets: the
servers' own care for the rows is tested elsewhere.
"""

from collections.abc import Awaitable, Callable

from pegaskv.client import Client, ClientOptions, Table, connect
from pegaskv.codec.operations import Operation
from tests.client.fake_server import FakeServer, FakeStore
from tests.simulation.network import NetworkOptions
from tests.simulation.world import Life, Node, World, WorldOptions

__all__ = ["FakeCluster", "in_cluster"]

PARTITIONS = 16
PORT = 34_801


class FakeCluster:
    """`servers` and their machines by number; partition i is led by server i % 3 at first."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = FakeStore()
        self.table = self.store.tables["t"]
        self.table.partition_count = PARTITIONS
        self.machines: list[Node] = [world.node(f"server{number}") for number in range(3)]
        self.servers: list[FakeServer] = []
        self.meta_machine = world.node("meta")
        self.client_machine = world.node("client")
        self.life: Life = self.client_machine.spawn()

    async def start(self) -> None:
        self.servers = [await self._server(machine) for machine in self.machines]
        self.meta = await self._server(self.meta_machine)
        for index in range(PARTITIONS):
            self.table.primaries[index] = self.servers[index % 3].address

    async def _server(self, machine: Node) -> FakeServer:
        server = FakeServer(machine.spawn().network, self.store)
        return await server.start(machine.address, PORT)

    async def restart(self, number: int) -> None:
        self.servers[number] = await self._server(self.machines[number])

    def move(self, number: int, to: int | None) -> None:
        """Another server leads what this one led."""
        address = self.servers[number].address
        for index, primary in self.table.primaries.items():
            if primary == address:
                self.table.primaries[index] = None if to is None else self.servers[to].address
        self.table.version += 1

    async def client(self, *, limit_ms: int = 5_000, metas: str | None = None) -> Client:
        return await connect(
            metas or self.meta.address,
            network=self.life.network,
            clock=self.life.clock,
            random=self.life.random("client"),
            options=ClientOptions(timeout_ms=limit_ms),
        )

    def key(self, number: int, ordinal: int = 0) -> bytes:
        """A hash key of a partition that the server led at first."""
        found = 0
        for candidate in range(10_000):
            key = b"k%d" % candidate
            if self.opened.partition_of(key) % 3 == number:
                if found == ordinal:
                    return key
                found += 1
        raise AssertionError("no such key")

    async def open(self, client: Client) -> Table:
        """Open the table, with a connection to each server."""
        self.opened = await client.table("t")
        for number in range(3):
            await self.opened.set(self.key(number), "s", "v")
        return self.opened

    @property
    def routing_questions(self) -> int:
        return len(self.meta.seen(Operation.QUERY_CONFIG))


def in_cluster(
    play: Callable[[FakeCluster, Client, Table], Awaitable[None]],
    *,
    seed: int = 1,
    limit_ms: int = 5_000,
) -> None:
    """Run a play from its beginning, with all servers well, to the client's close."""

    async def main(world: World) -> None:
        cluster = FakeCluster(world)
        await cluster.start()
        # On its machine: what stalls that stalls its timers too.
        client = await cluster.life.task(cluster.client(limit_ms=limit_ms))
        try:
            await play(cluster, client, await cluster.life.task(cluster.open(client)))
        finally:
            await client.close()

    # Near each other: what is measured here is what the client waits for.
    options = WorldOptions(network=NetworkOptions(), clock_drift_ppm=0)
    with World(seed, options=options) as world:
        world.run(main(world))
