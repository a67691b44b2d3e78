"""Two production clusters that duplicate to each other in a simulated world.

Clients write to one cluster or to both while servers are killed, lose power, stall, are
cut off in one direction or both, and have clocks that differ and jump. Then everything
heals, and the rows of both must be equal: keys, values, expiries. Keys are few, so that
deletes, expiries and late writes meet.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from pegaskv.base.errors import DuplicationExists, PegasKVError, RequestError
from pegaskv.base.types import DuplicationStatus
from pegaskv.client import Client, ClientOptions, Table, connect
from pegaskv.client.ranges import ScanOptions
from pegaskv.replica.options import ReplicaOptions
from pegaskv.server.config import ClusterOptions, Config, RemoteClusterOptions
from tests.simulation.disk import SimulatedDisk
from tests.simulation.servers import PORT, serve, tiny_log
from tests.simulation.world import Life, Node, World

__all__ = ["Cluster", "DuplicationRun", "Story", "rows_of", "simulate_duplication"]

TABLE: Final = "t"
CALL_S: Final = 5.0
# After everything has healed: DS_LOG and all confirmed within this virtual time.
HEALED_WITHIN_S: Final = 60.0
# Two clocks differ by twice as much at the most, and by what they began with.
_WALL_ERROR_US_MAX: Final = 120_000_000

Rows = dict[tuple[bytes, bytes], tuple[bytes, int | None]]


class Cluster:
    """One standalone server, and how to reach it."""

    def __init__(self, world: World, name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.number = number
        self.node: Node = world.node(name)
        self.clients = world.node(f"client {name}").spawn()
        self.others: list[Cluster] = []
        self.wall_error_us = 0
        self.log = tiny_log(world.random(f"config {name}"))

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self.node.address}:{PORT}"

    def start(self) -> None:
        """Start the server; it comes back with what its disk kept."""
        self.node.start(self._serve)

    async def _serve(self, life: Life) -> None:
        config = Config(
            cluster=ClusterOptions(self.name, self.number),
            clusters={
                other.name: RemoteClusterOptions(metas=other.address, id=other.number)
                for other in self.others
            },
            replica=ReplicaOptions(expiry_sweep_interval_ms=500),
            storage_log=self.log,
        )
        await serve(life, config)

    async def connected(self) -> Client:
        """A client, as soon as the server answers."""
        end_ms = self.world.now_ms + 60_000
        while True:
            try:
                life = self.clients
                return await connect(
                    self.address,
                    timeout=60.0,
                    options=ClientOptions(),
                    network=life.network,
                    clock=life.clock,
                    random=life.random("client"),
                )
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(50)


@dataclass
class DuplicationRun:
    """What one seed did, and what was wrong with it."""

    seed: int
    acknowledged: int = 0
    unknown: int = 0
    faults: int = 0
    compared: int = 0
    phases: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    digest: str = ""


async def rows_of(table: Table) -> Rows:
    """Every visible row with its expiry."""
    found: Rows = {}
    async for row in table.full_scan(options=ScanOptions(return_expire=True)):
        found[row.hash_key, row.sort_key] = (row.value, row.expires_at)
    return found


@dataclass(frozen=True)
class Story:
    """What a seed plays; drawn from it unless a test says otherwise."""

    two_way: bool
    checkpoint: bool
    source_partitions: int
    # 0: the target table is made by the duplication.
    target_partitions: int
    rows_before: int
    rounds: int
    faults: bool
    # `os`: what was acknowledged and not synced may be lost by a power cut at the source. The
    # target then gets none, since it would lose what it has confirmed: that needs a new copy.
    durability: str = "fsync"

    @classmethod
    def draw(cls, random: Random) -> "Story":
        """Draw one."""
        two_way = random.random() < 0.4
        return cls(
            two_way=two_way,
            checkpoint=True,
            source_partitions=random.choice([1, 2, 4]),
            target_partitions=random.choice([0, 0, 0, 1, 2, 8]),
            rows_before=random.choice([0, 1, 2, 40, 300]),
            rounds=random.choice([1, 2, 4]),
            faults=random.random() < 0.9,
            durability=random.choice(["fsync", "fsync", "os"]),
        )


class _Play:
    def __init__(self, world: World, story: Story) -> None:
        self.world = world
        self.story = story
        self.random = world.random("play")
        self.run = DuplicationRun(world.seed)
        self.a = Cluster(world, "alpha", 1)
        self.b = Cluster(world, "beta", 2)
        self.a.others, self.b.others = [self.b], [self.a]
        self.writing = True

    async def play(self) -> DuplicationRun:
        story = self.story
        self.a.start()
        if self.random.random() < 0.8:
            self.b.start()
        else:
            # The target is not there yet: the duplication waits for it.
            self.a.clients.task(self._start_late())
        client = await self.a.connected()
        envs = {"durability": story.durability}
        await client.admin.create_table(TABLE, story.source_partitions, envs=envs, timeout=300.0)
        table = await client.table(TABLE)
        await self._fill(table, story.rows_before)
        if story.target_partitions:
            remote = await self.b.connected()
            await remote.admin.create_table(TABLE, story.target_partitions, timeout=300.0)
            await remote.close()
        await client.close()
        await self._add(self.a, self.b, merge=bool(story.target_partitions))
        if story.two_way:
            await self._persist(self._open_and_add_back)
        for _ in range(story.rounds):
            await self._round()
        self._heal()
        await self._settle()
        return self.run

    async def _start_late(self) -> None:
        await self.world.sleep_ms(1_500)
        if not self.b.node.alive:
            self.b.start()

    async def _fill(self, table: Table, count: int) -> None:
        for number in range(count):
            ttl = self.random.choice([0, 0, 0, 3, 86_400])
            await table.set(b"h%d" % (number % 37), b"s%d" % number, b"before", ttl=ttl)

    async def _persist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Try again until it worked: servers come and go."""
        end_ms = self.world.now_ms + 120_000
        while True:
            try:
                return await attempt()
            except DuplicationExists:
                return None
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(100)

    async def _add(self, source: Cluster, target: Cluster, *, merge: bool = False) -> None:
        async def attempt() -> None:
            client = await source.connected()
            try:
                await client.admin.add_duplication(
                    TABLE, target.name, checkpoint=self.story.checkpoint, merge=merge, timeout=20.0
                )
            finally:
                await client.close()

        await self._persist(attempt)

    async def _open_and_add_back(self) -> None:
        client = await self.b.connected()
        try:
            await client.admin.add_duplication(TABLE, self.a.name, merge=True, timeout=20.0)
        finally:
            await client.close()

    # Faults and writers.

    async def _round(self) -> None:
        self.writing = True
        writers = [self.a.clients.task(self._write(self.a, n)) for n in range(3)]
        if self.story.two_way:
            writers += [self.b.clients.task(self._write(self.b, n)) for n in range(3)]
        for _ in range(self.random.randrange(1, 5)):
            await self.world.sleep_ms(self.random.choice([1, 20, 100, 700]))
            if self.story.faults:
                await self._fault()
        self.writing = False
        for writer in writers:
            await writer

    async def _fault(self) -> None:
        self.run.faults += 1
        network = self.world.network
        victim = self.random.choice([self.a, self.b])
        match self.random.randrange(7):
            case 0 | 1:
                if victim.node.alive:
                    power = self.random.random() < 0.5 and self._may_lose_power(victim)
                    victim.node.crash(power=power)
                    await self.world.sleep_ms(self.random.choice([0, 30, 800]))
                    victim.start()
            case 2:
                both = self.random.random() < 0.5
                hosts = [self.a.node.address, self.b.node.address]
                self.random.shuffle(hosts)
                network.cut(hosts[0], hosts[1], both=both)
                await self.world.sleep_ms(self.random.choice([50, 1_500, 8_000]))
                network.heal_all()
            case 3:
                if victim.node.alive:
                    victim.node.stall()
                    await self.world.sleep_ms(self.random.choice([50, 900]))
                    victim.node.resume()
            case 4:
                self._jump(victim)
            case 5:
                network.reset(self.a.node.address, self.b.node.address)
            case _:
                await self._second_add(victim)

    def _may_lose_power(self, victim: Cluster) -> bool:
        safe = self.story.durability == "fsync"
        return safe or (victim is self.a and not self.story.two_way)

    def _jump(self, cluster: Cluster) -> None:
        """Set a clock wrong: by less than a target refuses, which is another test."""
        by_us = self.random.choice([-60_000_000, -2_000_000, 3_000_000, 60_000_000])
        if abs(cluster.wall_error_us + by_us) <= _WALL_ERROR_US_MAX:
            cluster.wall_error_us += by_us
            cluster.node.jump_wall(by_us)

    async def _second_add(self, cluster: Cluster) -> None:
        """Adding once more in any phase changes nothing."""
        if cluster is self.b and not self.story.two_way:
            return
        other = cluster.others[0]
        try:
            client = await connect(
                cluster.address,
                timeout=2.0,
                network=cluster.clients.network,
                clock=cluster.clients.clock,
                random=cluster.clients.random("second add"),
            )
        except PegasKVError:
            return
        try:
            await client.admin.add_duplication(TABLE, other.name, "another", timeout=2.0)
        except DuplicationExists:
            pass
        except RequestError:
            return
        else:
            self.run.wrong.append("a second add was obeyed")
        finally:
            await client.close()

    async def _write(self, cluster: Cluster, number: int) -> None:
        random = self.world.random(f"writer {cluster.name} {number} {self.world.now_ms}")
        client = await cluster.connected()
        while self.writing:
            # The server may go down without a word between hello and this.
            try:
                table = await client.table(TABLE, timeout=2.0)
            except RequestError:
                continue
            break
        sequence = 0
        while self.writing:
            sequence += 1
            value = b"%s.%d.%d" % (cluster.name.encode(), number, sequence)
            try:
                await self._one(table, random, value)
            except RequestError:
                self.run.unknown += 1
                await self.world.sleep_ms(20)
            else:
                self.run.acknowledged += 1
            if random.random() < 0.2:
                await self.world.sleep_ms(random.randrange(40))
        await client.close()

    @staticmethod
    async def _one(table: Table, random: Random, value: bytes) -> None:
        hash_key = b"h%d" % random.randrange(12)
        sort_keys = [b"s%d" % random.randrange(4) for _ in range(3)]
        ttl = random.choice([0, 0, 0, 2, 86_400])
        match random.randrange(7):
            case 0 | 1:
                await table.set(hash_key, sort_keys[0], value, ttl=ttl, timeout=CALL_S)
            case 2:
                await table.delete(hash_key, sort_keys[0], timeout=CALL_S)
            case 3:
                rows = dict.fromkeys(sort_keys, value)
                await table.multi_set(hash_key, rows, ttl=ttl, timeout=CALL_S)
            case 4:
                await table.multi_delete(hash_key, sort_keys, timeout=CALL_S)
            case 5:
                await table.incr(hash_key, b"counter", timeout=CALL_S)
            case _:
                await table.batch_set(
                    [(hash_key, sort_key, value) for sort_key in sort_keys], timeout=CALL_S
                )

    # The end.

    def _heal(self) -> None:
        self.world.network.heal_all()
        for cluster in (self.a, self.b):
            if not cluster.node.alive:
                cluster.start()

    async def _settle(self) -> None:
        """Everything is well: both must become equal, soon and without help."""
        pairs = [(self.a, self.b)] + ([(self.b, self.a)] if self.story.two_way else [])
        for source, target in pairs:
            await self._in_log(source, target)
        clients = [await cluster.connected() for cluster in (self.a, self.b)]
        for source, _ in pairs:
            client = clients[0] if source is self.a else clients[1]
            await client.admin.wait_duplicated(TABLE, timeout=HEALED_WITHIN_S)
        if self.story.two_way:
            # What the second pass shipped back is not shipped again.
            await clients[0].admin.wait_duplicated(TABLE, timeout=HEALED_WITHIN_S)
        # Rows with short lives are gone everywhere, whatever the clocks say.
        await self.world.sleep_ms(400_000)
        here, there = [await rows_of(await client.table(TABLE, timeout=60.0)) for client in clients]
        self.run.compared += len(here)
        for key in sorted({*here, *there}):
            if here.get(key) != there.get(key):
                self.run.wrong.append(f"{key}: alpha {here.get(key)}, beta {there.get(key)}")
        for client in clients:
            await client.close()

    async def _in_log(self, source: Cluster, target: Cluster) -> None:
        end_ms = self.world.now_ms + int(HEALED_WITHIN_S * 1_000)
        client = await source.connected()
        while True:
            try:
                found = await client.admin.query_duplication(TABLE)
            except RequestError:
                found = []
            for one in found:
                self.run.phases.add(one.status.value)
            mine = [one for one in found if one.remote_cluster == target.name]
            if len(mine) > 1:
                self.run.wrong.append(f"{len(mine)} entries for one cluster")
            if mine and _is_log(mine[0].status):
                break
            if self.world.now_ms > end_ms:
                self.run.wrong.append(f"{source.name} is stuck: {mine}")
                break
            await self.world.sleep_ms(50)
        await client.close()


def _is_log(status: Any) -> bool:
    return status is DuplicationStatus.DS_LOG


def simulate_duplication(seed: int, story: Story | None = None, **overrides: Any) -> DuplicationRun:
    """Run one seed to its end."""
    overrides.setdefault("wall_offset_us", 2_000_000)
    with World(seed, disk=SimulatedDisk, **overrides) as world:
        play = _Play(world, story or Story.draw(world.random("story")))
        world.run(play.play(), limit_ms=3_600_000)
        play.run.digest = world.digest()
        return play.run
