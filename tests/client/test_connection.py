import asyncio
from typing import Any

import pytest

from pegaskv.base.errors import Timeout, Unavailable
from pegaskv.client import ClientOptions, Table, connect
from pegaskv.client.connection import LOST, SLOT_MS, Connection
from pegaskv.codec.operations import Operation
from tests.client.fake_server import FakeServer, Fault, begin
from tests.helpers import poll_until
from tests.simulation.world import World


def connection_of(table: Table) -> Connection:
    assert table._calls.route is not None
    connection = table._calls.route.nodes[0].connection
    assert connection is not None
    return connection


async def test_requests_of_one_turn_leave_as_one_frame(server: FakeServer, table: Table) -> None:
    server.frames.clear()
    for each in [begin(table.get("h", b"%d" % i)) for i in range(1_500)]:
        await each
    assert sum(server.frames) == 1_500
    assert len(server.frames) < 20
    assert max(server.frames) <= 1_024


async def test_large_requests_are_cut_into_frames_and_bounded_in_bytes(
    server: FakeServer, table: Table
) -> None:
    writing = [begin(table.set(b"%d" % i, "s", bytes(1024 * 1024))) for i in range(40)]
    for each in writing:
        await each
    assert len(server.seen(Operation.SET)) == 40
    connection = connection_of(table)
    assert (connection._bytes, connection._weights, connection.pending) == (0, {}, 0)


async def test_ids_are_never_used_twice_while_they_are_pending(
    server: FakeServer, table: Table
) -> None:
    connection = connection_of(table)
    connection._next_id = connection._placed_id = 0xFFFFFFFE
    server.faults.append(Fault(Operation.GET, "hold", times=4))
    held = [begin(table.get("h", b"%d" % i)) for i in range(4)]
    await poll_until(lambda: len(server.held) == 4)
    assert list(connection._pending) == [0xFFFFFFFE, 0xFFFFFFFF, 1, 2]
    connection._next_id = connection._placed_id = 0xFFFFFFFE
    await table.set("h", "0", "v")
    assert server.requests[-1][0] == 3
    server.release()
    assert [await each for each in held] == [b"v", None, None, None]


async def test_every_request_has_an_end_when_the_connection_breaks(
    server: FakeServer, table: Table
) -> None:
    connection = connection_of(table)
    server.faults.append(Fault(Operation.GET, "lose"))
    lost = connection.submit((int(Operation.GET), 5_000, 1, 0, b"h", b"s"))
    await poll_until(lambda: len(server.seen(Operation.GET)) == 1)
    unsent = connection.submit((int(Operation.GET), 5_000, 1, 0, b"h", b"s"))
    connection.close("test")
    assert lost is not None
    assert unsent is not None
    assert (await lost)[1:4] == (LOST, True, "test")
    assert (await unsent)[1:4] == (LOST, False, "test")
    assert connection.submit((int(Operation.GET), 5_000)) is None
    await connection.wait_ended()
    assert connection.pending == 0


async def test_what_never_left_is_known_not_to_be_applied(server: FakeServer) -> None:
    options = ClientOptions(requests_in_flight_max=1)
    async with connect(server.address, options=options) as client:
        table = await client.table("t")
        server.faults.append(Fault(Operation.SET, "lose", times=1))
        first = begin(table.set("h", "a", "v", timeout=0.1))
        second = begin(table.set("h", "b", "v", timeout=0.1))
        with pytest.raises(Timeout) as sent:
            await first
        with pytest.raises(Timeout) as unsent:
            await second
        assert sent.value.maybe_applied
        assert not unsent.value.maybe_applied
        await table.set("h", "c", "v")


@pytest.mark.parametrize("seed", range(8))
def test_deadlines_hold_in_virtual_time(seed: int) -> None:
    """A server that never answers: each call ends after its own time limit, not earlier."""
    waited: list[int] = []

    async def main(world: World) -> None:
        home = world.node("server")
        server = await FakeServer(home.spawn().network).start(home.address, 34_601)
        life = world.node("client").spawn()
        random = life.random("limits")
        connecting = connect(
            server.address, network=life.network, clock=life.clock, random=random, timeout=2.0
        )
        client = await connecting
        table = await client.table("t")
        server.faults.append(Fault(Operation.SET, "lose", times=10_000))

        async def one(limit_ms: int | None) -> None:
            started_ms = life.clock.monotonic_ms()
            limit = None if limit_ms is None else limit_ms / 1_000
            with pytest.raises((Timeout, Unavailable)) as caught:
                await table.set("h", "s", "v", timeout=limit)
            assert caught.value.maybe_applied
            took_ms = life.clock.monotonic_ms() - started_ms
            if isinstance(caught.value, Timeout):
                expected = limit_ms or 2_000
                # The hot path takes its start from the last tick, so up to a slot early.
                assert expected - 1 <= took_ms <= expected + 3 * SLOT_MS, (expected, took_ms)
                waited.append(took_ms)

        limits: list[int | None] = [None, *(random.randint(1, 5_000) for _ in range(30))]
        for call in [begin(one(limit)) for limit in limits]:
            await call
        await client.close()

    with World(seed, clock_drift_ppm=0) as world:
        world.run(main(world))
    assert len(waited) > 10


def test_a_node_that_went_silent_is_given_up_and_found_again() -> None:
    """A cut without a word: calls time out, the connection is dropped, a new one works."""
    seen: dict[str, Any] = {}

    async def main(world: World) -> None:
        home = world.node("server")
        server = await FakeServer(home.spawn().network).start(home.address, 34_601)
        node = world.node("client")
        life = node.spawn()
        client = await connect(
            server.address,
            network=life.network,
            clock=life.clock,
            random=life.random("client"),
            timeout=1.0,
        )
        table = await client.table("t")
        await table.set("h", "s", "v")
        first = connection_of(table)
        world.network.cut(node.address, home.address)
        with pytest.raises(Timeout):
            await table.get("h", "s")
        await world.until(lambda: first.closed, limit_ms=8_000, what="the end of the connection")
        world.network.heal_all()
        assert await table.get("h", "s", timeout=20) == b"v"
        seen["second"] = connection_of(table) is not first
        await client.close()

    with World(3) as world:
        world.run(main(world))
    assert seen["second"]


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_network_does_reads_are_right_and_every_call_ends(seed: int) -> None:
    counts = {"ok": 0, "failed": 0}

    async def main(world: World) -> None:
        home = world.node("server")
        server = await FakeServer(home.spawn().network).start(home.address, 34_601)
        node = world.node("client")
        life = node.spawn()
        random = world.random("trouble")
        client = await connect(
            server.address,
            network=life.network,
            clock=life.clock,
            random=life.random("client"),
            timeout=3.0,
        )
        table = await client.table("t")
        server.store.page_rows = 7
        written: dict[bytes, set[bytes | None]] = {}

        async def user(number: int) -> None:
            for step in range(20):
                key, value = b"%d" % random.randrange(10), b"%d.%d" % (number, step)
                kind = random.random()
                try:
                    if kind < 0.5:
                        written.setdefault(key, {None}).add(value)
                        await table.set(key, b"s", value)
                    elif kind < 0.9:
                        assert await table.get(key, b"s") in written.get(key, {None})
                    else:
                        rows = [row async for row in table.full_scan()]
                        assert len({row.hash_key for row in rows}) == len(rows)
                    counts["ok"] += 1
                except (Timeout, Unavailable):
                    counts["failed"] += 1

        users = [begin(user(number)) for number in range(8)]
        for _ in range(15):
            await world.sleep_ms(random.randint(1, 400))
            trouble = random.randrange(3)
            if trouble == 0:
                world.network.reset(node.address, home.address)
            elif trouble == 1:
                world.network.cut(node.address, home.address)
                await world.sleep_ms(random.randint(1, 2_000))
                world.network.heal_all()
            else:
                server.hang_up()
        for each in users:
            await each
        await table.set("end", "s", "v", timeout=30)
        await client.close()
        await client.close()

    with World(seed) as world:
        world.run(main(world))
    assert counts["ok"] > 20


async def test_who_calls_one_after_another_does_not_wait_for_the_end_of_the_turn(
    server: FakeServer, table: Table
) -> None:
    connection = connection_of(table)
    for _ in range(3):
        await table.get("h", "s")
    # The last one left alone, so this one leaves when it is made.
    alone = begin(table.get("h", "s"))
    await asyncio.sleep(0)
    assert not connection._out
    assert not connection._scheduled
    # Others come in the same turn: all of them leave together, and so do the next ones.
    others = [begin(table.get("h", b"%d" % i)) for i in range(10)]
    for each in [alone, *others]:
        await each
    server.frames.clear()
    for each in [begin(table.get("h", b"%d" % i)) for i in range(10)]:
        await each
    assert server.frames == [10]


async def test_a_call_that_leaves_alone_has_its_time_limit_too(
    server: FakeServer, table: Table
) -> None:
    connection = connection_of(table)
    for _ in range(3):
        await table.get("h", "s")
    # Nothing was under way for a while, so nobody looks at the time.
    await poll_until(lambda: connection._ticking is None)
    server.faults.append(Fault(Operation.GET, "hold"))
    with pytest.raises(Timeout):
        await table.get("h", "s", timeout=0.2)
    server.release()
