"""A whole cluster in one thread, in virtual time, from one seed.

    world = World(seed)
    server = world.node("server")
    server.start(serve)              # `serve(life)` runs as the main task of a process
    ...
    server.crash()                   # power cut; or crash(power=False) for kill -9
    world.run(main())

A `Node` is a machine: a name, an address, a disk. A `Life` is one process on it, from `start` to a
crash or its own end, and holds the seam objects that production code is given: clock, network,
disk, workers, chance. When the life ends, all of them are dead for ever: whatever is left of its
code, a `finally:` block most of all, meets `NodeDead` and changes nothing. Its tasks are cancelled,
its timers and callbacks never run.

Everything that is drawn comes from the seed by purpose, so that a new draw in one place does not
change all others. `world.options` tells what the seed chose; print it with a failure.
"""

import asyncio
import contextvars
import gc
import hashlib
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, fields, replace
from random import Random
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from tests.simulation.errors import NodeDead
from tests.simulation.loop import OWNER, Owner, SimulationLoop, Trace
from tests.simulation.network import Endpoint, NetworkOptions, SimulatedNetwork

__all__ = [
    "CrashableDisk",
    "Life",
    "Node",
    "SimulatedClock",
    "SimulatedWorker",
    "World",
    "WorldOptions",
]

T = TypeVar("T")

_WALL_START_US: Final = 1_700_000_000_000_000
# A leftover task that still waits after being cancelled so often swallows cancellation.
_CANCELLATIONS_MAX: Final = 5


@dataclass(frozen=True)
class WorldOptions:
    """What the seed chose for a run; times are in microseconds."""

    network: NetworkOptions
    # The chance that the callbacks of one turn are mixed.
    shuffle: float = 1.0
    turn_us_max: int = 5
    # A worker begins so long after it could, and its answer takes as long again.
    worker_us: tuple[int, int] = (5, 500)
    # The chance that a piece of work takes up to `worker_slow_us` instead.
    worker_slow: float = 0.01
    worker_slow_us: int = 50_000
    clock_drift_ppm: int = 200
    wall_offset_us: int = 500_000

    @classmethod
    def draw(cls, random: Random) -> "WorldOptions":
        """Another world for each seed."""
        return cls(
            network=NetworkOptions.draw(random),
            shuffle=random.choice([0.0, 0.3, 1.0, 1.0]),
            turn_us_max=random.choice([0, 5, 50]),
            worker_us=random.choice([(0, 0), (5, 500), (1_000, 20_000)]),
            worker_slow=random.choice([0.0, 0.01, 0.1]),
            worker_slow_us=random.choice([50_000, 2_000_000]),
            clock_drift_ppm=random.choice([0, 200, 5_000]),
            wall_offset_us=random.choice([0, 500_000, 3_600_000_000]),
        )

    def __str__(self) -> str:
        own = [f"{item.name}={getattr(self, item.name)}" for item in fields(self)[1:]]
        net = [f"{item.name}={getattr(self.network, item.name)}" for item in fields(self.network)]
        return " ".join([*own, *net])


class CrashableDisk(Protocol):
    """What a node needs of its disk beyond `pegaskv.storage.disk.Disk`."""

    @property
    def dead(self) -> bool:
        """Whether the process of this disk has ended, perhaps by a fault planned in the disk."""
        ...

    def kill(self) -> None:
        """From now on every call, on open files too, raises NodeDead; nothing is lost."""
        ...

    def power_cut(self) -> None:
        """`kill`, and what was not synced may be lost; a killed disk can be cut too."""
        ...

    def reborn(self) -> "CrashableDisk":
        """The same disk, as the next process sees it."""
        ...


class World:
    """One simulated run."""

    def __init__(
        self,
        seed: int,
        *,
        options: WorldOptions | None = None,
        disk: Callable[[Random], CrashableDisk] | None = None,
        trace_lines: int = 0,
        **overrides: Any,
    ) -> None:
        self.seed = seed
        self.options = replace(options or WorldOptions.draw(self.random("options")), **overrides)
        self.trace = Trace(trace_lines)
        self.trace.add(f"{seed} {self.options}")
        self.loop = SimulationLoop(
            self.random("order"),
            self.trace,
            shuffle=self.options.shuffle,
            turn_us_max=self.options.turn_us_max,
        )
        self.network = SimulatedNetwork(self.loop, self.random("network"), self.options.network)
        self.nodes: dict[str, Node] = {}
        self._make_disk = disk

    def random(self, purpose: str) -> Random:
        """A generator of its own for each purpose; the same name gives the same numbers."""
        digest = hashlib.blake2b(f"{self.seed} {purpose}".encode(), digest_size=16).digest()
        return Random(int.from_bytes(digest))

    def node(self, name: str) -> "Node":
        """A new machine."""
        assert name not in self.nodes, f"there is a node {name} already"
        disk = self._make_disk(self.random(f"disk {name}")) if self._make_disk else None
        node = self.nodes[name] = Node(self, name, disk)
        return node

    @property
    def now_ms(self) -> int:
        """Virtual milliseconds since the world began."""
        return self.loop.now_us // 1_000

    async def sleep_ms(self, milliseconds: int) -> None:
        """Let so much virtual time pass."""
        await asyncio.sleep(milliseconds / 1_000)

    async def until(
        self, condition: Callable[[], bool], *, limit_ms: int = 60_000, what: str = "the condition"
    ) -> None:
        """Return when `condition()` holds; fail when so much virtual time has passed first."""
        end_ms = self.now_ms + limit_ms
        while not condition():
            assert self.now_ms < end_ms, f"{what} did not come true within {limit_ms} ms"
            await self.sleep_ms(1)

    def run(self, main: Coroutine[Any, Any, T], *, limit_ms: int = 600_000) -> T:
        """Run until `main` ends; raises its error, `Deadlock`, `TimeLimit` or a problem that
        asyncio would only log. Each comes with the seed and the options.
        """
        self.loop.limit_us = self.loop.now_us + limit_ms * 1_000
        collected = gc.isenabled()
        gc.disable()
        try:
            result = self.loop.run_until_complete(self._main(main))
            self.check()
        except BaseException as error:
            error.add_note(f"seed {self.seed}: {self.options}")
            raise
        finally:
            if collected:
                gc.enable()
        return result

    def check(self) -> None:
        """Assert that nothing failed where nobody looked; each problem is told once."""
        problems, self.loop.problems = self.loop.problems, []
        assert not problems, "\n".join(problems)

    def digest(self) -> str:
        """The hash of all that happened until now."""
        return self.trace.digest()

    def close(self) -> None:
        """End all lives and tasks, and the loop; fails if a task cannot be ended."""
        if self.loop.is_closed():
            return
        for node in self.nodes.values():
            node.crash(power=False)
        self.loop.limit_us = None
        for _ in range(_CANCELLATIONS_MAX):
            left = self.loop.tasks()
            if not left:
                break
            for task in left:
                task.cancel()
            self.loop.run_until_complete(self._settle())
        left = self.loop.tasks()
        report = self.loop.describe()
        for task in left:
            # So that asyncio does not complain of it a second time.
            task._log_destroy_pending = False
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()
        assert not left, f"these tasks swallow their cancellation {report}"
        self.check()

    def __enter__(self) -> "World":
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None and not hasattr(error, "__notes__"):
            error.add_note(f"seed {self.seed}: {self.options}")
        try:
            self.close()
        except AssertionError as left:
            if error is None:
                raise
            error.add_note(str(left))

    async def _main(self, main: Coroutine[Any, Any, T]) -> T:
        # Awaited, not returned, so that the main task has a name of its own in a report.
        return await main

    async def _settle(self) -> None:
        for _ in range(20):
            await self.sleep_ms(1)


class Node:
    """A machine: it stays, its lives come and go."""

    def __init__(self, world: World, name: str, disk: CrashableDisk | None) -> None:
        self.world = world
        self.name = name
        self.host = world.network.add_host(name)
        self.disk = disk
        self.life: Life | None = None
        self.lives = 0
        random = world.random(f"clock {name}")
        options = world.options
        self._clock_random = random
        self._rate_ppm = random.randint(-options.clock_drift_ppm, options.clock_drift_ppm)
        self._wall_offset_us = random.randint(-options.wall_offset_us, options.wall_offset_us)
        self._boot_us = random.randrange(10**12)

    @property
    def address(self) -> str:
        """Where others find it."""
        return self.host.address

    @property
    def alive(self) -> bool:
        """Whether a process runs."""
        return self.life is not None and self.life.alive

    def start(
        self, main: "Callable[[Life], Coroutine[Any, Any, Any]]", *, may_fail: bool = False
    ) -> "Life":
        """Start a process whose main task is `main(life)`; when it returns, the process exits.

        An error of `main` is a problem of the world unless it `may_fail`.
        """
        assert not self.alive, f"{self.name} runs already"
        self.lives += 1
        if self.disk is not None and self.disk.dead:
            self.disk = self.disk.reborn()
        self.world.network.power_on(self.host)
        self.world.trace.add(f"{self.world.loop.now_us} start {self.name} {self.lives}")
        life = self.life = Life(self, self.lives)
        life.begin(main, may_fail=may_fail)
        return life

    def spawn(self) -> "Life":
        """Start a process without a main task: for a test that plays the process itself."""

        async def idle(life: Life) -> None:
            await life.world.loop.create_future()

        return self.start(idle)

    def crash(self, *, power: bool = True) -> None:
        """End the process at this very point: with the machine's power, or by kill -9 alone.

        When no process runs, the power can still be cut, and the page cache is lost with it.
        """
        self.world.trace.add(f"{self.world.loop.now_us} crash {self.name} {power}")
        if self.life is not None and self.life.alive:
            self.life.end(power=power)
        if power:
            self.host.powered = False
            if self.disk is not None:
                self.disk.power_cut()
            # CLOCK_BOOTTIME begins anew with the machine.
            self._boot_us = self._clock_random.randrange(10**9) - self.world.loop.now_us

    def stall(self) -> None:
        """Stop the process as SIGSTOP does: its kernel goes on, none of its code runs."""
        assert self.life is not None
        self.life.stalled = True

    def resume(self) -> None:
        """Let a stalled process go on; all that it missed is ready at once."""
        assert self.life is not None
        self.life.resume()

    def jump_wall(self, microseconds: int) -> None:
        """Set the wall clock forth, or back; monotonic time takes no part."""
        self._wall_offset_us += microseconds

    def monotonic_us(self) -> int:
        """This machine's CLOCK_BOOTTIME."""
        now_us = self.world.loop.now_us
        return self._boot_us + now_us + now_us * self._rate_ppm // 1_000_000

    def wall_us(self) -> int:
        """This machine's wall clock."""
        now_us = self.world.loop.now_us
        drifted = now_us + now_us * self._rate_ppm // 1_000_000
        return _WALL_START_US + self._wall_offset_us + drifted

    def virtual_s(self, milliseconds: int) -> float:
        """How long the world takes until this machine's clock has gone on so far."""
        microseconds = -(-milliseconds * 1_000_000_000 // (1_000_000 + self._rate_ppm))
        return microseconds / 1_000_000


class Life(Owner):
    """One process of a node, and all that it may touch."""

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.world = node.world
        self.number = number
        self.name = f"{node.name}/{number}"
        self.alive = True
        self.stalled = False
        self.error: BaseException | None = None
        self.context = contextvars.copy_context()
        self.context.run(OWNER.set, self)
        self.clock = SimulatedClock(self)
        self.network = Endpoint(self.world.network, node.host, self)
        self.disk: Any = node.disk
        self.ended = self.world.loop.create_future()
        self._kept: list[asyncio.Handle] = []
        self._cancellations = 0
        self._reaped = False
        self._workers = 0

    def worker(self, name: str = "") -> "SimulatedWorker":
        """A new worker."""
        self.check_alive()
        self._workers += 1
        return SimulatedWorker(self, f"{name or 'worker'} {self._workers}")

    def random(self, purpose: str) -> Random:
        """A generator of this process."""
        return self.world.random(f"{self.name} {purpose}")

    def task(self, coroutine: Coroutine[Any, Any, T], *, name: str = "") -> asyncio.Task[T]:
        """Run a coroutine as a task of this process; for tests that act in its name."""
        self.check_alive()
        return self.world.loop.create_task(
            coroutine, name=name or None, context=self.context.copy()
        )

    def check_alive(self) -> None:
        """Raise NodeDead when the life has ended."""
        if not self.alive:
            raise NodeDead(self.name)

    def begin(self, main: "Callable[[Life], Coroutine[Any, Any, Any]]", *, may_fail: bool) -> None:
        """Start the main task."""
        self.task(self._run(main, may_fail=may_fail), name=f"{self.name} main")

    def end(self, *, power: bool) -> None:
        """Make everything dead; the tasks are cancelled and unwind into nothing."""
        assert self.alive
        self.alive = False
        if self.disk is not None:
            self.disk.kill()
        self.world.network.end_life(self, self.node.host, power=power)
        # What its tasks need to end goes on, see `admits`.
        self.stalled = False
        self._readmit()
        self._reap()
        if not self.ended.done():
            self.ended.set_result(None)

    def resume(self) -> None:
        """Go on after a stall."""
        self.stalled = False
        self._readmit()

    def admits(self, handle: asyncio.Handle) -> bool:
        """Whether a callback of this process may run now."""
        if self.stalled:
            self._kept.append(handle)
            return False
        # A cancelled task ends by steps and by callbacks of futures, not by timers.
        return self.alive or not (self._reaped or isinstance(handle, asyncio.TimerHandle))

    def ran(self) -> None:
        """A callback of this process has run: perhaps the disk killed it in the middle."""
        if self.alive and self.disk is not None and self.disk.dead:
            self.node.crash(power=False)

    def _readmit(self) -> None:
        kept, self._kept = self._kept, []
        for handle in kept:
            self.world.loop.readmit(handle)

    def _reap(self) -> None:
        left = self.world.loop.tasks(self)
        if not left:
            self._reaped = True
            return
        self._cancellations += 1
        if self._cancellations > _CANCELLATIONS_MAX:
            names = ", ".join(task.get_name() for task in left)
            self.world.loop.problems.append(f"dead, but cancelled in vain: {names}")
            return
        here = asyncio.current_task(self.world.loop)
        for task in left:
            if task is not here:
                task.cancel()
        self.world.loop.call_later(0.001, self._reap, context=contextvars.Context())

    async def _run(
        self, main: "Callable[[Life], Coroutine[Any, Any, Any]]", *, may_fail: bool
    ) -> None:
        try:
            await main(self)
        except Exception as error:  # noqa: BLE001 - it is kept, and a problem of the world
            self.error = error
            if not may_fail and self.alive:
                self.world.loop.problems.append(f"{self.name} ended with {error!r}")
        finally:
            # The process exits: what it left running goes with it.
            if self.alive:
                self.end(power=False)


class SimulatedClock:
    """A node's clocks: its own rate and offset, and a wall clock that may jump."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._node = life.node

    def monotonic_ms(self) -> int:
        self._life.check_alive()
        return self._node.monotonic_us() // 1_000

    def wall_us(self) -> int:
        self._life.check_alive()
        return self._node.wall_us()

    async def sleep_ms(self, milliseconds: int) -> None:
        self._life.check_alive()
        await asyncio.sleep(self._node.virtual_s(milliseconds))
        self._life.check_alive()

    def timeout_ms(self, milliseconds: int) -> asyncio.Timeout:
        self._life.check_alive()
        return asyncio.timeout(self._node.virtual_s(milliseconds))


class SimulatedWorker:
    """Runs work on the loop, one piece after another, each after a delay drawn from the seed.

    Between the work and its `done` there is a delay too: a crash may come in between, and then
    the effect is there and nobody was told.
    """

    def __init__(self, life: Life, name: str) -> None:
        self.name = name
        self._life = life
        self._loop = life.world.loop
        self._options = life.world.options
        self._random = life.random(name)
        self._queue: deque[tuple[Callable[[], Any], Callable[..., Any]]] = deque()
        self._running = False
        self._closed = False
        self._idle: list[asyncio.Future[None]] = []
        # A slow disk, by a test: every piece of work takes at least so long.
        self.least_us = 0

    @property
    def pending(self) -> int:
        return len(self._queue)

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], Any]
    ) -> None:
        self._life.check_alive()
        if self._closed:
            raise RuntimeError(f"worker {self.name!r} is closed")
        self._queue.append((work, done))
        if not self._running:
            self._running = True
            self._later(self._work)

    async def run(self, work: Callable[[], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(work, done)
        return await future

    async def close(self) -> None:
        self._life.check_alive()
        self._closed = True
        while self._queue:
            waiter = self._loop.create_future()
            self._idle.append(waiter)
            await waiter

    def _later(self, function: Callable[..., Any], *arguments: Any) -> None:
        delay_us = self._random.randint(*self._options.worker_us)
        if self._options.worker_slow and self._random.random() < self._options.worker_slow:
            delay_us = self._random.randint(delay_us, self._options.worker_slow_us)
        delay_us = max(delay_us, self.least_us)
        self._loop.call_at_us(
            self._loop.now_us + delay_us, function, *arguments, context=self._life.context
        )

    def _work(self) -> None:
        work, done = self._queue[0]
        result: Any = None
        failure: BaseException | None = None
        try:
            result = work()
        except NodeDead:
            # The crash came in the middle of the work: nobody hears of it.
            return
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
            failure = error
        if self._life.alive:
            self._later(self._finish, done, result, failure)

    def _finish(self, done: Callable[..., Any], result: Any, error: BaseException | None) -> None:
        self._queue.popleft()
        if self._queue:
            self._later(self._work)
        else:
            self._running = False
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle.clear()
        done(result, error)
