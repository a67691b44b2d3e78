"""What holds of LevelDB beyond the contract: damage, kills, races, its quirks."""

import contextlib
import errno
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import Random

import plyvel
import pytest

from pegaskv.base.errors import ConfigurationError, CorruptionError
from pegaskv.base.options import options_from_mapping
from pegaskv.storage import leveldb
from pegaskv.storage.checkpoints import read_checkpoint
from pegaskv.storage.engine import STATE_KEY, EngineClosed, ReplicaState
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.leveldb_files import _state_in_tables
from pegaskv.storage.leveldb_manifest import LiveTable
from pegaskv.storage.local_disk import LocalDisk, LocalFile
from pegaskv.storage.options import StorageOptions
from tests.helpers import wait_until
from tests.storage.engine_contract import rows_of, write_row
from tests.storage.leveldb_child import SMALL, rows_at, write_one
from tests.storage.test_engines import copy_as_it_is

ROOT = Path(__file__).parents[2]
# Small blocks, so that a small table has many.
BLOCKS = StorageOptions(block_bytes=1024)


def factory(options: StorageOptions = SMALL) -> LevelDBFactory:
    return LevelDBFactory(LocalDisk(), options)


def tables_in(path: Path) -> list[Path]:
    return sorted(path.glob("*.ldb"))


def child(mode: str, path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "tests.storage.leveldb_child", mode, path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


# Flush, and LevelDB's own log.


def test_a_flush_writes_a_table_and_compacts_nothing(tmp_path: Path) -> None:
    # `compact_range()` without bounds is all there is to flush with: a quirk to hold on to.
    engine = factory().open(tmp_path / "engine")
    for decree in range(1, 4):
        write_row(engine, decree, b"key", b"%d" % decree)
        engine.flush()
        assert len(tables_in(tmp_path / "engine")) == decree
        copy_as_it_is(tmp_path / "engine", tmp_path / f"copy-{decree}")
        copy = factory().open(tmp_path / f"copy-{decree}")
        assert copy.state().decree == decree
        copy.close()
    engine.compact()
    wait_until(lambda: len(tables_in(tmp_path / "engine")) == 1, what="one table")
    engine.close()


def test_a_flush_of_nothing_new_touches_nothing(tmp_path: Path) -> None:
    engine = factory().open(tmp_path / "engine")
    write_row(engine, 1, b"key", b"1")
    assert engine.flush() == 1
    names = sorted(path.name for path in (tmp_path / "engine").iterdir())
    assert engine.flush() == 1
    assert sorted(path.name for path in (tmp_path / "engine").iterdir()) == names
    engine.close()


def test_a_flush_beside_a_thread_that_writes_is_a_flush(tmp_path: Path) -> None:
    # LevelDB takes a flush that waits behind a write for a part of that write: one in forty.
    engine = factory().open(tmp_path / "engine")
    stop = threading.Event()

    def write() -> None:
        decree = 0
        while not stop.is_set():
            decree += 1
            write_one(engine, decree)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: engine.state().decree > 0, what="a first write")
        for number in range(150):
            flushed = engine.flush()
            # The tables as they are, without another flush.
            tables = engine._linker.checkpoint(tmp_path / f"tables-{number}")
            assert 0 < flushed <= tables.decree
    finally:
        stop.set()
        writer.join()
    engine.close()


def test_nothing_is_linked_before_the_manifest_that_names_it_is_durable(tmp_path: Path) -> None:
    class Manifests(LocalDisk):
        """Counts the syncs of MANIFEST, which may fail."""

        fails = False
        syncs = 0

        def open(self, path: Path, *, writable: bool = False) -> LocalFile:
            file = super().open(path, writable=writable)
            return Manifest(file._descriptor) if path.name.startswith("MANIFEST") else file

    class Manifest(LocalFile):
        def fdatasync(self) -> None:
            disk.syncs += 1
            if disk.fails:
                raise OSError(errno.EIO, "planned")

    disk = Manifests()
    engine = LevelDBFactory(disk, SMALL).open(tmp_path / "engine")
    write_one(engine, 1)
    disk.fails = True
    with pytest.raises(OSError, match="planned"):
        engine.checkpoint(tmp_path / "1")
    assert not (tmp_path / "1").exists()
    disk.fails, disk.syncs = False, 0
    engine.checkpoint(tmp_path / "2")
    # What the failed one had read is not taken for durable.
    assert disk.syncs == 1
    # Nothing has changed since.
    engine.checkpoint(tmp_path / "3")
    assert disk.syncs == 1
    write_one(engine, 2)
    engine.checkpoint(tmp_path / "4")
    assert disk.syncs == 2
    engine.close()


@pytest.mark.parametrize("damage", ["untouched", "torn", "zeros", "garbage", "gone"])
def test_what_is_in_the_log_of_leveldb_never_matters(tmp_path: Path, damage: str) -> None:
    engine = factory().open(tmp_path / "engine")
    for decree in range(1, 201):
        write_one(engine, decree)
        if decree == 120:
            assert engine.flush() == 120
    copy_as_it_is(tmp_path / "engine", tmp_path / "left")
    engine.close()
    logs = sorted((tmp_path / "left").glob("*.log"))
    assert len(logs) == 1
    data = logs[0].read_bytes()
    assert len(data) > 1_000
    changed = {
        "untouched": data,
        "torn": data[: len(data) // 2],
        "zeros": data[:100] + bytes(400) + data[500:],
        "garbage": Random(1).randbytes(len(data)),
        "gone": b"",
    }
    logs[0].write_bytes(changed[damage])
    again = factory().open(tmp_path / "left")
    assert again.state().decree == 120
    assert rows_of(again) == rows_at(120)
    again.close()


def test_a_flush_that_failed_is_told_and_so_is_all_after_it(tmp_path: Path) -> None:
    with child("full", tmp_path / "engine") as process:
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    refused = f"error {errno.EFBIG}"
    assert output.split("\n")[:-1] == [refused] * 4 + ["decree 1", "decree 2"]
    assert not (tmp_path / "checkpoint").exists()


# Kills and races, in processes of their own.


def test_a_killed_process_leaves_an_exact_prefix_at_or_above_its_last_flush(
    tmp_path: Path,
) -> None:
    random = Random(7)
    path = tmp_path / "engine"
    decrees = []
    for _ in range(4):
        with child("write", path) as process:
            assert process.stdout is not None
            for _ in range(random.randint(1, 30)):
                flushed = int(process.stdout.readline())
            process.kill()
        engine = factory().open(path)
        decree = engine.state().decree
        assert decree >= flushed
        assert rows_of(engine) == rows_at(decree)
        decrees.append(decree)
        engine.close()
    assert decrees == sorted(decrees)
    assert decrees[0] >= 100


def test_closing_never_ends_the_process_whatever_other_threads_do(tmp_path: Path) -> None:
    with child("close", tmp_path) as process:
        output, _ = process.communicate(timeout=50)
    assert process.returncode == 0
    # Seven threads used each of fifteen engines until they were refused.
    assert int(output) == 7 * 15


def test_close_waits_for_an_open_snapshot(tmp_path: Path) -> None:
    engine = factory().open(tmp_path / "engine")
    for decree in range(1, 100):
        write_one(engine, decree)
    snapshot = engine.snapshot()
    rows = snapshot.iterate(b"", b"\xff\xff")
    first = next(rows)
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    wait_until(lambda: engine._closing, what="close to begin")
    assert [first, *rows] == rows_at(99)
    assert closing.is_alive()
    snapshot.close()
    closing.join(10)
    assert not closing.is_alive()


def test_close_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leveldb, "_DRAIN_POLLS_MAX", 3)
    engines = factory()
    engine = engines.open(tmp_path / "engine")
    write_row(engine, 1, b"a", b"1")
    snapshot = engine.snapshot()
    with pytest.raises(OSError, match="still in use"):
        engine.close()
    with pytest.raises(EngineClosed):
        engine.get(b"a")
    assert snapshot.get(b"a") == b"1"
    snapshot.close()
    engine.close()
    again = engines.open(tmp_path / "engine")
    assert again.get(b"a") == b"1"
    again.close()


def test_a_forgotten_snapshot_does_not_keep_the_engine_open(tmp_path: Path) -> None:
    engine = factory().open(tmp_path / "engine")
    engine.snapshot()
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()


# Damage.


def make_table(path: Path, rows: int = 100) -> tuple[Path, list[tuple[bytes, bytes]]]:
    engine = factory(BLOCKS).open(path)
    expected = []
    noise = Random(3)
    for decree in range(1, rows + 1):
        expected.append((b"%05d" % decree, noise.randbytes(40)))
        write_row(engine, decree, *expected[-1])
    engine.close()
    (table,) = tables_in(path)
    return table, expected


def all_answers(path: Path, keys: list[bytes]) -> list[object]:
    """What every kind of read says; CorruptionError in the place of what it refuses."""
    answers: list[object] = []

    def ask(use: Callable[[], object]) -> None:
        try:
            answers.append(use())
        except CorruptionError:
            answers.append(CorruptionError)

    try:
        engine = factory(BLOCKS).open(path)
    except CorruptionError:
        return [CorruptionError]
    ask(lambda: rows_of(engine))
    ask(lambda: rows_of(engine, reverse=True))
    for key in keys:
        ask(lambda key=key: engine.get(key))  # type: ignore[misc]
    with contextlib.closing(engine.snapshot()) as snapshot:
        # Pages that begin and end in the middle of blocks, and behind the last row of one.
        for start, stop in zip(keys, [*keys[2:], b"", b""], strict=True):
            ask(lambda start=start, stop=stop: list(snapshot.iterate(start, stop)))  # type: ignore[misc]
            ask(lambda start=start, stop=stop: list(snapshot.chunks(start + b"\x00", stop)))  # type: ignore[misc]
    engine.close()
    return answers


def test_a_flipped_byte_in_a_table_is_never_a_wrong_answer(tmp_path: Path) -> None:
    table, rows = make_table(tmp_path / "good")
    keys = [key for key, _ in rows[::9]]
    whole = all_answers(tmp_path / "good", keys)
    assert whole[0] == rows
    data = table.read_bytes()
    refused = 0
    # All over the table, and every byte of the footer, whose pointers may lead anywhere.
    for offset in [*range(0, len(data), len(data) // 80), *range(len(data) - 48, len(data))]:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        damaged = bytearray(data)
        damaged[offset] ^= 0x10
        (tmp_path / "bad" / table.name).write_bytes(damaged)
        answers = all_answers(tmp_path / "bad", keys)
        refused += CorruptionError in answers
        if answers != [CorruptionError]:
            for answer, right in zip(answers, whole, strict=True):
                assert answer in (right, CorruptionError), f"wrong after a flip at {offset}"
    # A few bytes are padding that nobody reads.
    assert refused > 70


def test_a_damaged_last_block_does_not_end_a_scan_early(tmp_path: Path) -> None:
    path = tmp_path / "engine"
    # Without the state behind the rows nothing follows the damage.
    db = plyvel.DB(str(path), create_if_missing=True, block_size=1024, compression=None)
    for number in range(100):
        db.put(b"%05d" % number, b"v" * 50)
    db.compact_range()
    db.close()
    (table,) = tables_in(path)
    data = bytearray(table.read_bytes())
    data[bytes(data).rindex(b"v" * 50)] ^= 1
    table.write_bytes(data)
    engine = factory(BLOCKS).open(path)
    with pytest.raises(CorruptionError):
        rows_of(engine)
    with pytest.raises(CorruptionError):
        rows_of(engine, reverse=True)
    engine.close()


def test_a_compaction_of_a_damaged_table_is_told_and_launders_nothing(tmp_path: Path) -> None:
    table, rows = make_table(tmp_path / "engine")
    data = bytearray(table.read_bytes())
    data[len(data) // 3] ^= 1
    table.write_bytes(data)
    engine = factory(BLOCKS).open(tmp_path / "engine")
    for decree, (key, row) in enumerate(rows[:50], 1_000):
        write_row(engine, decree, key, row)
    with pytest.raises(CorruptionError):
        engine.compact()
    with pytest.raises((CorruptionError, OSError)):
        write_row(engine, 2_000, b"late", b"1")
    engine.close()


@pytest.mark.parametrize("damage", ["no CURRENT", "no MANIFEST", "no table", "short", "long"])
def test_missing_and_misshaped_files_are_found_at_open(tmp_path: Path, damage: str) -> None:
    table, _ = make_table(tmp_path / "engine")
    (manifest,) = (tmp_path / "engine").glob("MANIFEST-*")
    match damage:
        case "no CURRENT":
            (tmp_path / "engine" / "CURRENT").unlink()
        case "no MANIFEST":
            manifest.unlink()
        case "no table":
            table.unlink()
        case "short":
            table.write_bytes(table.read_bytes()[:-1])
        case "long":
            table.write_bytes(table.read_bytes() + b"\0")
    with pytest.raises(CorruptionError, match=str(tmp_path)):
        factory().open(tmp_path / "engine")
    # LevelDB would have made an empty database of it.
    if damage != "no table":
        assert table.exists()


@pytest.mark.parametrize(
    "tail",
    [
        b"\x12\x34\x56\x78\x40\x00\x01" + b"torn" * 3,
        # LevelDB would refuse a whole record with a wrong checksum.
        b"\x12\x34\x56\x78\x0c\x00\x01" + b"torn" * 3,
        bytes(100),
    ],
)
def test_the_torn_end_of_a_manifest_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    _, rows = make_table(tmp_path / "engine")
    (manifest,) = (tmp_path / "engine").glob("MANIFEST-*")
    manifest.write_bytes(manifest.read_bytes() + tail)
    engine = factory(BLOCKS).open(tmp_path / "engine")
    assert rows_of(engine) == rows
    engine.close()


def test_a_directory_that_is_open_elsewhere_is_an_os_error(tmp_path: Path) -> None:
    engines = factory()
    engine = engines.open(tmp_path / "engine")
    write_row(engine, 1, b"a", b"1")
    with pytest.raises(OSError, match="an engine is open"):
        engines.open(tmp_path / "engine")
    assert engine.get(b"a") == b"1"
    assert engine.flush() == 1
    with pytest.raises(OSError, match="lock"):
        factory().open(tmp_path / "engine")
    write_row(engine, 2, b"a", b"2")
    with pytest.raises(OSError, match="removed"):
        engine.flush()
    engine.close()
    again = engines.open(tmp_path / "engine")
    assert again.state().decree >= 1
    again.close()


# Checkpoints beside writes.


def test_checkpoints_under_full_load_are_each_exactly_their_decree(tmp_path: Path) -> None:
    engine = factory().open(tmp_path / "engine")
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not stop.is_set():
            written += 1
            write_one(engine, written)

    writer = threading.Thread(target=write)
    writer.start()
    infos = []
    try:
        for number in range(25):
            before = engine.state().decree
            infos.append(engine.checkpoint(tmp_path / f"checkpoint-{number}"))
            assert before <= infos[-1].decree <= written + 1
    finally:
        stop.set()
        writer.join()
    engine.close()
    moved = 0
    for number, info in enumerate(infos):
        again, state = read_checkpoint(LocalDisk(), info.path)
        assert again == info
        copy = factory().open_checkpoint(info.path, tmp_path / f"copy-{number}")
        assert copy.state() == state
        assert rows_of(copy) == rows_at(info.decree)
        # Its files are shared with other checkpoints: writing here must not reach them.
        write_one(copy, info.decree + 1)
        copy.compact()
        copy.close()
        moved += info.decree > 0
    assert moved > 20
    last = factory().open_checkpoint(infos[-1].path, tmp_path / "last")
    assert rows_of(last) == rows_at(infos[-1].decree)
    last.close()


def test_the_state_of_a_checkpoint_is_the_newest_in_its_tables(tmp_path: Path) -> None:
    # (level, number, decree): a compaction gives older rows a younger file in a higher level.
    kinds = [(0, 5, 20), (0, 7, 30), (1, 9, 10), (2, 4, 5)]
    tables = []
    for level, number, decrees in kinds:
        engine = factory().open(tmp_path / str(number))
        for decree in range(1, decrees + 1):
            write_row(engine, decree, b"key", b"row")
        engine.close()
        (table,) = tables_in(tmp_path / str(number))
        target = tmp_path / f"{number:06d}.ldb"
        shutil.copy(table, target)
        size = target.stat().st_size
        tables.append(LiveTable(number, level, size, b"key" + bytes(8), STATE_KEY + bytes(8)))
    # Its keys end before the state.
    tables.append(LiveTable(99, 0, 1, b"a" + bytes(8), b"z" + bytes(8)))
    disk = LocalDisk()

    def newest(left_out: set[int]) -> int:
        some = [table for table in tables if table.number not in left_out]
        found = {_state_in_tables(disk, tmp_path, order).decree for order in (some, some[::-1])}
        assert len(found) == 1
        return found.pop()

    assert newest(set()) == 30
    assert newest({7}) == 20
    assert newest({7, 5}) == 10
    assert newest({7, 5, 9}) == 5
    assert newest({7, 5, 9, 4}) == 0


def test_a_checkpoint_is_links_and_not_copies(tmp_path: Path) -> None:
    engine = factory().open(tmp_path / "engine")
    write_row(engine, 1, b"a", b"1")
    info = engine.checkpoint(tmp_path / "checkpoint")
    linked = [name for name, _ in info.files if name.endswith(".ldb")]
    assert len(linked) == 1
    for name in linked:
        assert (tmp_path / "engine" / name).samefile(info.path / name)
    others = [name for name, _ in info.files if name not in linked]
    assert len(others) == 2
    for name in others:
        assert not (tmp_path / "engine" / name).samefile(info.path / name)
    assert not list(info.path.glob("*.log"))
    engine.close()


class OtherFileSystem(LocalDisk):
    """A disk on which no file can have a second name."""

    def link(self, source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "cross-device link", str(source))


def test_a_checkpoint_of_another_file_system_is_copied(tmp_path: Path) -> None:
    engine = factory().open(tmp_path / "engine")
    for decree in range(1, 101):
        write_one(engine, decree)
    info = engine.checkpoint(tmp_path / "checkpoint")
    engine.close()
    copying = LevelDBFactory(OtherFileSystem(), SMALL)
    copy = copying.open_checkpoint(info.path, tmp_path / "copy")
    assert rows_of(copy) == rows_at(100)
    copy.close()


# Options.


def test_the_block_cache_is_one_budget_for_all_engines(tmp_path: Path) -> None:
    budget = 64 * 1024 * 1024
    engines = LevelDBFactory(LocalDisk(), StorageOptions(block_cache_bytes=budget))
    paths = [tmp_path / str(number) for number in range(40)]
    shares = [engines._admit(path) for path in paths]
    assert shares[0] == budget // 16
    assert shares == sorted(shares, reverse=True)
    least = 512 * 1024
    assert shares[-1] == least
    assert sum(share for share in shares if share > least) <= budget
    for path, share in zip(paths, shares, strict=True):
        engines._dismiss(path, share)
    engine = engines.open(tmp_path / "engine")
    assert engines._cache_left == budget - shares[0]
    engine.close()
    engine.close()
    assert engines._cache_left == budget
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "CURRENT").write_bytes(b"MANIFEST-000001\n")
    with pytest.raises(CorruptionError):
        engines.open(tmp_path / "bad")
    assert engines._cache_left == budget


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("write_buffer_bytes", 1_000),
        ("block_cache_bytes", -1),
        ("block_bytes", 100),
        ("bloom_bits", 31),
        ("table_file_bytes", 1_000),
        ("open_files_max", 20),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=name):
        options_from_mapping(StorageOptions, {name: value}, section="storage")
    options_from_mapping(StorageOptions, {}, section="storage")


def test_the_state_is_in_the_same_batch_as_the_rows(tmp_path: Path) -> None:
    engine = factory().open(tmp_path / "engine")
    write_row(engine, 7, b"a", b"1")
    snapshot = engine.snapshot()
    write_row(engine, 8, b"a", b"2")
    assert snapshot.get(STATE_KEY) == ReplicaState(7, 1, 70).encode()
    assert snapshot.get(b"a") == b"1"
    snapshot.close()
    engine.close()
