"""Everything the meta server can ask for.

A `Commit` is the last of its list, and is performed in place: its result is the next event
of the machine. All others take no time, or are started and come back as events.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pegaskv.base.errors import RequestError
from pegaskv.base.types import TableInfo
from pegaskv.codec.messages_meta import Order, TablePush

__all__ = ["Answer", "Commit", "Effect", "Obey", "Push", "PushLater", "Refuse", "Warn"]


@dataclass(frozen=True, slots=True)
class Commit:
    """Store this, all or nothing, if each guarded key is still at its revision (0 = absent)."""

    guards: tuple[tuple[str, int], ...]
    puts: Mapping[str, bytes] = field(default_factory=dict)
    deletes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Push:
    """Tell a node what is stored about a table; `PushEnded` says how it went."""

    push_id: int
    node_id: str
    push: TablePush


@dataclass(frozen=True, slots=True)
class PushLater:
    """Send `PushDue` after a pause."""

    node_id: str
    table_id: int
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Obey:
    """Give a node an order; `OrderEnded` says how it went."""

    node_id: str
    order: Order


@dataclass(frozen=True, slots=True)
class Answer:
    """The request has been done; `more` are the fields after the table."""

    request_id: int
    table: TableInfo | None
    more: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """The request was not done."""

    request_id: int
    error: RequestError


@dataclass(frozen=True, slots=True)
class Warn:
    """The operator should read this."""

    text: str


Effect: TypeAlias = Commit | Push | PushLater | Obey | Answer | Refuse | Warn
