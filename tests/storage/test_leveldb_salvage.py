"""What is left of damaged tables: the newest of each key or nothing, and it is said where."""

from pathlib import Path
from random import Random

import pytest

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.engine import ReplicaState
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.leveldb_files import live_tables
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.options import StorageOptions
from tests.storage.engine_contract import rows_of, write_row

BLOCKS = StorageOptions(block_bytes=1024)
KEYS = 400


def factory() -> LevelDBFactory:
    return LevelDBFactory(LocalDisk(), BLOCKS)


def make(path: Path, seed: int) -> tuple[dict[bytes, bytes | None], int]:
    """An engine with tables in several levels; return the newest of each key, and the decree."""
    random = Random(seed)
    engine = factory().open(path)
    newest: dict[bytes, bytes | None] = {}
    decree = 0
    for part in range(5):
        for _ in range(250):
            decree += 1
            key = b"\0\1h%04d" % random.randrange(KEYS)
            row = None if random.random() < 0.2 else b"%d " % decree + random.randbytes(60)
            newest[key] = row
            write_row(engine, decree, key, row)
        engine.flush()
        if part in (0, 1):
            engine.compact()
    engine.close()
    return newest, decree


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("seed", range(30))
def test_every_key_is_at_its_newest_or_inside_of_what_is_said_to_be_lost(
    tmp_path: Path, seed: int
) -> None:
    newest, decree = make(tmp_path / "engine", seed)
    random = Random(seed)
    tables = live_tables(LocalDisk(), tmp_path / "engine")
    assert len({table.level for table in tables}) > 1
    for table in random.sample(tables, random.randint(1, min(3, len(tables)))):
        file = tmp_path / "engine" / table.name
        match random.randrange(5):
            case 0:
                file.unlink()
            case 1:
                file.write_bytes(file.read_bytes()[: table.size // 2])
            case _:
                for _ in range(random.randint(1, 3)):
                    flip(file, random.randrange(table.size))
    known = ReplicaState(decree, 1, decree * 10)
    lost = factory().salvage(tmp_path / "engine", tmp_path / "new", known)
    engine = factory().open(tmp_path / "new")
    found = dict(rows_of(engine))
    assert engine.state() == known
    engine.close()
    missing = 0
    for key, row in newest.items():
        inside = any(first <= key <= last for first, last in lost)
        if found.get(key) != row:
            assert inside, key
            assert key not in found, "an older version came back"
            missing += 1
    assert set(found) <= set(newest)
    assert lost
    assert missing < len(newest)


def test_without_damage_all_rows_come_over_and_nothing_is_said_to_be_lost(tmp_path: Path) -> None:
    newest, decree = make(tmp_path / "engine", 1)
    assert factory().salvage(tmp_path / "engine", tmp_path / "new", ReplicaState()) == []
    engine = factory().open(tmp_path / "new")
    assert dict(rows_of(engine)) == {key: row for key, row in newest.items() if row is not None}
    assert engine.state().decree == decree
    engine.close()


def test_a_younger_table_gives_back_what_a_damaged_older_one_had(tmp_path: Path) -> None:
    engine = factory().open(tmp_path / "engine")
    for decree in range(1, 101):
        write_row(engine, decree, b"\0\1h%04d" % decree, b"old" * 20)
    engine.flush()
    engine.compact()
    write_row(engine, 101, b"\0\1h0050", b"new")
    write_row(engine, 102, b"\0\1h0051", None)
    engine.close()
    old = max(live_tables(LocalDisk(), tmp_path / "engine"), key=lambda table: table.size)
    (tmp_path / "engine" / old.name).unlink()
    lost = factory().salvage(tmp_path / "engine", tmp_path / "new", ReplicaState())
    assert lost == [(old.smallest[:-8], old.largest[:-8])]
    engine = factory().open(tmp_path / "new")
    assert rows_of(engine) == [(b"\0\1h0050", b"new")]
    engine.close()


def test_without_a_manifest_nothing_is_made_up(tmp_path: Path) -> None:
    _, decree = make(tmp_path / "engine", 2)
    (manifest,) = (tmp_path / "engine").glob("MANIFEST-*")
    manifest.unlink()
    with pytest.raises(CorruptionError, match="missing"):
        factory().salvage(tmp_path / "engine", tmp_path / "new", ReplicaState(decree, 1, 1))


def test_when_nobody_knows_how_far_the_tables_were_nothing_is_made_of_them(tmp_path: Path) -> None:
    make(tmp_path / "engine", 3)
    for table in live_tables(LocalDisk(), tmp_path / "engine"):
        (tmp_path / "engine" / table.name).unlink()
    with pytest.raises(CorruptionError, match="reached is lost"):
        factory().salvage(tmp_path / "engine", tmp_path / "new", ReplicaState())
