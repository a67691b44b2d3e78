"""Owns all connections of a server: how many there are, what they hold, how they end.

A connection looks after its own requests and replies. What needs a clock or a view over
all connections stands here: admission, the process's account of bytes in flight, the
sweep that ends whoever keeps the server waiting, counters, and the clean stop.

It promises that no peer takes more than its share for long: a connection that says
nothing, sends half a frame or reads nothing is ended within its time limit, and when the
process's account is full, reading pauses and the largest half-sent frame is given up.
Connections that are merely idle are kept.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from pegaskv.base.errors import (
    Busy,
    InternalError,
    InvalidArgument,
    NotReady,
    RequestError,
    WireError,
)
from pegaskv.base.metrics import Metric, gauges
from pegaskv.codec.operations import Operation
from pegaskv.net.connection import CONNECTION_ID, Handler, ServerConnection
from pegaskv.net.hello import ANNOUNCED_LIMITS, ServerIdentity
from pegaskv.net.options import AcceptorOptions
from pegaskv.net.outgoing import Outgoing
from pegaskv.net.refusing import explain_shape
from pegaskv.net.single_caller import SingleCaller
from pegaskv.net.turns import Pace, Turns
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.spin import Spinner

__all__ = ["Acceptor"]

_log = logging.getLogger(__name__)

# What only servers say to each other.
_BETWEEN_SERVERS = frozenset(one for one in Operation if one >= Operation.PREPARE)

# What a connection may hold although the process holds all that it may.
_NEXT_TO_NOTHING = 16 * 1024

_GOODBYE_LOOK_MS = 5

# The beginning of a `WireError` and the kind that metrics and log lines call it.
_KINDS = (
    ("frame of", "too large"),
    ("the frame's checksum", "checksum"),
    ("not a msgpack", "packing"),
    ("a frame is", "no messages"),
    ("a message without", "no request id"),
    ("the first frame", "no hello"),
    ("HTTP", "http"),
)


class Acceptor:
    """Makes the connections of one server and ends them.

    `Network.listen` takes an acceptor as its factory. `run` must be kept running in a scope.
    Invariant (`check`): `bytes_in_flight` is the sum of what the connections hold.
    """

    def __init__(
        self,
        handlers: Mapping[int, Handler],
        *,
        identity: ServerIdentity,
        clock: Clock,
        options: AcceptorOptions | None = None,
    ) -> None:
        self.identity = identity
        self.options = options = options or AcceptorOptions()
        # What a client should keep to.
        self.limits = {
            **ANNOUNCED_LIMITS,
            "requests_in_flight_max": options.connection_requests_max,
            "bytes_in_flight_max": options.connection_in_flight_bytes_max,
        }
        self.bytes_in_flight = 0
        self.handler_failures = 0
        # Asked before every write, where what was read may be old by then.
        self.may_answer: Callable[[], bool] | None = None
        # Told of every read, if the loop is to stay awake after it.
        self.spinner: Spinner | None = None
        self.single = SingleCaller()
        # Who has more to handle than one turn of the loop takes; servers never rest.
        self.pace = Pace(clock.wall_us, options.bulk_share_percent)
        self.turns = Turns(self.pace)
        self.server_turns = Turns(Pace(clock.wall_us, 100))
        self.outgoing = Outgoing()
        self._memory_failures = 0
        # Time as of the last sweep: near enough for time limits of seconds, and free.
        self.now_ms = clock.monotonic_ms()
        self._clock = clock
        self.handlers_for_servers: dict[int, Handler] = {
            Operation.HELLO: _on_second_hello,
            Operation.PING: self._on_ping,
            **handlers,
        }
        # To clients what servers say to each other is unknown.
        self._handlers = {
            operation: handler
            for operation, handler in self.handlers_for_servers.items()
            if operation not in _BETWEEN_SERVERS
        }
        # Dictionaries keep their order, so that two runs of a simulation agree.
        self._connections: dict[ServerConnection, None] = {}
        self._watched: dict[ServerConnection, None] = {}
        self._stalled: dict[ServerConnection, None] = {}
        self._lingering: dict[ServerConnection, None] = {}
        self._per_address: Counter[str] = Counter()
        self._draining = False
        self._empty = asyncio.Event()

        self._accepted = 0
        self._refused: Counter[str] = Counter()
        self._ended: Counter[str] = Counter()
        self._broken: Counter[str] = Counter()
        self._broken_logged: dict[str, tuple[int, int]] = {}
        # What ended connections had counted.
        self._past_requests = 0
        self._past_received_bytes = 0
        self._past_sent_bytes = 0

    def __call__(self) -> ServerConnection:
        """Make the protocol of a connection that was just accepted."""
        return ServerConnection(self, self._handlers)

    @property
    def connection_count(self) -> int:
        """Connections that were admitted and have not ended."""
        return len(self._connections)

    async def run(self) -> None:
        """Keep the time limits until cancelled."""
        while True:
            await self._clock.sleep_ms(self.options.sweep_interval_ms)
            self.sweep()

    async def say_goodbye(self, patience_ms: int) -> None:
        """Ask all clients to send nothing more, and wait until they have closed.

        A request that is on its way when a connection is closed is lost, and its sender cannot
        know whether it was done. So the side that sends has to close: requests go on being
        handled meanwhile. Other servers are not waited for, and nobody longer than that.
        """
        self._draining = True
        stopping = NotReady("the server is stopping", hint="another one serves, or it comes back")
        clients = [each for each in self._connections if each.greeted and not each.of_server]
        for connection in clients:
            connection.out.append(connection.error(CONNECTION_ID, stopping))
            connection.flush()
        ends_ms = self._clock.monotonic_ms() + patience_ms
        while any(each in self._connections for each in clients):
            if self._clock.monotonic_ms() >= ends_ms:
                return
            await self._clock.sleep_ms(_GOODBYE_LOOK_MS)

    async def drain(self, deadline_ms: int) -> None:
        """Answer what is under way and close all connections; cut them off after `deadline_ms`."""
        self._draining = True
        for connection in [*self._connections]:
            connection.drain()
        for connection in [*self._lingering]:
            connection.close()
        if self._connections or self._lingering:
            try:
                async with self._clock.timeout_ms(deadline_ms):
                    await self._empty.wait()
            except TimeoutError:
                left = {**self._connections, **self._lingering}
                _log.warning("%d connections were cut off while stopping", len(left))
                for connection in left:
                    self._ended["stop"] += 1
                    connection.abort()

    # What connections call.

    def admit(self, connection: ServerConnection) -> RequestError | None:
        """Register a new connection, or return why there is no room for it."""
        options = self.options
        address = connection.address
        refusal = None
        if self._draining:
            refusal = ("stopping", "the server is stopping")
        elif len(self._connections) >= options.connections_max:
            refusal = ("total", f"the server has its {options.connections_max} connections")
        elif self._per_address[address] >= options.connections_per_address_max:
            refusal = (
                "address",
                f"{address} has its {options.connections_per_address_max} connections already",
            )
        elif connection.descriptor > options.descriptor_max:
            refusal = ("files", "the server may have no more files open (ulimit -n)")
        if refusal is not None:
            reason, message = refusal
            self._refused[reason] += 1
            self._log_at_intervals(f"refused: {reason}", f"connection refused: {message}")
            return Busy(
                message,
                hint="use one connection for many requests, or try again shortly",
                details={"retry_after_ms": 1_000},
            )
        self._accepted += 1
        self._empty.clear()
        self._connections[connection] = None
        self._per_address[address] += 1
        connection.deadline_ms = self._clock.monotonic_ms() + options.hello_timeout_ms
        self.watch(connection)
        return None

    def forget(self, connection: ServerConnection) -> None:
        """The connection has ended."""
        self._watched.pop(connection, None)
        self._lingering.pop(connection, None)
        if connection in self._connections:
            del self._connections[connection]
            self._per_address[connection.address] -= 1
            if not self._per_address[connection.address]:
                del self._per_address[connection.address]
        self._stalled.pop(connection, None)
        self.outgoing.forget(connection)
        self._past_requests += connection.requests
        self._past_received_bytes += connection.received_bytes
        self._past_sent_bytes += connection.sent_bytes
        if not self._connections and not self._lingering:
            self._empty.set()

    def watch(self, connection: ServerConnection) -> None:
        """Look at the connection's time limits at every sweep, while it has any."""
        self._watched[connection] = None

    def linger(self, connection: ServerConnection) -> None:
        """Keep a refused connection until its peer has read why, or for a short while."""
        if connection.descriptor > self.options.descriptor_max:
            # Files are short. What was written is on its way, and mostly it arrives.
            connection.close()
            return
        if len(self._lingering) >= self.options.lingering_max:
            # A flood: the oldest has waited longest.
            oldest = next(iter(self._lingering))
            del self._lingering[oldest]
            oldest.abort()
        self._lingering[connection] = None
        connection.deadline_ms = self._clock.monotonic_ms() + self.options.linger_ms
        self.watch(connection)

    def expect_end(self, connection: ServerConnection) -> None:
        """The connection closes once its peer has taken what is unsent; see that it does."""
        connection.deadline_ms = self._clock.monotonic_ms() + self.options.output_stall_timeout_ms
        self.watch(connection)

    def charge(self, change: int) -> None:
        """Add to the process's account of bytes; room that is made wakes those who wait."""
        self.bytes_in_flight += change
        if self._stalled and self.bytes_in_flight < self.options.bytes_in_flight_max:
            stalled, self._stalled = self._stalled, {}
            for connection in stalled:
                connection.resume()

    def over_budget(self, connection: ServerConnection) -> bool:
        """Whether the process holds too much for `connection` to read on; it will be woken.

        One that holds next to nothing reads on: it is not the one that took the room.
        """
        if self.bytes_in_flight < self.options.bytes_in_flight_max:
            return False
        if connection.held_bytes <= _NEXT_TO_NOTHING:
            return False
        self._stalled[connection] = None
        return True

    def cut_off(self, connection: ServerConnection, reason: str) -> None:
        """End a connection whose peer keeps us waiting."""
        self._ended[reason] += 1
        self._log_at_intervals(
            f"ended: {reason}", f"connection of {connection.address} closed: {reason}"
        )
        connection.abort()

    def refuse_hello(self, connection: ServerConnection, error: RequestError) -> None:
        """Count a hello that was not accepted."""
        self._refused["hello"] += 1
        self._log_at_intervals(
            "refused: hello", f"hello of {connection.address} refused: {error.message}"
        )

    def count_broken(self, connection: ServerConnection, error: WireError) -> None:
        """Count bytes or messages that are not our protocol."""
        text = error.message
        kind = next((name for start, name in _KINDS if text.startswith(start)), "other")
        self._broken[kind] += 1
        self._log_at_intervals(
            f"broken: {kind}", f"connection of {connection.address} closed: {text}"
        )

    def out_of_memory(self, connection: ServerConnection) -> None:
        """Count something that could not be done for want of memory."""
        self._memory_failures += 1
        self._log_at_intervals("memory", f"out of memory for a request of {connection.address}")

    def explain(
        self,
        connection: ServerConnection,
        message: list[Any],
        error: Exception,
        operations: Container[int],
    ) -> RequestError:
        """Return what a message is answered that its handler did not take; count our failures."""
        wrong = explain_shape(message, operations)
        if wrong is not None:
            return wrong
        if isinstance(error, MemoryError):
            self.out_of_memory(connection)
            return InternalError("the server has no memory for this request", hint="ask for less")
        self.handler_failures += 1
        _log.error("operation %d failed", message[1], exc_info=error)
        return InternalError(f"operation {message[1]} failed: {type(error).__name__}")

    def unsendable(self, connection: ServerConnection, reason: str) -> InternalError:
        """Count a reply that could not be sent; return what is sent in its place.

        Without a reason there was no memory for it.
        """
        if not reason:
            self.out_of_memory(connection)
            reason = "the server has no memory for the reply"
        self.handler_failures += 1
        _log.error("%s", reason)
        return InternalError(reason)

    def _log_at_intervals(self, kind: str, text: str) -> None:
        """Log the first of each kind in an interval, and how many came since the last line."""
        logged_ms, missed = self._broken_logged.get(kind, (None, 0))
        if logged_ms is not None and self.now_ms - logged_ms < self.options.log_interval_ms:
            self._broken_logged[kind] = (logged_ms, missed + 1)
            return
        self._broken_logged[kind] = (self.now_ms, 0)
        more = f" (and {missed} more of this kind since the last line)" if missed else ""
        _log.warning("%s%s", text, more)

    # The sweep.

    def sweep(self) -> None:
        """End whatever has passed its time limit."""
        now_ms = self.now_ms = self._clock.monotonic_ms()
        for connection in [*self._watched]:
            self._look_at(connection, now_ms)
        if self._stalled and self.bytes_in_flight >= self.options.bytes_in_flight_max:
            self._make_room()
        pause_bytes = self.options.connection_unsent_pause_bytes
        if len(self._connections) * pause_bytes > self.options.bytes_unsent_max:
            self._bound_unsent()

    def _look_at(self, connection: ServerConnection, now_ms: int) -> None:
        options = self.options
        deadline_ms = connection.deadline_ms
        if deadline_ms is not None and now_ms >= deadline_ms:
            if connection in self._lingering or connection.closed:
                connection.abort()
            else:
                self._ended["no hello in time"] += 1
                self._log_at_intervals(
                    "ended: no hello",
                    f"connection of {connection.address} closed: it said no hello in time",
                )
                connection.turn_away(InvalidArgument("no hello in time"))
            return
        partial_ms = connection.partial_since_ms
        if partial_ms is not None:
            if connection.paused:
                # A frame that we do not read on is not the peer's delay.
                connection.partial_since_ms = now_ms
            elif now_ms - partial_ms >= options.partial_frame_timeout_ms:
                self.cut_off(connection, "a frame was not completed in time")
                return
        if connection.unsent_since_ms is not None:
            progress = connection.sent_bytes - connection.unsent_bytes
            if progress != connection.progress:
                connection.progress = progress
                connection.unsent_since_ms = now_ms
            elif now_ms - connection.unsent_since_ms >= options.output_stall_timeout_ms:
                self.cut_off(connection, "it does not read its replies")
                return
        if deadline_ms is None and partial_ms is None and connection.unsent_since_ms is None:
            self._watched.pop(connection, None)

    def _make_room(self) -> None:
        """All wait for room: whoever holds most of it with a half-sent frame gives it up."""
        largest = max(self._connections, key=lambda connection: connection.partial_bytes)
        if largest.partial_bytes:
            self._ended["memory"] += 1
            self._log_at_intervals(
                "ended: memory", f"connection of {largest.address} closed: memory is short"
            )
            largest.turn_away(
                Busy(
                    "the server's memory for requests is taken",
                    details={"retry_after_ms": 1_000},
                )
            )

    def _bound_unsent(self) -> None:
        """Cut off those who leave most unread, until all that is unsent is within bounds."""
        unsent = {each: each.unsent_bytes for each in self._connections}
        total = sum(unsent.values())
        if total <= self.options.bytes_unsent_max:
            return
        for connection in sorted(unsent, key=unsent.__getitem__, reverse=True):
            self.cut_off(connection, "too many replies are unread by all")
            total -= unsent[connection]
            if total <= self.options.bytes_unsent_max:
                return

    # What it answers itself, and what it counts.

    def _on_ping(self, connection: ServerConnection, message: list[Any]) -> None:
        if len(message) != 3:
            raise InvalidArgument("ping has no fields")
        connection.out.append((message[0], 0, self._clock.wall_us()))

    def metrics(self) -> Iterable[Metric]:
        """What the connections have done since the server started."""

        def one(name: str, kind: Any, text: str, value: float) -> Metric:
            return Metric(name, kind, text, (((), float(value)),))

        def by_reason(name: str, text: str, counts: Counter[str]) -> Metric:
            samples = tuple(
                ((("reason", reason),), float(count)) for reason, count in counts.items()
            )
            return Metric(name, "counter", text, samples)

        live = {**self._connections, **self._lingering}
        requests = self._past_requests + sum(each.requests for each in live)
        received = self._past_received_bytes + sum(each.received_bytes for each in live)
        sent = self._past_sent_bytes + sum(each.sent_bytes for each in live)
        yield one("pegaskv_connections_accepted_total", "counter", "Connections.", self._accepted)
        yield by_reason("pegaskv_connections_refused_total", "Connections refused.", self._refused)
        yield by_reason(
            "pegaskv_connections_ended_total", "Connections that the server ended.", self._ended
        )
        yield by_reason(
            "pegaskv_broken_frames_total", "Bytes that were not the protocol.", self._broken
        )
        yield one("pegaskv_requests_total", "counter", "Requests received.", requests)
        yield one(
            "pegaskv_handler_failures_total",
            "counter",
            "Requests that met an error of the server's own.",
            self.handler_failures,
        )
        yield one(
            "pegaskv_memory_failures_total",
            "counter",
            "Requests that failed for want of memory.",
            self._memory_failures,
        )
        yield one(
            "pegaskv_bulk_rest_seconds_total",
            "counter",
            "How long clients with much at once were kept waiting for others.",
            self.pace.rested_us / 1_000_000,
        )
        yield one("pegaskv_received_bytes_total", "counter", "Bytes received.", received)
        yield one("pegaskv_sent_bytes_total", "counter", "Bytes sent.", sent)
        yield from self._bounds()

    def _bounds(self) -> Iterable[Metric]:
        """What connections hold, beside what they may."""
        options, live = self.options, self._connections
        unsent = [each.unsent_bytes for each in live]
        most = "The most that one connection has of"
        return gauges(
            ("connections", "Open connections.", len(live)),
            ("connections_max", "Their bound.", options.connections_max),
            (
                "connections_per_address",
                "Open connections of the address that has most.",
                max(self._per_address.values(), default=0),
            ),
            ("connections_per_address_max", "Its bound.", options.connections_per_address_max),
            (
                "in_flight_bytes",
                "Bytes of requests under way and frames that are not complete.",
                self.bytes_in_flight,
            ),
            ("in_flight_bytes_max", "Their bound.", options.bytes_in_flight_max),
            (
                "connection_in_flight_bytes",
                f"{most} those.",
                max((each.held_bytes for each in live), default=0),
            ),
            (
                "connection_in_flight_bytes_max",
                "Where reading from it pauses.",
                options.connection_in_flight_bytes_max,
            ),
            (
                "in_flight_requests",
                "Requests under way that are not answered.",
                sum(each.in_flight for each in live),
            ),
            (
                "connection_requests",
                f"{most} those.",
                max((each.in_flight for each in live), default=0),
            ),
            (
                "connection_requests_max",
                "Where reading from it pauses.",
                options.connection_requests_max,
            ),
            ("unsent_bytes", "Bytes of replies that peers have not read.", sum(unsent)),
            ("unsent_bytes_max", "Their bound.", options.bytes_unsent_max),
            ("connection_unsent_bytes", f"{most} those.", max(unsent, default=0)),
            (
                "connection_unsent_pause_bytes",
                "Where reading from it pauses.",
                options.connection_unsent_pause_bytes,
            ),
            (
                "connection_unsent_bytes_max",
                "Where it is cut off.",
                options.connection_unsent_bytes_max,
            ),
            (
                "lingering_connections",
                "Refused connections that may still read why.",
                len(self._lingering),
            ),
            ("lingering_connections_max", "Their bound.", options.lingering_max),
            ("hello_bytes_max", "What a peer may send before hello.", options.hello_bytes_max),
        )

    def check(self) -> None:
        """Assert the invariants; tests call this."""
        live = {**self._connections, **self._lingering}
        assert self.bytes_in_flight == sum(each.held_bytes for each in live)
        assert sum(self._per_address.values()) == len(self._connections)
        assert all(count > 0 for count in self._per_address.values())


def _on_second_hello(connection: ServerConnection, message: list[Any]) -> None:
    raise InvalidArgument("hello was said already")
