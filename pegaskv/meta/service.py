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
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from random import Random
from types import MappingProxyType
from typing import Any, Final, assert_never
from uuid import UUID

from pegaskv.base.errors import (
    Busy,
    DiskFull,
    NotReady,
    RequestError,
    Unavailable,
)
from pegaskv.base.metrics import Metric, gauges
from pegaskv.base.types import PartitionConfiguration, ReplicaStatus, TableInfo
from pegaskv.codec.messages_duplication import (
    EnsureAnswer,
    PartitionProgress,
    ProgressReport,
    RemoteWork,
)
from pegaskv.codec.messages_meta import NodeBeacon, NodeReport, Proposal
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
from pegaskv.meta.duplication_views import RemoteState, Views, remote_work
from pegaskv.meta.effects import Answer, Commit, Effect, Obey, Push, PushLater, Refuse, Warn
from pegaskv.meta.events import (
    CollectDue,
    Committed,
    Ensured,
    Event,
    Forgotten,
    NodeLeaving,
    NodeReported,
    OrderEnded,
    Proposed,
    PushDue,
    PushEnded,
    RemotesChanged,
    ReportProgress,
    Request,
    Started,
    TimePassed,
)
from pegaskv.meta.handlers import Handlers, Reply
from pegaskv.meta.host import Identity
from pegaskv.meta.links import NodeDoor, NodeLinks
from pegaskv.meta.live import LiveStates
from pegaskv.meta.machine import MetaMachine
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.remotes import ConfiguredCluster
from pegaskv.net.connection import Handler
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.mailbox import Mailbox
from pegaskv.runtime.tasks import TaskScope

__all__ = ["MetaService", "NodeDoor"]

_log = logging.getLogger(__name__)

_ELECTION: Final = "meta"
_SESSION_TTL_MS: Final = 10_000
# Beside requests: ends of pushes and pauses, which are bounded by tables and nodes.
_OTHER_EVENTS_MAX: Final = 65_536

# All other events are requests.
_UNASKED: Final = (
    Started,
    NodeReported,
    NodeLeaving,
    Proposed,
    TimePassed,
    Committed,
    PushEnded,
    PushDue,
    OrderEnded,
    CollectDue,
    RemotesChanged,
)


def _no_state(*whose: Any) -> dict[str, Any]:
    return {}


class MetaService:
    """The one leading meta server of a cluster.

    `node_door` makes the door to a replica server that has reported, by its id and address.
    `remote_state` returns what is shown of a duplication (id and uuid) that waits for its
    target. `remote_clusters`
    are those of the configuration. `on_remote_work` is called when `remote_work` may be other
    than before. Tasks run in `scope`, which is closed before `stop`. The
    store stays the caller's, who closes it after this service.
    """

    def __init__(
        self,
        store: MetaStore,
        *,
        node_door: NodeDoor,
        clock: Clock,
        random: Random,
        options: MetaOptions,
        scope: TaskScope,
        cluster_name: str,
        cluster_id: int,
        remote_clusters: Mapping[str, ConfiguredCluster] = MappingProxyType({}),
        remote_state: RemoteState = _no_state,
        on_remote_work: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
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
            remote_state=remote_state,
        )
        self._handlers = Handlers(
            lambda: self._machine,
            queue=self._queue,
            random=random,
            options=options,
            states=self._states,
            scope=scope,
            duplications=self._duplications,
            trouble=lambda: self._down,
        )
        self._scope = scope
        limit = options.requests_max + _OTHER_EVENTS_MAX
        self._mailbox: Mailbox[Event] = Mailbox("the meta server", limit=limit)
        self._links = NodeLinks(
            node_door,
            put=self._mailbox.put,
            clock=clock,
            scope=scope,
            states_timeout_ms=options.states_timeout_ms,
        )
        self._session: Session | None = None
        self._fence: Fence | None = None
        # Why changes are refused at the moment.
        self._down: BaseException | None = None
        self._stopped = False
        # The last that was taken of each node, and who waits for the answer.
        self._reports: dict[str, NodeReported] = {}
        self._reporting: dict[int, asyncio.Event] = {}
        # The processes whose reports wait to be taken.
        self._arriving: dict[str, str] = {}
        self._beacons: dict[str, tuple[NodeBeacon, int]] = {}
        self._looking = False
        # What replicas ask for and is taken together; whether the mailbox says so.
        self._proposed: list[tuple[int, Proposal]] = []
        self._requests: dict[int, Reply] = {}
        self._last_request_id = 0
        self.commits = 0
        self.commit_failures = 0

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
        look_ms = self._options.guardian_interval_ms
        self._scope.keep(
            "look after nodes and partitions",
            self._look,
            pause=lambda: self._clock.sleep_ms(look_ms),
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

    async def report(self, report: NodeReport, *, watched: bool = True) -> None:
        """Take a replica server's report.

        Returns when new ballots of all its partitions are stored, and the node is being told of
        every table that is its own. One that is not `watched`, since it lives in this process
        and needs no beacons, has been told by then: each push was taken, or has failed and
        is repeated. While the store is down it waits.
        """
        request_id = self._next_request_id()
        done = self._reporting[request_id] = asyncio.Event()
        self._arriving[report.node_id] = report.process
        await self._mailbox.put(NodeReported(request_id, report, watched))
        await done.wait()

    def beacon(self, beacon: NodeBeacon) -> bool:
        """Take a sign of life; return whether the node is known, else it has to report."""
        node = self._machine.nodes.get(beacon.node_id)
        if node is not None and node.alive and node.process == beacon.process:
            self._beacons[beacon.node_id] = (beacon, self._clock.monotonic_ms())
            return True
        return self._arriving.get(beacon.node_id) == beacon.process

    async def leaving(self, node_id: str, process: str) -> int:
        """Take a replica server's word that it stops; return what others must take over first.

        Raises:
            RequestError: changes cannot be stored at the moment.

        """
        (count,) = await self._do(lambda request_id: NodeLeaving(request_id, node_id, process))
        return int(count)

    async def propose(self, proposal: Proposal) -> tuple[PartitionConfiguration, Mapping[str, str]]:
        """Change a configuration if it is as the proposer knows it; return what is stored then.

        With it come the addresses of its members. All that wait are stored together.

        Raises:
            RequestError: nothing is known of it; ask again.

        """
        self._check_usable()
        if len(self._proposed) >= self._options.partitions_max:
            raise Busy(f"{len(self._proposed)} proposals wait")
        request_id, answered = self._await_answer()
        self._proposed.append((request_id, proposal))
        if len(self._proposed) == 1:
            # An empty one says that there are some: those that come meanwhile go with it.
            self._mailbox.put_nowait(Proposed(()))
        configuration, addresses = await answered
        return configuration, addresses

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each operation of the meta server."""
        return self._handlers.table()

    def metrics(self) -> Iterable[Metric]:
        """Yield what this server counts."""
        yield from views.state_metrics(self._machine)
        yield from self._duplications.metrics()
        links = self._links
        for name, text, count in (
            ("commits", "Commits to the meta store.", self.commits),
            ("commit_failures", "Commits whose outcome was unknown.", self.commit_failures),
            ("pushes", "Changes of tables sent to replica servers.", links.pushes),
            ("push_failures", "Pushes that a node could not take.", links.push_failures),
            ("orders", "Orders about single partitions to replica servers.", links.orders),
            ("order_failures", "Orders that a node did not take.", links.order_failures),
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
                self._on_report(event)
            elif isinstance(event, Proposed):
                waiting, self._proposed = self._proposed, []
                event = Proposed(tuple(one for one in waiting if one[0] in self._requests))
            elif isinstance(event, TimePassed):
                self._looking = False
                beacons, self._beacons = self._beacons, {}
                event = TimePassed(tuple(beacons.values()))
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

    def _on_report(self, event: NodeReported) -> None:
        report = event.report
        self._reports[report.node_id] = event
        if self._arriving.get(report.node_id) == report.process:
            del self._arriving[report.node_id]
        self._links.meet(report.node_id, report.address)

    def _step(self, event: Event) -> list[Effect]:
        return self._machine.step(
            event,
            unix_seconds=self._clock.wall_us() // 1_000_000,
            now_ms=self._clock.monotonic_ms(),
        )

    async def _commit(self, commit: Commit) -> int:
        self.commits += 1
        return await self._store.commit(
            guards=[Guard(key, revision) for key, revision in commit.guards],
            puts=commit.puts,
            deletes=commit.deletes,
            fence=self._fence,
        )

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Answer(request_id, table, more):
                self._reply(request_id, table, more, None)
            case Refuse(request_id, error):
                self._reply(request_id, None, (), error)
            case Push():
                self._links.push(effect)
            case PushLater(node_id, table_id, delay_ms):
                name = f"pause before table {table_id}"
                self._scope.start(name, self._send_later(PushDue(node_id, table_id), delay_ms))
            case Obey():
                self._links.order(effect)
            case Warn(text):
                _log.warning("%s", text)
            case Commit():
                raise AssertionError("a commit is awaited")
            case _:
                assert_never(effect)

    async def _send_later(self, event: Event, delay_ms: int) -> None:
        await self._clock.sleep_ms(delay_ms)
        await self._mailbox.put(event)

    async def _collect(self) -> None:
        await self._mailbox.put(CollectDue())

    async def _look(self) -> None:
        if not self._looking:
            self._looking = True
            await self._mailbox.put(TimePassed())

    async def _states(self, table_ids: Collection[int]) -> LiveStates:
        """Ask the nodes of tables how their replicas are."""
        machine = self._machine
        return await self._links.states(machine.cluster, machine.nodes, table_ids)

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
        reports = self._last_reports()
        while True:
            await self._clock.sleep_ms(self._options.store_retry_ms)
            try:
                await self._store.recover()
                if isinstance(self._down, Fenced):
                    self._fence = None
                await self._load()
                for reported in reports:
                    await self._take(reported)
            except (StoreUnavailable, Conflict, Fenced) as again:
                self._down = again
            else:
                break
        self._down = None
        _log.info("the meta store can be used again")

    def _last_reports(self) -> list[NodeReported]:
        """Return what nodes have that do not report again by themselves, as far as it is known.

        All others do when their beacons are answered so.
        """
        found = []
        for node_id, reported in self._reports.items():
            node = self._machine.nodes.get(node_id)
            if node is not None and node.process == reported.report.process:
                # In which role nobody can say: as after a restart all get new ballots.
                inactive = ReplicaStatus.INACTIVE
                replicas = tuple(replace(one, status=inactive) for one in node.replicas.values())
                reported = replace(reported, report=replace(reported.report, replicas=replicas))
            if not reported.watched or reported.request_id in self._reporting:
                found.append(reported)
        return found

    # Requests.

    def _next_request_id(self) -> int:
        self._last_request_id += 1
        return self._last_request_id

    def _await_reply(self, reply: Reply) -> int:
        request_id = self._next_request_id()
        self._requests[request_id] = reply
        return request_id

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

    async def _do(self, event: Callable[[int], Request | NodeLeaving]) -> tuple[Any, ...]:
        """Queue what this process asks for itself; return its answer."""
        self._check_usable()
        request_id, answered = self._await_answer()
        self._mailbox.put_nowait(event(request_id))
        return await answered

    def _await_answer(self) -> tuple[int, asyncio.Future[tuple[Any, ...]]]:
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

        return self._await_reply(reply), answered

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
