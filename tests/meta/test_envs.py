import re

import pytest

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import ENV_COUNT_MAX, TTL_SECONDS_MAX
from pegaskv.base.types import Durability
from pegaskv.meta import envs


def test_every_env_has_a_meaning_and_a_sample_that_it_takes() -> None:
    assert set(envs.ENVS) == {
        "default_ttl",
        "durability",
        "replica.write_throttling",
        "replica.write_throttling_by_size",
        "replica.read_throttling",
        "replica.read_throttling_by_size",
        "replica.slow_query_threshold",
        "manual_compact.once.trigger_time",
        "manual_compact.disabled",
    }
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
    known = "known: default_ttl, durability, replica.write_throttling, "
    assert caught.value.hint.startswith(f"did you mean `default_ttl`? {known}")
    with pytest.raises(InvalidArgument) as caught:
        envs.checked({"": "1"})
    assert caught.value.hint.startswith(known)


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


THROTTLED = (
    "replica.write_throttling",
    "replica.write_throttling_by_size",
    "replica.read_throttling",
)


@pytest.mark.parametrize("name", THROTTLED)
@pytest.mark.parametrize(
    "value",
    ["200*delay*100", "500*reject*0", "1K*delay*1,2M*reject*60000", "300*reject*200,200*delay*100"],
)
def test_throttling_is_kept_as_it_is_written(name: str, value: str) -> None:
    assert envs.checked({name: value}) == {name: value}


@pytest.mark.parametrize("name", THROTTLED)
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("", "not N"),
        ("200", "not N"),
        ("200*delay", "not N"),
        ("200*delay*100*1", "not N"),
        ("200*delay*100,", "not N"),
        ("200*delays*100", "neither delay nor reject"),
        ("200*DELAY*100", "neither delay nor reject"),
        ("1*delay*1,2*delay*2", "delay is given twice"),
        ("0*reject*100", "number above 0"),
        ("-5*reject*100", "number above 0"),
        ("5k*reject*100", "number above 0"),
        ("5G*reject*100", "number above 0"),
        ("9999999999999*reject*100", "number above 0"),
        ("\N{ARABIC-INDIC DIGIT ONE}*reject*100", "number above 0"),
        ("5*reject*60001", "from 0 to 60000"),
        ("5*reject*-1", "from 0 to 60000"),
        ("5*reject*1s", "from 0 to 60000"),
        ("5*reject* 1", "from 0 to 60000"),
    ],
)
def test_what_is_no_throttling_is_refused_with_the_part_and_an_example(
    name: str, value: str, why: str
) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(why)) as caught:
        envs.checked({name: value})
    assert name in caught.value.message
    assert f"{name}=" in caught.value.hint


def test_reads_are_throttled_by_size_with_a_number_or_a_reject() -> None:
    name = "replica.read_throttling_by_size"
    for value in ("1", "20M", "5K*reject*100", "1M*delay*5,2M*reject*5", "1M*delay*5"):
        assert envs.checked({name: value}) == {name: value}
    for value in ("", "0", "20G", "20M*reject", "M"):
        with pytest.raises(InvalidArgument, match="cannot be"):
            envs.checked({name: value})
    assert envs.warnings({name: "1M"}, 1) == []
    assert "does nothing" in envs.warnings({name: "1M*delay*5,2M*reject*5"}, 1)[0]
    assert "no read" in envs.warnings({name: "1M*delay*5"}, 1)[0]


def test_requests_are_slow_from_20_ms_on() -> None:
    name = "replica.slow_query_threshold"
    for value in ("20", "100", "3600000"):
        assert envs.checked({name: value}) == {name: value}
    for value in ("19", "0", "", "1s", "-20", "3600001"):
        with pytest.raises(InvalidArgument, match="from 20 to"):
            envs.checked({name: value})


def test_the_envs_of_pegasus_are_cleared_by_their_prefix() -> None:
    table = envs.checked(dict.fromkeys(THROTTLED, "1*reject*1") | {"default_ttl": "1"})
    assert envs.cleared(table, "replica") == {"default_ttl": "1"}
