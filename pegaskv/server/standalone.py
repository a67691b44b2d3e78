"""One meta server and one replica server in one process: the composition root.

Nothing is decided here. Both parts are opened in the one order that works, replicas first,
and speak to each other directly; the replica server has no peers.
"""

from collections.abc import Iterable
from typing import ClassVar

from pegaskv.base.metrics import MetricSource
from pegaskv.codec.operations import Operation
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.connection import Handler
from pegaskv.replica.stub import ReplicaStub
from pegaskv.runtime.worker import Worker
from pegaskv.server.config import Config
from pegaskv.server.host import Host, Step
from pegaskv.server.meta_part import MetaPart, remote_clusters
from pegaskv.server.replica_part import REPLICA_THREADS, ReplicaPart
from pegaskv.storage.directories import DataDirectory

__all__ = ["Standalone"]


class Standalone(Host):
    """A whole cluster of one server."""

    role: ClassVar[str] = "standalone"
    threads: ClassVar[tuple[str, ...]] = (*REPLICA_THREADS, "meta store")

    _meta: MetaPart | None = None
    _replicas: ReplicaPart | None = None

    @property
    def stub(self) -> ReplicaStub | None:
        """The replicas; tests look at them."""
        return None if self._replicas is None else self._replicas.stub

    async def open(self, directory: DataDirectory, work: dict[str, Worker]) -> None:
        """Recover the replicas, then load the tables."""
        remotes = remote_clusters(self)
        meta = self._meta = MetaPart(self, remotes)
        replicas = self._replicas = ReplicaPart(self, directory, work)
        await replicas.open(meta.door, remotes)
        await meta.open(
            directory.meta_path,
            work["meta store"],
            node_door=lambda node_id, address: replicas.control,
            partitions_max=min(self.config.meta.partitions_max, self._files.partitions),
        )

    async def begin(self, reported_address: str) -> None:
        """Every replica gets a new ballot from the meta server beside it."""
        report = self._rows.stub.node_report(reported_address)
        # It lives and ends with this process: there is no need of beacons.
        await self._tables.service.report(report, watched=False)
        self.become_ready()

    @property
    def _tables(self) -> MetaPart:
        assert self._meta is not None
        return self._meta

    @property
    def _rows(self) -> ReplicaPart:
        assert self._replicas is not None
        return self._replicas

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each operation; no other server is a part of this cluster."""
        handlers = {**self._rows.handlers(), **self._tables.handlers()}
        return {each: handlers[each] for each in handlers if each < Operation.PREPARE}

    def cluster_uuid(self) -> str:
        """Return the uuid that the first start made."""
        return self._tables.service.cluster_uuid

    def metric_sources(self) -> list[MetricSource]:
        """Return what both parts count."""
        return [*self._rows.metric_sources(), *self._tables.metric_sources()]

    def reasons(self) -> Iterable[str]:
        """Why one of the parts is not well."""
        return [*self._rows.reasons(), *self._tables.reasons()]

    def read_clusters_again(self, config: Config) -> None:
        """Take the remote clusters of a configuration that was read again."""
        if self._meta is not None:
            self._meta.read_clusters_again(config)

    def attach(self, acceptor: Acceptor) -> None:
        """Let who answers requests at the ends of ticks and the acceptor know of each other."""
        self._rows.stub.attach(acceptor)

    def is_syncing(self) -> bool:
        """Whether the disk is at work for a tick."""
        return self._rows.stub.syncing

    async def begin_to_stop(self) -> None:
        """Let no request wait for its time."""
        if self._replicas is not None:
            self._replicas.stub.begin_to_stop()

    def stop_steps(self) -> tuple[list[Step], list[Step]]:
        """Return how the parts stop: duplications first, then tables, then rows."""
        before: list[Step] = []
        after: list[Step] = []
        if self._replicas is not None:
            before.append(("duplications", self._replicas.stop_duplications))
        if self._meta is not None:
            after.append(("tables", self._meta.stop))
        if self._replicas is not None:
            after.append(("replicas", self._replicas.stop))
        return before, after
