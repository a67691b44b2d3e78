"""Two replicated clusters that duplicate to each other in a simulated world.

Each has a meta server and replica servers, production compositions throughout. What happens
to a cluster happens here to two (`cluster_faults`), while tables are duplicated one way or two
ways (`duplication_world`): primaries die, move and come back on either side in every phase,
members learn, meta servers restart, the clusters do not hear of each other. Then everything
heals, and within bounds all must be confirmed and equal; and what was kept for the other side
must be let go, on secondaries too.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any, Final

import pytest

from pegaskv.base.errors import PegasKVError
from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus
from pegaskv.client import Client
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.replica.membership import Membership
from pegaskv.replica.replica import Replica
from pegaskv.server.config import ClusterOptions, Config, MembershipOptions
from pegaskv.server.meta_server import MetaServer
from pegaskv.server.replica_server import ReplicaServer
from pegaskv.storage.memory import MemoryFactory
from tests.simulation.cluster_faults import Nemesis
from tests.simulation.cluster_servers import DATA, Machine, Settings, _seams, stub_of
from tests.simulation.disk import SimulatedDisk
from tests.simulation.duplication_sides import Side
from tests.simulation.duplication_world import TABLE, DuplicationRun, Play, Story
from tests.simulation.world import Life, World

__all__ = ["ClustersPlay", "ClustersStory", "ReplicatedCluster", "simulate_duplicated_clusters"]

# Of `cluster_faults`: those that lose nothing which an operator would have to answer for.
KINDS: Final = (
    "kill", "power", "storm", "pause", "stop", "wipe", "join", "meta kill", "meta pause",
    "cut", "isolate", "reset", "slow link", "slow disk", "operate", "ambush",
)  # fmt: skip
# Rarer, since one then has to wait until short lives are over by every clock.
_JUMP: Final = "jump"
_SERVERS_MAX: Final = 4
# After everything has healed: what targets have confirmed is let go everywhere.
_LET_GO_WITHIN_MS: Final = 20_000


class ReplicatedCluster(Side):
    """One cluster; what `Nemesis` strikes."""

    def __init__(self, world: World, name: str, number: int, story: "ClustersStory") -> None:
        super().__init__(world, name, number)
        self.story = story
        random = world.random(f"config {name}")
        self.settings = Settings.draw(random)
        self.duplication = DuplicationOptions(
            batch_bytes=random.choice([4_096, 32_768, 262_144]),
            confirm_interval_ms=random.choice([10, 100, 1_000]),
        )
        self.meta = Machine(world, f"{name} meta", self._make_meta)
        self.servers: list[Machine] = []
        for _ in range(story.servers):
            self.add_server(start=False)
        self.client_hosts = [self.clients.node.address]
        self.nemesis = Nemesis(self, world.random(f"nemesis {name}"), story.kinds)
        # Set by the play: whoever does what operators do.
        self.client: Client | None = None
        self._stored: dict[Gpid, PartitionConfiguration] = {}
        self._ids: dict[str, str] = {}

    def copies_slowly(self) -> None:
        """Let a copy take so long that much happens in between."""
        self.duplication = DuplicationOptions(batch_bytes=4_096, copy_bytes_per_second=20_000)

    @property
    def address(self) -> str:  # type: ignore[override]
        """Where the meta server listens."""
        return self.meta.address

    @property
    def alive(self) -> bool:
        """Whether all of it runs."""
        return all(each.alive for each in (self.meta, *self.servers))

    @property
    def hosts(self) -> list[str]:
        """All machines."""
        return [each.node.address for each in (self.meta, *self.servers)]

    def start(self) -> None:
        """Start what does not run."""
        for machine in (self.meta, *self.servers):
            if not machine.alive:
                machine.start()

    def crash(self, *, power: bool) -> None:
        """End all of it at once."""
        for machine in (self.meta, *self.servers):
            if machine.alive:
                machine.crash(power=power)

    def _config(self, role: str, machine: Machine) -> Config:
        settings = self.settings
        return Config(
            role=role,
            cluster=ClusterOptions(self.name, self.number),
            clusters=self.remotes(),
            meta=settings.meta,
            replica=replace(settings.replica, expiry_sweep_interval_ms=500),
            storage_log=settings.log,
            lease=settings.lease,
            duplication=self.duplication,
            membership=MembershipOptions(self.address if role == "replica" else ""),
        ).with_server(listen=machine.address, http="none")

    def _make_meta(self, machine: Machine, life: Life, on_fatal: Any) -> MetaServer:
        seams = _seams(machine, life, on_fatal)
        return MetaServer(self._config("meta", machine), DATA, **seams)

    def _make_replica(self, machine: Machine, life: Life, on_fatal: Any) -> ReplicaServer:
        return ReplicaServer(
            self._config("replica", machine),
            DATA,
            engine_factory=MemoryFactory(life.disk, life.random("engine")),
            **_seams(machine, life, on_fatal),
        )

    # What `Nemesis` asks.

    def add_server(self, *, start: bool = True) -> None:
        """A new empty server."""
        if len(self.servers) >= _SERVERS_MAX:
            return
        name = f"{self.name} {len(self.servers)}"
        machine = Machine(self.world, name, self._make_replica)
        self.servers.append(machine)
        if start:
            machine.start()

    def node_id(self, machine: Machine) -> str:
        """Who is on a machine; empty while that is not known."""
        stub = stub_of(machine)
        if stub is not None:
            self._ids[machine.name] = stub._directory.node_id
        return self._ids.get(machine.name, "")

    def configurations(self) -> dict[Gpid, PartitionConfiguration]:
        """What the meta server has stored."""
        service = getattr(getattr(self.meta.process, "_meta", None), "_service", None)
        if service is not None:
            for partitions in service._machine.cluster.partitions.values():
                for record in partitions.values():
                    known = self._stored.get(record.gpid)
                    if known is None or record.ballot > known.ballot:
                        self._stored[record.gpid] = record.configuration()
        return self._stored

    def is_os(self, gpid: Gpid) -> bool:
        """Whether a partition acknowledges without a sync."""
        return self.story.durability == "os"

    def on_wiped(self, machine: Machine) -> None:
        """A machine has a new, empty disk."""
        self._ids.pop(machine.name, None)

    def on_power_cut(self, machine: Machine) -> None:
        """A machine has lost power: nothing that others do not have."""

    async def operate(self, random: Random) -> None:
        """Move a primary, or a copy, by hand."""
        found = [each for each in self.configurations().values() if each.secondaries]
        if not found or self.client is None:
            return
        chosen = random.choice(found)
        with suppress(PegasKVError):
            await self.client.admin.balance(
                chosen.gpid,
                "move_pri",
                chosen.primary or "",
                random.choice(chosen.secondaries),
                timeout=4.0,
            )

    def replicas(self) -> Iterator[tuple[Machine, Any, Any]]:
        """Each member of each partition: its machine, its stub, the replica."""
        for machine in self.servers:
            stub = stub_of(machine)
            for replica in [] if stub is None else list(stub._replicas.values()):
                if replica.machine.status in (ReplicaStatus.PRIMARY, ReplicaStatus.SECONDARY):
                    yield machine, stub, replica


@dataclass(frozen=True)
class ClustersStory(Story):
    """What a seed plays."""

    servers: int = 3
    replicas: int = 3
    # Which faults there are, how many at a time, and how far apart they begin.
    kinds: tuple[str, ...] = KINDS
    at_once: int = 2

    @classmethod
    def draw(cls, random: Random) -> "ClustersStory":
        """Draw one."""
        found = Story.draw(random)
        known = {each.name: getattr(found, each.name) for each in fields(found)}
        known["rounds"] = random.choice([1, 2])
        known["absent_s"] = 70 if random.random() < 0.1 else 0
        known["source_partitions"] = random.choice([1, 2, 4])
        known["target_partitions"] = random.choice([0, 0, 0, 1, 2, 8])
        count = random.choice([1, 2, 4, len(KINDS)])
        kinds = random.sample(KINDS, count) + ([_JUMP] if random.random() < 0.15 else [])
        return cls(
            **known,
            servers=random.choice([3, 3, 4]),
            replicas=random.choice([3, 3, 3, 2]),
            kinds=tuple(sorted(kinds)),
            at_once=random.choice([1, 2, 3]),
        )


class ClustersPlay(Play):
    """One run."""

    a: ReplicatedCluster
    b: ReplicatedCluster
    story: ClustersStory
    pauses_ms = (20, 300, 1_500, 4_000)

    def __init__(self, world: World, story: ClustersStory) -> None:
        super().__init__(world, story)
        if _JUMP not in story.kinds:
            self.expiry_ms = 20_000

    def _cluster(self, name: str, number: int) -> Side:
        assert isinstance(self.story, ClustersStory)
        return ReplicatedCluster(self.world, name, number, self.story)

    async def _create(self, client: Client, partitions: int, durability: str) -> None:
        end_ms = self.world.now_ms + 120_000
        while True:
            try:
                await client.admin.create_table(
                    TABLE,
                    partitions,
                    replica_count=self.story.replicas,
                    envs={"durability": self.story.durability},
                    if_exists="same",
                    timeout=30.0,
                )
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(200)
            else:
                return

    async def _fill(self, table: Any, count: int) -> None:
        await self._persist(lambda: super(ClustersPlay, self)._fill(table, count))

    async def play(self) -> DuplicationRun:
        """All of it."""
        for cluster in (self.a, self.b):
            cluster.clients.task(self._befriend(cluster))
        return await super().play()

    @contextmanager
    def watching_proposals(self) -> Iterator[None]:
        """Tell those who lie in wait for changes of members."""
        real = Membership._propose

        def propose(
            membership: Membership, replica: Replica, kind: Any, node_id: str, **more: Any
        ) -> bool:
            proposed = real(membership, replica, kind, node_id, **more)
            for cluster in (self.a, self.b) if proposed else ():
                cluster.nemesis.on_proposed(kind, membership._node_id, node_id)
            return proposed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Membership, "_propose", propose)
            yield

    async def _befriend(self, cluster: ReplicatedCluster) -> None:
        cluster.client = await cluster.connected()

    async def _fault(self) -> None:
        """One, or several at a time, on either side or between the two."""
        strikes = [self._strike() for _ in range(self.random.randrange(1, self.story.at_once + 1))]
        tasks = [self.a.clients.task(strike) for strike in strikes]
        for task in tasks:
            await task

    async def _strike(self) -> None:
        self.run.faults += 1
        if self.random.random() < 0.2:
            await self._strike_between()
        else:
            await self.random.choice([self.a, self.b]).nemesis.strike()

    async def _strike_between(self) -> None:
        """The clusters, or some of their machines, do not hear of each other for a while."""
        network, random = self.world.network, self.random
        here = random.sample(self.a.hosts, random.randrange(1, len(self.a.hosts) + 1))
        there = random.sample(self.b.hosts, random.randrange(1, len(self.b.hosts) + 1))
        pairs = [(one, other) for one in here for other in there]
        way = random.randrange(4)
        if way == 3:
            for one, other in pairs:
                network.reset(one, other)
            return
        pairs = [(other, one) if way == 1 else (one, other) for one, other in pairs]
        for one, other in pairs:
            network.cut(one, other, both=way == 2)
        await self.world.sleep_ms(random.choice([50, 1_500, 5_000]))
        for one, other in pairs:
            network.heal(one, other, both=way == 2)

    async def _be_absent(self, seconds: int) -> None:
        """One side is down, or the two do not hear of each other, for long."""
        self.run.faults += 1
        self.slow = True
        self._heal()
        victim = self.random.choice([self.a, self.b, self.b])
        other = self.b if victim is self.a else self.a
        if self.random.random() < 0.6:
            power = self.story.durability == "fsync" and self.random.random() < 0.5
            victim.crash(power=power)
        else:
            for here in victim.hosts:
                for there in other.hosts:
                    self.world.network.cut(here, there)
        for _ in range(3):
            await self.world.sleep_ms(seconds * 1_000 // 3)
            await other.nemesis.strike()
        self._heal()
        self.slow = False
        await self.world.sleep_ms(self.random.choice([1, 300, 3_000]))

    # The end.

    def _heal(self) -> None:
        for cluster in (self.a, self.b):
            cluster.nemesis.heal()
            cluster.start()

    async def _settle(self) -> None:
        await super()._settle()
        end_ms = self.world.now_ms + _LET_GO_WITHIN_MS
        while True:
            wrong: list[str] = []
            for cluster in (self.a, self.b):
                wrong += [*self._kept(cluster), *self._differences(cluster)]
            if not wrong:
                break
            if self.world.now_ms > end_ms:
                self.run.wrong += wrong[:4]
                break
            await self.world.sleep_ms(100)

    def _kept(self, cluster: ReplicatedCluster) -> list[str]:
        """Members that keep log which the target has confirmed."""
        service: Any = cluster.meta.process._meta._service
        found = []
        for entry in service._machine.cluster.book.all():
            for machine, stub, replica in cluster.replicas():
                if replica.gpid[0] != entry.table_id or not entry.live or entry.failure:
                    continue
                stored = service._machine.cluster.book.one_progress(entry, replica.gpid[1])
                confirmed = 0 if stored is None else stored.partition.confirmed_decree
                pin = stub._log.pins(replica.gpid).get(entry.uuid.hex())
                if pin is None or pin.decree < confirmed:
                    found.append(
                        f"{machine.name} ({replica.machine.status.value}) keeps the log of "
                        f"{Gpid(*replica.gpid)} from {pin}, and {confirmed} is confirmed"
                    )
        return found

    def _differences(self, cluster: ReplicatedCluster) -> Iterator[str]:
        """All members of a partition take part in the same, and have come as far."""
        seen: dict[Gpid, tuple[str, Any]] = {}
        for machine, _, replica in cluster.replicas():
            known = replica.participation
            found = (known.pins, known.sources, known.progress, replica.machine.committed)
            gpid = Gpid(*replica.gpid)
            name, first = seen.setdefault(gpid, (machine.name, found))
            if found != first:
                yield f"{gpid}: {name} takes part in {first}, {machine.name} in {found}"


def simulate_duplicated_clusters(
    seed: int, story: ClustersStory | None = None, **overrides: Any
) -> DuplicationRun:
    """Run one seed to its end."""
    overrides.setdefault("wall_offset_us", 2_000_000)
    with World(seed, disk=SimulatedDisk, **overrides) as world:
        play = ClustersPlay(world, story or ClustersStory.draw(world.random("story")))
        with play.watching_proposals():
            world.run(play.play(), limit_ms=3_600_000)
        play.run.digest = world.digest()
        play.run.told = f"{play.story} {world.options}"
        return play.run
