"""The servers of a replicated cluster in lives of simulated nodes: production compositions.

A `Machine` is a node with what its process is made of; it is started, crashed, stopped and
supervised: a process that ended by itself (its log has failed) is started again after a while,
as a supervisor would do it. What its disk does wrong is asked for here too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final, Protocol

from pegaskv.base.errors import PegasKVError
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.lease.options import LeaseOptions
from pegaskv.meta.options import MetaOptions
from pegaskv.replica.options import ReplicaOptions
from pegaskv.server.config import Config, MembershipOptions
from pegaskv.server.meta_server import MetaServer
from pegaskv.server.replica_server import ReplicaServer
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.memory import MemoryFactory
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.servers import tiny_log
from tests.simulation.world import Life, Node, SimulatedWorker, World

__all__ = [
    "DATA",
    "PORT",
    "Machine",
    "Settings",
    "membership_of",
    "meta_machine",
    "replica_machine",
    "stub_of",
]

PORT: Final = 34_601
DATA: Final = Path("/data")
_SUPERVISOR_MS: Final = 700


@dataclass(frozen=True)
class Settings:
    """What of the servers' options a seed chooses."""

    log: LogOptions
    replica: ReplicaOptions
    meta: MetaOptions
    lease: LeaseOptions
    duplication: DuplicationOptions

    @classmethod
    def draw(cls, random: Random) -> "Settings":
        """Draw them."""
        return cls(
            tiny_log(random),
            ReplicaOptions(
                expiry_sweep_interval_ms=random.choice([500, 300_000]),
                os_sync_interval_ms=random.choice([20, 100, 2_000]),
            ),
            MetaOptions(
                default_replica_count=3,
                node_dead_ms=random.choice([6_000, 10_000]),
                replica_assign_delay_ms=random.choice([1_000, 8_000, 20_000]),
                learner_patience_ms=random.choice([5_000, 30_000]),
                balance_settle_ms=random.choice([2_000, 5_000]),
            ),
            LeaseOptions(),
            DuplicationOptions(),
        )


class Process(Protocol):
    """One process of a machine."""

    async def start(self) -> None:
        """Serve, or raise."""
        ...

    async def stop(self) -> None:
        """Stop as after SIGTERM."""
        ...


class Machine:
    """A node and the process that belongs on it. `make(life, on_fatal)` builds that."""

    def __init__(
        self,
        world: World,
        name: str,
        make: "Callable[[Machine, Life, Callable[[Any], Any]], Process]",
    ) -> None:
        self.world = world
        self.name = name
        self.node: Node = world.node(name)
        self.process: Any = None
        # Whether a process is wanted; else nobody starts it again.
        self.wanted = False
        # How often a process has ended by itself.
        self.failures = 0
        self.last_failure = ""
        self._make = make
        self._slow_us = 0
        self._workers: list[SimulatedWorker] = []
        self._stopping: Any = None
        self._supervised = False

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"{self.node.address}:{PORT}"

    @property
    def alive(self) -> bool:
        """Whether a process runs."""
        return self.node.alive

    @property
    def stalled(self) -> bool:
        """Whether its process stands still."""
        return self.node.life is not None and self.node.life.stalled

    @property
    def disk(self) -> SimulatedDisk:
        """The disk, as the present process sees it."""
        disk = self.node.disk
        assert isinstance(disk, SimulatedDisk)
        return disk

    def start(self) -> None:
        """Start a process; it comes back with what its disk kept."""
        self.wanted = True
        self._workers = []
        self.node.start(self._run)
        if not self._supervised:
            self._supervised = True
            self._look_again()

    def crash(self, *, power: bool) -> None:
        """kill -9, or the end of the machine's power."""
        self.wanted = False
        self.node.crash(power=power)

    def stop(self) -> None:
        """SIGTERM: the process hands over, stops and ends; nobody starts it again."""
        self.wanted = False
        if self.alive and self._stopping is not None and not self._stopping.done():
            self._stopping.set_result("asked")

    def wipe(self) -> None:
        """Put an empty disk into the machine, whose process has ended."""
        assert not self.alive
        self.node.disk = SimulatedDisk(self.world.random(f"new disk {self.name} {self.node.lives}"))

    def slow_down(self, least_us: int) -> None:
        """Let every piece of work of the disk take so long at least; 0 = as before."""
        self._slow_us = least_us
        for worker in self._workers:
            worker.least_us = least_us

    def fill_disk(self, *, left_bytes: int | None) -> None:
        """Leave so much room on the disk; None = as much as ever."""
        if left_bytes is None:
            self.disk.set_capacity(1 << 50)
        else:
            self.disk.set_capacity(self.disk._platter.named_bytes() + left_bytes)

    def fail_disk(self, after: int, fault: Fault) -> None:
        """Let one I/O go wrong."""
        self.disk.plan(after, fault)

    def worker(self, life: Life, name: str) -> SimulatedWorker:
        """A worker of this machine's present process."""
        worker = life.worker(name)
        worker.least_us = self._slow_us
        self._workers.append(worker)
        return worker

    async def _run(self, life: Life) -> None:
        stopping = self._stopping = life.world.loop.create_future()

        def on_fatal(error: Any) -> None:
            self.last_failure = str(error)
            if life.alive and "internal error" in str(error):
                self.world.loop.problems.append(f"{life.name}: {error}")
            if not stopping.done():
                stopping.set_result("failed")

        process = self.process = self._make(self, life, on_fatal)
        try:
            await process.start()
            if await stopping == "failed":
                self.failures += 1
        except (PegasKVError, OSError) as error:
            # A disk that is full or broken: the supervisor tries again.
            self.last_failure = str(error)
            self.failures += 1
        await process.stop()
        acceptor = getattr(process, "_acceptor", None)
        if acceptor is not None and acceptor.handler_failures:
            self.world.loop.problems.append(f"{life.name}: handlers have failed unexpectedly")

    def _look_again(self) -> None:
        """Start what has ended by itself."""
        if self.wanted and not self.alive:
            self.start()
        loop = self.world.loop
        loop.call_at_us(loop.now_us + _SUPERVISOR_MS * 1_000, self._look_again)


def _seams(machine: Machine, life: Life, on_fatal: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        "on_fatal": on_fatal,
        "clock": life.clock,
        "disk": life.disk,
        "network": life.network,
        "make_worker": lambda name: machine.worker(life, name),
        "random": life.random("server"),
        "process_id": life.number,
    }


def meta_machine(world: World, settings: Settings) -> Machine:
    """A machine with the production meta server."""

    def make(machine: Machine, life: Life, on_fatal: Callable[[Any], Any]) -> Process:
        config = Config(role="meta", meta=settings.meta, lease=settings.lease).with_server(
            listen=machine.address, http="none"
        )
        return MetaServer(config, DATA, **_seams(machine, life, on_fatal))

    return Machine(world, "meta", make)


def replica_machine(world: World, name: str, settings: Settings, metas: str) -> Machine:
    """A machine with a production replica server; engines are in memory, flushed to the disk."""

    def make(machine: Machine, life: Life, on_fatal: Callable[[Any], Any]) -> Process:
        config = Config(
            role="replica",
            replica=settings.replica,
            storage_log=settings.log,
            lease=settings.lease,
            duplication=settings.duplication,
            membership=MembershipOptions(metas),
        ).with_server(listen=machine.address, http="none")
        return ReplicaServer(
            config,
            DATA,
            engine_factory=MemoryFactory(life.disk, life.random("engine")),
            **_seams(machine, life, on_fatal),
        )

    return Machine(world, name, make)


def stub_of(machine: Machine) -> Any:
    """The replica server's stub, once its replicas were recovered; None before."""
    process = machine.process
    part = getattr(process, "_replicas", None)
    if part is None or not machine.alive:
        return None
    return part.stub if part.stub._front is not None else None


def membership_of(stub: Any) -> Any:
    """Who watches the members in a stub."""
    roles = getattr(stub, "_roles", None)
    return stub._membership if roles is None else roles.membership
