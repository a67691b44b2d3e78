import pytest

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import ENV_COUNT_MAX, TTL_SECONDS_MAX
from pegaskv.base.types import Durability
from pegaskv.meta import envs


def test_every_env_has_a_meaning_and_a_sample_that_it_takes() -> None:
    assert set(envs.ENVS) == {"default_ttl", "durability"}
    for name, env in envs.ENVS.items():
        assert env.name == name
        assert env.meaning
        assert envs.checked({name: env.sample}) == {name: env.sample}


@pytest.mark.parametrize("value", ["0", "1", "86400", str(TTL_SECONDS_MAX), "007"])
def test_a_time_to_live_is_stored_as_a_plain_number(value: str) -> None:
    assert envs.checked({"default_ttl": value}) == {"default_ttl": str(int(value))}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "+1",
        " 1",
        "1_0",
        "1.5",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "1h",
        str(TTL_SECONDS_MAX + 1),
        "9" * 5_000,
    ],
)
def test_what_is_no_time_to_live_is_refused_with_an_example(value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        envs.checked({"default_ttl": value})
    assert "default_ttl" in caught.value.message


def test_durability_is_fsync_or_os() -> None:
    assert [one.value for one in Durability] == ["fsync", "os"]
    for value in ("fsync", "os"):
        assert envs.checked({"durability": value}) == {"durability": value}
    with pytest.raises(InvalidArgument, match="fsync or os") as caught:
        envs.checked({"durability": "never"})
    assert "durability=fsync" in caught.value.hint


def test_an_unknown_env_is_refused_with_the_nearest_and_all_known() -> None:
    with pytest.raises(InvalidArgument, match="unknown env `default_tll`") as caught:
        envs.checked({"default_tll": "1"})
    assert caught.value.hint == "did you mean `default_ttl`? known: default_ttl, durability"
    with pytest.raises(InvalidArgument) as caught:
        envs.checked({"": "1"})
    assert caught.value.hint == "known: default_ttl, durability"


def test_envs_of_newer_software_are_kept_and_can_be_deleted() -> None:
    old = {"new.thing": "1", "new.other": "2", "news": "3"}
    merged = envs.merged(old, {"default_ttl": "5"})
    assert merged == {**old, "default_ttl": "5"}
    envs.check_deleted(["new.thing", "durability"], merged)
    with pytest.raises(InvalidArgument):
        envs.check_deleted(["other"], merged)
    assert envs.cleared(merged, "new") == {"news": "3", "default_ttl": "5"}
    assert envs.cleared(merged, None) == {}


def test_a_table_has_a_bounded_number_of_envs() -> None:
    old = {f"new.{number}": "" for number in range(ENV_COUNT_MAX)}
    with pytest.raises(InvalidArgument, match="at most"):
        envs.merged(old, {"durability": "os"})
    assert len(envs.merged(old, {"new.1": "x"})) == ENV_COUNT_MAX


def test_durability_os_with_one_replica_is_warned_of() -> None:
    assert "power" in envs.warnings({"durability": "os"}, 1)[0]
    assert envs.warnings({"durability": "os"}, 2) == []
    assert envs.warnings({"durability": "fsync"}, 1) == []
    assert envs.warnings({}, 1) == []
