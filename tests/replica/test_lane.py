"""Large requests are worked at in slices: others are served between, nothing is done by half."""

import asyncio
from typing import Any, cast

from pegaskv.base.limits import BATCH_ROWS_MAX, OPERATION_ROWS_MAX
from pegaskv.codec.keys import encode_key
from pegaskv.codec.mutations import OperationKind, encode_mutation, encode_operation
from pegaskv.codec.operations import Operation
from pegaskv.codec.values import make_timetag, pack_row_header
from pegaskv.net.turns import Pace
from pegaskv.replica.lane import SLICE_BYTES, SLICE_ROWS, Lane, Steps
from pegaskv.replica.received_rows import PART_ROWS
from tests.replica.duplication_pair import source_order, stream_uuid
from tests.replica.stub_world import Connection, Server, play
from tests.simulation.world import Life, World

UUID = stream_uuid(2)
OK, NOT_READY = 0, 13


async def opened(life: Life, **more: Any) -> Server:
    server = Server(life)
    await server.start()
    await server.serve(first=True, **more)
    return server


def rows(count: int, size: int = 1) -> list[bytes]:
    return [part for number in range(count) for part in (b"h%d" % number, b"s", bytes(size))]


async def turns(life: Life, count: int) -> None:
    for _ in range(count):
        await life.clock.sleep_ms(0)


def test_others_are_served_while_a_large_request_is_worked_at() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"polite", b"value")
        server.slow("log", 0)
        large = [
            server.send(Operation.BATCH_SET, rows(BATCH_ROWS_MAX), 0),
            server.send(
                Operation.MULTI_SET,
                b"h",
                [part for number in range(OPERATION_ROWS_MAX) for part in (b"m%d" % number, b"v")],
                0,
            ),
            server.send(Operation.MULTI_DELETE, b"h", [b"x%d" % n for n in range(2_000)]),
            server.send(
                Operation.CHECK_AND_MUTATE,
                *(b"h", b"absent", 1, b"", [[1, b"c%d" % n, b"v", 0] for n in range(2_000)], True),
            ),
        ]
        served = 0
        answers = server.connection.answers
        while not all(each in answers for each in large):
            request = server.send(Operation.GET, b"h", b"polite")
            # At once, whatever waits.
            assert answers[request][1:] == [OK, b"value"]
            served += 1
            await turns(life, 1)
        assert served > OPERATION_ROWS_MAX // SLICE_ROWS
        assert [answers[each][1] for each in large] == [OK] * 4
        for key in (b"m0", b"m%d" % (OPERATION_ROWS_MAX - 1), b"c1999"):
            assert await server.get(key) == b"v"
        names = [part for n in range(BATCH_ROWS_MAX) for part in (b"h%d" % n, b"s")]
        status, values = await server.ask(Operation.BATCH_GET, names)
        assert (status, values) == (OK, [b"\0"] * BATCH_ROWS_MAX)
        assert server.connection.in_flight == 0
        await server.stop()

    play(scenario)


def test_while_others_call_a_clients_steps_are_apart_and_a_servers_are_not() -> None:
    async def steps(life: Life, server: Server, number: int, *, heard: bool) -> float:
        """Return the milliseconds that a request of many steps took."""
        now_us = 0

        def later() -> int:
            nonlocal now_us
            now_us += 1_000
            return now_us

        server.connection.pace = pace = Pace(later, 20)
        began_ms = life.clock.monotonic_ms()
        request = server.send(
            Operation.MULTI_DELETE, b"h", [b"x%d" % n for n in range(number * SLICE_ROWS)]
        )
        while request not in server.connection.answers:
            pace.heard = heard
            await turns(life, 1)
        return life.clock.monotonic_ms() - began_ms

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        alone_ms = await steps(life, server, 10, heard=False)
        # Replies of others that wait for the end of a turn leave before each step.
        assert server.connection.stepped_aside >= 10
        # A millisecond each, and four of rest behind all but the last.
        assert await steps(life, server, 10, heard=True) >= alone_ms + 8 * 4
        server.connection.never_rest()
        assert await steps(life, server, 10, heard=True) < alone_ms + 8 * 4
        await server.stop()

    play(scenario)


def test_what_a_step_has_caused_counts_as_its_time() -> None:
    async def scenario(world: World, life: Life) -> None:
        now_us = 0

        def tick() -> None:
            nonlocal now_us
            now_us += 3_000

        def request() -> Steps:
            for _ in range(2):
                asyncio.get_running_loop().call_soon(tick)
                yield

        client = Connection()
        client.pace = Pace(lambda: now_us, 50)
        client.pace.heard = True
        lane = Lane()
        lane.queue("client", cast(Any, client), 1, request())
        await turns(life, 20)
        assert client.pace.rested_us == 3_000

    play(scenario)


def test_a_step_for_a_server_does_not_wait_for_a_clients_rest() -> None:
    async def scenario(world: World, life: Life) -> None:
        lane = Lane()
        made: list[str] = []

        def request(name: str, count: int) -> Steps:
            for _ in range(count):
                made.append(name)
                yield

        now_us = 0

        def later() -> int:
            nonlocal now_us
            now_us += 5_000
            return now_us

        client, server = Connection(), Connection()
        client.pace = server.pace = pace = Pace(later, 1)
        server.never_rest()
        lane.queue("client", cast(Any, client), 1, request("client", 5))
        lane.queue("server", cast(Any, server), 2, request("server", 2))
        for _ in range(20):
            pace.heard = True
            await turns(life, 1)
        # Half a second of rest only before what is for the client, with nothing behind it.
        assert made == ["client", "server", "client", "server", "client", "client"]
        await life.clock.sleep_ms(2_000)
        assert made[6:] == ["client"]

    play(scenario)


def test_slices_are_bounded_in_bytes_too() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        count = 20
        request = server.send(Operation.BATCH_SET, rows(count, SLICE_BYTES), 0)
        replica = server.replica()
        batch = replica.open
        assert batch is not None
        assert batch.size < 2 * SLICE_BYTES
        assert (await server.answer(request))[0] == OK
        names = [part for n in range(count) for part in (b"h%d" % n, b"s")]
        asked = server.send(Operation.BATCH_GET, names)
        assert asked not in server.connection.answers
        assert (await server.answer(asked))[1] == [bytes(SLICE_BYTES)] * count
        assert server.connection.in_flight == 0
        await server.stop()

    play(scenario)


def test_a_large_request_is_checked_in_whole_before_it_changes_anything() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        wrong: list[Any] = rows(BATCH_ROWS_MAX)
        wrong[-1] = "text"
        many: list[Any] = [part for number in range(500) for part in (b"m%d" % number, b"v")]
        for operation, *fields in (
            (Operation.BATCH_SET, wrong, 0),
            (Operation.BATCH_DELETE, [*rows(1)[:2], *[b"k"] * 399, None]),
            (Operation.MULTI_SET, b"h", [*many, b"m", 1], 0),
            (Operation.MULTI_DELETE, b"h", [*many, 1.5]),
            (Operation.CHECK_AND_MUTATE, b"h", b"a", 1, b"", [*[[2, b"x"]] * 300, [3]], True),
            (Operation.BATCH_GET, [*wrong[:400], b"k", 7]),
        ):
            assert (await server.ask(operation, *fields))[0] == 1, operation
        assert await server.get(b"m0") is None
        assert (await server.ask(Operation.GET, b"h0", b"s"))[1] is None
        await life.clock.sleep_ms(1_000)
        assert server.replica().idle
        assert server.connection.in_flight == 0
        await server.stop()

    play(scenario)


def test_a_client_that_goes_leaves_the_lane_to_the_others() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        mine, server.connection = server.connection, Connection()
        left = server.send(Operation.BATCH_SET, rows(BATCH_ROWS_MAX), 0)
        gone, server.connection = server.connection, mine
        stays = server.send(Operation.BATCH_SET, rows(BATCH_ROWS_MAX), 0)
        await turns(life, 4)
        gone.closed = True
        assert (await server.answer(stays))[0] == OK
        assert left not in gone.answers
        await server.stop()

    play(scenario)


def test_no_part_of_a_batch_counts_when_an_earlier_one_was_refused() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        request = server.send(Operation.BATCH_SET, rows(BATCH_ROWS_MAX), 0)
        replica = server.replica()
        await turns(life, BATCH_ROWS_MAX // SLICE_ROWS + 2)
        assert request not in server.connection.answers
        # What is open is refused, as when the primary moves; then the replica leads again.
        assert replica.open or replica.full or replica.in_flight
        replica.batches_refused += 1
        code = (await server.answer(request))[0]
        assert code == NOT_READY
        assert (await server.ask(Operation.BATCH_SET, rows(BATCH_ROWS_MAX), 0))[0] == OK
        assert server.connection.in_flight == 0
        await server.stop()

    play(scenario)


def shipped(timestamp_us: int, first: int, count: int) -> bytes:
    """A mutation of a source with `count` operations of a row."""
    operations = []
    for number in range(first, first + count):
        row = pack_row_header(0, make_timetag(timestamp_us + number, 2)) + b"%d" % number
        fields = [encode_key(b"h", b"%06d" % number), row]
        operations.append(encode_operation(OperationKind.WRITE, 0, fields))
    return encode_mutation(timestamp_us + first, operations)


async def progress(server: Server) -> int:
    status, *found = await server.ask(Operation.DUPLICATION_PROGRESS, UUID, 1, 0)
    assert status == OK, found
    return int(found[0])


def test_batches_of_a_stream_stay_in_order_however_large_they_are() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, sources=(source_order(2),))
        count = 5 * PART_ROWS
        stream = (UUID, 1, 0)
        large = server.send(
            Operation.DUPLICATE, *stream, 0, 1, 1, [1, shipped(1_000, 0, count)], timeout_ms=9_000
        )
        # These would be answered by "something is missing" if they came first.
        small = server.send(Operation.DUPLICATE, *stream, 1, 2, 1, [2, shipped(1_000, count, 1)])
        empty = server.send(Operation.DUPLICATE, *stream, 2, 5, 1, [])
        other = server.send(Operation.GET, b"h", b"000000")
        assert server.connection.answers[other][1:] == [OK, None]
        assert not server.connection.answers.keys() & {large, small, empty}
        assert await progress(server) == 0
        assert [(await server.answer(each))[2] for each in (large, small, empty)] == [1, 2, 5]
        assert await progress(server) == 5
        for number in (0, count - 1, count):
            assert await server.get(b"%06d" % number) == b"%d" % number
        assert server.connection.in_flight == 0
        assert server.replica().rows_received == count + 1
        await server.stop()

    play(scenario)


def test_what_is_applied_of_a_batch_that_was_cut_short_does_no_harm() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, sources=(source_order(2),))
        count = 5 * PART_ROWS
        batch = (UUID, 1, 0, 0, 1, 1, [1, shipped(1_000, 0, count)])
        mine, server.connection = server.connection, Connection()
        cut = server.send(Operation.DUPLICATE, *batch)
        gone, server.connection = server.connection, mine
        while not server.replica().rows_received:
            await turns(life, 1)
        gone.closed = True
        await life.clock.sleep_ms(1_000)
        assert 0 < server.replica().rows_received < count
        assert cut not in gone.answers
        assert await progress(server) == 0
        assert (await server.ask(Operation.DUPLICATE, *batch))[2:4] == [1, 0]
        assert await progress(server) == 1
        assert await server.get(b"%06d" % (count - 1)) == b"%d" % (count - 1)
        await server.stop()

    play(scenario)


def test_a_copied_page_and_its_removals_go_in_parts() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, sources=(source_order(2),))
        count = 3 * PART_ROWS
        kept = [encode_key(b"h", b"%06d" % number) for number in range(count)]
        flat: list[bytes] = []
        for number, key in enumerate(kept):
            flat += (key, pack_row_header(0, make_timetag(1_000 + number, 2)) + b"%d" % number)
        fields = (UUID, 1, 0, b"", b"", 9_000)
        whole = server.send(Operation.COPY_RANGE, *fields, False, flat, timeout_ms=9_000)
        assert (await server.answer(whole))[0] == OK
        # The next one names the first row alone: the others go.
        second = server.send(Operation.COPY_RANGE, *fields, False, flat[:2], timeout_ms=9_000)
        other = server.send(Operation.GET, b"h", b"000001")
        assert server.connection.answers[other][1:] == [OK, b"1"]
        assert (await server.answer(second))[3] == count - 1
        assert await server.get(b"000000") == b"0"
        assert await server.get(b"000001") is None
        assert server.connection.in_flight == 0
        await server.stop()

    play(scenario)
