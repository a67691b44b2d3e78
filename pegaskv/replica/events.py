"""Everything that can happen to a replica's role; see `machine` for what happens each tick."""

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Assigned", "Deactivated", "Event"]


@dataclass(frozen=True, slots=True)
class Assigned:
    """The meta server stored that this node is the partition's primary under `ballot`."""

    ballot: int


@dataclass(frozen=True, slots=True)
class Deactivated:
    """The replica must not act in its role any longer."""


Event: TypeAlias = Assigned | Deactivated
