"""What every engine must do; `test_engines.py` runs it on LevelDB and on memory."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any, Protocol

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pegaskv.base.errors import CorruptionError, UnsupportedFormat
from pegaskv.storage.checkpoints import CHECKPOINT_FILE, read_checkpoint, seal
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import STATE_KEY, Engine, EngineClosed, EngineFactory, ReplicaState

__all__ = ["EngineContract", "EngineMachine", "Harness", "rows_of", "write_row"]


class Harness(Protocol):
    """A place where engines of one kind live, and how their process dies."""

    factory: EngineFactory
    disk: Disk
    root: Path

    def crash(self, engine: Engine, path: Path) -> tuple[Engine, Path]:
        """End the process without a word; open what is on disk, perhaps somewhere else."""
        ...

    def close(self) -> None:
        """Remove everything."""
        ...


def rows_of(engine: Engine, *, reverse: bool = False) -> list[tuple[bytes, bytes]]:
    """All rows but the engine's state."""
    with closing(engine.snapshot()) as snapshot:
        found = snapshot.iterate(b"", b"", reverse=reverse)
        return [(key, row) for key, row in found if key != STATE_KEY]


def write_row(engine: Engine, decree: int, key: bytes, row: bytes | None) -> None:
    engine.write([key, row], ReplicaState(decree, 1, decree * 10))


def fill(engine: Engine, count: int, size: int) -> list[bytes]:
    """Write rows that cannot be compressed, with decrees from 1 on; return their keys."""
    noise = Random(1)
    keys = [b"%06d" % number for number in range(count)]
    for decree, key in enumerate(keys, 1):
        write_row(engine, decree, key, noise.randbytes(size))
    return keys


class EngineContract:
    """Promises; a subclass has the fixture `harness`."""

    @pytest.fixture
    def path(self, harness: Harness) -> Path:
        return harness.root / "engine"

    @pytest.fixture
    def engine(self, harness: Harness, path: Path) -> Iterator[Engine]:
        engine = harness.factory.open(path)
        yield engine
        engine.close()

    def test_a_new_engine_is_empty_and_at_decree_0(self, engine: Engine) -> None:
        assert engine.state() == ReplicaState(0, 0, 0)
        assert rows_of(engine) == []
        assert engine.get(b"absent") is None
        assert engine.calm()

    def test_a_write_is_read_and_a_removal_hides_it(self, engine: Engine) -> None:
        engine.write([b"a", b"1", b"b", b"\0", b"\0\xff", b"x" * 100_000], ReplicaState(1, 2, 3))
        assert engine.get(b"a") == b"1"
        assert engine.get(b"b") == b"\0"
        assert engine.get(b"\0\xff") == b"x" * 100_000
        assert engine.state() == ReplicaState(1, 2, 3)
        engine.write([b"a", None, b"absent", None, b"b", b"2"], ReplicaState(2, 2, 4))
        assert engine.get(b"a") is None
        assert rows_of(engine) == [(b"\0\xff", b"x" * 100_000), (b"b", b"2")]

    def test_of_one_key_twice_in_a_batch_the_later_wins(self, engine: Engine) -> None:
        engine.write([b"a", b"1", b"a", b"2", b"b", b"1", b"b", None], ReplicaState(1, 1, 1))
        assert rows_of(engine) == [(b"a", b"2")]

    def test_a_write_of_no_rows_moves_the_state(self, engine: Engine) -> None:
        engine.write([], ReplicaState(9, 8, 7))
        assert engine.state() == ReplicaState(9, 8, 7)
        assert engine.get(STATE_KEY) == ReplicaState(9, 8, 7).encode()

    def test_the_state_is_that_of_the_write_though_the_object_is_reused(
        self, engine: Engine
    ) -> None:
        state = ReplicaState(1, 1, 1)
        engine.write([b"a", b"1"], state)
        state.decree = 99
        assert engine.state().decree == 1
        engine.state().decree = 77
        assert engine.flush() == 1

    @pytest.mark.parametrize("flushed", [False, True])
    @pytest.mark.parametrize(
        ("start", "stop", "expected"),
        [
            (b"", b"", b"abcd"),
            (b"b", b"d", b"bc"),
            (b"b", b"b", b""),
            (b"c", b"b", b""),
            (b"b", b"c", b"b"),
            (b"bb", b"cc", b"c"),
            (b"d", b"", b"d"),
            (b"e", b"", b""),
            (b"", b"a", b""),
            (b"", b"b", b"a"),
            (b"a", b"\xff", b"abcd"),
        ],
    )
    def test_a_range_holds_its_start_and_not_its_stop_both_ways(
        self, engine: Engine, start: bytes, stop: bytes, expected: bytes, flushed: bool
    ) -> None:
        for decree, key in enumerate((b"d", b"b", b"c", b"a"), 1):
            write_row(engine, decree, key, key * 2)
        if flushed:
            engine.flush()
        # The state key lies behind all rows.
        stop = stop or b"\xff\xff"
        rows = [(bytes((byte,)), bytes((byte, byte))) for byte in expected]
        with closing(engine.snapshot()) as snapshot:
            assert list(snapshot.iterate(start, stop)) == rows
            assert list(snapshot.iterate(start, stop, reverse=True)) == rows[::-1]

    def test_an_open_end_reaches_the_reserved_keys(self, engine: Engine) -> None:
        write_row(engine, 1, b"a", b"1")
        with closing(engine.snapshot()) as snapshot:
            keys = [key for key, _ in snapshot.iterate(b"", b"")]
            assert keys == [b"a", STATE_KEY]
            assert [key for key, _ in snapshot.iterate(b"", b"", reverse=True)] == keys[::-1]

    def test_a_snapshot_does_not_see_what_came_after(self, engine: Engine) -> None:
        engine.write([b"a", b"1", b"b", b"1"], ReplicaState(1, 1, 1))
        with closing(engine.snapshot()) as before:
            begun = before.iterate(b"", b"\xff\xff")
            assert next(begun) == (b"a", b"1")
            engine.write([b"a", b"2", b"b", None, b"c", b"2"], ReplicaState(2, 1, 2))
            engine.flush()
            engine.compact()
            assert list(begun) == [(b"b", b"1")]
            assert list(before.iterate(b"", b"\xff\xff")) == [(b"a", b"1"), (b"b", b"1")]
            assert before.get(b"b") == b"1"
            assert before.get(b"c") is None
        assert rows_of(engine) == [(b"a", b"2"), (b"c", b"2")]

    def test_a_closed_snapshot_says_so(self, engine: Engine) -> None:
        engine.write([b"a", b"1", b"b", b"1"], ReplicaState(1, 1, 1))
        snapshot = engine.snapshot()
        begun = snapshot.iterate(b"", b"")
        next(begun)
        snapshot.close()
        snapshot.close()
        with pytest.raises(EngineClosed):
            snapshot.get(b"a")
        with pytest.raises(EngineClosed):
            list(snapshot.iterate(b"", b""))
        with pytest.raises(EngineClosed):
            next(begun)

    def test_an_iteration_may_be_left_in_the_middle(self, engine: Engine) -> None:
        engine.write([b"a", b"1", b"b", b"1"], ReplicaState(1, 1, 1))
        snapshot = engine.snapshot()
        for _ in snapshot.iterate(b"", b""):
            break
        snapshot.close()
        engine.close()

    def test_all_is_there_after_a_clean_stop(
        self, engine: Engine, harness: Harness, path: Path
    ) -> None:
        for decree in range(1, 50):
            write_row(engine, decree, b"%d" % (decree % 7), b"%d" % decree)
        rows = rows_of(engine)
        engine.close()
        again = harness.factory.open(path)
        assert again.state() == ReplicaState(49, 1, 490)
        assert rows_of(again) == rows
        again.close()

    def test_a_crash_loses_nothing_that_was_flushed(
        self, engine: Engine, harness: Harness, path: Path
    ) -> None:
        write_row(engine, 1, b"a", b"1")
        write_row(engine, 2, b"b", b"2")
        assert engine.flush() == 2
        write_row(engine, 3, b"a", None)
        again, _ = harness.crash(engine, path)
        decree = again.state().decree
        assert decree in (2, 3)
        assert rows_of(again) == ([(b"a", b"1"), (b"b", b"2")] if decree == 2 else [(b"b", b"2")])
        write_row(again, decree + 1, b"c", b"3")
        assert again.get(b"c") == b"3"
        again.close()

    def test_a_closed_engine_says_so(self, engine: Engine, harness: Harness) -> None:
        write_row(engine, 1, b"a", b"1")
        engine.close()
        engine.close()
        uses: list[Any] = [
            lambda: engine.get(b"a"),
            lambda: write_row(engine, 2, b"a", b"2"),
            engine.snapshot,
            engine.flush,
            engine.compact,
            engine.size_bytes,
            lambda: engine.checkpoint(harness.root / "late"),
        ]
        for use in uses:
            with pytest.raises(EngineClosed):
                use()
        assert not harness.disk.exists(harness.root / "late")

    def test_removed_rows_give_their_space_back(self, engine: Engine) -> None:
        keys = fill(engine, 400, 1_000)
        engine.flush()
        full = engine.size_bytes()
        assert full > 390_000
        engine.write([item for key in keys for item in (key, None)], ReplicaState(401, 1, 401))
        engine.compact()
        assert engine.size_bytes() < full // 10
        assert rows_of(engine) == []

    def test_a_compaction_in_steps_frees_as_much_as_one_of_all(
        self, engine: Engine, harness: Harness
    ) -> None:
        keys = fill(engine, 400, 10_000)
        engine.compact()
        full = engine.size_bytes()
        gone = [key for number, key in enumerate(keys) if number % 8]
        engine.write([item for key in gone for item in (key, None)], ReplicaState(401, 1, 401))
        engine.flush()
        cuts = engine.compaction_cuts(200_000)
        assert cuts == sorted(set(cuts)) != []
        for first, last in zip((b"", *cuts), (*cuts, None), strict=True):
            engine.compact(first, last)
        assert engine.size_bytes() < full // 4
        assert [key for key, _ in rows_of(engine)] == keys[::8]

    def test_what_is_small_is_compacted_in_one_step(self, engine: Engine) -> None:
        assert engine.compaction_cuts(1_000_000) == []
        write_row(engine, 1, b"a", b"1")
        engine.flush()
        assert engine.compaction_cuts(1_000_000) == []

    # Checkpoints.

    def test_a_checkpoint_is_what_was_written_before_and_nothing_after(
        self, engine: Engine, harness: Harness
    ) -> None:
        engine.write([b"a", b"1", b"b", b"1"], ReplicaState(5, 1, 1))
        info = engine.checkpoint(harness.root / "published")
        write_row(engine, 6, b"a", b"2")
        engine.flush()
        engine.compact()
        assert info.decree == 5
        assert info.path == harness.root / "published"
        assert read_checkpoint(harness.disk, info.path) == (info, ReplicaState(5, 1, 1))
        copy = harness.factory.open_checkpoint(info.path, harness.root / "copy")
        assert copy.state() == ReplicaState(5, 1, 1)
        assert rows_of(copy) == [(b"a", b"1"), (b"b", b"1")]
        copy.close()

    def test_an_empty_engine_has_a_checkpoint_too(self, engine: Engine, harness: Harness) -> None:
        info = engine.checkpoint(harness.root / "published")
        assert info.decree == 0
        copy = harness.factory.open_checkpoint(info.path, harness.root / "copy")
        assert (copy.state(), rows_of(copy)) == (ReplicaState(), [])
        copy.close()

    def test_copies_of_a_checkpoint_live_apart(self, engine: Engine, harness: Harness) -> None:
        write_row(engine, 1, b"a", b"1")
        info = engine.checkpoint(harness.root / "published")
        copies = [
            harness.factory.open_checkpoint(info.path, harness.root / name)
            for name in ("one", "two")
        ]
        for decree, copy in enumerate(copies, 10):
            write_row(copy, decree, b"a", b"%d" % decree)
            copy.compact()
            copy.close()
        third = harness.factory.open_checkpoint(info.path, harness.root / "three")
        assert rows_of(third) == [(b"a", b"1")] == rows_of(engine)
        third.close()
        one = harness.factory.open(harness.root / "one")
        assert rows_of(one) == [(b"a", b"10")]
        one.close()

    def test_a_checkpoint_never_replaces_anything(self, engine: Engine, harness: Harness) -> None:
        write_row(engine, 1, b"a", b"1")
        engine.checkpoint(harness.root / "published")
        with pytest.raises(FileExistsError):
            engine.checkpoint(harness.root / "published")
        with pytest.raises(FileExistsError):
            harness.factory.open_checkpoint(harness.root / "published", harness.root / "engine")
        assert engine.get(b"a") == b"1"

    def test_leftovers_of_a_crashed_checkpoint_do_no_harm(
        self, engine: Engine, harness: Harness
    ) -> None:
        write_row(engine, 1, b"a", b"1")
        for name in ("published.tmp", "copy.tmp"):
            harness.disk.make_dirs(harness.root / name)
            harness.disk.write_atomic(harness.root / name / "000001.ldb", b"rubbish")
        info = engine.checkpoint(harness.root / "published")
        assert not harness.disk.exists(harness.root / "published.tmp")
        assert set(harness.disk.list(info.path)) == {name for name, _ in info.files} | {
            CHECKPOINT_FILE
        }
        copy = harness.factory.open_checkpoint(info.path, harness.root / "copy")
        assert rows_of(copy) == [(b"a", b"1")]
        copy.close()

    def test_a_checkpoint_with_a_file_cut_short_or_missing_is_refused(
        self, engine: Engine, harness: Harness
    ) -> None:
        write_row(engine, 1, b"a", b"1")
        info = engine.checkpoint(harness.root / "published")
        assert info.files
        for name, size in info.files:
            path = info.path / name
            data = harness.disk.read_bytes(path)
            assert len(data) == size
            harness.disk.unlink(path)
            with pytest.raises(CorruptionError, match="missing"):
                harness.factory.open_checkpoint(info.path, harness.root / "copy")
            harness.disk.write_atomic(path, data[:-1])
            with pytest.raises(CorruptionError, match="bytes instead of"):
                harness.factory.open_checkpoint(info.path, harness.root / "copy")
            harness.disk.write_atomic(path, data)
        assert not harness.disk.exists(harness.root / "copy")
        harness.factory.open_checkpoint(info.path, harness.root / "copy").close()

    def test_a_checkpoint_with_a_bad_description_is_refused(
        self, engine: Engine, harness: Harness
    ) -> None:
        info = engine.checkpoint(harness.root / "published")
        good = harness.disk.read_bytes(info.path / CHECKPOINT_FILE)
        state = ReplicaState().encode()
        bad = [
            good[:-1],
            good[:5] + b"\xff" + good[6:],
            b"",
            seal(None),
            seal([1]),
            seal([1, state, [["../out", 1]]]),
            seal([1, state, [["name", "size"]]]),
            seal([1, b"short", []]),
        ]
        for data in bad:
            harness.disk.write_atomic(info.path / CHECKPOINT_FILE, data)
            with pytest.raises(CorruptionError):
                harness.factory.open_checkpoint(info.path, harness.root / "copy")
        harness.disk.write_atomic(info.path / CHECKPOINT_FILE, seal([2, b"", []]))
        with pytest.raises(UnsupportedFormat, match="format 2"):
            harness.factory.open_checkpoint(info.path, harness.root / "copy")
        harness.disk.unlink(info.path / CHECKPOINT_FILE)
        with pytest.raises(CorruptionError, match=CHECKPOINT_FILE):
            harness.factory.open_checkpoint(info.path, harness.root / "copy")


KEYS = st.binary(min_size=0, max_size=3) | st.sampled_from([b"a", b"b", b"ab", b"\xff\xfe", b"\0"])
# A row is never empty: it begins with its header.
ROWS = st.none() | st.binary(min_size=1, max_size=20)


class EngineMachine(RuleBasedStateMachine):
    """Any history of one engine, beside a dictionary; a subclass has `make_harness`."""

    make_harness: Callable[[], Harness]

    def __init__(self) -> None:
        super().__init__()
        self.harness = self.make_harness()
        self.path = self.harness.root / "engine"
        self.engine = self.harness.factory.open(self.path)
        self.decree = 0
        self.model: dict[bytes, bytes] = {}
        # The model at each decree that a crash may fall back to.
        self.history: dict[int, dict[bytes, bytes]] = {0: {}}
        self.flushed = 0
        self.snapshots: list[tuple[Any, dict[bytes, bytes]]] = []
        self.names = 0

    def teardown(self) -> None:
        self._drop_snapshots()
        self.engine.close()
        self.harness.close()

    def _drop_snapshots(self) -> None:
        for snapshot, _ in self.snapshots:
            snapshot.close()
        self.snapshots.clear()

    @rule(rows=st.lists(st.tuples(KEYS, ROWS), max_size=6), decrees=st.integers(1, 3))
    def write(self, rows: list[tuple[bytes, bytes | None]], decrees: int) -> None:
        self.decree += decrees
        flat: list[bytes | None] = []
        for key, row in rows:
            flat += [key, row]
            self.model.pop(key, None)
            if row is not None:
                self.model[key] = row
        self.engine.write(flat, ReplicaState(self.decree, 1, self.decree))
        self.history[self.decree] = dict(self.model)

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.engine.get(key) == self.model.get(key)

    @rule(start=KEYS, stop=KEYS, reverse=st.booleans())
    def iterate(self, start: bytes, stop: bytes, reverse: bool) -> None:
        with closing(self.engine.snapshot()) as snapshot:
            self._compare(snapshot, self.model, start, stop, reverse)

    @rule()
    @precondition(lambda self: len(self.snapshots) < 3)
    def take_snapshot(self) -> None:
        self.snapshots.append((self.engine.snapshot(), dict(self.model)))

    @rule(start=KEYS, stop=KEYS, reverse=st.booleans(), data=st.data())
    @precondition(lambda self: self.snapshots)
    def look_at_a_snapshot(
        self, start: bytes, stop: bytes, reverse: bool, data: st.DataObject
    ) -> None:
        snapshot, model = data.draw(st.sampled_from(self.snapshots))
        self._compare(snapshot, model, start, stop, reverse)
        assert snapshot.get(start) == model.get(start)

    def _compare(
        self, snapshot: Any, model: dict[bytes, bytes], start: bytes, stop: bytes, reverse: bool
    ) -> None:
        expected = sorted(
            (key, row) for key, row in model.items() if key >= start and (not stop or key < stop)
        )
        found = snapshot.iterate(start, stop or b"\xff\xff", reverse=reverse)
        assert list(found) == (expected[::-1] if reverse else expected)

    @rule()
    def flush(self) -> None:
        assert self.engine.flush() == self.decree
        self.flushed = self.decree

    @rule()
    def compact(self) -> None:
        self.engine.compact()

    @rule()
    def close_and_open(self) -> None:
        self._drop_snapshots()
        self.engine.close()
        self.engine = self.harness.factory.open(self.path)
        self.flushed = self.decree
        self._check_whole(self.engine)
        assert self.engine.state().decree == self.decree

    @rule()
    def crash(self) -> None:
        self._drop_snapshots()
        self.engine, self.path = self.harness.crash(self.engine, self.path)
        state = self.engine.state()
        assert self.flushed <= state.decree <= self.decree
        self.decree = state.decree
        self.model = dict(self.history[state.decree])
        self.history = {state.decree: dict(self.model)}
        self.flushed = self.decree
        self._check_whole(self.engine)

    @rule(go_on=st.booleans())
    def checkpoint(self, go_on: bool) -> None:
        self.names += 1
        info = self.engine.checkpoint(self.harness.root / f"checkpoint-{self.names}")
        self.flushed = self.decree
        assert info.decree == self.decree
        path = self.harness.root / f"copy-{self.names}"
        copy = self.harness.factory.open_checkpoint(info.path, path)
        self._check_whole(copy)
        if go_on:
            self._drop_snapshots()
            self.engine.close()
            self.engine, self.path = copy, path
        else:
            copy.close()

    def _check_whole(self, engine: Engine) -> None:
        assert rows_of(engine) == sorted(self.model.items())
        assert rows_of(engine, reverse=True) == sorted(self.model.items(), reverse=True)
