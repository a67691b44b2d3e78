"""Who begins to learn a partition is its one owner, from the primary's word on."""

import asyncio
from typing import Any

import pytest

from pegaskv.base.types import ReplicaStatus
from pegaskv.codec.messages_meta import table_to_wire
from pegaskv.codec.operations import Operation
from tests.replica.members_world import GroupServer
from tests.replica.stub_world import GPID, play
from tests.simulation.world import Life, World


async def started(life: Life) -> GroupServer:
    server = GroupServer(life)
    await server.start()
    server.stub.on_joined()
    return server


def let_learn(server: GroupServer, ballot: int) -> int:
    """The primary `b` asks this server to learn."""
    table = table_to_wire(server.push(ballot=ballot).table)
    return server.hand(Operation.ADOPT, 1_000, *GPID, ballot, "b", [], True, table, {})


def learning() -> list[str]:
    return [name for task in asyncio.all_tasks() if "learn 1.0" in (name := task.get_name())]


async def accepted(server: GroupServer, request: int) -> Any:
    return (await server.answer(request))[1]


@pytest.mark.parametrize("turns", [0, 1, 20])
def test_a_partition_that_is_to_be_learned_is_opened_by_nobody_else(turns: int) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await started(life)
        request = let_learn(server, 2)
        for _ in range(turns):
            await world.sleep_ms(0)
        await server.serve(first=True, ballot=3)
        assert await accepted(server, request)
        assert not server.stub._replicas
        assert server.stub._its_roles.studies.is_preparing(GPID)
        assert not server.engines.opened

    play(scenario)


def test_what_was_not_learned_within_a_minute_can_be_opened_again() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await started(life)
        await server.serve(first=True)
        await server.set(b"s", b"v")
        await server.serve(primary="b", secondaries=("c",))
        assert await accepted(server, let_learn(server, 3))
        await server.serve(ballot=4)
        await world.sleep_ms(100)
        assert not server.stub._replicas
        # Nobody teaches it.
        studies = server.stub._its_roles.studies
        await world.until(lambda: not studies.is_preparing(GPID), limit_ms=90_000)
        await server.serve(ballot=5)
        assert await server.get(b"s") == b"v"
        assert not server.crashes

    play(scenario)


def test_a_replica_that_was_made_obeys_the_meta_server_while_it_copies_log() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await started(life)
        server.members.peer("b").teaches = True
        await server.serve(first=True)
        await server.serve(primary="b", secondaries=("c",))
        assert await accepted(server, let_learn(server, 3))
        studies = server.stub._its_roles.studies
        await world.until(lambda: not studies.is_preparing(GPID))
        assert server.replica().machine.status is ReplicaStatus.POTENTIAL_SECONDARY
        assert learning()
        await server.serve(ballot=4, primary="b", secondaries=("c",))
        await world.sleep_ms(1)
        assert server.replica().machine.status is ReplicaStatus.INACTIVE
        assert not learning()
        assert not server.crashes

    play(scenario)


def test_who_ends_what_is_learned_waits_for_all_that_is_under_way_on_the_disk() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await started(life)
        primary = server.members.peer("b")
        primary.teaches = True
        await server.serve(first=True)
        await server.serve(primary="b", secondaries=("c",))
        incarnation = server.directory.manifest(GPID).incarnation
        server.slow("upkeep", 100_000)
        assert await accepted(server, let_learn(server, 3))
        # Now a new incarnation begins here, which is not broken off.
        await world.until(lambda: primary.taught == 1)
        for ballot in (4, 5):
            assert await accepted(server, let_learn(server, ballot))
            await world.sleep_ms(1)
        assert server.directory.manifest(GPID).incarnation == incarnation
        await server.stub._its_roles.studies.cancel(GPID)
        assert not learning()
        assert server.directory.manifest(GPID).incarnation == incarnation + 1
        await server.stub.configure(server.push(version=9, purged=True))
        assert not server.disk.exists(server.directory.replica_path(GPID))
        assert not server.engines.opened
        assert not server.crashes

    play(scenario)
