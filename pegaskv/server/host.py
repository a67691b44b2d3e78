"""What every server process has around its parts: a directory, sockets, a start and a stop.

A kind of server (standalone, meta, replica) says which parts it has and how they are opened,
asked and stopped; everything else is here once. Starting goes up:

    lock the directory, open the parts, listen, begin to serve, say ready

Stopping goes the other way round: nobody new, answer what is under way, stop the parts so
that the next start has nothing to replay, mark the stop as clean, let the lock go. A client
that connects between *listen* and *ready* is answered that the server is not ready yet.

All seams are parameters, so that the simulation runs these very compositions.
"""

import asyncio
import errno
import logging
import platform
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, ClassVar, Final

from pegaskv.base.errors import DirectoryUnusable, InvalidArgument, PegasKVError
from pegaskv.base.metrics import MetricSource
from pegaskv.base.version import PROTOCOL_VERSION, VERSION
from pegaskv.codec.operations import Operation
from pegaskv.coordination.store import StoreUnavailable
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.asyncio_network import AsyncioNetwork
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.net.hello import ServerIdentity
from pegaskv.net.network import Listener, Network
from pegaskv.runtime.clock import Clock, SystemClock
from pegaskv.runtime.spin import Spinner
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import ThreadWorker, Worker
from pegaskv.server.belonging import check_role, keep_role
from pegaskv.server.config import Config, parse_address
from pegaskv.server.file_budget import FileBudget
from pegaskv.server.listening import listening
from pegaskv.server.memory_budget import bytes_in_flight_max
from pegaskv.server.option_metrics import option_metrics
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import EngineFactory
from pegaskv.storage.leveldb import LevelDBFactory
from pegaskv.storage.local_disk import LocalDisk

__all__ = ["Host", "Step"]

_log = logging.getLogger(__name__)

_PATIENCE_AFTER_FAILURE_MS: Final = 200
# Clients close in a moment when they are asked to; nobody else is worth waiting for.
_GOODBYE_MS: Final = 300

# One step of a stop: what is stopped, in a word for the log, and how.
Step = tuple[str, Callable[[], Awaitable[Any]]]


class Host(ABC):
    """A server process. `start` once, then `stop` once, also after a `start` that failed.

    `failure` is why the server cannot go on, once `on_fatal` was called, or None. `on_ready` is
    called when requests are served.
    """

    role: ClassVar[str]
    # One thread each; the last one lets the directory go.
    threads: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        config: Config,
        data: Path,
        *,
        files_max: int = 1_024,
        free_memory: Callable[[], int] = lambda: 1 << 40,
        accept_loss: bool = False,
        on_ready: Callable[[], Any] = lambda: None,
        on_fatal: Callable[[PegasKVError], Any] = lambda error: None,
        clock: Clock | None = None,
        disk: Disk | None = None,
        network: Network | None = None,
        engine_factory: EngineFactory | None = None,
        make_worker: Callable[[str], Worker] = ThreadWorker,
        random: Random | None = None,
        process_id: int | None = None,
    ) -> None:
        self.config = config
        self.data = data
        self.accept_loss = accept_loss
        self.clock = clock or SystemClock()
        self.disk = disk or LocalDisk()
        self.network = network or AsyncioNetwork()
        self.engine_factory = engine_factory or LevelDBFactory(self.disk, config.storage)
        self.random = random or SystemRandom()
        # What runs beside the parts, and ends before they do.
        self.scope = TaskScope("server", on_crash=self.crashed)
        self.failure: PegasKVError | None = None
        self.address = ""
        self.http_address = "none"
        self._files = FileBudget.of(files_max)
        self._free_memory = free_memory
        self._on_ready = on_ready
        self._on_fatal = on_fatal
        self._make_worker = make_worker
        self._process_id = process_id
        self._workers: list[Worker] = []
        self._directory: DataDirectory | None = None
        self._opened = False
        self._acceptor: Acceptor | None = None
        self._listener: Listener | None = None
        self._http: Any = None
        self._started_ms = self.clock.monotonic_ms()
        self._stopping = False
        # Is set when requests are served.
        self.ready = asyncio.Event()

    # What a kind of server says of itself.

    @abstractmethod
    async def open(self, directory: DataDirectory, work: dict[str, Worker]) -> None:
        """Open the parts; `work` has the threads by name."""
        ...

    @abstractmethod
    def handlers(self) -> dict[int, Handler]:
        """Return what answers each operation."""
        ...

    @abstractmethod
    def cluster_uuid(self) -> str:
        """Return the uuid of the cluster, "" while it is not known."""
        ...

    @abstractmethod
    async def begin(self, reported_address: str) -> None:
        """Begin to serve, now that others can connect; calls `become_ready`."""
        ...

    async def begin_to_stop(self) -> None:
        """Nobody new is accepted any more: let no request wait for its time."""
        return

    async def leave(self) -> None:
        """Hand over to others what they can do in this server's place; all is served still."""
        return

    @abstractmethod
    def stop_steps(self) -> tuple[list[Step], list[Step]]:
        """Return how the parts stop: before, and after the background work has ended."""
        ...

    @abstractmethod
    def metric_sources(self) -> list[MetricSource]:
        """Return what is counted."""
        ...

    @abstractmethod
    def reasons(self) -> Iterable[str]:
        """Why the parts are not well, one sentence each."""
        ...

    def read_clusters_again(self, config: Config) -> None:
        """Take the remote clusters of a configuration that was read again."""
        return

    def answer_guard(self) -> Callable[[], bool] | None:
        """Return what is asked before every write to a connection, if anything."""
        return None

    def attach(self, acceptor: Acceptor) -> None:
        """Let who answers requests at the ends of ticks and the acceptor know of each other."""
        return

    def is_syncing(self) -> bool:
        """Whether a thread is at work that a loop without sleep would only hold up."""
        return False

    # Start.

    async def start(self) -> None:
        """Serve, as soon as the parts can: `ready` is set then.

        Raises:
            DirectoryUnusable, UnsupportedFormat, CorruptionError: the data directory.
            ListenError: an address.
            ConfigurationError: an address is none.

        """
        server = self.config.server
        host, port = parse_address(server.listen, "--listen")
        if server.http != "none":
            # Without HTTP it would cost a quarter of a second and 30 MB; and the loop stands
            # still meanwhile, which nobody minds as long as no part is open.
            import pegaskv.server.http  # noqa: F401
        work = {name: self._worker(name) for name in self.threads}
        try:
            directory = self._directory = await self._workers[-1].run(self._take_directory)
            await self.open(directory, work)
        except OSError as error:
            raise _unusable(self.data, error) from error
        except StoreUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, OSError):
                raise _unusable(self.data, cause) from error
            raise
        self._opened = True
        self._acceptor = self._make_acceptor(directory)
        self.scope.start("connections", self._acceptor.run())
        self._listener = await listening(
            "--listen", server.listen, self.network.listen(self._acceptor, host, port)
        )
        self.address = _address(self._listener.address)
        if server.http != "none":
            await self._start_http(server.http)
        # Behind a wildcard only the other side of a connection knows how it came here.
        await self.begin("" if host in ("0.0.0.0", "::") else self.address)

    def become_ready(self) -> None:
        """Requests are served from now on."""
        if self.ready.is_set() or self._stopping:
            return
        self.ready.set()
        _log.info("serving on %s, data in %s", self.address, self.data)
        self._on_ready()

    def join(self, name: str, cluster_uuid: str) -> None:
        """Say to everybody who connects that this is a server of that cluster."""
        acceptor, directory = self._acceptor, self._directory
        if acceptor is not None and directory is not None:
            cluster_id = self.config.cluster.id
            acceptor.identity = ServerIdentity(name, cluster_id, cluster_uuid, directory.node_id)

    def _take_directory(self) -> DataDirectory:
        check_role(self.disk, self.data, self.role)
        directory = DataDirectory.open(
            self.disk, self.data, random=self.random, process_id=self._process_id
        )
        try:
            keep_role(self.disk, self.data, self.role)
        except BaseException:
            directory.close()
            raise
        return directory

    def _worker(self, name: str) -> Worker:
        worker = self._make_worker(name)
        self._workers.append(worker)
        return worker

    def _make_acceptor(self, directory: DataDirectory) -> Acceptor:
        server, cluster = self.config.server, self.config.cluster
        wanted = max(server.in_flight_bytes_max, server.unsent_bytes_max)
        bytes_max = bytes_in_flight_max(self._free_memory(), wanted)
        if bytes_max < server.in_flight_bytes_max:
            _log.warning("memory is tight: requests may hold %d MiB of it", bytes_max >> 20)
        acceptor = Acceptor(
            {**self.handlers(), Operation.SERVER_INFO: self._on_server_info},
            identity=ServerIdentity(
                cluster.name, cluster.id, self.cluster_uuid(), directory.node_id
            ),
            clock=self.clock,
            options=server.acceptor_options(
                connections_max=self._files.connections,
                descriptor_max=self._files.connection_descriptor_max,
                bytes_max=bytes_max,
            ),
        )
        acceptor.may_answer = self.answer_guard()
        self.attach(acceptor)
        if server.spin_us:
            acceptor.spinner = Spinner(
                server.spin_us,
                now_us=self.clock.wall_us,
                call_soon=asyncio.get_running_loop().call_soon,
                # Against the disk's thread it would only fight for the interpreter.
                is_useful=lambda: not self.is_syncing(),
            )
        return acceptor

    async def _start_http(self, address: str) -> None:
        from pegaskv.server.http import HttpServer, LoopLag

        assert self._acceptor is not None
        lag = LoopLag(self.clock)
        self.scope.keep("loop lag", lag.measure, pause=lambda: self.clock.sleep_ms(0))
        self._http = HttpServer(
            [
                self._acceptor.metrics,
                lag.metrics,
                lambda: option_metrics(self.config),
                *self.metric_sources(),
            ],
            health=self.health,
            clock=self.clock,
            connections_max=min(
                self.config.server.http_connections_max, self._files.http_connections
            ),
        )
        host, port = parse_address(address, "--http")
        self.http_address = _address(
            await listening("--http", address, self._http.start(host, port))
        )

    # Stop.

    async def stop(self, *, hand_over: bool = True) -> None:
        """Stop listening, answer what is under way, let the directory go.

        `hand_over`: others go on in this server's place, so they take over first.
        """
        leaves = hand_over and self.ready.is_set() and self.failure is None
        self._stopping = True
        self.ready.clear()
        whole = self.failure is None and self._opened
        before, after = self.stop_steps()
        for name, step in (
            *([("handing over", self.leave)] if leaves else []),
            ("listening", self._stop_listening),
            ("http", self._stop_http),
            *before,
            ("background work", self.scope.close),
            *after,
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
        if self._acceptor is not None and self.failure is None:
            await self._acceptor.say_goodbye(_GOODBYE_MS)
        await self.begin_to_stop()
        if self._acceptor is not None:
            patience_ms = self.config.server.drain_timeout_ms
            if self.failure is not None:
                # What waits for the log is never answered.
                patience_ms = min(patience_ms, _PATIENCE_AFTER_FAILURE_MS)
            await self._acceptor.drain(patience_ms)

    async def _stop_http(self) -> None:
        if self._http is not None:
            await self._http.stop()

    # Failure and health.

    def on_log_failed(self, error: BaseException) -> None:
        """The log is of no use any more: only a new start can go on."""
        self._fail(
            PegasKVError(
                f"the log cannot be written: {error}",
                hint="nothing that was acknowledged is lost: mend the disk, then start again",
            )
        )

    def crashed(self, error: BaseException) -> None:
        """A task has failed that nothing was to fail: only a new start can go on."""
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
        if not self.ready.is_set():
            return ["the server is starting", *(self.reasons() if self._opened else ())]
        return list(self.reasons())

    def _on_server_info(self, connection: ServerConnection, message: list[Any]) -> None:
        if len(message) != 3:
            raise InvalidArgument("server_info has no fields")
        assert self._directory is not None
        assert self._acceptor is not None
        identity = self._acceptor.identity
        connection.out.append(
            (
                message[0],
                0,
                {
                    "version": VERSION,
                    "protocol_version": PROTOCOL_VERSION,
                    "python": platform.python_version(),
                    "role": self.role,
                    "cluster_name": identity.cluster_name,
                    "cluster_id": identity.cluster_id,
                    "node_id": identity.node_id,
                    "address": self.address,
                    "http": self.http_address,
                    "uptime_seconds": (self.clock.monotonic_ms() - self._started_ms) // 1_000,
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
