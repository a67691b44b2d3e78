"""Options: an unknown key or a wrong type is refused by name."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pegaskv.base.errors import ConfigurationError
from pegaskv.base.options import nearest, options_from_mapping


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """One field of each kind."""

    beacon_interval_ms: int = 1_000
    share: float = 0.5
    name: str = "here"
    enabled: bool = True
    level: Literal["low", "high"] = "low"
    port: int | None = None
    metas: list[str] = field(default_factory=list)

    def validate(self) -> None:
        if self.beacon_interval_ms < 1:
            raise ConfigurationError("[sample] beacon_interval_ms: must be at least 1")


def read(values: dict[str, Any]) -> SampleOptions:
    return options_from_mapping(SampleOptions, values, section="sample")


def test_no_keys_give_the_defaults() -> None:
    assert read({}) == SampleOptions()


def test_given_keys_replace_their_defaults_alone() -> None:
    assert read({"name": "there", "port": 5}) == SampleOptions(name="there", port=5)


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({"beacon_intervall_ms": 5})
    assert "unknown option `beacon_intervall_ms` in section [sample]" in str(caught.value)
    assert "did you mean `beacon_interval_ms`?" in str(caught.value)


def test_an_unknown_key_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(ConfigurationError, match=r"known: beacon_interval_ms, share, name"):
        read({"zzz": 5})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("beacon_interval_ms", "5", "a whole number"),
        ("beacon_interval_ms", 5.0, "a whole number"),
        ("beacon_interval_ms", True, "a whole number"),
        ("share", "much", "a number"),
        ("share", True, "a number"),
        ("name", 5, "a string"),
        ("enabled", 1, "true or false"),
        ("enabled", "yes", "true or false"),
        ("level", "middle", "'low' or 'high'"),
        ("port", "x", "a whole number or nothing"),
        ("port", False, "a whole number or nothing"),
        ("metas", "host:1", "a list"),
        ("name", {"a": 1}, "a string"),
    ],
)
def test_a_wrong_type_is_refused_with_place_and_kind(key: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read({key: value})
    assert f"[sample] {key}: expected {expected}, got {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("share", 1),
        ("share", 0.25),
        ("level", "high"),
        ("port", None),
        ("port", 1),
        ("metas", ["host:1"]),
        ("enabled", False),
    ],
)
def test_a_value_that_fits_is_taken(key: str, value: Any) -> None:
    assert getattr(read({key: value}), key) == value


def test_the_class_may_refuse_a_combination() -> None:
    with pytest.raises(ConfigurationError, match="must be at least 1"):
        read({"beacon_interval_ms": 0})


def test_the_nearest_name_is_none_when_nothing_is_near() -> None:
    assert nearest("craete", ("create", "drop")) == "create"
    assert nearest("xyzzy", ("create", "drop")) is None
