"""What replica servers say at this moment of their replicas and duplications.

All nodes of a table are asked at once, and waited for a short while: what is shown of one that
does not answer is what is stored. Nothing is decided by it.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from pegaskv.base.errors import PegasKVError
from pegaskv.base.types import Gpid
from pegaskv.meta.cluster import Cluster
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope

__all__ = ["NO_STATES", "LiveStates", "NodeStates", "StatesDoor", "ask_states", "nodes_of"]

_log = logging.getLogger(__name__)

# Of each replica: its partition, its state, and that of its duplications by uuid.
NodeStates = Iterable[tuple[Gpid, Mapping[str, Any], Mapping[bytes, Mapping[str, Any]]]]


class StatesDoor(Protocol):
    """A node that can be asked."""

    async def states(self, table_id: int) -> NodeStates:
        """Return what is shown of its replicas of a table, or of all (0)."""
        ...


class LiveStates:
    """What was answered, by partition and node."""

    def __init__(self) -> None:
        self._replicas: dict[Gpid, dict[str, Mapping[str, Any]]] = {}
        self._duplications: dict[tuple[Gpid, str], Mapping[bytes, Mapping[str, Any]]] = {}

    def add(self, node_id: str, states: NodeStates) -> None:
        """Take what a node has answered."""
        for gpid, state, duplications in states:
            self._replicas.setdefault(gpid, {})[node_id] = state
            self._duplications[(gpid, node_id)] = duplications

    def replicas(self, gpid: Gpid) -> dict[str, dict[str, Any]]:
        """Return the state of each replica of a partition, by node id."""
        found = self._replicas.get(gpid, {})
        return {node_id: dict(found[node_id]) for node_id in sorted(found)}

    def replica(self, gpid: Gpid, node_id: str | None) -> dict[str, Any]:
        """Return the state of one replica; empty when its node did not say."""
        if node_id is None:
            return {}
        return dict(self._replicas.get(gpid, {}).get(node_id, {}))

    def duplication(self, gpid: Gpid, node_id: str | None, uuid: bytes) -> Mapping[str, Any]:
        """Return the state of a partition's duplication, by its primary; empty: nothing runs."""
        if node_id is None:
            return {}
        return self._duplications.get((gpid, node_id), {}).get(uuid, {})


NO_STATES: Final = LiveStates()


async def ask_states(
    doors: Mapping[str, StatesDoor], table_id: int, *, clock: Clock, timeout_ms: int
) -> LiveStates:
    """Ask nodes of a table's replicas (0 = of all); who does not answer in time is left out."""
    live = LiveStates()

    async def ask(node_id: str, door: StatesDoor) -> None:
        try:
            async with clock.timeout_ms(timeout_ms):
                live.add(node_id, await door.states(table_id))
        except (PegasKVError, OSError, TimeoutError) as error:
            _log.debug("node %s did not say how its replicas are: %s", node_id, error)

    async with TaskScope("states of replicas") as scope:
        for node_id, door in doors.items():
            scope.start(node_id, ask(node_id, door))
    return live


def nodes_of(cluster: Cluster, table_ids: Iterable[int]) -> set[str]:
    """Return the members of tables."""
    return {node_id for table_id in table_ids for node_id in cluster.members(table_id)}
