"""One meta server and one replica server in one process: the composition root.

Nothing is decided here. Every part gets what it needs, in the one order that works:

    lock the directory, recover the replicas, load the tables, listen, report, say ready

A client that connects between *listen* and *ready* is answered that the partition is not
ready yet. Stopping goes the other way round: nobody new, answer what is under way, flush
so that the next start has nothing to replay, mark the stop as clean, let the lock go.

All seams are parameters, so that the simulation runs this very composition.
"""

import asyncio
import dataclasses
import errno
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Final

from pegaskv.base.errors import DirectoryUnusable, InvalidArgument, PegasKVError
from pegaskv.base.version import PROTOCOL_VERSION, VERSION
from pegaskv.codec.operations import Operation
from pegaskv.coordination.embedded import EmbeddedStore
from pegaskv.coordination.store import StoreUnavailable
from pegaskv.duplication.coordinator import Coordinator
from pegaskv.duplication.remote import RemoteCluster, RemoteClusters
from pegaskv.duplication.service import DuplicationService
from pegaskv.meta.service import MetaService
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.asyncio_network import AsyncioNetwork
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.net.hello import ServerIdentity
from pegaskv.net.network import Listener, Network
from pegaskv.replica.stub import ReplicaStub, Workers
from pegaskv.runtime.clock import Clock, SystemClock
from pegaskv.runtime.spin import Spinner
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import ThreadWorker, Worker
from pegaskv.server.config import Config, parse_address
from pegaskv.server.file_budget import FileBudget
from pegaskv.server.late_door import LateMetaDoor
from pegaskv.server.listening import listening
from pegaskv.server.memory_budget import bytes_in_flight_max
from pegaskv.server.node_control import NodeControl
from pegaskv.server.option_metrics import option_metrics
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import EngineFactory
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.local_disk import LocalDisk

__all__ = ["Standalone"]

_log = logging.getLogger(__name__)

_PATIENCE_AFTER_FAILURE_MS: Final = 200
_REPLICA_THREADS: Final = ("log", "segments", "apply", "scan", "upkeep")


class Standalone:
    """A whole server. `start` once, then `stop` once, also after a `start` that failed.

    `failure` is why the server cannot go on, once `on_fatal` was called, or None.
    """

    def __init__(
        self,
        config: Config,
        data: Path,
        *,
        files_max: int = 1_024,
        free_memory: Callable[[], int] = lambda: 1 << 40,
        accept_loss: bool = False,
        on_fatal: Callable[[PegasKVError], Any] = lambda error: None,
        clock: Clock | None = None,
        disk: Disk | None = None,
        network: Network | None = None,
        engine_factory: EngineFactory | None = None,
        make_worker: Callable[[str], Worker] = ThreadWorker,
        random: Random | None = None,
        process_id: int | None = None,
    ) -> None:
        self._config = config
        self._data = data
        self._files = FileBudget.of(files_max)
        self._free_memory = free_memory
        self._accept_loss = accept_loss
        self._on_fatal = on_fatal
        self._clock = clock or SystemClock()
        self._disk = disk or LocalDisk()
        self._network = network or AsyncioNetwork()
        self._engine_factory = engine_factory or LevelDBFactory(self._disk, config.storage)
        self._make_worker = make_worker
        self._random = random or SystemRandom()
        self._process_id = process_id
        self._workers: list[Worker] = []
        self._scope = TaskScope("server", on_crash=self._on_crash)
        # The stub ends its own scope when its last writes are in the log.
        self._replica_scope = TaskScope("replicas", on_crash=self._on_crash)
        self._directory: DataDirectory | None = None
        self._stub: ReplicaStub | None = None
        self._store: EmbeddedStore | None = None
        self._meta: MetaService | None = None
        self._duplications: DuplicationService | None = None
        self._acceptor: Acceptor | None = None
        self._listener: Listener | None = None
        self._http: Any = None
        self._started_ms = self._clock.monotonic_ms()
        self._ready = False
        self._stopping = False
        self.failure: PegasKVError | None = None
        self.address = ""
        self.http_address = "none"

    # Start.

    async def start(self) -> None:
        """Serve.

        Raises:
            DirectoryUnusable, UnsupportedFormat, CorruptionError: the data directory.
            ListenError: an address.
            ConfigurationError: an address is none.

        """
        server = self._config.server
        host, port = parse_address(server.listen, "--listen")
        work = {name: self._worker(name) for name in (*_REPLICA_THREADS, "meta store")}
        try:
            await self._open(work)
        except OSError as error:
            raise _unusable(self._data, error) from error
        except StoreUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, OSError):
                raise _unusable(self._data, cause) from error
            raise
        self._acceptor = self._make_acceptor()
        self._scope.start("connections", self._acceptor.run())
        self._listener = await listening(
            "--listen", server.listen, self._network.listen(self._acceptor, host, port)
        )
        self.address = _address(self._listener.address)
        if server.http != "none":
            await self._start_http(server.http)
        assert self._stub is not None
        assert self._meta is not None
        # Behind a wildcard or a forwarded port only the client knows how it came here.
        reported = "" if host in ("0.0.0.0", "::") else self.address
        await self._meta.report(self._stub.node_report(reported))
        self._ready = True
        _log.info("serving on %s, data in %s", self.address, self._data)

    async def _open(self, work: dict[str, Worker]) -> None:
        """Lock the directory, recover the replicas, load the tables."""
        config = self._config
        directory = self._directory = await work["upkeep"].run(
            lambda: DataDirectory.open(
                self._disk, self._data, random=self._random, process_id=self._process_id
            )
        )
        self._stub = ReplicaStub(
            directory=directory,
            disk=self._disk,
            engine_factory=self._engine_factory,
            clock=self._clock,
            workers=Workers(**{name: work[name] for name in _REPLICA_THREADS}),
            scope=self._replica_scope,
            cluster_id=config.cluster.id,
            options=config.replica,
            log_options=config.storage_log,
            on_fatal=self._on_log_failed,
            accept_loss=self._accept_loss,
        )
        await self._stub.start()
        self._store = await EmbeddedStore.open(
            self._disk, directory.meta_path, worker=work["meta store"]
        )
        door = LateMetaDoor()
        remotes = RemoteClusters(self._make_remote)
        stub = self._stub
        self._duplications = DuplicationService(
            sources=stub,
            meta=door,
            remotes=remotes,
            clock=self._clock,
            random=self._random,
            scope=self._scope,
            options=config.duplication,
            free_bytes=lambda: stub.free_bytes,
        )
        coordinator = Coordinator(
            meta=door,
            remotes=remotes,
            clock=self._clock,
            random=self._random,
            scope=self._scope,
            options=config.duplication,
        )
        self._meta = MetaService(
            self._store,
            nodes={directory.node_id: NodeControl(stub, self._duplications)},
            clock=self._clock,
            random=self._random,
            options=dataclasses.replace(
                config.meta,
                partitions_max=min(config.meta.partitions_max, self._files.partitions),
            ),
            cluster_name=config.cluster.name,
            cluster_id=config.cluster.id,
            replica_state=stub.replica_state,
            scope=self._scope,
            remote_clusters=config.clusters,
            duplication_state=self._duplications.state,
            remote_state=coordinator.state,
            on_remote_work=coordinator.poke,
        )
        door.meta = self._meta
        await self._meta.start()
        coordinator.poke()

    def _make_remote(self, metas: str) -> RemoteCluster:
        options = self._config.duplication
        return RemoteCluster(
            metas,
            network=self._network,
            clock=self._clock,
            random=self._random,
            scope=self._scope,
            timeout_ms=options.timeout_ms,
            window_bytes=options.window_bytes,
            window_requests_max=options.window_requests_max,
        )

    def read_clusters_again(self, config: Config) -> None:
        """Take the remote clusters of a configuration that was read again."""
        if self._meta is not None:
            self._meta.set_remote_clusters(config.clusters)

    def _worker(self, name: str) -> Worker:
        worker = self._make_worker(name)
        self._workers.append(worker)
        return worker

    def _make_acceptor(self) -> Acceptor:
        assert self._stub is not None
        assert self._meta is not None
        assert self._directory is not None
        server, cluster = self._config.server, self._config.cluster
        handlers: dict[int, Handler] = {
            **self._stub.handlers(),
            **self._meta.handlers(),
            Operation.SERVER_INFO: self._on_server_info,
        }
        wanted = max(server.in_flight_bytes_max, server.unsent_bytes_max)
        bytes_max = bytes_in_flight_max(self._free_memory(), wanted)
        if bytes_max < server.in_flight_bytes_max:
            _log.warning("memory is tight: requests may hold %d MiB of it", bytes_max >> 20)
        acceptor = Acceptor(
            handlers,
            identity=ServerIdentity(
                cluster.name, cluster.id, self._meta.cluster_uuid, self._directory.node_id
            ),
            clock=self._clock,
            options=server.acceptor_options(
                connections_max=self._files.connections,
                descriptor_max=self._files.connection_descriptor_max,
                bytes_max=bytes_max,
            ),
        )
        if server.spin_us:
            acceptor.spinner = Spinner(
                server.spin_us,
                now_us=self._clock.wall_us,
                call_soon=asyncio.get_running_loop().call_soon,
                # Against the disk's thread it would only fight for the interpreter.
                is_useful=lambda: self._stub is None or not self._stub.syncing,
            )
        return acceptor

    async def _start_http(self, address: str) -> None:
        # Imported here: without HTTP it would cost a quarter of a second and 30 MB.
        from pegaskv.server.http import HttpServer, LoopLag

        assert self._stub is not None
        assert self._acceptor is not None
        lag = LoopLag(self._clock)
        self._scope.keep("loop lag", lag.measure, pause=lambda: self._clock.sleep_ms(0))
        sources = [self._acceptor.metrics, self._stub.metrics, lag.metrics]
        sources.append(lambda: option_metrics(self._config))
        if self._meta is not None:
            sources.append(self._meta.metrics)
        if self._duplications is not None:
            sources.append(self._duplications.metrics)
        self._http = HttpServer(
            sources,
            health=self.health,
            clock=self._clock,
            connections_max=min(
                self._config.server.http_connections_max, self._files.http_connections
            ),
        )
        host, port = parse_address(address, "--http")
        self.http_address = _address(
            await listening("--http", address, self._http.start(host, port))
        )

    # Stop.

    async def stop(self) -> None:
        """Stop listening, answer what is under way, flush, let the directory go."""
        self._stopping = True
        self._ready = False
        whole = self.failure is None and self._directory is not None
        for name, step in (
            ("listening", self._stop_listening),
            ("http", self._stop_http),
            ("duplications", self._stop_duplications),
            ("background work", self._scope.close),
            ("tables", self._stop_meta),
            ("replicas", self._stop_stub),
        ):
            try:
                await step()
            except (PegasKVError, OSError, RuntimeError) as error:
                whole = False
                _log.warning("stopping %s: %s", name, error)
        if self._directory is not None:
            directory = self._directory

            def let_go() -> None:
                try:
                    if whole:
                        directory.mark_clean_stop()
                finally:
                    directory.close()

            try:
                await self._workers[-1].run(let_go)
            except OSError as error:
                _log.warning("the stop could not be marked as clean: %s", error)
        for worker in self._workers:
            await worker.close()
        if self.address:
            _log.info("stopped")

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            await self._listener.close()
        if self._stub is not None:
            self._stub.begin_to_stop()
        if self._acceptor is not None:
            patience_ms = self._config.server.drain_timeout_ms
            if self.failure is not None:
                # What waits for the log is never answered.
                patience_ms = min(patience_ms, _PATIENCE_AFTER_FAILURE_MS)
            await self._acceptor.drain(patience_ms)

    async def _stop_http(self) -> None:
        if self._http is not None:
            await self._http.stop()

    async def _stop_duplications(self) -> None:
        if self._duplications is not None:
            await self._duplications.stop()

    async def _stop_meta(self) -> None:
        if self._meta is not None:
            await self._meta.stop()
        if self._store is not None:
            await self._store.close()

    async def _stop_stub(self) -> None:
        if self._stub is not None:
            await self._stub.stop()
        else:
            await self._replica_scope.close()

    # Failure and health.

    def _on_log_failed(self, error: BaseException) -> None:
        self._fail(
            PegasKVError(
                f"the log cannot be written: {error}",
                hint="nothing that was acknowledged is lost: mend the disk, then start again",
            )
        )

    def _on_crash(self, error: BaseException) -> None:
        _log.error("background work failed", exc_info=error)
        self._fail(PegasKVError(f"internal error: {type(error).__name__}: {error}"))

    def _fail(self, failure: PegasKVError) -> None:
        if self.failure is None:
            self.failure = failure
            self._on_fatal(failure)

    def health(self) -> list[str]:
        """Why the server is not well, one sentence each; empty when it is."""
        if self.failure is not None:
            return [str(self.failure)]
        if self._stopping:
            return ["the server is stopping"]
        if not self._ready:
            return ["the server is starting"]
        assert self._stub is not None
        assert self._meta is not None
        closed = [each for each in self._stub.node_report("").replicas if each.closed]
        reasons = [f"partition {each.gpid} is closed: {each.closed}" for each in closed[:10]]
        if len(closed) > 10:
            reasons.append(f"{len(closed) - 10} more partitions are closed")
        damaged = list(self._stub.damaged.items())
        reasons += [f"partition {gpid} has damaged tables: {why}" for gpid, why in damaged[:10]]
        if len(damaged) > 10:
            reasons.append(f"{len(damaged) - 10} more partitions have damaged tables")
        values = {
            metric.name: metric.samples[0][1]
            for source in (self._stub.metrics, self._meta.metrics)
            for metric in source()
            if metric.samples
        }
        if values["pegaskv_disk_full"]:
            reasons.append("the disk is nearly full: writes are refused")
        if not values["pegaskv_meta_store_usable"]:
            reasons.append("the meta store cannot be written: tables cannot be changed")
        return reasons

    def _on_server_info(self, connection: ServerConnection, message: list[Any]) -> None:
        if len(message) != 3:
            raise InvalidArgument("server_info has no fields")
        assert self._directory is not None
        assert self._acceptor is not None
        connection.out.append(
            (
                message[0],
                0,
                {
                    "version": VERSION,
                    "protocol_version": PROTOCOL_VERSION,
                    "python": platform.python_version(),
                    "role": "standalone",
                    "cluster_name": self._config.cluster.name,
                    "cluster_id": self._config.cluster.id,
                    "node_id": self._directory.node_id,
                    "address": self.address,
                    "http": self.http_address,
                    "uptime_seconds": (self._clock.monotonic_ms() - self._started_ms) // 1_000,
                    "connections": self._acceptor.connection_count,
                    "health": self.health(),
                },
            )
        )


def _unusable(data: Path, error: OSError) -> DirectoryUnusable:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free space on its disk, then start again"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        hint = "make it writable for this user, or name another by --data"
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        hint = "allow more open files (ulimit -n)"
    else:
        hint = "name another by --data, or mend it; nothing was removed"
    return DirectoryUnusable(f"the data directory {data} cannot be used: {reason}", hint=hint)


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
