"""A TCP proxy inside the test: what passes through it can be cut, one way or both.

Cut bytes are held back and delivered when the link heals, as TCP would. Nothing here is
a task: bytes are handed from one transport to the other, or kept.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import cast

__all__ = ["Proxy", "running_proxy"]


class _End(asyncio.Protocol):
    """One end of a forwarded connection; what it hears is for its peer."""

    def __init__(self, proxy: "Proxy", *, from_client: bool) -> None:
        self.proxy = proxy
        self.from_client = from_client
        self.peer: _End | None = None
        self.transport: asyncio.Transport | None = None
        self.kept: list[bytes] = []

    @property
    def open(self) -> bool:
        """Whether what this end hears may go on."""
        return self.proxy.requests_pass if self.from_client else self.proxy.replies_pass

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.proxy.ends[self] = None
        if self.from_client:
            self.proxy.connections += 1
            self.proxy.connect_target(self)

    def data_received(self, data: bytes) -> None:
        self.kept.append(data)
        self.forward()

    def forward(self) -> None:
        """Hand on what may go."""
        if self.open and self.peer is not None and self.peer.transport is not None:
            for data in self.kept:
                self.peer.transport.write(data)
            self.kept.clear()

    def connection_lost(self, error: BaseException | None) -> None:
        self.proxy.ends.pop(self, None)
        if self.peer is not None and self.peer.transport is not None:
            self.peer.transport.abort()

    def abort(self) -> None:
        """Reset this end, and by that the other one."""
        if self.transport is not None:
            self.transport.abort()


class Proxy:
    """Forwards connections to `target`."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self.ends: dict[_End, None] = {}
        self.requests_pass = True
        self.replies_pass = True
        self.address = ""
        self.connections = 0

    async def start(self) -> None:
        """Listen on a free port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _End(self, from_client=True), "127.0.0.1", 0
        )
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        for task in list(self._connecting):
            task.cancel()
        self.reset()
        await asyncio.sleep(0)

    def connect_target(self, client: _End) -> None:
        """Open the other half of a connection."""
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: _End) -> None:
        there = _End(self, from_client=False)
        try:
            await asyncio.get_running_loop().create_connection(lambda: there, *self._target)
        except OSError:
            client.abort()
            return
        client.peer, there.peer = there, client
        client.forward()
        there.forward()

    def cut(self, *, requests: bool = True, replies: bool = True) -> None:
        """Let no requests, or no replies, through from now on."""
        self.requests_pass = self.requests_pass and not requests
        self.replies_pass = self.replies_pass and not replies

    def heal(self) -> None:
        """Let everything through, what was held back too."""
        self.requests_pass = self.replies_pass = True
        for end in list(self.ends):
            end.forward()

    def reset(self) -> None:
        """Break every connection."""
        for end in list(self.ends):
            end.abort()


@contextlib.asynccontextmanager
async def running_proxy(target: str) -> AsyncIterator[Proxy]:
    """A proxy to HOST:PORT that is stopped at the end."""
    proxy = Proxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
