"""Marks among removed rows: nobody sees them, a walk may stop at them, and they go again."""

import random
from contextlib import closing
from pathlib import Path

import pytest

from pegaskv.storage import leveldb_marks
from pegaskv.storage.engine import ReplicaState
from pegaskv.storage.leveldb import LevelDBEngine, LevelDBFactory
from pegaskv.storage.leveldb_marks import is_marked
from pegaskv.storage.local_disk import LocalDisk


def opened(path: Path) -> LevelDBEngine:
    return LevelDBFactory(LocalDisk()).open(path)


def marks_of(engine: LevelDBEngine) -> list[bytes]:
    """All marks there are; like a scan, so that many of them are known to be in the way."""
    with closing(engine.snapshot()) as snapshot:
        return [key for key, row in snapshot.iterate(b"", b"\xff", marks=True) if not row]


def test_marks_are_seen_by_nobody_who_does_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leveldb_marks, "_ONE_OF", 2)
    monkeypatch.setattr(leveldb_marks, "_MANY", 5)
    chance = random.Random(7)
    model: dict[bytes, bytes] = {}
    most = fewest = 0
    with closing(opened(tmp_path / "engine")) as engine:
        for decree in range(1, 400):
            rows: list[bytes | None] = []
            for _ in range(chance.randrange(6)):
                key = b"%03d" % chance.randrange(200)
                row = b"v%d" % decree if chance.random() < 0.3 else None
                rows += (key, row)
                model.pop(key, None)
                if row is not None:
                    model[key] = row
            engine.write(rows, ReplicaState(decree, 1, decree))
            key = b"%03d" % chance.randrange(200)
            assert engine.get(key) == model.get(key)
            if decree % 20 == 0:
                expected = sorted(model.items())
                with closing(engine.snapshot()) as snapshot:
                    assert list(snapshot.iterate(b"", b"\xff")) == expected
                    assert list(snapshot.iterate(b"", b"\xff", reverse=True)) == expected[::-1]
                    marked = list(snapshot.iterate(b"", b"\xff", reverse=True, marks=True))
                    assert [pair for pair in marked if pair[1]] == expected[::-1]
                    assert snapshot.get(key) == model.get(key)
                found = marks_of(engine)
                assert all(is_marked(key) and key not in model for key in found)
                most, fewest = max(most, len(found)), len(found)
            if decree % 50 == 0:
                engine.flush()
    assert most > 20
    assert fewest < most


def test_a_walk_over_removed_rows_may_stop_and_the_way_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leveldb_marks, "_ONE_OF", 64)
    count = 50_000
    keys = [b"k%06d" % number for number in range(count)]
    with closing(opened(tmp_path / "engine")) as engine:
        engine.write([part for key in keys for part in (key, b"row")], ReplicaState(1, 1, 1))
        engine.flush()
        engine.write([part for key in keys for part in (key, None)], ReplicaState(2, 1, 2))
        engine.write([b"z", b"last"], ReplicaState(3, 1, 3))
        found = marks_of(engine)
        assert count // 128 < len(found) < count // 32
        # Pages that stop at a mark meet the same ones, and go on behind it.
        seen: list[bytes] = []
        start = b""
        while True:
            with closing(engine.snapshot()) as snapshot:
                page = []
                for key, row in snapshot.iterate(start, b"\xff", marks=True):
                    page.append(key)
                    if len(page) == 8 or row:
                        break
            seen += page if not seen else page[1:]
            start = page[-1]
            if start == b"z":
                break
        assert seen == [*found, b"z"]

        engine.flush()
        assert engine.size_bytes() < 10_000
        # The deletions are gone; the marks go along with later writes.
        for decree in range(4, 4 + len(found)):
            engine.write([b"z", b"last"], ReplicaState(decree, 1, decree))
        assert marks_of(engine) == []


def test_a_row_that_came_back_is_not_taken_for_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leveldb_marks, "_ONE_OF", 1)
    monkeypatch.setattr(leveldb_marks, "_MANY", 5)
    with closing(opened(tmp_path / "engine")) as engine:
        keys = [b"k%02d" % number for number in range(20)]
        engine.write([part for key in keys for part in (key, None)], ReplicaState(1, 1, 1))
        assert marks_of(engine) == keys
        engine.flush()
        # One before the first marks are dropped, and one in that very write.
        engine._marks.worn, worn = [], engine._marks.worn
        engine.write([keys[3], b"before"], ReplicaState(2, 1, 2))
        engine._marks.worn = worn
        engine.write([keys[4], b"along"], ReplicaState(3, 1, 3))
        with closing(engine.snapshot()) as snapshot:
            found = list(snapshot.iterate(b"", b"\xff", marks=True))
        assert found == [(keys[3], b"before"), (keys[4], b"along")]
