"""Who calls one after another is answered in the turn of the loop in which the call came."""

from typing import Any

import pytest

from pegaskv.codec.operations import Operation
from pegaskv.net.single_caller import SingleCaller
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World


async def opened(life: Life, durability: str = "os") -> Server:
    server = Server(life)
    await server.start()
    server.stub._front.attend(SingleCaller())  # type: ignore[union-attr]
    await server.serve(first=True, envs={"durability": durability})
    await server.set(b"first", b"v")
    await life.clock.sleep_ms(1_000)
    return server


def call(server: Server, sort_key: bytes) -> int:
    """A read of a connection brings one request."""
    request = server.send(Operation.SET, b"h", sort_key, b"v", 0)
    read_one(server)
    return request


def read_one(server: Server) -> None:
    """What a connection does after a read that left it with one request."""
    single = server.stub._front._single  # type: ignore[union-attr]
    single.count += 1
    if single.alone:
        single.answer()


def answered(server: Server, request: int) -> Any:
    return server.connection.answers.get(request)


def test_the_second_of_calls_one_after_another_is_answered_at_once() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        first = call(server, b"1")
        # Others may come in this turn.
        assert answered(server, first) is None
        await server.answer(first)
        for number in range(3):
            ticks = server.stub._front.ticks  # type: ignore[union-attr]
            request = call(server, b"%d" % number)
            assert answered(server, request)[1] == 0
            assert server.stub._front.ticks == ticks + 1  # type: ignore[union-attr]
            await life.clock.sleep_ms(1)
        # What is deferred and no write, as a scan is, has nothing to tick for.
        read_one(server)
        await life.clock.sleep_ms(1)
        assert await server.get(b"2") == b"v"

    play(scenario)


def test_of_many_callers_only_one_is_answered_alone_and_only_once() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.answer(call(server, b"1"))
        for turn in range(3):
            requests = [call(server, b"%d" % number) for number in range(10)]
            at_once = [request for request in requests if answered(server, request)]
            assert at_once == (requests[:1] if turn == 0 else [])
            for request in requests:
                assert (await server.answer(request))[0] == 0
        # One remains, and is found out again.
        await server.answer(call(server, b"1"))
        assert answered(server, call(server, b"1"))

    play(scenario)


@pytest.mark.parametrize("what", ["fsync", "members"])
def test_nothing_is_answered_before_the_disk_or_the_members_have_it(what: str) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, "fsync" if what == "fsync" else "os")
        if what == "members":
            stream: Any = type("Stream", (), {"opened": False})()
            server.replica().streams["another"] = stream
        for _ in range(3):
            ticks = server.stub._front.ticks  # type: ignore[union-attr]
            call(server, b"1")
            assert server.stub._front.ticks == ticks  # type: ignore[union-attr]
            await life.clock.sleep_ms(20)
        server.replica().streams.clear()

    play(scenario)
