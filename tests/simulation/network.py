"""A network in memory that is as bad as it is told to be: hosts, links and who listens where.

Each life of a node gets an `Endpoint`, its `pegaskv.net.network.Network`. What can go wrong:
latency and its spread per directed pair of hosts, a slow or a cut direction (it stalls, and goes on
when healed, or times out), resets at any byte, refused connections, a host without power (silence,
later resets), a flipped bit when asked for. Connections themselves are in `transport.py`.
"""

import asyncio
import contextvars
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from tests.simulation.errors import NodeDead
from tests.simulation.loop import SimulationLoop
from tests.simulation.transport import Connection, Side

__all__ = ["Endpoint", "Host", "Link", "NetworkOptions", "SimulatedListener", "SimulatedNetwork"]

LOOPBACK: Final = "127.0.0.1"
_ANY_NAMES: Final = ("", "0.0.0.0")
_LOOPBACK_NAMES: Final = (LOOPBACK, "localhost")
_LOOPBACK_US: Final = (10, 60)


class Life(Protocol):
    """What the network needs to know of the life of a node."""

    name: str
    context: contextvars.Context

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        ...


@dataclass(frozen=True)
class NetworkOptions:
    """How bad the network is; times are in microseconds, chances are for each thing sent."""

    latency_us: tuple[int, int] = (50, 500)
    jitter_us: int = 200
    # The chance that what has arrived is handed over in more than one piece.
    split: float = 0.3
    # What fits on the wire and at the reader, in bytes.
    window_bytes: int = 256 * 1024
    # The connection is reset in the middle of it.
    reset: float = 0.0
    # One bit of it is flipped.
    flip: float = 0.0
    # A stalled connection is lost after so long, and so is a connect to a silent host.
    silence_us: int = 120_000_000
    # What was lost during a cut is sent again within this time after it has healed.
    resend_us: int = 1_000_000

    @classmethod
    def draw(cls, random: Random) -> "NetworkOptions":
        """A network that is near, far or odd; never one that resets or flips by itself."""
        low = random.choice([20, 50, 500, 5_000, 40_000])
        return cls(
            latency_us=(low, low * random.randint(1, 4)),
            jitter_us=random.choice([0, 100, 1_000, 20_000]),
            split=random.choice([0.0, 0.1, 0.5, 1.0]),
            # A narrow window over a long way would be a network that nobody has.
            window_bytes=random.choice([4 * 1024 if low <= 500 else 256 * 1024, 1024 * 1024]),
            resend_us=random.choice([0, 200_000, 3_000_000]),
        )


@dataclass
class Link:
    """One direction between two hosts."""

    latency_us: int
    cut: bool = False
    bytes_per_s: int | None = None


@dataclass
class Host:
    """A machine on the network."""

    name: str
    address: str
    powered: bool = True
    port: int = 32_768
    listeners: dict[int, "SimulatedListener"] = field(default_factory=dict)

    def next_port(self) -> int:
        """A port that nobody here has had."""
        self.port += 1
        while self.port in self.listeners:
            self.port += 1
        return self.port


class SimulatedNetwork:
    """All hosts, links and connections of a world."""

    def __init__(self, loop: SimulationLoop, random: Random, options: NetworkOptions) -> None:
        self.loop = loop
        self.options = options
        self.random = random
        # Those with a side that is not lost, by number.
        self.connections: dict[int, Connection] = {}
        self._connection_number = 0
        self._hosts: dict[str, Host] = {}
        self._links: dict[tuple[str, str], Link] = {}

    def add_host(self, name: str) -> Host:
        """A new machine with an address of its own."""
        count = len(self._hosts)
        address = f"10.0.{count // 250}.{count % 250 + 1}"
        host = self._hosts[address] = Host(name, address)
        return host

    def host(self, address: str) -> Host | None:
        """The machine with this address."""
        return self._hosts.get(address)

    def link(self, source: str, target: str) -> Link:
        """The direction from one address to another."""
        found = self._links.get((source, target))
        if found is None:
            low, high = _LOOPBACK_US if source == target else self.options.latency_us
            found = self._links[(source, target)] = Link(self.random.randint(low, high))
        return found

    def cut(self, source: str, target: str, *, both: bool = True) -> None:
        """Let nothing through from `source` to `target`, or neither way."""
        self.link(source, target).cut = True
        if both:
            self.link(target, source).cut = True

    def heal(self, source: str, target: str, *, both: bool = True) -> None:
        """Let everything through again; what was stalled is sent again."""
        self.link(source, target).cut = False
        if both:
            self.link(target, source).cut = False
        self._wake()

    def heal_all(self) -> None:
        """Undo every cut and every slowness, and let go what is held."""
        for link in self._links.values():
            link.cut = False
            link.bytes_per_s = None
        for connection in self.connections.values():
            connection.sides[0].out.held = False
        self._wake()

    def hold(self, source: str, target: str) -> None:
        """Let nothing more through on the connections that `source` has made to `target`.

        Those that it makes from now on are as ever, so that they overtake what is held.
        """
        for connection in self.connections.values():
            if connection.hosts == (source, target):
                connection.sides[0].out.held = True

    def release(self, source: str, target: str) -> None:
        """Let what is held go on, though its sender may be gone."""
        for connection in self.connections.values():
            if connection.hosts == (source, target):
                connection.sides[0].out.held = False
        self._wake()

    def isolate(self, address: str) -> None:
        """Cut a host off from all others, both ways."""
        for other in self._hosts:
            if other != address:
                self.cut(address, other)

    def reset(self, first: str, second: str) -> int:
        """Reset every connection between two hosts; return how many there were."""
        found = [
            connection
            for connection in self.connections.values()
            if connection.hosts in ((first, second), (second, first))
        ]
        for connection in found:
            connection.reset()
        return len(found)

    def power_on(self, host: Host) -> None:
        """The machine answers again: connections of before are reset when they are used."""
        host.powered = True
        self._wake()

    def end_life(self, life: Life, host: Host, *, power: bool) -> None:
        """The process of `life` is gone: its kernel tells all peers, unless the power is gone."""
        host.powered = not power
        for port, listener in list(host.listeners.items()):
            if listener.life is life:
                del host.listeners[port]
        for connection in list(self.connections.values()):
            for side in connection.sides:
                if side.life is life:
                    side.die(silent=power)

    def passes(self, source: str, target: str) -> bool:
        """Whether a packet sent now would arrive."""
        return not self.link(source, target).cut and self._hosts[target].powered

    def delay_us(self, source: str, target: str, size: int = 0) -> int:
        """How long a packet takes, drawn anew."""
        link = self.link(source, target)
        delay = link.latency_us
        if source != target and self.options.jitter_us:
            delay += self.random.randint(0, self.options.jitter_us)
        if link.bytes_per_s is not None:
            delay += size * 1_000_000 // link.bytes_per_s
        return delay

    def chance(self, probability: float) -> bool:
        """True with this probability; an impossible thing draws nothing."""
        return probability > 0 and self.random.random() < probability

    def add(self, connection: Connection) -> int:
        """Know a connection until both its sides are lost; returns its number."""
        self._connection_number += 1
        self.connections[self._connection_number] = connection
        return self._connection_number

    def _wake(self) -> None:
        for connection in list(self.connections.values()):
            for side in connection.sides:
                side.out.wake()


class Endpoint:
    """The network as one life of a node sees it: a `pegaskv.net.network.Network`."""

    def __init__(self, network: SimulatedNetwork, host: Host, life: Life) -> None:
        self._network = network
        self._host = host
        self._life = life

    async def connect(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Connect; raises OSError."""
        self._check_alive()
        loop, source = self._network.loop, self._host.address
        target = source if host in _LOOPBACK_NAMES else host
        remote = self._network.host(target)
        if remote is None:
            raise OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH))
        attempt: asyncio.Future[SimulatedListener | None] = loop.create_future()
        give_up = loop.call_at_us(
            loop.now_us + self._network.options.silence_us, _fail, attempt, errno.ETIMEDOUT
        )
        self._packet(source, target, self._on_syn, remote, port, attempt)
        try:
            listener = await attempt
        except asyncio.CancelledError:
            # The other side may have accepted what nobody waits for any more.
            if self._life.alive and self._network.chance(0.5) and port in remote.listeners:
                self._open(remote.listeners[port], host, port).die(silent=False)
            raise
        finally:
            give_up.cancel()
        self._check_alive()
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, f"connect to {host}:{port} refused")
        client = self._open(listener, host, port)
        protocol = factory()
        try:
            # As in asyncio, `connection_made` has been called when `connect` returns.
            await client.make(protocol)
        except asyncio.CancelledError:
            client.close()
            raise
        return client, protocol

    async def listen(
        self, factory: Callable[[], asyncio.Protocol], host: str, port: int
    ) -> "SimulatedListener":
        """Accept connections; port 0 picks one. Raises OSError."""
        self._check_alive()
        if host not in (self._host.address, *_ANY_NAMES, *_LOOPBACK_NAMES):
            raise OSError(errno.EADDRNOTAVAIL, f"cannot listen on {host}:{port}")
        await asyncio.sleep(0)
        self._check_alive()
        if port == 0:
            port = self._host.next_port()
        if port in self._host.listeners:
            raise OSError(errno.EADDRINUSE, f"{host}:{port} is in use")
        shown = self._host.address if host in _ANY_NAMES else host
        listener = SimulatedListener(self._host, self._life, factory, (shown, port))
        self._host.listeners[port] = listener
        return listener

    def _packet(
        self, source: str, target: str, on_arrival: Callable[..., None], *arguments: object
    ) -> None:
        loop = self._network.loop
        if self._network.passes(source, target):
            delay_us = self._network.delay_us(source, target)
            loop.call_at_us(loop.now_us + delay_us, on_arrival, *arguments)

    def _on_syn(
        self, remote: Host, port: int, attempt: "asyncio.Future[SimulatedListener | None]"
    ) -> None:
        listener = remote.listeners.get(port)
        if remote.powered:
            self._packet(remote.address, self._host.address, _resolve, attempt, listener)

    def _open(self, listener: "SimulatedListener", host: str, port: int) -> Side:
        here, there = self._host.address, listener.host.address
        shown = (LOOPBACK, LOOPBACK) if host in _LOOPBACK_NAMES else (here, there)
        connection = Connection(
            self._network,
            (self._life, here, (shown[0], self._host.next_port())),
            (listener.life, there, (shown[1], port)),
        )
        client, _ = connection.sides
        client.out.accept(listener)
        return client

    def _check_alive(self) -> None:
        if not self._life.alive:
            raise NodeDead(self._life.name)


class SimulatedListener:
    """A listening port of a host."""

    def __init__(
        self,
        host: Host,
        life: Life,
        factory: Callable[[], asyncio.Protocol],
        address: tuple[str, int],
    ) -> None:
        self.host = host
        self.life = life
        self.factory = factory
        self.address = address

    @property
    def open(self) -> bool:
        """Whether it still accepts."""
        return self.host.listeners.get(self.address[1]) is self

    async def close(self) -> None:
        """Stop accepting; connections that are there stay."""
        if not self.life.alive:
            raise NodeDead(self.life.name)
        if self.open:
            del self.host.listeners[self.address[1]]


def _resolve(
    attempt: "asyncio.Future[SimulatedListener | None]", listener: SimulatedListener | None
) -> None:
    if not attempt.done():
        attempt.set_result(listener)


def _fail(attempt: "asyncio.Future[SimulatedListener | None]", number: int) -> None:
    if not attempt.done():
        attempt.set_exception(OSError(number, os.strerror(number)))
