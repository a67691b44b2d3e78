"""What a replica server needs of others: the meta server, and the other replica servers.

In a standalone server there are no others, and the meta server is in the same process; in
a cluster both are behind connections. A replica never waits for either on its loop turn.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pegaskv.base.errors import Unavailable
from pegaskv.base.types import PartitionConfiguration
from pegaskv.codec.messages_meta import Proposal

__all__ = ["ConfigurationDoor", "NoMeta", "NoPeers", "Peer", "Peers"]


class ConfigurationDoor(Protocol):
    """The meta server, where configurations are changed."""

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, Mapping[str, str]]:
        """Ask for a change; return what is stored now, whether it is the change or not.

        With it come the addresses of its members, by node id.

        Raises:
            PegasKVError, OSError: the outcome is unknown; ask again, by the same proposal.

        """
        ...


class Peer(Protocol):
    """The way to one other replica server. On the hot path.

    `connected` is true between hello and the end of one connection; a new one is made by
    itself as long as the peer is held.
    """

    node_id: str
    connected: bool

    def submit(
        self, fields: tuple[Any, ...], done: Callable[[list[Any] | None], None], size: int = 0
    ) -> bool:
        """Send `(operation, timeout_ms, *fields)` in this turn's frame, in the order of calls.

        `done` gets the reply `[id, status, ...]`, or None when the connection ended first. It is
        not called in this turn. False: not connected, nothing was sent, `done` is not called.
        `size` is about how many bytes a large one has.
        """
        ...

    def flush(self) -> None:
        """Send what was submitted now, for whoever knows that this turn brings no more."""
        ...

    async def request(self, operation: int, timeout_ms: int, *fields: Any) -> list[Any]:
        """Return the fields of the reply, after its status. Not for the hot path.

        Raises:
            RequestError: what the server answered, or Unavailable or Timeout.

        """
        ...


class Peers(Protocol):
    """All other replica servers, by node id."""

    def peer(self, node_id: str) -> Peer:
        """Return the way to a node; it connects as soon as its address is known."""
        ...

    def set_addresses(self, addresses: Mapping[str, str]) -> None:
        """Take what the meta server says of where nodes are; others keep theirs."""
        ...

    def addresses(self, node_ids: Iterable[str]) -> dict[str, str]:
        """Return where these nodes are, of those that are known."""
        ...

    def on_connected(self, call: Callable[[str], None]) -> None:
        """Call back with the node id whenever a connection to it was made, or has ended."""
        ...


class NoMeta:
    """For a server whose partitions have no second member: there is nothing to propose."""

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, Mapping[str, str]]:
        """Nobody answers."""
        raise Unavailable(f"partition {proposal.gpid}: this server is alone")


class NoPeers:
    """For a server that is alone."""

    def peer(self, node_id: str) -> Peer:
        """There is none."""
        raise AssertionError(f"node {node_id} cannot be reached from a server that is alone")

    def set_addresses(self, addresses: Mapping[str, str]) -> None:
        """Nobody is spoken to."""

    def addresses(self, node_ids: Iterable[str]) -> dict[str, str]:
        """None is known."""
        return {}

    def on_connected(self, call: Callable[[str], None]) -> None:
        """Nobody ever connects."""
