from typing import Any

import pytest

from pegaskv.base.errors import ConfigurationError, InvalidArgument
from pegaskv.client.arguments import (
    as_bytes,
    as_hash_key,
    as_int64,
    as_sort_keys,
    as_timeout_ms,
    as_ttl,
    as_values,
    check_operation,
    parse_metas,
)
from pegaskv.client.options import ClientOptions, Filter, RangeOptions, ScanOptions


@pytest.mark.parametrize(
    ("given", "data"),
    [(b"a", b"a"), ("ä", "ä".encode()), (bytearray(b"b"), b"b"), (memoryview(b"cde")[1:], b"de")],
)
def test_bytes_text_and_buffers_become_bytes(given: Any, data: bytes) -> None:
    assert as_bytes("value", given, 10) == data
    assert type(as_bytes("value", given, 10)) is bytes


@pytest.mark.parametrize("wrong", [None, 1, 1.5, ["a"], object(), "\ud800"])
def test_what_is_no_bytes_is_refused_by_name(wrong: object) -> None:
    with pytest.raises(InvalidArgument, match="value"):
        as_bytes("value", wrong, 10)


def test_a_refusal_names_argument_size_and_limit() -> None:
    with pytest.raises(InvalidArgument, match="value has 11 bytes; the limit is 10"):
        as_bytes("value", b"x" * 11, 10)
    with pytest.raises(InvalidArgument, match="hash_key has 65535 bytes; the limit is 65534"):
        as_hash_key(b"x" * 65_535)


def test_the_empty_hash_key_is_refused_where_one_must_be_named() -> None:
    assert as_hash_key("") == b""
    with pytest.raises(InvalidArgument, match="hash_key is empty"):
        as_hash_key("", empty_allowed=False)


@pytest.mark.parametrize("wrong", [True, None, 1.0, "1", -1, 2_000_000_001])
def test_a_time_to_live_is_whole_seconds_from_zero(wrong: object) -> None:
    assert as_ttl(0) == 0
    assert as_ttl(-1, least=-1) == -1
    with pytest.raises(InvalidArgument, match="ttl"):
        as_ttl(wrong)


@pytest.mark.parametrize("wrong", [0, -1, True, None, "1", float("nan"), float("inf"), 1e9])
def test_a_time_limit_is_seconds_above_zero(wrong: object) -> None:
    assert as_timeout_ms(0.0001) == 1
    assert as_timeout_ms(2) == 2_000
    with pytest.raises(InvalidArgument, match="timeout"):
        as_timeout_ms(wrong)


@pytest.mark.parametrize("wrong", [1 << 63, -(1 << 63) - 1, True, 1.0, None])
def test_an_increment_has_64_bits(wrong: object) -> None:
    assert as_int64("by", -(1 << 63)) == -(1 << 63)
    with pytest.raises(InvalidArgument, match="by"):
        as_int64("by", wrong)


@pytest.mark.parametrize("wrong", [[], b"abc", "abc", {}, {b"a": 1}, 5, [None]])
def test_sort_keys_are_a_list_with_one_at_least(wrong: object) -> None:
    assert as_sort_keys(["b", b"a", "b"]) == [b"b", b"a", b"b"]
    with pytest.raises(InvalidArgument, match="sort_keys"):
        as_sort_keys(wrong)


def test_values_are_a_mapping_with_one_row_at_least() -> None:
    assert as_values({"a": b"1", b"b": "2"}) == [b"a", b"1", b"b", b"2"]
    for wrong in ({}, [("a", b"1")], None, {"a": None}, {None: b"1"}, {"a": b"1", b"a": b"2"}):
        with pytest.raises(InvalidArgument):
            as_values(wrong)


def test_an_atomic_operation_is_bounded_in_rows_and_bytes() -> None:
    check_operation("values", rows=10_000, byte_count=1024 * 1024)
    check_operation("values", rows=1, byte_count=2 * 1024 * 1024)
    with pytest.raises(InvalidArgument, match="10001 rows; the limit of an atomic operation"):
        check_operation("values", rows=10_001, byte_count=1)
    with pytest.raises(InvalidArgument, match="1048577 bytes"):
        check_operation("values", rows=2, byte_count=1024 * 1024 + 1)


def test_meta_servers_come_by_commas_or_as_a_list_each_once() -> None:
    assert parse_metas(" a:1, b:2,,a:1") == ["a:1", "b:2"]
    assert parse_metas(["a:1", "[::1]:7"]) == ["a:1", "[::1]:7"]
    assert parse_metas("meta") == ["meta:34601"]
    assert parse_metas("[::1]") == ["[::1]:34601"]
    for wrong in (
        "",
        ",",
        "a:b",
        "a:0",
        "a:65536",
        "::1:5",
        "a:",
        ":5",
        [5],
        "a:٣",
        None,
        5,
        b"a:1",
    ):
        with pytest.raises(InvalidArgument):
            parse_metas(wrong)  # type: ignore[arg-type]


def test_options_are_checked_when_they_are_made() -> None:
    for wrong in (
        {"batch_size": 0},
        {"batch_size": True},
        {"reverse": True},
        {"no_value": 1},
        {"sort_key_filter": b"a"},
        {"value_filter": "x"},
        {"return_expire": None},
    ):
        with pytest.raises(InvalidArgument):
            ScanOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        RangeOptions(start_inclusive=None)  # type: ignore[arg-type]
    assert Filter.prefix("a").pattern == b"a"
    with pytest.raises(InvalidArgument):
        Filter.exact(None)  # type: ignore[arg-type]
    for name in ("timeout_ms", "connect_timeout_ms", "requests_in_flight_max"):
        with pytest.raises(ConfigurationError, match=name):
            ClientOptions(**{name: 0}).validate()
