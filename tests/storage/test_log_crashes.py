"""Four partitions in one log: a crash at every I/O of a life, of its second start, and of a third.

The script has what a server does: blocks of several partitions, syncs beside appends, switches,
flushes, a pin, collections that copy, a clean stop and a start. `os` records are never waited for.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Final

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage import log_spare
from pegaskv.storage.log_format import LogRecord
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.log_recovery import RecoveredLog
from pegaskv.storage.mutation_log import MutationLog, valid_history
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.errors import NodeDead
from tests.storage.fakes import LOG, killed, opened, power_cut, record, synced, until_ready

FSYNC: Final = [Gpid(1, 0), Gpid(1, 1)]
OS: Final = [Gpid(2, 0)]
PINNED: Final = Gpid(3, 0)
GPIDS: Final = [*FSYNC, *OS, PINNED]
OPTIONS: Final = LogOptions(log_segment_bytes=13 * 1024)
STEPS: Final = 26
KILLS: Final = [Fault.KILL_BEFORE, Fault.KILL_TORN, Fault.KILL_AFTER]

Block = list[LogRecord]


@dataclass
class Play:
    """What was tried, what returned, and what was promised."""

    # Every block in its order; the last `tried - written` of them did not return.
    blocks: list[Block] = field(default_factory=list)
    written: int = 0
    # How many blocks a sync has covered.
    acknowledged: int = 0
    flushed: dict[Gpid, int] = field(default_factory=lambda: dict.fromkeys(GPIDS, 0))
    decrees: dict[Gpid, int] = field(default_factory=lambda: dict.fromkeys(GPIDS, 0))
    waiting: asyncio.Future[None] | None = None
    covered: int = 0
    log: MutationLog | None = None
    colds: int = 0
    # An append or a sync has failed.
    broken: bool = False

    async def run(self, disk: SimulatedDisk, steps: int = STEPS) -> None:
        await self.life(disk, range(1, steps // 2))
        await self.life(disk, range(steps // 2, steps + 1))

    async def life(self, disk: SimulatedDisk, steps: range) -> None:
        self.log = None
        log, recovered = opened(disk, OPTIONS)
        self.log = log
        self.check(recovered, all_written=True)
        for gpid in GPIDS:
            log.set_incarnation(gpid, 1, self.flushed[gpid])
        log.set_pin(PINNED, "duplication", 0)
        for step in steps:
            await self.append(log, disk, step)
            if step % 5 == 4:
                # Behind what the engines hold; the pin keeps its partition's records.
                for gpid in GPIDS:
                    self.flushed[gpid] = max(self.decrees[gpid] - 2, 0)
                    log.mark_flushed(gpid, self.flushed[gpid])
                await log.collect()
                assert len(log.read(PINNED, 1, 1 << 20)) == self.decrees[PINNED]
        await self.wait()
        self.colds += sum(name.endswith(".cold") for name in disk.list(LOG))
        await log.close()

    async def append(self, log: MutationLog, disk: SimulatedDisk, step: int) -> None:
        random = Random(step)
        block: Block = []
        for gpid in GPIDS:
            for _ in range(random.choice((0, 1, 2))):
                self.decrees[gpid] += 1
                block.append(record(gpid, self.decrees[gpid], ballot=1 + step // 9, size=300))
        if not block:
            return
        await until_ready(log, disk)
        self.blocks.append(block)
        with self.noticing():
            log.append(block)
        self.written += 1
        await self.wait()
        if any(one[:2] in FSYNC for one in block):
            # A sync is under way while the next block is written.
            self.covered = self.written
            self.waiting = synced(log)

    async def wait(self) -> None:
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            with self.noticing():
                await waiting
            self.acknowledged = self.covered

    @contextlib.contextmanager
    def noticing(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.broken = True
            raise

    def check(self, recovered: RecoveredLog, *, all_written: bool) -> list[list[int]]:
        """Compare what a start found with what was promised; return the decrees it saw."""
        assert recovered.damage is None
        seen = []
        there = set()
        for gpid in GPIDS:
            own = [one for block in self.blocks for one in block if one[:2] == gpid]
            history = valid_history(recovered.records.get(gpid, []))
            above = [one for one in history if one.decree > self.flushed[gpid]]
            wanted = [one for one in own if one.decree > self.flushed[gpid]]
            # One for each decree, in their order, with every byte, and none that never was.
            assert above == wanted[: len(above)]
            assert all(own[one.decree - 1] == one for one in history)
            there |= set(history)
            seen.append([one.decree for one in above])
        # Across partitions too what is there is a beginning of what was written, in whole blocks.
        present = [
            all(one in there or one.decree <= self.flushed[Gpid(*one[:2])] for one in block)
            for block in self.blocks
        ]
        count = present.index(False) if False in present else len(present)
        for block in self.blocks[count:]:
            assert not any(
                one in there and one.decree > self.flushed[Gpid(*one[:2])] for one in block
            )
        promised = self.written if all_written else self.acknowledged
        assert count >= promised, f"{count} of {promised} blocks are there"
        return seen


async def ios_of_a_whole_play() -> int:
    disk = SimulatedDisk(Random(0))
    play = Play()
    await play.run(disk)
    assert play.acknowledged == play.written == len(play.blocks)
    assert play.colds > 0, "nothing was copied"
    return disk.ios


async def crashed(io: int, fault: Fault, *, seed: int = 0) -> tuple[Play, SimulatedDisk]:
    disk = SimulatedDisk(Random(io * 7 + seed))
    disk.plan(io, fault)
    play = Play()
    with contextlib.suppress(NodeDead, OSError):
        await play.run(disk)
    assert disk.planned == 0, f"I/O {io} was never reached"
    return play, disk


async def live_on(play: Play, log: MutationLog, disk: SimulatedDisk, seen: list[list[int]]) -> None:
    """Go on where the recovered log ends: what was not found never was."""
    play.waiting = None
    play.blocks = [
        kept for block in play.blocks if (kept := [one for one in block if keeps(one, play, seen)])
    ]
    play.written = play.acknowledged = len(play.blocks)
    for place, gpid in enumerate(GPIDS):
        log.set_incarnation(gpid, 1, play.flushed[gpid])
        play.decrees[gpid] = max([play.flushed[gpid], *seen[place]])
    await play.append(log, disk, 30)
    await play.wait()


def keeps(one: LogRecord, play: Play, seen: list[list[int]]) -> bool:
    gpid = Gpid(*one[:2])
    return one.decree <= play.flushed[gpid] or one.decree in seen[GPIDS.index(gpid)]


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("fault", KILLS)
async def test_a_crash_at_every_io_keeps_what_was_promised_and_what_was_read(
    fault: Fault, power: bool
) -> None:
    total = await ios_of_a_whole_play()
    doubtful = 0
    # Every other one; the cases take turns with those that are left out.
    for io in range(power, total, 2):
        play, disk = await crashed(io, fault, seed=power)
        assert disk.dead
        doubtful += play.written > play.acknowledged
        # A killed process leaves even what was never synced.
        disk = power_cut(disk) if power else killed(disk)
        log, recovered = opened(disk, OPTIONS)
        seen = play.check(recovered, all_written=not power)
        if io % 4 > 1:
            await live_on(play, log, disk, seen)
        disk = power_cut(disk)
        again = play.check(opened(disk, OPTIONS)[1], all_written=io % 4 > 1)
        if io % 4 < 2:
            assert again == seen
    assert total > 100
    assert doubtful > 10


@pytest.mark.parametrize("fault", [*KILLS, Fault.FAIL, Fault.TEAR, Fault.FULL])
async def test_a_start_that_ends_at_any_of_its_ios_loses_nothing(fault: Fault) -> None:
    total = await ios_of_a_whole_play()
    stopped = 0
    for io in range(9, total, 47):
        for start_io in range(100):
            play, disk = await crashed(io, Fault.KILL_TORN)
            disk = killed(disk)
            disk.plan(start_io, fault)
            try:
                opened(disk, OPTIONS)
            except (NodeDead, OSError):
                stopped += 1
            if disk.planned:
                assert start_io > 5
                break
            disk = power_cut(disk) if start_io % 2 else killed(disk)
            # Nothing was shown, so what was not acknowledged may be gone by now.
            _, recovered = opened(disk, OPTIONS)
            seen = play.check(recovered, all_written=not start_io % 2)
            assert play.check(opened(power_cut(disk), OPTIONS)[1], all_written=False) == seen
        else:
            pytest.fail("a start has no end")
    assert stopped > 10


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.TEAR, Fault.FULL])
async def test_after_a_failed_append_or_sync_nothing_is_taken_and_nothing_confirmed(
    fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is room again at once, and the log looks at once.
    monkeypatch.setattr(log_spare, "_FULL_PAUSE_MS", 0)
    broken = finished = 0
    for io in range(await ios_of_a_whole_play()):
        disk = SimulatedDisk(Random(io))
        disk.plan(io, fault)
        play = Play()
        with contextlib.suppress(OSError):
            await play.run(disk)
        acknowledged = play.acknowledged
        log = play.log
        if play.broken:
            assert log is not None
            broken += 1
            if play.waiting is not None:
                with contextlib.suppress(OSError):
                    await play.waiting
            assert log.ready(), "nobody would meet the error"
            for _ in range(2):
                with pytest.raises(OSError, match="the log has failed"):
                    log.append([record(FSYNC[0], 99)])
                with pytest.raises(OSError, match="the log has failed"):
                    await synced(log)
            await log.close()
        disk = power_cut(disk)
        play.check(opened(disk, OPTIONS)[1], all_written=False)
        assert play.acknowledged == acknowledged
        finished += play.acknowledged == len(play.blocks) and not play.broken
    assert broken > 20
    assert finished > 20 or fault is not Fault.FULL
