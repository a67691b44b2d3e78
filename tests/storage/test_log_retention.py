"""What the index of the log keeps, and what it wants flushed."""

import random
from collections.abc import Iterator

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage.log_format import LogRecord
from pegaskv.storage.log_index import LogGone, LogIndex, Segment
from pegaskv.storage.log_options import LogOptions

GPID = Gpid(1, 0)
OPTIONS = LogOptions(
    log_segment_bytes=64 * 1024,
    flush_partition_bytes=4 * 1024,
    flush_total_bytes=16 * 1024,
    flush_age_ms=1_000,
)


def record(decree: int, *, index: int = 0, incarnation: int = 1) -> LogRecord:
    return LogRecord(1, index, incarnation, 1, decree, decree - 1, decree, b"x" * 100)


def opened() -> LogIndex:
    index = LogIndex(OPTIONS)
    index.set_incarnation(GPID, 1, 0, 0)
    index.open_segment(1)
    return index


def test_what_is_written_after_a_flush_is_unflushed_again() -> None:
    index = opened()
    index.note([record(1)], 0, 200, 0)
    index.mark_flushed(GPID, 1, 10)
    assert index.unflushed_bytes(GPID) == 0
    index.note([record(2)], 200, 400, 20)
    assert index.unflushed_bytes(GPID) > 0
    assert index.flush_candidates(30) == []
    assert index.flush_candidates(2_000) == [GPID]


def test_an_old_record_a_full_partition_and_a_full_log_ask_for_a_flush() -> None:
    index = opened()
    index.note([record(decree) for decree in range(1, 60)], 0, 9_000, 0)
    assert index.flush_candidates(1) == [GPID]
    index.mark_flushed(GPID, 59, 2)
    assert index.flush_candidates(3) == []


def test_records_of_another_incarnation_count_for_nothing() -> None:
    index = opened()
    index.note([record(decree) for decree in range(1, 60)], 0, 9_000, 0)
    index.close_segment(1)
    index.set_incarnation(GPID, 2, 0, 5)
    assert index.unflushed_bytes(GPID) == 0
    assert [segment.number for segment in index.dead_segments()] == [1]


def test_a_pin_keeps_what_the_flush_would_give_up() -> None:
    index = opened()
    index.note([record(decree) for decree in range(1, 11)], 0, 2_000, 0)
    index.close_segment(1)
    index.set_pin(GPID, "duplication", 4, 0)
    index.mark_flushed(GPID, 10, 1)
    assert index.dead_segments() == []
    index.set_pin(GPID, "duplication", 10, 1)
    assert [segment.number for segment in index.dead_segments()] == [1]


def three_segments() -> LogIndex:
    """Decrees 1 to 30, ten to a segment, and a fourth that is open."""
    index = opened()
    for number in range(3):
        index.note([record(10 * number + each) for each in range(1, 11)], 0, 2_000, 0)
        index.close_segment(number + 1)
        index.open_segment(number + 2)
    return index


def test_a_pin_below_what_is_still_there_is_refused_and_told_how_low_it_may_be() -> None:
    index = three_segments()
    index.mark_flushed(GPID, 30, 1)
    # Given up by the rule, but not collected: it can still be had.
    index.set_pin(GPID, "early", 0, 2)
    index.clear_pin(GPID, "early")
    index.remove_segments([1])
    with pytest.raises(LogGone, match="lacks decrees 5 to 10") as caught:
        index.set_pin(GPID, "late", 4, 3)
    assert caught.value.lowest == 10
    assert index.pins(GPID) == {}
    index.set_pin(GPID, "late", 10, 4)
    assert {segment.number for segment in index.dead_segments()} == set()
    index.check()


def test_a_pin_across_a_hole_in_the_log_is_refused() -> None:
    index = three_segments()
    index.mark_flushed(GPID, 30, 1)
    index.remove_segments([2])
    with pytest.raises(LogGone, match="lacks decrees 1 to 20") as caught:
        index.set_pin(GPID, "dup", 0, 2)
    assert caught.value.lowest == 20


def test_a_pin_tells_what_it_holds_and_since_when_it_stands() -> None:
    index = three_segments()
    index.set_pin(GPID, "dup", 5, 100)
    assert index.pins(GPID)["dup"].held_bytes == 0, "the engine needs all of it too"
    index.mark_flushed(GPID, 20, 200)
    size = sum(segment.size for segment in index.segments())
    pin = index.pins(GPID)["dup"]
    assert pin.decree == 5
    assert pin.held_bytes == pytest.approx(size / 30 * 15, rel=0.01)
    assert pin.moved_ms == 100
    index.set_pin(GPID, "dup", 5, 300)
    assert index.pins(GPID)["dup"].moved_ms == 100, "it did not move"
    index.set_pin(GPID, "dup", 20, 400)
    assert index.pins(GPID)["dup"] == (20, 0, 400)


def test_who_reads_while_a_pin_is_lowered_sees_all_that_was_there_before() -> None:
    index = three_segments()
    index.mark_flushed(GPID, 15, 1)
    before = len(index.held_runs(GPID, 16))
    seen: list[int] = []

    class Watched(dict[int, Segment]):
        """Looks, as another thread may, at every step of a walk over the segments."""

        def values(self) -> Iterator[Segment]:  # type: ignore[override]
            for segment in super().values():
                seen.append(len(index.held_runs(GPID, 16)))
                yield segment

    index._segments = Watched(index._segments)
    index.set_pin(GPID, "dup", 3, 2)
    assert len(seen) > 3
    assert min(seen) >= before > 0


@pytest.mark.parametrize("seed", range(60))
def test_any_history_agrees_with_a_plain_list_of_records(seed: int) -> None:
    rng = random.Random(seed)
    index = LogIndex(OPTIONS)
    number = 1
    index.open_segment(number)
    gpids = [Gpid(1, place) for place in range(3)]
    decrees = dict.fromkeys(gpids, 0)
    flushed = dict.fromkeys(gpids, 0)
    segment_of: dict[tuple[Gpid, int], int] = {}
    for gpid in gpids:
        index.set_incarnation(gpid, 1, 0, 0)
    flushes = 0
    for step in range(200):
        gpid = rng.choice(gpids)
        match rng.randrange(6):
            case 0 if decrees[gpid]:
                flushed[gpid] = rng.randint(flushed[gpid], decrees[gpid])
                index.mark_flushed(gpid, flushed[gpid], step)
                flushes += 1
            case 1 if rng.random() < 0.3:
                index.close_segment(number)
                number += 1
                index.open_segment(number)
            case _:
                decrees[gpid] += 1
                index.note([record(decrees[gpid], index=gpid.partition_index)], 0, 1, step)
                segment_of[gpid, decrees[gpid]] = number
        index.flush_candidates(step)
        for each in gpids:
            above = decrees[each] - flushed[each]
            assert (index.unflushed_bytes(each) > 0) is (above > 0)
        needed = {place for (each, decree), place in segment_of.items() if decree > flushed[each]}
        dead = {segment.number for segment in index.dead_segments()}
        assert not dead & needed, "a segment that a restart needs counts as dead"
    assert flushes > 5
