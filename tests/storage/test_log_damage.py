"""Damage and torn tails: who lost what is named, kept over restarts, and settled once."""

from random import Random
from typing import Final

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage.log_damage import Damage, DamageReport, Loss, decode_reports, encode_reports
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.mutation_log import RecoveredLog, valid_history
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.errors import NodeDead
from tests.storage.fakes import LOG, everything, killed, opened, power_cut, record, synced

A: Final = Gpid(1, 0)
B: Final = Gpid(2, 0)
OPTIONS: Final = LogOptions(log_segment_bytes=64 * 1024)
BLOCKS: Final = 8


async def written(*, clean: bool = False) -> SimulatedDisk:
    """Eight blocks, each synced before the next: A in all of them, B in the first four."""
    disk = SimulatedDisk(Random(5))
    log, _ = opened(disk, OPTIONS)
    log.set_incarnation(A, 1, 0)
    log.set_incarnation(B, 1, 0)
    for decree in range(1, BLOCKS + 1):
        block = [record(A, decree)]
        if decree <= BLOCKS // 2:
            block.append(record(B, decree))
        log.append(block)
        await synced(log)
    if clean:
        await log.close()
    return killed(disk)


def damage_record(disk: SimulatedDisk, gpid: Gpid, decree: int) -> None:
    for name in disk.list(LOG):
        place = disk.read_bytes(LOG / name).find(record(gpid, decree).payload)
        if place >= 0:
            disk.flip(LOG / name, place + 3)
            return
    pytest.fail("no such record")


def decrees(recovered: RecoveredLog, gpid: Gpid) -> list[int]:
    return [one.decree for one in valid_history(recovered.records.get(gpid, []))]


@pytest.mark.parametrize("decree", range(1, BLOCKS))
async def test_a_bad_byte_before_acknowledged_records_names_the_partitions_and_decrees(
    decree: int,
) -> None:
    disk = await written()
    damage_record(disk, A, decree)
    _, recovered = opened(disk, OPTIONS)
    assert recovered.damage is not None
    # Before the first that can be read there may have been any.
    first = decree if decree > 1 else 0
    assert recovered.damage.loss(A, 1) == Loss(first, decree)
    # What can be read is there, on both sides.
    assert decrees(recovered, A) == [each for each in range(1, BLOCKS + 1) if each != decree]
    lost = recovered.damage.loss(B, 1)
    if decree < 4:
        assert lost == Loss(first, decree)
    else:
        # Nothing behind the gap proves that B had no more.
        assert lost is not None
        assert lost.last is None
        assert lost.first <= decree
    aside = [name for name in disk.list(LOG) if name.endswith(".damaged")]
    assert len(aside) == 1
    assert aside[0] in recovered.damage.describe(A, 1)
    said = f"decree {decree} may" if first else f"decrees up to {decree} may"
    assert said in recovered.damage.describe(A, 1)
    # Of a partition that is nowhere else the gap may have held anything.
    assert recovered.damage.loss(Gpid(9, 9), 1) == Loss(0, None)


async def test_a_footer_says_exactly_who_lost_what() -> None:
    disk = await written(clean=True)
    damage_record(disk, A, 6)
    _, recovered = opened(disk, OPTIONS)
    assert recovered.damage is not None
    assert recovered.damage.loss(A, 1) == Loss(6, 6)
    assert recovered.damage.loss(B, 1) is None
    assert recovered.damage.loss(Gpid(9, 9), 1) is None
    assert recovered.damage.describe(B, 1) == ""
    assert decrees(recovered, B) == [1, 2, 3, 4]


async def test_without_acknowledged_records_behind_it_a_bad_byte_is_a_torn_tail() -> None:
    disk = await written()
    damage_record(disk, A, BLOCKS)
    _, recovered = opened(disk, OPTIONS)
    assert recovered.damage is None
    assert decrees(recovered, A) == list(range(1, BLOCKS))
    assert not any(name.endswith(".damaged") for name in disk.list(LOG))


async def test_behind_a_clean_stop_the_last_block_is_no_tail_whatever_bit_is_flipped() -> None:
    for byte in range(28):
        for bit in range(8):
            disk = await written(clean=True)
            [name] = [n for n in disk.list(LOG) if record(A, 8).payload in disk.read_bytes(LOG / n)]
            place = disk.read_bytes(LOG / name).rfind(b"PKVB")
            disk.flip(LOG / name, place + byte, 1 << bit)
            _, recovered = opened(disk, OPTIONS)
            assert recovered.damage is not None, f"byte {byte}, bit {bit}"
            assert recovered.damage.loss(A, 1) == Loss(8, 8)
            assert decrees(recovered, A) == list(range(1, BLOCKS))


async def test_what_the_replica_holds_already_is_no_loss() -> None:
    disk = await written()
    damage_record(disk, A, 3)

    def wanted(gpid: Gpid, incarnation: int, decree: int) -> bool:
        return decree > 5

    _, recovered = opened(disk, OPTIONS, wanted=wanted)
    assert recovered.damage is not None
    assert recovered.damage.loss(A, 1) is None
    assert recovered.damage.loss(B, 1) is None
    assert decrees(recovered, A) == [6, 7, 8]


async def test_the_report_survives_restarts_and_power_cuts_until_it_is_settled() -> None:
    disk = await written()
    damage_record(disk, A, 3)
    _, recovered = opened(disk, OPTIONS)
    first = recovered.damage
    assert first is not None
    for _ in range(3):
        disk = killed(disk)
        log, recovered = opened(disk, OPTIONS)
        assert recovered.damage == first
        disk = power_cut(disk)
    log, recovered = opened(disk, OPTIONS)
    assert recovered.damage == first
    log.settle_damage()
    _, recovered = opened(power_cut(disk), OPTIONS)
    assert recovered.damage is None
    assert decrees(recovered, A) == [1, 2, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("fault", [Fault.KILL_BEFORE, Fault.KILL_TORN, Fault.KILL_AFTER])
@pytest.mark.parametrize("clean", [False, True])
async def test_a_crash_at_any_io_of_the_start_that_finds_damage_forgets_none_of_it(
    fault: Fault, clean: bool
) -> None:
    stopped = 0
    for io in range(100):
        disk = await written(clean=clean)
        damage_record(disk, A, 3)
        disk.plan(io, fault)
        try:
            opened(disk, OPTIONS)
        except NodeDead:
            stopped += 1
        if disk.planned:
            break
        disk = power_cut(disk)
        for _ in range(2):
            _, recovered = opened(disk, OPTIONS)
            assert recovered.damage is not None, f"I/O {io}"
            assert recovered.damage.loss(A, 1) == Loss(3, 3), f"I/O {io}"
            assert recovered.damage.loss(B, 1) == Loss(3, 3)
            assert decrees(recovered, A) == [1, 2, 4, 5, 6, 7, 8]
            disk = power_cut(disk)
    assert stopped > 8


async def test_an_unreadable_report_counts_for_everybody() -> None:
    disk = await written()
    damage_record(disk, A, 3)
    opened(disk, OPTIONS)
    disk = killed(disk)
    disk.write_atomic(LOG / "damage.json", b"{")
    _, recovered = opened(disk, OPTIONS)
    assert recovered.damage is not None
    assert recovered.damage.loss(B, 1) == Loss(0, None)


def test_reports_are_read_as_they_were_written_and_add_up() -> None:
    one = DamageReport(("a",), {(1, 0, 1): Loss(3, 4)}, frozenset({(2, 0, 1)}), others_too=True)
    two = DamageReport(("b",), {(1, 0, 1): Loss(9, None)}, frozenset(), others_too=False)
    assert decode_reports(encode_reports([one, two])) == (one, two)
    both = Damage((one, two))
    assert both.loss(A, 1) == Loss(3, None)
    assert both.loss(B, 1) is None
    assert both.loss(A, 2) == Loss(0, None)
    assert both.still_wanted(everything) == both
    # Nobody wants what is named; but the first may have hit others.
    left = both.still_wanted(lambda _gpid, _incarnation, _decree: False)
    assert [report.files for report in left.reports] == [("a",)]
    assert left.loss(A, 1) is None
