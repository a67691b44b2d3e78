"""Orders of the meta server against failing disks and engines: each is finished or said, once."""

import errno
from typing import Any

import pytest

from pegaskv.base.errors import NotReady
from pegaskv.base.types import Durability, Gpid, TableStatus
from pegaskv.codec.operations import Operation
from pegaskv.replica.expiry import remove_rows
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World

EIO = OSError(errno.EIO, "planned")
FULL = OSError(errno.ENOSPC, "planned")
GPID = Gpid(1, 0)


async def opened(life: Life, **more: Any) -> Server:
    server = Server(life, **more)
    await server.start()
    await server.serve(first=True)
    return server


def test_a_replica_whose_engine_could_not_be_made_is_made_by_the_next_push() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = Server(life)
        await server.start()
        server.engines.failures = [FULL]
        with pytest.raises(OSError, match="planned"):
            await server.serve(first=True)
        await server.serve(first=True)
        await server.set(b"a", b"1")
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_a_replica_that_could_not_be_read_when_it_was_opened_is_not_taken_for_a_missing_one() -> (
    None
):
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        await server.stop()
        server = Server(life)
        await server.start()
        engine = server.stub._recovered[GPID].engine
        assert engine is not None
        engine.get_error = EIO  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="planned"):
            await server.serve()
        engine.get_error = None  # type: ignore[attr-defined]
        await server.serve()
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_a_purge_does_not_wait_for_an_engine_that_never_opens() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        replica = server.replica()
        replica.apply_now()
        server.engines.failures = [EIO] * 1_000
        server.engine().write_error = EIO
        await server.set(b"b", b"1")
        replica.apply_now()
        assert replica.engine_failed is not None
        await world.sleep_ms(20_000)
        purge = life.task(server.stub.configure(server.push(version=9, purged=True)))
        await world.until(purge.done)
        await purge
        await world.sleep_ms(120_000)
        assert not server.crashes
        assert not server.disk.exists(server.directory.replica_path(GPID))
        tried = len(server.engines.failures)
        await world.sleep_ms(120_000)
        assert len(server.engines.failures) == tried, "it is still being opened"

    play(scenario)


def test_a_purge_while_the_log_has_no_room_answers_what_waits_and_does_not_wait_itself() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        log = server.log
        ready = log.ready
        log.ready = lambda: False  # type: ignore[method-assign]
        request = server.send(Operation.SET, b"h", b"b", b"1", 0)
        purge = life.task(server.stub.configure(server.push(version=9, purged=True)))
        await world.until(purge.done)
        await purge
        code = (await server.answer(request))[0]
        assert code == NotReady.code
        assert server.connection.in_flight == 0
        log.ready = ready  # type: ignore[method-assign]
        # And nothing of it comes back.
        await server.serve(2, first=True)
        status, *_ = await server.ask(Operation.SET, b"h", b"b", b"1", 0, table_id=2)
        assert status == 0
        assert not server.crashes

    play(scenario)


def test_a_table_that_cannot_open_yet_does_not_hold_up_the_others() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        log = server.log
        ready = log.ready
        log.ready = lambda: False  # type: ignore[method-assign]
        waiting = life.task(server.serve(2, first=True))
        await world.sleep_ms(1_000)
        assert not waiting.done()
        drop = server.push(version=3, status=TableStatus.DROPPED, ballot=1)
        dropped = life.task(server.stub.configure(drop))
        await world.until(dropped.done)
        log.ready = ready  # type: ignore[method-assign]
        assert server.stub._front is not None
        server.stub._front._schedule()
        await waiting
        status, *_ = await server.ask(Operation.SET, b"h", b"b", b"1", 0, table_id=2)
        assert status == 0

    play(scenario)


def test_a_purge_whose_files_could_not_be_removed_is_finished_by_the_next_push() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        trash = server.directory.trash_replica
        failures = [EIO]

        def failing(*args: Any, **more: Any) -> Any:
            if failures:
                raise failures.pop()
            return trash(*args, **more)

        server.directory.trash_replica = failing  # type: ignore[method-assign]
        with pytest.raises(OSError, match="planned"):
            await server.stub.configure(server.push(version=9, purged=True))
        await server.stub.configure(server.push(version=9, purged=True))
        assert not server.disk.exists(server.directory.replica_path(GPID))

    play(scenario)


@pytest.mark.parametrize("what", ["collect", "free_bytes"])
def test_a_disk_that_refuses_upkeep_does_not_end_the_server(what: str) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        failures = [EIO] * 3

        async def collect() -> None:
            if failures:
                raise failures.pop()

        def free_bytes(path: object) -> tuple[int, int]:
            if failures:
                raise failures.pop()
            return 1 << 40, 1 << 40

        if what == "collect":
            server.log.collect = collect  # type: ignore[method-assign]
            server.log.flush_candidates = lambda now_ms: [GPID]  # type: ignore[method-assign]
        else:
            server.disk.free_bytes = free_bytes  # type: ignore[method-assign]
        await world.sleep_ms(10_000)
        assert not failures
        assert not server.crashes
        await server.set(b"a", b"1")

    play(scenario)


def test_an_os_table_is_never_acknowledged_early_while_its_manifest_says_fsync() -> None:
    """Durability goes to os, fsync and os while the thread of the manifests is busy."""

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        server.slow("upkeep", 300_000)
        for version, durability in enumerate(("os", "fsync", "os"), 10):
            push = server.push(version=version, envs={"durability": durability}, ballot=1)
            await server.stub.configure(push)
            wanted = Durability(durability)
            await world.until(lambda wanted=wanted: replica.durability is wanted)  # type: ignore[misc]
        early = 0
        for _ in range(5_000):
            if not replica.fsync:
                early += 1
                assert server.directory.manifest(GPID).os_acknowledged
            await world.sleep_ms(1)
        assert early

    play(scenario)


def test_a_stop_that_could_not_sync_an_os_table_is_no_clean_one() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        await server.stub.configure(server.push(version=2, envs={"durability": "os"}, ballot=1))
        await world.until(lambda: not replica.fsync)
        await server.set(b"a", b"1")

        def failing() -> None:
            raise EIO

        segment = server.log._segment
        assert segment is not None
        segment.file.fdatasync = failing  # type: ignore[method-assign]
        with pytest.raises(OSError, match="log"):
            await server.stub.stop()

    play(scenario)


def test_a_stop_writes_what_waits_for_others_to_share_a_write() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        assert (await server.ask(Operation.SET, b"h", b"s", b"v", 0))[0] == 0
        # It would wait for half a second.
        assert server.replica().unapplied
        began_ms = life.clock.monotonic_ms()
        await server.stop()
        assert life.clock.monotonic_ms() - began_ms < 100
        assert not server.replica().unapplied

    play(scenario)


def test_a_stop_syncs_what_os_tables_wrote_before_anything_is_closed() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        await server.stub.configure(server.push(version=2, envs={"durability": "os"}, ballot=1))
        await world.until(lambda: not replica.fsync)
        await server.set(b"a", b"1")
        await server.stop()
        server = Server(life)
        await server.start()
        await server.serve()
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_a_purge_in_the_middle_of_a_sweep_brings_no_engine_back() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        for number in range(5):
            await server.set(b"%d" % number, b"1", ttl=1)
        replica = server.replica()
        replica.apply_now()
        key = b"\0\1h0"
        row = server.engine().get(key)
        assert row is not None
        await server.stub.configure(server.push(version=9, purged=True))
        # The sweep found this row before the table went.
        assert remove_rows(replica, [(key, row)]) == 0
        assert replica.engine_failed is None

    play(scenario)


def test_a_disk_that_takes_nothing_more_does_not_keep_replicas_from_being_read() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"a", b"1")
        await server.stop()
        checkpoint = server.directory.replica_path(GPID) / "checkpoint"
        assert not life.disk.exists(checkpoint)
        server = Server(life)
        await server.start()
        assert not life.disk.exists(checkpoint), "a start made a directory"
        await server.stop()

    play(scenario)
