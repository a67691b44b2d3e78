"""Limits: each is a positive number, listed once, and they agree with each other."""

from pathlib import Path

import pytest

from pegaskv.base import limits
from pegaskv.base.hashing import is_power_of_two
from pegaskv.codec.frames import HEADER_BYTES, encode_frame
from pegaskv.codec.operations import Operation


def test_every_limit_is_listed_and_a_positive_whole_number() -> None:
    found = [name for name in vars(limits) if name.isupper()]
    assert sorted(found) == sorted(limits.__all__)
    assert all(type(getattr(limits, name)) is int for name in found)
    assert all(getattr(limits, name) > 0 for name in found)


def test_the_largest_row_and_its_request_fit_a_frame_with_room() -> None:
    message = [
        2**32 - 1,
        int(Operation.CHECK_AND_SET),
        limits.TIMEOUT_MS_MAX,
        2**31,
        limits.PARTITION_COUNT_MAX,
        b"h" * limits.HASH_KEY_BYTES_MAX,
        b"s" * limits.SORT_KEY_BYTES_MAX,
        10,
        b"o" * limits.VALUE_BYTES_MAX,
        b"s" * limits.SORT_KEY_BYTES_MAX,
        b"v" * limits.VALUE_BYTES_MAX,
        limits.TTL_SECONDS_MAX,
        True,
    ]
    assert len(encode_frame([message])) - HEADER_BYTES <= limits.CLIENT_FRAME_BYTES_MAX


def test_the_largest_partition_count_is_a_power_of_two() -> None:
    assert is_power_of_two(limits.PARTITION_COUNT_MAX)


def test_a_hash_key_never_reaches_the_reserved_length() -> None:
    assert limits.HASH_KEY_BYTES_MAX < 0xFFFF


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CLIENT_FRAME_BYTES_MAX", 1024 * 1024),
        ("CLIENT_FRAME_BYTES_MAX", 128 * 1024 * 1024),
        ("PAGE_BYTES_MAX", 8 * 1024 * 1024),
        ("CONNECTION_OUTPUT_BYTES_MAX", 1024),
        ("MUTATION_BYTES_MAX", 64 * 1024 * 1024),
        ("BEFORE_HELLO_BYTES_MAX", 1024 * 1024),
        ("FRAME_VALUES_MAX", 1000),
        ("FRAME_SHARED_BYTES_MAX", 2 * 1024 * 1024),
    ],
)
def test_a_limit_that_contradicts_another_stops_the_import(name: str, value: int) -> None:
    source = Path(limits.__file__).read_text()
    lines = [
        f"{name}: Final = {value}" if line.startswith(f"{name}: Final") else line
        for line in source.splitlines()
    ]
    assert "\n".join(lines) != source.rstrip("\n")
    with pytest.raises(AssertionError):
        exec(compile("\n".join(lines), "limits", "exec"), {"__name__": "limits"})
