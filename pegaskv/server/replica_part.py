"""A replica server without its process: the replicas, and the duplications that start here."""

from collections.abc import Iterable
from typing import Final

from pegaskv.base.metrics import MetricSource
from pegaskv.duplication.doors import ProgressDoor
from pegaskv.duplication.remote import RemoteClusters
from pegaskv.duplication.service import DuplicationService
from pegaskv.net.connection import Handler
from pegaskv.replica.doors import ConfigurationDoor, Peers
from pegaskv.replica.stub import ReplicaStub, Workers
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import Worker
from pegaskv.server.host import Host
from pegaskv.server.node_control import NodeControl
from pegaskv.storage.directories import DataDirectory

__all__ = ["REPLICA_THREADS", "ReplicaPart"]

REPLICA_THREADS: Final = ("log", "segments", "apply", "scan", "upkeep")
# How many of a kind are named in `health`.
_NAMED_MAX: Final = 10


class ReplicaPart:
    """The replicas of one data directory. `open` it, then `stop` it; `control` commands it."""

    def __init__(
        self,
        host: Host,
        directory: DataDirectory,
        work: dict[str, Worker],
        *,
        configurations: ConfigurationDoor | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._host = host
        # The stub ends its own scope when its last writes are in the log.
        self._scope = TaskScope("replicas", on_crash=host.crashed)
        config = host.config
        self.stub = ReplicaStub(
            directory=directory,
            disk=host.disk,
            engine_factory=host.engine_factory,
            clock=host.clock,
            workers=Workers(**{name: work[name] for name in REPLICA_THREADS}),
            scope=self._scope,
            cluster_id=config.cluster.id,
            options=config.replica,
            log_options=config.storage_log,
            on_fatal=host.on_log_failed,
            accept_loss=host.accept_loss,
            random=host.random,
            meta=configurations,
            peers=peers,
            lease=config.lease,
        )
        self._duplications: DuplicationService | None = None
        self._control: NodeControl | None = None

    async def open(self, meta: ProgressDoor, remotes: RemoteClusters) -> None:
        """Recover the replicas; `meta` stores what duplications report.

        Raises:
            UnsupportedFormat, OSError: the data directory cannot be used.

        """
        host, stub = self._host, self.stub
        await stub.start()
        self._duplications = DuplicationService(
            sources=stub,
            meta=meta,
            remotes=remotes,
            clock=host.clock,
            random=host.random,
            scope=host.scope,
            options=host.config.duplication,
            free_bytes=lambda: stub.free_bytes,
        )
        self._control = NodeControl(stub, self._duplications)

    @property
    def control(self) -> NodeControl:
        """The door for the meta server."""
        assert self._control is not None
        return self._control

    @property
    def duplications(self) -> DuplicationService:
        """Those that start from the primaries here."""
        assert self._duplications is not None
        return self._duplications

    def handlers(self) -> dict[int, Handler]:
        """Return what answers each operation on rows."""
        return self.stub.handlers()

    def metric_sources(self) -> list[MetricSource]:
        """Return what is counted."""
        return [self.stub.metrics, self.duplications.metrics]

    def reasons(self) -> Iterable[str]:
        """Why the replicas are not well, one sentence each."""
        closed = [each for each in self.stub.node_report("").replicas if each.closed]
        for each in closed[:_NAMED_MAX]:
            yield f"partition {each.gpid} is closed: {each.closed}"
        if len(closed) > _NAMED_MAX:
            yield f"{len(closed) - _NAMED_MAX} more partitions are closed"
        damaged = list(self.stub.damaged.items())
        for gpid, why in damaged[:_NAMED_MAX]:
            yield f"partition {gpid} has damaged tables: {why}"
        if len(damaged) > _NAMED_MAX:
            yield f"{len(damaged) - _NAMED_MAX} more partitions have damaged tables"
        full = [one for one in self.stub.metrics() if one.name == "pegaskv_disk_full"]
        if full[0].samples[0][1]:
            yield "the disk is nearly full: writes are refused"

    async def stop_duplications(self) -> None:
        """End all that ships; what was confirmed and not stored is found out again."""
        if self._duplications is not None:
            await self._duplications.stop()

    async def stop(self) -> None:
        """Finish what is in the log, flush, and close.

        Raises:
            OSError: what was acknowledged could not be synced: no clean stop.

        """
        await self.stub.stop()
