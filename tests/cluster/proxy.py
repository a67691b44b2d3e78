"""A TCP proxy inside the test: what passes through it can be cut, one way or both."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["Proxy", "running_proxy"]


class Proxy:
    """Forwards connections to `target`; cut bytes are held back, not lost, as TCP does."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = host, int(port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._to_target = asyncio.Event()
        self._from_target = asyncio.Event()
        self.address = ""
        self.connections = 0
        self.heal()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"127.0.0.1:{port}"

    async def stop(self) -> None:
        """Close everything."""
        assert self._server is not None
        self._server.close()
        self.reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, *, requests: bool = True, replies: bool = True) -> None:
        """Let no requests, or no replies, through from now on."""
        if requests:
            self._to_target.clear()
        if replies:
            self._from_target.clear()

    def heal(self) -> None:
        """Let everything through, what was held back too."""
        self._to_target.set()
        self._from_target.set()

    def reset(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._to_target.wait()
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_connection(*self._target)
                self._writers.add(back)
                try:
                    await asyncio.gather(
                        self._pump(reader, back, self._to_target),
                        self._pump(there, writer, self._from_target),
                    )
                finally:
                    self._writers.discard(back)
                    back.transport.abort()
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    @staticmethod
    async def _pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def running_proxy(target: str) -> AsyncIterator[Proxy]:
    """A proxy to HOST:PORT that is stopped at the end."""
    proxy = Proxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
