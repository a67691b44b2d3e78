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
from types import MappingProxyType
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
from pegaskv.base.metrics import Metric, gauges
from pegaskv.base.types import TableInfo
from pegaskv.codec.messages_duplication import (
    EnsureAnswer,
    PartitionProgress,
    ProgressReport,
    RemoteWork,
)
from pegaskv.codec.messages_meta import NodeReport, TablePush
from pegaskv.coordination.store import (
    Conflict,
    Fence,
    Fenced,
    Guard,
    MetaStore,
    Session,
    StoreUnavailable,
)
from pegaskv.meta import remotes, views
from pegaskv.meta.cluster import Cluster
from pegaskv.meta.duplication_views import (
    DuplicationState,
    RemoteState,
    Views,
    remote_work,
)
from pegaskv.meta.effects import Answer, Commit, Effect, Push, PushLater, Refuse, Warn
from pegaskv.meta.events import (
    CollectDue,
    Committed,
    Ensured,
    Event,
    Forgotten,
    NodeReported,
    PushDue,
    PushEnded,
    RemotesChanged,
    ReportProgress,
    Request,
    Started,
)
from pegaskv.meta.handlers import Handlers, Reply
from pegaskv.meta.host import Identity
from pegaskv.meta.machine import MetaMachine
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.remotes import ConfiguredCluster
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

# All other events are requests.
_UNASKED: Final = (
    Started,
    NodeReported,
    Committed,
    PushEnded,
    PushDue,
    CollectDue,
    RemotesChanged,
)


class ReplicaControl(Protocol):
    """A replica server as the meta server sees it."""

    async def configure(self, push: TablePush) -> None:
        """Return when the push is in force; any PegasKVError or OSError: try again later."""
        ...


def _no_state(*whose: Any) -> dict[str, Any]:
    return {}


class MetaService:
    """The one leading meta server of a cluster.

    `nodes` is the door to each replica server by its id; `replica_state` returns what
    TABLE_INFO shows of a replica, `duplication_state` of a partition (and a uuid), and
    `remote_state` of a duplication (id and uuid) that waits for its target. `remote_clusters`
    are those of the configuration. `on_remote_work` is called when `remote_work` may be other
    than before. Tasks run in `scope`, which is closed before `stop`. The
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
        remote_clusters: Mapping[str, ConfiguredCluster] = MappingProxyType({}),
        duplication_state: DuplicationState = _no_state,
        remote_state: RemoteState = _no_state,
        on_remote_work: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._nodes = nodes
        self._clock = clock
        self._random = random
        self._options = options
        self._machine = MetaMachine(Cluster(), options)
        self._identity = Identity(cluster_name, cluster_id)
        self._configured = remotes.configured(remote_clusters)
        self._on_remote_work = on_remote_work
        self._remote_work: list[RemoteWork] = []
        self._seen_generation = -1
        self._duplications = Views(
            lambda: self._machine.cluster,
            duplication_state=duplication_state,
            remote_state=remote_state,
        )
        self._handlers = Handlers(
            lambda: self._machine,
            queue=self._queue,
            random=random,
            options=options,
            replica_state=replica_state,
            duplications=self._duplications,
            trouble=lambda: self._down,
        )
        self._scope = scope
        limit = options.requests_max + _OTHER_EVENTS_MAX
        self._mailbox: Mailbox[Event] = Mailbox("the meta server", limit=limit)
        self._session: Session | None = None
        self._fence: Fence | None = None
        # Why changes are refused at the moment.
        self._down: BaseException | None = None
        self._stopped = False
        # The last that was taken of each node, and who waits for the answer.
        self._reports: dict[str, NodeReported] = {}
        self._reporting: dict[int, asyncio.Event] = {}
        self._requests: dict[int, Reply] = {}
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
        return self._handlers.table()

    def metrics(self) -> Iterable[Metric]:
        """Yield what this server counts."""
        yield from views.state_metrics(self._machine)
        yield from self._duplications.metrics()
        for name, text, count in (
            ("commits", "Commits to the meta store.", self.commits),
            ("commit_failures", "Commits whose outcome was unknown.", self.commit_failures),
            ("pushes", "Changes of tables sent to replica servers.", self.pushes),
            ("push_failures", "Pushes that a node could not take.", self.push_failures),
        ):
            yield Metric(f"pegaskv_meta_{name}_total", "counter", text, (((), count),))
        options = self._options
        yield from gauges(
            ("meta_requests", "Changes of tables that wait or are under way.", len(self._requests)),
            ("meta_requests_max", "Their bound.", options.requests_max),
            ("meta_tables_max", "Tables that there may be.", options.tables_max),
            ("meta_partitions_max", "Partitions that there may be.", options.partitions_max),
        )
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
                self._look_at_remote_work()
            else:
                self._perform(effect)
        self._look_at_remote_work()

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
            name = self._identity.name.encode()
            self._fence = await self._store.campaign(_ELECTION, self._session, name)
        records, _ = await self._store.list("")
        cluster = Cluster.load({key: (one.value, one.revision) for key, one in records.items()})
        next_push_id = self._machine.delivery.next_push_id
        cluster.configured = dict(self._configured)
        self._seen_generation = -1
        self._machine = MetaMachine(
            cluster, self._options, next_push_id=next_push_id, identity=self._identity
        )
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

    def _await_reply(self, reply: Reply) -> int:
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

    def _queue(self, event: Callable[[int], Request], reply: Reply) -> None:
        """Queue a request; `reply` is called when it is stored and in force, or refused."""
        self._check_usable()
        if len(self._requests) >= self._options.requests_max:
            raise Busy(f"{len(self._requests)} changes of tables are under way")
        # A request that cannot be read is none.
        self._mailbox.put_nowait(event(self._last_request_id + 1))
        self._await_reply(reply)

    def _check_usable(self) -> None:
        if self._stopped:
            raise _stopping()
        if self._down is not None:
            raise _down(self._down)

    # Duplications.

    def set_remote_clusters(self, clusters: Mapping[str, ConfiguredCluster]) -> None:
        """Take the clusters of a configuration that was read again."""
        self._configured = remotes.configured(clusters)
        self._mailbox.put_nowait(RemotesChanged(self._configured))

    async def report_progress(self, reports: list[ProgressReport]) -> list[PartitionProgress]:
        """Store what duplications have done; return what is stored of those that go on.

        Raises:
            RequestError: nothing is known of it; report again.

        """
        (stored,) = await self._do(lambda request_id: ReportProgress(request_id, tuple(reports)))
        return list(stored)

    def remote_work(self) -> list[RemoteWork]:
        """Return what has to be done at other clusters now."""
        return remote_work(self._machine.cluster, self._identity) if self._machine.ready else []

    async def ensured(self, dupid: int, uuid: bytes, answer: EnsureAnswer) -> None:
        """Store what a target answered. Raises RequestError: tell it again."""
        await self._do(lambda request_id: Ensured(request_id, dupid, uuid, answer))

    async def forgotten(self, dupid: int, uuid: bytes) -> None:
        """Store that a target has forgotten a duplication. Raises RequestError: tell it again."""
        await self._do(lambda request_id: Forgotten(request_id, dupid, uuid))

    async def _do(self, event: Callable[[int], Request]) -> tuple[Any, ...]:
        """Queue what this process asks for itself; return its answer."""
        self._check_usable()
        answered: asyncio.Future[tuple[Any, ...]] = asyncio.get_running_loop().create_future()

        def reply(
            table: TableInfo | None, more: tuple[Any, ...], error: RequestError | None
        ) -> None:
            if answered.done():
                return
            if error is not None:
                answered.set_exception(error)
            else:
                answered.set_result(more)

        self._mailbox.put_nowait(event(self._await_reply(reply)))
        return await answered

    def _look_at_remote_work(self) -> None:
        """Tell whoever does it when there is other work than before."""
        cluster = self._machine.cluster
        if self._machine.ready and cluster.generation != self._seen_generation:
            self._seen_generation = cluster.generation
            work = self.remote_work()
            if work != self._remote_work:
                self._remote_work = work
                self._on_remote_work()


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
