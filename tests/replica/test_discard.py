"""A replica is removed by an order only where nobody can need it."""

import pytest

from pegaskv.base.errors import NotReady
from pegaskv.base.types import ReplicaStatus
from pegaskv.codec.messages_meta import Order, OrderKind
from tests.replica.members_world import GroupServer
from tests.replica.stub_world import GPID, play, play_lives
from tests.simulation.world import Life, World


async def discard(server: GroupServer, ballot: int) -> str:
    return await server.stub.obey(Order(OrderKind.DISCARD, GPID, ballot))


async def refuses(server: GroupServer, ballot: int) -> bool:
    """Whether the order is refused, and everything stays."""
    with pytest.raises(NotReady, match="may be needed"):
        await discard(server, ballot)
    return server.disk.exists(server.directory.replica_path(GPID))


async def goes(server: GroupServer, ballot: int) -> bool:
    assert await discard(server, ballot) == "it is gone"
    assert server.stub.replica_state(GPID) == {}
    return not server.disk.exists(server.directory.replica_path(GPID))


async def started(life: Life, *, joined: bool = True) -> GroupServer:
    server = GroupServer(life)
    await server.start()
    if joined:
        server.stub.on_joined()
    return server


async def leave(server: GroupServer, ballot: int) -> None:
    """Others have the partition from this ballot on."""
    await server.serve(ballot=ballot, primary="b", secondaries=("c",))
    assert server.replica().machine.status is ReplicaStatus.INACTIVE
    assert server.replica().machine.ballot == ballot


def test_what_others_have_goes_at_once_and_twice_is_as_once() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await started(life)
        await server.serve(first=True)
        await server.set(b"a", b"1")
        await leave(server, 5)
        assert await goes(server, 5)
        assert await goes(server, 5)
        # Even if the order is late, and it is made again, it is made as an empty one.
        await server.serve(first=True)
        assert await server.get(b"a") is None

    play(scenario)


@pytest.mark.parametrize("leads", [False, True])
def test_a_member_stays_whatever_ballot_the_order_has(leads: bool) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await started(life)
        here = server.directory.node_id
        if leads:
            await server.serve(first=True)
        else:
            await server.serve(first=True, primary="b", secondaries=(here,))
        assert await refuses(server, 1)
        assert await refuses(server, 9)

    play(scenario)


def test_an_order_of_an_older_ballot_than_the_replica_knows_is_refused() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await started(life)
        await server.serve(first=True)
        await leave(server, 5)
        assert await refuses(server, 4)
        assert await goes(server, 5)

    play(scenario)


def test_after_a_start_nothing_goes_before_the_meta_server_has_heard_what_is_here() -> None:
    async def before(world: World, life: Life) -> None:
        server = await started(life)
        await server.serve(first=True, ballot=3)
        await server.set(b"a", b"1")

    async def after(world: World, life: Life) -> None:
        server = await started(life, joined=False)
        # What was ordered before may come from when it had less.
        assert await refuses(server, 9)
        server.stub.on_joined()
        # Nor by who knows less of it than its log does.
        assert await refuses(server, 2)
        assert await goes(server, 3)

    play_lives(before, after)


def test_who_was_named_a_member_meanwhile_stays_although_its_replica_is_closed() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await started(life)
        await server.serve(first=True)
        server.replica().close_for("a test")
        await leave(server, 5)
        await server.serve(ballot=7, primary="b", secondaries=(server.directory.node_id,))
        assert server.replica().machine.ballot == 5
        assert await refuses(server, 6)

    play(scenario)
