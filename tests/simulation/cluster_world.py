"""Whole replicated clusters in a simulated world: production code throughout.

One meta server, three to six replica servers and clients, over a network, disks and clocks
that go wrong as the seed chooses. First a *safety phase*: clients read and write while
servers crash, lose power, stand still, are cut off, and operators do what operators do; nothing
that was acknowledged may be lost and nothing old may be read. Then everything heals, and in the
*liveness phase* all partitions must serve again, and be complete again, within bounds. In the
end the members of each partition must hold the same rows, and two judges look at all that the
clients saw (`checkers`), besides the invariants that were looked at all the time (`cluster_watch`).

`simulate_group` plays the same with a meta server that is nothing but compare-and-set.
"""

import asyncio
from collections.abc import Iterator
from random import Random
from typing import Any, Final

import xxhash

from pegaskv.base.errors import PegasKVError, RequestError
from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus
from pegaskv.client import Client, Table
from tests.simulation.checkers import Act, Op, Outcome, Row, Witness, check_zones
from tests.simulation.cluster_clients import (
    COUNTERS,
    MIXED,
    PAIRS,
    REGISTERS,
    STEADY_ROWS,
    History,
    Writer,
    open_client,
    steady_key,
)
from tests.simulation.cluster_faults import KINDS, Nemesis
from tests.simulation.cluster_meta import GroupStore, group_meta_machine
from tests.simulation.cluster_servers import (
    Machine,
    Settings,
    membership_of,
    meta_machine,
    replica_machine,
    stub_of,
)
from tests.simulation.cluster_story import ClusterRun, Story, TableStory
from tests.simulation.cluster_watch import Watch
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World

__all__ = [
    "ClusterRun",
    "Story",
    "TableStory",
    "simulate_cluster",
    "simulate_group",
    "story_of",
]

_PRIMARY: Final = ReplicaStatus.PRIMARY
# After everything has healed: all partitions take writes, and have all their members.
SERVED_WITHIN_MS: Final = 30_000
COMPLETE_WITHIN_MS: Final = 150_000
# After that all that is committed is known to all members.
_REST_MS: Final = 1_500
_LOOK_MS: Final = 40
# The meta server of a group does not know operators.
_GROUP_KINDS: Final = tuple(kind for kind in KINDS if kind != "join")


class Play:
    """One run."""

    def __init__(self, world: World, story: Story, *, group: bool) -> None:
        self.world = world
        self.story = story
        self.random = world.random("play")
        self.run = ClusterRun(world.seed)
        self.settings = Settings.draw(world.random("settings"))
        self.store = GroupStore() if group else None
        self.meta = (
            group_meta_machine(world, self.store)
            if self.store is not None
            else meta_machine(world, self.settings)
        )
        self.servers: list[Machine] = []
        for _ in range(story.servers):
            self.add_server(start=False)
        self.client_lives = [
            world.node(f"client {number}").spawn() for number in range(story.clients)
        ]
        self.client_hosts = [life.node.address for life in self.client_lives]
        self.clients: list[Client] = []
        self.histories: dict[str, History] = {}
        self.watch = Watch(self._living)
        self.nemesis = Nemesis(self, world.random("nemesis"), story.kinds)
        self.watch.on_proposed = self.nemesis.on_proposed
        self.going = True
        self._stored: dict[Gpid, PartitionConfiguration] = {}
        self._ids: dict[str, str] = {}
        self._tables: dict[int, tuple[str, TableStory]] = {}

    # What faults are done to.

    def _living(self) -> Iterator[tuple[Life, Any]]:
        for machine in self.servers:
            stub = stub_of(machine)
            if stub is not None and machine.node.life is not None:
                yield machine.node.life, stub

    def add_server(self, *, start: bool = True) -> None:
        """A new empty server."""
        name = f"server {len(self.servers)}"
        machine = replica_machine(self.world, name, self.settings, self.meta.address)
        self.servers.append(machine)
        if start:
            machine.start()

    def node_id(self, machine: Machine) -> str:
        """Who is on a machine."""
        stub = stub_of(machine)
        if stub is not None:
            self._ids[machine.name] = stub._directory.node_id
        return self._ids.get(machine.name, "")

    def configurations(self) -> dict[Gpid, PartitionConfiguration]:
        """What the meta server has stored."""
        if self.store is not None:
            return self.store.configurations
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
        return self._tables[gpid.table_id][1].durability == "os"

    def on_wiped(self, machine: Machine) -> None:
        """A machine has a new, empty disk."""
        self.watch.forget_disk(machine.name)
        self._ids.pop(machine.name, None)

    def on_power_cut(self, machine: Machine) -> None:
        """A machine has lost power, and what its `os` tables had not synced."""
        for key in [each for each in self.watch._owed if each[0] == machine.name]:
            if self.is_os(key[1]):
                # It must say itself that it may lack something.
                del self.watch._owed[key]

    async def operate(self, random: Random) -> None:
        """An operator does something."""
        ids = [self.node_id(each) for each in self.servers if each.alive]
        ids = [each for each in ids if each]
        found = [each for each in self.configurations().values() if each.secondaries]
        if not found or not ids:
            return
        chosen = random.choice(found)
        if self.store is not None:
            if self.meta.alive:
                self.meta.process.move(chosen.gpid, random.choice(chosen.secondaries))
            return
        await self._operate_by_client(random, chosen, ids)

    async def _operate_by_client(
        self, random: Random, chosen: PartitionConfiguration, ids: list[str]
    ) -> None:
        admin: Any = self.clients[0].admin
        name, table = self._tables[chosen.gpid.table_id]
        primary = chosen.primary or ids[0]
        try:
            match random.randrange(6):
                case 0 | 1:
                    target = random.choice(chosen.secondaries)
                    await admin.balance(chosen.gpid, "move_pri", primary, target, timeout=4.0)
                case 2:
                    await admin.balance(
                        chosen.gpid,
                        random.choice(["copy_pri", "copy_sec"]),
                        random.choice([primary, *chosen.secondaries]),
                        random.choice(ids),
                        timeout=4.0,
                    )
                case 3:
                    count = random.choice([2, 3, 3, min(5, len(self.servers))])
                    await admin.set_replica_count(name, count, timeout=4.0)
                    await self.world.sleep_ms(random.choice([500, 5_000]))
                    await admin.set_replica_count(name, table.replicas, timeout=4.0)
                case 4:
                    await admin.create_table(f"more {self.world.now_ms}", 2, timeout=4.0)
                case _:
                    await admin.set_meta_level("steady", timeout=4.0)
                    await self.world.sleep_ms(random.choice([500, 5_000]))
        except PegasKVError:
            pass

    # The play.

    async def play(self) -> ClusterRun:
        """All of it."""
        self.meta.start()
        for machine in self.servers:
            machine.start()
        looking = self.client_lives[0].task(self._look())
        await self._begin()
        writers = self._start_writers()
        await self._safety_phase()
        self.nemesis.heal()
        await self._liveness_phase()
        self.going = False
        for writer in writers:
            await writer
        await self._read_everything()
        await self._quiesce()
        self._judge()
        looking.cancel()
        for client in self.clients:
            await client.close()
        return self.run

    async def _look(self) -> None:
        while True:
            self.watch.look()
            await self.world.sleep_ms(_LOOK_MS)

    async def _begin(self) -> None:
        for life in self.client_lives:
            self.clients.append(await open_client(self.world, life, self.meta.address))
        for number, story in enumerate(self.story.tables):
            name = f"table{number}"
            table_id = await self._create(name, story)
            self._tables[table_id] = (name, story)
            # An operator may lower it for a while.
            operated = self.store is None and "operate" in self.story.kinds
            self.watch.least_members[table_id] = 1 if operated or story.replicas <= 2 else 2
            self.histories[name] = History()
        for name in self.histories:
            table = await self._table(self.clients[0], name)
            for number in range(STEADY_ROWS):
                await self._insist(table, *steady_key(number), b"steady")

    async def _create(self, name: str, story: TableStory) -> int:
        if self.store is not None:
            return self.store.create(
                name, story.partitions, story.replicas, story.durability
            ).table_id
        end_ms = self.world.now_ms + 120_000
        while True:
            try:
                await self.clients[0].admin.create_table(
                    name,
                    story.partitions,
                    replica_count=story.replicas,
                    envs={"durability": story.durability},
                    if_exists="same",
                    timeout=30.0,
                )
                details = await self.clients[0].admin.table_info(name, timeout=30.0)
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(200)
            else:
                return details.table.table_id

    async def _table(self, client: Client, name: str) -> Table:
        end_ms = self.world.now_ms + 120_000
        while True:
            try:
                return await client.table(name, timeout=5.0)
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(100)

    async def _insist(self, table: Table, hash_key: bytes, sort_key: bytes, value: bytes) -> None:
        end_ms = self.world.now_ms + 120_000
        while True:
            try:
                await table.set(hash_key, sort_key, value, timeout=10.0, retry_unknown=True)
            except PegasKVError:
                if self.world.now_ms > end_ms:
                    raise
                await self.world.sleep_ms(50)
            else:
                return

    def _start_writers(self) -> list[asyncio.Task[None]]:
        tasks = []
        for number in range(self.story.writers):
            place = number % len(self.clients)
            names = list(self.histories)
            name = names[number % len(names)]
            tasks.append(
                self.client_lives[place].task(self._write(number, self.clients[place], name))
            )
        return tasks

    async def _write(self, number: int, client: Client, name: str) -> None:
        writer = Writer(
            self.world,
            f"w{number}",
            await self._table(client, name),
            self.histories[name],
            self.world.random(f"writer {number}"),
            call_s=self.story.call_s,
        )
        await writer.run(lambda: self.going, self.story.pace_ms)

    async def _safety_phase(self) -> None:
        end_ms = self.world.now_ms + self.story.seconds * 1_000
        striking: list[asyncio.Task[None]] = []
        while self.world.now_ms < end_ms:
            await self.world.sleep_ms(self.random.randrange(1, 2 * self.story.between_ms))
            self._check_now()
            striking = [task for task in striking if not task.done()]
            if len(striking) < self.story.at_once:
                striking.append(self.world.loop.create_task(self.nemesis.strike()))
        for task in [*striking, *self.nemesis.under_way]:
            while not task.done():
                self._check_now()
                await self.world.sleep_ms(20)
            task.result()

    def _check_now(self) -> None:
        """What is wrong already needs no end of the run."""
        self.world.check()
        for _, stub in self._living():
            _check_lines(stub)
        assert not self.watch.wrong, "\n".join(self.watch.wrong)

    # Liveness.

    async def _liveness_phase(self) -> None:
        began_ms = self.world.now_ms
        if self.store is None:
            await self._as_before()
        for name in self.histories:
            table = await self._table(self.clients[0], name)
            for index in range(self._story_of(name).partitions):
                await self._must_serve(table, index, began_ms)
        self.run.served_ms = self.world.now_ms - began_ms
        await self._must_be_complete(began_ms)
        self.run.complete_ms = self.world.now_ms - began_ms

    async def _as_before(self) -> None:
        """Operators undo what they did."""
        admin: Any = self.clients[0].admin
        for name in self.histories:
            end_ms = self.world.now_ms + SERVED_WITHIN_MS
            while True:
                try:
                    await admin.set_meta_level("lively", timeout=5.0)
                    await admin.set_replica_count(name, self._story_of(name).replicas, timeout=5.0)
                except PegasKVError:
                    if self.world.now_ms > end_ms:
                        raise
                    await self.world.sleep_ms(200)
                else:
                    break

    def _story_of(self, name: str) -> TableStory:
        return next(story for known, story in self._tables.values() if known == name)

    async def _must_serve(self, table: Table, index: int, began_ms: int) -> None:
        number, mask = 0, self._story_of(table.name).partitions - 1
        while xxhash.xxh3_64_intdigest(b"probe %d" % number) & mask != index:
            number += 1
        while True:
            try:
                await table.set(b"probe %d" % number, b"", b"p", timeout=2.0, retry_unknown=True)
            except RequestError as error:
                if self.world.now_ms - began_ms > SERVED_WITHIN_MS:
                    self.run.wrong.append(
                        f"partition {index} of {table.name} does not serve "
                        f"{SERVED_WITHIN_MS // 1_000} s after the last fault: {error}; "
                        f"{self._describe()}"
                    )
                    return
                self._check_now()
                await self.world.sleep_ms(20)
            else:
                return

    async def _must_be_complete(self, began_ms: int) -> None:
        while True:
            lacking = self._lacking()
            if not lacking:
                return
            if self.world.now_ms - began_ms > COMPLETE_WITHIN_MS:
                self.run.wrong.append(
                    f"{lacking} {COMPLETE_WITHIN_MS // 1_000} s after the last fault; "
                    f"{self._describe()}"
                )
                return
            self._check_now()
            await self.world.sleep_ms(50)

    def _lacking(self) -> str:
        """Which partition has fewer members than it should have, or others than it knows of."""
        by_id = {self.node_id(each): each for each in self.servers if each.alive}
        for gpid, stored in self.configurations().items():
            if gpid.table_id not in self._tables:
                continue
            members = (stored.primary, *stored.secondaries)
            wanted = self._tables[gpid.table_id][1].replicas
            # A meta server that only compares and sets does not take out who is too many.
            if len(members) < wanted or (self.store is None and len(members) > wanted):
                return f"{gpid} has {len(members)} of {wanted} members"
            for node_id in members:
                machine = by_id.get(node_id or "")
                stub = None if machine is None else stub_of(machine)
                replica = None if stub is None else stub._replicas.get(tuple(gpid))
                if replica is None or replica.machine.ballot != stored.ballot:
                    return f"{gpid} is not known to {machine.name if machine else node_id}"
        return ""

    def _describe(self) -> str:
        lines = []
        for gpid, stored in self.configurations().items():
            lines.append(f"{gpid} {stored.ballot} {stored.primary} {stored.secondaries}")
        for life, stub in self._living():
            lines.append(f"{life.name} is {stub._directory.node_id}")
            for gpid, replica in stub._replicas.items():
                machine = replica.machine
                streams = [
                    (each.node_id[:6], each.learner, each.opened, each.acknowledged)
                    for each in replica.streams.values()
                ]
                lines.append(
                    f"  {Gpid(*gpid)} {machine.status.value} ballot {machine.ballot} committed "
                    f"{machine.committed}/{machine.prepared.last_prepared} serving "
                    f"{replica.serving} closed {replica.closed!r} {streams} "
                    f"proposing {gpid in membership_of(stub)._proposing}"
                )
            for gpid, found in stub._recovered.items():
                lines.append(
                    f"  {gpid} recovered closed {found.closed!r} amnesiac {found.amnesiac}"
                )
        for machine in [self.meta, *self.servers]:
            if not machine.alive or machine.failures:
                ended = f"{machine.failures} failures, last: {machine.last_failure}"
                lines.append(f"{machine.name} alive {machine.alive}, {ended}")
        return "\n    ".join(lines)

    # The end.

    async def _read_everything(self) -> None:
        """The last word: what is there now must be explained too."""
        for name, history in self.histories.items():
            table = await self._table(self.clients[0], name)
            writer = Writer(
                self.world, "last", table, history, self.world.random("last"), call_s=20.0
            )
            for pattern, count, sort_key in (
                (b"register %d", REGISTERS, b"s"),
                (b"mixed %d", MIXED, b"s"),
                (b"pair %d", PAIRS, b"left"),
                (b"pair %d", PAIRS, b"right"),
                (b"counter %d", COUNTERS, b"c"),
            ):
                for number in range(count):
                    await writer.read((name, pattern % number, sort_key))
            for number in range(STEADY_ROWS):
                key = steady_key(number)
                try:
                    if await table.get(*key, timeout=20.0) != b"steady":
                        self.run.wrong.append(f"the row {key} of {name} is gone")
                except RequestError as error:
                    self.run.wrong.append(f"{name} cannot be read in the end: {error}")

    async def _quiesce(self) -> None:
        """The members of each partition hold the same rows, at the same decree."""
        await self._rest()
        found: dict[Gpid, dict[str, Any]] = {}
        for life, stub in self._living():
            for gpid, replica in stub._replicas.items():
                stored = self.configurations().get(Gpid(*gpid))
                here = stub._directory.node_id
                if stored is None or here not in (stored.primary, *stored.secondaries):
                    continue
                life.context.copy().run(replica.apply_now)
                await self.world.until(
                    lambda one=replica: not one.unapplied and not one.applying,  # type: ignore[misc]
                    what=f"{life.name} applies {gpid}",
                )
                rows = list(replica.engine.snapshot().iterate(b"", b"\xff\xff"))
                found.setdefault(Gpid(*gpid), {})[life.name] = (replica.machine.committed, rows)
        for gpid, members in found.items():
            self.run.compared += len(members)
            (first, expected), *others = members.items()
            for name, rows in others:
                if rows[0] != expected[0]:
                    self.run.wrong.append(
                        f"{gpid}: {first} is at decree {expected[0]}, {name} at {rows[0]}"
                    )
                elif rows[1] != expected[1]:
                    differing = sorted({*rows[1]} ^ {*expected[1]})[:4]
                    self.run.wrong.append(f"{gpid}: {first} and {name} differ: {differing}")

    async def _rest(self) -> None:
        """Let some time pass in which no configuration changes.

        What was asked for before all was well may be stored long after that.
        """
        for _ in range(COMPLETE_WITHIN_MS // _REST_MS):
            before = dict(self.configurations())
            await self.world.sleep_ms(_REST_MS)
            if self.configurations() == before and not self._lacking():
                return
        if not self.run.wrong:
            self.run.wrong.append(f"it does not come to rest; {self._describe()}")

    def _judge(self) -> None:
        run = self.run
        run.wrong += self.watch.wrong
        names = {table_id: name for table_id, (name, _) in self._tables.items()}
        rows = {key: [Row(*one) for one in found] for key, found in self.watch.rows(names).items()}
        witness = Witness(rows)
        for name, history in self.histories.items():
            run.wrong += history.wrong
            run.wrong += check_zones(history.registers)[:4]
            run.wrong += witness.check([*history.registers, *history.others])[:6]
            run.wrong += self._judge_counters(name, history)
            run.done += history.done
            run.unknown += history.unknown
            run.refused += history.refused
        run.checked = witness.checked
        run.reached = self.watch.reached
        run.faults = dict(self.nemesis.done)
        run.failures = sum(each.failures for each in [self.meta, *self.servers])

    def _judge_counters(self, name: str, history: History) -> list[str]:
        wrong = []
        last = {op.key: op for op in history.others if op.act is Act.READ and op.ended}
        for number in range(COUNTERS):
            key = (name, b"counter %d" % number, b"c")
            op: Op | None = last.get(key)
            if op is None or op.outcome is not Outcome.DONE:
                continue
            counted = int(op.value or b"0")
            least = history.counted[key]
            if not least <= counted <= least + history.doubtful[key]:
                wrong.append(
                    f"{key} is {counted}, must be {least} to {least + history.doubtful[key]}"
                )
        return wrong


def _check_lines(stub: Any) -> None:
    """Only who leads speaks to members: a line has the streams of replicas here, and no other."""
    of_lines = {each for line in membership_of(stub)._lines.values() for each in line.streams}
    of_replicas = {each for replica in stub._replicas.values() for each in replica.streams.values()}
    assert of_lines == of_replicas, f"{len(of_lines - of_replicas)} streams of nobody"


def story_of(seed: int, *, group: bool = False) -> Story:
    """What a seed plays when nobody says otherwise."""
    with World(seed) as world:
        story = Story.draw(world.random("story"), _GROUP_KINDS if group else KINDS)
        # Drawn apart: the rest of a seed's story does not hang on it.
        return story.with_aim(world.random("aim"))


def simulate_cluster(seed: int, story: Story | None = None, **overrides: Any) -> ClusterRun:
    """Run one seed to its end."""
    return _simulate(seed, story, group=False, **overrides)


def simulate_group(seed: int, story: Story | None = None, **overrides: Any) -> ClusterRun:
    """The same with a meta server that only compares and sets."""
    return _simulate(seed, story, group=True, **overrides)


def _simulate(seed: int, story: Story | None, *, group: bool, **overrides: Any) -> ClusterRun:
    random = Random(f"cluster {seed}")
    overrides.setdefault("worker_slow_us", random.choice([50_000, 300_000]))
    # Leases hold while clocks differ by less than the grace does from the lease.
    overrides.setdefault("clock_drift_ppm", random.choice([0, 200, 50_000, 100_000]))
    trace_lines = overrides.pop("trace_lines", 0)
    with World(seed, disk=SimulatedDisk, trace_lines=trace_lines, **overrides) as world:
        play = Play(world, story or story_of(seed, group=group), group=group)
        with play.watch.installed():
            try:
                world.run(play.play(), limit_ms=3_600_000)
            except BaseException as error:
                for text in play.watch.wrong:
                    error.add_note(text)
                error.add_note(f"it chose: {play.story} {play.settings}")
                raise
            play.run.digest = world.digest()
            play.run.told = f"{play.story} {world.options} {play.settings}"
            return play.run
