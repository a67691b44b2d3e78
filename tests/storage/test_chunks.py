"""Walks in lists: the same rows, marks at ends, and little read ahead."""

import random
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.errors import CorruptionError
from pegaskv.replica.overlay import OverlaidSnapshot
from pegaskv.storage import leveldb_marks
from pegaskv.storage.engine import EngineClosed, EngineFactory, ReplicaState, in_chunks
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.leveldb_marks import Marks
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.memory import MemoryFactory

Pairs = list[tuple[bytes, bytes]]


def pairs(lengths: list[int]) -> Pairs:
    return [(b"%06d" % number, bytes(length)) for number, length in enumerate(lengths)]


class Walk:
    """An iteration that counts what was taken of it, and fails behind its rows if asked."""

    def __init__(self, rows: Pairs, failure: Exception | None = None) -> None:
        self.taken = 0
        self._rows = rows
        self._failure = failure

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for pair in self._rows:
            self.taken += 1
            yield pair
        if self._failure is not None:
            raise self._failure


@given(st.lists(st.sampled_from([0, 1, 1, 100, 3_000, 70_000]), max_size=150))
def test_the_lists_are_the_rows_with_marks_at_their_ends(lengths: list[int]) -> None:
    rows = pairs(lengths)
    chunks = list(in_chunks(iter(rows)))
    assert [pair for chunk in chunks for pair in chunk] == rows
    for chunk in chunks:
        assert chunk
        assert len(chunk) <= 32
        assert all(row for _, row in chunk[:-1])


def test_lists_grow_up_to_a_bound() -> None:
    sizes = [len(chunk) for chunk in in_chunks(iter(pairs([100] * 100)))]
    assert sizes == [1, 4, 16, 32, 32, 15]


def taken(lengths: list[int]) -> list[tuple[int, int]]:
    """How long each list is, and how many rows were taken by then."""
    walk = Walk(pairs(lengths))
    return [(len(chunk), walk.taken) for chunk in in_chunks(iter(walk))]


def test_behind_a_large_row_little_is_read_ahead() -> None:
    # Three of 30 kB are as much as is read ahead.
    assert taken([100] * 20 + [30_000] * 7) == [(1, 1), (4, 5), (16, 21), (3, 24), (3, 27)]
    assert taken([1 << 20] * 3) == [(1, 1), (1, 2), (1, 3)]
    assert taken([3_000] * 60) == [(1, 1), (4, 5), (16, 21), (22, 43), (17, 60)]


def test_behind_a_mark_one_row_is_read_and_then_more_again() -> None:
    assert taken([100, *[0] * 6, *[100] * 6]) == [
        (1, 1),
        *[(1, 5)] * 4,
        (1, 6),
        (1, 7),
        (1, 8),
        (4, 12),
        (1, 13),
    ]
    assert taken([100, 100, 0, 100, 100, 100]) == [(1, 1), (2, 5), (2, 5), (1, 6)]


@pytest.mark.parametrize("count", [0, 1, 3, 5, 40])
def test_what_was_read_before_an_error_comes_before_it(count: int) -> None:
    rows = pairs([100] * count)
    failure = CorruptionError("damage")
    found: Pairs = []

    def walk() -> None:
        for chunk in in_chunks(iter(Walk(rows, failure))):
            found.extend(chunk)

    with pytest.raises(CorruptionError) as raised:
        walk()
    assert raised.value is failure
    assert found == rows


@pytest.mark.parametrize("factory", [LevelDBFactory, MemoryFactory])
def test_engines_and_what_is_laid_over_them_walk_in_lists_as_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: EngineFactory
) -> None:
    monkeypatch.setattr(leveldb_marks, "_ONE_OF", 2)
    keys = [b"%03d" % number for number in range(200)]
    with closing(factory(LocalDisk()).open(tmp_path / "engine")) as engine:
        engine.write([part for key in keys for part in (key, b"row")], ReplicaState(1, 1, 1))
        removed = keys[20:60] + keys[150:]
        engine.write([part for key in removed for part in (key, None)], ReplicaState(2, 1, 2))
        plain = engine.snapshot()
        overlaid = OverlaidSnapshot(engine.snapshot(), {b"002": None, b"003x": b"new"})
        left = [key for key in keys if key not in removed]
        for snapshot, expected in (
            (plain, left),
            (overlaid, sorted({*left, b"003x"} - {b"002"})),
        ):
            for start, stop in ((b"", b"\xff"), (b"002", b"180"), (b"003", b""), (b"9", b"1")):
                chunks = list(snapshot.chunks(start, stop))
                walked = [pair for chunk in chunks for pair in chunk]
                assert walked == list(snapshot.iterate(start, stop, marks=True))
                seen = [pair for pair in walked if pair[1]]
                assert seen == list(snapshot.iterate(start, stop))
                assert [key for key, _ in seen if key < b"\xff"] == [
                    key for key in expected if start <= key and (not stop or key < stop)
                ]
            snapshot.close()
            with pytest.raises(EngineClosed):
                list(snapshot.chunks(b"", b""))


def test_a_walk_that_is_dropped_lets_its_iterator_go(tmp_path: Path) -> None:
    with closing(LevelDBFactory(LocalDisk()).open(tmp_path / "engine")) as engine:
        engine.write([part for key in range(99) for part in (b"%d" % key, b"row")], ReplicaState(1))
        with closing(engine.snapshot()) as snapshot:
            for reverse in (False, True):
                walk = snapshot.iterate(b"", b"", reverse=reverse)
                next(walk)
                assert len(snapshot._iterators) == 1
                del walk
                assert snapshot._iterators == []


@pytest.mark.parametrize("seed", range(20))
def test_marks_with_no_row_between_them_are_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(leveldb_marks, "_ONE_OF", 1)
    chance = random.Random(seed)
    kinds = chance.choices("MR", weights=[1, chance.choice([1, 3, 20])], k=90)
    keys = [b"%02d" % number for number in range(90)]
    with closing(LevelDBFactory(LocalDisk()).open(tmp_path / "engine")) as engine:
        engine.write([part for key in keys for part in (key, b"row")], ReplicaState(1, 1, 1))
        removed = [key for key, kind in zip(keys, kinds, strict=True) if kind == "M"]
        engine.write([part for key in removed for part in (key, None)], ReplicaState(2, 1, 2))
        met: list[tuple[bytes, bytes, int]] = []
        with closing(engine.snapshot()) as snapshot:
            monkeypatch.setattr(Marks, "met", lambda _, *run: met.append(run))
            for _ in snapshot.iterate(b"", b"\xff"):
                pass
    expected = []
    for kind, run in groupby(zip(kinds, keys, strict=True), key=itemgetter(0)):
        if kind == "M":
            marks = [key for _, key in run]
            expected.append((marks[0], marks[-1], len(marks)))
    assert met == expected


def test_an_iterator_that_ends_before_the_last_row_is_damage(tmp_path: Path) -> None:
    class NoRows:
        """An iterator of plyvel that has ended."""

        def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
            return iter(())

        def __next__(self) -> tuple[bytes, bytes]:
            raise StopIteration

        def close(self) -> None:
            pass

    class Ending:
        """A snapshot of plyvel whose iterator has no rows."""

        def __init__(self, snapshot: Any) -> None:
            self.raw_iterator = snapshot.raw_iterator
            self.close = snapshot.close

        def iterator(self, **_: object) -> NoRows:
            return NoRows()

    with closing(LevelDBFactory(LocalDisk()).open(tmp_path / "engine")) as engine:
        engine.write([b"5", b"row"], ReplicaState(1, 1, 1))
        with closing(engine.snapshot()) as snapshot:
            snapshot._snapshot = Ending(snapshot._snapshot)
            for start, stop in ((b"1", b""), (b"1", b"51"), (b"1", b"6")):
                with pytest.raises(CorruptionError, match="ended before b'5'"):
                    list(snapshot.iterate(start, stop))
            assert list(snapshot.iterate(b"1", b"5")) == []
