"""Connections in memory that obey the rules of asyncio and of TCP, and nothing more.

Bytes written travel through a *pipe*, one for each direction: the transport's own buffer, then a
window of bytes that are on the wire or wait at the reader, then `data_received` in pieces whose
cuts are drawn from the seed. They arrive in order, once and without a hole, or the connection is
lost. The buffer belongs to the process and dies with it; the window belongs to the kernel.

All calls into the protocol of one side come from one queue, one at a time and in the context of the
node that it belongs to, so that mixing the order of ready callbacks never mixes those of a
connection: `connection_made` first, `connection_lost` last and exactly once.
"""

import asyncio
import contextvars
import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final, Protocol

import xxhash

from tests.simulation.errors import NodeDead
from tests.simulation.loop import SimulationLoop

if TYPE_CHECKING:
    from tests.simulation.network import Life, NetworkOptions, SimulatedListener

__all__ = ["Connection", "Pipe", "Side"]

_PIECE_BYTES_MAX: Final = 256 * 1024
_HIGH_WATER_BYTES: Final = 64 * 1024
# What the network does by itself belongs to no node.
_NOBODY: Final = contextvars.Context()


class _Network(Protocol):
    """What a connection needs of the network."""

    loop: SimulationLoop
    options: "NetworkOptions"
    random: Random
    connections: dict[int, "Connection"]

    def passes(self, source: str, target: str) -> bool: ...
    def delay_us(self, source: str, target: str, size: int = 0) -> int: ...
    def chance(self, probability: float) -> bool: ...
    def add(self, connection: "Connection") -> int: ...


@dataclass(frozen=True, slots=True)
class _Accept:
    """A new connection: the first thing in the pipe to the listener."""

    listener: "SimulatedListener"


@dataclass(frozen=True, slots=True)
class _End:
    """The writer has closed, or its kernel has for it."""


@dataclass(frozen=True, slots=True)
class _Reset:
    """The writer has aborted, or does not know the connection."""


_Item = _Accept | bytes | _End | _Reset


def _reset_error() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


class Connection:
    """Two sides, client first, and a pipe each way."""

    def __init__(
        self,
        network: _Network,
        client: tuple["Life", str, tuple[str, int]],
        server: tuple["Life", str, tuple[str, int]],
    ) -> None:
        self.hosts = (client[1], server[1])
        self._network = network
        self.number = network.add(self)
        one = Side(network, f"{self.number}a", *client, peername=server[2])
        two = Side(network, f"{self.number}b", *server, peername=client[2])
        self.sides = (one, two)
        one.join(self, two)
        two.join(self, one)

    def reset(self) -> None:
        """Both sides lose the connection, as if a box between them had forgotten it."""
        for side in self.sides:
            side.out.clear()
        for side in self.sides:
            side.arrive(_Reset())

    def on_gone(self) -> None:
        """Forget the connection once no side has a socket."""
        if all(side.gone for side in self.sides):
            self._network.connections.pop(self.number, None)


class Pipe:
    """One direction of a connection: what was sent and has not arrived, in order."""

    def __init__(self, network: _Network, source: "Side", target: "Side") -> None:
        self._network = network
        self._source = source
        self._target = target
        self._items: deque[tuple[int, _Item]] = deque()
        self._last_us = 0
        self._timer: asyncio.TimerHandle | None = None
        # While it stalls: when it is given up.
        self._stalled: asyncio.TimerHandle | None = None
        # Bytes on the wire or unread; and those read whose acknowledgement does not get through.
        self._in_flight = 0
        self._withheld = 0
        # Stalls by itself, whatever the network lets through.
        self.held = False

    @property
    def room(self) -> int:
        """How many bytes more may be sent now."""
        return max(0, self._network.options.window_bytes - self._in_flight)

    def accept(self, listener: "SimulatedListener") -> None:
        """Open the connection at the far side."""
        self._put(_Accept(listener))

    def send(self, data: bytes) -> None:
        """Send bytes; at most `room` of them."""
        self._in_flight += len(data)
        self._put(data)

    def end(self, *, reset: bool) -> None:
        """Nothing follows."""
        self._put(_Reset() if reset else _End())

    def consumed(self, size: int) -> None:
        """The reader has taken so much; its acknowledgement makes room."""
        self._withheld += size
        self._acknowledge()

    def wake(self) -> None:
        """The network has changed: go on where it stalled."""
        self._acknowledge()
        if self._stalled is None or not self._passes():
            return
        self._stalled.cancel()
        self._stalled = None
        loop, options = self._network.loop, self._network.options
        again_us = loop.now_us + self._network.random.randint(0, options.resend_us)
        again_us += self._network.delay_us(self._source.host, self._target.host)
        self._items = deque((max(when_us, again_us), item) for when_us, item in self._items)
        self._last_us = max(self._last_us, again_us)
        self._schedule()

    def clear(self) -> None:
        """Lose what has not arrived."""
        if self._items and isinstance(self._items[0][1], _Accept):
            self._target.refuse()
        self._items.clear()
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        self._timer = self._stalled = None

    def _put(self, item: _Item) -> None:
        size = len(item) if isinstance(item, bytes) else 0
        delay_us = self._network.delay_us(self._source.host, self._target.host, size)
        self._last_us = max(self._last_us, self._network.loop.now_us + delay_us)
        self._items.append((self._last_us, item))
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is None and self._stalled is None and self._items:
            self._timer = self._network.loop.call_at_us(
                self._items[0][0], self._arrive, context=_NOBODY
            )

    def _arrive(self) -> None:
        self._timer = None
        loop = self._network.loop
        if not self._passes():
            self._stalled = loop.call_at_us(
                loop.now_us + self._network.options.silence_us, self._give_up, context=_NOBODY
            )
            return
        while self._items and self._items[0][0] <= loop.now_us:
            _, item = self._items.popleft()
            if isinstance(item, bytes):
                item = self._flipped(item)
                if self._network.chance(self._network.options.reset):
                    self._break(item)
                    return
            self._target.arrive(item)
        self._schedule()

    def _flipped(self, data: bytes) -> bytes:
        if not self._network.chance(self._network.options.flip):
            return data
        damaged = bytearray(data)
        bit = self._network.random.randrange(8 * len(data))
        damaged[bit // 8] ^= 1 << bit % 8
        return bytes(damaged)

    def _break(self, data: bytes) -> None:
        kept = data[: self._network.random.randint(0, len(data))]
        if kept:
            self._target.arrive(kept)
        self.clear()
        self._target.arrive(_Reset())
        self._source.arrive(_Reset())

    def _give_up(self) -> None:
        self._stalled = None
        self.clear()
        self._source.time_out()

    def _acknowledge(self) -> None:
        if self._withheld and self._network.passes(self._target.host, self._source.host):
            self._in_flight -= self._withheld
            self._withheld = 0
            self._source.on_room()

    def _passes(self) -> bool:
        return not self.held and self._network.passes(self._source.host, self._target.host)


class Side(asyncio.Transport):
    """One side of a connection: the transport of a protocol, and the kernel's socket below it."""

    out: Pipe

    def __init__(
        self,
        network: _Network,
        label: str,
        life: "Life",
        host: str,
        sockname: tuple[str, int],
        *,
        peername: tuple[str, int],
    ) -> None:
        super().__init__({"sockname": sockname, "peername": peername})
        self.label = label
        self.life = life
        self.host = host
        # Whether the kernel has no socket for this side any more.
        self.gone = False
        self._network = network
        self._calls: deque[Callable[[], Any]] = deque()
        self._call: asyncio.Handle | None = None
        self._protocol: asyncio.BaseProtocol | None = None
        self._made = False
        # Whether `connection_lost` has been called.
        self._over = False
        self._closing = False
        self._paused = False
        self._unread = bytearray()
        self._unread_end: _End | _Reset | None = None
        self._read_queued = False
        self._buffer = bytearray()
        self._pump_queued = False
        self._high = _HIGH_WATER_BYTES
        self._low = _HIGH_WATER_BYTES // 4
        self._writing_paused = False

    def join(self, connection: Connection, peer: "Side") -> None:
        """Know the other side."""
        self._connection = connection
        self._peer = peer
        self.out = Pipe(self._network, self, peer)

    def __repr__(self) -> str:
        return f"<Side {self.label} of {self.life.name}>"

    # What a protocol may use.

    def write(self, data: Any) -> None:
        self._check_alive()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data is {type(data).__name__}, not bytes")
        self._check_not_over("write")
        if self._closing or self.gone or not data:
            return
        if isinstance(self._unread_end, _Reset):
            # The kernel knows of the reset, and sending is how a paused reader learns of it.
            self._lose(_reset_error())
            return
        self._buffer += data
        self._send()
        if len(self._buffer) > self._high and not self._writing_paused:
            self._writing_paused = True
            assert self._protocol is not None
            self._protocol.pause_writing()

    def close(self) -> None:
        self._check_alive()
        if self._closing:
            return
        self._closing = True
        if not self._buffer:
            self._finish()

    def abort(self) -> None:
        self._check_alive()
        self._check_not_over("abort")
        if self.gone:
            return
        if self._network.chance(0.5):
            self.out.clear()
        self._lose(None)
        self.out.end(reset=True)

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._check_alive()
        self._paused = True

    def resume_reading(self) -> None:
        self._check_alive()
        self._paused = False
        self._queue_read()

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._check_not_over("set_write_buffer_limits")
        if high is None:
            high = _HIGH_WATER_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._high, self._low = high, low

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None
        return self._protocol

    # What the network does with it.

    def make(self, protocol: asyncio.Protocol) -> "asyncio.Future[None]":
        """Give the side its protocol; the future ends when `connection_made` has been called."""
        made: asyncio.Future[None] = self._network.loop.create_future()
        self._protocol = protocol

        def call() -> None:
            self._made = True
            try:
                protocol.connection_made(self)
            finally:
                if not made.done():
                    made.set_result(None)
                self._queue_read()

        self._queue(call)
        return made

    def arrive(self, item: _Item) -> None:
        """Take what came through the pipe."""
        if isinstance(item, _Reset):
            if not self.gone:
                self.out.clear()
                self._unread_end = item
                self._queue_read()
                if self._buffer:
                    # Sending fails, so even a paused reader learns of it.
                    self._queue(lambda: self._lose(_reset_error()))
        elif self.gone:
            # Nobody here: that is how the far side learns of it.
            if not isinstance(item, _End):
                self.out.end(reset=True)
        elif isinstance(item, _Accept):
            if item.listener.open:
                self._queue(lambda: self._accept(item.listener))
            else:
                self.out.end(reset=True)
                self._set_gone()
        elif isinstance(item, _End):
            if self._unread_end is None:
                self._unread_end = item
            self._queue_read()
        else:
            self._unread += item
            self._queue_read()

    def on_room(self) -> None:
        """There is room in the pipe again."""
        if self._buffer and not self._pump_queued:
            self._pump_queued = True
            self._queue(self._pump)

    def time_out(self) -> None:
        """What was sent has not been acknowledged for too long."""
        if not self.gone:
            self._queue(lambda: self._lose(TimeoutError(errno.ETIMEDOUT, "no answer")))

    def refuse(self) -> None:
        """The connection never gets here."""
        self._set_gone()

    def die(self, *, silent: bool) -> None:
        """The process is gone; unless `silent`, its kernel closes the socket."""
        if self.gone:
            return
        self._calls.clear()
        self._buffer.clear()
        if silent:
            if self._network.chance(0.5):
                self.out.clear()
        else:
            self.out.end(reset=bool(self._unread))
        self._set_gone()

    # From the queue, in the context of the node.

    def _queue(self, call: Callable[[], Any]) -> None:
        self._calls.append(call)
        self._next()

    def _next(self) -> None:
        if self._call is None and self._calls and self.life.alive:
            self._call = self._network.loop.call_soon(self._run, context=self.life.context)

    def _run(self) -> None:
        self._call = None
        call = self._calls.popleft()
        try:
            call()
        finally:
            self._next()

    def _accept(self, listener: "SimulatedListener") -> None:
        if not self.gone:
            self.make(listener.factory())

    def _queue_read(self) -> None:
        if self._made and not self._read_queued and (self._unread or self._unread_end is not None):
            self._read_queued = True
            self._queue(self._read)

    def _read(self) -> None:
        self._read_queued = False
        protocol = self._protocol
        if self._paused or self._closing or self.gone or protocol is None:
            return
        assert isinstance(protocol, asyncio.Protocol)
        if self._unread:
            size = min(len(self._unread), _PIECE_BYTES_MAX)
            if self._network.chance(self._network.options.split):
                size = self._network.random.randint(1, size)
            piece = bytes(self._unread[:size])
            del self._unread[:size]
            self._peer.out.consumed(size)
            self._network.loop.trace.add(
                f"read {self.label} {size} {xxhash.xxh3_64_hexdigest(piece)}"
            )
            self._guarded(lambda: protocol.data_received(piece))
            self._queue_read()
        elif isinstance(self._unread_end, _Reset):
            self._lose(_reset_error())
        elif self._unread_end is not None:
            self._unread_end = None
            if not self._guarded(protocol.eof_received):
                self.close()

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """As asyncio: an error in the protocol is reported and ends the connection."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001 - whatever the protocol did
            self._network.loop.call_exception_handler(
                {"message": "protocol failed", "exception": error, "transport": self}
            )
            self.out.end(reset=True)
            self._lose(error)
            return True

    def _send(self) -> None:
        size = min(self.out.room, len(self._buffer))
        if size:
            self.out.send(bytes(self._buffer[:size]))
            del self._buffer[:size]

    def _pump(self) -> None:
        self._pump_queued = False
        if self.gone:
            return
        self._send()
        if self._writing_paused and len(self._buffer) <= self._low:
            self._writing_paused = False
            assert self._protocol is not None
            self._protocol.resume_writing()
        if self._closing and not self._buffer:
            self._finish()

    def _finish(self) -> None:
        """Everything written has left: close the socket."""
        if self.gone:
            return
        # The kernel answers with a reset when something is unread.
        self.out.end(reset=bool(self._unread))
        self._lose(None)

    def _lose(self, error: Exception | None) -> None:
        """The connection is over for this side."""
        if self.gone:
            return
        self._closing = True
        self._buffer.clear()
        self._set_gone()
        protocol = self._protocol
        if protocol is not None:
            self._queue(lambda: self._tell_lost(protocol, error))

    def _tell_lost(self, protocol: asyncio.BaseProtocol, error: Exception | None) -> None:
        protocol.connection_lost(error)
        self._over = True

    def _set_gone(self) -> None:
        self.gone = True
        self._unread.clear()
        self._connection.on_gone()

    def _check_not_over(self, call: str) -> None:
        # uvloop raises for the two others; asyncio's `abort` fails when a close had to wait.
        if self._over:
            raise RuntimeError(f"{call} behind connection_lost; not every loop allows it")

    def _check_alive(self) -> None:
        if not self.life.alive:
            raise NodeDead(self.life.name)
