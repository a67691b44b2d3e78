"""A meta server without its process: its store, its service, and who asks other clusters."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from pegaskv.base.metrics import MetricSource
from pegaskv.coordination.embedded import EmbeddedStore
from pegaskv.duplication.coordinator import Coordinator
from pegaskv.duplication.remote import RemoteCluster, RemoteClusters
from pegaskv.meta.links import NodeDoor
from pegaskv.meta.service import MetaService
from pegaskv.net.connection import Handler
from pegaskv.runtime.worker import Worker
from pegaskv.server.config import Config
from pegaskv.server.host import Host
from pegaskv.server.late_door import LateMetaDoor

__all__ = ["MetaPart", "remote_clusters"]


def remote_clusters(host: Host) -> RemoteClusters:
    """Return the ways to other clusters, with the windows of `[duplication]`."""
    options = host.config.duplication

    def make(metas: str) -> RemoteCluster:
        return RemoteCluster(
            metas,
            network=host.network,
            clock=host.clock,
            random=host.random,
            scope=host.scope,
            timeout_ms=options.timeout_ms,
            window_bytes=options.window_bytes,
            window_requests_max=options.window_requests_max,
        )

    return RemoteClusters(make)


class MetaPart:
    """The records of one cluster and who decides on them. `open` it, then `stop` it.

    `door` is for duplications on replica servers; it can be given away before `open`.
    """

    def __init__(self, host: Host, remotes: RemoteClusters) -> None:
        self.door = LateMetaDoor()
        self._host = host
        self._remotes = remotes
        self._store: EmbeddedStore | None = None
        self._service: MetaService | None = None

    async def open(
        self,
        path: Path,
        worker: Worker,
        *,
        node_door: NodeDoor,
        partitions_max: int,
    ) -> None:
        """Load the tables from `path` and begin to lead; `node_door` makes the way to a node.

        Raises:
            StoreUnavailable: the store cannot be used.
            CorruptionError, UnsupportedFormat: a record cannot be read.

        """
        host, config = self._host, self._host.config
        self._store = await EmbeddedStore.open(host.disk, path, worker=worker)
        coordinator = Coordinator(
            meta=self.door,
            remotes=self._remotes,
            clock=host.clock,
            random=host.random,
            scope=host.scope,
            options=config.duplication,
        )
        service = self._service = MetaService(
            self._store,
            node_door=node_door,
            clock=host.clock,
            random=host.random,
            options=dataclasses.replace(config.meta, partitions_max=partitions_max),
            cluster_name=config.cluster.name,
            cluster_id=config.cluster.id,
            scope=host.scope,
            remote_clusters=config.clusters,
            remote_state=coordinator.state,
            on_remote_work=coordinator.poke,
        )
        self.door.meta = service
        await service.start()
        coordinator.poke()

    @property
    def service(self) -> MetaService:
        """The meta server, once open."""
        assert self._service is not None
        return self._service

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each operation on tables."""
        return self.service.handlers()

    def metric_sources(self) -> list[MetricSource]:
        """Return what is counted."""
        return [self.service.metrics]

    def reasons(self) -> Iterable[str]:
        """Why tables cannot be changed, in a sentence, if so."""
        usable = [one for one in self.service.metrics() if one.name == "pegaskv_meta_store_usable"]
        if not usable[0].samples[0][1]:
            yield "the meta store cannot be written: tables cannot be changed"

    def read_clusters_again(self, config: Config) -> None:
        """Take the remote clusters of a configuration that was read again."""
        if self._service is not None:
            self._service.set_remote_clusters(config.clusters)

    async def stop(self) -> None:
        """Answer what waits still, and let the store go."""
        if self._service is not None:
            await self._service.stop()
        if self._store is not None:
            await self._store.close()
