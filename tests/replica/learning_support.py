"""A primary and a learner, each on a disk of its own, with wires between them and nothing else.

What decides about mutations (the machine, the front) is played by the test: the primary commits
what it writes, and the learner applies what it has copied. Log, tables, directories, recovery,
teaching and learning are those of the product.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

from pegaskv.base.errors import NotReady, RequestError, Timeout, Unavailable, error_from_code
from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.mutations import OperationKind, encode_mutation, encode_operation
from pegaskv.codec.operations import Operation
from pegaskv.codec.packing import pack, unpack
from pegaskv.replica.learning import Adoption, Learner
from pegaskv.replica.recovery import RecoveredReplica, apply_records, recover_replicas
from pegaskv.replica.teaching import Teaching
from pegaskv.replica.workers import Workers
from pegaskv.runtime.tasks import TaskScope
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.engine import Engine, EngineFactory
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.memory import MemoryFactory
from pegaskv.storage.mutation_log import LogRecord, MutationLog
from tests.simulation.disk import SimulatedDisk
from tests.simulation.world import Node, World
from tests.storage.engine_contract import rows_of

__all__ = [
    "GPID",
    "LOG",
    "OPTIONS",
    "READ",
    "UUID",
    "Leader",
    "Primary",
    "Student",
    "Wire",
    "learn",
    "payload_of",
    "play",
    "primary_of",
    "student_of",
]

GPID: Final = Gpid(1, 0)
READ: Final = Operation.LEARN_READ
LOG: Final = Operation.LEARN_LOG
# Of a duplication, as pins name it.
UUID: Final = "11" * 16
DATA: Final = Path("/data")
OPTIONS: Final = LogOptions(log_segment_bytes=16 * 1024)

T = TypeVar("T")


def payload_of(decree: int, *, mark: bytes = b"", size: int = 40) -> bytes:
    """A mutation whose rows tell which it is; each tenth key is written again and again."""
    row = bytes(12) + b"%d" % decree + mark
    key = b"%04d" % (decree % 10 if decree % 3 == 0 else decree)
    operation = encode_operation(OperationKind.WRITE, 0, [key, row.ljust(size, b".")])
    return encode_mutation(decree * 100 + len(mark), [operation])


@dataclass
class Prepared:
    last_prepared: int = 0


@dataclass
class Machine:
    ballot: int = 1
    committed: int = 0
    status: ReplicaStatus = ReplicaStatus.PRIMARY
    prepared: Prepared = field(default_factory=Prepared)


class Leader:
    """What teaching sees of a replica that leads."""

    def __init__(self, gpid: Gpid, engine: Engine) -> None:
        self.gpid = gpid
        self.engine = engine
        self.machine = Machine()
        self.serving = True
        self.engine_failed: BaseException | None = None
        self.reopening = False

    def apply_now(self) -> None:
        """Everything is applied."""

    def refusal(self) -> RequestError:
        return NotReady("the barrier is not committed")


class Side:
    """What both have: directory, log, workers."""

    directory: DataDirectory
    log: MutationLog

    def __init__(
        self,
        life: Any,
        *,
        disk: Any = None,
        factory: EngineFactory | None = None,
        data: Path = DATA,
    ) -> None:
        self.life = life
        self.data = data
        self.disk = disk or life.disk
        self.factory: EngineFactory = factory or MemoryFactory(life.disk)
        self.workers = Workers(
            log=life.worker("log"),
            segments=life.worker("segments"),
            apply=life.worker("apply"),
            scan=life.worker("scan"),
            upkeep=life.worker("upkeep"),
        )

    async def recover(
        self, *, accept_loss: bool = False
    ) -> tuple[dict[Gpid, RecoveredReplica], int]:
        self.directory = DataDirectory.open(self.disk, self.data, random=Random(1))
        found = await self.workers.upkeep.run(
            lambda: recover_replicas(
                directory=self.directory,
                disk=self.disk,
                engine_factory=self.factory,
                clock=self.life.clock,
                log_worker=self.workers.log,
                background_worker=self.workers.segments,
                log_options=OPTIONS,
                accept_loss=accept_loss,
            )
        )
        self.log = found.log
        return found.replicas, found.next_incarnation

    def create(self, incarnation: int) -> Engine:
        self.directory.create_replica(GPID, incarnation, created_at_us=1)
        self.log.set_incarnation(GPID, incarnation, 0)
        return self.factory.open(self.directory.engine_path(GPID))

    async def put(self, records: list[LogRecord]) -> None:
        """Append and sync."""
        while not self.log.ready():
            await self.life.clock.sleep_ms(1)
        self.log.append(records)
        synced: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: BaseException | None) -> None:
            if not synced.done():
                synced.set_result(None) if error is None else synced.set_exception(error)

        while self.log._sync_done is not None or self.log._sync_after_switch is not None:
            await self.life.clock.sleep_ms(1)
        self.log.sync(done)
        await synced

    async def flush(self, engine: Engine) -> int:
        """As the stub does: a checkpoint, then log that nobody needs goes."""
        info = await self.workers.upkeep.run(
            lambda: self.directory.publish_checkpoint(GPID, engine)
        )
        self.log.mark_flushed(GPID, info.decree)
        await self.log.collect()
        return info.decree

    def decrees(self, first: int) -> list[int]:
        return [record.decree for record in self.log.read(GPID, first, 1 << 30)]


class Primary(Side):
    """Leads the partition."""

    async def start(self, **teaching: Any) -> "Primary":
        await self.recover()
        self.scope = TaskScope("primary")
        self.incarnation = 1
        self.leader = Leader(GPID, self.create(1))
        self.replicas: Any = {GPID: self.leader}
        self.released = 0
        self.teaching = Teaching(
            self.replicas,
            log=self.log,
            directory=self.directory,
            disk=self.disk,
            clock=self.life.clock,
            workers=self.workers,
            scope=self.scope,
            random=Random(7),
            on_released=self._on_released,
            **teaching,
        )
        self.handlers = self.teaching.handlers()
        return self

    def _on_released(self) -> None:
        self.released += 1

    @property
    def engine(self) -> Engine:
        return self.leader.engine

    @property
    def committed(self) -> int:
        return self.leader.machine.committed

    async def write(self, count: int, *, mark: bytes = b"", size: int = 40) -> None:
        """Commit so many mutations."""
        machine = self.leader.machine
        for _ in range(count):
            decree = machine.prepared.last_prepared = machine.committed + 1
            record = LogRecord(
                *GPID,
                self.incarnation,
                machine.ballot,
                decree,
                machine.committed,
                decree * 100,
                payload_of(decree, mark=mark, size=size),
            )
            await self.put([record])
            apply_records(self.engine, [record])
            machine.committed = decree

    async def flush_all(self) -> None:
        """Let the log go, but for what is pinned."""
        await self.flush(self.engine)
        # Only closed segments go.
        for _ in range(6):
            await self.write(1, size=4_000)
        await self.flush(self.engine)


class Wire:
    """From a learner to a primary and back, byte for byte; it can be cut, and can lie."""

    def __init__(self, primary: Primary, life: Any) -> None:
        self.primary = primary
        self.life = life
        self.asked: Counter[Operation] = Counter()
        self.read_bytes: Counter[str] = Counter()
        # So many more requests are answered; then the connection is broken.
        self.left = 1 << 60
        self.change: Callable[[Operation, list[Any], list[Any]], list[Any]] | None = None
        self._pending: dict[int, asyncio.Future[list[Any]]] = {}
        self._next_id = 0
        # Both ways keep their order.
        self._there: deque[list[Any]] = deque()
        self._back: deque[list[Any]] = deque()
        self.address = "10.0.0.1"
        # What handlers see of a connection.
        self.out: list[Any] = []
        self.out_bytes = 0
        self.in_flight = 0

    async def request(self, operation: int, timeout_ms: int, *fields: Any) -> list[Any]:
        """As `net.peer` does."""
        self.asked[Operation(operation)] += 1
        self._next_id += 1
        number = self._next_id
        message = unpack(pack([number, int(operation), timeout_ms, *fields]))
        if self.left <= 0:
            raise Unavailable("the connection is broken")
        self.left -= 1
        if self.left == 0:
            for future in [each for each in self._pending.values() if not each.done()]:
                future.set_exception(Unavailable("the connection was broken"))
            self._pending.clear()
            raise Unavailable("the connection was broken")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._pending[number] = future
        self._there.append(message)
        loop.call_later(0.000_2, self._deliver, context=self.primary.life.context.copy())
        try:
            async with self.life.clock.timeout_ms(timeout_ms):
                reply = await future
        except TimeoutError:
            raise Timeout("no answer") from None
        finally:
            self._pending.pop(number, None)
        if reply[1]:
            raise error_from_code(*reply[1:5])
        answer = reply[2:]
        if operation == Operation.LEARN_READ:
            self.read_bytes[fields[3]] += len(answer[0])
        if self.change is not None:
            answer = self.change(Operation(operation), list(fields), answer)
        return answer

    def _deliver(self) -> None:
        message = self._there.popleft()
        if not self.primary.life.alive:
            return
        try:
            self.primary.handlers[message[1]](self, message)  # type: ignore[arg-type]
        except RequestError as error:
            self.out.append(self.error(message[0], error))
            self.flush()

    def defer(self) -> None:
        self.in_flight += 1

    def finish(self, reply: Any) -> None:
        self.in_flight -= 1
        self.out.append(reply)

    def answer_write(self, reply: list[int]) -> None:
        self.finish(reply)
        self.flush()

    def error(self, request_id: int, error: RequestError) -> tuple[Any, ...]:
        return (request_id, error.code, error.message, error.hint, error.details)

    def flush(self) -> None:
        for reply in unpack(pack(self.out)):
            self._back.append(reply)
            asyncio.get_running_loop().call_later(0.000_2, self._answer)
        self.out.clear()

    def _answer(self) -> None:
        reply = self._back.popleft()
        future = self._pending.get(reply[0])
        if future is not None and not future.done():
            future.set_result(reply)


class Student(Side):
    """Learns the partition; the host of a learner."""

    node_id = "22222222-2222-4222-8222-222222222222"

    async def start(self, **learner: Any) -> "Student":
        replicas, self._next = await self.recover()
        self.replica = replicas.get(GPID, RecoveredReplica(closed="it is not here"))
        self.joined = 0
        self.adoption: Adoption | None = None
        self.learner = Learner(
            self,
            node_id=self.node_id,
            directory=self.directory,
            disk=self.disk,
            factory=self.factory,
            log=self.log,
            clock=self.life.clock,
            worker=self.workers.upkeep,
            random=Random(3),
            **learner,
        )
        return self

    def wire(self, primary: Primary) -> Wire:
        """Follow this primary."""
        wire = Wire(primary, self.life)
        self.primary = primary
        self.adoption = Adoption(GPID, primary.leader.machine.ballot, "primary", wire)
        return wire

    async def learn(self) -> None:
        """All of it, and from the beginning when a part fails for good."""
        assert self.adoption is not None
        first = await self.learner.copy(self.adoption, self.replica)
        await self.learner.catch_up(self.adoption, self.replica.incarnation, first)

    def next_incarnation(self) -> int:
        self._next += 1
        return self._next - 1

    async def append(self, gpid: Gpid, records: list[LogRecord]) -> None:
        replica = self.replica
        assert gpid == GPID
        assert all(record.incarnation == replica.incarnation for record in records)
        await self.put(records)
        new = [record for record in records if record.decree > replica.decree]
        assert replica.engine is not None
        replica.participation = apply_records(replica.engine, new)
        if new:
            assert new[0].decree == replica.decree + 1
            replica.decree = new[-1].decree

    async def join(self, gpid: Gpid, next_decree: int) -> bool:
        self.joined += 1
        return next_decree > self.primary.committed

    def check_equal(self) -> None:
        """The learner has what the primary has, and its disk says whose records count."""
        replica, primary = self.replica, self.primary
        assert replica.engine is not None
        assert not replica.closed
        assert replica.engine.state() == primary.engine.state()
        assert rows_of(replica.engine) == rows_of(primary.engine)
        assert replica.decree == primary.committed
        manifest = self.directory.manifest(GPID)
        assert manifest.incarnation == replica.incarnation == self.log._index.incarnation(GPID)
        self.log._index.check()


def play(
    scenario: Callable[[World, Node, Node], Coroutine[Any, Any, T]],
    *,
    seed: int = 1,
    worker_us: tuple[int, int] = (5, 50),
) -> T:
    """Run a test on two machines with quick disks."""
    settled: dict[str, Any] = {"worker_us": worker_us, "worker_slow": 0.0, "wall_offset_us": 0}
    with World(seed, disk=SimulatedDisk, **settled) as world:
        return world.run(scenario(world, world.node("primary"), world.node("learner")))


async def primary_of(node: Node, **teaching: Any) -> Primary:
    life = node.spawn()
    return await life.task(Primary(life).start(**teaching))


async def student_of(node: Node, **learner: Any) -> Student:
    life = node.spawn()
    return await life.task(Student(life).start(page_bytes=700, **learner))


async def learn(student: Student, primary: Primary) -> Any:
    wire = student.wire(primary)
    await student.life.task(student.learn())
    return wire
