"""A replica server as the meta server sees it, over the network.

The other side is `node_handlers.control_handlers`. A request that was not answered may have
been done: whoever asks says the same again, which changes nothing when it was.
"""

from typing import Any, Final

from pegaskv.base.errors import WireError
from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import Order, TablePush
from pegaskv.codec.operations import Operation
from pegaskv.codec.wire_meta import order_to_wire, push_to_wire, replica_states_from_wire
from pegaskv.net.peer import Peer, PeerConnections

__all__ = ["NodeDoor", "NodeDoors"]

# A push is in force when partitions are open and their barriers committed; it is sent again
# when that took longer.
_CONFIGURE_MS: Final = 30_000
_OBEY_MS: Final = 10_000
_STATES_MS: Final = 3_000


class NodeDoor:
    """One replica server."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def configure(self, push: TablePush) -> None:
        """Return when the push is in force there.

        Raises:
            PegasKVError: not yet, or nothing is known of it; push again.

        """
        await self._peer.request(Operation.CONFIGURE, _CONFIGURE_MS, push_to_wire(push))

    async def obey(self, order: Order) -> str:
        """Give an order; return what the node says of it. Raises PegasKVError."""
        fields = await self._peer.request(Operation.OBEY, _OBEY_MS, *order_to_wire(order))
        if len(fields) != 1 or type(fields[0]) is not str:
            raise WireError(f"{self._peer} answered an order by what is no sentence")
        return fields[0]

    async def states(
        self, table_id: int
    ) -> list[tuple[Gpid, dict[str, Any], dict[bytes, dict[str, Any]]]]:
        """Return what is shown of its replicas of a table (0 = of all). Raises PegasKVError."""
        fields = await self._peer.request(Operation.REPLICA_STATES, _STATES_MS, table_id)
        return replica_states_from_wire(fields[0] if fields else None)


class NodeDoors:
    """All replica servers that were heard of."""

    def __init__(self, peers: PeerConnections) -> None:
        self._peers = peers

    def door(self, node_id: str, address: str) -> NodeDoor:
        """Return the way to a node, which is at `address` now."""
        self._peers.set_addresses({node_id: address})
        return NodeDoor(self._peers.peer(node_id))
