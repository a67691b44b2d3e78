"""What every `Network` must do; run on asyncio, on uvloop and on the simulated network.

Each check gets a `Site`: two networks that can reach one another, the addresses of both, and a way
to let time pass. Nothing in it may sleep, since the simulated one has its own time.
"""

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from pegaskv.net.network import Network

__all__ = ["CHECKS", "Recorder", "Site"]


# Generous, since a simulated network may be far and narrow.
_LIMIT_S = 600


class Site:
    """Where a check runs: a server's network at `host`, a client's, and both free of charge."""

    def __init__(self, server: Network, client: Network, host: str) -> None:
        self.server = server
        self.client = client
        self.host = host


class Recorder(asyncio.Protocol):
    """Writes down every call, and checks the order that asyncio promises."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.transport: asyncio.Transport | None = None
        self.calls: list[str] = []
        self.data = bytearray()
        self.pieces = 0
        self.error: Exception | None = None
        self.keep_open = keep_open
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Those of uvloop are no instances of asyncio's class, though they do all that it does.
        self.transport = cast(asyncio.Transport, transport)
        self._note("made")
        assert self.calls == ["made"]

    def data_received(self, data: bytes) -> None:
        assert self.calls, "data before connection_made"
        assert "lost" not in self.calls
        assert "eof" not in self.calls
        assert type(data) is bytes
        assert data
        self.data += data
        self.pieces += 1
        self.changed.set()

    def eof_received(self) -> bool:
        assert "lost" not in self.calls
        self._note("eof")
        return self.keep_open

    def connection_lost(self, error: Exception | None) -> None:
        assert "made" in self.calls
        assert "lost" not in self.calls
        self.error = error
        self._note("lost")

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when `condition()` holds; it is looked at after each call into the protocol."""
        async with asyncio.timeout(_LIMIT_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def has(self, call: str) -> None:
        await self.until(lambda: call in self.calls)


class Server:
    """A listener whose connections are recorders."""

    def __init__(self) -> None:
        self.accepted: list[Recorder] = []
        self.keep_open = False
        self._changed = asyncio.Event()

    def __call__(self) -> Recorder:
        recorder = Recorder(keep_open=self.keep_open)
        self.accepted.append(recorder)
        self._changed.set()
        return recorder

    async def first(self) -> Recorder:
        await self.count(1)
        return self.accepted[0]

    async def count(self, count: int) -> None:
        """Return when so many connections have been made."""
        async with asyncio.timeout(_LIMIT_S):
            while len(self.accepted) < count:
                self._changed.clear()
                await self._changed.wait()
        for recorder in self.accepted:
            await recorder.has("made")


async def connected(site: Site) -> tuple[Recorder, Recorder, Callable[[], Awaitable[None]]]:
    """A client's protocol, its server's, and how to end both."""
    server = Server()
    listener = await site.server.listen(server, site.host, 0)
    _, client = await site.client.connect(Recorder, *listener.address)
    assert isinstance(client, Recorder)
    accepted = await server.first()

    async def close() -> None:
        await listener.close()
        for side in (client, accepted):
            if "lost" not in side.calls:
                transport_of(side).abort()
            await side.has("lost")

    return client, accepted, close


def transport_of(recorder: Recorder) -> asyncio.Transport:
    assert recorder.transport is not None
    return recorder.transport


async def check_connect_returns_after_connection_made(site: Site) -> None:
    server = Server()
    listener = await site.server.listen(server, site.host, 0)
    transport, protocol = await site.client.connect(Recorder, *listener.address)
    assert isinstance(protocol, Recorder)
    assert protocol.calls == ["made"]
    assert protocol.transport is transport
    accepted = await server.first()
    transport.abort()
    await protocol.has("lost")
    await accepted.has("lost")
    await listener.close()


async def check_addresses_are_told(site: Site) -> None:
    server = Server()
    listener = await site.server.listen(server, site.host, 0)
    host, port = listener.address
    assert host == site.host
    assert 0 < port < 65_536
    _, client = await site.client.connect(Recorder, host, port)
    assert isinstance(client, Recorder)
    accepted = await server.first()
    here, there = transport_of(client), transport_of(accepted)
    assert tuple(here.get_extra_info("peername")) == (host, port)
    assert tuple(there.get_extra_info("sockname")) == (host, port)
    assert here.get_extra_info("sockname") == there.get_extra_info("peername")
    assert here.get_extra_info("no such thing", 7) == 7
    here.close()
    await client.has("lost")
    await accepted.has("lost")
    await listener.close()


async def check_bytes_arrive_in_order_and_once_both_ways(site: Site) -> None:
    client, accepted, close = await connected(site)
    there = b"".join(b"%06d" % number for number in range(3_000))
    back = bytes(range(256)) * 40
    for start in range(0, len(there), 611):
        transport_of(client).write(there[start : start + 611])
    transport_of(accepted).write(bytearray(back[:5_000]))
    transport_of(accepted).write(memoryview(back)[5_000:])
    transport_of(client).write(b"")
    await accepted.until(lambda: len(accepted.data) >= len(there))
    await client.until(lambda: len(client.data) >= len(back))
    assert accepted.data == there
    assert client.data == back
    await close()


async def check_close_sends_what_was_written_then_eof(site: Site) -> None:
    client, accepted, close = await connected(site)
    data = bytes(1_000_000)
    transport_of(client).write(data)
    transport_of(client).close()
    assert transport_of(client).is_closing()
    await client.has("lost")
    assert client.error is None
    await accepted.has("lost")
    assert accepted.data == data
    assert accepted.error is None
    assert accepted.calls == ["made", "eof", "lost"]
    await close()


async def check_an_eof_may_be_answered(site: Site) -> None:
    server = Server()
    server.keep_open = True
    listener = await site.server.listen(server, site.host, 0)
    _, client = await site.client.connect(Recorder, *listener.address)
    accepted = await server.first()
    assert isinstance(client, Recorder)
    transport_of(client).close()
    await accepted.has("eof")
    assert "lost" not in accepted.calls
    assert not transport_of(accepted).is_closing()
    transport_of(accepted).close()
    await accepted.has("lost")
    await listener.close()


async def check_abort_drops_and_both_sides_learn_of_it(site: Site) -> None:
    client, accepted, close = await connected(site)
    transport_of(client).abort()
    assert transport_of(client).is_closing()
    assert client.calls == ["made"], "connection_lost is called later, never inside abort"
    await client.has("lost")
    assert client.error is None
    await accepted.has("lost")
    await close()


async def check_a_closing_transport_takes_every_call(site: Site) -> None:
    client, accepted, close = await connected(site)
    transport = transport_of(client)
    transport.close()
    transport.close()
    transport.write(b"too late")
    transport.pause_reading()
    transport.resume_reading()
    assert transport.is_closing()
    assert transport.get_write_buffer_size() == 0
    transport.abort()
    await client.has("lost")
    # Behind connection_lost these are all that every loop allows.
    transport.close()
    transport.pause_reading()
    transport.resume_reading()
    assert transport.is_closing()
    assert transport.get_extra_info("peername") is not None
    await accepted.has("lost")
    assert accepted.data == b""
    assert client.calls == ["made", "lost"]
    await close()


async def check_nothing_is_received_after_close(site: Site) -> None:
    client, accepted, close = await connected(site)
    for _ in range(100):
        transport_of(accepted).write(bytes(1_000))
    transport_of(client).close()
    size = len(client.data)
    await client.has("lost")
    await accepted.has("lost")
    assert len(client.data) == size
    await close()


async def check_paused_reading_holds_everything_back(site: Site) -> None:
    client, accepted, close = await connected(site)
    transport_of(accepted).pause_reading()
    transport_of(accepted).pause_reading()
    transport_of(client).write(b"a" * 100)
    # An answer the other way round passes; so there was time for the bytes.
    transport_of(accepted).write(b"still here")
    await client.until(lambda: client.data == b"still here")
    assert accepted.data == b""
    transport_of(accepted).resume_reading()
    transport_of(accepted).resume_reading()
    await accepted.until(lambda: len(accepted.data) == 100)
    await close()


async def check_a_reader_that_stops_pauses_the_writer_and_bounds_its_buffer(site: Site) -> None:
    client, accepted, close = await connected(site)
    writer = transport_of(client)
    writer.set_write_buffer_limits(high=100_000, low=20_000)
    transport_of(accepted).pause_reading()
    written = 0
    while "pause" not in client.calls:
        writer.write(bytes(64 * 1024))
        written += 64 * 1024
        assert written < 64 * 1024 * 1024, "the writer was never paused"
        await asyncio.sleep(0)
    assert 100_000 < writer.get_write_buffer_size() <= written
    assert client.calls == ["made", "pause"]
    transport_of(accepted).resume_reading()
    await client.has("resume")
    assert writer.get_write_buffer_size() <= 20_000
    await accepted.until(lambda: len(accepted.data) == written)
    assert client.calls == ["made", "pause", "resume"]
    await close()


async def check_a_close_waits_for_a_slow_reader(site: Site) -> None:
    client, accepted, close = await connected(site)
    transport_of(accepted).pause_reading()
    size = 16 * 1024 * 1024
    transport_of(client).write(bytes(size))
    transport_of(client).close()
    assert transport_of(client).is_closing()
    transport_of(accepted).resume_reading()
    await client.has("lost")
    await accepted.has("lost")
    assert len(accepted.data) == size
    await close()


async def check_a_refused_connection_is_an_oserror(site: Site) -> None:
    listener = await site.server.listen(Server(), site.host, 0)
    await listener.close()
    with pytest.raises(ConnectionRefusedError):
        await site.client.connect(Recorder, *listener.address)


async def check_an_address_in_use_is_told(site: Site) -> None:
    listener = await site.server.listen(Server(), site.host, 0)
    with pytest.raises(OSError, match="in use") as caught:
        await site.server.listen(Server(), *listener.address)
    assert caught.value.errno == errno.EADDRINUSE
    await listener.close()


async def check_an_address_of_others_cannot_be_listened_on(site: Site) -> None:
    with pytest.raises(OSError, match=r"203\.0\.113\.7|assign requested") as caught:
        await site.server.listen(Server(), "203.0.113.7", 0)
    assert caught.value.errno == errno.EADDRNOTAVAIL


async def check_a_closed_listener_frees_its_port_and_keeps_its_connections(site: Site) -> None:
    server = Server()
    listener = await site.server.listen(server, site.host, 0)
    _, client = await site.client.connect(Recorder, *listener.address)
    assert isinstance(client, Recorder)
    accepted = await server.first()
    await listener.close()
    await listener.close()
    transport_of(client).write(b"still there?")
    await accepted.until(lambda: accepted.data == b"still there?")
    again = await site.server.listen(server, *listener.address)
    assert again.address == listener.address
    await again.close()
    transport_of(client).close()
    await client.has("lost")
    await accepted.has("lost")


async def check_two_connections_do_not_mix(site: Site) -> None:
    server = Server()
    listener = await site.server.listen(server, site.host, 0)
    clients: list[Any] = []
    for number in range(5):
        transport, client = await site.client.connect(Recorder, *listener.address)
        clients.append(client)
        transport.write(b"%d" % number * 1_000)
    for client in clients:
        transport_of(client).close()
        await client.has("lost")
    await server.count(5)
    for recorder in server.accepted:
        await recorder.has("lost")
    received = sorted(bytes(recorder.data) for recorder in server.accepted)
    assert received == [b"%d" % number * 1_000 for number in range(5)]
    await listener.close()


CHECKS: dict[str, Callable[[Site], Awaitable[None]]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}
