"""Hashing: where a row lives is decided once and for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.hashing import is_power_of_two, partition_hash, partition_index

# A change of any of these would send every row of every table to another partition.
VECTORS = {
    b"a": 0xE6C632B61E964E1F,
    b"hello": 0x9555E8555C62DCFD,
    b"hashkey": 0x435B6C713458D5FE,
    b"123456789": 0x72DCB18B67A17DFF,
    b"\x00": 0xC44BDFF4074EECDB,
    b"\xff" * 300: 0xA6EB8A92D637E066,
    bytes(range(256)): 0x9408A4433B952D71,
}


@pytest.mark.parametrize(("key", "expected"), VECTORS.items(), ids=lambda x: repr(x)[:20])
def test_the_hash_of_a_key_never_changes(key: bytes, expected: int) -> None:
    assert partition_hash(key, b"ignored") == expected


def test_the_hash_of_nothing_never_changes() -> None:
    assert partition_hash(b"", b"") == 0x2D06800538D394C2


@given(st.binary(min_size=1, max_size=20), st.binary(max_size=20), st.binary(max_size=20))
def test_rows_of_one_hash_key_live_together(hash_key: bytes, a: bytes, b: bytes) -> None:
    assert partition_hash(hash_key, a) == partition_hash(hash_key, b)


@given(st.binary(max_size=20))
def test_an_empty_hash_key_leaves_the_sort_key_to_decide(sort_key: bytes) -> None:
    assert partition_hash(b"", sort_key) == partition_hash(sort_key, b"")


@given(st.binary(max_size=20), st.binary(max_size=20), st.integers(0, 10))
def test_the_partition_is_the_low_bits_of_the_hash(h: bytes, s: bytes, bits: int) -> None:
    assert partition_index(h, s, 1 << bits) == partition_hash(h, s) % (1 << bits)


@given(st.binary(max_size=20), st.integers(0, 9))
def test_doubling_the_count_splits_each_partition_in_two(key: bytes, bits: int) -> None:
    count = 1 << bits
    assert partition_index(key, b"", count * 2) in (
        partition_index(key, b"", count),
        partition_index(key, b"", count) + count,
    )


def test_keys_spread_over_the_partitions() -> None:
    rows = [0] * 8
    for number in range(8_000):
        rows[partition_index(str(number).encode(), b"", 8)] += 1
    assert min(rows) > 800


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, True), (2, True), (1024, True), (0, False), (-2, False), (3, False), (1023, False)],
)
def test_only_powers_of_two_are_partition_counts(count: int, expected: bool) -> None:
    assert is_power_of_two(count) == expected
