"""When a write to LevelDB on the loop would be made to wait, and when not."""

from pathlib import Path

from pegaskv.storage.leveldb import LevelDBEngine, LevelDBFactory
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.options import StorageOptions
from tests.storage.engine_contract import write_row
from tests.storage.test_leveldb import factory, tables_in


def test_an_engine_is_calm_until_its_memtable_is_nearly_full(tmp_path: Path) -> None:
    options = StorageOptions(write_buffer_bytes=8 * 1024 * 1024)
    engine = factory(options).open(tmp_path / "engine")
    row = b"x" * 10_000
    decree = 0
    while engine.calm():
        decree += 1
        write_row(engine, decree, b"%d" % decree, row)
    # A MiB may pass between two looks.
    assert 5.9 * 1024 * 1024 < decree * 10_000 < 7.2 * 1024 * 1024
    assert not tables_in(tmp_path / "engine"), "it looked too late"
    engine.flush()
    assert engine.calm()
    engine.close()


def test_an_engine_is_calm_again_when_leveldb_has_switched_memtables(tmp_path: Path) -> None:
    engine = factory(StorageOptions(write_buffer_bytes=4 * 1024 * 1024)).open(tmp_path / "engine")
    row = b"x" * 10_000
    seen: list[bool] = []
    for decree in range(1, 3_000):
        write_row(engine, decree, b"%d" % decree, row)
        calm = engine.calm()
        if not seen or seen[-1] != calm:
            seen.append(calm)
        if seen == [True, False, True]:
            break
    assert seen == [True, False, True]
    engine.close()


def test_many_files_in_level_0_are_not_calm(tmp_path: Path) -> None:
    engine: LevelDBEngine = factory().open(tmp_path / "engine")

    class Crowded:
        files = b"5"

        def get_property(self, name: bytes) -> bytes:
            assert name == b"leveldb.num-files-at-level0"
            return self.files

    crowded = Crowded()
    assert engine._sample(crowded)
    crowded.files = b"6"
    assert not engine._sample(crowded)
    assert engine._db.get_property(b"leveldb.num-files-at-level0") == b"0"
    engine.close()


def test_no_engine_is_calm_while_one_of_them_flushes(tmp_path: Path) -> None:
    seen: list[bool] = []

    class Watching(LocalDisk):
        def list(self, path: Path) -> list[str]:
            # The look for the newest log is a part of every flush.
            seen.extend(engine.calm() for engine in engines)
            return super().list(path)

    engines: list[LevelDBEngine] = []
    made = LevelDBFactory(Watching())
    opened = [made.open(tmp_path / name) for name in ("one", "other")]
    write_row(opened[0], 1, b"key", b"row")
    engines = opened
    opened[0].flush()
    assert seen, "it was not looked"
    assert not any(seen)
    assert all(engine.calm() for engine in opened)
    engines = []
    for engine in opened:
        engine.close()
