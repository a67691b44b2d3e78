"""Mutations: what was logged comes back, and what is damaged says so."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.errors import CorruptionError, UnsupportedFormat
from pegaskv.base.limits import BATCH_ROWS_MAX, OPERATION_ROWS_MAX
from pegaskv.base.version import MUTATION_FORMAT
from pegaskv.codec.mutations import (
    OperationKind,
    decode_mutation,
    encode_mutation,
    encode_operation,
    mutation_timestamps,
)

OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(list(OperationKind)),
        st.integers(0, 2**64 - 1),
        st.lists(st.binary(max_size=20) | st.text(max_size=5), max_size=6),
    ),
    max_size=6,
)

SAMPLE = encode_mutation(
    1_000_000,
    [
        encode_operation(OperationKind.WRITE, 7, [b"key", b"row", b"key 2", b"row 2"]),
        encode_operation(OperationKind.PIN, 0, [b"uuid"]),
    ],
)


def encode(operations: list[tuple[OperationKind, int, list[Any]]], first: int = 1) -> bytes:
    return encode_mutation(first, [encode_operation(*operation) for operation in operations])


@given(OPERATIONS)
def test_a_mutation_is_decoded_as_it_was_encoded(
    operations: list[tuple[OperationKind, int, list[Any]]],
) -> None:
    assert list(decode_mutation(encode(operations))) == operations


@given(OPERATIONS, st.integers(0, 2**55))
def test_operation_i_has_the_first_timestamp_plus_i(
    operations: list[tuple[OperationKind, int, list[Any]]], first: int
) -> None:
    last = first + max(len(operations) - 1, 0)
    assert mutation_timestamps(encode(operations, first)) == (first, last)


def test_a_barrier_is_a_mutation_without_operations() -> None:
    barrier = encode_mutation(5, [])
    assert list(decode_mutation(barrier)) == []
    assert mutation_timestamps(barrier) == (5, 5)


@pytest.mark.parametrize("length", range(len(SAMPLE)))
def test_a_mutation_that_is_cut_off_anywhere_is_corrupt(length: int) -> None:
    with pytest.raises(CorruptionError):
        list(decode_mutation(SAMPLE[:length]))


@pytest.mark.parametrize("length", range(13))
def test_the_timestamps_of_a_cut_header_are_corrupt(length: int) -> None:
    with pytest.raises(CorruptionError, match="cut off"):
        mutation_timestamps(SAMPLE[:length])


def test_bytes_behind_the_last_operation_are_corrupt() -> None:
    with pytest.raises(CorruptionError, match="1 bytes follow"):
        list(decode_mutation(SAMPLE + b"\x00"))


@pytest.mark.parametrize("version", [0, MUTATION_FORMAT + 1, 255])
def test_another_version_is_refused_by_its_number(version: int) -> None:
    damaged = bytes([version]) + SAMPLE[1:]
    for read in (lambda: list(decode_mutation(damaged)), lambda: mutation_timestamps(damaged)):
        with pytest.raises(UnsupportedFormat, match=f"mutation version {version}"):
            read()


@pytest.mark.parametrize("kind", [0, 3, 15, 22, 127, 255])
def test_an_unknown_kind_is_refused_and_never_skipped(kind: int) -> None:
    known = encode_operation(OperationKind.WRITE, 1, [b"k", b"r"])
    mutation = encode_mutation(1, [known, encode_operation(kind, 1, []), known])
    operations = decode_mutation(mutation)
    assert next(operations) == (OperationKind.WRITE, 1, [b"k", b"r"])
    with pytest.raises(UnsupportedFormat, match=f"kind {kind} "):
        next(operations)


@pytest.mark.parametrize(
    "body", [b"", b"\xc0", b"\x80", b"\xc4\x01a", b"\xc1", b"\x91", b"\x90\x90"]
)
def test_a_body_that_is_no_list_is_corrupt(body: bytes) -> None:
    operation = struct.pack(">IQB", len(body), 1, OperationKind.WRITE) + body
    with pytest.raises(CorruptionError):
        list(decode_mutation(encode_mutation(1, [operation])))


@pytest.mark.parametrize("length", [2**31, 2**32 - 1])
def test_a_lying_length_is_corrupt_and_allocates_nothing(length: int) -> None:
    operation = struct.pack(">IQB", length, 1, OperationKind.WRITE) + b"\x90"
    with pytest.raises(CorruptionError, match="inside an operation's body"):
        list(decode_mutation(encode_mutation(1, [operation])))


def test_a_lying_count_is_corrupt() -> None:
    with pytest.raises(CorruptionError, match="inside an operation"):
        list(decode_mutation(struct.pack(">BQI", MUTATION_FORMAT, 1, 2**32 - 1)))


@given(st.binary(max_size=120))
def test_of_any_bytes_only_the_two_errors_come_out(data: bytes) -> None:
    for mutation in (data, bytes([MUTATION_FORMAT]) + data):
        try:
            list(decode_mutation(mutation))
        except (CorruptionError, UnsupportedFormat):
            continue


@given(st.integers(0, len(SAMPLE) - 1), st.integers(0, 7))
def test_a_flipped_bit_gives_other_operations_or_one_of_the_two_errors(
    position: int, bit: int
) -> None:
    damaged = bytearray(SAMPLE)
    damaged[position] ^= 1 << bit
    try:
        operations = list(decode_mutation(bytes(damaged)))
    except (CorruptionError, UnsupportedFormat):
        return
    assert bytes(damaged) != SAMPLE
    assert len(operations) == 2


@pytest.mark.parametrize("rows", [BATCH_ROWS_MAX, OPERATION_ROWS_MAX, 4 * OPERATION_ROWS_MAX])
def test_an_operation_of_many_rows_comes_back(rows: int) -> None:
    fields = [b"k", b"r"] * rows
    mutation = encode([(OperationKind.WRITE, 1, fields)])
    assert list(decode_mutation(mutation)) == [(OperationKind.WRITE, 1, fields)]


def test_length_and_hash_stand_in_front_of_each_body() -> None:
    # A duplication cuts the slice of a partition by these, without decoding a body.
    operation = encode_operation(OperationKind.WRITE, 0x0102030405060708, [b"k", b"r"])
    assert operation.hex() == "00000007" + "0102030405060708" + "01" + "92c4016bc40172"


def test_the_layout_of_a_mutation_never_changes() -> None:
    mutation = encode_mutation(0x0A0B, [encode_operation(OperationKind.FENCE, 2, [b"u"])])
    assert mutation.hex() == (
        "01" + "0000000000000a0b" + "00000001" + "00000004" + "0000000000000002" + "12" + "91c40175"
    )


def test_the_numbers_of_kinds_never_change() -> None:
    assert {kind.name: kind.value for kind in OperationKind} == {
        "WRITE": 1,
        "RECEIVED": 2,
        "PIN": 16,
        "UNPIN": 17,
        "FENCE": 18,
        "DURABILITY": 19,
        "SOURCE": 20,
        "FORGET": 21,
    }
