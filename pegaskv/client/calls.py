"""Calls on one table: to the right node, again where that is safe, inside a deadline.

The hot methods of `Table` send their first request themselves and come here only when
its outcome is not a plain success. Everything else begins here. What follows an error
stands in `routing.ADVICE`; this module acts on it.

The routing is asked for again when an error says that it may be stale, by one caller for
all and at a bounded pace. While no meta server answers, what is known is gone by: as long
as the replica servers are well no call needs a meta server.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from pegaskv.base.errors import (
    PegasKVError,
    RequestError,
    TableNotFound,
    Timeout,
    Unavailable,
    WireError,
)
from pegaskv.client.connection import SILENT, TIMED_OUT, Connection, Lost
from pegaskv.client.nodes import NO_NODE, Node, NodePool, NoNode, SharedAttempt, error_of_reply
from pegaskv.client.resolver import MetaResolver, retry_after_ms
from pegaskv.client.retry import (
    PAUSE_MS_MAX,
    ROUTING_PAUSE_MS_MAX,
    BackOff,
    Deadline,
    Pace,
)
from pegaskv.client.routing import (
    Advice,
    PartitionTable,
    advise,
    outcome_unknown,
    read_partition_table,
)
from pegaskv.codec.operations import ANY_MEMBER, OPERATIONS, Operation

__all__ = ["HEAVY_BYTES", "Call", "Calls", "Route", "malformed"]

# Requests above are counted in bytes too; below, their number bounds them well enough.
HEAVY_BYTES: Final = 4_096

# What a question for the routing may take from a call that has a route to go by.
_REFRESH_MS_MAX: Final = 1_000
# How often a write that waits for a silent node looks whether another one serves by now.
_LOOK_MS: Final = 250

_UNKNOWN_HINT: Final = (
    "the write may have been applied: read the row before you write it again, "
    "or pass retry_unknown=True where a repeated write does no harm"
)
_SLOW_HINT: Final = "the node is slow or unreachable: try again, or give more time by timeout="


@dataclass(slots=True)
class Call:
    """One operation on one partition, as it may be sent more than once."""

    operation: Operation
    # A row's hash, or a partition's index where the call is about a whole partition.
    key_hash: int
    # What follows the table id and the partition index.
    fields: tuple[Any, ...]
    timeout_ms: int
    weight: int = 0
    retry_unknown: bool = False
    # The table id that the call began with, when another one may not be meant.
    table_id: int | None = None
    started_ms: int | None = None
    # An earlier attempt may have been applied.
    unknown: bool = False

    @property
    def is_write(self) -> bool:
        """Whether it changes rows."""
        return OPERATIONS[self.operation].is_write


class Route:
    """A partition table with the nodes in place of addresses."""

    __slots__ = ("early", "mask", "members", "nodes", "partitions", "table_id")

    def __init__(self, partitions: PartitionTable, pool: NodePool) -> None:
        self.partitions = partitions
        self.table_id = partitions.table_id
        self.mask = len(partitions.primaries) - 1
        # Writes that wait for the disk or for secondaries go together: in two parts they would
        # take turns at it.
        self.early = not partitions.waits
        self.nodes: list[Node | NoNode] = [
            NO_NODE if address is None else pool.node(address) for address in partitions.primaries
        ]
        # All that have a partition's rows, for reads that any member may answer.
        self.members: list[list[Node]] = [
            [*([node] if isinstance(node, Node) else []), *(pool.node(each) for each in others)]
            for node, others in zip(self.nodes, partitions.secondaries, strict=True)
        ]

    def any_member(self, index: int, random: Random) -> Node | NoNode:
        """Return one of a partition's members by chance, one that is connected if there is any."""
        members = self.members[index]
        connected = [node for node in members if node.connection is not None]
        # Now and then another one too, or it would never be connected to.
        if connected and random.random() < 0.9:
            return random.choice(connected)
        return random.choice(members) if members else NO_NODE


class Calls:
    """Calls on the table `name`, with its routing."""

    def __init__(
        self, name: str, resolver: MetaResolver, pool: NodePool, *, any_member: bool = False
    ) -> None:
        self.name = name
        # Whether reads may be answered by any member of a partition.
        self.any_member = any_member
        self.pool = pool
        self.clock = pool.clock
        # Replaced as a whole; None until the first refresh and after a time-out.
        self.route: Route | None = None
        # The last one that a meta server told.
        self.known: Route | None = None
        # When that was asked for.
        self._asked_ms = -1
        self._resolver = resolver
        self._refreshing = SharedAttempt[Route](pool.clock)
        self._pace = Pace(pool.random)

    async def refresh(self, stale: Route | None, deadline: Deadline) -> Route:
        """Return a route other than `stale`, asking the meta server unless somebody just did.

        Raises:
            TableNotFound: there is no such table (any more).
            Timeout, Unavailable: no meta server answered; nothing was applied.

        """
        if self.route is not None and self.route is not stale:
            return self.route
        try:
            return await self._refreshing.run(lambda: self._refresh(deadline), deadline)
        except TimeoutError:
            raise Timeout(
                f"table {self.name}: no routing within {deadline.timeout_ms / 1_000:g} s"
            ) from None

    async def _refresh(self, deadline: Deadline) -> Route:
        what = f"routing of table {self.name}"
        remaining = deadline.remaining_ms(now_ms=self.clock.monotonic_ms())
        if self.known is not None:
            # Without an answer the call goes on by what is known, and needs time for that.
            remaining = min(_REFRESH_MS_MAX, remaining // 2)
        wait_ms = self._pace.wait_ms(now_ms=self.clock.monotonic_ms())
        if wait_ms:
            if wait_ms >= remaining:
                raise Timeout(f"{what}: it was asked for a moment ago")
            await self.clock.sleep_ms(wait_ms)
        asked_ms = self.clock.monotonic_ms()
        self._pace.on_asked(now_ms=asked_ms)
        fields, asked = await self._resolver.ask(
            Operation.QUERY_CONFIG,
            (self.name,),
            max(1, remaining - wait_ms),
            changes=False,
            what=what,
        )
        try:
            partitions = read_partition_table(fields, asked=asked)
        except WireError as error:
            raise Unavailable(f"{what}: a malformed answer from {asked}: {error}") from None
        known = self.known
        if known is None or partitions.replaces(known.partitions):
            self.known = Route(partitions, self.pool)
            if known is not None:
                self._leave_silent(known, self.known)
        assert self.known is not None
        self._asked_ms = asked_ms
        self.route = self.known
        return self.route

    def _leave_silent(self, before: Route, after: Route) -> None:
        """Wait no longer for nodes that are silent and no longer serve what they did."""
        for old, new in zip(before.nodes, after.nodes, strict=False):
            if old is not new and isinstance(old, Node):
                old.give_up_silent("and another node serves by now")

    async def looked_up(self, stale: Route | None, deadline: Deadline) -> Route:
        """Return what `refresh` does, or the known route while no meta server answers.

        Raises:
            TableNotFound: there is no such table (any more).
            Timeout, Unavailable: nothing is known, and no meta server answered.

        """
        try:
            return await self.refresh(stale, deadline)
        except (Timeout, Unavailable):
            if self.known is None or self.pool.closed:
                raise
            self.route = self.known
            return self.known

    async def routed(self, timeout_ms: int) -> Route:
        """Return the route that is known, or ask for it."""
        if self.route is not None:
            return self.route
        deadline = Deadline(now_ms=self.clock.monotonic_ms(), timeout_ms=timeout_ms)
        return await self.looked_up(None, deadline)

    def deadline(self, call: Call) -> Deadline:
        """The deadline of a call; it began at its first attempt."""
        if call.started_ms is None:
            call.started_ms = self.clock.monotonic_ms()
        return Deadline(now_ms=call.started_ms, timeout_ms=call.timeout_ms)

    def send_now(self, call: Call) -> "tuple[asyncio.Future[Any], str] | None":
        """Send a call if that is possible without waiting; its reply's future and the node."""
        route = self.route
        if route is None or (call.table_id is not None and call.table_id != route.table_id):
            return None
        index = call.key_hash & route.mask
        stale = self.any_member and not call.is_write
        node = route.any_member(index, self.pool.random) if stale else route.nodes[index]
        if node.connection is None:
            return None
        future = self._submit(node.connection, call, route, call.timeout_ms, stale=stale)
        return None if future is None else (future, node.address)

    def _submit(
        self,
        connection: Connection,
        call: Call,
        route: Route,
        timeout_ms: int,
        *,
        stale: bool = False,
    ) -> "asyncio.Future[Any] | None":
        return connection.submit(
            (
                int(call.operation),
                timeout_ms,
                route.table_id,
                (call.key_hash & route.mask) | (ANY_MEMBER if stale else 0),
                *call.fields,
            ),
            call.weight if call.weight > HEAVY_BYTES else 0,
            route.early or not call.is_write,
        )

    async def send(self, call: Call) -> list[Any]:
        """Run a call whose first attempt can mostly be sent without waiting."""
        sent = self.send_now(call)
        if sent is None:
            return await self.run(call)
        future, address = sent
        if call.started_ms is None:
            call.started_ms = self.clock.monotonic_ms()
        reply = await future
        if type(reply) is list and reply[1] == 0:
            return reply
        return await self.run(call, (reply, address))

    async def run(self, call: Call, first: tuple[Any, str] | None = None) -> list[Any]:
        """Return the successful reply of a call; `first` is (reply, address) of a made attempt.

        Raises:
            Timeout, Unavailable: no answer, or no server for it; see `maybe_applied`.
            RequestError: the answer.

        """
        deadline = self.deadline(call)
        back_off = BackOff(self.pool.random)
        route: Route | None = self.route
        address = ""
        sent_ms = deadline.ends_ms - deadline.timeout_ms
        looked_again = False
        while True:
            try:
                if first is not None:
                    (reply, address), first = first, None
                else:
                    if route is None:
                        route = await self.looked_up(None, deadline)
                    sent_ms = self.clock.monotonic_ms()
                    reply, address = await self._attempt(call, route, deadline)
                if type(reply) is not list:
                    reply = await self._waited_for(call, reply, deadline)
                if type(reply) is list and reply[1] == 0:
                    return reply
                raise self.error_of(call, reply, address)
            except RequestError as error:
                last = error
            call.unknown = call.unknown or outcome_unknown(last)
            advice = advise(last, retry_unknown=call.retry_unknown or not call.is_write)
            if advice is Advice.REFRESH_ONCE and not looked_again and route is not None:
                looked_again = True
                stale = route
                route = await self._refreshed(call, route, deadline, last)
                if route.table_id == stale.table_id or call.table_id is not None:
                    raise last
                continue
            if advice is Advice.ELSEWHERE and not looked_again:
                looked_again = True
                if self._asked_ms >= sent_ms:
                    # Of many calls together the first has asked for all.
                    route = self.route
                elif not _leads_elsewhere(call, route, address):
                    route = await self._refreshed(call, route, deadline, last)
                if _leads_elsewhere(call, route, address):
                    continue
            if advice not in (Advice.AGAIN, Advice.REFRESH):
                raise self._final(call, last)
            pause_ms = back_off.next_ms(
                at_least_ms=retry_after_ms(last),
                at_most_ms=ROUTING_PAUSE_MS_MAX if advice is Advice.REFRESH else PAUSE_MS_MAX,
            )
            remaining_ms = deadline.remaining_ms(now_ms=self.clock.monotonic_ms())
            # Of a closed client no attempt is left, however much time is.
            if pause_ms >= remaining_ms or self.pool.closed:
                raise self._give_up(call, last)
            if pause_ms:
                await self.clock.sleep_ms(pause_ms)
            if advice is Advice.REFRESH:
                route = await self._refreshed(call, route, deadline, last)
            if not deadline.remaining_ms(now_ms=self.clock.monotonic_ms()):
                raise self._give_up(call, last)

    async def _refreshed(
        self, call: Call, stale: Route | None, deadline: Deadline, cause: RequestError
    ) -> Route:
        try:
            return await self.looked_up(stale, deadline)
        except (Timeout, Unavailable):
            # Why the first attempt failed says more than that the meta server is silent too.
            raise self._give_up(call, cause) from None
        except RequestError as error:
            raise self._final(call, error) from None

    async def _waited_for(self, call: Call, reply: Lost, deadline: Deadline) -> Any:
        """Return the outcome of a request whose node has fallen silent.

        A write that was sent may be done at any moment, so its answer is waited for until
        another node serves the partition: then the silent one cannot answer any more.
        """
        while isinstance(reply, Lost) and reply.later is not None:
            if call.retry_unknown or not call.is_write:
                return reply
            later = reply.later
            try:
                async with self.clock.timeout_ms(_LOOK_MS):
                    reply = await asyncio.shield(later)
            except TimeoutError:
                # If that finds another primary it ends the connection, and with it this.
                with suppress(RequestError):
                    await self.refresh(self.route, deadline)
        return reply

    async def _attempt(self, call: Call, route: Route, deadline: Deadline) -> tuple[Any, str]:
        """Send a call once; return the reply or `Lost`, and the address."""
        if call.table_id is not None and call.table_id != route.table_id:
            raise TableNotFound(f"table {self.name} was dropped; another one has its name now")
        index = call.key_hash & route.mask
        stale = self.any_member and not call.is_write
        node = route.any_member(index, self.pool.random) if stale else route.nodes[index]
        if isinstance(node, NoNode):
            raise Unavailable(f"{self.where(call, route)} has no primary at the moment")
        connection = node.connection or await node.connected(deadline)
        remaining = deadline.remaining_ms(now_ms=self.clock.monotonic_ms())
        future = self._submit(connection, call, route, max(1, remaining), stale=stale)
        if future is None:
            raise Unavailable(f"{node.address}: {connection.cause}")
        return await future, node.address

    def where(self, call: Call, route: Route | None) -> str:
        """Name the table and partition of a call for a message."""
        if route is None:
            return f"{call.operation.name.lower()} on table {self.name}"
        return (
            f"{call.operation.name.lower()} on table {self.name}, "
            f"partition {call.key_hash & route.mask}"
        )

    def error_of(self, call: Call, reply: Any, address: str) -> RequestError:
        """Return the error that a reply other than success means for `call`."""
        place = f"{self.where(call, self.known)} at {address}"
        if type(reply) is list:
            error = error_of_reply(reply)
            if isinstance(error, Timeout | Unavailable):
                # The server could not say what became of a write.
                error.maybe_applied = call.is_write
                error.hint = error.hint or (_UNKNOWN_HINT if call.is_write else "")
            return error
        maybe_applied = call.is_write and reply.sent
        if reply.status == TIMED_OUT:
            # The primary may have moved: the next call asks.
            self.route = None
            return Timeout(
                f"{place}: no answer within {call.timeout_ms / 1_000:g} s",
                hint=_UNKNOWN_HINT if maybe_applied else _SLOW_HINT,
                maybe_applied=maybe_applied,
            )
        kind = Timeout if reply.status == SILENT else Unavailable
        return kind(
            f"{place}: {reply.cause}",
            hint=_UNKNOWN_HINT if maybe_applied else "",
            maybe_applied=maybe_applied,
        )

    def _final(self, call: Call, error: RequestError) -> RequestError:
        """The error that ends a call, with what is known of its earlier attempts."""
        if not call.unknown or not call.is_write or outcome_unknown(error):
            return error
        return Unavailable(
            f"{error.message}; an earlier attempt may have been applied",
            hint=_UNKNOWN_HINT,
            maybe_applied=True,
        )

    def _give_up(self, call: Call, last: RequestError) -> RequestError:
        """The error of a call that has no time, or no client, for another attempt."""
        if self.pool.closed:
            last = Unavailable(
                f"{self.where(call, self.known)}: the client is closed",
                hint=last.hint if outcome_unknown(last) else "",
                maybe_applied=outcome_unknown(last),
            )
        elif last.refresh_routing or isinstance(last, Timeout | Unavailable):
            kind = Timeout if isinstance(last, Timeout) else Unavailable
            last = kind(
                f"{self.where(call, self.known)}: not served within "
                f"{call.timeout_ms / 1_000:g} s; the last attempt: {last.message}",
                hint=last.hint or "is the node that serves the partition running?",
                maybe_applied=outcome_unknown(last),
            )
        return self._final(call, last)

    async def run_all(self, calls: list[Call]) -> "list[list[Any] | RequestError]":
        """Run calls side by side; return each one's reply or error, in their order.

        All first attempts are under way together, as plain futures; what has to be
        repeated is repeated one after another, since that is rare.
        """
        sent: list[tuple[asyncio.Future[Any], str] | None] = []
        unreachable: set[str] = set()
        for call in calls:
            call.started_ms = call.started_ms or self.clock.monotonic_ms()
            started = self.send_now(call)
            if started is None:
                # Nothing is in the way of the others once there is a route and a connection.
                await self._prepare(call, unreachable)
                started = self.send_now(call)
            sent.append(started)
        outcomes: list[list[Any] | RequestError] = []
        for call, started in zip(calls, sent, strict=True):
            try:
                if started is None:
                    outcomes.append(await self.run(call))
                    continue
                future, address = started
                reply = await future
                if type(reply) is list and reply[1] == 0:
                    outcomes.append(reply)
                else:
                    outcomes.append(await self.run(call, first=(reply, address)))
            except RequestError as error:
                outcomes.append(error)
        return outcomes

    async def _prepare(self, call: Call, unreachable: set[str]) -> None:
        """Get the route and the connection of a call; what fails is met again by `run`.

        Each node is tried once: the parts for the others shall not wait.
        """
        deadline = self.deadline(call)
        try:
            route = self.route or await self.looked_up(None, deadline)
            node = route.nodes[call.key_hash & route.mask]
            if isinstance(node, Node) and node.address not in unreachable:
                unreachable.add(node.address)
                await node.connected(deadline)
                unreachable.discard(node.address)
        except PegasKVError:
            return


def malformed(call: Call, what: str) -> Unavailable:
    """The error for a reply that is a success by its status and nonsense by its fields."""
    return Unavailable(
        f"{call.operation.name.lower()}: the node's reply is malformed: {what}",
        hint=_UNKNOWN_HINT if call.is_write else "is it a pegaskv server of another version?",
        maybe_applied=call.is_write,
    )


def _leads_elsewhere(call: Call, route: Route | None, address: str) -> bool:
    """Whether by this route another node than that at `address` serves.

    Who keeps a partition closed, since it may lack something, says so too when another one leads
    by now: it need not have heard of that.
    """
    node = None if route is None else route.nodes[call.key_hash & route.mask]
    return isinstance(node, Node) and node.address != address
