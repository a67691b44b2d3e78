"""Real sockets: the network of production, over the running loop.

Thin on purpose: connections get the loop's own transports and nothing stands
between them and their protocol. Both asyncio and uvloop set TCP_NODELAY on every
connection, which the contract test checks, since a reply must never wait for an
acknowledgement.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from pegaskv.net.network import Listener

__all__ = ["AsyncioNetwork"]

# Connections that may wait to be accepted: all clients come back at once after a restart.
_BACKLOG: Final = 1_024


class AsyncioNetwork:
    """The `Network` of the machine."""

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect over TCP; raises OSError. The caller bounds the time."""
        loop = asyncio.get_running_loop()
        return await loop.create_connection(factory, host, port, family=_family(host))

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> Listener:
        """Accept connections; port 0 picks one. Raises OSError (EADDRINUSE when it is taken)."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            factory, host, port, family=_family(host), backlog=_BACKLOG, reuse_address=True
        )
        return _SocketListener(server)


class _SocketListener:
    """A server of the loop."""

    def __init__(self, server: asyncio.Server) -> None:
        self._server = server
        # The first of them, should a name have more than one address.
        address = server.sockets[0].getsockname()
        self._address = (str(address[0]), int(address[1]))

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it really has."""
        return self._address

    async def close(self) -> None:
        """Stop accepting; connections that are there stay."""
        self._server.close()
        # The loop closes its sockets in its next turn. `wait_closed` would wait for connections.
        await asyncio.sleep(0)


def _family(host: str) -> socket.AddressFamily:
    """A name means IPv4, so that it is one address and one port; an IPv6 address means itself."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET
