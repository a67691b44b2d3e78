"""How the log goes from one segment to the next, and what a crash leaves of that."""

import asyncio
import logging
from collections.abc import Callable
from random import Random
from typing import Any, Final

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.mutation_log import MutationLog, RecoveredLog
from tests.simulation.disk import Fault, SimulatedDisk
from tests.storage.fakes import (
    LOG,
    InlineWorker,
    killed,
    opened,
    power_cut,
    record,
    synced,
    until_ready,
)

A: Final = Gpid(1, 0)
KIB: Final = 1024
FIRST: Final = "0000000001.log"
# Given up behind 112 KiB, and behind 120 KiB in any case; 512 bytes are little to sync.
OPTIONS: Final = LogOptions(log_segment_bytes=128 * KIB)


class Logged:
    """A log, with a worker for its syncs and one for the rest."""

    def __init__(self, disk: SimulatedDisk | None = None) -> None:
        self.disk = disk or SimulatedDisk(Random(1))
        self.worker, self.background = InlineWorker(), InlineWorker()
        self.log: MutationLog
        self.recovered: RecoveredLog
        self.log, self.recovered = opened(
            self.disk, OPTIONS, worker=self.worker, background=self.background
        )
        self.log.set_incarnation(A, 1, 0)
        self.decree = len(self.recovered.records.get(A, []))

    def append(self, size: int = KIB) -> None:
        self.decree += 1
        self.log.append([record(A, self.decree, size=size)])

    @property
    def offset(self) -> int:
        """How long the segment is, in KiB."""
        return (self.log.appended_position & 0xFFFFFFFF) // KIB

    def fill(self, kib: int) -> None:
        """Append until the segment is so long."""
        while self.offset < kib:
            self.append()

    def sizes(self) -> list[int]:
        """The sizes of the segments that took records, in KiB."""
        return [
            len(self.disk.read_bytes(LOG / name)) // KIB
            for name in self.disk.list(LOG)
            if name.endswith(".log")
        ]

    async def prepared(self) -> "Logged":
        """Return when the next segment has been made."""
        self.append()
        await self.until(lambda: self.sizes() == [128, 128])
        await a_few_turns()
        return self

    async def until(self, condition: Callable[[], Any]) -> None:
        for _ in range(1_000):
            if condition():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never came true")


async def a_few_turns() -> None:
    """Let workers call back."""
    for _ in range(5):
        await asyncio.sleep(0)


async def again(disk: SimulatedDisk, count: int) -> Logged:
    """Open the log that is on the disk, and find all `count` records."""
    logged = Logged(disk)
    assert logged.recovered.damage is None
    assert [one.decree for one in logged.recovered.records[A]] == [*range(1, count + 1)]
    return logged


async def test_records_go_on_into_a_segment_while_its_most_is_synced() -> None:
    logged = Logged()
    logged.worker.held = True
    logged.fill(112)
    # The end is near: the sync is under way, the segment takes more.
    assert logged.log.ready()
    assert logged.worker.kept == 1
    first = logged.log.appended_position >> 32
    logged.fill(118)
    assert logged.log.ready()
    assert logged.worker.kept == 1
    logged.worker.release()
    await logged.until(lambda: logged.log.appended_position >> 32 > first)
    logged.append()
    await synced(logged.log)
    await again(power_cut(logged.disk), logged.decree)


async def test_with_little_to_sync_the_switch_comes_at_once() -> None:
    logged = Logged()
    logged.fill(109)
    while True:
        await synced(logged.log)
        logged.worker.held = True
        logged.append(100)
        if not logged.log.ready():
            break
        assert logged.worker.kept == 0
        logged.worker.release()
    # One thing was asked of the disk: to seal it.
    assert logged.worker.kept == 1
    logged.worker.release()
    await until_ready(logged.log, logged.disk)


async def test_a_segment_that_fills_up_before_its_most_is_synced_is_given_up() -> None:
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
    logged = Logged()
    logged.worker.held = True
    logged.fill(118)
    assert logged.log.ready()
    logged.append(2 * KIB)
    assert not logged.log.ready()
    assert logged.worker.kept == 2
    logged.worker.release()
    await until_ready(logged.log, logged.disk)
    logged.append()
    await synced(logged.log)
    assert failed == []
    await again(power_cut(logged.disk), logged.decree)


async def test_who_waits_for_a_sync_meanwhile_gets_it() -> None:
    logged = Logged()
    logged.worker.held = True
    logged.fill(112)
    waiting = synced(logged.log)
    logged.append()
    logged.worker.release()
    await waiting
    await synced(logged.log)
    assert logged.log.synced_position >= logged.log.appended_position
    await again(power_cut(logged.disk), logged.decree)


async def test_a_log_that_is_closed_meanwhile_has_all() -> None:
    logged = Logged()
    logged.fill(113)
    await logged.log.close()
    await again(power_cut(logged.disk), logged.decree)


async def test_a_failed_sync_of_the_most_breaks_the_log() -> None:
    logged = await Logged().prepared()
    logged.worker.held = True
    logged.fill(112)
    logged.disk.plan(0, Fault.FAIL)
    logged.worker.release()
    await logged.until(lambda: not logged.disk.planned)
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="the log has failed"):
        logged.append()


async def sealed() -> Logged:
    """Return a log whose first segment is sealed, and not cut behind its footer."""
    logged = await Logged().prepared()
    logged.background.held = True
    logged.fill(112)
    await logged.until(lambda: logged.offset < 112)
    logged.append()
    await synced(logged.log)
    assert logged.sizes()[0] == 128
    return logged


async def test_a_sealed_segment_is_cut_in_the_background_and_collected_only_then() -> None:
    logged = await sealed()
    logged.log.mark_flushed(A, logged.decree)
    await logged.log.collect()
    assert logged.sizes()[0] == 128
    logged.background.release()
    await logged.until(lambda: logged.sizes()[0] < 128)
    await a_few_turns()
    await logged.log.collect()
    assert FIRST not in logged.disk.list(LOG)


@pytest.mark.parametrize("crash", [killed, power_cut])
async def test_a_start_cuts_what_was_sealed_and_copies_none_of_it(
    crash: Callable[[SimulatedDisk], SimulatedDisk],
) -> None:
    logged = await sealed()
    disk = crash(logged.disk)
    found = await again(disk, logged.decree)
    [cold] = [name for name in disk.list(LOG) if name.endswith(".cold")]
    # The last one is copied, since nobody knows whether it is durable.
    assert len(disk.read_bytes(LOG / cold)) < 16 * KIB
    assert 112 < found.sizes()[0] < 128
    assert [one.decree for one in found.log.read(A, 1, 1 << 30)] == [*range(1, logged.decree + 1)]


async def test_a_segment_that_cannot_be_cut_keeps_its_room_and_the_log_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logged = await sealed()
    logged.disk.plan(0, Fault.FAIL)
    with caplog.at_level(logging.WARNING):
        logged.background.release()
        await logged.until(lambda: "keeps its unused room" in caplog.text)
    assert logged.sizes()[0] == 128
    logged.append()
    await synced(logged.log)
    # Once all of it is dead it goes like any other.
    logged.log.mark_flushed(A, logged.decree)
    await logged.log.collect()
    assert FIRST not in logged.disk.list(LOG)
