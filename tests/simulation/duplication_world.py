"""Two production clusters that duplicate to each other in a simulated world.

Clients write to one cluster or to both while servers are killed, lose power, stall, are
cut off in one direction or both, and have clocks that differ and jump. Then everything
heals, and the rows of both must be equal: keys, values, expiries. Keys are few, so that
deletes, expiries and late writes meet; and each writer has some of its own, of which it
is known what must be there. Meanwhile operators pause, start, copy anew and add again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from pegaskv.base.errors import (
    DuplicationExists,
    OperationDisabled,
    PegasKVError,
    RequestError,
    Unavailable,
)
from pegaskv.base.types import DuplicationStatus
from pegaskv.client import Client, Table
from pegaskv.client.ranges import ScanOptions
from tests.simulation.disk import SimulatedDisk
from tests.simulation.duplication_sides import Cluster, Side
from tests.simulation.duplication_writers import Rows, Writer, key_before
from tests.simulation.world import World

__all__ = ["DuplicationRun", "Play", "Story", "rows_of", "simulate_duplication"]

TABLE: Final = "t"
# After everything has healed: DS_LOG and all confirmed within this virtual time.
HEALED_WITHIN_S: Final = 60.0
# Two clocks differ by twice as much at the most, and by what they began with.
_WALL_ERROR_US_MAX: Final = 120_000_000
# So many writes of a writer go as fast as they can in a round; then it takes its time.
_QUICK_WRITES: Final = 60
_WRITERS: Final = 3


@dataclass
class DuplicationRun:
    """What one seed did, and what was wrong with it."""

    seed: int
    acknowledged: int = 0
    unknown: int = 0
    faults: int = 0
    compared: int = 0
    checked: int = 0
    orders: int = 0
    phases: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    digest: str = ""
    # What the seed chose.
    told: str = ""


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
    # One side is down or cut off for so long in one of the rounds; 0: never.
    absent_s: int = 0
    # Operators pause, start and copy anew while all of this happens.
    operators: bool = False
    slow_copy: bool = False

    @classmethod
    def draw(cls, random: Random) -> "Story":
        """Draw one."""
        two_way = random.random() < 0.4
        rows_before = random.choice([0, 0, 1, 2, 40, 300, 600])
        return cls(
            two_way=two_way,
            # Without a copy nothing may be there before it is added.
            checkpoint=bool(rows_before) or random.random() < 0.4,
            source_partitions=random.choice([1, 2, 4]),
            target_partitions=random.choice([0, 0, 0, 1, 2, 8]),
            rows_before=rows_before,
            rounds=random.choice([1, 2, 4]),
            faults=random.random() < 0.9,
            durability=random.choice(["fsync", "fsync", "os"]),
            absent_s=random.choice([0, 0, 0, 70, 150]),
            operators=random.random() < 0.5,
            slow_copy=random.random() < 0.5,
        )


class Play:
    """One run of two clusters of one server each; `_cluster` and faults are another world's."""

    a: Any
    b: Any
    # By when what was written with a short life is gone by all clocks.
    expiry_ms = 400_000
    # Between two faults.
    pauses_ms = (1, 20, 100, 700)

    def __init__(self, world: World, story: Story) -> None:
        self.world = world
        self.story = story
        self.random = world.random("play")
        self.run = DuplicationRun(world.seed)
        self.a = self._cluster("alpha", 1)
        self.b = self._cluster("beta", 2)
        self.a.others, self.b.others = [self.b], [self.a]
        if story.slow_copy:
            self.a.copies_slowly()
        self.writing = True
        # In a long absence nobody hurries, so that a seed stays cheap.
        self.slow = False
        self.writers: dict[str, list[Writer]] = {
            cluster.name: [self._writer(cluster, number) for number in range(_WRITERS)]
            for cluster in (self.a, self.b)
        }

    def _cluster(self, name: str, number: int) -> Side:
        return Cluster(self.world, name, number)

    def _writer(self, cluster: Side, number: int) -> Writer:
        name = f"{cluster.name} {number}"
        return Writer(
            name.encode(),
            self.world.random(f"writer {name}"),
            lambda: self.world.now_ms,
            rows_before=self.story.rows_before,
            wrong=self.run.wrong,
        )

    async def play(self) -> DuplicationRun:
        """All of it."""
        story = self.story
        self.a.start()
        if self.random.random() < 0.8:
            self.b.start()
        else:
            # The target is not there yet: the duplication waits for it.
            self.a.clients.task(self._start_late())
        client = await self.a.connected()
        await self._create(client, story.source_partitions, story.durability)
        table = await client.table(TABLE)
        await self._fill(table, story.rows_before)
        if story.target_partitions:
            remote = await self.b.connected()
            await self._create(remote, story.target_partitions, "fsync")
            await remote.close()
        await client.close()
        # Without a copy, it is made by `merge` only.
        merge = bool(story.target_partitions) or not story.checkpoint
        await self._add(self.a, self.b, merge=merge)
        if story.two_way:
            await self._add(self.b, self.a, merge=True)
        absent = self.random.randrange(story.rounds)
        for number in range(story.rounds):
            await self._round(absent_s=story.absent_s if number == absent else 0)
        self._heal()
        await self._settle()
        return self.run

    async def _start_late(self) -> None:
        await self.world.sleep_ms(1_500)
        if not self.b.alive:
            self.b.start()

    async def _create(self, client: Client, partitions: int, durability: str) -> None:
        envs = {"durability": durability}
        await client.admin.create_table(TABLE, partitions, envs=envs, timeout=300.0)

    async def _fill(self, table: Table, count: int) -> None:
        value = b"before" + bytes(60)
        for ttl in (0, 0, 3, 86_400):
            rows = [
                (*key_before(number), value)
                for number in range(count)
                if self.random.random() < 0.3
            ]
            for start in range(0, len(rows), 50):
                await table.batch_set(rows[start : start + 50], ttl=ttl)
        if count:
            await table.set(*key_before(0), value)

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

    async def _add(self, source: Side, target: Side, *, merge: bool = False) -> None:
        async def attempt() -> None:
            client = await source.connected()
            try:
                await client.admin.add_duplication(
                    TABLE, target.name, checkpoint=self.story.checkpoint, merge=merge, timeout=20.0
                )
            finally:
                await client.close()

        await self._persist(attempt)
        if not self.story.checkpoint:
            # When only the answer was lost: nothing may be written before it is pinned.
            await self._persist(lambda: self._see_pins(source))

    @staticmethod
    async def _see_pins(source: Side) -> None:
        client = await source.connected()
        try:
            [found] = await client.admin.query_duplication(TABLE)
        finally:
            await client.close()
        if not (found.partitions and all(one.start_decree for one in found.partitions)):
            raise Unavailable("not every partition is pinned")

    # Faults and writers.

    async def _round(self, *, absent_s: int) -> None:
        self.writing = True
        sides = [self.a, self.b] if self.story.two_way else [self.a]
        tasks = [
            cluster.clients.task(self._write(cluster, writer))
            for cluster in sides
            for writer in self.writers[cluster.name]
        ]
        operators = [cluster.clients.task(self._operate(cluster)) for cluster in sides]
        for _ in range(self.random.randrange(1, 5)):
            await self.world.sleep_ms(self.random.choice(self.pauses_ms))
            if self.story.faults:
                await self._fault()
        if absent_s:
            await self._be_absent(absent_s)
        self.writing = False
        for task in (*tasks, *operators):
            await task

    async def _be_absent(self, seconds: int) -> None:
        """One side is down, or the two do not hear of each other, for long."""
        self.run.faults += 1
        self.slow = True
        self._heal()
        victim = self.random.choice([self.a, self.b, self.b])
        other = victim.others[0]
        if self.random.random() < 0.6:
            power = self.random.random() < 0.5
            self._crash(victim, power=power)
        else:
            both = self.random.random() < 0.5
            self.world.network.cut(victim.node.address, other.node.address, both=both)
        for _ in range(3):
            await self.world.sleep_ms(seconds * 1_000 // 3)
            if other.node.alive and self.random.random() < 0.3:
                # The log that is kept outlives the one that keeps it.
                self._crash(other, power=self.random.random() < 0.5)
                other.start()
        self._heal()
        self.slow = False
        await self.world.sleep_ms(self.random.choice([1, 300, 3_000]))

    async def _fault(self) -> None:
        self.run.faults += 1
        network = self.world.network
        victim = self.random.choice([self.a, self.b])
        match self.random.randrange(7):
            case 0 | 1:
                if victim.node.alive:
                    self._crash(victim, power=self.random.random() < 0.5)
                    await self.world.sleep_ms(self.random.choice([0, 30, 800]))
                    victim.start()
            case 2:
                both = self.random.random() < 0.5
                hosts = [self.a.node.address, self.b.node.address]
                self.random.shuffle(hosts)
                network.cut(hosts[0], hosts[1], both=both)
                milliseconds = self.random.choice([50, 1_500, 8_000])
                self.slow = milliseconds > 5_000
                await self.world.sleep_ms(milliseconds)
                self.slow = False
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

    def _crash(self, victim: Cluster, *, power: bool) -> None:
        power = power and self._may_lose_power(victim)
        victim.node.crash(power=power)
        if power and self.story.durability == "os":
            for writer in self.writers[victim.name]:
                writer.may_have_lost = True

    def _may_lose_power(self, victim: Cluster) -> bool:
        safe = self.story.durability == "fsync"
        return safe or (victim is self.a and not self.story.two_way)

    def _jump(self, cluster: Cluster) -> None:
        """Set a clock wrong: by less than a target refuses, which is another test."""
        by_us = self.random.choice([-60_000_000, -2_000_000, 3_000_000, 60_000_000])
        if abs(cluster.wall_error_us + by_us) <= _WALL_ERROR_US_MAX:
            cluster.wall_error_us += by_us
            cluster.node.jump_wall(by_us)

    async def _second_add(self, cluster: Side) -> None:
        """Adding once more in any phase changes nothing."""
        if cluster is self.b and not self.story.two_way:
            return
        other = cluster.others[0]
        try:
            client = await cluster.connect(limit_s=2.0)
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

    async def _operate(self, cluster: Side) -> None:
        """Pause and start in any phase, and sometimes copy all rows anew."""
        if not self.story.operators:
            return
        random = self.world.random(f"operator {cluster.name} {self.world.now_ms}")
        remote = cluster.others[0].name
        while self.writing:
            await self.world.sleep_ms(random.choice([10, 200, 1_000]) * (20 if self.slow else 1))
            try:
                client = await cluster.connect(limit_s=2.0)
            except PegasKVError:
                continue
            try:
                if random.random() < 0.4:
                    await client.admin.pause_duplication(TABLE, remote, timeout=2.0)
                else:
                    copy = random.random() < 0.15
                    await client.admin.start_duplication(TABLE, remote, copy=copy, timeout=2.0)
            except RequestError:
                continue
            else:
                self.run.orders += 1
            finally:
                await client.close()

    async def _write(self, cluster: Side, writer: Writer) -> None:
        random = self.world.random(f"pauses {writer.name!r} {self.world.now_ms}")
        client = await cluster.connected()
        while self.writing:
            # The server may go down without a word between hello and this.
            try:
                table = await client.table(TABLE, timeout=2.0)
            except RequestError:
                continue
            break
        tried = 0
        while self.writing:
            tried += 1
            try:
                await writer.write(table)
            except RequestError:
                await self.world.sleep_ms(20)
            if self.slow:
                await self.world.sleep_ms(random.randrange(500, 8_000))
            elif tried > _QUICK_WRITES:
                await self.world.sleep_ms(random.randrange(200))
            elif random.random() < 0.2:
                await self.world.sleep_ms(random.randrange(40))
        await client.close()

    # The end.

    def _heal(self) -> None:
        self.world.network.heal_all()
        for cluster in (self.a, self.b):
            if not cluster.alive:
                cluster.start()

    async def _settle(self) -> None:
        """Everything is well: both must become equal, soon and without help.

        Of operators it needs only that what they paused they start again, and a new copy where
        a source without syncs lost of its log what its tables have.
        """
        pairs = [(self.a, self.b)] + ([(self.b, self.a)] if self.story.two_way else [])
        if self.story.operators:
            for source, target in pairs:
                await self._start_again(source, target)
        for source, target in pairs:
            await self._in_log(source, target)
        clients = [await cluster.connected() for cluster in (self.a, self.b)]
        for client, (source, target) in zip(clients, pairs, strict=False):
            try:
                await client.admin.wait_duplicated(TABLE, timeout=HEALED_WITHIN_S)
            except OperationDisabled:
                # What the log lost shows when it is read.
                if not self._may_need_copy(source):
                    raise
                await self._start_again(source, target)
                await self._in_log(source, target)
                await client.admin.wait_duplicated(TABLE, timeout=HEALED_WITHIN_S)
        if self.story.two_way:
            # What the second pass shipped back is not shipped again.
            await clients[0].admin.wait_duplicated(TABLE, timeout=HEALED_WITHIN_S)
        # Rows with short lives are gone everywhere, whatever the clocks say.
        await self.world.sleep_ms(self.expiry_ms)
        here, there = [await rows_of(await client.table(TABLE, timeout=60.0)) for client in clients]
        self.run.compared += len(here)
        for writer in (one for writers in self.writers.values() for one in writers):
            for where, rows in (("alpha", here), ("beta", there)):
                writer.check(where, rows)
            self.run.acknowledged += writer.acknowledged
            self.run.unknown += writer.unknown
            self.run.checked += writer.checked
        for key in sorted({*here, *there}):
            if here.get(key) != there.get(key):
                self.run.wrong.append(f"{key}: alpha {here.get(key)}, beta {there.get(key)}")
        for client in clients:
            await client.close()

    async def _start_again(self, source: Side, target: Side) -> None:
        async def attempt() -> None:
            client = await source.connected()
            try:
                [found] = await client.admin.query_duplication(TABLE)
                broken = bool(found.failure) and self._may_need_copy(source)
                await client.admin.start_duplication(TABLE, target.name, copy=broken)
            finally:
                await client.close()

        await self._persist(attempt)

    def _may_need_copy(self, source: Side) -> bool:
        """Whether it lost of its log what its tables have."""
        return any(writer.may_have_lost for writer in self.writers[source.name])

    async def _in_log(self, source: Side, target: Side) -> None:
        # A copy that takes its time, between disks that do.
        within_s = HEALED_WITHIN_S * (4 if self.story.slow_copy else 1)
        end_ms = self.world.now_ms + int(within_s * 1_000)
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
            if mine and mine[0].failure and self._may_need_copy(source):
                await self._start_again(source, target)
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
        play = Play(world, story or Story.draw(world.random("story")))
        world.run(play.play(), limit_ms=3_600_000)
        play.run.digest = world.digest()
        play.run.told = f"{play.story} {world.options}"
        return play.run
