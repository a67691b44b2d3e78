"""The index against a plain list of records: what lives, what is unflushed, who should flush."""

from dataclasses import dataclass, field
from random import Random
from typing import Final

import pytest

from pegaskv.base.types import Gpid
from pegaskv.storage.log_format import RECORD_BYTES, LogRecord, runs_of
from pegaskv.storage.log_index import LogIndex
from pegaskv.storage.log_options import LogOptions

GPIDS: Final = [Gpid(1, index) for index in range(4)]
OPTIONS: Final = LogOptions(
    log_segment_bytes=8 * 1024,
    flush_partition_bytes=3 * 1024,
    flush_total_bytes=5 * 1024,
    flush_age_ms=300,
    flush_age_segments=2,
)
PAYLOAD: Final = b"x" * 51
SIZE: Final = RECORD_BYTES + len(PAYLOAD)


@dataclass
class Model:
    """One line for each record in each segment, and each rule in one expression."""

    # (segment, record) in the order of writing.
    lines: list[tuple[int, LogRecord]] = field(default_factory=list)
    incarnation: dict[Gpid, int] = field(default_factory=dict)
    flushed: dict[Gpid, int] = field(default_factory=dict)
    pins: dict[Gpid, dict[str, int]] = field(default_factory=dict)
    decree: dict[Gpid, int] = field(default_factory=dict)
    forgotten: set[Gpid] = field(default_factory=set)

    def own(self, gpid: Gpid) -> list[LogRecord]:
        if gpid in self.forgotten:
            return []
        return [
            one
            for _, one in self.lines
            if one[:2] == gpid and one.incarnation == self.incarnation[gpid]
        ]

    def held(self, gpid: Gpid) -> set[int]:
        least = min([self.flushed[gpid], *self.pins[gpid].values()])
        return {one.decree for one in self.own(gpid) if one.decree > least}

    def unflushed(self, gpid: Gpid) -> set[int]:
        return {one.decree for one in self.own(gpid) if one.decree > self.flushed[gpid]}

    def live_in(self, segment: int) -> list[LogRecord]:
        return [
            one
            for number, one in self.lines
            if number == segment
            and Gpid(*one[:2]) not in self.forgotten
            and one.incarnation == self.incarnation[Gpid(*one[:2])]
            and one.decree in self.held(Gpid(*one[:2]))
        ]


class Walk:
    """Random steps, done by both."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.index = LogIndex(OPTIONS)
        self.model = Model()
        self.now_ms = 0
        self.number = 1
        self.cold: set[int] = set()
        self.copies = 0
        self.removed = 0
        for gpid in GPIDS:
            self.introduce(gpid, 1, 0)
        self.index.open_segment(self.number)

    def introduce(self, gpid: Gpid, incarnation: int, base: int) -> None:
        self.index.set_incarnation(gpid, incarnation, base, self.now_ms)
        model = self.model
        model.incarnation[gpid] = incarnation
        model.flushed[gpid] = model.decree[gpid] = base
        model.pins[gpid] = {}
        model.forgotten.discard(gpid)

    def step(self) -> None:
        random, index, model = self.random, self.index, self.model
        self.now_ms += random.randrange(10)
        gpid = random.choice(GPIDS)
        match random.randrange(24):
            case 0 | 1:
                decree = random.randint(model.flushed[gpid], model.decree[gpid])
                index.mark_flushed(gpid, decree, self.now_ms)
                model.flushed[gpid] = decree
            case 2:
                # A duplication begins at what is still there, and only goes on.
                least = max(model.pins[gpid].get("dup", 0), model.flushed[gpid])
                decree = random.randint(least, max(least, model.decree[gpid]))
                index.set_pin(gpid, "dup", decree, self.now_ms)
                model.pins[gpid]["dup"] = decree
            case 3:
                index.clear_pin(gpid, "dup")
                model.pins[gpid].pop("dup", None)
            case 4 if random.random() < 0.2:
                index.forget(gpid)
                model.forgotten.add(gpid)
                model.pins[gpid] = {}
            case 4 | 5 if random.random() < 0.3:
                self.introduce(gpid, model.incarnation[gpid] + 1, random.randrange(50))
            case 6:
                index.close_segment(self.number)
                self.number += 1
                index.open_segment(self.number)
            case 7:
                self.collect()
            case _:
                self.write(random.sample(GPIDS, random.randint(1, 3)))

    def write(self, gpids: list[Gpid]) -> None:
        block = []
        for gpid in gpids:
            if gpid not in self.model.forgotten:
                self.model.decree[gpid] += 1
                decree = self.model.decree[gpid]
                ballot = 1 + decree // 20
                incarnation = self.model.incarnation[gpid]
                block.append(LogRecord(*gpid, incarnation, ballot, decree, 0, 0, PAYLOAD))
        self.index.note(block, 0, 1, self.now_ms)
        self.model.lines += [(self.number, one) for one in block]

    def collect(self) -> None:
        """Drop what is dead; copy what is sparse, as the log does."""
        dead = [segment.number for segment in self.index.dead_segments()]
        self.remove(dead)
        sparse = [segment.number for segment in self.index.sparse_segments()]
        if not sparse:
            return
        self.copies += 1
        records = [one for number in sparse for one in self.model.live_in(number)]
        self.index.close_segment(self.number)
        self.number += 2
        self.index.open_segment(self.number)
        copy = self.number - 1
        self.index.add_segment(copy, runs_of(records), cold=True)
        self.remove(sparse)
        self.model.lines = [(copy, one) for one in records] + self.model.lines

    def remove(self, numbers: list[int]) -> None:
        self.index.remove_segments(numbers)
        self.removed += len(numbers)
        self.model.lines = [line for line in self.model.lines if line[0] not in numbers]

    def check(self) -> None:
        index, model = self.index, self.model
        index.check()
        for gpid in GPIDS:
            assert index.unflushed_bytes(gpid) == SIZE * len(model.unflushed(gpid))
            covered = {
                decree
                for run in index.held_runs(gpid, 0)
                for decree in range(run.first, run.last + 1)
            }
            assert model.held(gpid) <= covered
            highest = model.decree[gpid]
            assert all(run.last >= highest for run in index.held_runs(gpid, highest))
        dead = {segment.number for segment in index.dead_segments()}
        assert dead == {
            segment.number
            for segment in index.segments()
            if segment.closed and not model.live_in(segment.number)
        }
        for segment in index.sparse_segments():
            assert segment.closed
            assert segment.live * 2 < segment.size or segment.cold
            assert segment.number not in dead
        self.check_flush()

    def check_flush(self) -> None:
        index = self.index
        chosen = index.flush_candidates(self.now_ms)
        sizes = {gpid: index.unflushed_bytes(gpid) for gpid in GPIDS}
        assert len(set(chosen)) == len(chosen)
        assert all(sizes[gpid] for gpid in chosen), "nothing to flush"
        for gpid in GPIDS:
            assert gpid in chosen or sizes[gpid] <= OPTIONS.flush_partition_bytes
        left = sum(size for gpid, size in sizes.items() if gpid not in chosen)
        assert left <= OPTIONS.flush_total_bytes // 2


@pytest.mark.parametrize("block", range(4))
def test_any_walk_agrees_with_a_list_of_records(block: int) -> None:
    flushes = copies = removed = 0
    for seed in range(block, 24, 4):
        walk = Walk(seed)
        for _ in range(200):
            walk.step()
            walk.check()
            flushes += bool(walk.index.flush_candidates(walk.now_ms))
        copies += walk.copies
        removed += walk.removed
    assert flushes > 50
    assert copies > 1
    assert removed > 5


def filled(decrees: int, gpid: Gpid = GPIDS[0], *, start: int = 1) -> list[LogRecord]:
    return [LogRecord(*gpid, 1, 1, each, 0, 0, PAYLOAD) for each in range(start, start + decrees)]


def opened() -> LogIndex:
    index = LogIndex(OPTIONS)
    for gpid in GPIDS:
        index.set_incarnation(gpid, 1, 0, 0)
    index.open_segment(1)
    return index


def test_of_a_partition_that_nobody_has_spoken_of_everything_is_kept() -> None:
    index = LogIndex(OPTIONS)
    index.open_segment(1)
    index.note(filled(3), 0, 1, 0)
    index.close_segment(1)
    assert index.dead_segments() == []
    assert index.partitions() == [GPIDS[0]]
    index.forget(GPIDS[0])
    assert [segment.number for segment in index.dead_segments()] == [1]


def test_the_largest_partitions_are_flushed_first_and_no_more_than_needed() -> None:
    index = opened()
    for gpid, count in zip(GPIDS, (10, 25, 5, 20), strict=True):
        index.note(filled(count, gpid), 0, 1, 0)
    assert index.total_unflushed == 60 * SIZE
    # Half of the limit is where it begins: partitions that are written alike take turns.
    assert 15 * SIZE < OPTIONS.flush_total_bytes // 2 < 35 * SIZE
    assert index.flush_candidates(1) == [GPIDS[1], GPIDS[3]]
    index.mark_flushed(GPIDS[1], 25, 1)
    index.mark_flushed(GPIDS[3], 20, 1)
    assert index.flush_candidates(1) == []


def test_old_records_are_flushed_by_time_and_by_segments() -> None:
    index = opened()
    index.note(filled(1), 0, 1, 100)
    assert index.flush_candidates(100 + OPTIONS.flush_age_ms - 1) == []
    assert index.flush_candidates(100 + OPTIONS.flush_age_ms) == [GPIDS[0]]
    for number in range(2, 2 + OPTIONS.flush_age_segments):
        assert index.flush_candidates(101) == []
        index.close_segment(number - 1)
        index.open_segment(number)
    assert index.flush_candidates(101) == [GPIDS[0]]


def test_a_sparse_segment_is_copied_once_nothing_in_it_is_about_to_be_flushed() -> None:
    index = opened()
    index.note(filled(9), 0, 1, 0)
    index.note(filled(1, GPIDS[1]), 1, 2, 0)
    index.set_pin(GPIDS[1], "dup", 0, 0)
    for gpid, decree in ((GPIDS[0], 9), (GPIDS[1], 1)):
        index.mark_flushed(gpid, decree, 0)
    for number in range(2, 3 + OPTIONS.flush_age_segments):
        assert index.sparse_segments() == []
        index.close_segment(number - 1)
        index.open_segment(number)
    assert [each.number for each in index.sparse_segments()] == [1]
    # A copy of it is copied again as soon as that is worth it.
    index.add_segment(99, runs_of(filled(9) + filled(1, GPIDS[1])), cold=True)
    assert [each.number for each in index.sparse_segments()] == [1, 99]


def test_of_two_pins_the_lower_one_counts_and_a_new_incarnation_has_none() -> None:
    index = opened()
    index.note(filled(20), 0, 1, 0)
    index.close_segment(1)
    index.set_pin(GPIDS[0], "one", 5, 0)
    index.set_pin(GPIDS[0], "two", 9, 0)
    index.mark_flushed(GPIDS[0], 20, 0)
    assert index.hold(GPIDS[0]).decree == 5
    index.clear_pin(GPIDS[0], "one")
    assert index.hold(GPIDS[0]).decree == 9
    assert [run.last for run in index.held_runs(GPIDS[0], 1)][-1] == 20
    index.set_incarnation(GPIDS[0], 2, 30, 0)
    assert index.hold(GPIDS[0]).decree == 30
    assert index.held_runs(GPIDS[0], 1) == []
    assert index.highest_incarnation == 1


def test_a_record_of_another_incarnation_is_refused_once_the_log_is_recovered() -> None:
    index = opened()
    index.strict = True
    with pytest.raises(AssertionError, match="incarnation"):
        index.note([LogRecord(*GPIDS[0], 2, 1, 1, 0, 0, b"")], 0, 1, 0)
