"""The meta server around its machine: mailbox, store, pushes, answers.

Events are taken one after another. A commit is awaited in place, since what follows it
must not be said before it is stored; a push is started, since a node may be slow, and its
end comes back as an event.

When the store fails, nothing is known of the commit at hand. Its request, and all that
wait, are answered so; then the service makes the store usable again, reads what it
holds, and begins anew with the nodes it knows, as after a restart. Meanwhile clients are
served by what was last stored, and changes are refused with the reason.
"""

import asyncio
import errno
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, Final, Protocol, assert_never
from uuid import UUID

from pegaskv.base.errors import (
    Busy,
    DiskFull,
    NotReady,
    PegasKVError,
    RequestError,
    Unavailable,
)
from pegaskv.base.metrics import Metric
from pegaskv.base.types import Gpid, TableInfo, TableStatus
from pegaskv.codec.messages_meta import NodeReport, TablePush, table_to_wire
from pegaskv.codec.operations import Operation
from pegaskv.coordination.store import (
    Conflict,
    Fence,
    Fenced,
    Guard,
    MetaStore,
    Session,
    StoreUnavailable,
)
from pegaskv.meta import views
from pegaskv.meta.cluster import Cluster
from pegaskv.meta.effects import Answer, Commit, Effect, Push, PushLater, Refuse, Warn
from pegaskv.meta.events import (
    CollectDue,
    Committed,
    Event,
    NodeReported,
    PushDue,
    PushEnded,
    Started,
)
from pegaskv.meta.machine import MetaMachine
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.requests import no_fields, one_flag, one_name, read_request
from pegaskv.net.connection import Handler
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.mailbox import Mailbox
from pegaskv.runtime.tasks import TaskScope

__all__ = ["MetaService", "ReplicaControl"]

_log = logging.getLogger(__name__)

_ELECTION: Final = "meta"
_SESSION_TTL_MS: Final = 10_000
# Beside requests: ends of pushes and pauses, which are bounded by tables and nodes.
_OTHER_EVENTS_MAX: Final = 65_536

_CHANGES: Final = (
    Operation.CREATE_TABLE,
    Operation.DROP_TABLE,
    Operation.RECALL_TABLE,
    Operation.RENAME_TABLE,
    Operation.SET_ENVS,
    Operation.DELETE_ENVS,
    Operation.CLEAR_ENVS,
)

# All other events are requests.
_UNASKED: Final = (Started, NodeReported, Committed, PushEnded, PushDue, CollectDue)

# What a request gets: its answer's table and further fields, or an error.
_Reply = Callable[[TableInfo | None, tuple[Any, ...], RequestError | None], None]


class ReplicaControl(Protocol):
    """A replica server as the meta server sees it."""

    async def configure(self, push: TablePush) -> None:
        """Return when the push is in force; any PegasKVError or OSError: try again later."""
        ...


class Connection(Protocol):
    """What a handler needs of a client's connection."""

    out: list[Any]

    def defer(self) -> None:
        """The request at hand is answered later."""
        ...

    def finish(self, reply: tuple[Any, ...]) -> None:
        """Answer a deferred request."""
        ...

    def flush(self) -> None:
        """Send the answers."""
        ...

    def error(self, request_id: int, error: RequestError) -> tuple[Any, ...]:
        """Return the reply that carries `error`."""
        ...


def _no_state(gpid: Gpid) -> dict[str, Any]:
    return {}


class MetaService:
    """The one leading meta server of a cluster.

    `nodes` is the door to each replica server by its id; `replica_state` returns what
    TABLE_INFO shows of a replica. Tasks run in `scope`, which is closed before `stop`. The
    store stays the caller's, who closes it after this service.
    """

    def __init__(
        self,
        store: MetaStore,
        *,
        nodes: Mapping[str, ReplicaControl],
        clock: Clock,
        random: Random,
        options: MetaOptions,
        scope: TaskScope,
        cluster_name: str,
        cluster_id: int,
        replica_state: views.ReplicaState = _no_state,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._clock = clock
        self._random = random
        self._options = options
        self._cluster_name = cluster_name
        self._cluster_id = cluster_id
        self._replica_state = replica_state
        self._scope = scope
        limit = options.requests_max + _OTHER_EVENTS_MAX
        self._mailbox: Mailbox[Event] = Mailbox("the meta server", limit=limit)
        self._machine = MetaMachine(Cluster(), options)
        self._session: Session | None = None
        self._fence: Fence | None = None
        # Why changes are refused at the moment.
        self._down: BaseException | None = None
        self._stopped = False
        # The last that was taken of each node, and who waits for the answer.
        self._reports: dict[str, NodeReported] = {}
        self._reporting: dict[int, asyncio.Event] = {}
        self._requests: dict[int, _Reply] = {}
        self._last_request_id = 0
        self.commits = 0
        self.commit_failures = 0
        self.pushes = 0
        self.push_failures = 0

    async def start(self) -> None:
        """Lead, load what is stored, finish what is half made, and begin to serve.

        Raises:
            StoreUnavailable: the store cannot be used.
            CorruptionError, UnsupportedFormat: a record cannot be read.

        """
        await self._load()
        interval_ms = self._options.collect_interval_ms
        self._scope.start("meta machine", self._run())
        self._scope.keep(
            "collect dropped tables",
            self._collect,
            pause=lambda: self._clock.sleep_ms(interval_ms),
        )

    @property
    def cluster_uuid(self) -> str:
        """Made once, at the first start."""
        record = self._machine.cluster.record
        return "" if record is None else record.uuid

    @property
    def fence(self) -> Fence | None:
        """What every commit of this leader carries; None before `start`."""
        return self._fence

    async def report(self, report: NodeReport) -> None:
        """Take a replica server's report.

        Returns when new ballots of all its partitions are stored, and every table of the node
        has been pushed once: taken, or failed and to be repeated. While the store is down
        it waits.
        """
        self._last_request_id += 1
        request_id = self._last_request_id
        done = self._reporting[request_id] = asyncio.Event()
        await self._mailbox.put(NodeReported(request_id, report))
        await done.wait()

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each operation of the meta server."""
        table: dict[int, Handler] = {
            Operation.QUERY_CONFIG: self._query_config,
            Operation.LIST_TABLES: self._list_tables,
            Operation.TABLE_INFO: self._table_info,
            Operation.LIST_NODES: self._list_nodes,
            Operation.CLUSTER_INFO: self._cluster_info,
        }
        for operation in _CHANGES:
            table[operation] = self._change
        return table

    def metrics(self) -> Iterable[Metric]:
        """Yield what this server counts."""
        yield from views.state_metrics(self._machine)
        for name, text, count in (
            ("commits", "Commits to the meta store.", self.commits),
            ("commit_failures", "Commits whose outcome was unknown.", self.commit_failures),
            ("pushes", "Changes of tables sent to replica servers.", self.pushes),
            ("push_failures", "Pushes that a node could not take.", self.push_failures),
        ):
            yield Metric(f"pegaskv_meta_{name}_total", "counter", text, (((), count),))
        usable = 0 if self._down is not None else 1
        text = "Whether changes can be stored."
        yield Metric("pegaskv_meta_store_usable", "gauge", text, (((), usable),))

    def health(self) -> list[str]:
        """Why this server is not well, one sentence each; empty when it is."""
        if self._down is not None:
            return [f"tables cannot be changed: {self._down}"]
        return []

    async def stop(self) -> None:
        """Answer what waits still; nothing is stored or pushed any more."""
        self._stopped = True
        self._refuse_all(_stopping())
        for done in self._reporting.values():
            done.set()
        if self._session is not None:
            await self._session.close()

    # Events, one after another.

    async def _run(self) -> None:
        while True:
            event = await self._mailbox.get()
            if not isinstance(event, _UNASKED) and event.request_id not in self._requests:
                # It waited while the store failed, and was answered then.
                continue
            if isinstance(event, NodeReported):
                self._reports[event.report.node_id] = event
            try:
                await self._take(event)
            except (StoreUnavailable, Conflict, Fenced) as error:
                await self._begin_anew(error)

    async def _take(self, event: Event) -> None:
        effects = deque(self._step(event))
        while effects:
            effect = effects.popleft()
            if isinstance(effect, Commit):
                assert not effects
                effects.extend(self._step(Committed(await self._commit(effect))))
            else:
                self._perform(effect)

    def _step(self, event: Event) -> list[Effect]:
        return self._machine.step(event, unix_seconds=self._clock.wall_us() // 1_000_000)

    async def _commit(self, commit: Commit) -> int:
        self.commits += 1
        return await self._store.commit(
            guards=[Guard(key, revision) for key, revision in commit.guards],
            puts=commit.puts,
            deletes=commit.deletes,
            fence=self._fence,
        )

    def _perform(self, effect: Answer | Refuse | Push | PushLater | Warn | Commit) -> None:
        match effect:
            case Answer(request_id, table, more):
                self._reply(request_id, table, more, None)
            case Refuse(request_id, error):
                self._reply(request_id, None, (), error)
            case Push(push_id, node_id, push):
                name = f"push of table {push.table.table_id}"
                self._scope.start(name, self._push(push_id, node_id, push))
            case PushLater(node_id, table_id, delay_ms):
                name = f"pause before table {table_id}"
                self._scope.start(name, self._send_later(PushDue(node_id, table_id), delay_ms))
            case Warn(text):
                _log.warning("%s", text)
            case Commit():
                raise AssertionError("a commit is awaited")
            case _:
                assert_never(effect)

    async def _push(self, push_id: int, node_id: str, push: TablePush) -> None:
        self.pushes += 1
        error_text = ""
        try:
            await self._nodes[node_id].configure(push)
        except (PegasKVError, OSError) as error:
            self.push_failures += 1
            error_text = str(error) or type(error).__name__
            table = push.table
            _log.warning(
                "node %s could not take table %s (id %d, version %d): %s",
                node_id, table.name, table.table_id, table.version, error_text,
            )  # fmt: skip
        await self._mailbox.put(PushEnded(push_id, node_id, push.table.table_id, error_text))

    async def _send_later(self, event: Event, delay_ms: int) -> None:
        await self._clock.sleep_ms(delay_ms)
        await self._mailbox.put(event)

    async def _collect(self) -> None:
        await self._mailbox.put(CollectDue())

    # The store.

    async def _load(self) -> None:
        """Lead and begin with what the store holds."""
        if self._fence is None:
            if self._session is None or self._session.lost.is_set():
                self._session = await self._store.session(_SESSION_TTL_MS)
            name = self._cluster_name.encode()
            self._fence = await self._store.campaign(_ELECTION, self._session, name)
        records, _ = await self._store.list("")
        cluster = Cluster.load({key: (one.value, one.revision) for key, one in records.items()})
        next_push_id = self._machine.delivery.next_push_id
        self._machine = MetaMachine(cluster, self._options, next_push_id=next_push_id)
        new_uuid = UUID(int=self._random.getrandbits(128), version=4)
        await self._take(Started(str(new_uuid)))

    async def _begin_anew(self, error: BaseException) -> None:
        """Return when the store can be used again and its content is served."""
        self.commit_failures += 1
        _log.error("the meta store failed: %s; tables cannot be changed until it is back", error)
        self._down = error
        self._refuse_all(
            Unavailable(
                f"the change may or may not have been stored: {error}",
                hint="look at the table before you try again",
                details={"maybe_applied": True},
                maybe_applied=True,
            )
        )
        while True:
            await self._clock.sleep_ms(self._options.store_retry_ms)
            try:
                await self._store.recover()
                if isinstance(self._down, Fenced):
                    self._fence = None
                await self._load()
                for reported in list(self._reports.values()):
                    # As after a restart: nothing says what the nodes were told last.
                    await self._take(reported)
            except (StoreUnavailable, Conflict, Fenced) as again:
                self._down = again
            else:
                break
        self._down = None
        _log.info("the meta store can be used again")

    # Requests.

    def _await_reply(self, reply: _Reply) -> int:
        self._last_request_id += 1
        self._requests[self._last_request_id] = reply
        return self._last_request_id

    def _reply(
        self,
        request_id: int,
        table: TableInfo | None,
        more: tuple[Any, ...],
        error: RequestError | None,
    ) -> None:
        # Changes of before a failure of the store were answered then.
        reply = self._requests.pop(request_id, None)
        if reply is not None:
            reply(table, more, error)
        reported = self._reporting.pop(request_id, None)
        if reported is not None:
            reported.set()

    def _refuse_all(self, error: RequestError) -> None:
        for request_id in list(self._requests):
            self._reply(request_id, None, (), error)

    def _change(self, connection: Connection, message: list[Any]) -> None:
        """Queue a change; the answer comes when it is stored and in force."""
        wire_id, operation, _, *fields = message
        if self._stopped:
            raise _stopping()
        if self._down is not None:
            raise _down(self._down)
        if len(self._requests) >= self._options.requests_max:
            raise Busy(f"{len(self._requests)} changes of tables are under way")

        def reply(
            table: TableInfo | None, more: tuple[Any, ...], error: RequestError | None
        ) -> None:
            if error is not None:
                connection.finish(connection.error(wire_id, error))
            else:
                shown = None if table is None else table_to_wire(table)
                connection.finish((wire_id, 0, shown, *more))
            connection.flush()

        event = read_request(Operation(operation), self._last_request_id + 1, fields)
        self._mailbox.put_nowait(event)
        assert self._await_reply(reply) == event.request_id
        connection.defer()

    def _query_config(self, connection: Connection, message: list[Any]) -> None:
        name = one_name(message[3:])
        connection.out.append((message[0], 0, *views.query_config(self._machine, name)))

    def _table_info(self, connection: Connection, message: list[Any]) -> None:
        name = one_name(message[3:])
        fields = views.table_info(self._machine, name, self._replica_state)
        connection.out.append((message[0], 0, *fields))

    def _list_tables(self, connection: Connection, message: list[Any]) -> None:
        with_dropped = one_flag(message[3:], "with dropped")
        found = views.list_tables(self._machine.cluster, with_dropped=with_dropped)
        connection.out.append((message[0], 0, found))

    def _list_nodes(self, connection: Connection, message: list[Any]) -> None:
        no_fields(message[3:])
        connection.out.append((message[0], 0, views.list_nodes(self._machine)))

    def _cluster_info(self, connection: Connection, message: list[Any]) -> None:
        no_fields(message[3:])
        connection.out.append((message[0], 0, self._describe()))

    def _describe(self) -> Mapping[str, Any]:
        cluster = self._machine.cluster
        dropped = [one for one in cluster.tables.values() if one.status is TableStatus.DROPPED]
        return {
            "cluster_name": self._cluster_name,
            "cluster_id": self._cluster_id,
            "cluster_uuid": self.cluster_uuid,
            "nodes_alive": len(self._machine.delivery.nodes),
            "tables": len(cluster.tables) - len(dropped),
            "dropped_tables": len(dropped),
            "partitions": cluster.partition_count,
            "default_partition_count": self._options.default_partition_count,
            "default_replica_count": self._options.default_replica_count,
            "drop_reserve_seconds": self._options.drop_reserve_seconds,
            "meta_store": "usable" if self._down is None else str(self._down),
        }


def _stopping() -> NotReady:
    return NotReady("the server is stopping", hint="try again when it is back")


def _down(error: BaseException) -> RequestError:
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
        return DiskFull(f"tables cannot be changed: {error}")
    return NotReady(
        f"tables cannot be changed at the moment: {error}",
        hint="the server tries again by itself; data are served meanwhile",
    )
