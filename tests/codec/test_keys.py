"""Stored keys: their order, their bounds, and what is the server's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.limits import HASH_KEY_BYTES_MAX
from pegaskv.codec.keys import (
    RESERVED_PREFIX,
    decode_key,
    encode_key,
    end_of_prefix,
    hash_key_range,
)

# Bytes at the edges are likelier than chance makes them.
KEYS = st.binary(max_size=12) | st.lists(
    st.sampled_from([0x00, 0x01, 0x7F, 0xFE, 0xFF]), max_size=6
).map(bytes)


@given(KEYS, KEYS)
def test_a_key_is_decoded_as_it_was_encoded(hash_key: bytes, sort_key: bytes) -> None:
    assert decode_key(encode_key(hash_key, sort_key)) == (hash_key, sort_key)


@given(KEYS, KEYS, KEYS, KEYS)
def test_two_rows_never_share_a_key(first: bytes, a: bytes, second: bytes, b: bytes) -> None:
    assert (encode_key(first, a) == encode_key(second, b)) == ((first, a) == (second, b))


@given(KEYS, KEYS, KEYS)
def test_rows_of_one_hash_key_are_in_sort_key_order(hash_key: bytes, a: bytes, b: bytes) -> None:
    assert (encode_key(hash_key, a) < encode_key(hash_key, b)) == (a < b)


@given(KEYS, KEYS, KEYS, KEYS)
def test_rows_of_different_hash_keys_are_ordered_by_length_then_bytes(
    first: bytes, a: bytes, second: bytes, b: bytes
) -> None:
    if first != second:
        expected = (len(first), first) < (len(second), second)
        assert (encode_key(first, a) < encode_key(second, b)) == expected


@given(KEYS, KEYS, KEYS)
def test_the_range_of_a_hash_key_holds_its_rows_and_no_others(
    hash_key: bytes, other: bytes, sort_key: bytes
) -> None:
    first, end = hash_key_range(hash_key)
    assert first <= encode_key(hash_key, sort_key) < end
    if other != hash_key:
        assert not first <= encode_key(other, sort_key) < end


@pytest.mark.parametrize(
    "hash_key",
    [
        b"",
        b"\xff",
        b"\xff" * 255,
        b"\xff" * 256,
        b"\xff" * HASH_KEY_BYTES_MAX,
        b"\x00" * HASH_KEY_BYTES_MAX,
        b"a\xff\xff",
    ],
    ids=lambda key: f"{len(key)} bytes",
)
def test_the_range_of_an_edge_hash_key_is_exact(hash_key: bytes) -> None:
    first, end = hash_key_range(hash_key)
    assert first == encode_key(hash_key, b"")
    assert first < encode_key(hash_key, b"\xff" * 1_000) < end
    assert end <= RESERVED_PREFIX
    # The end is the smallest such key: nothing of the prefix is at or above it.
    assert end == end_of_prefix(first)
    assert not end.startswith(first)


@given(KEYS, KEYS)
def test_the_end_of_a_prefix_is_above_all_its_keys_and_no_others(prefix: bytes, key: bytes) -> None:
    end = end_of_prefix(prefix)
    if not end:
        assert prefix == b"\xff" * len(prefix)
        return
    assert prefix + key < end
    if key >= prefix and not key.startswith(prefix):
        assert key >= end


@given(KEYS, KEYS)
def test_reserved_keys_are_above_every_row(hash_key: bytes, sort_key: bytes) -> None:
    assert encode_key(hash_key, sort_key) < RESERVED_PREFIX


def test_the_longest_hash_key_is_below_the_reserved_keys() -> None:
    assert encode_key(b"\xff" * HASH_KEY_BYTES_MAX, b"\xff" * 10) < RESERVED_PREFIX


def test_a_longer_hash_key_would_be_reserved_and_the_limit_forbids_it() -> None:
    assert encode_key(b"a" * (HASH_KEY_BYTES_MAX + 1), b"").startswith(RESERVED_PREFIX)


@pytest.mark.parametrize(
    "key",
    [b"", b"\x00", b"\x01", b"\x00\x01", b"\x00\x05abcd", b"\xff\xff", b"\xff\xffstate", b"\xff"],
    ids=repr,
)
def test_what_is_no_row_key_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="not the key of a row"):
        decode_key(key)


@given(st.binary(max_size=20))
def test_any_bytes_are_a_row_key_or_a_value_error(key: bytes) -> None:
    try:
        hash_key, sort_key = decode_key(key)
    except ValueError:
        return
    assert encode_key(hash_key, sort_key) == key


def test_the_layout_of_a_key_never_changes() -> None:
    assert encode_key(b"hash", b"sort").hex() == "0004" + "68617368" + "736f7274"
    assert encode_key(b"", b"").hex() == "0000"
