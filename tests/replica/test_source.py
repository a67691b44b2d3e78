"""A replica as a source: pins that hold, and nothing shippable that a power cut takes back."""

import asyncio
import errno
from itertools import count
from typing import Any

import pytest

from pegaskv.base.errors import CorruptionError, NotReady
from pegaskv.codec.keys import encode_key
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.codec.messages_meta import TablePush
from pegaskv.codec.mutations import OperationKind, decode_mutation, mutation_timestamps
from pegaskv.codec.operations import Operation
from pegaskv.codec.values import is_deleted, row_timetag
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.shipping import RECENT_BYTES_MAX
from pegaskv.storage.log_options import LogOptions
from tests.replica.duplication_pair import source_order, stream_uuid
from tests.replica.stub_world import DATA, GPID, Server, play, play_lives
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World

UUID = b"u" * 16
PINNED = (DuplicationOrder(1, UUID, "other"),)
REMOVED = (DuplicationOrder(1, UUID, "other", ended=True),)
BROKEN = (DuplicationOrder(1, UUID, "other", ended=True, broken=True),)


async def opened(life: Life, *, first: bool = True, **more: Any) -> Server:
    server = Server(life, **{k: more.pop(k) for k in ("log_options", "options") if k in more})
    await server.start()
    await server.serve(first=first, **more)
    return server


def kinds(payload: bytes) -> list[OperationKind]:
    return [kind for kind, _, _ in decode_mutation(payload)]


def test_a_push_returns_when_the_pin_is_committed_and_its_decree_stays() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        assert server.source().start_decree(UUID) == 0
        await server.serve(duplications=PINNED, version=1)
        start = server.source().start_decree(UUID)
        assert start == server.replica().machine.committed
        await server.set(b"b", b"2")
        # Neither the same order again, nor a push that lacks it, nor an old one changes it.
        for version, orders in ((2, PINNED), (3, ()), (1, REMOVED)):
            await server.serve(duplications=orders, version=version)
            assert server.source().start_decree(UUID) == start
        await server.stop()
        server = await opened(life, first=False)
        assert server.source().start_decree(UUID) == start
        assert server.stub.replica_state(GPID)["pins"] == {UUID.hex(): start}
        records = await server.source().read_records(start + 1, 1 << 20)
        assert [record.decree for record in records] == list(
            range(start + 1, server.source().shippable_decree + 1)
        )
        assert kinds(records[0].payload) == [OperationKind.WRITE]
        await server.serve(duplications=REMOVED, version=1)
        assert server.source().start_decree(UUID) == 0
        assert not server.log.pins(GPID)
        await server.stop()

    play(scenario)


async def first_write(server: Server) -> int:
    """Write as early as any client can, in the first turn of the loop that takes it."""
    for turn in count():
        if GPID in server.stub._replicas:
            request = server.send(Operation.SET, b"h", b"early", b"1", 0)
            status, decree, *_ = await server.answer(request)
            if status == 0:
                return int(decree)
        # Also where turns take no time, it must go on.
        await (asyncio.sleep(0) if turn % 50 else server.life.clock.sleep_ms(1))
    raise AssertionError


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("late", [False, True])
def test_no_write_comes_before_the_pin_that_a_closed_partition_missed(
    seed: int, *, late: bool
) -> None:
    told: list[int] = []

    async def written(world: World, life: Life) -> None:
        server = await opened(life)
        await server.serve(2, first=True)
        await server.set(b"a", b"1")

    async def read(world: World, life: Life) -> None:
        server = Server(life)
        if late:
            # Ordered while it cannot be opened; no push comes when it can.
            server.engines.failures = [OSError(errno.EIO, "bad sector")] * 2
            server.engines.failing = DATA / "replicas" / "1.0" / "engine"

        async def on_opened_late(push: TablePush) -> None:
            told.append(push.table.table_id)

        await server.start()
        server.stub.on_opened_late = on_opened_late
        writing = life.task(first_write(server))
        await server.serve(ballot=5, duplications=PINNED, version=1)
        decree = await writing
        assert 0 < server.source().start_decree(UUID) < decree
        await world.until(lambda: told == [1] * late)
        await server.stop()

    play_lives(written, read, seed=seed)


def test_the_last_write_comes_from_memory_without_a_suspension() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, duplications=PINNED)
        source = server.source()
        told: list[int] = []
        end = source.subscribe(lambda: told.append(source.shippable_decree))
        decree = source.shippable_decree
        await server.set(b"a", b"1")
        assert told == [decree + 1]
        reading = source.read_records(decree + 1, 1)
        with pytest.raises(StopIteration) as done:
            reading.send(None)
        assert [record.decree for record in done.value.value] == [decree + 1]
        first_us, last_us = mutation_timestamps(done.value.value[0].payload)
        assert first_us <= last_us == source.clock_us
        assert await source.read_records(decree + 2, 1) == []
        end()
        await server.set(b"a", b"2")
        assert len(told) == 1
        await server.stop()

    play(scenario)


def test_what_memory_does_not_hold_comes_from_the_log_in_pieces() -> None:
    async def scenario(world: World, life: Life) -> None:
        options = LogOptions(log_segment_bytes=1024 * 1024)
        server = await opened(life, duplications=PINNED, log_options=options)
        start = server.source().start_decree(UUID)
        writes = RECENT_BYTES_MAX // 500_000 + 4
        for number in range(writes):
            await server.set(b"%d" % number, bytes(500_000))
        source = server.source()
        found = []
        while found == [] or found[-1] < source.shippable_decree:
            records = await source.read_records((found or [start])[-1] + 1, 700_000)
            assert 1 <= len(records) <= 2
            found += [record.decree for record in records]
        assert found == list(range(start + 1, start + 1 + writes))
        await server.stop()

    play(scenario)


def test_a_pin_holds_the_log_over_flushes_and_restarts_until_it_is_confirmed() -> None:
    async def scenario(world: World, life: Life) -> None:
        options = LogOptions(log_segment_bytes=64 * 1024, flush_partition_bytes=20_000)
        server = await opened(life, duplications=PINNED, log_options=options)
        start = server.source().start_decree(UUID)
        for number in range(60):
            await server.set(b"%d" % number, bytes(8_000))
        await world.sleep_ms(2_000)
        assert server.source().held_bytes(UUID) > 300_000
        await server.stop()
        server = await opened(life, first=False, log_options=options)
        await world.sleep_ms(2_000)
        source = server.source()
        assert source.held_bytes(UUID) > 300_000
        (record, *_) = await source.read_records(start + 1, 1)
        assert record.decree == start + 1
        middle = start + 40
        source.hold(UUID, middle, 1)
        # An older confirmation, or one of somebody unknown, moves nothing back.
        source.hold(UUID, start + 1, 1)
        source.hold(b"x" * 16, middle + 5, 1)
        await world.sleep_ms(2_000)
        assert 0 < source.held_bytes(UUID) < 250_000
        (record, *_) = await source.read_records(middle + 1, 1)
        assert record.decree == middle + 1
        with pytest.raises(CorruptionError, match="lacks decrees"):
            await source.read_records(start + 1, 1)
        # What was given up is no reason not to start.
        await server.stop()
        server = await opened(life, first=False, log_options=options)
        # Nor is a confirmation that is older than what was given up.
        server.source().hold(UUID, start + 2, 1)
        (record, *_) = await server.source().read_records(middle + 1, 1)
        assert record.decree == middle + 1
        await server.stop()

    play(scenario)


def test_nothing_of_an_os_table_is_shippable_before_it_is_synced() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, envs={"durability": "os"}, duplications=PINNED)
        await world.until(lambda: not server.replica().fsync)
        source = server.source()
        server.slow("log", 20_000)
        shipped_at: list[tuple[int, int]] = []
        source.subscribe(lambda: shipped_at.append((world.now_ms, source.shippable_decree)))
        decree = source.shippable_decree
        began_ms = world.now_ms
        for number in range(10):
            await server.set(b"%d" % number, b"1")
        committed = server.replica().machine.committed
        assert committed == decree + 10
        assert source.shippable_decree < committed
        assert await source.read_records(source.shippable_decree + 1, 1) == []
        await world.until(lambda: source.shippable_decree == committed, limit_ms=90)
        assert shipped_at[0][0] - began_ms >= 20
        # As soon as the disk has it, and not with the next interval: two syncs are enough.
        assert shipped_at[-1][0] - began_ms < 90
        page = await source.read_rows(b"", 100, 1 << 20)
        assert len(page.rows) == 20
        await server.set(b"x", b"1")
        reading = life.task(source.read_rows(b"", 100, 1 << 20))
        await world.sleep_ms(5)
        assert not reading.done(), "a page holds what was not synced"
        assert len((await reading).rows) == 22
        assert source.shippable_decree == server.replica().machine.committed
        await server.stop()

    play(scenario)


@pytest.mark.parametrize("seed", range(6))
def test_a_power_cut_takes_back_nothing_that_was_shippable(seed: int) -> None:
    with World(seed, disk=SimulatedDisk, wall_offset_us=0) as world:
        node = world.node("server")
        random = world.random("test")
        options = LogOptions(log_segment_bytes=64 * 1024, flush_partition_bytes=2_000)

        async def main() -> int:
            life = node.spawn()
            make = opened(life, envs={"durability": "os"}, duplications=PINNED, log_options=options)
            server = await life.task(make)
            await world.until(lambda: not server.replica().fsync)
            server.slow("log", random.choice([1_000, 5_000]))
            behind = 0
            for number in range(40):
                await life.task(server.set(b"%d" % number, bytes(100)))
                behind += server.source().shippable_decree < server.replica().machine.committed
            shippable, clock_us = server.source().shippable_decree, server.source().clock_us
            node.crash(power=True)
            life = node.spawn()
            server = await life.task(opened(life, first=False, log_options=options))
            source = server.source()
            assert source.shippable_decree >= shippable
            assert source.clock_us >= clock_us
            assert server.replica().last_timestamp_us >= clock_us
            start = source.start_decree(UUID)
            assert start > 0
            records = await life.task(source.read_records(start + 1, 1 << 20))
            assert records[-1].decree >= shippable
            return behind

        assert world.run(main()), "the disk was never behind"


def test_a_pin_that_was_prepared_only_acts_when_its_tail_is_proposed_again() -> None:
    with World(1, disk=SimulatedDisk, worker_slow=0.0) as world:
        node = world.node("server")

        async def main() -> None:
            life = node.spawn()
            server = await life.task(opened(life))
            await life.task(server.set(b"a", b"1"))
            server.slow("log", 1_000_000)
            life.task(server.serve(duplications=PINNED, version=1))
            await world.until(lambda: any(b.controls for b in server.replica().in_flight))
            node.crash(power=False)
            life = node.spawn()
            server = await life.task(opened(life, first=False))
            start = server.source().start_decree(UUID)
            assert start > 0
            assert server.log.pins(GPID)[UUID.hex()].decree == start
            await life.task(server.ask(Operation.DELETE, b"h", b"a"))
            row = server.replica().get(encode_key(b"h", b"a"))
            assert row is not None
            assert is_deleted(row)
            records = await life.task(server.source().read_records(start + 1, 1 << 20))
            assert kinds(records[-1].payload) == [OperationKind.WRITE]

        world.run(main())


def test_a_broken_duplication_lets_the_log_go_and_keeps_tombstones() -> None:
    async def scenario(world: World, life: Life) -> None:
        options = ReplicaOptions(expiry_sweep_interval_ms=200)
        server = await opened(life, duplications=PINNED, options=options)
        await server.set(b"a", b"1")
        await server.serve(duplications=BROKEN, version=1)
        assert server.source().start_decree(UUID) == 0
        assert not server.log.pins(GPID)
        assert (await server.ask(Operation.DELETE, b"h", b"a"))[0] == 0
        await world.sleep_ms(5_000)
        await server.stop()
        server = await opened(life, first=False, options=options)
        assert server.stub.replica_state(GPID)["pins"] == {UUID.hex(): 0}
        await world.sleep_ms(5_000)
        row = server.replica().get(encode_key(b"h", b"a"))
        assert row is not None
        assert is_deleted(row)
        assert await server.get(b"a") is None
        await server.serve(duplications=REMOVED, version=1)
        await world.sleep_ms(5_000)
        assert server.replica().get(encode_key(b"h", b"a")) is None
        assert server.replica().tombstones_swept == 1
        await server.stop()

    play(scenario)


def test_tombstones_and_expired_rows_go_when_the_target_has_confirmed_them() -> None:
    async def scenario(world: World, life: Life) -> None:
        options = ReplicaOptions(expiry_sweep_interval_ms=200)
        server = await opened(life, duplications=PINNED, options=options)
        await server.set(b"deleted", b"1")
        await server.set(b"expired", b"1", 1)
        await server.ask(Operation.DELETE, b"h", b"deleted")
        await server.ask(Operation.DELETE, b"h", b"was never there")
        await server.set(b"later", b"1", 1)
        keys = [encode_key(b"h", each) for each in (b"deleted", b"expired", b"was never there")]
        later = encode_key(b"h", b"later")
        await world.sleep_ms(5_000)
        replica, source = server.replica(), server.source()
        rows = [replica.get(key) for key in (*keys, later)]
        assert all(row is not None for row in rows)
        clock_us = max(row_timetag(row) >> 8 for row in rows[:3] if row is not None)
        source.hold(UUID, source.shippable_decree, clock_us)
        await world.sleep_ms(5_000)
        assert [replica.get(key) for key in keys] == [None] * 3
        assert replica.get(later) is not None
        assert (replica.tombstones_swept, server.stub._sweeper.rows_expired) == (2, 1)
        source.hold(UUID, source.shippable_decree, source.clock_us)
        await world.sleep_ms(5_000)
        assert replica.get(later) is None
        await server.stop()

    play(scenario)


def test_deletes_stay_while_a_duplication_back_is_pinned_that_is_not_known_here() -> None:
    async def scenario(world: World, life: Life) -> None:
        options = ReplicaOptions(expiry_sweep_interval_ms=200)
        server = await opened(life, duplications=PINNED, options=options)
        await server.ask(Operation.DELETE, b"h", b"a")
        key, back = encode_key(b"h", b"a"), stream_uuid(2)
        replica, source = server.replica(), server.source()
        # An older write of the other cluster may be in the log that it has pinned.
        source.note_back(UUID, 0, (back,))
        source.note_back(UUID, 1, ())
        source.hold(UUID, source.shippable_decree, source.clock_us)
        await world.sleep_ms(5_000)
        assert replica.get(key) is not None
        # Known, and it has brought nothing yet.
        await server.serve(duplications=PINNED, sources=(source_order(2),), version=1)
        await world.sleep_ms(5_000)
        assert replica.get(key) is not None
        stream = (back, 1, 0)
        reply = await server.ask(Operation.DUPLICATE, *stream, 0, 5, source.clock_us, [])
        assert reply[:1] == [0]
        await world.sleep_ms(5_000)
        assert replica.get(key) is None
        await server.stop()

    play(scenario)


def test_a_duplication_back_that_was_given_up_holds_no_deletes() -> None:
    async def scenario(world: World, life: Life) -> None:
        options = ReplicaOptions(expiry_sweep_interval_ms=200)
        server = await opened(life, duplications=PINNED, options=options)
        await server.ask(Operation.DELETE, b"h", b"a")
        replica, source = server.replica(), server.source()
        source.note_back(UUID, 0, (b"b" * 16,))
        source.hold(UUID, source.shippable_decree, source.clock_us)
        source.note_back(UUID, 0, ())
        await world.sleep_ms(5_000)
        assert replica.get(encode_key(b"h", b"a")) is None
        await server.stop()

    play(scenario)


def test_tombstones_are_no_rows_to_any_client() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, duplications=PINNED)
        for name in (b"a", b"b", b"n"):
            await server.set(name, b"5")
        for name in (b"a", b"n"):
            assert (await server.ask(Operation.DELETE, b"h", name))[0] == 0
        for applied in (False, True):
            if applied:
                server.replica().apply_now()
            assert await server.get(b"a") is None
            assert (await server.ask(Operation.TTL, b"h", b"a"))[1] == -2
            assert (await server.ask(Operation.BATCH_GET, [b"h", b"a", b"h", b"b"]))[1] == [
                None,
                b"5",
            ]
            named = (b"h", [b"a", b"b"], b"", b"", 0, 0, b"", 0, 0)
            assert (await server.ask(Operation.MULTI_GET, *named))[2] == [b"b", b"5"]
            ranged = (b"h", None, b"", b"", 1, 0, b"", 0, 0)
            assert (await server.ask(Operation.MULTI_GET, *ranged))[2] == [b"b", b"5"]
            for flags in (0, 4):
                scan = (b"", b"", flags, 0, b"", 0, b"", 0, b"", 0, 0)
                assert (await server.ask(Operation.SCAN, *scan))[2] == 1
            check = (b"h", b"a", 1, b"", b"checked", b"1", 0, True)
            assert (await server.ask(Operation.CHECK_AND_SET, *check))[2:] == [True, False, None]
            await server.ask(Operation.DELETE, b"h", b"checked")
        assert (await server.ask(Operation.INCR, b"h", b"n", 2, 0))[2] == 2
        await server.stop()

    play(scenario)


def test_pages_hold_every_version_in_order_and_none_of_the_servers_own_keys() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, duplications=PINNED)
        for number in range(10):
            await server.set(b"%d" % number, bytes(100), number % 2)
        await server.ask(Operation.DELETE, b"h", b"4")
        await world.sleep_ms(3_000)
        source = server.source()
        found: list[bytes] = []
        start: bytes | None = b""
        pages = 0
        while start is not None:
            page = await source.read_rows(start, 3, 250)
            assert 1 <= len(page.rows) // 2 <= 3
            assert page.decree == source.shippable_decree
            assert page.clock_us == source.clock_us
            found += page.rows[::2]
            assert all(row_timetag(row) >> 8 <= page.clock_us for row in page.rows[1::2])
            start = page.next_key
            pages += 1
        assert found == [encode_key(b"h", b"%d" % number) for number in range(10)]
        assert pages > 4
        assert (await source.read_rows(b"\xff\xff", 3, 250)).rows == []
        await server.stop()

    play(scenario)


def test_whoever_listens_hears_that_the_replica_serves_no_more() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, duplications=PINNED)
        source = server.source()
        told: list[bool] = []
        source.subscribe(lambda: told.append(source.serving))
        server.engine().write_error = OSError(5, "planned")
        await server.set(b"a", b"1")
        await world.until(lambda: False in told, what="a reopening that is told")
        await world.until(lambda: told[-1] is True, what="the way back")
        told.clear()
        await server.stub.configure(server.push(version=9, purged=True))
        assert told[-1] is False
        assert server.stub.source(GPID) is None
        with pytest.raises(NotReady):
            await source.read_rows(b"", 1, 1)
        await server.stop()

    play(scenario)
