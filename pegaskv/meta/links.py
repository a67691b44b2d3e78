"""The ways to the replica servers: what the machine tells and orders them, and how they answer.

A node may be slow or gone, so everything said to one is a task of its own; how it went comes
back as an event.
"""

import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from pegaskv.base.errors import PegasKVError
from pegaskv.codec.messages_meta import Order, TablePush
from pegaskv.meta.cluster import Cluster
from pegaskv.meta.effects import Obey, Push
from pegaskv.meta.events import Event, OrderEnded, PushEnded
from pegaskv.meta.live import LiveStates, NodeStates, ask_states, nodes_of
from pegaskv.meta.nodes import Nodes
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope

__all__ = ["NodeDoor", "NodeLinks", "ReplicaControl"]

_log = logging.getLogger(__name__)


class ReplicaControl(Protocol):
    """A replica server as the meta server sees it."""

    async def configure(self, push: TablePush) -> None:
        """Return when the push is in force; any PegasKVError or OSError: try again later."""
        ...

    async def obey(self, order: Order) -> str:
        """Take an order; return a sentence on what comes of it."""
        ...

    async def states(self, table_id: int) -> NodeStates:
        """Return what is shown of its replicas of a table, or of all (0)."""
        ...


# Makes the door to a node, by its id and address.
NodeDoor = Callable[[str, str], ReplicaControl]


class NodeLinks:
    """One door for each node that has reported; `put` takes the events that come of it."""

    def __init__(
        self,
        node_door: NodeDoor,
        *,
        put: Callable[[Event], Awaitable[None]],
        clock: Clock,
        scope: TaskScope,
        states_timeout_ms: int,
    ) -> None:
        self._node_door = node_door
        self._put = put
        self._clock = clock
        self._scope = scope
        self._states_timeout_ms = states_timeout_ms
        # By node id: its address, and the way there.
        self._doors: dict[str, tuple[str, ReplicaControl]] = {}
        # Nodes that could not take their last push of a table.
        self._failing: set[tuple[str, int]] = set()
        self.pushes = 0
        self.push_failures = 0
        self.orders = 0
        self.order_failures = 0

    def meet(self, node_id: str, address: str) -> None:
        """A node has reported, and is at `address` now."""
        known = self._doors.get(node_id)
        if known is None or known[0] != address:
            self._doors[node_id] = (address, self._node_door(node_id, address))

    def push(self, effect: Push) -> None:
        """Begin to tell a node what is stored of a table."""
        self._scope.start(f"push of table {effect.push.table.table_id}", self._push(effect))

    def order(self, effect: Obey) -> None:
        """Begin to give a node an order."""
        self._scope.start(f"order about {effect.order.gpid}", self._order(effect))

    async def states(
        self, cluster: Cluster, nodes: Nodes, table_ids: Collection[int]
    ) -> LiveStates:
        """Ask the nodes of tables how their replicas are."""
        wanted = nodes_of(cluster, table_ids)
        if wanted:
            # Who learns is no member yet.
            wanted |= {node.node_id for node in nodes.alive if node.learning}
        doors = {one: self._doors[one][1] for one in sorted(wanted) if nodes.is_alive(one)}
        table_id = next(iter(table_ids)) if len(table_ids) == 1 else 0
        return await ask_states(
            doors, table_id, clock=self._clock, timeout_ms=self._states_timeout_ms
        )

    async def _push(self, effect: Push) -> None:
        self.pushes += 1
        error_text, table = "", effect.push.table
        try:
            await self._doors[effect.node_id][1].configure(effect.push)
        except (PegasKVError, OSError) as error:
            self.push_failures += 1
            error_text = str(error) or type(error).__name__
            # It is tried again and again, and said once.
            again = (effect.node_id, table.table_id) in self._failing
            _log.log(
                logging.DEBUG if again else logging.WARNING,
                "node %s could not take table %s (id %d, version %d): %s",
                effect.node_id, table.name, table.table_id, table.version, error_text,
            )  # fmt: skip
            self._failing.add((effect.node_id, table.table_id))
        else:
            self._failing.discard((effect.node_id, table.table_id))
        await self._put(PushEnded(effect.push_id, effect.node_id, table.table_id, error_text))

    async def _order(self, effect: Obey) -> None:
        self.orders += 1
        error_text, order = "", effect.order
        try:
            await self._doors[effect.node_id][1].obey(order)
        except (PegasKVError, OSError) as error:
            self.order_failures += 1
            error_text = str(error) or type(error).__name__
            # It is repeated while it is wanted.
            _log.info(
                "node %s did not take the order %s about partition %s: %s",
                effect.node_id, order.kind.name, order.gpid, error_text,
            )  # fmt: skip
        await self._put(OrderEnded(effect.node_id, order, error_text))
