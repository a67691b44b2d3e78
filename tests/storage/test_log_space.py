"""A full disk, or no file left: the log waits, says so, and goes on by itself.

What fits is never half written.
"""

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage.disk import File
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.mutation_log import MutationLog, RecoveredLog
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World
from tests.storage.fakes import LOG, everything, record, synced

A: Final = Gpid(1, 0)
OPTIONS: Final = LogOptions(log_segment_bytes=64 * 1024)
ROOMY: Final = 1 << 30


def opened(life: Life) -> tuple[MutationLog, RecoveredLog]:
    assert isinstance(life.disk, SimulatedDisk)
    return MutationLog.recover(
        life.disk,
        LOG,
        options=OPTIONS,
        clock=life.clock,
        worker=life.worker("log"),
        background=life.worker("background"),
        wanted=everything,
    )


def in_a_world(
    seed: int,
    main: Callable[[Life, SimulatedDisk], Awaitable[None]],
    disk: type[SimulatedDisk] = SimulatedDisk,
) -> None:
    finished = []

    async def live(life: Life) -> None:
        assert isinstance(life.disk, SimulatedDisk)
        await main(life, life.disk)
        finished.append(True)

    with World(seed, disk=disk) as world:

        async def whole(world: World) -> None:
            await world.node("server").start(live).ended

        world.run(whole(world), limit_ms=600_000)
    assert finished


class ShortDisk(SimulatedDisk):
    """A disk in a process that can be brought to its limit of open files."""

    short_of: int = 0
    refused: int = 0

    def fsync_dir(self, path: Path) -> None:
        self._need_a_file()
        super().fsync_dir(path)

    def create(self, path: Path) -> File:
        self._need_a_file()
        return super().create(path)

    def _need_a_file(self) -> None:
        if self.short_of:
            self.refused += 1
            raise OSError(self.short_of, os.strerror(self.short_of))


@pytest.mark.parametrize("reason", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_a_process_out_of_files_makes_the_log_wait_and_breaks_nothing(reason: int) -> None:
    async def main(life: Life, disk: SimulatedDisk) -> None:
        assert isinstance(disk, ShortDisk)
        log, _ = opened(life)
        log.set_incarnation(A, 1, 0)
        disk.short_of = reason
        decree = await fill(log, life)
        assert decree > 10
        assert disk.refused > 3
        await synced(log)
        disk.short_of = 0
        await life.clock.sleep_ms(5_000)
        assert log.ready()
        log.append([record(A, decree + 1)])
        await synced(log)
        await log.close()
        _, recovered = opened(life)
        assert [one.decree for one in recovered.records[A]] == list(range(1, decree + 2))

    in_a_world(0, main, ShortDisk)


async def fill(log: MutationLog, life: Life) -> int:
    """Append until the log takes no more for a good while; return the last decree."""
    for decree in range(1, 2_000):
        if not log.ready():
            await life.clock.sleep_ms(10_000)
            if not log.ready():
                return decree - 1
        log.append([record(A, decree, size=2_000)])
        await synced(log)
    raise AssertionError("the disk is never full")


@pytest.mark.parametrize("seed", range(6))
def test_a_full_disk_makes_the_log_wait_and_room_makes_it_ready_again(seed: int) -> None:
    async def main(life: Life, disk: SimulatedDisk) -> None:
        log, _ = opened(life)
        log.set_incarnation(A, 1, 0)
        disk.set_capacity(200 * 1024 + 1_000 * seed)
        decree = await fill(log, life)
        assert decree > 40
        called: list[bool] = []
        log.on_ready = lambda: called.append(log.ready())
        # Nothing failed: what was taken is durable, and a sync says so.
        await synced(log)
        assert not log.unsynced
        assert len(log.read(A, 1, 1 << 30)) == decree
        await life.clock.sleep_ms(20_000)
        assert called == []
        assert not log.ready()
        disk.set_capacity(ROOMY)
        await life.clock.sleep_ms(5_000)
        assert called == [True]
        assert log.ready()
        log.append([record(A, decree + 1)])
        await synced(log)
        await log.close()
        _, recovered = opened(life)
        assert [one.decree for one in recovered.records[A]] == list(range(1, decree + 2))

    in_a_world(seed, main)


def test_what_a_collection_frees_is_room_enough() -> None:
    async def main(life: Life, disk: SimulatedDisk) -> None:
        log, _ = opened(life)
        log.set_incarnation(A, 1, 0)
        disk.set_capacity(200 * 1024)
        decree = await fill(log, life)
        log.mark_flushed(A, decree)
        await log.collect()
        await life.clock.sleep_ms(5_000)
        assert log.ready()
        log.append([record(A, decree + 1)])
        await synced(log)
        await log.close()

    in_a_world(1, main)


def test_a_log_that_was_recovered_on_a_full_disk_is_read_and_waits() -> None:
    async def main(life: Life, disk: SimulatedDisk) -> None:
        log, _ = opened(life)
        log.set_incarnation(A, 1, 0)
        log.append([record(A, 1)])
        await synced(log)
        # With its next segment made, a clean stop leaves nothing that a start must copy.
        await life.clock.sleep_ms(60_000)
        await log.close()
        disk.set_capacity(0)
        log, recovered = opened(life)
        log.set_incarnation(A, 1, 0)
        assert [one.decree for one in recovered.records[A]] == [1]
        assert not log.ready()
        assert [one.decree for one in log.read(A, 1, 1_000)] == [1]
        called: list[bool] = []
        log.on_ready = lambda: called.append(log.ready())
        await life.clock.sleep_ms(10_000)
        assert called == []
        disk.set_capacity(ROOMY)
        await life.clock.sleep_ms(5_000)
        assert called == [True]
        log.append([record(A, 2)])
        await synced(log)
        await log.close()

    in_a_world(2, main)


def test_a_block_that_does_not_fit_breaks_the_log_before_anything_is_written() -> None:
    async def main(life: Life, disk: SimulatedDisk) -> None:
        log, _ = opened(life)
        log.set_incarnation(A, 1, 0)
        log.append([record(A, 1)])
        await synced(log)
        await life.clock.sleep_ms(60_000)
        disk.set_capacity(0)
        with pytest.raises(OSError, match="no space"):
            log.append([record(A, 2, size=200_000)])
        disk.set_capacity(ROOMY)
        with pytest.raises(OSError, match="the log has failed"):
            log.append([record(A, 2)])
        await log.close()
        _, recovered = opened(life)
        assert [one.decree for one in recovered.records[A]] == [1]

    in_a_world(3, main)


def test_a_log_that_waits_for_room_can_be_closed_and_leaves_no_half_segment() -> None:
    async def main(life: Life, disk: SimulatedDisk) -> None:
        log, _ = opened(life)
        log.set_incarnation(A, 1, 0)
        disk.set_capacity(200 * 1024)
        decree = await fill(log, life)
        await log.close()
        assert not any(name.endswith(".tmp") for name in disk.list(LOG))
        # A start must copy what it cannot know durable; without room it changes nothing.
        before = {name: disk.read_bytes(LOG / name) for name in disk.list(LOG)}
        disk.set_capacity(0)
        with pytest.raises(OSError, match="no space"):
            opened(life)
        assert {name: disk.read_bytes(LOG / name) for name in disk.list(LOG)} == before
        disk.set_capacity(ROOMY)
        _, recovered = opened(life)
        assert recovered.damage is None
        assert len(recovered.records[A]) == decree

    in_a_world(4, main)
