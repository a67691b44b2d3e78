"""Everything a replica can ask for, in the order in which it must be done."""

from dataclasses import dataclass
from typing import TypeAlias

from pegaskv.replica.prepare_list import Mutation

__all__ = ["Append", "Effect", "Refuse"]


@dataclass(slots=True)
class Append:
    """Put these mutations into the log; `committed` is the commit point that they carry."""

    mutations: list[Mutation]
    committed: int


@dataclass(frozen=True, slots=True)
class Refuse:
    """The event cannot be obeyed, and nothing was changed."""

    reason: str


Effect: TypeAlias = Append | Refuse
