"""What strangers may ask for: bounded in memory, never half in a mutation, always answered."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pegaskv.base.errors import CorruptionError
from pegaskv.base.limits import MUTATION_BYTES_MAX, TTL_SECONDS_MAX
from pegaskv.codec.operations import Operation
from pegaskv.replica.fields import HASH_KEY_COPIES_BYTES_MAX
from pegaskv.replica.recovery import apply_records
from pegaskv.replica.replay import mutation_rows
from pegaskv.storage.mutation_log import LogRecord, MutationLog, RecordFields
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World

LONG = b"h" * 60_000
MANY = [b"%d" % number for number in range(5_000)]


async def opened(life: Life, **more: Any) -> Server:
    server = Server(life, **more)
    await server.start()
    await server.serve(first=True)
    return server


def keep_records(log: MutationLog) -> list[LogRecord]:
    """Return what will be put into the log from now on."""
    records: list[LogRecord] = []
    append = log.append

    def appending(of_tick: Sequence[RecordFields]) -> None:
        records.extend(LogRecord(*fields) for fields in of_tick)
        append(of_tick)

    log.append = appending  # type: ignore[method-assign]
    return records


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (Operation.MULTI_SET, (LONG, [part for key in MANY for part in (key, b"")], 0)),
        (Operation.MULTI_DELETE, (LONG, MANY)),
        (
            Operation.CHECK_AND_MUTATE,
            (LONG, b"", 0, b"", [[2, sort_key] for sort_key in MANY], False),
        ),
    ],
    ids=["multi_set", "multi_delete", "check_and_mutate"],
)
def test_a_long_hash_key_is_not_multiplied_by_thousands_of_rows(
    operation: Operation, fields: tuple[Any, ...]
) -> None:
    """300 KB of request would make 300 MB of stored keys, in several copies."""

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        records = keep_records(server.log)
        code, *_ = await server.ask(operation, *fields)
        assert code == 2
        # As many as fit are taken.
        fitting = HASH_KEY_COPIES_BYTES_MAX // len(LONG)
        keys = MANY[:fitting]
        flat = [part for key in keys for part in (key, b"")]
        assert (await server.ask(Operation.MULTI_SET, LONG, flat, 0))[0] == 0
        assert (
            max(len(record.payload) for record in records)
            < HASH_KEY_COPIES_BYTES_MAX + MUTATION_BYTES_MAX
        )

    play(scenario)


def test_a_clock_far_in_the_future_leaves_no_half_written_mutation() -> None:
    """An expiry that does not fit is the last second there is; the operation is whole."""

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        # The year 2100.
        world.nodes["server"].jump_wall(76 * 365 * 86_400 * 1_000_000)
        records = keep_records(server.log)
        requests = [
            server.send(Operation.SET, b"h", b"a", b"1", TTL_SECONDS_MAX),
            server.send(Operation.MULTI_SET, b"h", [b"b", b"1"], TTL_SECONDS_MAX),
            server.send(Operation.INCR, b"h", b"c", 1, TTL_SECONDS_MAX),
            server.send(Operation.SET, b"h", b"d", b"1", 0),
        ]
        for request in requests:
            assert (await server.answer(request))[0] == 0
        await world.sleep_ms(1_000)
        rows = [row for record in records for row in mutation_rows(record.payload, record.decree)]
        assert [server.engine().get(key) for key in rows[::2] if key] == rows[1::2]
        # Operation i has the timestamp first + i.
        stamps = [int.from_bytes(row[4:12], "big") >> 8 for row in rows[1::2] if row]
        assert stamps == [records[0].first_timestamp_us + place for place in range(4)]

    play(scenario)


def test_a_damaged_row_in_the_way_of_an_atomic_operation_is_said_like_in_a_read() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        await world.sleep_ms(1_000)
        server.engine().get_error = CorruptionError("planned")
        code, message, *_ = await server.ask(Operation.INCR, b"h", b"a", 1, 0)
        assert code == 13
        assert "planned" in message
        assert server.connection.in_flight == 0
        # Made anew from the log beside it, and then in its place.
        await world.until(lambda: server.engines.openings == 3)
        await world.sleep_ms(1_000)
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_a_new_ballot_while_the_log_is_not_ready_proposes_nothing_twice() -> None:
    """The table is dropped and recalled while a write is being synced and the log switches."""

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        server.slow("log", 50_000)
        written = keep_records(server.log)
        first = server.send(Operation.SET, b"h", b"a", b"1", 0)
        await world.until(lambda: bool(written))
        decree = written[-1].decree
        ready = server.log.ready
        server.log.ready = lambda: False  # type: ignore[method-assign]
        push = life.task(server.serve())
        assert (await server.answer(first))[0] == 0
        assert replica.machine.committed == decree
        server.log.ready = ready  # type: ignore[method-assign]
        assert server.stub._front is not None
        server.stub._front._schedule()
        await push
        assert [record.decree for record in written] == [decree, decree + 1]
        replica.machine.check()
        assert not replica.in_flight
        assert replica.uncommitted_bytes == 0
        await server.set(b"b", b"2")
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_what_is_under_way_at_a_new_ballot_is_logged_again_under_it() -> None:
    """A member has gone while a write is being synced: the same replica leads on."""

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        ballot = replica.machine.ballot
        server.slow("log", 50_000)
        written = keep_records(server.log)
        first = server.send(Operation.SET, b"h", b"a", b"1", 0)
        await world.until(lambda: bool(written))
        [record] = written
        push = life.task(server.serve())
        assert (await server.answer(first))[0] == 0
        await push
        assert replica.machine.ballot == ballot + 1
        assert [(each.ballot, each.decree) for each in written] == [
            (ballot, record.decree),
            (ballot + 1, record.decree),
            (ballot + 1, record.decree + 1),
        ]
        assert written[1].payload == record.payload
        assert written[1].first_timestamp_us == record.first_timestamp_us
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_writes_of_any_kind_leave_nothing_on_the_accounts() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        requests = []
        big = bytes(400_000)
        for round_ in range(12):
            flat = [part for row in range(40) for part in (b"h", b"%d" % row, bytes(50_000))]
            # These are small in number, and nobody makes them wait: some are refused.
            requests += [
                server.send(Operation.SET, b"h", b"more %d" % more, big, 0) for more in range(5)
            ]
            requests += [
                server.send(Operation.BATCH_SET, flat, 0),
                server.send(Operation.SET, b"h", b"%d" % round_, big, 0),
                server.send(Operation.INCR, b"h", b"0", 1, 0),
                server.send(Operation.CHECK_AND_SET, b"h", b"0", 1, b"", None, b"x", 0, True),
                server.send(Operation.BATCH_DELETE, [b"h", b"1", b"h", b"2"]),
                server.send(Operation.MULTI_DELETE, b"h", [b"3"]),
            ]
        codes = [(await server.answer(request))[0] for request in requests]
        assert codes.count(0) > 6
        assert codes.count(1) > 3, "no answer waited for what it was evaluated against"
        assert 20 in codes, "nothing was Busy"
        await world.sleep_ms(1_000)
        assert (replica.uncommitted_bytes, replica.applying_bytes) == (0, 0)
        assert not replica.applying
        assert replica.idle
        assert server.connection.in_flight == 0

    play(scenario)


def test_what_the_engine_has_equals_what_the_log_has() -> None:
    """Through batches that end in the middle of a request, and answers that say how far."""

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        records = keep_records(server.log)
        flat = [part for row in range(999) for part in (b"h", b"%d" % (row % 300), b"%d" % row)]
        requests = [server.send(Operation.BATCH_SET, flat, 0) for _ in range(5)]
        answers = [await server.answer(request) for request in requests]
        answers.append(await server.ask(Operation.BATCH_DELETE, [b"h", b"1", b"h", b"2"]))
        assert [answer[0] for answer in answers] == [0] * 6
        assert len(records) > 4
        assert answers[-1][1] == records[-1].decree
        await world.sleep_ms(1_000)
        stamps: list[int] = []
        for record in records:
            stamp = record.first_timestamp_us
            assert not stamps or stamp > stamps[-1]
            for row in mutation_rows(record.payload, record.decree)[1::2]:
                if row is not None:
                    assert int.from_bytes(row[4:12], "big") >> 8 == stamp
                stamps.append(stamp)
                stamp += 1
        again = server.engines.open(Path("/scratch"))
        apply_records(again, records)
        mine, other = server.engine().inner._rows.by_key, again.inner._rows.by_key
        assert mine == other

    play(scenario)
