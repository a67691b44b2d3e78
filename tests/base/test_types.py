"""The nouns: their numbers are Pegasus's and never change."""

from pegaskv.base.types import (
    EPOCH_UNIX_SECONDS,
    CheckType,
    FilterType,
    Gpid,
    PartitionConfiguration,
)
from pegaskv.base.version import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, VERSION


def test_a_partition_is_written_as_table_dot_index() -> None:
    assert str(Gpid(5, 3)) == "5.3"
    assert Gpid(5, 3) < Gpid(5, 4) < Gpid(6, 0)


def test_the_numbers_of_checks_never_change() -> None:
    assert [check.name for check in CheckType] == [
        "NO_CHECK",
        "NOT_EXIST",
        "NOT_EXIST_OR_EMPTY",
        "EXIST",
        "NOT_EMPTY",
        "MATCH_ANYWHERE",
        "MATCH_PREFIX",
        "MATCH_POSTFIX",
        "BYTES_LESS",
        "BYTES_LESS_OR_EQUAL",
        "BYTES_EQUAL",
        "BYTES_GREATER_OR_EQUAL",
        "BYTES_GREATER",
        "INT_LESS",
        "INT_LESS_OR_EQUAL",
        "INT_EQUAL",
        "INT_GREATER_OR_EQUAL",
        "INT_GREATER",
    ]
    assert [check.value for check in CheckType] == list(range(18))


def test_the_numbers_of_filters_never_change() -> None:
    assert [(kind.name, kind.value) for kind in FilterType] == [
        ("NO_FILTER", 0),
        ("MATCH_ANYWHERE", 1),
        ("MATCH_PREFIX", 2),
        ("MATCH_POSTFIX", 3),
        ("MATCH_EXACT", 4),
    ]


def test_a_partition_that_was_never_assigned_has_ballot_zero_and_nobody() -> None:
    fresh = PartitionConfiguration(Gpid(1, 0), 0, None)
    assert fresh.secondaries == ()


def test_the_epoch_of_expiry_is_the_first_second_of_2016() -> None:
    assert EPOCH_UNIX_SECONDS == 1_451_606_400


def test_the_versions_stand_in_their_order() -> None:
    assert 1 <= PROTOCOL_VERSION_MIN <= PROTOCOL_VERSION
    assert len(VERSION.split(".")) == 3
