"""A manual compaction is done once for each order, in steps, and never where it may not be."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

import pegaskv
from pegaskv.base.compaction import MANUAL_COMPACT_DISABLED, MANUAL_COMPACT_ONCE
from pegaskv.base.types import ReplicaStatus, TableStatus
from pegaskv.replica import compaction, expiry
from pegaskv.replica.expiry import Swept
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock, SystemClock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import Worker
from tests.helpers import poll_until
from tests.replica.stub_world import GPID, Server, play, play_lives
from tests.server.test_standalone import running
from tests.simulation.world import Life, World


async def serving(life: Life, *, first: bool = True, **changes: object) -> Server:
    server = Server(life)
    await server.start()
    await server.serve(first=first, **changes)
    return server


def now(life: Life) -> int:
    return life.clock.wall_us() // 1_000_000


def once(time: int, **more: str) -> dict[str, str]:
    return {MANUAL_COMPACT_ONCE: str(time), **more}


def finished(server: Server) -> int:
    return server.stub._compactions.finished


async def write(server: Server, *numbers: int) -> None:
    for number in numbers:
        await server.set(b"%d" % number, bytes(1_000))


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step for each row or two, and time to look in between."""
    monkeypatch.setattr(compaction, "_STEP_BYTES", 1_000)
    monkeypatch.setattr(compaction, "_PAUSE_MS", 500)


async def begun(world: World, life: Life, order: int) -> Server:
    """A server that has made three steps of many; with `small_steps`."""
    server = await serving(life)
    await write(server, *range(20))
    await server.serve(envs=once(order))
    await world.until(lambda: len(server.engines.compacted) == 3, what="three steps")
    return server


def test_each_order_is_carried_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_STEP_BYTES", 3_000)

    async def scenario(world: World, life: Life) -> None:
        server = await serving(life)
        await write(server, *range(10))
        await world.sleep_ms(5_000)
        assert finished(server) == 0
        order = now(life)
        await server.serve(envs=once(order))
        await world.sleep_ms(5_000)
        assert finished(server) == 1
        # All of it, in steps that meet.
        ranges = [(first, last) for _, first, last in server.engines.compacted]
        assert len(ranges) > 2
        assert (ranges[0][0], ranges[-1][1]) == (b"", None)
        assert [first for first, _ in ranges[1:]] == [last for _, last in ranges[:-1]]
        # The tables of before stand in no checkpoint any more.
        committed = server.stub._replicas[GPID].machine.committed
        assert server.directory.checkpoint_decree(GPID) == committed
        await server.serve(envs=once(order, default_ttl="7"))
        await world.sleep_ms(5_000)
        assert finished(server) == 1
        await server.serve(envs=once(order + 1))
        await world.sleep_ms(5_000)
        assert finished(server) == 2
        await server.stop()

    play(scenario)


def test_an_order_for_later_waits_and_a_restart_does_not_repeat_what_was_done() -> None:
    order = 0

    async def before(world: World, life: Life) -> None:
        nonlocal order
        order = now(life) + 60
        server = await serving(life, envs=once(order))
        await write(server, 1, 2)
        await world.sleep_ms(50_000)
        assert finished(server) == 0
        await world.sleep_ms(15_000)
        assert finished(server) == 1

    async def after(world: World, life: Life) -> None:
        server = await serving(life, first=False, envs=once(order))
        await world.sleep_ms(5_000)
        assert finished(server) == 0
        assert server.engines.compacted == []
        await server.serve(envs=once(now(life)))
        await world.sleep_ms(5_000)
        assert finished(server) == 1

    play_lives(before, after)


def test_what_nobody_can_see_goes_first() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await serving(life)
        await server.set(b"short", b"v", 3)
        await server.set(b"long", b"v")
        await world.sleep_ms(5_000)
        rows = server.stub._replicas[GPID].engine.size_bytes()
        await server.serve(envs=once(now(life)))
        await world.sleep_ms(3_000)
        assert finished(server) == 1
        assert server.stub._replicas[GPID].engine.size_bytes() < rows
        await server.stop()

    play(scenario)


@pytest.mark.usefixtures("small_steps")
def test_it_stops_between_two_steps_when_it_is_disabled_and_begins_anew() -> None:
    async def scenario(world: World, life: Life) -> None:
        order = now(life)
        server = await begun(world, life, order)
        await server.serve(envs=once(order, **{MANUAL_COMPACT_DISABLED: "true"}))
        await world.sleep_ms(20_000)
        assert len(server.engines.compacted) <= 4
        assert finished(server) == 0
        await server.serve(envs=once(order, **{MANUAL_COMPACT_DISABLED: "false"}))
        await world.sleep_ms(20_000)
        assert finished(server) == 1
        assert len(server.engines.compacted) > 20
        await server.stop()

    play(scenario)


@pytest.mark.usefixtures("small_steps")
def test_it_ends_with_the_table() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await begun(world, life, now(life))
        await server.serve(status=TableStatus.DROPPED, purged=True)
        await world.sleep_ms(20_000)
        assert len(server.engines.compacted) <= 4
        assert finished(server) == 0
        assert server.crashes == []
        assert server.stub._compactions.pending == 0
        await server.stop()

    play(scenario)


@pytest.mark.usefixtures("small_steps")
def test_it_begins_anew_with_an_engine_that_takes_the_place_of_another() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await begun(world, life, now(life))
        first = server.engines.compacted[0][0]
        fresh = server.engines.open(Path("/fresh"))
        server.stub._replicas[GPID].replace_engine(fresh)
        await world.sleep_ms(20_000)
        assert [path for path, *_ in server.engines.compacted].count(first) == 3
        assert server.engines.compacted[-1] == (Path("/fresh"), b"", None)
        assert finished(server) == 1

    play(scenario)


def test_what_serves_nobody_waits() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await serving(life, envs=once(now(life) + 2))
        await write(server, 1)
        server.stub._replicas[GPID].close_for("an operator has to look at it")
        await world.sleep_ms(5_000)
        assert server.engines.compacted == []
        assert server.stub._compactions.pending == 1

    play(scenario)


def test_no_two_sweeps_are_under_way_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that began first must not have the last word on what is left."""
    under_way: list[Replica] = []

    async def sweep(replica: Replica, *, clock: Clock, worker: Worker) -> Swept:
        assert not under_way
        under_way.append(replica)
        await clock.sleep_ms(50)
        under_way.remove(replica)
        return Swept()

    async def scenario(world: World, life: Life) -> None:
        server = await serving(life)
        await server.set(b"short", b"v", 60)
        monkeypatch.setattr(expiry, "sweep", sweep)
        [replica] = server.stub._replicas.values()
        sweeper = server.stub._sweeper
        async with TaskScope("sweeps") as scope:
            for name in ("one", "other"):
                scope.start(name, sweeper.sweep(replica))

    play(scenario)


def test_a_secondary_is_compacted_as_its_primary_is() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await serving(life)
        await write(server, 1)
        here = server.directory.node_id
        order = once(now(life))
        await server.serve(envs=order, primary="b", secondaries=(here,), replica_count=2)
        assert server.stub._replicas[GPID].machine.status is ReplicaStatus.SECONDARY
        await world.sleep_ms(3_000)
        assert finished(server) == 1
        await server.stop()

    play(scenario)


def test_a_full_disk_gets_no_more_tables() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await serving(life)
        await write(server, 1)
        server.disk.set_capacity(1)
        [replica] = server.stub._replicas.values()
        await world.until(lambda: replica.disk_full, what="the full disk")
        await server.serve(envs=once(now(life)))
        await world.sleep_ms(3_000)
        assert server.engines.compacted == []
        assert server.stub._compactions.pending == 1
        server.disk.set_capacity(1 << 40)
        await world.sleep_ms(60_000)
        assert finished(server) == 1
        await server.stop()

    play(scenario)


def test_the_last_good_checkpoint_of_what_is_being_mended_stays() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await serving(life)
        await write(server, 1)
        repairs = server.stub._repairs
        assert repairs is not None
        repairs._mending.add(GPID)
        await server.serve(envs=once(now(life)))
        await world.sleep_ms(5_000)
        assert server.engines.compacted == []
        repairs._mending.discard(GPID)
        await world.sleep_ms(5_000)
        assert finished(server) == 1
        await server.stop()

    play(scenario)


def test_an_engine_that_fails_in_it_is_opened_again_and_then_it_is_done() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await serving(life, envs=once(now(life) + 5))
        await write(server, 1, 2)
        # They are in the engine, and nothing else will find out.
        await world.sleep_ms(2_000)
        [engine] = server.engines.opened.values()
        engine.write_error = OSError(errno.EIO, "a table cannot be written")  # type: ignore[attr-defined]
        await world.sleep_ms(6_000)
        assert server.engines.openings == 2
        assert finished(server) == 1
        await write(server, 3)
        await server.stop()

    play(scenario)


async def test_removed_rows_give_their_space_back_to_the_disk(tmp_path: Path) -> None:
    """With LevelDB, from the client's order to the files."""
    data = tmp_path / "data"

    def bytes_of_tables() -> int:
        # One that a checkpoint has too counts once. Directories and files go at any time.
        sizes = {}
        for directory, _, names in os.walk(data):
            for name in names:
                with suppress(FileNotFoundError):
                    found = Path(directory, name).stat()
                    sizes[found.st_ino] = found.st_size if name.endswith(".ldb") else 0
        return sum(sizes.values())

    before = SystemClock().wall_us() // 1_000_000 - 5
    noise = Random(1)
    async with (
        running(data) as server,
        pegaskv.connect(server.address, timeout=20.0) as client,
    ):
        await client.admin.create_table("t", 2)
        table = await client.table("t")
        rows = [(b"h%d" % number, b"s", noise.randbytes(20_000)) for number in range(200)]
        await table.batch_set(rows)
        await client.admin.set_envs("t", once(before))
        await poll_until(lambda: bytes_of_tables() > 3_500_000, what="the rows in tables")
        await table.batch_delete([(hash_key, sort_key) for hash_key, sort_key, _ in rows[5:]])
        await client.admin.set_envs("t", once(before + 1))
        await poll_until(lambda: bytes_of_tables() < 1_000_000, what="the space")
        assert await table.batch_get([row[:2] for row in rows]) == [
            *(row[2] for row in rows[:5]),
            *[None] * 195,
        ]
