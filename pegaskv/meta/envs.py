"""pure: the envs of tables: which there are, what they mean, which values they take.

An env is a setting of one table that can be changed while it is used. Only what
stands in this registry can be set, so a typo is an answer and never a setting
that does nothing. What a record holds from newer software is kept as it is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pegaskv.base.compaction import MANUAL_COMPACT_DISABLED, MANUAL_COMPACT_ONCE
from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import (
    ENV_COUNT_MAX,
    ENV_VALUE_BYTES_MAX,
    TIMEOUT_MS_MAX,
    TRIGGER_SECONDS_MAX,
    TTL_SECONDS_MAX,
)
from pegaskv.base.options import nearest
from pegaskv.base.throttling import (
    READ_THROTTLING,
    READ_THROTTLING_BY_SIZE,
    SLOW_QUERY_MS_DEFAULT,
    SLOW_QUERY_MS_MIN,
    SLOW_QUERY_THRESHOLD,
    WRITE_THROTTLING,
    WRITE_THROTTLING_BY_SIZE,
    ThrottlingError,
    parse_read_size,
    parse_throttling,
)
from pegaskv.base.types import Durability

__all__ = ["ENVS", "Env", "check_deleted", "checked", "cleared", "merged", "warnings"]


@dataclass(frozen=True, slots=True)
class Env:
    """One env: `read` returns the value as it is stored, or raises ValueError."""

    name: str
    kind: str
    meaning: str
    values: str
    sample: str
    read: Callable[[str], str]


def _number(text: str, least: int, most: int) -> str:
    # `int` alone would take " 1_0 " and digits of other scripts.
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise ValueError
    if not least <= int(text) <= most:
        raise ValueError
    return str(int(text))


def _seconds(text: str) -> str:
    return _number(text, 0, TTL_SECONDS_MAX)


def _slow_ms(text: str) -> str:
    return _number(text, SLOW_QUERY_MS_MIN, TIMEOUT_MS_MAX)


def _trigger_time(text: str) -> str:
    return _number(text, 0, TRIGGER_SECONDS_MAX)


def _switch(text: str) -> str:
    if text not in ("true", "false"):
        raise ValueError
    return text


def _durability(text: str) -> str:
    return Durability(text).value


def _throttling(text: str) -> str:
    parse_throttling(text)
    return text


def _read_size(text: str) -> str:
    parse_read_size(text)
    return text


_THROTTLING: Final = "N*delay*MS, N*reject*MS or both with a comma, N with K or M or without"


_ALL: Final = (
    Env(
        "default_ttl",
        "seconds",
        "how long a row lives that is written without a time to live; 0 = for ever",
        f"a whole number from 0 to {TTL_SECONDS_MAX}",
        "86400",
        _seconds,
    ),
    Env(
        "durability",
        "choice",
        "when a write is acknowledged: `fsync` = synced to disk, "
        "`os` = handed to the operating system",
        "fsync or os",
        "fsync",
        _durability,
    ),
    Env(
        WRITE_THROTTLING,
        "throttling",
        "how many writes of a second are taken at once, and what happens to more",
        _THROTTLING,
        "20000*delay*100,30000*reject*200",
        _throttling,
    ),
    Env(
        WRITE_THROTTLING_BY_SIZE,
        "throttling",
        "the same, counted in bytes of keys and values",
        _THROTTLING,
        "20M*delay*100,30M*reject*200",
        _throttling,
    ),
    Env(
        READ_THROTTLING,
        "throttling",
        "how many reads of a second are answered at once, and what happens to more",
        _THROTTLING,
        "20000*delay*100,30000*reject*200",
        _throttling,
    ),
    Env(
        READ_THROTTLING_BY_SIZE,
        "throttling",
        "how many bytes of a second are read before more reads are refused",
        "N or N*reject*MS, N with K or M or without (a delay part does nothing)",
        "20M",
        _read_size,
    ),
    Env(
        SLOW_QUERY_THRESHOLD,
        "milliseconds",
        f"from when on a request is logged as slow; {SLOW_QUERY_MS_DEFAULT} where it is not set",
        f"a whole number from {SLOW_QUERY_MS_MIN} to {TIMEOUT_MS_MAX}",
        str(SLOW_QUERY_MS_DEFAULT),
        _slow_ms,
    ),
    Env(
        MANUAL_COMPACT_ONCE,
        "seconds since 1970",
        "from when on each server rewrites its replicas of the table once, so that removed rows "
        "give their space back; a later time orders it again, 0 = never",
        f"a whole number from 0 to {TRIGGER_SECONDS_MAX}",
        "1767225600",
        _trigger_time,
    ),
    Env(
        MANUAL_COMPACT_DISABLED,
        "choice",
        "`true` keeps what the other env orders from beginning, and stops what has begun",
        "true or false",
        "true",
        _switch,
    ),
)

ENVS: Final[Mapping[str, Env]] = {env.name: env for env in _ALL}


def checked(envs: Mapping[str, str]) -> dict[str, str]:
    """Return `envs` as they are stored.

    Raises:
        InvalidArgument: a name is unknown (the nearest is named) or a value cannot be.

    """
    found = {}
    for name, value in envs.items():
        env = ENVS.get(name)
        if env is None:
            raise _unknown(name)
        if len(value.encode()) > ENV_VALUE_BYTES_MAX:
            raise InvalidArgument(
                f"env `{name}`: the value is longer than {ENV_VALUE_BYTES_MAX} bytes"
            )
        try:
            found[name] = env.read(value)
        except ValueError as error:
            why = f"{error}; " if isinstance(error, ThrottlingError) else ""
            raise InvalidArgument(
                f"env `{name}` cannot be {value[:80]!r}: {why}it is {env.values}",
                hint=f"for example {name}={env.sample}",
            ) from None
    return found


def merged(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return `old` with `new` over it. Raises InvalidArgument when they are too many."""
    result = {**old, **new}
    if len(result) > ENV_COUNT_MAX:
        raise InvalidArgument(f"a table has at most {ENV_COUNT_MAX} envs")
    return result


def check_deleted(names: Iterable[str], old: Mapping[str, str]) -> None:
    """Raise InvalidArgument for a name that is neither known nor set on the table."""
    for name in names:
        if name not in ENVS and name not in old:
            raise _unknown(name)


def cleared(old: Mapping[str, str], prefix: str | None) -> dict[str, str]:
    """Return what is left of `old` without `prefix.*`, or without all when it is None."""
    if prefix is None:
        return {}
    return {name: value for name, value in old.items() if not name.startswith(prefix + ".")}


def warnings(envs: Mapping[str, str], replica_count: int) -> list[str]:
    """Return what the operator should know about a table with these envs."""
    found = []
    if envs.get("durability") == Durability.OS.value and replica_count == 1:
        found.append(
            "durability=os at replica count 1: acknowledged writes of the last moments "
            "can be lost when the machine loses power (not when the server is killed)"
        )
    by_size = envs.get(READ_THROTTLING_BY_SIZE, "")
    if "delay" in by_size:
        found.append(
            f"{READ_THROTTLING_BY_SIZE} only refuses: its delay part does nothing"
            + ("" if "reject" in by_size else ", so no read is throttled by size")
        )
    return found


def _unknown(name: str) -> InvalidArgument:
    known = f"known: {', '.join(ENVS)}"
    guess = nearest(name, list(ENVS))
    return InvalidArgument(
        f"unknown env `{name[:80]}`", hint=f"did you mean `{guess}`? {known}" if guess else known
    )
