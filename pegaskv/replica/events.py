"""Everything that can happen to a replica's role; see `machine` for what happens each tick."""

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "Assigned",
    "Deactivated",
    "Event",
    "Followed",
    "ProposalClosed",
    "ProposalOpened",
    "Taught",
]


@dataclass(frozen=True, slots=True)
class Assigned:
    """The meta server stored that this node is the partition's primary under `ballot`."""

    ballot: int
    secondaries: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Followed:
    """The meta server stored, or the primary of `ballot` says, that this node is a secondary."""

    ballot: int


@dataclass(frozen=True, slots=True)
class Taught:
    """The primary of `ballot` lets this node learn."""

    ballot: int


@dataclass(frozen=True, slots=True)
class ProposalOpened:
    """A change of members is about to be proposed: its outcome will be unknown for a while.

    `joining` is who would be a member, or "".
    """

    joining: str = ""


@dataclass(frozen=True, slots=True)
class ProposalClosed:
    """The outcome is known, and nothing was changed."""


@dataclass(frozen=True, slots=True)
class Deactivated:
    """The replica must not act in its role any longer; `ballot` is by which, 0 = by none."""

    ballot: int = 0


Event: TypeAlias = Assigned | Followed | Taught | ProposalOpened | ProposalClosed | Deactivated
