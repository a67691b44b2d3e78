"""The log as a duplication uses it: pins that hold, reads that go on, nothing that may vanish."""

import asyncio
from random import Random
from typing import Final

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.mutation_log import LogGone, MutationLog
from tests.simulation.disk import SimulatedDisk
from tests.storage.fakes import LOG, FakeClock, InlineWorker, opened, record, synced, until_ready

A: Final = Gpid(1, 0)
B: Final = Gpid(1, 1)
OPTIONS: Final = LogOptions(log_segment_bytes=8 * 1024)


async def write(log: MutationLog, disk: SimulatedDisk, decrees: range, *gpids: Gpid) -> None:
    for decree in decrees:
        await until_ready(log, disk)
        log.append([record(gpid, decree, size=400) for gpid in gpids or (A,)])
    await synced(log)


class Shipper:
    """Reads on from where it was and moves its pin, slower than others write."""

    def __init__(self, log: MutationLog, worker: InlineWorker) -> None:
        self.log = log
        self.worker = worker
        self.shipped = 0

    def read(self) -> list[int]:
        return [one.decree for one in self.log.read(A, self.shipped + 1, 1_500)]

    async def run(self, last: int) -> None:
        while self.shipped < last:
            decrees = await self.worker.run(self.read)
            following = range(self.shipped + 1, self.shipped + 1 + len(decrees))
            assert decrees == list(following)
            self.shipped += len(decrees)
            self.log.set_pin(A, "dup", self.shipped)
            for _ in range(40):
                await asyncio.sleep(0)


async def test_a_reader_meets_every_decree_while_segments_are_switched_and_collected() -> None:
    disk = SimulatedDisk(Random(1))
    worker = InlineWorker()
    log, _ = opened(disk, OPTIONS, worker=worker)
    for gpid in (A, B):
        log.set_incarnation(gpid, 1, 0)
    log.set_pin(A, "dup", 0)
    shipper = Shipper(log, worker)
    shipping = asyncio.get_running_loop().create_task(shipper.run(300))
    cold: set[str] = set()
    for decree in range(1, 301):
        await until_ready(log, disk)
        log.append([record(A, decree, size=300), record(B, decree, size=900)])
        if decree % 10 == 0:
            await synced(log)
            log.mark_flushed(A, decree)
            log.mark_flushed(B, decree)
            await log.collect()
            cold |= {name for name in disk.list(LOG) if name.endswith(".cold")}
    assert 0 < shipper.shipped < 300
    await shipping
    assert len(cold) > 3
    await log.close()


async def test_nothing_above_the_commit_point_is_read_by_who_says_where_it_is() -> None:
    disk = SimulatedDisk(Random(2))
    log, _ = opened(disk, OPTIONS)
    log.set_incarnation(A, 1, 0)
    await write(log, disk, range(1, 41))
    await until_ready(log, disk)
    log.append([record(A, 41)])
    assert [one.decree for one in log.read(A, 30, 1 << 20)][-1] == 41
    assert [one.decree for one in log.read(A, 30, 1 << 20, through=40)] == list(range(30, 41))
    assert log.read(A, 41, 1 << 20, through=40) == []
    # One record at least, however few bytes are wanted, and never one too far.
    assert [one.decree for one in log.read(A, 40, 1, through=40)] == [40]
    await log.close()


async def test_what_was_appended_is_durable_when_the_synced_position_has_come_there() -> None:
    disk = SimulatedDisk(Random(3))
    log, _ = opened(disk, OPTIONS)
    log.set_incarnation(A, 1, 0)
    where: dict[int, int] = {}
    for decree in range(1, 60):
        await until_ready(log, disk)
        log.append([record(A, decree, size=400)])
        where[decree] = log.appended_position
        if decree % 7 == 0:
            await synced(log)
            assert log.synced_position >= where[decree]
    assert list(where.values()) == sorted(set(where.values()))
    durable = [decree for decree, position in where.items() if position <= log.synced_position]
    assert 40 < len(durable) < 59
    disk.power_cut()
    _, recovered = opened(disk.reborn(), OPTIONS)
    found = {one.decree for one in recovered.records[A]}
    assert set(durable) <= found


async def test_a_pin_that_is_set_at_the_start_holds_what_a_duplication_has_not_confirmed() -> None:
    disk = SimulatedDisk(Random(4))
    clock = FakeClock()
    log, _ = opened(disk, OPTIONS, clock=clock)
    log.set_incarnation(A, 1, 0)
    log.set_pin(A, "dup", 12)
    await write(log, disk, range(1, 61))
    log.mark_flushed(A, 60)
    await log.collect()
    held = log.held_bytes(A, "dup")
    assert held > 47 * 400
    await log.close()
    disk.kill()
    disk = disk.reborn()

    log, _ = opened(disk, OPTIONS, wanted=lambda *_: False, clock=clock)
    log.set_incarnation(A, 1, 60)
    clock.now_ms = 5_000
    log.set_pin(A, "dup", 12)
    await log.collect()
    assert [one.decree for one in log.read(A, 13, 1 << 20)] == list(range(13, 61))
    assert log.held_bytes(A, "dup") == pytest.approx(held, rel=0.05)
    assert log.pins(A)["dup"].moved_ms == 5_000
    log.clear_pin(A, "dup")
    assert log.held_bytes(A, "dup") == 0
    await log.collect()
    with pytest.raises(LogGone, match="lacks decrees"):
        log.set_pin(A, "dup", 12)
    await log.close()
