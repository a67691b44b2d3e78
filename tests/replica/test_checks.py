"""Checks, incr and filters by Pegasus's rules."""

import pytest

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.types import CheckType, FilterType
from pegaskv.replica.checks import INT64_MAX, INT64_MIN, check_passes, incremented, matches

C = CheckType


@pytest.mark.parametrize(
    ("check", "value", "operand", "passes"),
    [
        (C.NO_CHECK, None, b"", True),
        (C.NO_CHECK, b"x", b"y", True),
        (C.NOT_EXIST, None, b"", True),
        (C.NOT_EXIST, b"", b"", False),
        (C.NOT_EXIST_OR_EMPTY, None, b"", True),
        (C.NOT_EXIST_OR_EMPTY, b"", b"", True),
        (C.NOT_EXIST_OR_EMPTY, b"x", b"", False),
        (C.EXIST, b"", b"", True),
        (C.EXIST, None, b"", False),
        (C.NOT_EMPTY, b"", b"", False),
        (C.NOT_EMPTY, b"x", b"", True),
        (C.NOT_EMPTY, None, b"", False),
        (C.MATCH_ANYWHERE, b"abc", b"b", True),
        (C.MATCH_ANYWHERE, b"abc", b"d", False),
        (C.MATCH_ANYWHERE, b"abc", b"", True),
        (C.MATCH_ANYWHERE, None, b"", False),
        (C.MATCH_PREFIX, b"abc", b"ab", True),
        (C.MATCH_PREFIX, b"abc", b"b", False),
        (C.MATCH_POSTFIX, b"abc", b"bc", True),
        (C.MATCH_POSTFIX, b"abc", b"b", False),
        (C.BYTES_LESS, b"a", b"b", True),
        (C.BYTES_LESS, b"b", b"b", False),
        (C.BYTES_LESS_OR_EQUAL, b"b", b"b", True),
        (C.BYTES_EQUAL, b"b", b"b", True),
        (C.BYTES_EQUAL, None, b"", False),
        (C.BYTES_GREATER_OR_EQUAL, b"b", b"b", True),
        (C.BYTES_GREATER, b"b", b"a", True),
        (C.INT_LESS, b"9", b"10", True),
        (C.INT_LESS_OR_EQUAL, b"10", b"10", True),
        (C.INT_EQUAL, b"+7", b"7", True),
        (C.INT_GREATER_OR_EQUAL, b"-1", b"-1", True),
        (C.INT_GREATER, b"10", b"9", True),
        (C.INT_GREATER, None, b"9", False),
        (C.INT_GREATER, None, b"no number", False),
    ],
)
def test_each_check_type_follows_the_table(
    check: int, value: bytes | None, operand: bytes, passes: bool
) -> None:
    assert check_passes(check, value, operand) is passes


@pytest.mark.parametrize(
    ("value", "operand"),
    [(b"x", b"1"), (b"1", b"x"), (b"", b"1"), (b"1.5", b"1"), (b"9223372036854775808", b"1")],
)
def test_an_integer_check_of_something_else_is_the_callers_mistake(
    value: bytes, operand: bytes
) -> None:
    with pytest.raises(InvalidArgument, match="64-bit integer"):
        check_passes(C.INT_EQUAL, value, operand)


@pytest.mark.parametrize("check", [-1, 18, 1000])
def test_an_unknown_check_type_is_refused(check: int) -> None:
    with pytest.raises(InvalidArgument, match="unknown"):
        check_passes(check, b"1", b"1")


@pytest.mark.parametrize("value", [None, b"", b"0"])
def test_incr_counts_absent_and_empty_as_zero(value: bytes | None) -> None:
    assert incremented(value, 5) == 5
    assert incremented(value, -5) == -5
    assert incremented(value, 0) == 0


@pytest.mark.parametrize(
    ("value", "by"), [(INT64_MAX, 1), (INT64_MIN, -1), (1, INT64_MAX), (-2, INT64_MIN)]
)
def test_incr_past_an_int64_changes_nothing_and_tells_the_old_value(value: int, by: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        incremented(b"%d" % value, by)
    assert caught.value.details == value


@pytest.mark.parametrize("value", [b"x", b"1 ", b" 1", b"1\n", b"0x1", b"--1", b"1_0"])
def test_incr_of_something_else_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument, match="64-bit integer") as caught:
        incremented(value, 1)
    assert caught.value.details == 0


@pytest.mark.parametrize("kind", list(FilterType))
def test_an_empty_pattern_passes_everything(kind: FilterType) -> None:
    assert matches(kind, b"", b"anything")


def test_filters_compare_at_their_place() -> None:
    assert matches(FilterType.MATCH_PREFIX, b"ab", b"abc")
    assert not matches(FilterType.MATCH_PREFIX, b"bc", b"abc")
    assert matches(FilterType.MATCH_POSTFIX, b"bc", b"abc")
    assert matches(FilterType.MATCH_ANYWHERE, b"b", b"abc")
    assert not matches(FilterType.MATCH_ANYWHERE, b"d", b"abc")
    assert matches(FilterType.MATCH_EXACT, b"abc", b"abc")
    assert not matches(FilterType.MATCH_EXACT, b"ab", b"abc")
