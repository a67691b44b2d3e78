"""A meta machine with a store of one dictionary, and a replica server that does what it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from pegaskv.base.errors import RequestError
from pegaskv.base.types import Gpid, TableInfo, TableStatus
from pegaskv.codec.messages_duplication import SourceOrder
from pegaskv.codec.messages_meta import NodeReport, Order, OrderKind, ReplicaReport, TablePush
from pegaskv.meta.cluster import CHANGE_OPERATIONS_MAX, Cluster
from pegaskv.meta.effects import Answer, Commit, Effect, Obey, Push, PushLater, Refuse, Warn
from pegaskv.meta.events import (
    Committed,
    CreateTable,
    DropTable,
    Event,
    NodeReported,
    ProposeByHand,
    PushEnded,
    Started,
)
from pegaskv.meta.host import Identity
from pegaskv.meta.machine import MetaMachine
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.remotes import RemoteClusterInfo

__all__ = ["UUID", "Crash", "Meta", "ReplicaServer", "create", "drop"]

UUID = "11111111-2222-4333-8444-555555555555"


class Crash(Exception):
    """The process ends here."""


class Records:
    """A store that outlives the machine; a crash may be planned before or after a commit."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes, int]] = {}
        self.revision = 0
        self.commits = 0
        self.crash_at: int | None = None
        self.crash_random = Random(0)

    def commit(self, commit: Commit) -> int:
        crash = self.crash_at == self.commits
        self.commits += 1
        if crash and self.crash_random.random() < 0.5:
            raise Crash
        assert 0 < len(commit.puts) + len(commit.deletes) <= CHANGE_OPERATIONS_MAX
        assert len(commit.guards) <= CHANGE_OPERATIONS_MAX
        touched = {*commit.puts, *commit.deletes}
        assert {key for key, _ in commit.guards} == touched, "a change without its guard"
        for key, revision in commit.guards:
            assert self.entries.get(key, (b"", 0))[1] == revision, f"{key} has changed"
        self.revision += 1
        for key, value in commit.puts.items():
            self.entries[key] = (value, self.revision)
        for key in commit.deletes:
            del self.entries[key]
        if crash:
            raise Crash
        return self.revision


@dataclass
class ReplicaServer:
    """Holds replicas by their last ballot; opens an empty one only when it is told to."""

    node_id: str = "node-1"
    replicas: dict[Gpid, int] = field(default_factory=dict)
    closed: set[Gpid] = field(default_factory=set)
    open: set[Gpid] = field(default_factory=set)
    versions: dict[int, int] = field(default_factory=dict)
    tables: dict[int, TableInfo] = field(default_factory=dict)
    purged: list[int] = field(default_factory=list)
    created: int = 0
    # In the logs of the replicas: the pins (False = broken), and who may send.
    pins: dict[Gpid, dict[bytes, bool]] = field(default_factory=dict)
    listed: dict[Gpid, dict[bytes, SourceOrder]] = field(default_factory=dict)
    orders: dict[int, TablePush] = field(default_factory=dict)

    def restart(self) -> None:
        self.closed, self.open = set(), set()
        self.versions, self.tables = {}, {}

    def report(self) -> NodeReport:
        replicas = tuple(ReplicaReport(gpid, b, 0, 0) for gpid, b in sorted(self.replicas.items()))
        return NodeReport(self.node_id, "127.0.0.1:34801", replicas)

    def configure(self, push: TablePush) -> None:
        table_id = push.table.table_id
        if push.purged:
            self.purged.append(table_id)
            for gpid in [one for one in self.replicas if one.table_id == table_id]:
                del self.replicas[gpid]
                self.pins.pop(gpid, None)
                self.listed.pop(gpid, None)
                self.open.discard(gpid)
            self.orders.pop(table_id, None)
            return
        if push.table.version <= self.versions.get(table_id, 0):
            return
        self.versions[table_id] = push.table.version
        self.tables[table_id] = push.table
        self.orders[table_id] = push
        if push.table.status is TableStatus.DROPPED:
            assert not push.partitions
            self.open = {gpid for gpid in self.open if gpid.table_id != table_id}
        for one in push.partitions:
            if one.primary != self.node_id:
                continue
            gpid = one.gpid
            if gpid in self.replicas:
                if one.ballot <= self.replicas[gpid]:
                    # Meant for this server before its restart.
                    continue
            elif gpid.partition_index in push.first_assignment:
                self.created += 1
            else:
                self.closed.add(gpid)
                continue
            self.replicas[gpid] = one.ballot
            self.open.add(gpid)
        for gpid in sorted(self.open):
            if gpid.table_id == table_id:
                self._obey(gpid, push)

    def _obey(self, gpid: Gpid, push: TablePush) -> None:
        pins = self.pins.setdefault(gpid, {})
        listed = self.listed.setdefault(gpid, {})
        for order in push.duplications:
            if not order.ended:
                pins.setdefault(order.uuid, True)
            elif order.broken:
                pins[order.uuid] = False
            else:
                pins.pop(order.uuid, None)
        for source in push.sources:
            if source.ended:
                listed.pop(source.uuid, None)
            else:
                listed[source.uuid] = source


class Meta:
    """Runs a machine: commits at once, and keeps pushes until the test delivers them."""

    def __init__(
        self,
        records: Records | None = None,
        *,
        options: MetaOptions | None = None,
        now: int = 1_700_000_000,
        now_ms: int = 0,
        uuid: str = UUID,
        identity: Identity = Identity("here", 7),  # noqa: B008 - it cannot be changed
        configured: Mapping[str, RemoteClusterInfo] | None = None,
    ) -> None:
        self.uuid, self.identity = uuid, identity
        self.configured = dict(configured or {})
        self.records = records if records is not None else Records()
        self.options = options if options is not None else MetaOptions()
        self.now = now
        self.now_ms = now_ms
        self.pushes: list[Push] = []
        self.later: list[PushLater] = []
        self.orders: list[Obey] = []
        self.answers: dict[int, Answer] = {}
        self.refusals: dict[int, RequestError] = {}
        self.warnings: list[str] = []
        self.machine = self._load()
        self.feed(Started(uuid))

    def _load(self) -> MetaMachine:
        cluster = Cluster.load(self.records.entries)
        cluster.configured = dict(self.configured)
        return MetaMachine(cluster, self.options, identity=self.identity)

    def restart(self) -> "Meta":
        """The next process, with what the store holds."""
        return Meta(
            self.records,
            options=self.options,
            now=self.now,
            now_ms=self.now_ms,
            uuid=self.uuid,
            identity=self.identity,
            configured=self.configured,
        )

    def feed(self, event: Event) -> list[Effect]:
        """Take an event; return its effects without commits."""
        seen: list[Effect] = []
        by_hand = isinstance(event, ProposeByHand)
        effects = self.machine.step(event, unix_seconds=self.now, now_ms=self.now_ms)
        while effects:
            self.machine.check()
            assert not any(isinstance(effect, Commit) for effect in effects[:-1])
            last = effects[-1]
            commit = last if isinstance(last, Commit) else None
            seen += effects if commit is None else effects[:-1]
            # Before the commit: what was answered or pushed by now is out.
            self._keep(effects if commit is None else effects[:-1], by_hand=by_hand)
            effects = []
            if commit is not None:
                revision = self.records.commit(commit)
                effects = self.machine.step(
                    Committed(revision), unix_seconds=self.now, now_ms=self.now_ms
                )
        self.machine.check()
        stored = {key: value for key, (value, _) in self.records.entries.items()}
        assert self.machine.cluster.dump() == stored, "memory and store differ"
        return seen

    def _keep(self, effects: list[Effect], *, by_hand: bool) -> None:
        for effect in effects:
            match effect:
                case Push():
                    self.pushes.append(effect)
                case PushLater():
                    self.later.append(effect)
                case Obey(_, order):
                    if order.kind is OrderKind.REMOVE and not by_hand:
                        assert self._is_too_many(order), f"needed: {order}"
                    self.orders.append(effect)
                case Answer(request_id):
                    assert request_id not in {**self.answers, **self.refusals}, "answered twice"
                    self.answers[request_id] = effect
                case Refuse(request_id, error):
                    assert request_id not in {**self.answers, **self.refusals}, "answered twice"
                    self.refusals[request_id] = error
                case Warn(text):
                    self.warnings.append(text)

    def _is_too_many(self, order: Order) -> bool:
        """Whether a partition can do without the one that it shall let go."""
        record = self.machine.cluster.partition(order.gpid)
        assert record is not None
        wanted = self.machine.cluster.tables[order.gpid.table_id].replica_count
        node = self.machine.nodes.get(order.node_id)
        leaves = node is not None and node.leaving
        return leaves or order.node_id not in record.members or len(record.members) > wanted

    def deliver(self, server: ReplicaServer, *, error: str = "") -> list[Push]:
        """Deliver all pushes, and those that follow; return them."""
        delivered = []
        while self.pushes:
            push = self.pushes.pop(0)
            delivered.append(push)
            if not error:
                server.configure(push.push)
            ended = PushEnded(push.push_id, push.node_id, push.push.table.table_id, error)
            self.feed(ended)
        return delivered

    def join(self, server: ReplicaServer, request_id: int = 1_000) -> None:
        """The server starts and is told all it needs."""
        server.restart()
        self.feed(NodeReported(request_id, server.report(), watched=False))
        self.deliver(server)
        assert request_id in self.answers

    def table(self, name: str) -> TableInfo:
        table = self.machine.cluster.named(name)
        assert table is not None
        return table.info()

    def request(self, event: Any, server: ReplicaServer) -> Answer:
        """Feed a request and let the server do its part; return the answer or raise the refusal."""
        self.feed(event)
        self.deliver(server)
        if event.request_id in self.refusals:
            raise self.refusals[event.request_id]
        return self.answers[event.request_id]


def create(
    request_id: int,
    name: str,
    *,
    partitions: int = 4,
    replicas: int = 0,
    envs: Mapping[str, str] | None = None,
    same_is_fine: bool = False,
) -> CreateTable:
    return CreateTable(request_id, name, partitions, replicas, envs or {}, same_is_fine)


def drop(
    request_id: int,
    name: str,
    *,
    reserve: int = -1,
    missing_is_fine: bool = False,
    force: bool = False,
) -> DropTable:
    return DropTable(request_id, name, reserve, missing_is_fine, force)
