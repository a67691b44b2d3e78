"""Everything that can happen to a replica."""

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Assigned", "Deactivated", "Event", "Logged", "Proposed"]


# Events of the hot path are made once per partition and tick: slots, not frozen (a frozen
# one costs three times as much).
@dataclass(slots=True)
class Proposed:
    """Operations were collected and want the next decree."""

    payload: bytes
    first_timestamp_us: int
    last_timestamp_us: int


@dataclass(slots=True)
class Logged:
    """The own log holds everything up to `decree`, by the table's durability."""

    decree: int


@dataclass(frozen=True, slots=True)
class Assigned:
    """The meta server stored that this node is the partition's primary under `ballot`."""

    ballot: int


@dataclass(frozen=True, slots=True)
class Deactivated:
    """The replica must not act in its role any longer."""


Event: TypeAlias = Proposed | Logged | Assigned | Deactivated
