"""Ranges of a copy: what is named is taken, what the source lacks goes, nothing old comes back."""

from pegaskv.codec.keys import RESERVED_PREFIX
from pegaskv.codec.operations import Operation
from pegaskv.codec.values import is_deleted
from tests.replica.received_support import (
    INVALID_ARGUMENT,
    INVALID_DATA,
    OK,
    STREAM,
    copy,
    duplicate,
    key,
    mutation,
    opened,
    row,
)
from tests.replica.stub_world import play
from tests.simulation.world import Life, World


def test_a_copy_takes_what_is_named_and_removes_what_the_source_lacks() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        old = [row(100, b"old"), row(100, b"unnamed"), row(500, b"newer than the page")]
        flat = [
            part
            for name, each in zip((b"b", b"c", b"d"), old, strict=True)
            for part in (key(name), each)
        ]
        assert (await copy(server, *flat, clock_us=500))[0] == OK
        await server.set(b"e", b"own")
        page = [key(b"a"), row(200, b"1"), key(b"b"), row(200, b"2")]
        tombstone = [key(b"f"), row(200, deleted=True)]
        reply = await copy(server, *page, *tombstone, clock_us=300)
        assert (reply[0], reply[2], reply[3]) == (OK, 0, 1)
        names = (b"a", b"b", b"c", b"d", b"e", b"f")
        found = [await server.get(name) for name in names]
        assert found == [b"1", b"2", None, b"newer than the page", b"own", None]
        kept = server.replica().get(key(b"f"))
        assert kept is not None
        assert is_deleted(kept)
        assert server.replica().rows_removed_by_copies == 1
        # Outside of the range nothing goes.
        reply = await copy(server, clock_us=300, start=key(b"b"), stop=key(b"d"))
        assert reply[3] == 1
        assert [await server.get(name) for name in (b"a", b"b")] == [b"1", None]
        await server.stop()

    play(scenario)


def test_a_copy_removes_nothing_that_was_written_while_it_looked() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        count = 12_000
        flat = [part for number in range(count) for part in (key(b"%05d" % number), row(100, b"x"))]
        for at in range(0, len(flat), 8_000):
            start, stop = flat[at], flat[at + 8_000] if at + 8_000 < len(flat) else b""
            reply = await copy(server, *flat[at : at + 8_000], clock_us=100, start=start, stop=stop)
            assert reply[0] == OK
        server.slow("scan", 5_000)
        request = server.send(Operation.COPY_RANGE, *STREAM, b"", b"", 300, False, [])
        for number in range(0, count, 1_000):
            await server.set(b"%05d" % number, b"written meanwhile")
        reply = await server.answer(request)
        assert reply[0] == OK
        left = [number for number in range(0, count, 500) if await server.get(b"%05d" % number)]
        assert left == list(range(0, count, 1_000))
        assert reply[3] == server.replica().rows_removed_by_copies
        assert count - 12 <= reply[3] <= count
        await server.stop()

    play(scenario, seed=3)


def test_equal_timetags_are_the_same_version_unless_a_repair_overwrites() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        assert (await copy(server, key(b"a"), row(100, b"rotten"), clock_us=100))[0] == OK
        reply = await copy(server, key(b"a"), row(100, b"right"), clock_us=100)
        assert reply[2:] == [0, 0]
        assert await server.get(b"a") == b"rotten"
        await copy(server, key(b"a"), row(100, b"right"), clock_us=100, equal=True)
        assert await server.get(b"a") == b"right"
        await server.stop()

    play(scenario)


def test_a_page_older_than_the_stream_brings_nothing_back() -> None:
    """The delete came by the stream and its tombstone was swept; then the late page arrives."""

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await duplicate(
            server, 0, 5, 5, mutation(200, [key(b"a"), row(200, deleted=True)]), clock_us=300
        )
        await world.sleep_ms(400_000)
        assert server.replica().get(key(b"a")) is None, "the tombstone is here still"
        assert server.replica().tombstones_swept == 1
        assert (await copy(server, key(b"a"), row(100, b"late"), clock_us=150))[2] == 1
        assert await server.get(b"a") is None
        # A page of a newer snapshot does.
        await copy(server, key(b"a"), row(250, b"new"), clock_us=300)
        assert await server.get(b"a") == b"new"
        await server.stop()

    play(scenario)


def test_hostile_pages_are_refused_and_change_nothing() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        decree = server.replica().machine.committed
        a, b = [key(b"a"), row(1)], [key(b"b"), row(1)]
        for start, stop, clock, equal, flat in (
            (b"", b"", 1, False, [*b, *a]),
            (b"", b"", 1, False, [*a, *a]),
            (key(b"b"), b"", 1, False, a),
            (b"", key(b"b"), 1, False, b),
            (None, b"", 1, False, []),
            (b"", "x", 1, False, []),
            (b"", b"", None, False, []),
            (b"", b"", -1, False, []),
            (b"", b"", 1, 0, []),
            (b"", b"", 1, False, [key(b"a")]),
            (b"", b"", 1, False, [key(b"a"), b"short"]),
            (b"", b"", 1, False, [key(b"a"), row(1, cluster=0)]),
            (b"", b"", 1, False, [RESERVED_PREFIX + b"state", row(1)]),
            (b"", b"", 1, False, None),
        ):
            reply = await server.ask(Operation.COPY_RANGE, *STREAM, start, stop, clock, equal, flat)
            assert reply[0] in (INVALID_ARGUMENT, INVALID_DATA), (start, stop, flat)
        # An empty range, or one of the server's own keys, holds nothing.
        for start, stop in ((key(b"b"), key(b"a")), (RESERVED_PREFIX, b"")):
            assert (await copy(server, clock_us=1, start=start, stop=stop))[0] == OK
        assert server.replica().machine.committed == decree
        assert server.replica().participation.sources
        await server.stop()

    play(scenario)
