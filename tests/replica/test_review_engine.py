"""What goes wrong between a replica and its engine stays there, and nobody waits for ever."""

import errno
from pathlib import Path
from typing import Any

from pegaskv.base.errors import CorruptionError
from pegaskv.codec.operations import Operation
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World

EIO = OSError(errno.EIO, "planned")
SCAN = (b"", b"", 0, 0, b"", 0, b"", 0, b"", 0, 0)


async def opened(life: Life, **more: Any) -> Server:
    server = Server(life, **more)
    await server.start()
    await server.serve(first=True)
    return server


def test_a_deleted_row_stays_deleted_while_a_stalled_engine_takes_what_came_before() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        replica.apply_now()
        server.engine().is_calm = False
        server.slow("apply", 100_000)
        # One mutation that deletes and sets the row, and is on its way to the engine ...
        server.send(Operation.DELETE, b"h", b"k")
        await server.answer(server.send(Operation.SET, b"h", b"k", b"old", 0))
        replica.apply_now()
        assert replica.unapplied
        # ... and one that deletes it, and is not.
        await server.ask(Operation.DELETE, b"h", b"k")
        seen = set()
        while replica.unapplied:
            seen.add(await server.get(b"k"))
            await world.sleep_ms(1)
        assert seen == {None}
        assert await server.get(b"k") is None

    play(scenario)


def test_a_scan_that_waits_for_the_engine_is_answered_when_the_engine_is_calm_again() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        replica.apply_now()
        engine = server.engine()
        engine.is_calm = False
        server.slow("apply", 100_000)
        await server.set(b"a", b"1")
        replica.apply_now()
        await server.set(b"b", b"2")
        assert replica._in_thread is not None
        assert replica.unapplied is not replica._in_thread
        scan = server.send(Operation.SCAN, *SCAN)
        engine.is_calm = True
        # As soon as the thread is through, and not when the rows' time has come.
        status, _next, count, _rows = await server.answer(scan, limit_ms=300)
        assert (status, count) == (0, 2)

    play(scenario)


def test_an_engine_that_cannot_say_whether_it_is_calm_has_failed_and_writes_are_answered() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        server.replica().apply_now()
        server.engine().calm_error = EIO
        await server.set(b"a", b"1")
        # Reading a range asks the engine on the spot.
        status = (await server.ask(Operation.SCAN, *SCAN))[0]
        assert status in (0, 13)
        await world.until(lambda: server.engines.openings == 2)
        await server.set(b"b", b"2")
        assert await server.get(b"a") == b"1"
        assert server.connection.in_flight == 0

    play(scenario)


def test_an_engine_that_fails_twice_at_once_is_opened_again_once() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        replica.apply_now()
        await server.set(b"a", b"1")
        assert replica.unapplied
        server.engine().write_error = EIO
        # It fails when the rows are written before the checkpoint, and in the checkpoint.
        await server.stub._flush(replica)
        await world.until(lambda: replica.engine_failed is None)
        await world.sleep_ms(10_000)
        assert server.engines.openings == 2
        assert replica.serving
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_a_log_that_cannot_be_read_while_an_engine_is_reopened_delays_it_and_no_more() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        await server.set(b"a", b"1")
        read = server.log.read
        failures: list[Exception] = [EIO, CorruptionError("planned")]

        def failing(*args: Any, **more: Any) -> Any:
            if failures:
                raise failures.pop()
            return read(*args, **more)

        server.log.read = failing  # type: ignore[method-assign]
        server.engine().write_error = EIO
        replica.apply_now()
        await world.until(lambda: replica.engine_failed is None, limit_ms=120_000)
        assert not failures
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_a_change_of_the_table_opens_no_replica_whose_engine_is_being_reopened() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        await server.set(b"a", b"1")
        server.engines.failures = [EIO] * 3
        server.engine().write_error = EIO
        replica.apply_now()
        await world.until(lambda: replica.reopening and not server.engines.failures[2:])
        push = server.push(version=5, envs={"default_ttl": "60"}, ballot=1)
        await server.stub.configure(push)
        assert replica.reopening
        status, *_ = await server.ask(Operation.GET, b"h", b"a")
        assert status == 13
        await world.until(lambda: replica.engine_failed is None, limit_ms=120_000)
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_rows_that_the_log_does_not_have_are_missed_when_an_engine_is_reopened() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        await server.set(b"a", b"1")
        replica.apply_now()
        # The log gave these records up, as if a checkpoint held them; the engine comes back empty.
        server.log.mark_flushed(replica.gpid, replica.machine.committed)
        server.engine().inner._broken = EIO
        await server.set(b"b", b"2")
        server.log.mark_flushed(replica.gpid, replica.machine.committed)
        replica.apply_now()
        assert replica.engine_failed is not None
        await world.sleep_ms(60_000)
        assert replica.engine_failed is not None
        assert not replica.serving

    play(scenario)


def test_what_an_engine_that_is_brought_up_again_lacks_is_written_to_it() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        replica.apply_now()
        await server.set(b"a", b"1")
        await server.set(b"b", b"2")
        server.engine().write_error = EIO
        replica.apply_now()
        assert replica.engine_failed is not None
        kept = dict(replica.applying)
        assert len(kept) == 2
        front = server.stub._front
        front._lagging.clear()
        # One that the log has brought up to before them.
        fresh = server.engines.open(Path("/fresh"))
        replica.replace_engine(fresh)
        assert replica.applying == kept
        # Nobody has to write for it.
        assert list(front._lagging) == [replica]
        replica.apply_now()
        assert replica.unapplied is None
        assert {key: fresh.get(key) for key in kept} == kept

    play(scenario)
