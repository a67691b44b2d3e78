"""One key out of a table: the same as LevelDB says, or damage; never anything else."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import plyvel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.leveldb_table import find_newest, unpack_snappy


def make_table(path: Path, rows: dict[bytes, bytes | None], compression: str | None) -> bytes:
    db = plyvel.DB(str(path), create_if_missing=True, block_size=1024, compression=compression)
    for key, row in rows.items():
        # An older version of each lies behind it, as long as no compaction drops it.
        db.put(key, b"older")
        if row is None:
            db.delete(key)
        else:
            db.put(key, row)
    db.compact_range()
    db.close()
    (table,) = path.glob("*.ldb")
    return table.read_bytes()


def reader_of(data: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: data[offset : offset + length]


def find(data: bytes, key: bytes) -> tuple[int, bytes | None] | None:
    return find_newest(reader_of(data), len(data), key)


def some_rows() -> dict[bytes, bytes | None]:
    noise = Random(5)
    rows: dict[bytes, bytes | None] = {}
    for number in range(300):
        # Alike and unlike, so that blocks are compressed with literals and copies.
        row = b"abc" * noise.randrange(60) + noise.randbytes(noise.randrange(30))
        rows[b"%04d" % (number * 3)] = None if number % 10 == 0 else row
    rows[b"\xff\xffstate"] = b"state"
    return rows


@pytest.mark.parametrize("compression", ["snappy", None])
def test_the_newest_entry_of_each_key_is_found(tmp_path: Path, compression: str | None) -> None:
    rows = some_rows()
    data = make_table(tmp_path / "table", rows, compression)
    last = 0
    for key, row in rows.items():
        found = find(data, key)
        assert found is not None
        assert found[1] == row
        assert found[0] > last
        last = found[0]
    for number in range(900):
        absent = b"%04d" % number
        if absent not in rows:
            assert find(data, absent) is None
    for absent in (b"", b"\xff\xffstatf", b"\xff\xffstat", b"9"):
        assert find(data, absent) is None


@pytest.mark.parametrize("compression", ["snappy", None])
def test_a_flipped_byte_is_damage_or_does_not_matter(
    tmp_path: Path, compression: str | None
) -> None:
    data = make_table(tmp_path / "table", some_rows(), compression)
    key = b"\xff\xffstate"
    right = find(data, key)
    assert right is not None
    refused = 0
    for offset in range(len(data) - 1_500, len(data)):
        changed = bytearray(data)
        changed[offset] ^= 0x04
        try:
            assert find(bytes(changed), key) == right
        except CorruptionError:
            refused += 1
    assert refused > 300
    for end in (0, 10, 47, 48, len(data) // 2, len(data) - 1):
        with pytest.raises(CorruptionError):
            find(data[:end], key)


@given(data=st.data())
@settings(max_examples=100)
def test_no_bytes_with_a_footer_make_it_fail_otherwise(data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=300))
    handles = data.draw(st.binary(min_size=40, max_size=40))
    table = body + handles + bytes.fromhex("57fb808b247547db")
    with pytest.raises(CorruptionError):
        find(table, b"key")


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_unpacked_or_damage(data: bytes) -> None:
    try:
        unpack_snappy(data)
    except CorruptionError:
        return


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        (b"\x00", b""),
        (b"\x03\x08abc", b"abc"),
        # A copy of 1-byte, 2-byte and 4-byte offset; the first overlaps its own output.
        (b"\x09\x00a\x11\x01", b"aaaaaaaaa"),
        (b"\x06\x08abc\x0a\x03\x00", b"abcabc"),
        (b"\x06\x08abc\x0b\x03\x00\x00\x00", b"abcabc"),
        # Literals of 61 bytes and more carry their length in one to four bytes.
        (b"\x64\xf0\x63" + b"x" * 100, b"x" * 100),
        (b"\xac\x02\xf4\x2b\x01" + b"y" * 300, b"y" * 300),
    ],
)
def test_each_element_of_snappy_is_unpacked(packed: bytes, plain: bytes) -> None:
    assert unpack_snappy(packed) == plain
    for end in range(len(packed)):
        with pytest.raises(CorruptionError):
            unpack_snappy(packed[:end])


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\x02\x00a",
        b"\x01\x04ab",
        b"\x06\x08abc\x0a\x04\x00",
        b"\x06\x08abc\x0a\x00\x00",
        b"\xff\xff\xff\xff\x0f\x00a",
    ],
)
def test_what_snappy_never_writes_is_damage(packed: bytes) -> None:
    with pytest.raises(CorruptionError):
        unpack_snappy(packed)
