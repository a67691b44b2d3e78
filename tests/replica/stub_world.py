"""One replica server without its sockets, on a simulated disk, in virtual time.

The meta server's part is played by the test: `serve` pushes a table, each time with the next
ballot. Engines are memory engines that can be told to stall or to fail, and that refuse to be
opened twice, as LevelDB's are.
"""

import errno
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

from pegaskv.base.errors import RequestError
from pegaskv.base.types import Gpid, PartitionConfiguration, TableInfo, TableStatus
from pegaskv.codec.frames import FrameSplitter, encode_write_reply
from pegaskv.codec.messages_duplication import DuplicationOrder, SourceOrder
from pegaskv.codec.messages_meta import TablePush
from pegaskv.codec.operations import Operation
from pegaskv.net.detour import Detour
from pegaskv.net.turns import Pace
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.replica import Replica
from pegaskv.replica.source import ReplicaSource
from pegaskv.replica.stub import ReplicaStub, Workers
from pegaskv.runtime.tasks import TaskScope
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.engine import CheckpointInfo, ReplicaState
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.memory import MemoryEngine, MemoryFactory, MemorySnapshot
from pegaskv.storage.mutation_log import MutationLog
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Life, World

__all__ = ["Connection", "Engine", "Engines", "Server", "play", "play_lives"]

DATA: Final = Path("/data")
GPID: Final = Gpid(1, 0)

T = TypeVar("T")


class Engine:
    """A memory engine with switches."""

    def __init__(self, inner: MemoryEngine, engines: "Engines") -> None:
        self.inner = inner
        self.engines = engines
        self.is_calm = True
        self.write_error: OSError | None = None
        self.calm_error: OSError | None = None
        self.get_error: Exception | None = None

    def get(self, key: bytes) -> bytes | None:
        if self.get_error is not None:
            raise self.get_error
        return self.inner.get(key)

    def write(self, rows: list[bytes | None], state: ReplicaState) -> None:
        if self.write_error is not None:
            raise self.write_error
        self.inner.write(rows, state)

    def snapshot(self) -> MemorySnapshot:
        return self.inner.snapshot()

    def state(self) -> ReplicaState:
        return self.inner.state()

    def flush(self) -> int:
        return self.inner.flush()

    def checkpoint(self, target: Path) -> CheckpointInfo:
        if self.write_error is not None:
            raise self.write_error
        return self.inner.checkpoint(target)

    def compact(self, first: bytes = b"", last: bytes | None = None) -> None:
        if self.write_error is not None:
            raise self.write_error
        self.engines.compacted.append((self.inner.path, first, last))
        self.inner.compact(first, last)

    def compaction_cuts(self, step_bytes: int) -> list[bytes]:
        return self.inner.compaction_cuts(step_bytes)

    def size_bytes(self) -> int:
        return self.inner.size_bytes()

    def calm(self) -> bool:
        if self.calm_error is not None:
            raise self.calm_error
        return self.is_calm

    def close(self) -> None:
        self.inner.close()
        if self.engines.opened.get(self.inner.path) is self:
            del self.engines.opened[self.inner.path]


class Engines:
    """Opens engines; `failures` are raised first, one at each opening."""

    def __init__(self, disk: SimulatedDisk) -> None:
        self.disk = disk
        self.opened: dict[Path, Engine] = {}
        self.openings = 0
        self.failures: list[Exception] = []
        # Whose openings fail; None is everybody's.
        self.failing: Path | None = None
        # What a salvage meets, and what it says is lost.
        self.salvage_error: Exception | None = None
        self.lost: list[tuple[bytes, bytes]] = []
        # Which ranges were compacted.
        self.compacted: list[tuple[Path, bytes, bytes | None]] = []

    def open(self, path: Path) -> Engine:
        if self.failures and self.failing in (None, path):
            raise self.failures.pop(0)
        if path in self.opened:
            raise OSError(errno.EBUSY, "an engine is open in this directory", str(path))
        self.openings += 1
        engine = self.opened[path] = Engine(MemoryFactory(self.disk).open(path), self)
        return engine

    def open_checkpoint(self, checkpoint: Path, path: Path) -> Engine:
        inner = MemoryFactory(self.disk).open_checkpoint(checkpoint, path)
        engine = self.opened[path] = Engine(inner, self)
        return engine

    def salvage(self, path: Path, target: Path, known: ReplicaState) -> list[tuple[bytes, bytes]]:
        assert path not in self.opened
        if self.salvage_error is not None:
            raise self.salvage_error
        MemoryFactory(self.disk).salvage(path, target, known)
        return list(self.lost)


class Connection:
    """What the handlers and the tick see of a client's connection."""

    def __init__(self) -> None:
        self.out: list[Any] = []
        self.address = "10.0.0.1"
        self.out_bytes = 0
        self.in_flight = 0
        self.closed = False
        self.rests = True
        self.pace = Pace(lambda: 0, 100)
        self.output_paused = False
        self.answers: dict[int, Any] = {}
        # How often others' replies were written before a step of a large request.
        self.stepped_aside = 0

    def write_waiting(self) -> None:
        self.stepped_aside += 1

    def never_rest(self) -> None:
        self.rests = False

    def defer(self) -> None:
        self.in_flight += 1

    def finish(self, reply: Any) -> None:
        self.in_flight -= 1
        self.out.append(reply)

    def answer(self, frame: bytes, count: int) -> None:
        self.in_flight -= count
        [replies] = FrameSplitter(1 << 24).feed(frame)
        assert len(replies) == count
        self.out += replies
        self.flush()

    def answer_write(self, reply: list[int]) -> None:
        assert self.in_flight == 1
        self.answer(encode_write_reply(reply[0], reply[2]), 1)

    def flush(self) -> None:
        for reply in self.out:
            assert reply[0] not in self.answers, "answered twice"
            self.answers[reply[0]] = list(reply)
        self.out.clear()

    def refuse(self, message: list[Any], error: Exception) -> None:
        if isinstance(error, Detour):
            met = error.take(self, message)
            if met is None:
                return
            error = met
        assert isinstance(error, RequestError), error
        self.out.append(self.error(message[0], error))

    def error(self, request_id: int, error: RequestError) -> tuple[Any, ...]:
        return (request_id, error.code, error.message, error.hint, error.details)


class Server:
    """A replica server of one life of the node."""

    def __init__(
        self,
        life: Life,
        *,
        log_options: LogOptions | None = None,
        options: ReplicaOptions | None = None,
        cluster_id: int = 1,
        partitions: int = 1,
    ) -> None:
        self.life = life
        self.cluster_id = cluster_id
        self.partitions = partitions
        self.disk: SimulatedDisk = life.disk
        self.engines = Engines(self.disk)
        self.log_options = log_options or LogOptions(log_segment_bytes=64 * 1024)
        self.options = options or ReplicaOptions()
        self.connection = Connection()
        self.fatal: list[BaseException] = []
        self.crashes: list[BaseException] = []
        # The doors of one that is not alone, as `ReplicaStub` takes them.
        self.doors: dict[str, Any] = {}
        self._next_id = 0

    async def start(self, *, accept_loss: bool = False) -> None:
        life = self.life
        self.directory = DataDirectory.open(self.disk, DATA, random=Random(1))
        self.workers = Workers(
            log=life.worker("log"),
            segments=life.worker("segments"),
            apply=life.worker("apply"),
            scan=life.worker("scan"),
            upkeep=life.worker("upkeep"),
        )
        self.scope = TaskScope("replicas", on_crash=self.crashes.append)
        self.stub = ReplicaStub(
            directory=self.directory,
            disk=self.disk,
            engine_factory=self.engines,
            clock=life.clock,
            workers=self.workers,
            scope=self.scope,
            cluster_id=self.cluster_id,
            options=self.options,
            log_options=self.log_options,
            random=life.random("stub"),
            on_fatal=self.fatal.append,
            accept_loss=accept_loss,
            **self.doors,
        )
        await self.stub.start()
        self.handlers = self.stub.handlers()

    async def serve(self, table_id: int = 1, *, first: bool = False, **changes: Any) -> None:
        """Push the table, with a new ballot for all of its partitions."""
        await self.stub.configure(self.push(table_id, first=first, **changes))

    def push(
        self,
        table_id: int = 1,
        *,
        first: bool = False,
        envs: Mapping[str, str] | None = None,
        status: TableStatus = TableStatus.AVAILABLE,
        version: int = 0,
        ballot: int | None = None,
        purged: bool = False,
        follower: bool = False,
        duplications: tuple[DuplicationOrder, ...] = (),
        sources: tuple[SourceOrder, ...] = (),
        replica_count: int = 1,
        primary: str | None = None,
        secondaries: tuple[str, ...] = (),
    ) -> TablePush:
        indices = range(self.partitions)
        if ballot is None:
            reports = self.stub.node_report("").replicas
            ballot = 1 + max(
                (each.ballot for each in reports if each.gpid.table_id == table_id), default=0
            )
        table = TableInfo(
            table_id,
            "t",
            status,
            self.partitions,
            replica_count,
            dict(envs or {}),
            version=version,
            follower=follower,
        )
        primary = primary or self.directory.node_id
        return TablePush(
            table,
            tuple(
                PartitionConfiguration(Gpid(table_id, index), ballot, primary, secondaries)
                for index in indices
            ),
            frozenset(indices) if first else frozenset(),
            purged=purged,
            duplications=duplications,
            sources=sources,
        )

    def send(
        self,
        operation: Operation,
        *fields: Any,
        table_id: int = 1,
        index: int = 0,
        timeout_ms: int = 1_000,
    ) -> int:
        """Hand a client's request to its handler, as the connection does; return its id."""
        return self.hand(operation, timeout_ms, table_id, index, *fields)

    def hand(self, operation: Operation, timeout_ms: int, *fields: Any) -> int:
        """Hand any request to its handler; return its id."""
        self._next_id += 1
        connection: Any = self.connection
        message = [self._next_id, int(operation), timeout_ms, *fields]
        try:
            self.handlers[operation](connection, message)
        except (RequestError, Detour) as error:
            connection.refuse(message, error)
        connection.flush()
        return self._next_id

    async def answer(self, request_id: int, *, limit_ms: int = 60_000) -> Any:
        """The fields behind the id, as soon as they are there."""
        answers = self.connection.answers
        await self.life.world.until(
            lambda: request_id in answers, limit_ms=limit_ms, what=f"the answer to {request_id}"
        )
        return answers[request_id][1:]

    async def ask(
        self, operation: Operation, *fields: Any, table_id: int = 1, index: int = 0
    ) -> Any:
        return await self.answer(self.send(operation, *fields, table_id=table_id, index=index))

    async def set(self, sort_key: bytes, value: bytes, ttl: int = 0) -> None:
        """Write until it is taken."""
        while True:
            status, *rest = await self.ask(Operation.SET, b"h", sort_key, value, ttl)
            if status == 0:
                return
            assert status in (13, 20, 21), rest
            await self.life.clock.sleep_ms(20)

    async def get(self, sort_key: bytes) -> bytes | None:
        status, value, *_ = await self.ask(Operation.GET, b"h", sort_key)
        assert status == 0, value
        return value  # type: ignore[no-any-return]

    def replica(self, table_id: int = 1, index: int = 0) -> Replica:
        return self.stub._replicas[Gpid(table_id, index)]

    def source(self, index: int = 0) -> ReplicaSource:
        source = self.stub.source(Gpid(1, index))
        assert source is not None
        return source

    def engine(self, table_id: int = 1, index: int = 0) -> Engine:
        engine = self.replica(table_id, index).engine
        assert isinstance(engine, Engine)
        return engine

    @property
    def log(self) -> MutationLog:
        assert self.stub._log is not None
        return self.stub._log

    def slow(self, worker: str, least_us: int) -> None:
        """Let everything that this worker does take at least so long."""
        simulated: Any = getattr(self.workers, worker)
        simulated.least_us = least_us

    async def stop(self) -> None:
        await self.stub.stop()
        self.directory.mark_clean_stop()
        self.directory.close()


def play(
    scenario: Callable[[World, Life], Coroutine[Any, Any, T]], *, seed: int = 1, **overrides: Any
) -> T:
    """Run a test on a node with a disk."""
    (found,) = play_lives(scenario, seed=seed, **overrides)
    return found


def play_lives(
    *scenarios: Callable[[World, Life], Coroutine[Any, Any, T]],
    seed: int = 1,
    power: bool = False,
    **overrides: Any,
) -> list[T]:
    """Run each part of a test in a process of its own, killed at its end, or by a power cut."""
    settled: dict[str, Any] = {"worker_us": (5, 50), "worker_slow": 0.0, "wall_offset_us": 0}
    with World(seed, disk=SimulatedDisk, **settled | overrides) as world:
        node = world.node("server")

        async def main() -> list[T]:
            found = []
            for scenario in scenarios:
                if found:
                    node.crash(power=power)
                life = node.spawn()
                found.append(await life.task(scenario(world, life)))
            return found

        return world.run(main())
