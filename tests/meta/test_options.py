import pytest

from pegaskv.base.errors import ConfigurationError
from pegaskv.base.options import options_from_mapping
from pegaskv.meta.options import MetaOptions


def test_the_defaults_are_valid() -> None:
    MetaOptions().validate()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("default_partition_count", 3),
        ("default_partition_count", 2048),
        ("default_partition_count", 0),
        ("default_replica_count", 6),
        ("default_replica_count", 0),
        ("drop_reserve_seconds", -1),
        ("drop_reserve_seconds", 1 << 40),
        ("collect_interval_ms", 0),
        ("push_retry_ms_min", 10_000),
        ("tables_max", 5_000),
        ("requests_max", 0),
        ("guardian_interval_ms", 6_000),
        ("learners_per_node_max", 0),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ConfigurationError, match=name):
        options_from_mapping(MetaOptions, {name: value}, section="meta")


def test_a_reserve_time_of_zero_is_an_option() -> None:
    assert options_from_mapping(MetaOptions, {"drop_reserve_seconds": 0}, section="meta")
