"""The ways from this server to others: one connection each, made again whenever it ends.

A peer is known by its node id, and the meta server says where it is; a connection counts
only when whoever answers is that node, of this cluster. The same class leads from replica
servers to each other (where `submit` is on the hot path, see `peer_connection`), from the
meta server to its nodes, and to meta servers, of which only addresses are known: they are
held by `at`.

A peer that is held is connected to at once and for ever: a failed attempt is repeated after
a pause that doubles up to a second. Each new cause of failure is logged once.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from pegaskv.base.errors import (
    PegasKVError,
    RequestError,
    Timeout,
    Unavailable,
    error_from_code,
)
from pegaskv.base.metrics import Metric, gauges
from pegaskv.base.version import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, VERSION
from pegaskv.codec.operations import Operation
from pegaskv.net.hello import SERVER_FEATURE
from pegaskv.net.network import Network
from pegaskv.net.peer_connection import Done, PeerConnection
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.spin import Spinner
from pegaskv.runtime.tasks import TaskScope

__all__ = ["Greeting", "Peer", "PeerConnections"]

_log = logging.getLogger(__name__)

_CONNECT_MS: Final = 3_000
_RETRY_MS_MIN: Final = 50
_RETRY_MS_MAX: Final = 1_000
# A connection that lived for so long was a good one: the next is tried without a pause.
_GOOD_MS: Final = 1_000
_LOOK_MS: Final = 500


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a server said of itself in its answer to hello."""

    cluster_name: str
    cluster_id: int
    cluster_uuid: str
    node_id: str
    features: tuple[str, ...]


class Peer:
    """The way to one other server; see `replica.doors.Peer`.

    `greeting` is what it said last, and `trouble` why there is no connection, in words.
    """

    def __init__(self, peers: "PeerConnections", node_id: str, address: str) -> None:
        self.node_id = node_id
        self.address = address
        self.connected = False
        self.greeting: Greeting | None = None
        self.trouble = "" if address else "its address is not known"
        self.made = 0
        self._peers = peers
        self._connection: PeerConnection | None = None
        # Is set when there is reason to try now, and when a connection is gone.
        self._changed = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []

    def __str__(self) -> str:
        if not self.node_id:
            return self.address
        return f"node {self.node_id} ({self.address})" if self.address else f"node {self.node_id}"

    def submit(self, fields: tuple[Any, ...], done: Done, size: int = 0) -> bool:
        """Send `(operation, timeout_ms, *fields)` with all others of this turn."""
        connection = self._connection
        return connection is not None and connection.submit(fields, done, size)

    def flush(self) -> None:
        """Send what was submitted now and not when the turn ends."""
        if self._connection is not None:
            self._connection.flush()

    async def request(self, operation: int, timeout_ms: int, *fields: Any) -> list[Any]:
        """Return the fields of the reply, after its status. Not for the hot path.

        Without a connection it waits for the outcome of the attempt to make one.

        Raises:
            RequestError: what the server answered.
            Unavailable: there is no connection, or it ended before the reply (`maybe_applied`).
            Timeout: no reply within `timeout_ms`.

        """
        replied: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()
        sent = False
        try:
            async with self._peers.clock.timeout_ms(timeout_ms):
                if not self.connected:
                    await self._outcome()
                sent = self.submit((int(operation), timeout_ms, *fields), _into(replied))
                reply = await replied if sent else None
        except TimeoutError:
            raise Timeout(
                f"{self}: no answer within {timeout_ms / 1_000:g} s", maybe_applied=sent
            ) from None
        if reply is None:
            raise Unavailable(f"{self}: {self.trouble or 'not connected'}", maybe_applied=sent)
        if reply[1] != 0:
            raise _error_of(reply)
        return reply[2:]

    def move(self, address: str) -> None:
        """It is said to be at `address`; a connection that is there stays while it lives."""
        if address and address != self.address:
            self.address = address
            self._changed.set()

    def close(self, cause: str) -> None:
        """End the connection at hand; a new one is made while the peer is held."""
        if self._connection is not None:
            self._connection.close(cause)

    # Connecting.

    async def keep(self) -> None:
        """Be connected as far as that can be, until cancelled."""
        clock = self._peers.clock
        pause_ms = 0
        try:
            while True:
                self._changed.clear()
                if self.address:
                    began_ms = clock.monotonic_ms()
                    if await self._try():
                        await self._gone()
                        if clock.monotonic_ms() - began_ms >= _GOOD_MS:
                            pause_ms = 0
                    self._changed.clear()
                    await self._pause(pause_ms)
                    pause_ms = min(max(2 * pause_ms, _RETRY_MS_MIN), _RETRY_MS_MAX)
                else:
                    await self._changed.wait()
        finally:
            self.close("this server needs it no more")
            self._resolve()

    async def _gone(self) -> None:
        while self._connection is not None:
            self._changed.clear()
            await self._changed.wait()

    async def _pause(self, pause_ms: int) -> None:
        # With jitter, so that all who lost one server do not come back as one.
        pause_ms = round(pause_ms * self._peers.random.uniform(0.5, 1.0))
        try:
            async with self._peers.clock.timeout_ms(pause_ms):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _try(self) -> bool:
        """Make one attempt; whether there is a connection now."""
        peers = self._peers
        connection = PeerConnection(
            loop=asyncio.get_running_loop(),
            on_end=self._on_end,
            on_gone=self._on_gone,
            spinner=peers.spinner,
        )
        step = "the connection was not accepted"
        try:
            host, port = _parse(self.address)
            async with peers.clock.timeout_ms(_CONNECT_MS):
                await peers.network.connect(lambda: connection, host, port)
                step = "hello was not answered"
                greeting = await self._greet(connection)
        except TimeoutError:
            trouble = f"{step} within {_CONNECT_MS / 1_000:g} s"
        except OSError as error:
            trouble = _explain(error)
        except PegasKVError as error:
            trouble = str(error)
        except BaseException:
            connection.close("not connected")
            raise
        else:
            self.greeting = greeting
            self._connected(connection)
            return True
        connection.close(trouble)
        self._failed(trouble)
        return False

    async def _greet(self, connection: PeerConnection) -> Greeting:
        replied: asyncio.Future[list[Any] | None] = asyncio.get_running_loop().create_future()
        hello: tuple[Any, ...] = (
            int(Operation.HELLO),
            _CONNECT_MS,
            PROTOCOL_VERSION_MIN,
            PROTOCOL_VERSION,
            VERSION,
            self._peers.cluster_id,
            [SERVER_FEATURE],
            [],
        )
        connection.submit(hello, _into(replied))
        reply = await replied
        if reply is None:
            raise Unavailable(connection.cause)
        if reply[1] != 0:
            raise _error_of(reply)
        greeting = _read_greeting(reply)
        if self.node_id not in ("", greeting.node_id):
            raise Unavailable(f"{self.address} is node {greeting.node_id}")
        self._peers.check_cluster(greeting)
        if connection.closed:
            raise Unavailable(connection.cause)
        connection.accept(as_server=SERVER_FEATURE in greeting.features)
        return greeting

    def _connected(self, connection: PeerConnection) -> None:
        if self.trouble and self.made:
            _log.info("connected to %s again", self)
        self.made += 1
        self.trouble = ""
        self._connection = connection
        self.connected = True
        self._resolve()
        self._peers.tell(self.node_id)

    def _failed(self, trouble: str) -> None:
        if trouble != self.trouble:
            _log.warning("cannot connect to %s: %s", self, trouble)
        self.trouble = trouble
        self._resolve()

    def _on_end(self, connection: PeerConnection) -> None:
        if self._connection is connection:
            self.connected = False
            self.trouble = connection.cause

    def _on_gone(self, connection: PeerConnection) -> None:
        peers = self._peers
        peers.past_sent_bytes += connection.sent_bytes
        peers.past_received_bytes += connection.received_bytes
        if self._connection is connection:
            self._connection = None
            self._changed.set()
            if not peers.closed:
                _log.info("the connection to %s has ended: %s", self, connection.cause)
            peers.tell(self.node_id)

    async def _outcome(self) -> None:
        """Return when there is a connection, or an attempt has failed."""
        if not self.address or self._peers.closed:
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting

    def _resolve(self) -> None:
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.done():
                each.set_result(None)

    def look(self) -> None:
        """Find out whether the connection lives."""
        if self._connection is not None:
            self._connection.look()

    @property
    def own_host(self) -> str:
        """The address of this machine on the way there, "" while not connected."""
        return "" if self._connection is None else self._connection.own_host

    @property
    def bytes_moved(self) -> tuple[int, int]:
        """Sent and received on the connection at hand."""
        one = self._connection
        return (0, 0) if one is None else (one.sent_bytes, one.received_bytes)


class PeerConnections:
    """All ways to other servers; implements `replica.doors.Peers`. Runs in `scope`.

    `cluster_id` is this cluster's: servers of another one refuse us, and we them.
    """

    def __init__(
        self,
        *,
        network: Network,
        clock: Clock,
        scope: TaskScope,
        random: Random,
        cluster_id: int,
    ) -> None:
        self.network = network
        self.clock = clock
        self.random = random
        self.cluster_id = cluster_id
        # Known once a meta server has said it; then nobody of another cluster is believed.
        self.cluster_uuid = ""
        self.closed = False
        # Told of every read, if the loop is to stay awake after it.
        self.spinner: Spinner | None = None
        self.past_sent_bytes = 0
        self.past_received_bytes = 0
        self._scope = scope
        self._addresses: dict[str, str] = {}
        self._peers: dict[str, Peer] = {}
        self._at: dict[str, Peer] = {}
        self._tasks: dict[Peer, asyncio.Task[None]] = {}
        self._calls: list[Callable[[str], None]] = []

    def peer(self, node_id: str) -> Peer:
        """Return the way to a node; it connects as soon as its address is known."""
        found = self._peers.get(node_id)
        if found is None:
            found = self._peers[node_id] = self._hold(node_id, self._addresses.get(node_id, ""))
        return found

    def at(self, address: str) -> Peer:
        """Return the way to whoever listens at `address`; its `node_id` is empty."""
        found = self._at.get(address)
        if found is None:
            found = self._at[address] = self._hold("", address)
        return found

    def set_addresses(self, addresses: Mapping[str, str]) -> None:
        """Take what the meta server says of where nodes are; others keep theirs."""
        for node_id, address in addresses.items():
            if address:
                self._addresses[node_id] = address
                found = self._peers.get(node_id)
                if found is not None:
                    found.move(address)

    def addresses(self, node_ids: Iterable[str]) -> dict[str, str]:
        """Return where these nodes are, as far as it is known here."""
        known = self._addresses
        return {node_id: known[node_id] for node_id in node_ids if node_id in known}

    def release(self, node_id: str) -> None:
        """Connect to a node no more; whoever asks for it again gets a new way."""
        found = self._peers.pop(node_id, None)
        if found is not None:
            task = self._tasks.pop(found, None)
            if task is not None:
                task.cancel()

    def on_connected(self, call: Callable[[str], None]) -> None:
        """Call back with the node id whenever a connection to it was made, or has ended."""
        self._calls.append(call)

    def check_cluster(self, greeting: Greeting) -> None:
        """Raise Unavailable if the server that said this is not of our cluster."""
        unknown = "" in (self.cluster_uuid, greeting.cluster_uuid)
        if greeting.cluster_id != self.cluster_id or not (
            unknown or greeting.cluster_uuid == self.cluster_uuid
        ):
            raise Unavailable(
                f"it belongs to another cluster: `{greeting.cluster_name}` with id "
                f"{greeting.cluster_id} and uuid {greeting.cluster_uuid or 'unknown'}"
            )

    def tell(self, node_id: str) -> None:
        """Say that a connection was made, or has ended."""
        for call in self._calls:
            call(node_id)

    def close(self) -> None:
        """End all connections; none is made any more. The scope's end does the same."""
        self.closed = True
        for task in self._tasks.values():
            task.cancel()

    def _hold(self, node_id: str, address: str) -> Peer:
        peer = Peer(self, node_id, address)
        if self.closed:
            peer.trouble = "this server is stopping"
            return peer
        if not self._tasks:
            self._scope.keep(
                "look at peers", self._look, pause=lambda: self.clock.sleep_ms(_LOOK_MS)
            )
        self._tasks[peer] = self._scope.start(f"connection to {peer}", peer.keep())
        return peer

    async def _look(self) -> None:
        for peer in self._tasks:
            peer.look()

    def metrics(self) -> Iterable[Metric]:
        """Yield how many connections there are to others, and what they carried."""
        peers = list(self._tasks)
        moved = [peer.bytes_moved for peer in peers]
        yield from gauges(
            ("peers", "Other servers that this one connects to.", len(peers)),
            ("peers_connected", "Those with a connection.", sum(one.connected for one in peers)),
        )
        for name, text, value in (
            ("connections_made", "Connections made to them.", sum(one.made for one in peers)),
            (
                "sent_bytes",
                "Bytes sent to them.",
                self.past_sent_bytes + sum(sent for sent, _ in moved),
            ),
            (
                "received_bytes",
                "Bytes received as their answers.",
                self.past_received_bytes + sum(received for _, received in moved),
            ),
        ):
            yield Metric(f"pegaskv_peers_{name}_total", "counter", text, (((), float(value)),))


def _into(future: "asyncio.Future[list[Any] | None]") -> Done:
    """Return what puts a reply into `future`, if anybody waits still."""

    def done(reply: list[Any] | None) -> None:
        if not future.done():
            future.set_result(reply)

    return done


def _read_greeting(reply: list[Any]) -> Greeting:
    kinds = (int, str, str, int, str, str, list)
    if len(reply) < 2 + len(kinds) or any(
        type(field) is not kind for field, kind in zip(reply[2:], kinds, strict=False)
    ):
        raise Unavailable("its answer to hello is malformed")
    version, _, name, cluster_id, uuid, node_id, features = reply[2 : 2 + len(kinds)]
    if not PROTOCOL_VERSION_MIN <= version <= PROTOCOL_VERSION:
        raise Unavailable(f"it chose protocol version {version}")
    return Greeting(
        name, cluster_id, uuid, node_id, tuple(each for each in features if type(each) is str)
    )


def _error_of(reply: list[Any]) -> RequestError:
    """Return the error in a reply whose status is not 0; what is malformed is left out."""
    message = reply[2] if len(reply) > 2 and type(reply[2]) is str else ""
    hint = reply[3] if len(reply) > 3 and type(reply[3]) is str else ""
    return error_from_code(reply[1], message, hint, reply[4] if len(reply) > 4 else None)


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise Unavailable(f"{address!r} is no address")
    return host, int(port)


def _explain(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "the connection was refused: nothing listens there"
    if type(error).__name__ == "gaierror":
        return "the host's name is not known"
    return error.strerror or str(error) or type(error).__name__
