"""Duplications whose partitions have several members, one promise at a time, in virtual time."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pegaskv.base.errors import CorruptionError, FollowerTable
from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.client import Client, Table
from pegaskv.replica.shipping import Shipping
from pegaskv.storage.mutation_log import MutationLog
from tests.simulation.cluster_servers import Machine
from tests.simulation.disk import SimulatedDisk
from tests.simulation.duplicated_clusters import ClustersStory, ReplicatedCluster
from tests.simulation.duplication_world import TABLE, rows_of
from tests.simulation.network import NetworkOptions
from tests.simulation.world import World, WorldOptions

_STORY = ClustersStory(
    two_way=False,
    checkpoint=True,
    source_partitions=1,
    target_partitions=0,
    rows_before=0,
    rounds=0,
    faults=False,
    kinds=("kill",),
)


class Pair:
    """Source and target, both well."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.a = ReplicatedCluster(world, "alpha", 1, _STORY)
        self.b = ReplicatedCluster(world, "beta", 2, _STORY)
        self.a.others, self.b.others = [self.b], [self.a]
        self.source: Client
        self.target: Client
        self.table: Table

    async def start(self) -> None:
        """Start both, with a table of one partition."""
        self.a.start()
        self.b.start()
        await self.world.until(
            lambda: all(one.node_id(each) for one in (self.a, self.b) for each in one.servers),
            what="all servers",
        )
        self.source, self.target = await self.a.connected(), await self.b.connected()
        await self.world.sleep_ms(1_000)
        await self.source.admin.create_table(TABLE, 1, replica_count=3, timeout=30.0)
        self.table = await self.source.table(TABLE)

    async def in_log(self) -> None:
        """Add the duplication and wait until it ships."""
        await self.source.admin.add_duplication(TABLE, "beta")
        await self.reach("DS_LOG")

    async def reach(self, status: str) -> None:
        """Wait for a phase."""
        end_ms = self.world.now_ms + 20_000
        while (found := await self.entry()).status.value != status:
            assert self.world.now_ms < end_ms, found
            await self.world.sleep_ms(20)

    async def entry(self) -> Any:
        """The one duplication."""
        (found,) = await self.source.admin.query_duplication(TABLE)
        return found

    async def equal(self) -> None:
        """All is confirmed, and the rows are the same."""
        await self.source.admin.wait_duplicated(TABLE, timeout=30.0)
        assert await rows_of(self.table) == await rows_of(await self.target.table(TABLE))

    def replicas(self, cluster: ReplicatedCluster) -> dict[str, Any]:
        """The members of the partition by the names of their machines."""
        return {machine.name: replica for machine, _, replica in cluster.replicas()}

    def leader(self, cluster: ReplicatedCluster) -> Machine:
        """Where the primary is."""
        (found,) = [
            machine
            for machine, _, replica in cluster.replicas()
            if replica.machine.status is ReplicaStatus.PRIMARY
        ]
        return found

    async def move(self, cluster: ReplicatedCluster, client: Client) -> None:
        """Let another member lead."""
        [stored] = [one for one in cluster.configurations().values() if one.gpid[1] == 0]
        before = self.leader(cluster)
        target = sorted(stored.secondaries)[0]
        await client.admin.balance(stored.gpid, "move_pri", stored.primary or "", target)
        await self.world.until(
            lambda: [one for one in cluster.replicas() if one[2].serving] != []
            and self.leader(cluster) is not before,
            what="another primary",
        )


def play(scenario: Callable[[Pair], Awaitable[None]]) -> None:
    options = WorldOptions(
        network=NetworkOptions(), worker_slow=0.0, clock_drift_ppm=0, wall_offset_us=0
    )
    with World(1, options=options, disk=SimulatedDisk) as world:
        pair = Pair(world)

        async def main() -> None:
            await pair.start()
            await scenario(pair)

        world.run(main(), limit_ms=600_000)


def damage(patch: pytest.MonkeyPatch, logs: list[Any]) -> None:
    """Let these logs be unreadable, and nothing be shipped from memory."""
    real = MutationLog.read

    def read(self: MutationLog, gpid: Gpid, *arguments: Any, **named: Any) -> Any:
        if any(self is one for one in logs):
            raise CorruptionError("the segment is damaged")
        return real(self, gpid, *arguments, **named)

    patch.setattr(MutationLog, "read", read)
    patch.setattr(Shipping, "recent", lambda *arguments: None)


def test_a_primary_with_a_damaged_log_lets_a_member_lead_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.in_log()
        await pair.source.admin.pause_duplication(TABLE, "beta")
        for number in range(20):
            await pair.table.set(b"h%d" % number, b"s", b"v")
        before = pair.leader(pair.a)
        logs = {machine.name: stub._log for machine, stub, _ in pair.a.replicas()}
        damage(monkeypatch, [logs[before.name]])
        await pair.source.admin.start_duplication(TABLE, "beta")
        await pair.equal()
        assert (await pair.entry()).failure == ""
        assert pair.leader(pair.a) is not before
        # It learns the partition anew, with the log of the others.
        monkeypatch.undo()
        await pair.world.until(
            lambda: before.name in pair.replicas(pair.a),
            what="three members again",
            limit_ms=90_000,
        )

    play(scenario)


def test_a_log_that_is_damaged_on_every_member_breaks_the_duplication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(pair: Pair) -> None:
        await pair.in_log()
        await pair.source.admin.pause_duplication(TABLE, "beta")
        await pair.table.set(b"h", b"s", b"v")
        damage(monkeypatch, [stub._log for _, stub, _ in pair.a.replicas()])
        await pair.source.admin.start_duplication(TABLE, "beta")
        end_ms = pair.world.now_ms + 20_000
        while not (found := await pair.entry()).failure:
            assert pair.world.now_ms < end_ms, found
            await pair.world.sleep_ms(50)
        assert "no member has it" in found.failure
        monkeypatch.undo()
        await pair.source.admin.start_duplication(TABLE, "beta", copy=True)
        await pair.reach("DS_LOG")
        await pair.equal()

    play(scenario)


def test_tombstones_go_on_every_member_of_both_sides_once_they_are_confirmed() -> None:
    async def scenario(pair: Pair) -> None:
        await pair.in_log()
        for number in range(10):
            await pair.table.set(b"h%d" % number, b"s", b"v", ttl=1)
            await pair.table.delete(b"h%d" % number, b"s")
        await pair.equal()

        def left() -> dict[str, int]:
            found = {}
            for cluster in (pair.a, pair.b):
                for name, replica in pair.replicas(cluster).items():
                    replica.apply_now()
                    rows = replica.engine.snapshot().iterate(b"", b"\xff\xf0")
                    found[name] = sum(1 for _ in rows)
            return found

        await pair.world.until(
            lambda: not any(left().values()), what="no tombstones", limit_ms=30_000
        )
        assert len(left()) == 6

    play(scenario)


def test_a_tombstone_that_is_not_confirmed_stays_though_another_server_leads() -> None:
    async def scenario(pair: Pair) -> None:
        await pair.table.set(b"h", b"s", b"v")
        await pair.in_log()
        await pair.equal()
        for here in pair.a.hosts:
            for there in pair.b.hosts:
                pair.world.network.cut(here, there)
        await pair.table.delete(b"h", b"s")

        def kept() -> list[int]:
            found = []
            for replica in pair.replicas(pair.a).values():
                replica.apply_now()
                found.append(len(list(replica.engine.snapshot().iterate(b"", b"\xff\xf0"))))
            return found

        for _ in range(3):
            await pair.move(pair.a, pair.source)
            # Many times as long as the sweep waits.
            await pair.world.sleep_ms(5_000)
            assert kept() == [1, 1, 1]
        pair.world.network.heal_all()
        await pair.equal()
        await pair.world.until(lambda: kept() == [0, 0, 0], what="no tombstones", limit_ms=30_000)

    play(scenario)


def test_a_run_goes_on_at_each_new_primary_and_its_log_is_let_go_everywhere() -> None:
    async def scenario(pair: Pair) -> None:
        await pair.in_log()
        for number in range(6):
            await pair.table.set(b"h%d" % number, b"s", b"1")
            side, client = ((pair.a, pair.source), (pair.b, pair.target))[number % 2]
            await pair.move(side, client)
            await pair.table.set(b"h%d" % number, b"s", b"2")
            await pair.equal()
            # Whoever leads there takes nothing of clients.
            with pytest.raises(FollowerTable):
                await (await pair.target.table(TABLE)).set(b"x", b"s", b"mine", timeout=5.0)
        entry = await pair.entry()
        (partition,) = entry.partitions
        assert entry.gap == 0
        assert partition.last_committed_decree >= partition.confirmed_decree > 0

        def pins() -> list[int]:
            uuid = entry.uuid
            return [stub._log.pins(one.gpid)[uuid].decree for _, stub, one in pair.a.replicas()]

        await pair.world.until(
            lambda: min(pins()) >= partition.confirmed_decree, what="log that goes"
        )

    play(scenario)


def test_nothing_that_was_written_after_the_answer_is_missed_though_primaries_move() -> None:
    async def scenario(pair: Pair) -> None:
        await pair.target.admin.create_table(TABLE, 1, replica_count=3, timeout=30.0)
        await pair.table.set(b"before", b"s", b"v")
        moving = pair.a.clients.task(pair.move(pair.a, pair.source))
        await pair.source.admin.add_duplication(TABLE, "beta", checkpoint=False, timeout=30.0)
        for number in range(10):
            await pair.table.set(b"h%d" % number, b"s", b"v", retry_unknown=True)
        await moving
        await pair.reach("DS_LOG")
        await pair.source.admin.wait_duplicated(TABLE, timeout=30.0)
        found = await rows_of(await pair.target.table(TABLE))
        assert set(found) == {(b"h%d" % number, b"s") for number in range(10)}

    play(scenario)
