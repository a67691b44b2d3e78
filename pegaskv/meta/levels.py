"""pure: function levels: how much a meta server does, by order of an operator.

The levels are Pegasus's, from nothing to everything. What keeps a promise is done at every
level: a table that is half made is finished, and a primary that was started again gets its
new ballot, since without it nobody would serve.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from pegaskv.base.errors import InvalidArgument, StateFreezed
from pegaskv.base.options import nearest
from pegaskv.codec.messages_meta import ProposalKind

__all__ = ["Level", "check_changes_allowed", "proposal_allowed", "read_level"]


class Level(Enum):
    """How much the meta server does; each level does what those before it do."""

    STOPPED = "stopped"
    BLIND = "blind"
    FREEZED = "freezed"
    STEADY = "steady"
    LIVELY = "lively"

    @property
    def repairs(self) -> bool:
        """Whether partitions get new members, and tables may be changed."""
        return self in (Level.STEADY, Level.LIVELY)

    @property
    def fails_over(self) -> bool:
        """Whether members that are gone are taken out."""
        return self.repairs or self is Level.FREEZED

    @property
    def balances(self) -> bool:
        """Whether replicas are moved for balance, and what nobody needs is thrown away."""
        return self is Level.LIVELY

    @property
    def meaning(self) -> str:
        """What is done, in a sentence."""
        return _MEANINGS[self]


_MEANINGS: Final[Mapping[Level, str]] = {
    Level.STOPPED: "no table is changed, and no configuration: a primary that dies has no heir",
    Level.BLIND: "no table is changed, and no configuration: a primary that dies has no heir",
    Level.FREEZED: "members that are gone are taken out; no table is changed, nothing is repaired",
    Level.STEADY: "tables are changed and replicas repaired; nothing is moved or thrown away",
    Level.LIVELY: "everything: replicas are moved for balance, and what nobody needs is removed",
}

_FAILOVER: Final = (ProposalKind.CLAIM, ProposalKind.REMOVE)


def read_level(text: str) -> Level:
    """Return the level of this name. Raises InvalidArgument: there is none."""
    try:
        return Level(text)
    except ValueError:
        known = [one.value for one in Level]
        guess = nearest(text[:80], known)
        raise InvalidArgument(
            f"there is no level `{text[:80]}`",
            hint=f"did you mean `{guess}`?" if guess else f"known: {', '.join(known)}",
        ) from None


def check_changes_allowed(level: Level) -> None:
    """Raise StateFreezed when no table may be changed."""
    if not level.repairs:
        raise StateFreezed(
            f"the meta server's level is {level.value}: {level.meaning}",
            hint="`set_meta_level steady` or `set_meta_level lively` allows changes again",
        )


def proposal_allowed(level: Level, kind: ProposalKind) -> bool:
    """Whether a replica's proposal is taken."""
    return level.fails_over if kind in _FAILOVER else level.repairs
