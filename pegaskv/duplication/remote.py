"""Another cluster, as all duplications of this server see it: one pool, one routing, one probe.

Tables are addressed by id, so renames change nothing. When the cluster cannot be reached, a
bare hello a second is all that is sent; the first that is answered wakes everybody who
waits.

The bytes under way are bounded for the cluster, the requests for each of its servers (`window`).
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Final

from pegaskv.base.errors import PegasKVError, Timeout, Unavailable, WireError
from pegaskv.client.connection import TIMED_OUT, Lost
from pegaskv.client.nodes import Node, NodePool, error_of_reply
from pegaskv.client.options import ClientOptions
from pegaskv.client.resolver import MetaResolver
from pegaskv.client.retry import Deadline
from pegaskv.client.routing import PartitionTable, read_partition_table
from pegaskv.codec.operations import Operation
from pegaskv.duplication.window import Window
from pegaskv.net.network import Network
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope

__all__ = ["RemoteCluster", "RemoteClusters", "uuids_in"]

_PROBE_MS: Final = 1_000
_PROBE_TIMEOUT_MS: Final = 2_000
_ALIVE_MS: Final = 1_000
# A connection on which nothing was heard for so long does not live on when others are tried.
_SILENT_MS: Final = 2_000
_HEAVY_BYTES: Final = 4_096


class RemoteCluster:
    """One remote cluster by its meta servers' addresses."""

    def __init__(
        self,
        metas: str,
        *,
        network: Network,
        clock: Clock,
        random: Random,
        scope: TaskScope,
        timeout_ms: int,
        window_bytes: int,
        window_requests_max: int = 4_096,
    ) -> None:
        self.metas = metas
        self.timeout_ms = timeout_ms
        self._clock = clock
        self._scope = scope
        options = ClientOptions(timeout_ms=timeout_ms)
        self._pool = NodePool(network=network, clock=clock, random=random, options=options)
        addresses = [address.strip() for address in metas.split(",")]
        self._resolver = MetaResolver(addresses, self._pool)
        self._routes: dict[int, PartitionTable] = {}
        self._probing = False
        self._answered_ms = -_ALIVE_MS
        # Who waits for the cluster to answer.
        self._waiters: dict[Callable[[], None], None] = {}
        # Bytes that may still be sent, requests by the server's address, and who waits for room.
        self.window_bytes = window_bytes
        self._room = window_bytes
        self._requests_max = window_requests_max
        self._windows: dict[str, Window] = {}
        self._waiting: list[asyncio.Future[None]] = []

    async def close(self) -> None:
        """End every connection."""
        await self._pool.close()

    # --- Being reachable -----------------------------------------------------------------

    def when_reachable(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when the cluster has answered a hello; returns what ends that."""
        self._waiters[wake] = None

        def end() -> None:
            self._waiters.pop(wake, None)

        return end

    def unreachable(self) -> None:
        """A request found nobody: give up what is silent, and ask until somebody answers.

        Unless others were answered meanwhile: then a part of the cluster is slow, and who talks to
        the rest is left alone. Nor does one that fails end what another has just begun: two
        would do that to each other for ever.
        """
        alive = self._clock.monotonic_ms() - self._answered_ms < _ALIVE_MS
        if self._probing or alive:
            return
        self._probing = True
        # A link that was cut may stay silent for long after it has healed.
        for connection in list(self._pool.connections):
            if connection.silent_ms >= _SILENT_MS:
                connection.close("the cluster did not answer")
        self._scope.start(f"probe of {self.metas}", self._probe())

    async def _probe(self) -> None:
        while True:
            try:
                await self._resolver.greet(_PROBE_TIMEOUT_MS)
            except PegasKVError:
                await self._clock.sleep_ms(_PROBE_MS)
            else:
                break
        self._probing = False
        self._answered_ms = self._clock.monotonic_ms()
        for wake in list(self._waiters):
            wake()

    # --- Asking ----------------------------------------------------------------------------

    async def ask(
        self, operation: Operation, fields: tuple[Any, ...], *, timeout_ms: int = 0
    ) -> list[Any]:
        """Ask the meta server that leads; return the fields of its answer.

        Raises:
            RequestError: its answer, or that there was none.

        """
        answer, _ = await self._resolver.ask(
            operation, fields, timeout_ms or self.timeout_ms, changes=True, what=operation.name
        )
        return answer

    async def _route(self, table_id: int) -> PartitionTable:
        route = self._routes.get(table_id)
        if route is None:
            fields, asked = await self._resolver.ask(
                Operation.QUERY_CONFIG, (table_id,), self.timeout_ms, changes=False, what="routing"
            )
            try:
                route = read_partition_table(fields, asked=asked)
            except WireError as error:
                raise Unavailable(f"a malformed answer from {asked}: {error}") from None
            self._routes[table_id] = route
            # Whoever waits for a server may find that it is another one's turn.
            self._wake()
        return route

    def forget_route(self, table_id: int) -> None:
        """Ask for the routing again before the next request."""
        self._routes.pop(table_id, None)

    async def submit(
        self,
        operation: Operation,
        address: str,
        table_id: int,
        index: int,
        fields: tuple[Any, ...],
        size: int,
    ) -> "asyncio.Future[Any]":
        """Send one request about a partition to a server; return the future of its reply.

        Two requests to one server that are submitted one after the other arrive in this
        order, unless the connection broke between them.

        Raises:
            RequestError: it was not sent.

        """
        node: Node = self._pool.node(address)
        connection = node.connection
        if connection is None:
            now_ms = self._clock.monotonic_ms()
            connection = await node.connected(Deadline(now_ms=now_ms, timeout_ms=self.timeout_ms))
        future = connection.submit(
            (int(operation), self.timeout_ms, table_id, index, *fields),
            size if size > _HEAVY_BYTES else 0,
        )
        if future is None:
            raise Unavailable(f"{address}: {connection.cause}")
        return future

    def read_reply(self, reply: Any, what: str) -> list[Any]:
        """Return the fields of a reply. Raises RequestError: what it says, or why it is lost."""
        if isinstance(reply, Lost):
            if reply.status == TIMED_OUT:
                raise Timeout(f"{what}: no answer within {self.timeout_ms / 1_000:g} s")
            raise Unavailable(f"{what}: {reply.cause}")
        if reply[1] != 0:
            raise error_of_reply(reply)
        return list(reply[2:])

    # --- The window --------------------------------------------------------------------------

    @property
    def under_way(self) -> tuple[int, int]:
        """How many requests have no answer yet, and their bytes."""
        most = max((window.under_way for window in self._windows.values()), default=0)
        return most, self.window_bytes - self._room

    async def address_of(self, table_id: int, index: int) -> str:
        """Return where the primary of a partition is.

        Raises:
            RequestError: nobody knows at the moment.

        """
        route = await self._route(table_id)
        address = route.primaries[index] if index < len(route.primaries) else None
        if address is None:
            self.forget_route(table_id)
            raise Unavailable(f"partition {table_id}.{index} has no primary at the target")
        return address

    def _window(self, address: str) -> Window:
        window = self._windows.get(address)
        if window is None:
            window = self._windows[address] = Window(self._requests_max)
        return window

    def is_at(self, table_id: int, index: int, address: str) -> bool:
        """Whether nothing else is known than that the primary of a partition is there."""
        route = self._routes.get(table_id)
        return route is None or route.primaries[index : index + 1] == (address,)

    async def take_room(
        self, size: int, address: str = "", wanted: Callable[[], bool] = lambda: True
    ) -> bool:
        """Wait until one more request of so many bytes may be sent to a server.

        False: it is not `wanted` any more; looked at whenever there is a new routing.
        """
        window = self._window(address)
        while self._room <= 0 or window.full:
            if not wanted():
                return False
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            await future
        self._room -= size
        window.under_way += 1
        return True

    def give_room(self, size: int, reply: Any = None, address: str = "") -> None:
        """A request has its reply, or (None) will never get one."""
        window = self._window(address)
        if isinstance(reply, Lost):
            if reply.status == TIMED_OUT:
                window.timed_out()
        elif reply is not None:
            self._answered_ms = self._clock.monotonic_ms()
            window.answered()
        self._room += size
        window.under_way -= 1
        self._wake()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class RemoteClusters:
    """All remote clusters of one process, made when they are first needed."""

    def __init__(self, make: Callable[[str], RemoteCluster]) -> None:
        self._make = make
        self._clusters: dict[str, RemoteCluster] = {}

    def get(self, metas: str) -> RemoteCluster:
        """The cluster with these meta servers."""
        found = self._clusters.get(metas)
        if found is None:
            found = self._clusters[metas] = self._make(metas)
        return found

    def most_under_way(self) -> tuple[int, int]:
        """Return the most requests, and the most bytes, on their way to one cluster."""
        ways = [each.under_way for each in self._clusters.values()]
        return max((way[0] for way in ways), default=0), max((way[1] for way in ways), default=0)

    async def close(self) -> None:
        """End all connections."""
        for cluster in self._clusters.values():
            await cluster.close()


def uuids_in(answer: list[Any], place: int) -> tuple[bytes, ...]:
    """Return the uuids in an answer; older targets tell none."""
    found = answer[place] if len(answer) > place else None
    if type(found) is not list:
        return ()
    return tuple(uuid for uuid in found if type(uuid) is bytes)
