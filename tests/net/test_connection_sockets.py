"""Connections over real sockets: what the loop, the kernel and a rude peer add."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from pegaskv.base.errors import Busy
from pegaskv.base.limits import CONNECTION_OUTPUT_PAUSE_BYTES
from pegaskv.codec.frames import FrameSplitter, encode_frame
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.asyncio_network import AsyncioNetwork
from pegaskv.net.options import AcceptorOptions
from pegaskv.runtime.clock import SystemClock
from pegaskv.runtime.tasks import TaskScope
from tests.helpers import poll_until
from tests.net.connection_support import IDENTITY, hello

ECHO, LARGE, NEVER = 90, 91, 92


def echo(connection: Any, message: list[Any]) -> None:
    connection.out.append((message[0], 0, *message[3:]))


def large(connection: Any, message: list[Any]) -> None:
    connection.out.append((message[0], 0, bytes(message[3])))
    connection.out_bytes += message[3]


def never(connection: Any, message: list[Any]) -> None:
    connection.defer()


@asynccontextmanager
async def serving(**options: int) -> AsyncIterator[tuple[Acceptor, int]]:
    """A listening acceptor that sweeps often, and its port."""
    acceptor = Acceptor(
        {ECHO: echo, LARGE: large, NEVER: never},
        identity=IDENTITY,
        clock=SystemClock(),
        options=AcceptorOptions(**{"sweep_interval_ms": 10, **options}),
    )
    listener = await AsyncioNetwork().listen(acceptor, "127.0.0.1", 0)
    scope = TaskScope("test")
    scope.start("sweep", acceptor.run())
    try:
        yield acceptor, listener.address[1]
    finally:
        await listener.close()
        await acceptor.drain(100)
        await scope.close()
        acceptor.check()


class Client:
    """A raw client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._splitter = FrameSplitter()
        self._messages: list[list[Any]] = []

    @classmethod
    async def connect(cls, port: int) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    @classmethod
    async def greeted(cls, port: int) -> "Client":
        client = await cls.connect(port)
        client.send([hello()])
        assert (await client.receive())[:2] == [1, 0]
        return client

    def send(self, *frames: list[Any]) -> None:
        self.writer.write(b"".join(map(encode_frame, frames)))

    async def receive(self) -> list[Any]:
        while not self._messages:
            data = await self.reader.read(1 << 20)
            assert data, "closed"
            self._messages = [each for frame in self._splitter.feed(data) for each in frame]
        return self._messages.pop(0)

    async def closed(self) -> bool:
        try:
            return await self.reader.read(1 << 20) == b""
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


async def test_requests_are_served_over_a_socket() -> None:
    async with serving() as (acceptor, port):
        client = await Client.greeted(port)
        client.send([[number, ECHO, 0, b"x" * number] for number in range(2, 1_000)])
        for number in range(2, 1_000):
            assert await client.receive() == [number, 0, b"x" * number]
        await client.close()
        await poll_until(lambda: acceptor.connection_count == 0)


async def test_a_refused_client_reads_why_although_it_has_spoken() -> None:
    """Closing at once with unread bytes would reset the connection and lose the answer."""
    async with serving(connections_max=1) as (acceptor, port):
        first = await Client.greeted(port)
        second = await Client.connect(port)
        second.send([hello()], [[2, ECHO, 0, bytes(100_000)]])
        await second.writer.drain()
        assert (await second.receive())[:2] == [0, Busy.code]
        await second.close()
        await first.close()
        await poll_until(lambda: acceptor.connection_count == 0)
        third = await Client.greeted(port)
        await third.close()


async def test_a_peer_that_never_reads_costs_a_bounded_amount_and_hinders_nobody() -> None:
    async with serving(output_stall_timeout_ms=200) as (acceptor, port):
        rude = await Client.greeted(port)
        rude.send(*([[number, LARGE, 0, 500_000] for number in range(1, 500)] for _ in range(2)))
        [connection] = acceptor._connections
        await poll_until(lambda: connection.output_paused)
        polite = await Client.greeted(port)
        polite.send([[2, ECHO, 0]])
        assert await polite.receive() == [2, 0]
        assert connection.unsent_bytes < 2 * CONNECTION_OUTPUT_PAUSE_BYTES
        await poll_until(lambda: connection.closed)
        polite.send([[3, ECHO, 0]])
        assert await polite.receive() == [3, 0]
        await rude.close()
        await polite.close()


async def test_a_peer_that_reads_late_gets_every_reply() -> None:
    async with serving() as (acceptor, port):
        client = await Client.greeted(port)
        client.send([[number, LARGE, 0, 300_000] for number in range(2, 102)])
        [connection] = acceptor._connections
        await poll_until(lambda: connection.output_paused)
        for number in range(2, 102):
            assert (await client.receive())[:2] == [number, 0]
        client.send([[200, ECHO, 0]])
        assert await client.receive() == [200, 0]
        await client.close()


async def test_one_byte_at_a_time_is_cut_off_and_silence_before_hello_too() -> None:
    async with serving(partial_frame_timeout_ms=100, hello_timeout_ms=100) as (_, port):
        slow = await Client.greeted(port)
        silent = await Client.connect(port)
        frame = encode_frame([[2, ECHO, 0, bytes(1_000)]])
        slow.writer.write(frame[:5])
        assert await slow.closed()
        assert (await silent.receive())[0] == 0
        await slow.close()
        await silent.close()


async def test_drain_lets_a_peer_read_its_answers_before_the_end() -> None:
    async with serving() as (acceptor, port):
        client = await Client.greeted(port)
        client.send([[2, LARGE, 0, 900_000]])
        await poll_until(lambda: sum(each.requests for each in acceptor._connections) == 1)
        await acceptor.drain(5_000)
        assert (await client.receive())[:2] == [2, 0]
        assert await client.closed()
        await client.close()


async def test_drain_does_not_wait_for_ever() -> None:
    async with serving() as (acceptor, port):
        client = await Client.greeted(port)
        client.send([[2, NEVER, 0]])
        await poll_until(lambda: any(each.in_flight for each in acceptor._connections))
        await acceptor.drain(50)
        assert await client.closed()
        await client.close()


async def test_random_bytes_from_many_peers_do_not_reach_anybody_else() -> None:
    async with serving() as (acceptor, port):
        polite = await Client.greeted(port)
        for number in range(1, 41):
            rude = await Client.connect(port)
            rude.send([hello()] if number % 2 else [])
            rude.writer.write(os.urandom(500))
            await rude.close()
            polite.send([[number, ECHO, 0]])
            assert await polite.receive() == [number, 0]
        await polite.close()
        await poll_until(lambda: acceptor.connection_count == 0)
        assert acceptor.bytes_in_flight == 0


# A process that may have very few files open.

FEW_FILES = 60
SERVER = f"""
import asyncio, resource, sys, uvloop
resource.setrlimit(resource.RLIMIT_NOFILE, ({FEW_FILES}, {FEW_FILES}))
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.asyncio_network import AsyncioNetwork
from pegaskv.runtime.clock import SystemClock
from tests.net.connection_support import IDENTITY

async def main():
    acceptor = Acceptor({{}}, identity=IDENTITY, clock=SystemClock())
    listener = await AsyncioNetwork().listen(acceptor, "127.0.0.1", 0)
    print(listener.address[1], flush=True)
    await acceptor.run()

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""


@pytest.fixture
def starved_port() -> Iterator[int]:
    """The port of a server that may have FEW_FILES files open."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
            assert server.poll() is None
        finally:
            server.kill()


@pytest.mark.process
async def test_a_server_without_files_for_more_connections_recovers_when_some_close(
    starved_port: int,
) -> None:
    async def accepted() -> Client | None:
        client = await Client.connect(starved_port)
        client.send([hello()])
        try:
            await client.receive()
        except (AssertionError, ConnectionError):
            await client.close()
            return None
        return client

    attempts = [await accepted() for _ in range(2 * FEW_FILES)]
    served = [client for client in attempts if client is not None]
    assert FEW_FILES // 2 < len(served) < FEW_FILES
    # Those that were accepted are served still.
    for client in served:
        client.send([[2, 1, 0]])
        assert (await client.receive())[:2] == [2, 0]
        await client.close()

    async def accepts() -> bool:
        client = await accepted()
        if client is not None:
            await client.close()
        return client is not None

    await poll_until(accepts)
