"""pure: orders to replica servers, repeated while they are wanted and not too often.

An order is a wish: it is given again until the stored configuration shows that it was carried
out, since it may be lost, and obeying twice changes nothing.
"""

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import Order, OrderKind
from pegaskv.meta.cluster import PartitionRecord
from pegaskv.meta.effects import Effect, Obey
from pegaskv.meta.nodes import Nodes

__all__ = ["Orders"]


class Orders:
    """What was ordered lately; `repeat_ms` later it may be ordered again."""

    def __init__(self, nodes: Nodes, *, repeat_ms: int) -> None:
        self._nodes = nodes
        self._repeat_ms = repeat_ms
        # When, by what.
        self._given: dict[tuple[Gpid, OrderKind, str, int], int] = {}

    def to_primary(
        self, record: PartitionRecord, kind: OrderKind, node_id: str, now_ms: int
    ) -> list[Effect]:
        """Order something of a partition's primary, about `node_id`."""
        key = (record.gpid, kind, node_id, record.ballot)
        given_ms = self._given.get(key)
        if record.primary is None or not self._nodes.is_alive(record.primary):
            return []
        if given_ms is not None and now_ms - given_ms < self._repeat_ms:
            return []
        self._given[key] = now_ms
        node = self._nodes.get(node_id)
        address = "" if node is None else node.address
        return [Obey(record.primary, Order(kind, record.gpid, record.ballot, node_id, address))]

    def forget_old(self, now_ms: int) -> None:
        """Forget what may be ordered again anyway."""
        old = [key for key, ms in self._given.items() if now_ms - ms >= self._repeat_ms]
        for key in old:
            del self._given[key]
