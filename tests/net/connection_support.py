"""A server's connections without sockets: a transport that records, a clock that is set."""

import asyncio
from collections.abc import Mapping
from typing import Any

from pegaskv.codec.frames import FrameSplitter, encode_frame
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.net.hello import ServerIdentity
from pegaskv.net.options import AcceptorOptions

IDENTITY = ServerIdentity("onebox", 5, "a-cluster-uuid", "a-node-id")
ECHO, LATER, LARGE, BROKEN, UNPACKABLE = 90, 91, 92, 93, 94


def hello(
    request_id: int = 1, *, versions: tuple[int, int] = (1, 1), cluster_id: int = 0
) -> list[Any]:
    return [request_id, 0, 1_000, *versions, "test 1", cluster_id, [], []]


async def turn() -> None:
    """Let what was scheduled run."""
    await asyncio.sleep(0)


class SetClock:
    """A clock that stands where it was set."""

    def __init__(self) -> None:
        self.now_ms = 1_000

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_us(self) -> int:
        return self.now_ms * 1_000

    async def sleep_ms(self, milliseconds: int) -> None:
        raise AssertionError("nothing here waits for a clock")

    def timeout_ms(self, milliseconds: int) -> asyncio.Timeout:
        return asyncio.timeout(milliseconds / 1_000)


class RecordingTransport(asyncio.Transport):
    """Keeps what is written; `unsent` is what the peer has not taken, if it reads slowly."""

    def __init__(self, protocol: asyncio.Protocol, address: str, *, reads: bool) -> None:
        super().__init__()
        self.protocol = protocol
        self.address = address
        self.reads = reads
        self.reading = True
        self.closing = False
        self.lost = False
        self.aborted = False
        self.written = bytearray()
        self.writes = 0
        self.unsent = 0
        self.high = self.low = 0
        self.choked = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (self.address, 1234) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        assert low is not None
        self.high, self.low = high, low

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closing, "written after close"
        self.writes += 1
        self.written += data
        if not self.reads:
            self.unsent += len(data)
            if self.unsent > self.high and not self.choked:
                self.choked = True
                self.protocol.pause_writing()

    def take(self, count: int | None = None) -> None:
        """The peer reads `count` bytes, or all."""
        self.unsent -= self.unsent if count is None else count
        if self.choked and self.unsent <= self.low:
            self.choked = False
            self.protocol.resume_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def lose(self) -> None:
        """The connection is gone: what the loop tells the protocol last."""
        assert not self.lost
        self.closing = self.lost = True
        self.protocol.connection_lost(None)


class Server:
    """An acceptor with a few handlers, and peers that are not there."""

    def __init__(self, handlers: Mapping[int, Handler] | None = None, **options: int) -> None:
        self.clock = SetClock()
        self.waiting: list[tuple[ServerConnection, int]] = []
        self.handled: list[int] = []
        self.acceptor = Acceptor(
            {
                ECHO: self._echo,
                LATER: self._later,
                LARGE: self._large,
                BROKEN: self._broken,
                UNPACKABLE: self._unpackable,
                **(handlers or {}),
            },
            identity=IDENTITY,
            clock=self.clock,
            options=AcceptorOptions(**options),
        )

    def _echo(self, connection: ServerConnection, message: list[Any]) -> None:
        self.handled.append(message[0])
        connection.out.append((message[0], 0, *message[3:]))

    def _later(self, connection: ServerConnection, message: list[Any]) -> None:
        self.handled.append(message[0])
        connection.defer()
        self.waiting.append((connection, message[0]))

    def _large(self, connection: ServerConnection, message: list[Any]) -> None:
        self.handled.append(message[0])
        connection.out.append((message[0], 0, bytes(message[3])))
        connection.out_bytes += message[3]

    def _broken(self, connection: ServerConnection, message: list[Any]) -> None:
        raise LookupError("a bug of ours")

    def _unpackable(self, connection: ServerConnection, message: list[Any]) -> None:
        connection.out.append((message[0], 0, 1 << 70))

    def answer(self, count: int | None = None) -> None:
        """Answer the first `count` deferred requests, or all."""
        ready, self.waiting = self.waiting[:count], self.waiting[len(self.waiting[:count]) :]
        for connection, request_id in ready:
            connection.finish((request_id, 0))
        for connection in dict.fromkeys(connection for connection, _ in ready):
            connection.flush()

    def connect(self, address: str = "10.0.0.1", *, reads: bool = True) -> "Peer":
        return Peer(self, address, reads=reads)

    def greeted(self, address: str = "10.0.0.1", *, reads: bool = True) -> "Peer":
        """A peer whose hello was accepted."""
        peer = self.connect(address, reads=reads)
        peer.send([hello()])
        assert [reply[:2] for reply in peer.replies()] == [[1, 0]]
        peer.transport.unsent = 0
        return peer

    def pass_time(self, milliseconds: int) -> None:
        self.clock.now_ms += milliseconds
        self.acceptor.sweep()
        self.acceptor.check()


class Peer:
    """The other end of one connection."""

    def __init__(self, server: Server, address: str, *, reads: bool) -> None:
        self.server = server
        self.connection = server.acceptor()
        self.transport = RecordingTransport(self.connection, address, reads=reads)
        self._splitter = FrameSplitter()
        self._seen = 0
        self.connection.connection_made(self.transport)

    def send(self, *frames: list[Any]) -> None:
        self.send_bytes(b"".join(map(encode_frame, frames)))

    def send_bytes(self, data: bytes) -> None:
        """Send, and let the turn of the loop end that reads it."""
        self.connection.data_received(data)
        self.server.acceptor.outgoing.write()
        self.server.acceptor.check()

    def frames(self) -> list[list[Any]]:
        """The frames written since the last call."""
        data = bytes(self.transport.written[self._seen :])
        self._seen = len(self.transport.written)
        return self._splitter.feed(data)

    def replies(self) -> list[list[Any]]:
        return [message for frame in self.frames() for message in frame]

    @property
    def refused(self) -> bool:
        """Whether the server has done with this peer."""
        return self.connection.closed
