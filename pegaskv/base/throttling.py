"""pure: the throttling rules of a table, as they are written in its envs.

The syntax is Pegasus's: `20000*delay*100,30000*reject*200` lets what comes after the
first 20 000 of a second wait 100 ms, and refuses what comes after 30 000 of them, after
200 ms. Numbers may end in K (a thousand) or M (a million). What an env means for one
partition is decided by the replica server; here is only what can be written.
"""

import re
from dataclasses import dataclass
from typing import Final

__all__ = [
    "READ_THROTTLING",
    "READ_THROTTLING_BY_SIZE",
    "SLOW_QUERY_MS_DEFAULT",
    "SLOW_QUERY_MS_MIN",
    "SLOW_QUERY_THRESHOLD",
    "THROTTLING_MS_MAX",
    "WRITE_THROTTLING",
    "WRITE_THROTTLING_BY_SIZE",
    "Rate",
    "Throttling",
    "ThrottlingError",
    "parse_read_size",
    "parse_throttling",
]

WRITE_THROTTLING: Final = "replica.write_throttling"
WRITE_THROTTLING_BY_SIZE: Final = "replica.write_throttling_by_size"
READ_THROTTLING: Final = "replica.read_throttling"
READ_THROTTLING_BY_SIZE: Final = "replica.read_throttling_by_size"
SLOW_QUERY_THRESHOLD: Final = "replica.slow_query_threshold"

# A request that waits is held in memory: nobody is served by a longer pause.
THROTTLING_MS_MAX: Final = 60_000
SLOW_QUERY_MS_MIN: Final = 20
SLOW_QUERY_MS_DEFAULT: Final = 100

_UNITS: Final = re.compile(r"([0-9]{1,12})([KM]?)", re.ASCII)
_MS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_FACTORS: Final = {"": 1, "K": 1_000, "M": 1_000_000}


class ThrottlingError(ValueError):
    """The text is no throttling rule; the message says which part of it and why."""


@dataclass(frozen=True, slots=True)
class Rate:
    """More than `units` in a second wait `pause_ms`, or are refused after it."""

    units: int
    pause_ms: int


@dataclass(frozen=True, slots=True)
class Throttling:
    """What one env says; a table has at least one of both."""

    delay: Rate | None = None
    reject: Rate | None = None


def parse_throttling(text: str) -> Throttling:
    """Read `N*delay*MS`, `N*reject*MS`, or both with a comma between them.

    Raises:
        ThrottlingError: it is none of these.

    """
    found: dict[str, Rate] = {}
    for part in text.split(","):
        fields = part.split("*")
        if len(fields) != 3:
            raise ThrottlingError(f"{part[:40]!r} is not N*delay*MS or N*reject*MS")
        units, kind, pause = fields
        if kind not in ("delay", "reject"):
            raise ThrottlingError(f"{kind[:40]!r} is neither delay nor reject")
        if kind in found:
            raise ThrottlingError(f"{kind} is given twice")
        if not _MS.fullmatch(pause) or int(pause) > THROTTLING_MS_MAX:
            raise ThrottlingError(
                f"{pause[:40]!r} is not a number of milliseconds from 0 to {THROTTLING_MS_MAX}"
            )
        found[kind] = Rate(_units(units), int(pause))
    return Throttling(found.get("delay"), found.get("reject"))


def parse_read_size(text: str) -> Throttling:
    """Read `N`, or what `parse_throttling` reads: bytes a second, above which reads are refused.

    A delay part says nothing here, as in Pegasus.

    Raises:
        ThrottlingError: it is none of these.

    """
    if "*" not in text:
        return Throttling(reject=Rate(_units(text), 0))
    return Throttling(reject=parse_throttling(text).reject)


def _units(text: str) -> int:
    match = _UNITS.fullmatch(text)
    units = int(match[1]) * _FACTORS[match[2]] if match else 0
    if not units:
        raise ThrottlingError(
            f"{text[:40]!r} is not a number above 0, alone or with K (thousand) or M (million)"
        )
    return units
