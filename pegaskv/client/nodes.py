"""The nodes that a client talks to: one connection each, made when it is needed.

Any number of callers may ask for a connection at once: the first one makes it, in its
own time, and the others wait for the outcome. If the first is cancelled or has no time
left, the next one takes over. So nothing here runs in the background, and there is
nothing to leave behind.

A node that has fallen silent is not connected to again, and nothing is sent to it, until
it is heard or given up: whoever wants it waits a moment and then looks whether another
node serves by now.
"""

import asyncio
import copy
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final, Generic, TypeVar

from pegaskv.base.errors import (
    InvalidArgument,
    PegasKVError,
    RequestError,
    Timeout,
    Unavailable,
    error_from_code,
)
from pegaskv.base.version import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, VERSION
from pegaskv.client.arguments import parse_address
from pegaskv.client.connection import Connection
from pegaskv.client.options import ClientOptions
from pegaskv.client.retry import Deadline
from pegaskv.codec.operations import Operation
from pegaskv.net.network import Network
from pegaskv.runtime.clock import Clock

__all__ = ["NO_NODE", "Node", "NodePool", "SharedAttempt", "error_of_reply"]

T = TypeVar("T")

_CLOSED: Final = "the client is closed"
_CLOSE_MS_MAX: Final = 1_000
# How long a caller waits for a silent node before it looks elsewhere.
_HEAR_MS: Final = 200
# Many who fail together try a node that is down once, not each for himself.
_DOWN_MS: Final = 50


class SharedAttempt(Generic[T]):
    """One attempt at a time at something that many callers want.

    `run` makes the attempt or waits for the one under way. Whoever makes it is cancelled
    alone: another caller begins again.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._under_way: asyncio.Future[tuple[T | None, PegasKVError | None]] | None = None

    async def run(self, attempt: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        """Return the outcome of an attempt.

        Raises:
            TimeoutError: the deadline passed while another caller's attempt was under way.
            PegasKVError: what the attempt raised.

        """
        while self._under_way is not None:
            remaining = deadline.remaining_ms(now_ms=self._clock.monotonic_ms())
            async with self._clock.timeout_ms(remaining):
                # Shielded, since the future belongs to all who wait.
                result, error = await asyncio.shield(self._under_way)
            if error is not None:
                # Each caller raises its own: a traceback grows with every raise.
                raise copy.copy(error)
            if result is not None:
                return result
        outcome: asyncio.Future[tuple[T | None, PegasKVError | None]]
        outcome = self._under_way = asyncio.get_running_loop().create_future()
        result, failure = None, None
        try:
            result = await attempt()
        except PegasKVError as error:
            failure = error
            raise
        finally:
            # Neither result nor failure: this caller gave up, and the next one begins.
            self._under_way = None
            outcome.set_result((result, failure))
        assert result is not None
        return result


class Node:
    """One server by its address. `connection` is None, or usable at this moment."""

    def __init__(self, address: str, pool: "NodePool") -> None:
        self.address = address
        self.connection: Connection | None = None
        self._pool = pool
        self._connecting = SharedAttempt[Connection](pool.clock)
        # The connection that may be heard again, and who waits for that.
        self._silent: Connection | None = None
        self._changed: asyncio.Future[None] | None = None
        # The last attempt to connect failed at this time, for this reason.
        self._down: tuple[int, Unavailable] | None = None

    async def connected(self, deadline: Deadline) -> Connection:
        """Return a usable connection.

        Raises:
            Unavailable, Timeout: there is none; nothing was sent.
            RequestError: the node refused us in its answer to hello.

        """
        if self.connection is None and self._silent is not None:
            await self._wait_until_heard(deadline)
        if self.connection is not None:
            return self.connection
        if self._down is not None and not self._pool.closed:
            failed_ms, reason = self._down
            if self._pool.clock.monotonic_ms() - failed_ms < _DOWN_MS:
                raise copy.copy(reason)
        try:
            return await self._connecting.run(lambda: self._connect(deadline), deadline)
        except TimeoutError:
            raise Unavailable(
                f"{self.address}: no connection within {deadline.timeout_ms / 1_000:g} s"
            ) from None

    async def _wait_until_heard(self, deadline: Deadline) -> None:
        silent, clock = self._silent, self._pool.clock
        assert silent is not None
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        remaining = deadline.remaining_ms(now_ms=clock.monotonic_ms())
        try:
            async with clock.timeout_ms(min(_HEAR_MS, remaining)):
                await asyncio.shield(self._changed)
        except TimeoutError:
            raise Timeout(
                f"{self.address}: nothing was heard of it for {silent.silent_ms} ms"
            ) from None

    def give_up_silent(self, why: str) -> None:
        """End a silent connection, and with it whatever still waits for an answer there."""
        if self._silent is not None:
            self._silent.close(f"nothing was heard of it for {self._silent.silent_ms} ms, {why}")

    async def _connect(self, deadline: Deadline) -> Connection:
        try:
            connection = await self._try_to_connect(deadline)
        except Unavailable as error:
            self._down = (self._pool.clock.monotonic_ms(), error)
            raise
        self._down = None
        return connection

    async def _try_to_connect(self, deadline: Deadline) -> Connection:
        pool = self._pool
        if pool.closed:
            raise Unavailable(_CLOSED)
        try:
            host, port = parse_address(self.address)
        except InvalidArgument as error:
            raise Unavailable(f"a server named the address {self.address!r}: {error}") from None
        limit_ms = min(
            pool.options.connect_timeout_ms,
            deadline.remaining_ms(now_ms=pool.clock.monotonic_ms()),
        )
        connection = Connection(
            loop=asyncio.get_running_loop(),
            clock=pool.clock,
            usual_timeout_ms=pool.options.timeout_ms,
            requests_max=pool.options.requests_in_flight_max,
            bytes_max=pool.options.bytes_in_flight_max,
            on_change=self._on_change,
            spin_us=pool.options.spin_us,
        )
        pool.keep(connection)
        step = "the connection was not accepted"
        try:
            async with pool.clock.timeout_ms(limit_ms):
                await pool.network.connect(lambda: connection, host, port)
                step = "hello was not answered"
                await self._greet(connection, limit_ms)
        except TimeoutError:
            pool.discard(connection)
            raise Unavailable(
                f"{self.address}: timed out: {step} within {limit_ms / 1_000:g} s"
            ) from None
        except OSError as error:
            pool.discard(connection)
            raise Unavailable(f"{self.address}: {_explain(error)}") from None
        except BaseException:
            pool.discard(connection)
            raise
        if pool.closed:
            connection.close(_CLOSED)
            raise Unavailable(_CLOSED)
        self.connection = connection
        return connection

    async def _greet(self, connection: Connection, limit_ms: int) -> None:
        future = connection.submit(
            (
                int(Operation.HELLO),
                limit_ms,
                PROTOCOL_VERSION_MIN,
                PROTOCOL_VERSION,
                VERSION,
                0,
                [],
                [],
            )
        )
        reply = await future if future is not None else None
        if type(reply) is not list:
            raise Unavailable(
                f"{self.address}: {connection.cause or 'hello was not answered'}",
                hint=connection.advice or "is this the address of a pegaskv server?",
            )
        if reply[1] != 0:
            error = error_of_reply(reply)
            raise type(error)(
                f"{self.address}: {error.message}", hint=error.hint, details=error.details
            )
        limits = reply[10] if len(reply) > 10 else None
        if not isinstance(limits, dict) or type(reply[2]) is not int:
            raise Unavailable(f"{self.address}: its answer to hello is malformed")
        if not PROTOCOL_VERSION_MIN <= reply[2] <= PROTOCOL_VERSION:
            raise Unavailable(f"{self.address}: it chose protocol version {reply[2]}")
        connection.accept(
            requests_max=_limit(limits, "requests_in_flight_max"),
            bytes_max=_limit(limits, "bytes_in_flight_max"),
        )

    def _on_change(self, connection: Connection) -> None:
        """A connection has ended, fallen silent, been heard again, or is about to end."""
        if connection.silent:
            self._silent = connection
        elif self._silent is connection:
            self._silent = None
            if self._changed is not None:
                self._changed.set_result(None)
                self._changed = None
        if self.connection is connection and not connection.usable:
            self.connection = None
        elif self.connection is None and connection.usable:
            self.connection = connection


class NodePool:
    """All nodes of one client, by address. They stay known; their connections come and go."""

    def __init__(
        self, *, network: Network, clock: Clock, random: Random, options: ClientOptions
    ) -> None:
        self.network = network
        self.clock = clock
        self.random = random
        self.options = options
        self.closed = False
        # Also those that are being made; a dict keeps their order.
        self.connections: dict[Connection, None] = {}
        self._nodes: dict[str, Node] = {}

    def node(self, address: str) -> Node:
        """Return the node at `address`."""
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(address, self)
        return node

    async def close(self) -> None:
        """End every connection and every call that waits; may be called again."""
        self.closed = True
        for connection in list(self.connections):
            connection.close(_CLOSED)
        for connection in list(self.connections):
            try:
                async with self.clock.timeout_ms(_CLOSE_MS_MAX):
                    await connection.wait_ended()
            except TimeoutError:
                # A loop that loses a transport must not hold up the program's end.
                pass
            self.connections.pop(connection, None)

    def keep(self, connection: Connection) -> None:
        """Remember a new connection, and forget those that are gone."""
        for ended in [each for each in self.connections if each.gone]:
            del self.connections[ended]
        self.connections[connection] = None

    def discard(self, connection: Connection) -> None:
        """End a connection that was not made; uvloop may never call its `connection_lost`."""
        connection.close("not connected")
        self.connections.pop(connection, None)


class NoNode:
    """Stands where a partition has no primary."""

    address = "nowhere"
    connection: Connection | None = None


NO_NODE: Final = NoNode()


def error_of_reply(reply: list[Any]) -> RequestError:
    """Return the error in a reply whose status is not 0; what is malformed is left out."""
    message = reply[2] if len(reply) > 2 and isinstance(reply[2], str) else ""
    hint = reply[3] if len(reply) > 3 and isinstance(reply[3], str) else ""
    details = reply[4] if len(reply) > 4 else None
    return error_from_code(reply[1], message, hint, details)


def _limit(limits: dict[Any, Any], name: str) -> int:
    """A limit of the server; without one, or with nonsense, our own holds."""
    value = limits.get(name)
    return value if type(value) is int and value > 0 else 1 << 62


def _explain(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused: nothing listens there"
    if type(error).__name__ == "gaierror":
        return "the host's name is not known"
    return error.strerror or str(error) or type(error).__name__
