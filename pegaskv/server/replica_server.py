"""A replica server with its process: rows, kept together with other replica servers.

It listens before it reports to the meta server, since that tells it on a connection of its
own what it has to do; it is ready when the meta server has answered, whether or not there is
a partition for it. From then on it needs the meta server for changes only.

A start that finds no meta server waits for one: a whole cluster may be started in any order.
"""

import logging
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from typing import ClassVar, Final

from pegaskv.base.errors import PegasKVError
from pegaskv.base.metrics import MetricSource
from pegaskv.base.types import ReplicaStatus
from pegaskv.codec.messages_meta import NodeReport
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.connection import Handler
from pegaskv.net.peer import PeerConnections
from pegaskv.replica.stub import ReplicaStub
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import Worker
from pegaskv.server.belonging import joined_cluster, remember_cluster
from pegaskv.server.host import Host, Step
from pegaskv.server.meta_door import Cluster, MetaDoor, MetaSession
from pegaskv.server.meta_part import remote_clusters
from pegaskv.server.node_handlers import control_handlers
from pegaskv.server.replica_part import REPLICA_THREADS, ReplicaPart
from pegaskv.storage.directories import DataDirectory

__all__ = ["ReplicaServer"]

_log = logging.getLogger(__name__)

# Others have so long to take over what this server leads. They are asked again after a pause
# that grows to this: mostly it takes a few milliseconds.
_LEAVE_MS: Final = 10_000
_LEAVE_AGAIN_MS: Final = (20, 100, 500)
# Without a meta server nobody can take over.
_LEAVE_FAILURES_MAX: Final = 3


class ReplicaServer(Host):
    """One replica server of a cluster."""

    role: ClassVar[str] = "replica"
    threads: ClassVar[tuple[str, ...]] = REPLICA_THREADS

    _replicas: ReplicaPart | None = None
    _peers_scope: TaskScope | None = None
    # What the meta server asks for and takes long.
    _control_scope: TaskScope | None = None
    _peers: PeerConnections
    _door: MetaDoor
    _session: MetaSession
    _work: dict[str, Worker]
    _cluster_uuid = ""
    _node_id = ""
    _reported_address = ""

    async def open(self, directory: DataDirectory, work: dict[str, Worker]) -> None:
        """Recover the replicas."""
        self._work = work
        self._node_id = directory.node_id
        self._cluster_uuid = await work["upkeep"].run(lambda: joined_cluster(self.disk, self.data))
        scope = self._peers_scope = TaskScope("connections to servers", on_crash=self.crashed)
        self._control_scope = TaskScope("orders", on_crash=self.crashed)
        self._peers = self._connections(scope)
        metas = self._connections(scope)
        metas.on_connected(lambda node_id: self._session.poke())
        self._door = MetaDoor(self.config.membership.addresses, peers=metas)
        replicas = self._replicas = ReplicaPart(
            self, directory, work, configurations=self._door, peers=self._peers
        )
        self._session = MetaSession(
            self._door,
            clock=self.clock,
            report=self._report,
            beacon=replicas.stub.beacon,
            beacon_interval_ms=self.config.lease.beacon_interval_ms,
            on_joined=lambda cluster: self._on_joined(cluster, metas),
        )
        await replicas.open(self._door, remote_clusters(self))

    def _connections(self, scope: TaskScope) -> PeerConnections:
        peers = PeerConnections(
            network=self.network,
            clock=self.clock,
            scope=scope,
            random=self.random,
            cluster_id=self.config.cluster.id,
        )
        peers.cluster_uuid = self._cluster_uuid
        return peers

    async def begin(self, reported_address: str) -> None:
        """Report to the meta server, again and again until it answers, and in the background."""
        self._reported_address = self.config.membership.advertise or reported_address
        if self._acceptor is not None:
            self._peers.spinner = self._acceptor.spinner
        metas = self.config.membership.metas
        _log.info("listening on %s, joining the cluster of %s", self.address, metas)
        self.scope.start("meta session", self._session.run())

    def _report(self) -> NodeReport:
        port = self.address.rpartition(":")[2]
        host = self._door.own_host
        # Behind a wildcard: others reach this machine as the meta server does.
        own = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        return self._stub.node_report(self._reported_address or own)

    def _on_joined(self, cluster: Cluster, metas: PeerConnections) -> None:
        name, _, uuid = cluster
        self.join(name, uuid)
        self._stub.on_joined()
        if uuid != self._cluster_uuid:
            # From now on nobody of another cluster is believed, after a restart neither.
            self._cluster_uuid = self._peers.cluster_uuid = metas.cluster_uuid = uuid
            self.scope.start("remember the cluster", self._remember(uuid))
        self.become_ready()

    async def _remember(self, uuid: str) -> None:
        try:
            await self._work["upkeep"].run(lambda: remember_cluster(self.disk, self.data, uuid))
        except OSError as error:
            _log.warning("which cluster this is could not be written down: %s", error)

    @property
    def _rows(self) -> ReplicaPart:
        assert self._replicas is not None
        return self._replicas

    @property
    def _stub(self) -> ReplicaStub:
        return self._rows.stub

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each operation, of clients, other servers and the meta server."""
        return {**self._rows.handlers(), **control_handlers(self._rows.control, self._orders)}

    @property
    def _orders(self) -> TaskScope:
        assert self._control_scope is not None
        return self._control_scope

    def cluster_uuid(self) -> str:
        """Return the uuid of the cluster that was joined once, or ""."""
        return self._cluster_uuid

    def metric_sources(self) -> list[MetricSource]:
        """Return what is counted."""
        return [*self._rows.metric_sources(), self._peers.metrics]

    def reasons(self) -> Iterable[str]:
        """Why rows are not served as they should be, and whether the meta server is away."""
        trouble = self._session.trouble
        return [*self._rows.reasons(), *([trouble] if trouble else [])]

    def answer_guard(self) -> Callable[[], bool]:
        """Return what is asked before every write: whether the leases of this server hold."""
        return self._stub.may_answer

    def attach(self, acceptor: Acceptor) -> None:
        """Let who answers requests at the ends of ticks and the acceptor know of each other."""
        self._stub.attach(acceptor)

    def is_syncing(self) -> bool:
        """Whether the disk is at work for a tick."""
        return self._stub.syncing

    # Stop.

    async def leave(self) -> None:
        """Let others lead what is led here, and be a member of nothing, as far as that can be."""
        stub, failures = self._stub, 0
        process = stub.beacon().process
        pauses = chain(_LEAVE_AGAIN_MS, repeat(_LEAVE_AGAIN_MS[-1]))
        try:
            async with self.clock.timeout_ms(_LEAVE_MS):
                while failures < _LEAVE_FAILURES_MAX:
                    led = stub.hand_over()
                    try:
                        named = await self._door.leaving(self._node_id, process)
                    except PegasKVError as error:
                        failures += 1
                        _log.warning("the meta server cannot be told of the stop: %s", error)
                    else:
                        if not led and named <= self._alone:
                            return
                    await self.clock.sleep_ms(next(pauses))
        except TimeoutError:
            _log.warning("not everything was handed over within %d s", _LEAVE_MS // 1_000)

    @property
    def _alone(self) -> int:
        """How many partitions have no other member than this server, once all others are left."""
        replicas = self._stub.node_report("").replicas
        return sum(one.status is ReplicaStatus.PRIMARY or bool(one.closed) for one in replicas)

    async def begin_to_stop(self) -> None:
        """Let no request wait for its time, and none of the meta server for other servers."""
        if self._replicas is not None:
            self._replicas.stub.begin_to_stop()
        if self._control_scope is not None:
            await self._control_scope.close()

    def stop_steps(self) -> tuple[list[Step], list[Step]]:
        """Return how the parts stop; the last writes still need the other servers."""
        before: list[Step] = []
        after: list[Step] = []
        if self._replicas is not None:
            before.append(("duplications", self._replicas.stop_duplications))
            after.append(("replicas", self._replicas.stop))
        if self._peers_scope is not None:
            after.append(("connections to servers", self._peers_scope.close))
        return before, after
