"""The only door to sockets.

Protocols and transports are asyncio's own, so that the hot path pays nothing
for the seam. The simulated network hands out transports that obey the same
rules and carries bytes, so frames are cut and decoded there too. Code above uses
of a transport only: `write`, `close`, `abort`, `is_closing`, `pause_reading`,
`resume_reading`, `get_write_buffer_size`, `set_write_buffer_limits` and
`get_extra_info("peername" | "sockname")`.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

__all__ = ["Listener", "Network"]


class Listener(Protocol):
    """A listening address."""

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it really has."""
        ...

    async def close(self) -> None:
        """Stop accepting; connections that are there stay."""
        ...


class Network(Protocol):
    """Makes and accepts connections."""

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect; raises OSError. The caller bounds the time."""
        ...

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> Listener:
        """Accept connections; port 0 picks one. Raises OSError (address in use)."""
        ...
