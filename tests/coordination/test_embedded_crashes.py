"""A fault at every single I/O of the embedded store, and a second crash right behind the first."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from pegaskv.coordination.embedded import EmbeddedStore
from pegaskv.coordination.store import StoreUnavailable
from tests.coordination.inline_worker import InlineWorker
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.errors import NodeDead

ROOT = Path("/data/meta")
COMMITS = 9

State = dict[str, bytes]


def kill(disk: SimulatedDisk) -> SimulatedDisk:
    disk.kill()
    return disk.reborn()


def power_cut(disk: SimulatedDisk) -> SimulatedDisk:
    disk.power_cut()
    return disk.reborn()


async def opened(disk: SimulatedDisk) -> EmbeddedStore:
    # Two or three commits fill a file, so that the change to the next one is tried too.
    return await EmbeddedStore.open(disk, ROOT, worker=InlineWorker(), compact_bytes=260)


async def state(store: EmbeddedStore) -> State:
    return {key: one.value for key, one in (await store.list(""))[0].items()}


def history() -> list[tuple[dict[str, bytes], list[str]]]:
    """Commits of several keys, some of which delete."""
    return [
        (
            {"last": b"%d" % number, f"k/{number}": bytes(5 * number)},
            [f"k/{number - 2}"] if number % 3 == 2 else [],
        )
        for number in range(COMMITS)
    ]


def states() -> list[State]:
    """What the store holds after 0, 1, ... commits."""
    now: State = {}
    result = [dict(now)]
    for puts, deletes in history():
        now.update(puts)
        for key in deletes:
            now.pop(key, None)
        result.append(dict(now))
    return result


class Play:
    """Opens the store and commits the history, as far as the disk lets it."""

    def __init__(self) -> None:
        # Commits that were acknowledged, and those that were begun.
        self.done = 0
        self.begun = 0
        self.store: EmbeddedStore | None = None

    async def run(self, disk: SimulatedDisk) -> None:
        self.store = await opened(disk)
        await self.go_on()
        await self.store.close()

    async def go_on(self) -> None:
        assert self.store is not None
        for puts, deletes in history()[self.done :]:
            self.begun = self.done + 1
            await self.store.commit(puts=puts, deletes=deletes)
            self.done += 1

    def allowed(self) -> list[State]:
        return states()[self.done : self.begun + 1] or [{}]


async def count_ios() -> int:
    disk = SimulatedDisk(Random(0))
    play = Play()
    await play.run(disk)
    assert play.store is not None
    assert play.store.compactions >= 2, "no change of files was tried"
    return disk.ios


@pytest.mark.parametrize("fault", [Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_TORN])
@pytest.mark.parametrize("second", [kill, power_cut])
@pytest.mark.parametrize("first", [kill, power_cut])
async def test_what_was_acknowledged_is_there_after_a_crash_at_every_io(
    fault: Fault,
    first: Callable[[SimulatedDisk], SimulatedDisk],
    second: Callable[[SimulatedDisk], SimulatedDisk],
) -> None:
    crashes = uncertain = 0
    for io in range(await count_ios()):
        disk = SimulatedDisk(Random(io))
        disk.plan(io, fault)
        play = Play()
        with pytest.raises(NodeDead):
            await play.run(disk)
        crashes += 1
        uncertain += play.begun > play.done
        disk = first(disk)
        seen = await state(await opened(disk))
        assert seen in play.allowed(), f"I/O {io}"
        # What was shown once stays, whatever the page cache made it look like.
        disk = second(disk)
        store = await opened(disk)
        assert await state(store) == seen, f"I/O {io}"
        await store.commit(puts={"more": b"1"})
        assert await state(await opened(power_cut(disk))) == {**seen, "more": b"1"}
    assert crashes > 30
    assert uncertain > 10


@pytest.mark.parametrize("again", [Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_TORN])
async def test_a_crash_at_every_io_of_a_start_after_a_crash_loses_nothing(again: Fault) -> None:
    tried = 0
    total = await count_ios()
    for io in range(0, total, 3):
        for start_io in range(12):
            disk = SimulatedDisk(Random(io * 100 + start_io))
            disk.plan(io, Fault.KILL_TORN)
            play = Play()
            with pytest.raises(NodeDead):
                await play.run(disk)
            disk = kill(disk)
            disk.plan(start_io, again)
            try:
                store = await opened(disk)
                await store.close()
            except NodeDead:
                tried += 1
            disk = power_cut(disk)
            seen = await state(await opened(disk))
            assert seen in play.allowed(), f"I/O {io}, then {start_io}"
            assert await state(await opened(power_cut(disk))) == seen
    assert tried > 50


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.FULL, Fault.TEAR])
async def test_after_an_error_at_every_io_the_store_recovers_and_goes_on(fault: Fault) -> None:
    failed = survived = 0
    for io in range(await count_ios()):
        disk = SimulatedDisk(Random(io))
        disk.plan(io, fault)
        play = Play()
        try:
            await play.run(disk)
        except StoreUnavailable:
            failed += 1
            if play.store is None:
                play.store = await opened(disk)
            else:
                await play.store.recover()
            seen = await state(play.store)
            assert seen in play.allowed(), f"I/O {io}"
            play.done = states().index(seen)
            await play.go_on()
        else:
            survived += 1
        disk = power_cut(disk)
        assert await state(await opened(disk)) == states()[-1], f"I/O {io}"
    assert failed > 15
    # Errors while a snapshot or the last record is written cost nothing.
    assert survived > 3


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.FULL, Fault.TEAR])
async def test_power_that_fails_behind_an_error_loses_nothing_acknowledged(fault: Fault) -> None:
    failed = 0
    for io in range(await count_ios()):
        disk = SimulatedDisk(Random(io))
        disk.plan(io, fault)
        play = Play()
        try:
            await play.run(disk)
        except StoreUnavailable:
            failed += 1
        seen = await state(await opened(power_cut(disk)))
        assert seen in play.allowed(), f"I/O {io}"
    assert failed > 15


async def test_an_error_at_every_read_of_a_start_is_an_error_and_no_loss() -> None:
    disk = SimulatedDisk(Random(1))
    play = Play()
    await play.run(disk)
    reads = disk.reads
    await opened(disk)
    assert disk.reads > reads
    failed = 0
    for read in range(disk.reads - reads):
        disk = power_cut(disk)
        disk.plan_read(read)
        try:
            # Only looking for old files to remove may fail without harm.
            await opened(disk)
        except StoreUnavailable:
            failed += 1
        assert not disk.planned
        assert await state(await opened(disk)) == states()[-1]
    assert failed >= 2
