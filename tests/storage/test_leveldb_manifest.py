"""The MANIFEST parser against what LevelDB itself writes, and against anything else."""

import re
from pathlib import Path
from random import Random
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.engine import ReplicaState
from pegaskv.storage.leveldb import LevelDBEngine, LevelDBFactory
from pegaskv.storage.leveldb_manifest import (
    LiveTable,
    ManifestReader,
    manifest_name,
    masked_crc32c,
    read_varint,
)
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.options import StorageOptions
from tests.helpers import wait_until


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes((value,))


def string(data: bytes) -> bytes:
    return varint(len(data)) + data


def new_table(level: int, number: int, size: int = 10, key: bytes = b"k" + bytes(8)) -> bytes:
    return b"\x07" + varint(level) + varint(number) + varint(size) + string(key) * 2


def deleted_table(level: int, number: int) -> bytes:
    return b"\x06" + varint(level) + varint(number)


def numbers(log: int = 3, next_file: int = 100, sequence: int = 7) -> bytes:
    return b"\x02" + varint(log) + b"\x03" + varint(next_file) + b"\x04" + varint(sequence)


COMPARATOR = b"\x01" + string(b"leveldb.BytewiseComparator")


def as_log(records: list[bytes]) -> bytes:
    """Records as LevelDB writes them: in blocks of 32 KiB, split where they do not fit."""
    out = bytearray()
    for record in records:
        first = True
        while True:
            left = 32_768 - len(out) % 32_768
            if left < 7:
                out += bytes(left)
                left = 32_768
            piece, record = record[: left - 7], record[left - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, True): 4, (False, False): 3}[
                first, not record
            ]
            body = bytes((kind,)) + piece
            out += pack("<IH", masked_crc32c(body), len(piece)) + body
            first = False
            if not record:
                break
    return bytes(out)


def read(data: bytes) -> ManifestReader:
    reader = ManifestReader()
    reader.advance(data)
    reader.check_end(data[reader.valid_bytes :])
    return reader


def live(reader: ManifestReader) -> list[tuple[int, int]]:
    return [(table.level, table.number) for table in reader.tables()]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The MANIFEST of a database with several levels."""
    path = tmp_path_factory.mktemp("real") / "engine"
    options = StorageOptions(write_buffer_bytes=64 * 1024, table_file_bytes=1024 * 1024)
    engine = LevelDBFactory(LocalDisk(), options).open(path)
    noise = Random(1)
    for decree in range(1, 3_000):
        key = b"%05d" % noise.randrange(2_000)
        engine.write([key, noise.randbytes(500)], ReplicaState(decree, 1, 1))
    engine.close()
    return (path / manifest_name((path / "CURRENT").read_bytes())).read_bytes()


def test_the_live_tables_are_those_that_leveldb_lists(tmp_path: Path) -> None:
    options = StorageOptions(write_buffer_bytes=64 * 1024, table_file_bytes=1024 * 1024)
    engine = LevelDBFactory(LocalDisk(), options).open(tmp_path)
    noise = Random(1)
    seen_levels = set()
    decree = 0

    def live_here() -> list[tuple[int, int, int]]:
        tables = read((tmp_path / "MANIFEST-000002").read_bytes()).tables()
        return sorted((table.level, table.number, table.size) for table in tables)

    for _ in range(30):
        for _ in range(200):
            decree += 1
            key = b"%05d" % noise.randrange(2_000)
            engine.write([key, noise.randbytes(500)], ReplicaState(decree, 1, 1))
        # A compaction may end between the two looks.
        wait_until(lambda: live_here() == listed_by_leveldb(engine), what="one list of tables")
        seen_levels |= {level for level, _, _ in live_here()}
    engine.close()
    assert len(seen_levels) > 1


def listed_by_leveldb(engine: LevelDBEngine) -> list[tuple[int, int, int]]:
    found = []
    level = -1
    for line in engine._db.get_property(b"leveldb.sstables").decode("latin-1").splitlines():
        if match := re.match(r"--- level (\d+) ---", line):
            level = int(match[1])
        elif match := re.match(r" (\d+):(\d+)\[", line):
            found.append((level, int(match[1]), int(match[2])))
    return sorted(found)


def test_every_beginning_of_a_manifest_is_an_older_version(real: bytes) -> None:
    data = real
    versions = set()
    empty = 0
    for end in range(len(data)):
        reader = ManifestReader()
        reader.advance(data[:end])
        try:
            reader.check_end(data[reader.valid_bytes : end])
        except CorruptionError:
            # Only the first record is too little for a version.
            assert not versions
            empty += 1
        else:
            versions.add(tuple(live(reader)))
    assert len(versions) > 10
    assert 0 < empty < 200


@pytest.mark.parametrize("step", [1, 7, 64, 4_096, 40_000])
def test_the_pieces_that_a_manifest_arrives_in_never_matter(real: bytes, step: int) -> None:
    data = real
    reader = ManifestReader()
    for end in range(0, len(data) + step, step):
        reader.advance(data[reader.valid_bytes : end])
    assert reader.tables() == read(data).tables()
    assert reader.valid_bytes == len(data)


def test_a_flipped_byte_is_damage_unless_it_is_in_the_last_record(
    real: bytes,
) -> None:
    data = real
    boundaries = [0]
    for end in range(len(data) + 1):
        reader = ManifestReader()
        reader.advance(data[:end])
        if reader.valid_bytes > boundaries[-1]:
            boundaries.append(reader.valid_bytes)
    assert boundaries[-1] == len(data)
    damaged = torn = 0
    for offset in range(0, len(data), max(1, len(data) // 300)):
        changed = bytearray(data)
        changed[offset] ^= 0x20
        if offset >= boundaries[-2]:
            assert read(bytes(changed)).valid_bytes == boundaries[-2]
            torn += 1
        else:
            with pytest.raises(CorruptionError):
                read(bytes(changed))
            damaged += 1
    assert damaged > 100
    changed = bytearray(data)
    changed[-1] ^= 1
    assert read(bytes(changed)).valid_bytes == boundaries[-2]


def test_records_longer_than_a_block_and_blocks_with_padding_are_read() -> None:
    tables = [new_table(1, number, key=b"k" * 700 + bytes(8)) for number in range(5, 60)]
    # A record of 32 761 bytes and its header fill a block.
    for rest in range(9):
        length = 32_761 - rest - len(COMPARATOR) - 5
        filler = COMPARATOR + b"\x05\x01" + string(b"x" * length)
        data = as_log([filler, b"".join(tables) + numbers()])
        assert len(filler) == 32_761 - rest
        reader = read(data)
        assert reader.valid_bytes == len(data)
        assert len(reader.tables()) == 55


def test_a_table_that_moves_to_another_level_stays_live() -> None:
    reader = read(
        as_log(
            [
                COMPARATOR + numbers(),
                new_table(0, 5) + new_table(0, 6),
                deleted_table(0, 5) + new_table(1, 5),
                deleted_table(0, 6) + deleted_table(1, 99),
            ]
        )
    )
    assert live(reader) == [(1, 5)]
    assert reader.tables() == [LiveTable(5, 1, 10, b"k" + bytes(8), b"k" + bytes(8))]
    assert reader.tables()[0].name == "000005.ldb"
    assert (reader.log_number, reader.next_file_number, reader.last_sequence) == (3, 100, 7)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (b"\x01" + string(b"other"), "ordered by"),
        (b"\x08\x01", "unknown field 8"),
        (new_table(7, 5), "level 7"),
        (new_table(0, 5) + new_table(1, 5), "added twice"),
        (new_table(0, 100), "not handed out"),
        (b"\x07\x00\x05\x0a" + varint(1_000) + b"k", "cut short"),
        (b"\x03", "cut short"),
        (b"\x03" + b"\xff" * 10 + b"\x01", "64 bits"),
        (b"\x03" + b"\xff" * 9 + b"\x02", "64 bits"),
    ],
)
def test_an_edit_that_cannot_be_is_damage(edit: bytes, message: str) -> None:
    with pytest.raises(CorruptionError, match=message):
        read(as_log([COMPARATOR + numbers(), edit]))


@pytest.mark.parametrize("data", [b"", bytes(7), bytes(40_000), as_log([COMPARATOR])])
def test_a_manifest_without_a_version_is_damage(data: bytes) -> None:
    with pytest.raises(CorruptionError, match="no version"):
        read(data)


def test_zeros_behind_the_last_record_are_a_torn_end() -> None:
    data = as_log([COMPARATOR + numbers(), new_table(0, 5)])
    for count in (1, 6, 7, 8, 100, 70_000):
        reader = read(data + bytes(count))
        assert live(reader) == [(0, 5)]
        assert reader.valid_bytes == len(data)


@given(st.binary(max_size=400))
@settings(max_examples=300)
def test_any_bytes_as_an_edit_are_read_or_damage(edit: bytes) -> None:
    data = as_log([COMPARATOR + numbers(), edit])
    try:
        reader = read(data)
    except CorruptionError:
        return
    assert reader.valid_bytes == len(data)


@given(st.binary(max_size=2_000), st.booleans())
@settings(max_examples=300)
def test_any_bytes_as_a_manifest_are_read_or_damage(data: bytes, led: bool) -> None:
    good = as_log([COMPARATOR + numbers()]) if led else b""
    try:
        reader = read(good + data)
    except CorruptionError:
        return
    assert led
    assert reader.valid_bytes >= len(good)


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=3))
def test_a_varint_is_what_was_written(value: int, rest: bytes) -> None:
    data = varint(value)
    assert read_varint(data + rest, 0) == (value, len(data))
    for end in range(len(data)):
        with pytest.raises(CorruptionError):
            read_varint(data[:end], 0)


def test_current_names_a_manifest_and_nothing_else() -> None:
    assert manifest_name(b"MANIFEST-000042\n") == "MANIFEST-000042"
    for bad in (
        b"",
        b"MANIFEST-000042",
        b"MANIFEST-\n",
        b"MANIFEST-12\n",
        b"MANIFEST-00004x\n",
        b"../MANIFEST-000042\n",
        b"MANIFEST-000042\n\n",
        b"MANIFEST-" + b"1" * 30 + b"\n",
    ):
        with pytest.raises(CorruptionError):
            manifest_name(bad)
