"""A meta server with its process: tables and who serves them, for replica servers elsewhere."""

from collections.abc import Iterable
from typing import ClassVar

from pegaskv.base.metrics import MetricSource
from pegaskv.net.connection import Handler
from pegaskv.net.peer import PeerConnections
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import Worker
from pegaskv.server.config import Config
from pegaskv.server.host import Host, Step
from pegaskv.server.meta_part import MetaPart, remote_clusters
from pegaskv.server.node_door import NodeDoors
from pegaskv.server.node_handlers import node_handlers
from pegaskv.storage.directories import DataDirectory

__all__ = ["MetaServer"]


class MetaServer(Host):
    """The one meta server of a cluster.

    It is ready as soon as its tables are loaded: replica servers come by themselves.
    """

    role: ClassVar[str] = "meta"
    threads: ClassVar[tuple[str, ...]] = ("meta store",)

    _meta: MetaPart | None = None
    _peers: PeerConnections | None = None
    _peers_scope: TaskScope | None = None
    # What replica servers ask for and takes long.
    _asked_scope: TaskScope | None = None

    async def open(self, directory: DataDirectory, work: dict[str, Worker]) -> None:
        """Load the tables."""
        self._peers_scope = TaskScope("connections to replica servers", on_crash=self.crashed)
        self._asked_scope = TaskScope("requests of replica servers", on_crash=self.crashed)
        peers = self._peers = PeerConnections(
            network=self.network,
            clock=self.clock,
            scope=self._peers_scope,
            random=self.random,
            cluster_id=self.config.cluster.id,
        )
        meta = self._meta = MetaPart(self, remote_clusters(self))
        await meta.open(
            directory.meta_path,
            work["meta store"],
            node_door=NodeDoors(peers).door,
            partitions_max=self.config.meta.partitions_max,
        )

    async def begin(self, reported_address: str) -> None:
        """Serve."""
        self.become_ready()

    @property
    def _tables(self) -> MetaPart:
        assert self._meta is not None
        return self._meta

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each operation, of clients and of replica servers."""
        cluster = self.config.cluster
        return {
            **self._tables.handlers(),
            **node_handlers(
                self._tables.service,
                self._asked,
                cluster_name=cluster.name,
                cluster_id=cluster.id,
            ),
        }

    @property
    def _asked(self) -> TaskScope:
        assert self._asked_scope is not None
        return self._asked_scope

    async def begin_to_stop(self) -> None:
        """Answer replica servers that wait: they ask again, or another one."""
        if self._asked_scope is not None:
            await self._asked_scope.close()

    def cluster_uuid(self) -> str:
        """Return the uuid that the first start made."""
        return self._tables.service.cluster_uuid

    def metric_sources(self) -> list[MetricSource]:
        """Return what is counted."""
        assert self._peers is not None
        return [*self._tables.metric_sources(), self._peers.metrics]

    def reasons(self) -> Iterable[str]:
        """Why tables cannot be changed."""
        return self._tables.reasons()

    def read_clusters_again(self, config: Config) -> None:
        """Take the remote clusters of a configuration that was read again."""
        if self._meta is not None:
            self._meta.read_clusters_again(config)

    def stop_steps(self) -> tuple[list[Step], list[Step]]:
        """Return how the parts stop."""
        after: list[Step] = []
        if self._meta is not None:
            after.append(("tables", self._meta.stop))
        if self._peers_scope is not None:
            after.append(("connections to replica servers", self._peers_scope.close))
        return [], after
