"""A small asyncio client of etcd's JSON gateway: put and range, nothing else.

The gateway is the door to etcd that needs no gRPC library. This client adds as little as
it can: connections that stay open, one for each caller, and bodies put together by hand.
A client of the gRPC door is about twice as fast with many callers.
"""

import asyncio
from base64 import b64encode
from typing import Final, cast

__all__ = ["EtcdClient"]

_HEAD: Final = b"POST /v3/kv/%b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b"


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if not head.startswith(b"HTTP/1.1 200") or not length:
            self._fail(f"etcd answered {self._received!r}")
        elif len(body) == int(length) and self._answer is not None:
            self._received = b""
            self._answer.set_result(body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("etcd closed a connection")

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError(why))

    def ask(self, request: bytes) -> "asyncio.Future[bytes]":
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer


class EtcdClient:
    """As many connections as there are calls at one time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[_Connection] = []
        self._all: list[_Connection] = []

    async def put(self, key: bytes, value: bytes) -> None:
        """Write a key."""
        await self._post(b"put", b'{"key":"%b","value":"%b"}' % (b64encode(key), b64encode(value)))

    async def get(self, key: bytes) -> bytes:
        """Read a key; return the JSON of the answer."""
        return await self._post(b"range", b'{"key":"%b"}' % b64encode(key))

    async def _post(self, path: bytes, body: bytes) -> bytes:
        connection = self._free.pop() if self._free else await self._connect()
        answer = await connection.ask(_HEAD % (path, len(body), body))
        self._free.append(connection)
        return answer

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        self._all.append(connection)
        return connection

    def close(self) -> None:
        """End all connections."""
        for connection in self._all:
            connection.transport.close()
