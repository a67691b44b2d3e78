"""Log of a learned replica: what lies below its base is kept for pins, and is nobody's to flush."""

from random import Random
from typing import Final

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage.log_format import RECORD_BYTES
from pegaskv.storage.log_index import LogIndex
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.mutation_log import LogGone
from tests.simulation.disk import SimulatedDisk
from tests.storage.fakes import killed, opened, record, synced, until_ready

A: Final = Gpid(1, 0)
OPTIONS: Final = LogOptions(log_segment_bytes=8 * 1024)


@pytest.mark.parametrize("seed", range(30))
def test_records_on_both_sides_of_the_base_are_counted_by_their_side(seed: int) -> None:
    random = Random(seed)
    index = LogIndex(OPTIONS)
    index.open_segment(1)
    base = random.randrange(5, 30)
    pin = random.randrange(base)
    index.set_incarnation(A, 2, base, 0, {"dup": pin})
    index.strict = True
    above = position = number = 0
    decree = pin
    while decree < base + 20:
        block = []
        for _ in range(random.randrange(1, 6)):
            decree += 1
            one = record(A, decree, incarnation=2, size=random.randrange(10, 200))
            block.append(one)
            above += (RECORD_BYTES + len(one.payload)) * (decree > base)
        index.note(block, position, position + 1, 0)
        position += 1
        index.check()
        assert index.total_unflushed == above
        if random.random() < 0.2:
            index.close_segment(1 + number)
            number += 1
            index.open_segment(1 + number)
    assert index.held_runs(A, 1)[0].first == pin + 1
    assert any(run.last == base for run in index.held_runs(A, 1))
    index.mark_flushed(A, decree, 0)
    index.check()
    assert index.total_unflushed == 0
    # The pin alone keeps all of it.
    assert index.dead_segments() == []
    index.clear_pin(A, "dup")
    index.check()
    assert len(index.dead_segments()) == number


async def test_what_was_copied_for_a_pin_outlives_a_restart_and_nothing_of_before_does() -> None:
    disk = SimulatedDisk(Random(1))
    log, _ = opened(disk, OPTIONS)
    log.set_incarnation(A, 1, 0)
    for decree in range(1, 40):
        await until_ready(log, disk)
        log.append([record(A, decree, size=300)])
    log.set_incarnation(A, 2, 20, pins={"dup": 10})
    assert log.pins(A)["dup"].decree == 10
    for decree in range(11, 31):
        await until_ready(log, disk)
        log.append([record(A, decree, ballot=3, incarnation=2, size=300)])
        await log.collect()
    await synced(log)
    expected = list(range(11, 31))
    assert [one.decree for one in log.read(A, 11, 1 << 20)] == expected
    disk = killed(disk)
    log, recovered = opened(disk, OPTIONS, wanted=lambda gpid, number, decree: number == 2)
    assert {one.ballot for one in recovered.records[A]} == {3}
    log.set_incarnation(A, 2, 20)
    log.set_pin(A, "dup", 10)
    assert [one.decree for one in log.read(A, 11, 1 << 20)] == expected
    with pytest.raises(LogGone):
        log.set_pin(A, "older", 9)
    await log.close()
