"""What the parts of the meta machine need of the whole."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from pegaskv.meta.cluster import Change, Cluster, TableRecord
from pegaskv.meta.delivery import Delivery
from pegaskv.meta.effects import Effect
from pegaskv.meta.levels import Level
from pegaskv.meta.nodes import Nodes
from pegaskv.meta.waiting import Need, Waiters

__all__ = ["Host", "Identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this cluster is to others, beside the uuid that is stored."""

    name: str = ""
    cluster_id: int = 0


class Host(Protocol):
    """The meta machine. A part returns effects, of which a commit is the last."""

    cluster: Cluster
    nodes: Nodes
    delivery: Delivery
    waiters: Waiters
    identity: Identity

    @property
    def now(self) -> int:
        """Unix seconds, at the event at hand."""
        ...

    @property
    def now_ms(self) -> int:
        """Monotonic milliseconds, at the event at hand."""
        ...

    @property
    def level(self) -> Level:
        """How much is to be done."""
        ...

    def store(self, change: Change, then: Callable[[], list[Effect]] | None = None) -> list[Effect]:
        """Commit a change; `then` says what follows."""
        ...

    def told(
        self,
        request_id: int,
        table_id: int,
        more: tuple[Any, ...] = (),
        need: Need = Need.STORED,
    ) -> list[Effect]:
        """Tell a table's nodes what is stored, and answer the request when they know."""
        ...

    def begin_creation(
        self, request_id: int, table: TableRecord, more: tuple[Any, ...], need: Need
    ) -> list[Effect]:
        """Store a new table, with the next id, and make it."""
        ...
