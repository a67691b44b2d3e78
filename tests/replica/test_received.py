"""What comes in from another cluster: checked, compared by timetag, counted once."""

from typing import Any

import pytest

from pegaskv.base.errors import CorruptionError
from pegaskv.base.limits import MUTATION_BYTES_MAX, PARTITION_COUNT_MAX
from pegaskv.codec.keys import RESERVED_PREFIX, encode_key
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.codec.mutations import (
    OperationKind,
    decode_mutation,
    encode_mutation,
    encode_operation,
    mutation_timestamps,
)
from pegaskv.codec.operations import Operation
from pegaskv.codec.values import TIMESTAMP_MAX
from pegaskv.storage.log_options import LogOptions
from tests.replica.duplication_pair import source_order, stream_uuid
from tests.replica.received_support import (
    CLOCK_SKEW,
    FOLLOWER,
    INVALID_ARGUMENT,
    INVALID_DATA,
    NOT_LISTED,
    OK,
    STREAM,
    UNKNOWN_OPERATION,
    UUID,
    copy,
    duplicate,
    key,
    mutation,
    opened,
    progress,
    row,
)
from tests.replica.stub_world import GPID, Server, play
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World


def test_a_batch_counts_once_and_a_gap_is_answered_with_the_progress() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        first = (10, mutation(100, [key(b"a"), row(100, b"1")]))
        second = (12, mutation(200, [key(b"a"), row(200, b"2")], [key(b"b"), row(201, b"2")]))
        status, _, reached, lost, _ = await duplicate(server, 10, 12, *second)
        assert (status, reached, lost) == (OK, 0, 0)
        assert await server.get(b"b") is None
        assert (await duplicate(server, 0, 10, *first, clock_us=150))[2] == 10
        assert (await duplicate(server, 10, 12, *second, clock_us=250))[2] == 12
        decree = server.replica().machine.committed
        for previous, last, batch in ((0, 10, first), (10, 12, second), (3, 11, first)):
            assert (await duplicate(server, previous, last, *batch))[1:4] == [decree, 12, 0]
        assert server.replica().machine.committed == decree
        # One that reaches over what is there brings what is new in it.
        third = (14, mutation(300, [key(b"c"), row(300, b"3")]))
        assert (await duplicate(server, 10, 14, *second, *third, clock_us=350))[2] == 14
        assert [await server.get(each) for each in (b"a", b"b", b"c")] == [b"2", b"2", b"3"]
        assert await progress(server) == (14, 350)
        await server.stop()

    play(scenario)


@pytest.mark.parametrize("copied", [False, True])
def test_what_comes_from_another_cluster_never_rests(copied: bool) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        assert server.connection.rests
        if copied:
            assert (await copy(server, clock_us=300))[0] == OK
        else:
            assert (await duplicate(server, 0, 10))[0] == OK
        assert not server.connection.rests
        await server.stop()

    play(scenario)


def test_a_batch_with_nothing_to_win_moves_the_progress_and_counts_conflicts() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"newer here")
        reply = await duplicate(server, 0, 5, 5, mutation(100, [key(b"a"), row(100, b"older")]))
        assert reply[0] == OK
        assert reply[2:4] == [5, 1]
        assert await server.get(b"a") == b"newer here"
        assert await progress(server) == (5, 1)
        replica = server.replica()
        assert (replica.rows_received, replica.rows_received_lost) == (1, 1)
        assert replica.conflicts_overwritten == 1
        assert (await duplicate(server, 5, 9))[2] == 9
        assert await progress(server) == (9, 1)
        await server.stop()

    play(scenario)


def test_what_lost_against_a_pending_write_is_answered_after_that_write() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        server.slow("log", 50_000)
        write = server.send(Operation.SET, b"h", b"a", b"pending", 0)
        batch = [5, mutation(100, [key(b"a"), row(100, b"older")])]
        request = server.send(Operation.DUPLICATE, *STREAM, 0, 5, 1, batch)
        assert not server.connection.answers.keys() & {write, request}
        await server.answer(request)
        assert write in server.connection.answers
        assert await server.get(b"a") == b"pending"
        await server.stop()

    play(scenario)


def test_only_rows_of_the_source_itself_count_in_a_batch() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        foreign = [key(b"a"), row(100, b"of a third cluster", cluster=3), key(b"b"), row(100, b"2")]
        assert (await duplicate(server, 0, 5, 5, mutation(100, foreign)))[0] == OK
        assert await server.get(b"a") is None
        assert await server.get(b"b") == b"2"
        await server.stop()

    play(scenario)


def test_no_later_write_has_a_timestamp_at_or_below_a_received_one() -> None:
    """Client writes before and behind a batch share its tick, and the clocks differ."""

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        ahead_us = life.clock.wall_us() + 200_000_000
        before = server.send(Operation.SET, b"h", b"x", b"1", 0)
        batch = [5, mutation(ahead_us, [key(b"a"), row(ahead_us, b"theirs")])]
        request = server.send(Operation.DUPLICATE, *STREAM, 0, 5, ahead_us, batch)
        behind = server.send(Operation.SET, b"h", b"a", b"ours, later", 0)
        for each in (before, request, behind):
            assert (await server.answer(each))[0] == OK
        assert await server.get(b"a") == b"ours, later"
        assert server.replica().last_timestamp_us > ahead_us
        last: int = 0
        for record in server.log.read(GPID, 1, 1 << 30):
            first_us, last_us = mutation_timestamps(record.payload)
            assert first_us > last or not list(decode_mutation(record.payload))
            last = last_us
            for kind, _, fields in decode_mutation(record.payload):
                if kind is OperationKind.RECEIVED:
                    assert last_us >= ahead_us
                    assert fields[0] == key(b"a")
        life.node.crash(power=True)

    with World(
        1, disk=SimulatedDisk, wall_offset_us=0, worker_us=(5, 50), worker_slow=0.0
    ) as world:
        node = world.node("server")
        life = node.spawn()

        async def main() -> None:
            task = life.task(scenario(world, life))
            await world.until(task.done)
            again = node.spawn()
            await again.task(reopened(again))

        async def reopened(again: Life) -> None:
            # The clock is behind still: what was received counts, by the log alone.
            ahead_us = again.clock.wall_us() + 190_000_000
            server = await opened(again, first=False)
            assert server.replica().last_timestamp_us >= ahead_us
            await server.set(b"a", b"after the restart")
            assert await server.get(b"a") == b"after the restart"
            stored = server.replica().get(key(b"a"))
            assert stored is not None
            assert int.from_bytes(stored[4:11], "big") > ahead_us
            await server.stop()

        world.run(main())


def test_a_large_batch_is_cut_between_operations_and_its_progress_comes_last() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        base = server.replica().machine.committed
        value = bytes(200_000)
        flat: list[Any] = []
        for number in range(20):
            pair = [
                key(b"%d" % number),
                row(100 + number, value),
                key(b"%dx" % number),
                row(100, b""),
            ]
            flat += (number + 1, mutation(100 + number, pair))
        assert (await duplicate(server, 0, 20, *flat))[2] == 20
        sizes, seen = [], []
        for record in server.log.read(GPID, base + 1, 1 << 30):
            sizes.append(len(record.payload))
            keys = [
                each
                for kind, _, fields in decode_mutation(record.payload)
                for each in fields[::2]
                if kind is OperationKind.RECEIVED
            ]
            seen += keys
            names = [each for each in keys if not each.startswith(RESERVED_PREFIX)]
            assert len(names) % 2 == 0, "an operation was cut"
        assert len(sizes) > 3
        assert max(sizes) <= MUTATION_BYTES_MAX + 1_000
        assert [each.startswith(RESERVED_PREFIX) for each in seen] == [False] * 40 + [True]
        await server.stop()

    play(scenario)


def test_a_follower_refuses_clients_and_takes_what_is_duplicated() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, follower=True)
        batch = [5, mutation(100, [key(b"a"), row(100, b"1")])]
        request = server.send(Operation.DUPLICATE, *STREAM, 0, 5, 1, batch)
        # In the tick of a batch too, where a mutation is open.
        refused = [
            await server.ask(Operation.SET, b"h", b"a", b"2", 0),
            await server.ask(Operation.DELETE, b"h", b"a"),
            await server.ask(Operation.INCR, b"h", b"n", 1, 0),
            await server.ask(Operation.CHECK_AND_SET, b"h", b"a", 1, b"", None, b"", 0, False),
            await server.ask(Operation.BATCH_SET, [b"h", b"a", b"2"], 0),
        ]
        assert [reply[0] for reply in refused] == [FOLLOWER] * 5
        assert "open_table" in refused[0][2]
        assert (await server.answer(request))[0] == OK
        assert await server.get(b"a") == b"1"
        assert server.stub.replica_state(GPID)["follower"] is True
        await server.serve(sources=(source_order(2),), version=1)
        await server.set(b"a", b"mine")
        assert await server.get(b"a") == b"mine"
        await server.stop()

    play(scenario)


def test_what_is_not_listed_or_forgotten_is_refused_and_its_keys_go() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        batch = (5, mutation(100, [key(b"a"), row(100, b"1")]))
        other = await server.ask(Operation.DUPLICATE, stream_uuid(9), 1, 0, 0, 5, 1, [*batch])
        assert other[0] == NOT_LISTED
        assert (await duplicate(server, 0, 5, *batch))[0] == OK
        state = server.stub.replica_state(GPID)
        assert [each["cluster_id"] for each in state["sources"]] == [2]
        assert [each["decree"] for each in state["progress"]] == [5]
        await server.serve(sources=(source_order(2, ended=True),), version=1)
        late = (6, mutation(200, [key(b"a"), row(200, b"late")]))
        assert (await duplicate(server, 5, 6, *late))[0] == NOT_LISTED
        assert (await copy(server, clock_us=10**6))[0] == NOT_LISTED
        assert (await server.ask(Operation.DUPLICATION_PROGRESS, *STREAM))[0] == NOT_LISTED
        state = server.stub.replica_state(GPID)
        assert (state["sources"], state["progress"]) == ([], [])
        await server.serve(sources=(source_order(2),), version=2)
        assert await progress(server) == (0, 0)
        await server.stop()

    play(scenario)


def test_timestamps_of_the_future_are_refused_by_their_distance() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        now_us = life.clock.wall_us()
        far_us = now_us + 301_000_000
        reply = await duplicate(server, 0, 5, 5, mutation(far_us, [key(b"a"), row(far_us, b"1")]))
        assert reply[0] == CLOCK_SKEW
        assert 300_000_000 < reply[3] <= 301_000_000
        assert (await duplicate(server, 0, 5, clock_us=far_us))[0] == CLOCK_SKEW
        assert (await copy(server, key(b"a"), row(far_us), clock_us=1))[0] == CLOCK_SKEW
        for wrong_us in (TIMESTAMP_MAX, TIMESTAMP_MAX * 2 - 1):
            batch = (5, mutation(1, [key(b"a"), row(wrong_us)]))
            assert (await duplicate(server, 0, 5, *batch))[0] == INVALID_DATA
        assert (await duplicate(server, 0, 5, clock_us=TIMESTAMP_MAX))[0] == INVALID_DATA
        # It ends by itself.
        await world.sleep_ms(2_000)
        batch = (5, mutation(far_us, [key(b"a"), row(far_us, b"1")]))
        assert (await duplicate(server, 0, 5, *batch))[0] == OK
        await server.stop()

    play(scenario)


GOOD = mutation(100, [key(b"a"), row(100, b"1")])


def hostile_batches() -> list[tuple[Any, ...]]:
    good = GOOD
    bad_rows: list[list[Any]] = [
        [key(b"a")],
        [key(b"a"), b"\0" * 11],
        [key(b"a"), bytes(12) + bytes(1024 * 1024 + 1)],
        [b"\0", row(100)],
        [b"", row(100)],
        [b"\0\5abc", row(100)],
        [b"\xff\xffstate", row(100)],
        [RESERVED_PREFIX + b"pin/" + UUID, row(100)],
        [encode_key(b"h", bytes(1024 * 1024 + 1)), row(100)],
        [key(b"a"), row(100, cluster=0)],
        [key(b"a"), None],
        [None, row(100)],
        ["text", row(100)],
        [1, 2],
    ]
    batches: list[tuple[Any, ...]] = [(0, 5, [5, mutation(100, each)]) for each in bad_rows]
    batches += [
        (0, 5, [5, encode_mutation(1, [encode_operation(kind, 0, [UUID])])])
        for kind in (OperationKind.PIN, OperationKind.RECEIVED, OperationKind.FENCE)
    ]
    batches += [
        (0, 5, [5, good[:-1]]),
        (0, 5, [5, good + b"x"]),
        (0, 5, [5, b""]),
        (0, 5, [5, encode_mutation(1, [b"\0\0\0\x01" + bytes(8) + b"\x01" + b"\xc0"])]),
        (0, 5, [5, good, 4, good]),
        (0, 5, [5, good, 5, good]),
        (0, 5, [6, good]),
        (3, 5, [3, good]),
        (0, 5, [5]),
        (0, 5, [True, good]),
        (0, 5, [5, "text"]),
        (0, 5, None),
        (5, 5, []),
        (6, 5, []),
        (-1, 5, []),
        (0, 1 << 63, []),
        (0, True, []),
        (0.0, 5, []),
    ]
    return batches


def test_hostile_batches_are_refused_and_change_nothing() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        decree = server.replica().machine.committed
        for previous, last, flat in hostile_batches():
            reply = await server.ask(Operation.DUPLICATE, *STREAM, previous, last, 1, flat)
            assert reply[0] in (INVALID_ARGUMENT, INVALID_DATA), (previous, last, flat)
        for newer in (b"\x09" + GOOD[1:], encode_mutation(1, [encode_operation(77, 0, [])])):
            # Of a later version: somebody who leaves out what is invalid must not lose these.
            reply = await server.ask(Operation.DUPLICATE, *STREAM, 0, 5, 1, [5, newer])
            assert (reply[0], reply[2]) == (UNKNOWN_OPERATION, "upgrade this cluster")
        for clock in (-1, None, "1", True, 1.0):
            reply = await server.ask(Operation.DUPLICATE, *STREAM, 0, 5, clock, [])
            assert reply[0] == INVALID_ARGUMENT
        assert server.replica().machine.committed == decree
        assert await progress(server) == (0, 0)
        await server.set(b"a", b"2")
        await server.stop()

    play(scenario)


@pytest.mark.parametrize(
    "stream",
    [
        (b"short", 1, 0),
        ("text of 16 bytes", 1, 0),
        (UUID, 3, 0),
        (UUID, 0, 0),
        (UUID, -1, 0),
        (UUID, True, 0),
        (UUID, 2 * PARTITION_COUNT_MAX, 0),
        (UUID, 1, 1),
        (UUID, 2, -1),
        (UUID, 2, None),
        (UUID, 1.0, 0),
    ],
)
def test_a_stream_that_cannot_be_is_refused_everywhere(stream: tuple[Any, ...]) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        for operation, fields in (
            (Operation.DUPLICATE, (0, 5, 1, [])),
            (Operation.COPY_RANGE, (b"", b"", 1, False, [])),
            (Operation.DUPLICATION_PROGRESS, ()),
        ):
            reply = await server.ask(operation, *stream, *fields)
            assert reply[0] == INVALID_ARGUMENT, reply
            assert (await server.ask(operation, *stream))[0] == INVALID_ARGUMENT
        await server.stop()

    play(scenario)


def test_rows_of_another_partition_or_source_partition_are_refused() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = Server(life, partitions=4)
        await server.start()
        await server.serve(first=True, sources=(source_order(2),))
        stored = key(b"a")
        codes = []
        for index in range(4):
            for source_index in range(8):
                if source_index % 4 != index:
                    continue
                batch = [5, mutation(100, [stored, row(100, b"1")])]
                stream = (UUID, 8, source_index)
                fields = (*stream, 0, 5, 1, batch)
                reply = await server.ask(Operation.DUPLICATE, *fields, index=index)
                codes.append(reply[0])
        assert sorted(codes) == [OK] + [INVALID_DATA] * 7
        # A partition count that the source does not have.
        index = next(at for at in range(4) if codes[2 * at : 2 * at + 2] != [2, 2])
        reply = await server.ask(Operation.DUPLICATION_PROGRESS, UUID, 4, index, index=index)
        assert reply[0] == INVALID_ARGUMENT
        await server.stop()

    play(scenario)


def test_a_source_is_told_which_duplications_back_to_it_are_pinned_here() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        orders = tuple(
            DuplicationOrder(number, bytes([number]) * 16, "c", remote_cluster_id=cluster)
            for number, cluster in ((1, 2), (2, 3))
        )
        sources = (source_order(2),)
        assert (await duplicate(server, 0, 5))[4] == []
        await server.serve(sources=sources, duplications=orders, version=1)
        assert (await duplicate(server, 5, 6))[4] == [b"\x01" * 16]
        # Also when nothing is new in it.
        assert (await duplicate(server, 5, 6))[4] == [b"\x01" * 16]
        assert (await server.ask(Operation.DUPLICATION_PROGRESS, *STREAM))[3] == [b"\x01" * 16]
        await server.stop()
        # Before the first push nobody knows where they go.
        server = await opened(life, first=False)
        found = (await server.ask(Operation.DUPLICATION_PROGRESS, *STREAM))[3]
        assert sorted(found) == [b"\x01" * 16, b"\x02" * 16]
        await server.stop()

    play(scenario)


def test_a_damaged_table_and_a_full_disk_are_answered_and_nothing_is_lost() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        batch = (5, mutation(100, [key(b"a"), row(100, b"1")]))
        server.replica().disk_full = True
        assert (await duplicate(server, 0, 5, *batch))[0] == 21
        assert (await copy(server, clock_us=1))[0] == 21
        server.replica().disk_full = False
        server.engine().get_error = CorruptionError("planned")
        reply = await duplicate(server, 0, 5, *batch)
        assert reply[0] != OK
        for _ in range(100):
            if reply[0] == OK:
                break
            await world.sleep_ms(500)
            reply = await duplicate(server, 0, 5, *batch)
        assert (reply[0], reply[2]) == (OK, 5)
        assert await server.get(b"a") == b"1"
        await server.stop()

    play(scenario)


def test_progress_survives_tables_that_are_restored_from_a_checkpoint() -> None:
    async def scenario(world: World, life: Life) -> None:
        options = LogOptions(log_segment_bytes=64 * 1024)
        server = await opened(life, log_options=options)
        await duplicate(server, 0, 5, 5, mutation(100, [key(b"a"), row(100, b"1")]), clock_us=120)
        await server.stub._flush(server.replica())
        await duplicate(server, 5, 9, 9, mutation(200, [key(b"a"), row(200, b"2")]), clock_us=220)
        await server.stop()
        server = Server(life, log_options=options)
        server.engines.failures = [CorruptionError("planned")]
        await server.start()
        await server.serve(sources=(source_order(2),))
        assert await progress(server) == (9, 220)
        assert (await duplicate(server, 5, 9, 9, mutation(200, [key(b"a"), row(200)])))[2] == 9
        assert await server.get(b"a") == b"2"
        await server.stop()

    play(scenario)
