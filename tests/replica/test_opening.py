"""What a start does with storage that does not open: made anew, tried again, or said."""

import errno
import os
from random import Random
from typing import Any

import pytest

from pegaskv.base.errors import CorruptionError
from pegaskv.base.types import Gpid
from pegaskv.codec.mutations import OperationKind
from pegaskv.codec.operations import Operation
from pegaskv.replica.control import propose_control
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.overlay import OverlaidSnapshot
from pegaskv.replica.participation import PIN_PREFIX
from pegaskv.storage.engine import ReplicaState
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.memory import MemoryFactory
from tests.replica.stub_world import DATA, GPID, Server, play, play_lives
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World

OPTIONS = LogOptions(log_segment_bytes=64 * 1024, flush_age_ms=1 << 40)


async def opened(life: Life, *, first: bool = False) -> Server:
    server = Server(life, log_options=OPTIONS)
    await server.start()
    await server.serve(first=first)
    return server


def spoil_tables(disk: SimulatedDisk) -> None:
    disk.write_atomic(DATA / "replicas" / "1.0" / "engine" / "rows", b"not what was written")


def serves(server: Server) -> bool:
    return GPID in server.stub._replicas and server.replica().serving


def closed(server: Server) -> dict[Gpid, str]:
    return {each.gpid: each.closed for each in server.stub.node_report("").replicas}


def test_tables_that_do_not_open_are_made_anew_while_the_log_has_every_record() -> None:
    async def written(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        for number in range(30):
            await server.set(b"%d" % number, b"v%d" % number)
        spoil_tables(life.disk)

    async def read(world: World, life: Life) -> None:
        server = await opened(life)
        for number in range(30):
            assert await server.get(b"%d" % number) == b"v%d" % number
        await server.set(b"more", b"1")
        # What did not open is kept.
        damaged = DATA / "replicas" / "1.0" / "engine.damaged" / "rows"
        assert life.disk.read_bytes(damaged) == b"not what was written"

    async def read_again(world: World, life: Life) -> None:
        server = await opened(life)
        assert await server.get(b"more") == b"1"
        assert await server.get(b"7") == b"v7"

    play_lives(written, read, read_again)


def test_tables_that_do_not_open_stay_closed_and_say_what_the_log_lacks() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        for number in range(30):
            await server.set(b"%d" % number, bytes(8_000))
        replica = server.replica()
        replica.apply_now()
        await server.stub._flush(replica)
        await server.log.collect()
        await server.set(b"last", b"1")
        await server.stop()
        spoil_tables(life.disk)
        life.disk.remove_tree(DATA / "replicas" / "1.0" / "checkpoint")
        server = Server(life, log_options=OPTIONS)
        await server.start()
        why = closed(server)[GPID]
        assert "no checkpoint" in why
        assert "lacks decrees 1 to" in why
        assert "backup" in why
        assert "--accept-loss" in why
        await server.serve()
        status, message, *_ = await server.ask(Operation.GET, b"h", b"last")
        assert status == 14
        assert message.endswith(why)
        # Nothing was thrown away.
        rows = DATA / "replicas" / "1.0" / "engine" / "rows"
        assert life.disk.read_bytes(rows) == b"not what was written"
        await server.stop()

    play(scenario)


def test_an_engine_that_breaks_while_it_is_used_is_made_anew_from_a_whole_log() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        await server.set(b"a", b"1")
        server.engines.failures = [CorruptionError("planned")]
        server.engine().write_error = OSError(errno.EIO, "planned")
        replica = server.replica()
        replica.apply_now()
        await world.until(lambda: replica.engine_failed is None)
        assert await server.get(b"a") == b"1"
        await server.set(b"b", b"2")
        await server.stop()
        server = await opened(life)
        assert await server.get(b"b") == b"2"
        await server.stop()

    play(scenario)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EACCES])
def test_an_engine_that_the_disk_refuses_to_open_closes_its_partition_until_it_opens(
    number: int,
) -> None:
    async def written(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        await server.serve(2, first=True)
        await server.set(b"a", b"1")
        await server.ask(Operation.SET, b"h", b"b", b"2", 0, table_id=2)

    async def read(world: World, life: Life) -> None:
        server = Server(life, log_options=OPTIONS)
        server.engines.failures = [OSError(number, os.strerror(number))] * 4
        server.engines.failing = DATA / "replicas" / "1.0" / "engine"
        await server.start()
        # The meta server remembers its ballot, though nobody could read it here.
        await server.serve(ballot=5)
        await server.serve(2)
        status, message, *_ = await server.ask(Operation.GET, b"h", b"a")
        assert status == 14
        assert os.strerror(number) in message
        assert "tried again" in message
        assert (await server.ask(Operation.GET, b"h", b"b", table_id=2))[1] == b"2"
        await world.until(lambda: not server.engines.failures)
        await world.until(lambda: serves(server), limit_ms=60_000)
        assert await server.get(b"a") == b"1"
        await server.set(b"c", b"3")
        assert not any(closed(server).values())

    async def read_again(world: World, life: Life) -> None:
        server = await opened(life)
        assert await server.get(b"c") == b"3"

    play_lives(written, read, read_again)


def test_a_disk_that_refuses_every_engine_for_good_stops_the_start() -> None:
    async def written(world: World, life: Life) -> None:
        await (await opened(life, first=True)).serve(2, first=True)

    async def refused(world: World, life: Life) -> None:
        server = Server(life, log_options=OPTIONS)
        server.engines.failures = [OSError(errno.EROFS, "read-only")] * 2
        with pytest.raises(OSError, match="read-only"):
            await server.start()

    play_lives(written, refused)


def test_a_purge_of_a_partition_that_waits_for_its_storage_is_the_end_of_it() -> None:
    async def written(world: World, life: Life) -> None:
        await (await opened(life, first=True)).set(b"a", b"1")

    async def purged(world: World, life: Life) -> None:
        server = Server(life, log_options=OPTIONS)
        server.engines.failures = [OSError(errno.EIO, "planned")] * 50
        await server.start()
        await server.serve()
        await server.stub.configure(server.push(version=9, purged=True))
        left = len(server.engines.failures)
        await world.sleep_ms(120_000)
        assert len(server.engines.failures) == left
        assert not server.crashes

    play_lives(written, purged)


def test_pins_in_the_tables_and_in_the_log_hold_the_log_from_the_start_on() -> None:
    uuid, later = b"\x01" * 16, b"\x02" * 16

    async def written(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        replica = server.replica()
        propose_control(replica, OperationKind.PIN, [uuid])
        await server.set(b"a", b"1")
        for number in range(30):
            await server.set(b"%d" % number, bytes(8_000))
        replica.apply_now()
        server.log.set_pin(GPID, uuid.hex(), 2)
        await server.stub._flush(replica)
        propose_control(replica, OperationKind.PIN, [later])
        await server.set(b"b", b"2")

    async def restarted(world: World, life: Life) -> None:
        server = await opened(life)
        pinned = server.log.pins(GPID)
        assert set(pinned) == {uuid.hex(), later.hex()}
        assert pinned[uuid.hex()].decree < pinned[later.hex()].decree
        stored = server.engine().get(PIN_PREFIX + uuid)
        assert stored == pinned[uuid.hex()].decree.to_bytes(8, "big")
        assert server.log.held_bytes(GPID, uuid.hex()) > 200_000
        await server.log.collect()
        await world.sleep_ms(2_000)
        first = pinned[uuid.hex()].decree + 1
        history = server.log.read(GPID, first, 1 << 30)
        assert [one.decree for one in history][:3] == [first, first + 1, first + 2]

    play_lives(written, restarted)


def test_a_partition_that_nobody_could_open_keeps_its_whole_log() -> None:
    async def written(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        await server.serve(2, first=True)
        propose_control(server.replica(), OperationKind.PIN, [b"\x01" * 16])
        for number in range(30):
            await server.set(b"%d" % number, bytes(8_000))
        server.replica().apply_now()
        server.log.set_pin(GPID, (b"\x01" * 16).hex(), 2)
        await server.stub._flush(server.replica())

    async def restarted(world: World, life: Life) -> None:
        server = Server(life, log_options=OPTIONS)
        server.engines.failures = [OSError(errno.EIO, "planned")] * 6
        server.engines.failing = DATA / "replicas" / "1.0" / "engine"
        await server.start()
        # The meta server remembers its ballot, though nobody could read it here.
        await server.serve(ballot=5)
        await server.log.collect()
        assert server.engines.failures
        await world.until(lambda: serves(server), limit_ms=120_000)
        assert set(server.log.pins(GPID)) == {(b"\x01" * 16).hex()}
        assert len(server.log.read(GPID, 3, 1 << 30)) > 29

    play_lives(written, restarted)


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("left", [0, 100, 5_000, 70_000])
def test_after_a_crash_a_completely_full_disk_is_read_and_written_again_when_there_is_room(
    left: int, spare: bool, power: bool
) -> None:
    async def written(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        for number in range(25):
            await server.set(b"%d" % number, bytes(6_000))
        # Somebody else fills the disk.
        disk = life.disk
        if not spare:
            # The log's next segment was not made when that began.
            server.log.ready = lambda: False  # type: ignore[method-assign]
            newest = max(name for name in disk.list(DATA / "log") if name.endswith(".log"))
            disk.unlink(DATA / "log" / newest)
        disk.set_capacity(disk._platter.named_bytes() + left)

    async def full(world: World, life: Life) -> None:
        server = Server(life, log_options=OPTIONS, options=ReplicaOptions(min_free_percent=50))
        await server.start()
        await server.serve()
        for number in range(25):
            assert await server.get(b"%d" % number) == bytes(6_000)
        assert (await server.ask(Operation.SET, b"h", b"more", b"1", 0))[0] == 21
        await world.sleep_ms(5_000)
        assert await server.get(b"24") == bytes(6_000)
        life.disk.set_capacity(1 << 30)
        await server.set(b"more", b"1")
        await server.stop()

    async def after(world: World, life: Life) -> None:
        server = await opened(life)
        assert await server.get(b"more") == b"1"
        assert await server.get(b"24") == bytes(6_000)

    play_lives(written, full, after, power=power)


def test_scans_see_what_an_engine_that_takes_no_writes_does_not_have() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        for key in (b"a", b"b", b"c"):
            await server.set(key, b"1")
        replica = server.replica()
        replica.apply_now()
        # A full disk: the engine stays as it is until there is room.
        life.disk.set_capacity(1)
        await world.sleep_ms(1_500)
        server.engine().write_error = OSError(errno.ENOSPC, "planned")
        life.disk.set_capacity(1 << 30)
        await world.sleep_ms(1_500)
        await server.set(b"b", b"2")
        await server.set(b"d", b"2")
        await server.ask(Operation.DELETE, b"h", b"a")
        life.disk.set_capacity(1)
        replica.apply_now()
        assert replica.engine_failed is not None
        scan = (b"", b"", 0, 0, b"", 0, b"", 0, b"", 0, 0)
        status, _, count, rows = await server.ask(Operation.SCAN, *scan)
        assert (status, count) == (0, 3)
        assert rows == [b"\0\1hb", b"2", b"\0\1hc", b"1", b"\0\1hd", b"2"]

    play(scenario)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_an_overlay_reads_as_if_its_rows_had_been_written(seed: int, reverse: bool) -> None:
    random = Random(seed)
    disk = SimulatedDisk(random)
    engine = MemoryFactory(disk).open(DATA / "one")
    written = MemoryFactory(disk).open(DATA / "both")

    def some(most: int) -> dict[bytes, bytes | None]:
        keys = [b"%03d" % random.randrange(60) for _ in range(random.randrange(most))]
        return {key: None if random.random() < 0.3 else random.randbytes(3) for key in keys}

    below, above = some(60), some(40)

    def flat(rows: dict[bytes, bytes | None]) -> list[Any]:
        return [part for pair in rows.items() for part in pair]

    engine.write(flat(below), ReplicaState(1, 1, 1))
    written.write(flat(below), ReplicaState(1, 1, 1))
    written.write(flat(above), ReplicaState(1, 1, 1))
    overlaid = OverlaidSnapshot(engine.snapshot(), above)
    plain = written.snapshot()
    for start, stop in ((b"", b""), (b"010", b"050"), (b"020", b""), (b"", b"030")):
        found = list(overlaid.iterate(start, stop, reverse=reverse))
        assert found == list(plain.iterate(start, stop, reverse=reverse))
    for number in range(60):
        assert overlaid.get(b"%03d" % number) == plain.get(b"%03d" % number)
    overlaid.close()
