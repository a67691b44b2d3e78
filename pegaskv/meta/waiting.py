"""pure: requests that are stored and wait until the nodes know of it."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from pegaskv.base.errors import Unavailable
from pegaskv.base.types import TableStatus
from pegaskv.meta.cluster import Cluster, TableRecord
from pegaskv.meta.delivery import Delivery
from pegaskv.meta.effects import Answer, Effect, Refuse
from pegaskv.meta.nodes import Nodes

__all__ = ["Need", "Waiter", "Waiters"]


class Need(Enum):
    """What a request waits for, and what is answered when it does not come."""

    # To be stored is what was asked for: a node that is away is told later.
    STORED = "stored"
    # A table that is made is available; a node that is away is told later.
    AVAILABLE = "available"
    # As AVAILABLE, and every node has taken it: else the request is refused.
    IN_FORCE = "in force"


@dataclass(slots=True)
class Waiter:
    """A request that is answered when the nodes know `version` of its table."""

    request_id: int
    version: int
    more: tuple[Any, ...]
    need: Need = Need.STORED


class Waiters:
    """All that wait, by table."""

    def __init__(self, cluster: Cluster, delivery: Delivery, nodes: Nodes) -> None:
        self._cluster = cluster
        self._delivery = delivery
        self._nodes = nodes
        self._waiters: dict[int, list[Waiter]] = {}

    def add(self, table_id: int, waiter: Waiter) -> None:
        """Wait; the next `settle` may answer."""
        self._waiters.setdefault(table_id, []).append(waiter)

    def raise_version(self, table_id: int, version: int) -> None:
        """Whoever waits for the table waits for this too."""
        for waiter in self._waiters.get(table_id, ()):
            waiter.version = version

    def settle(self, table_id: int) -> list[Effect]:
        """Answer the requests that have waited long enough."""
        waiters = self._waiters.pop(table_id, [])
        table = self._cluster.tables.get(table_id)
        if not waiters or table is None:
            return []
        effects: list[Effect] = []
        left: list[Waiter] = []
        for waiter in waiters:
            effect = self._outcome(table, waiter)
            if effect is None:
                left.append(waiter)
            else:
                effects.append(effect)
        if left:
            self._waiters[table_id] = left
        return effects

    def end(self, table_id: int) -> list[Effect]:
        """The table is gone: so is what they waited for."""
        waiters = self._waiters.pop(table_id, [])
        return [Answer(one.request_id, None, one.more) for one in waiters]

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        for table_id, waiters in self._waiters.items():
            assert waiters
            assert table_id in self._cluster.tables

    def _outcome(self, table: TableRecord, waiter: Waiter) -> Effect | None:
        table_id = table.table_id
        creating = waiter.need is not Need.STORED and table.status is TableStatus.CREATING
        in_force = waiter.need is Need.IN_FORCE
        led = not in_force or self._delivery.led(table_id)
        if self._delivery.acknowledged(table_id, waiter.version) and led and not creating:
            return Answer(waiter.request_id, table.info(), waiter.more)
        failure = self._delivery.failure(table_id)
        if failure and waiter.need is not Need.STORED:
            return Refuse(waiter.request_id, _not_in_force(table, failure))
        if failure or not led or self._is_awaited(table_id):
            if in_force:
                failure = "a replica server has not reported yet, or is unalive"
                return Refuse(waiter.request_id, _not_in_force(table, failure))
            # It is stored: the node is told when it can be.
            return Answer(waiter.request_id, table.info(), waiter.more)
        return None

    def _is_awaited(self, table_id: int) -> bool:
        """Whether a node of a table has not come yet since this server leads."""
        return any(one not in self._nodes for one in self._cluster.members(table_id))


def _not_in_force(table: TableRecord, failure: str) -> Unavailable:
    if table.status is TableStatus.CREATING:
        text = (
            f"table `{table.name}` is recorded with id {table.table_id}, and its partitions "
            f"could not be opened yet: {failure}"
        )
        hint = "the server goes on trying; `ls` shows when the table is available"
    else:
        text = (
            f"the change of table `{table.name}` is stored, and not in force in every "
            f"partition yet: {failure}"
        )
        hint = "the server goes on trying"
    return Unavailable(text, hint=hint, details={"maybe_applied": True}, maybe_applied=True)
