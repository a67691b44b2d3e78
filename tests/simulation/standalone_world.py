"""The production standalone server and production clients in a simulated world.

The whole composition runs: frames over a simulated network, the log on a simulated
disk, engines in memory that are as old as their last flush after a crash. Writers own
their keys and write growing numbers, so what may be found after a crash is known:
at least what was acknowledged (or seen since), at most what was tried.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from pegaskv.base.errors import Busy, PegasKVError, RequestError
from pegaskv.client import Client, ClientOptions, Table, connect
from pegaskv.replica.options import ReplicaOptions
from pegaskv.server.config import Config
from tests.simulation.disk import SimulatedDisk
from tests.simulation.network import NetworkOptions
from tests.simulation.servers import PORT, serve, tiny_log
from tests.simulation.world import Life, World

__all__ = ["Run", "Writer", "count_under_kills", "simulate"]

WRITERS: Final = 6
KINDS: Final = 3
CALL_S: Final = 5.0
# After so many writes of a round a writer takes its time: more of them show nothing new.
HURRIED: Final = 150


@dataclass
class Writer:
    """One task and its own hash key."""

    name: bytes
    attempted: int = 0
    # Of each kind of write, the least number that must be there from now on.
    floor: dict[int, int] = field(default_factory=dict)
    counter: int = 0
    doubtful: int = 0


@dataclass
class Run:
    """What one seed did, and what was wrong with it."""

    seed: int
    acknowledged: int = 0
    unknown: int = 0
    kills: int = 0
    power_cuts: int = 0
    checks: int = 0
    wrong: list[str] = field(default_factory=list)
    digest: str = ""
    # What the seed chose.
    told: str = ""


async def _serve(life: Life) -> None:
    random = life.world.random("config")
    log = tiny_log(random)
    replica = ReplicaOptions(expiry_sweep_interval_ms=random.choice([1, 300_000]))
    await serve(life, Config(replica=replica, storage_log=log))


class _Scenario:
    def __init__(self, world: World, rounds: int) -> None:
        self.world = world
        self.rounds = rounds
        self.random = world.random("scenario")
        self.server = world.node("server")
        self.client_life = world.node("client").spawn()
        self.run = Run(world.seed)
        self.tables: dict[str, list[Writer]] = {
            durability: [Writer(b"%s-%d" % (durability.encode(), n)) for n in range(WRITERS)]
            for durability in ("fsync", "os")
        }
        self.stopped = False

    async def client(self) -> Client:
        life = self.client_life
        return await connect(
            f"{self.server.address}:{PORT}",
            timeout=60.0,
            options=ClientOptions(),
            network=life.network,
            clock=life.clock,
            random=life.random("client"),
        )

    async def connected(self) -> Client:
        """A client, as soon as the server answers; this is the liveness bound."""
        end_ms = self.world.now_ms + 60_000
        while True:
            try:
                return await self.client()
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(50)

    async def play(self) -> Run:
        self.server.start(_serve)
        client = await self.connected()
        for durability in self.tables:
            await client.admin.create_table(
                durability, 4, envs={"durability": durability}, if_exists="same", timeout=300.0
            )
        await client.close()
        for _ in range(self.rounds):
            await self._round()
        return self.run

    async def _round(self) -> None:
        client = await self.connected()
        writers = [
            self.client_life.task(self._write(await client.table(durability), writer))
            for durability, of_table in self.tables.items()
            for writer in of_table
        ]
        await self.world.sleep_ms(self.random.choice([5, 50, 300, 1_500]))
        power = self._crash()
        for writer in writers:
            await writer
        await client.close()
        lost = power
        self.server.start(_serve)
        if self.random.random() < 0.4:
            # Twice in a row: what a reader saw between the two must stay.
            if self.random.random() < 0.7:
                await self._check(os_may_lose=lost)
            else:
                await self.world.sleep_ms(self.random.randrange(40))
            lost = self._crash(power=True) or lost
            self.server.start(_serve)
        await self._check(os_may_lose=lost)

    def _crash(self, *, power: bool | None = None) -> bool:
        power = self.random.random() < 0.5 if power is None else power
        self.run.power_cuts += power
        self.run.kills += not power
        self.server.crash(power=power)
        return power

    async def _write(self, table: Table, writer: Writer) -> None:
        """Write growing numbers until the server is gone."""
        random = self.world.random(f"writer {writer.name!r}")
        unhurried = writer.attempted + HURRIED
        while True:
            number = writer.attempted = writer.attempted + 1
            value = b"%d" % number
            kind = number % KINDS
            try:
                match kind:
                    case 0:
                        rows = {b"left": value, b"right": value}
                        await table.multi_set(writer.name, rows, timeout=CALL_S)
                    case 1:
                        await table.set(writer.name, b"single", value, timeout=CALL_S)
                    case _:
                        await self._incr(table, writer)
            except Busy:
                continue
            except RequestError:
                self.run.unknown += 1
                return
            writer.floor[kind] = number
            self.run.acknowledged += 1
            if random.random() < 0.05 or number > unhurried:
                await self.world.sleep_ms(random.randrange(30))

    @staticmethod
    async def _incr(table: Table, writer: Writer) -> None:
        try:
            writer.counter = await table.incr(writer.name, b"counter", timeout=CALL_S)
        except RequestError:
            writer.doubtful += 1
            raise

    async def _check(self, *, os_may_lose: bool) -> None:
        client = await self.connected()
        for durability, writers in self.tables.items():
            table = await client.table(durability)
            may_lose = os_may_lose and durability == "os"
            for writer in writers:
                await self._check_writer(table, writer, may_lose=may_lose)
        await client.close()
        self.run.checks += 1

    async def _check_writer(self, table: Table, writer: Writer, *, may_lose: bool) -> None:
        # A slow worker takes seconds for each step of a start; the bound is that of `connected`.
        rows = await table.multi_get(writer.name, timeout=60.0)
        if rows.get(b"left") != rows.get(b"right"):
            self.run.wrong.append(f"half a multi_set of {writer.name!r}: {dict(rows)}")
        for sort_key, kind in ((b"left", 0), (b"single", 1)):
            got = int(rows.get(sort_key, b"0"))
            floor = 0 if may_lose else writer.floor.get(kind, 0)
            if not floor <= got <= writer.attempted or (got and got % KINDS != kind):
                self.run.wrong.append(
                    f"{writer.name!r} {sort_key!r}: found {got}, must be {floor} to "
                    f"{writer.attempted}"
                )
            # Seen once is there for ever.
            writer.floor[kind] = got
        counter = int(rows.get(b"counter", b"0"))
        least = 0 if may_lose else writer.counter
        if not least <= counter <= writer.counter + writer.doubtful:
            self.run.wrong.append(
                f"{writer.name!r} counter {counter}, must be {least} to "
                f"{writer.counter + writer.doubtful}"
            )
        writer.counter, writer.doubtful = counter, 0


def simulate(seed: int, *, rounds: int = 5, **overrides: Any) -> Run:
    """Run one seed to its end."""
    with World(seed, disk=SimulatedDisk, **overrides) as world:
        scenario = _Scenario(world, rounds)
        world.run(scenario.play())
        scenario.run.digest = world.digest()
        scenario.run.told = f"rounds={rounds} {world.options}"
        return scenario.run


def count_under_kills(seed: int, *, kills: int = 10) -> tuple[int, int, int]:
    """Increment one counter from several clients while the server is killed again and again.

    Returns (acknowledged, unknown, counted): each acknowledged one counts once, and each that
    nobody answered once at the most.
    """
    # Near, so that each kill finds writes under way.
    near = {"network": NetworkOptions(), "worker_us": (5, 500), "worker_slow": 0.0}
    with World(seed, disk=SimulatedDisk, **near) as world:
        scenario = _Scenario(world, 0)
        server = scenario.server
        acknowledged = unknown = 0
        running = True

        async def count(table: Table) -> None:
            nonlocal acknowledged, unknown
            while running:
                try:
                    await table.incr(b"h", b"counter", timeout=CALL_S)
                except RequestError:
                    unknown += 1
                else:
                    acknowledged += 1

        async def play() -> int:
            nonlocal running
            server.start(_serve)
            client = await scenario.connected()
            await client.admin.create_table("t", 1, timeout=300.0)
            table = await client.table("t")
            writers = [scenario.client_life.task(count(table)) for _ in range(WRITERS)]
            for _ in range(kills):
                await world.sleep_ms(scenario.random.randrange(1, 60))
                server.crash(power=False)
                await world.sleep_ms(scenario.random.choice([1, 20, 200]))
                server.start(_serve)
                await (await scenario.connected()).close()
            running = False
            for writer in writers:
                await writer
            value = await table.get(b"h", b"counter", timeout=60.0)
            await client.close()
            return int(value or b"0")

        counted = world.run(play())
        return acknowledged, unknown, counted
