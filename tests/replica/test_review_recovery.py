"""What a start makes of a directory: nothing is invented, and nothing that may be needed goes."""

import logging
from typing import Any

import pytest

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.codec.mutations import encode_mutation, encode_operation
from pegaskv.codec.operations import Operation
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.mutation_log import LogRecord
from tests.replica.stub_world import DATA, Server, play, play_lives
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World

GPID = Gpid(1, 0)


async def opened(life: Life, *, first: bool = False, **more: Any) -> Server:
    server = Server(life, **more)
    await server.start()
    await server.serve(first=first)
    return server


async def checkpoint(server: Server) -> None:
    replica = server.replica()
    replica.apply_now()
    await server.stub._flush(replica)


def spoil_tables(disk: SimulatedDisk) -> None:
    """Make the engine's file one that does not open; its checkpoint has files of its own."""
    disk.write_atomic(DATA / "replicas" / "1.0" / "engine" / "rows", b"not what was written")


def test_the_log_reaches_back_to_the_checkpoint_after_any_number_of_restarts() -> None:
    """Tables are newer than the checkpoint: if they break, the log must have the difference."""

    async def scenario(world: World, life: Life) -> None:
        options = LogOptions(log_segment_bytes=64 * 1024, flush_age_ms=1 << 40)
        server = await opened(life, first=True, log_options=options)
        await server.set(b"a", b"1")
        await checkpoint(server)
        for number in range(40):
            await server.set(b"%d" % number, bytes(8_000))
        await server.set(b"b", b"2")
        await server.stop()
        for _ in range(3):
            server = await opened(life, log_options=options)
            await server.log.collect()
            assert await server.get(b"b") == b"2"
            await server.stop()
        spoil_tables(life.disk)
        server = await opened(life, log_options=options)
        assert await server.get(b"a") == b"1"
        assert await server.get(b"b") == b"2"
        assert await server.get(b"7") == bytes(8_000)
        await server.stop()

    play(scenario)


def leave_a_gap(server: Server) -> None:
    """Let the log lack the next decree and have those behind it, which write `ghost`."""
    replica = server.replica()
    decree, ballot = replica.machine.committed, replica.machine.ballot
    row = encode_operation(1, 0, [b"\0\1hghost", b"\0\0\0\0" + bytes(7) + b"\2ghost"])
    payload = encode_mutation(1, [row])
    server.log.append(
        [
            LogRecord(1, 0, replica.incarnation, ballot, each, each - 1, 1, payload)
            for each in range(decree + 2, decree + 6)
        ]
    )


def test_what_lay_behind_an_accepted_gap_stays_away_when_decrees_are_used_again() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        await server.set(b"a", b"1")
        leave_a_gap(server)
        await server.stop()
        server = Server(life)
        await server.start()
        [report] = server.stub.node_report("").replicas
        assert "lacks decree" in report.closed
        assert not report.amnesiac
        await server.stop()
        server = Server(life)
        await server.start(accept_loss=True)
        # If another server has what is lost, this one must not lead.
        [report] = server.stub.node_report("").replicas
        assert not report.closed
        assert report.amnesiac
        await server.serve()
        assert await server.get(b"a") == b"1"
        await server.set(b"b", b"2")
        await checkpoint(server)
        await server.stop()
        server = await opened(life)
        assert await server.get(b"b") == b"2"
        assert await server.get(b"ghost") is None
        await server.stop()

    play(scenario)


def test_records_of_a_replica_with_a_damaged_manifest_are_kept_for_whoever_mends_it() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        for number in range(40):
            await server.set(b"%d" % number, bytes(8_000))
        path = server.directory.replica_path(GPID) / "manifest"
        good = life.disk.read_bytes(path)
        # As a crash leaves it: the tables have nothing, the log has all.
        rows = server.directory.engine_path(GPID) / "rows"
        await server.stop()
        life.disk.unlink(rows)
        life.disk.write_atomic(path, b"bad")
        server = Server(life)
        await server.start()
        await server.log.collect()
        assert server.stub.node_report("").replicas[0].closed
        await server.stop()
        life.disk.write_atomic(path, good)
        server = await opened(life)
        assert await server.get(b"3") == bytes(8_000)
        await server.stop()

    play(scenario)


def test_a_prepared_mutation_of_a_kind_from_the_future_closes_its_replica_and_no_other() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        await server.set(b"a", b"1")
        await server.serve(2, first=True)
        replica = server.replica()
        payload = encode_mutation(1, [encode_operation(99, 0, [b"what?"])])
        decree, ballot = replica.machine.committed, replica.machine.ballot
        server.log.append(
            [LogRecord(1, 0, replica.incarnation, ballot, decree + 1, decree, 1, payload)]
        )
        await server.stop()
        server = Server(life)
        await server.start()
        assert "kind 99" in server.stub.node_report("").replicas[0].closed
        await server.serve()
        await server.serve(2)
        status, *_ = await server.ask(Operation.SET, b"h", b"b", b"1", 0, table_id=2)
        assert status == 0
        assert (await server.ask(Operation.GET, b"h", b"a"))[0] == 14
        await server.stop()

    play(scenario)


def test_timestamps_grow_over_a_barrier_and_a_restart_when_the_clock_goes_back() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        await server.set(b"a", b"1")
        last = server.replica().last_timestamp_us
        await server.stop()
        world.nodes["server"].jump_wall(-3_600_000_000)
        # Twice: the first ballot's barrier is all that the second start finds.
        for _ in range(2):
            server = await opened(life)
            await checkpoint(server)
            await server.stop()
        server = await opened(life)
        await server.set(b"b", b"2")
        assert server.replica().last_timestamp_us > last
        await server.stop()

    play(scenario)


def test_an_accepted_loss_stays_accepted_while_another_replica_keeps_the_report_alive(
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = LogOptions(log_segment_bytes=64 * 1024, flush_age_ms=1 << 40)
    caplog.set_level(logging.CRITICAL)
    other, later = Gpid(2, 0), Gpid(3, 0)
    good: list[bytes] = []

    def closed(server: Server) -> dict[Gpid, str]:
        return {each.gpid: each.closed for each in server.stub.node_report("").replicas}

    async def damaged(world: World, life: Life) -> None:
        server = await opened(life, first=True, log_options=options)
        await server.serve(2, first=True)
        for number in range(20):
            await server.ask(Operation.SET, b"h", b"k", bytes(8_000), 0, table_id=2)
            await server.set(b"%d" % number, bytes(8_000))
        await server.stop()
        disk, log = life.disk, server.directory.log_path
        segments = sorted(name for name in disk.list(log) if name.endswith(".log"))
        # The last block of each, so that nothing behind it shows a gap; one segment is made ahead.
        segment = disk.open(log / segments[-2], writable=True)
        for before_end in (1_000, 10_000):
            segment.write_at(segment.size() - before_end, b"\xff" * 64)
        segment.close()
        # As after a crash, the tables of both have nothing; the manifest of one is damaged.
        for gpid in (GPID, other):
            rows = server.directory.engine_path(gpid) / "rows"
            if disk.exists(rows):
                disk.unlink(rows)
        manifest = server.directory.replica_path(GPID) / "manifest"
        good.append(disk.read_bytes(manifest))
        disk.write_atomic(manifest, b"bad")

    async def refused(world: World, life: Life) -> None:
        server = Server(life, log_options=options)
        await server.start()
        assert "--accept-loss" in closed(server)[other]

    async def accepted(world: World, life: Life) -> None:
        server = Server(life, log_options=options)
        await server.start(accept_loss=True)
        assert not closed(server)[other]
        # A table that is made now has lost nothing.
        await server.serve(3, first=True)
        # It is killed before anything was built on what was accepted; the other is mended.
        manifest = server.directory.replica_path(GPID) / "manifest"
        life.disk.write_atomic(manifest, good[0])

    async def without_the_flag(world: World, life: Life) -> None:
        server = Server(life, log_options=options)
        await server.start()
        assert "--accept-loss" in closed(server)[GPID]
        assert not closed(server)[other]
        assert not closed(server)[later]
        await server.serve(2)
        assert (await server.ask(Operation.GET, b"h", b"k", table_id=2))[0] == 0

    async def the_last_one(world: World, life: Life) -> None:
        server = Server(life, log_options=options)
        report = DATA / "log" / "damage.json"
        assert life.disk.exists(report)
        await server.start(accept_loss=True)
        assert not any(closed(server).values())
        assert not life.disk.exists(report)

    play_lives(damaged, refused, accepted, without_the_flag, the_last_one)


def test_a_loss_that_was_accepted_is_no_secret_to_duplications() -> None:
    pin = (DuplicationOrder(1, b"u" * 16, "other"),)
    again = (
        DuplicationOrder(1, b"u" * 16, "other", ended=True, broken=True),
        DuplicationOrder(1, b"v" * 16, "other"),
    )

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        await server.serve(duplications=pin, version=1)
        start = server.source().start_decree(b"u" * 16)
        await server.set(b"a", b"1")
        replica = server.replica()
        decree, ballot = replica.machine.committed, replica.machine.ballot
        payload = encode_mutation(1, [encode_operation(1, 0, [b"\0\1hghost", bytes(12)])])
        records = [
            LogRecord(1, 0, replica.incarnation, ballot, each, each - 1, 1, payload)
            for each in range(decree + 2, decree + 6)
        ]
        server.log.append(records)
        await server.stop()
        for accept_loss in (True, False):
            # The same marks as before would say that nothing is missing.
            server = Server(life)
            await server.start(accept_loss=accept_loss)
            assert not server.stub.node_report("").replicas[0].closed
            recovered = server.stub._recovered[GPID]
            assert recovered.participation.pins == {}
            await server.stop()
        server = Server(life)
        await server.start()
        await server.serve(duplications=pin, version=1)
        moved = server.source().start_decree(b"u" * 16)
        assert moved > decree > start
        # The next copy has a mark of its own, which is not taken away again.
        await server.serve(duplications=again, version=2)
        anew = server.source().start_decree(b"v" * 16)
        await server.stop()
        server = await opened(life)
        assert server.source().start_decree(b"v" * 16) == anew
        assert server.replica().participation.pins == {b"u" * 16: 0, b"v" * 16: anew}
        await server.stop()

    play(scenario)


def test_an_accepted_gap_stays_accepted_after_a_crash_before_anything_was_written() -> None:
    async def gap(world: World, life: Life) -> None:
        server = await opened(life, first=True)
        await server.set(b"a", b"1")
        leave_a_gap(server)
        await server.stop()

    async def accepted(world: World, life: Life) -> None:
        server = Server(life)
        await server.start(accept_loss=True)
        assert not server.stub.node_report("").replicas[0].closed

    async def without_the_flag(world: World, life: Life) -> None:
        server = await opened(life)
        assert await server.get(b"a") == b"1"
        assert await server.get(b"ghost") is None

    play_lives(gap, accepted, without_the_flag)
