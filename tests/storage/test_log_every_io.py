"""A fault at every single I/O of the log, and a second crash right behind the first."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage.log_format import LogRecord
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.log_recovery import RecoveredLog
from pegaskv.storage.mutation_log import MutationLog, valid_history
from tests.coordination.inline_worker import InlineWorker
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.errors import NodeDead

DIRECTORY = Path("/data/log")
FSYNC, OS = Gpid(1, 0), Gpid(2, 0)
STEPS = 14
# A few steps fill a segment, so that switching and collecting are tried too.
OPTIONS = LogOptions(log_segment_bytes=16 * 1024)

KILLS = [Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_TORN]
ERRORS = [Fault.FAIL, Fault.TEAR, Fault.FULL]


class StillClock:
    """A clock that stands."""

    def monotonic_ms(self) -> int:
        return 0

    def wall_us(self) -> int:
        return 1_700_000_000_000_000

    async def sleep_ms(self, milliseconds: int) -> None:
        await asyncio.sleep(0)

    def timeout_ms(self, milliseconds: int) -> asyncio.Timeout:
        return asyncio.timeout(milliseconds / 1_000)


def kill(disk: SimulatedDisk) -> SimulatedDisk:
    disk.kill()
    return disk.reborn()


def power_cut(disk: SimulatedDisk) -> SimulatedDisk:
    disk.power_cut()
    return disk.reborn()


def record(gpid: Gpid, decree: int) -> LogRecord:
    payload = b"%d-%d" % (gpid.table_id, decree) * 400
    return LogRecord(*gpid, 1, 1, decree, decree - 1, decree, payload)


def opened(disk: SimulatedDisk) -> tuple[MutationLog, RecoveredLog]:
    return MutationLog.recover(
        disk,
        DIRECTORY,
        options=OPTIONS,
        clock=StillClock(),
        worker=InlineWorker(),
        wanted=lambda _gpid, _incarnation, _decree: True,
    )


@dataclass
class Play:
    """Appends, syncs, flushes and collects, as far as the disk lets it."""

    appended: int = 0
    acknowledged: int = 0
    flushed: dict[Gpid, int] = field(default_factory=lambda: {FSYNC: 0, OS: 0})
    log: MutationLog | None = None

    async def run(self, disk: SimulatedDisk) -> None:
        log, _ = opened(disk)
        self.log = log
        for gpid in (FSYNC, OS):
            log.set_incarnation(gpid, 1, 0)
        for decree in range(1, STEPS + 1):
            while not log.ready():
                if disk.dead:
                    raise NodeDead("log")
                await asyncio.sleep(0)
            self.appended = decree
            log.append([record(FSYNC, decree), record(OS, decree)])
            if decree % 3:
                await self._sync(log)
                self.acknowledged = decree
            if decree in (6, 11):
                # The engines hold so much durably: older segments may go.
                log.mark_flushed(FSYNC, decree - 3)
                log.mark_flushed(OS, decree - 1)
                self.flushed = {FSYNC: decree - 3, OS: decree - 1}
                await log.collect()
        await log.close()

    @staticmethod
    async def _sync(log: MutationLog) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def finish(error: BaseException | None) -> None:
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        log.sync(finish)
        await done

    def check(self, recovered: RecoveredLog, what: str) -> dict[Gpid, list[int]]:
        """Compare what a start found with what is known; return the decrees."""
        seen: dict[Gpid, list[int]] = {}
        assert recovered.damage is None, what
        for gpid in (FSYNC, OS):
            history = list(valid_history(recovered.records.get(gpid, [])))
            decrees = [one.decree for one in history]
            needed = range(self.flushed[gpid] + 1, self.acknowledged + 1)
            assert set(needed) <= set(decrees), f"{what}: {gpid} lost some of {needed}"
            assert all(one == record(gpid, one.decree) for one in history), what
            assert not decrees or decrees[-1] <= self.appended, f"{what}: invented"
            # Behind what was flushed there is no hole.
            above = [decree for decree in decrees if decree > self.flushed[gpid]]
            assert above == list(range(self.flushed[gpid] + 1, self.flushed[gpid] + 1 + len(above)))
            seen[gpid] = above
        return seen


async def count_ios() -> int:
    disk = SimulatedDisk(Random(0))
    play = Play()
    await play.run(disk)
    assert play.acknowledged == STEPS
    return disk.ios


async def crashed(io: int, fault: Fault) -> tuple[Play, SimulatedDisk]:
    disk = SimulatedDisk(Random(io))
    disk.plan(io, fault)
    play = Play()
    with contextlib.suppress(NodeDead, OSError):
        await play.run(disk)
    return play, disk


@pytest.mark.parametrize("fault", KILLS)
@pytest.mark.parametrize("second", [kill, power_cut])
@pytest.mark.parametrize("first", [kill, power_cut])
async def test_what_was_synced_is_there_after_a_crash_at_every_io_and_what_was_seen_stays(
    fault: Fault,
    first: Callable[[SimulatedDisk], SimulatedDisk],
    second: Callable[[SimulatedDisk], SimulatedDisk],
) -> None:
    total = await count_ios()
    doubtful = 0
    for io in range(total):
        play, disk = await crashed(io, fault)
        assert disk.dead, f"I/O {io} was never reached"
        doubtful += play.appended > play.acknowledged
        disk = first(disk)
        seen = play.check(opened(disk)[1], f"I/O {io}")
        disk = second(disk)
        log, recovered = opened(disk)
        assert play.check(recovered, f"I/O {io}, again") == seen
        await log.close()
    assert total > 60
    assert doubtful > 10


@pytest.mark.parametrize("fault", ERRORS)
async def test_an_error_at_every_io_loses_nothing_that_was_acknowledged(fault: Fault) -> None:
    broken = 0
    # A full disk is asked again after a second of real time: only some I/Os are tried.
    for io in range(0, await count_ios(), 9 if fault is Fault.FULL else 1):
        play, disk = await crashed(io, fault)
        if play.log is None:
            # The start itself was refused; the next one finds an empty log.
            opened(kill(disk))
            continue
        broken += play.acknowledged < STEPS
        disk = kill(disk)
        seen = play.check(opened(disk)[1], f"I/O {io}")
        assert play.check(opened(power_cut(disk))[1], f"I/O {io}, again") == seen
    assert broken > 10 or fault is Fault.FULL


@pytest.mark.parametrize("fault", KILLS)
async def test_a_crash_at_every_io_of_a_start_after_a_crash_loses_nothing(fault: Fault) -> None:
    tried = 0
    for io in range(0, await count_ios(), 4):
        for start_io in range(0, 40, 3):
            play, disk = await crashed(io, Fault.KILL_TORN)
            disk = kill(disk)
            disk.plan(start_io, fault)
            try:
                opened(disk)
            except NodeDead:
                tried += 1
            disk = power_cut(disk) if start_io % 2 else kill(disk)
            seen = play.check(opened(disk)[1], f"I/O {io}, {start_io}")
            assert play.check(opened(power_cut(disk))[1], f"I/O {io}, {start_io}, again") == seen
    assert tried > 50


async def test_after_a_failed_sync_the_log_takes_and_confirms_nothing() -> None:
    disk = SimulatedDisk(Random(1))
    log, _ = opened(disk)
    log.set_incarnation(FSYNC, 1, 0)
    while not log.ready():
        await asyncio.sleep(0)
    log.append([record(FSYNC, 1)])
    for later in range(6):
        disk.plan(later, Fault.FAIL)
    with pytest.raises(OSError, match=r"."):
        await Play._sync(log)
    with pytest.raises(OSError, match="the log has failed"):
        log.append([record(FSYNC, 2)])
    with pytest.raises(OSError, match="the log has failed"):
        await Play._sync(log)
    await log.close()


async def _two_synced_blocks() -> SimulatedDisk:
    disk = SimulatedDisk(Random(3))
    log, _ = opened(disk)
    log.set_incarnation(FSYNC, 1, 0)
    for decree in (1, 2, 3):
        while not log.ready():
            await asyncio.sleep(0)
        log.append([record(FSYNC, decree)])
        await Play._sync(log)
    return kill(disk)


def _place_of(disk: SimulatedDisk, needle: bytes) -> tuple[Path, int]:
    for name in disk.list(DIRECTORY):
        place = disk.read_bytes(DIRECTORY / name).find(needle)
        if place >= 0:
            return DIRECTORY / name, place
    raise AssertionError(f"{needle!r} is in no segment")


async def test_a_flipped_byte_before_acknowledged_records_is_damage_that_names_the_loss() -> None:
    disk = await _two_synced_blocks()
    path, place = _place_of(disk, b"1-2" * 5)
    disk.flip(path, place)
    _, recovered = opened(disk)
    assert recovered.damage is not None
    said = recovered.damage.describe(FSYNC, 1)
    assert "2" in said
    # The report survives a restart, until somebody has dealt with it.
    log, again = opened(kill(disk))
    assert again.damage is not None
    log.settle_damage()


async def test_a_flipped_byte_behind_all_acknowledged_records_is_a_torn_tail() -> None:
    disk = await _two_synced_blocks()
    path, place = _place_of(disk, b"1-3" * 5)
    disk.flip(path, place)
    _, recovered = opened(disk)
    # Nothing behind it claims that it was durable, so it cannot be told from a torn write.
    assert recovered.damage is None
    assert [one.decree for one in recovered.records[FSYNC]] == [1, 2]
