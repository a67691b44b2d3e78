"""What goes wrong in a simulated cluster, and the bounds within which it may.

Each kind of fault is a method of `Nemesis`, drawn from those that the seed allows. Faults
never take more than what the cluster promises to survive: an `os` table's members never lose
power all together, and a disk is emptied only while every partition on it has another sound
member; what happens beyond that is for tests of refusal.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Final, Protocol

from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus
from pegaskv.codec.messages_meta import ProposalKind
from tests.simulation.cluster_aimed import AIMED, Aim
from tests.simulation.cluster_servers import Machine, membership_of, stub_of
from tests.simulation.disk import Fault
from tests.simulation.world import World

__all__ = ["KINDS", "Nemesis", "Playground"]

_MEMBERS: Final = (ReplicaStatus.PRIMARY, ReplicaStatus.SECONDARY)
_WALL_ERROR_US_MAX: Final = 120_000_000


class Playground(Protocol):
    """What faults are done to."""

    world: World
    meta: Machine
    servers: list[Machine]
    client_hosts: list[str]

    def configurations(self) -> dict[Gpid, PartitionConfiguration]:
        """What is stored of all partitions at this moment."""
        ...

    def is_os(self, gpid: Gpid) -> bool:
        """Whether a partition acknowledges without a sync."""
        ...

    def node_id(self, machine: Machine) -> str:
        """Who is on a machine; empty while that is not known."""
        ...

    def on_wiped(self, machine: Machine) -> None:
        """A machine has a new, empty disk."""
        ...

    def on_power_cut(self, machine: Machine) -> None:
        """A machine has lost power."""
        ...

    def add_server(self) -> None:
        """A new empty server joins."""
        ...

    async def operate(self, random: Random) -> None:
        """An operator does something."""
        ...


class Nemesis:
    """Draws faults and does them."""

    def __init__(self, ground: Playground, random: Random, kinds: Sequence[str]) -> None:
        self._ground = ground
        self._world = ground.world
        self._random = random
        self._kinds = list(kinds)
        self._wall_error_us: Counter[str] = Counter()
        self._proposals: list[tuple[str, str]] = []
        # How many lie in wait for a proposal.
        self._lurking = 0
        # What a fault has left running.
        self.under_way: list[asyncio.Task[None]] = []
        self._latency_us: dict[tuple[str, str], int] = {}
        self._aim = Aim(ground, random)
        self.done: Counter[str] = Counter()

    async def strike(self) -> None:
        """Do one fault, and what undoes it."""
        kind = self._random.choice(self._kinds)
        if await (self._aim.strike(kind) if kind in AIMED else _ACTIONS[kind](self)):
            self.done[kind] += 1

    # Whom.

    def _server(self) -> Machine | None:
        alive = [each for each in self._ground.servers if each.alive and not each.stalled]
        return self._random.choice(alive) if alive else None

    def _leader(self) -> Machine | None:
        """Mostly a machine that leads something: others are missed by nobody."""
        configurations = self._ground.configurations()
        leaders = {each.primary for each in configurations.values()}
        found = [
            each
            for each in self._ground.servers
            if each.alive and not each.stalled and self._ground.node_id(each) in leaders
        ]
        if found and self._random.random() < 0.7:
            return self._random.choice(found)
        return self._server()

    def _pair(self) -> tuple[str, str]:
        ground, random = self._ground, self._random
        hosts = [each.node.address for each in ground.servers]
        if random.random() < 0.25:
            hosts.append(ground.meta.node.address)
        if random.random() < 0.15:
            hosts += ground.client_hosts
        first, second = random.sample(hosts, 2)
        return first, second

    def _others_are_sound(self, machine: Machine, *, only_os: bool) -> bool:
        """Whether every partition of a machine has another member with all that is committed."""
        ground = self._ground
        node_id = ground.node_id(machine)
        stub = stub_of(machine)
        if stub is None or not node_id or _proposes(stub):
            return False
        by_id = {ground.node_id(each): each for each in ground.servers if each.alive}
        for gpid, stored in ground.configurations().items():
            members = [each for each in (stored.primary, *stored.secondaries) if each]
            if node_id not in members or (only_os and not ground.is_os(gpid)):
                continue
            others = [each for each in members if each != node_id]
            if not others or not all(_is_sound(by_id.get(each), gpid) for each in others):
                return False
        return True

    async def _start_later(self, machine: Machine, *pauses_ms: int) -> None:
        await self._world.sleep_ms(self._random.choice(pauses_ms))
        if not machine.alive:
            machine.start()

    # Processes and machines.

    async def _kill(self) -> bool:
        machine = self._leader()
        if machine is None:
            return False
        machine.crash(power=False)
        await self._start_later(machine, 0, 50, 800, 3_000, 7_000, 12_000)
        return True

    async def _power(self) -> bool:
        machine = self._leader()
        if machine is None or not self._others_are_sound(machine, only_os=True):
            return False
        machine.crash(power=True)
        self._ground.on_power_cut(machine)
        await self._start_later(machine, 0, 50, 800, 3_000, 9_000)
        return True

    async def _storm(self) -> bool:
        """All servers are killed at once."""
        for machine in self._ground.servers:
            if machine.alive:
                machine.crash(power=False)
        for machine in self._ground.servers:
            await self._start_later(machine, 0, 50, 500)
        return True

    async def _pause(self) -> bool:
        machine = self._leader()
        if machine is None:
            return False
        life = machine.node.life
        machine.node.stall()
        await self._world.sleep_ms(self._random.choice([60, 900, 2_500, 4_500, 6_000, 8_000]))
        if machine.node.life is life and machine.alive:
            machine.node.resume()
        return True

    async def _stop(self) -> bool:
        machine = self._leader()
        if machine is None:
            return False
        life = machine.node.life
        machine.stop()
        end_ms = self._world.now_ms + 25_000
        while machine.alive and machine.node.life is life and self._world.now_ms < end_ms:
            await self._world.sleep_ms(50)
        if machine.node.life is life:
            await self._start_later(machine, 0, 500, 3_000)
            machine.wanted = True
        return True

    async def _wipe(self) -> bool:
        machine = self._server()
        if machine is None or not self._others_are_sound(machine, only_os=False):
            return False
        machine.crash(power=False)
        machine.wipe()
        self._ground.on_wiped(machine)
        await self._start_later(machine, 50, 1_000, 6_000)
        return True

    async def _join(self) -> bool:
        if len(self._ground.servers) >= 6:
            return False
        self._ground.add_server()
        return True

    # The meta server.

    async def _meta_kill(self) -> bool:
        machine = self._ground.meta
        if not machine.alive or machine.stalled:
            return False
        machine.crash(power=self._random.random() < 0.5)
        await self._start_later(machine, 0, 50, 2_000, 12_000)
        return True

    async def _meta_pause(self) -> bool:
        machine = self._ground.meta
        if not machine.alive or machine.stalled:
            return False
        life = machine.node.life
        machine.node.stall()
        await self._world.sleep_ms(self._random.choice([500, 4_000, 12_000]))
        if machine.node.life is life and machine.alive:
            machine.node.resume()
        return True

    # The network.

    async def _cut(self) -> bool:
        first, second = self._pair()
        both = self._random.random() < 0.5
        self._world.network.cut(first, second, both=both)
        await self._world.sleep_ms(self._random.choice([100, 1_500, 3_000, 6_000, 12_000]))
        self._world.network.heal(first, second, both=both)
        return True

    async def _isolate(self) -> bool:
        """A server hears nobody, or only the clients and meta; or nobody hears it."""
        machine = self._leader()
        if machine is None:
            return False
        ground, network = self._ground, self._world.network
        way = self._random.randrange(3)
        others = [each.node.address for each in ground.servers if each is not machine]
        if self._random.random() < 0.5:
            others.append(ground.meta.node.address)
        if self._random.random() < 0.3:
            others += ground.client_hosts
        mine = machine.node.address
        pairs = [
            (mine, other) if way == 0 else (other, mine) if way == 1 else (mine, other)
            for other in others
        ]
        for source, target in pairs:
            network.cut(source, target, both=way == 2)
            if self._random.random() < 0.3:
                await self._world.sleep_ms(self._random.randrange(500))
        await self._world.sleep_ms(self._random.choice([300, 2_500, 6_000, 12_000]))
        self._random.shuffle(pairs)
        for source, target in pairs:
            network.heal(source, target, both=way == 2)
            if self._random.random() < 0.3:
                await self._world.sleep_ms(self._random.randrange(500))
        return True

    async def _reset(self) -> bool:
        for _ in range(self._random.choice([1, 1, 3])):
            first, second = self._pair()
            self._world.network.reset(first, second)
        return True

    async def _slow_link(self) -> bool:
        first, second = self._pair()
        link = self._world.network.link(first, second)
        # Two may slow down the same one.
        before = self._latency_us.setdefault((first, second), link.latency_us)
        link.latency_us = self._random.choice([200_000, 900_000, 2_500_000])
        if self._random.random() < 0.3:
            link.bytes_per_s = 20_000
        await self._world.sleep_ms(self._random.choice([500, 3_000, 8_000]))
        link.latency_us, link.bytes_per_s = before, None
        return True

    # Disks and clocks.

    async def _slow_disk(self) -> bool:
        machine = self._server()
        if machine is None:
            return False
        machine.slow_down(self._random.choice([100_000, 700_000, 2_500_000]))
        await self._world.sleep_ms(self._random.choice([1_000, 5_000]))
        machine.slow_down(0)
        return True

    async def _bad_disk(self) -> bool:
        machine = self._server()
        if machine is None:
            return False
        fault = self._random.choice([Fault.FAIL, Fault.TEAR, Fault.KILL_TORN, Fault.KILL_AFTER])
        machine.fail_disk(self._random.randrange(40), fault)
        await self._world.sleep_ms(self._random.choice([500, 3_000]))
        return True

    async def _full_disk(self) -> bool:
        machine = self._server()
        if machine is None:
            return False
        machine.fill_disk(left_bytes=self._random.choice([0, 20_000, 300_000]))
        await self._world.sleep_ms(self._random.choice([1_000, 6_000]))
        machine.fill_disk(left_bytes=None)
        return True

    async def _jump(self) -> bool:
        machine = self._random.choice([*self._ground.servers, self._ground.meta])
        by_us = self._random.choice([-60_000_000, -2_000_000, 3_000_000, 60_000_000])
        if abs(self._wall_error_us[machine.name] + by_us) > _WALL_ERROR_US_MAX:
            return False
        self._wall_error_us[machine.name] += by_us
        machine.node.jump_wall(by_us)
        return True

    # When a change of a configuration is asked for.

    async def _ambush(self) -> bool:
        """Lie in wait for a while: whoever proposes something next is met in the middle of it."""
        began = len(self._proposals)
        end_ms = self._world.now_ms + 4_000
        self._lurking += 1
        while len(self._proposals) == began and self._world.now_ms < end_ms:
            await self._world.sleep_ms(1)
        self._lurking -= 1
        if len(self._proposals) == began:
            return False
        proposer_id, node_id = self._proposals[began]
        by_id = {self._ground.node_id(each): each for each in self._ground.servers if each.alive}
        proposer, other = by_id.get(proposer_id), by_id.get(node_id)
        if proposer is None:
            return False
        self.under_way.append(self._world.loop.create_task(self._let_through(proposer)))
        for way in self._random.sample(range(6), self._random.choice([1, 2, 3])):
            meeting = self._world.loop.create_task(self._meet(way, proposer, other))
            self.under_way.append(meeting)
        return True

    async def _let_through(self, proposer: Machine) -> None:
        """What could not reach the meta server arrives late."""
        await self._world.sleep_ms(self._random.choice([0, 30, 500, 1_500, 4_000, 8_000]))
        metas = self._ground.meta.node.address
        self._world.network.heal(proposer.node.address, metas, both=False)

    async def _meet(self, way: int, proposer: Machine, other: Machine | None) -> None:
        world, random, network = self._world, self._random, self._world.network
        mine, metas = proposer.node.address, self._ground.meta.node.address
        others = mine if other is None else other.node.address
        pause_ms = random.choice([0, 1, 10, 100, 1_000])
        await world.sleep_ms(pause_ms)
        match way:
            case 0:
                network.reset(mine, others)
            case 1:
                # The answer is late.
                network.cut(metas, mine, both=random.random() < 0.5)
                await world.sleep_ms(random.choice([300, 2_000, 6_000]))
                network.heal(metas, mine)
            case 2 | 3:
                victim = proposer if way == 2 or other is None else other
                if victim.alive and not victim.stalled:
                    victim.crash(power=False)
                    await self._start_later(victim, 0, 0, 200, 3_000, 9_000)
            case 4:
                victim = random.choice([proposer, other or proposer])
                life = victim.node.life
                if victim.alive and not victim.stalled:
                    victim.node.stall()
                    await world.sleep_ms(random.choice([50, 2_500, 7_000]))
                    if victim.node.life is life and victim.alive:
                        victim.node.resume()
            case _:
                network.cut(mine, others, both=random.random() < 0.5)
                await world.sleep_ms(random.choice([50, 1_000, 7_000]))
                network.heal(mine, others)

    def on_proposed(self, kind: ProposalKind, proposer_id: str, node_id: str) -> None:
        """A server asks for a change; in an ambush that may not get through for a while."""
        self._aim.on_proposed(kind, proposer_id, node_id)
        self._proposals.append((proposer_id, node_id))
        if self._lurking and self._random.random() < 0.5:
            metas = self._ground.meta.node.address
            for machine in self._ground.servers:
                if machine.alive and self._ground.node_id(machine) == proposer_id:
                    self._world.network.cut(machine.node.address, metas, both=False)

    async def _operate(self) -> bool:
        await self._ground.operate(self._random)
        return True

    # The end.

    def heal(self) -> None:
        """Undo everything."""
        ground = self._ground
        for machine in [ground.meta, *ground.servers]:
            machine.slow_down(0)
            machine.fill_disk(left_bytes=None)
            # Plans that have not come yet are forgotten.
            machine.disk._plan.clear()
            machine.wanted = True
            if machine.stalled and machine.alive:
                machine.node.resume()
            if not machine.alive:
                machine.start()
        self._world.network.heal_all()
        for (first, second), latency_us in self._latency_us.items():
            self._world.network.link(first, second).latency_us = latency_us


def _proposes(stub: Any) -> bool:
    return bool(membership_of(stub)._proposing)


def _is_sound(machine: Machine | None, gpid: Gpid) -> bool:
    if machine is None or not machine.alive:
        return False
    stub = stub_of(machine)
    replica = None if stub is None else stub._replicas.get(tuple(gpid))
    if replica is None or replica.closed or replica.machine.status not in _MEMBERS:
        return False
    # What it asks for may be that the others go on without it.
    return not replica.draining and gpid not in membership_of(stub)._proposing


_ACTIONS: Final[dict[str, Callable[[Nemesis], Awaitable[bool]]]] = {
    "kill": Nemesis._kill,
    "power": Nemesis._power,
    "storm": Nemesis._storm,
    "pause": Nemesis._pause,
    "stop": Nemesis._stop,
    "wipe": Nemesis._wipe,
    "join": Nemesis._join,
    "meta kill": Nemesis._meta_kill,
    "meta pause": Nemesis._meta_pause,
    "cut": Nemesis._cut,
    "isolate": Nemesis._isolate,
    "reset": Nemesis._reset,
    "slow link": Nemesis._slow_link,
    "slow disk": Nemesis._slow_disk,
    "bad disk": Nemesis._bad_disk,
    "full disk": Nemesis._full_disk,
    "jump": Nemesis._jump,
    "ambush": Nemesis._ambush,
    "operate": Nemesis._operate,
}
KINDS: Final = tuple(_ACTIONS)
