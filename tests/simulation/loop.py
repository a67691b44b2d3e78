"""An asyncio loop in which time is a number and chance is a seed.

Nothing here waits: when no callback is ready the clock jumps to the next timer. Callbacks that are
ready in the same turn run in an order drawn from the seed, which is stricter than asyncio (it keeps
theirs): who relies on the order between two tasks is found out. When nothing is ready and nothing
is scheduled, nobody can ever wake the main task; that is reported with the place where each waits.

Every callback that runs is written into a running hash, so that two runs can be compared by one
number. Time is an integer of microseconds; the floats that asyncio wants are made from it.

Each callback has an owner, the life of a node, carried by a context variable from whoever scheduled
it. The owner may refuse it: a dead node runs nothing, a stalled one later.
"""

import asyncio
import contextvars
import functools
import gc
import heapq
import threading
from collections.abc import Callable, Coroutine, Generator
from random import Random
from typing import Any, Final, Protocol, TypeVar

import xxhash

from tests.simulation.errors import NodeDead

__all__ = ["OWNER", "Deadlock", "Owner", "SimulationLoop", "TimeLimit", "Trace"]

T = TypeVar("T")

# Young garbage is collected each time so many callbacks have run, never when the collector feels
# like it: a finalizer could schedule something.
_COLLECT_EVERY: Final = 50_000


class Owner(Protocol):
    """Whom a callback belongs to."""

    name: str
    alive: bool

    def admits(self, handle: asyncio.Handle) -> bool:
        """Whether the callback may run now; if not, the owner has kept or dropped it."""
        ...

    def ran(self) -> None:
        """A callback of this owner has run."""
        ...


OWNER: Final[contextvars.ContextVar[Owner | None]] = contextvars.ContextVar("owner", default=None)


class Deadlock(AssertionError):
    """Nothing is scheduled, and the main task has not ended."""


class TimeLimit(AssertionError):
    """The virtual time of the run is over, and the main task has not ended."""


class SimulatedTask(asyncio.Task[T]):
    """A task that knows its number in the loop and its owner."""

    number: int
    owner: Owner | None


class Trace:
    """A running hash of all that happened, and the last lines of it in words."""

    def __init__(self, lines_max: int = 0) -> None:
        self._hash = xxhash.xxh3_128()
        self.count = 0
        self.lines: list[str] = []
        self._lines_max = lines_max

    def add(self, line: str) -> None:
        self.count += 1
        self._hash.update(line.encode("utf-8", "surrogatepass"))
        self._hash.update(b"\n")
        if self._lines_max:
            self.lines.append(line)
            if len(self.lines) > 2 * self._lines_max:
                del self.lines[: -self._lines_max]

    def digest(self) -> str:
        return self._hash.hexdigest()


class SimulationLoop(asyncio.BaseEventLoop):
    """Runs callbacks in virtual time.

    `shuffle` is the chance that the callbacks of one turn are mixed; `turn_us_max` bounds what one
    turn costs, so that a task that spins for ever meets the time limit.
    """

    def __init__(
        self, random: Random, trace: Trace, *, shuffle: float = 1.0, turn_us_max: int = 5
    ) -> None:
        super().__init__()
        # Debug mode finds slow callbacks and foreign threads; there are none of either here.
        self.set_debug(False)
        self.now_us = 1_000_000
        self.limit_us: int | None = None
        self.trace = trace
        self.problems: list[str] = []
        self._random = random
        self._shuffle = shuffle
        self._turn_us_max = turn_us_max
        self._thread_of_loop = threading.get_ident()
        self._task_number = 0
        # In order of creation. Weak sets of tasks, as asyncio has, differ from run to run.
        self._all: list[SimulatedTask[Any]] = []
        self._purge_at = 64

    def __del__(self, _warn: Any = None) -> None:
        """There is nothing that an unclosed loop could leak, so asyncio need not warn of it."""

    def time(self) -> float:
        return self.now_us / 1_000_000

    def tasks(self, owner: Owner | None = None) -> list[SimulatedTask[Any]]:
        """The tasks that have not ended, oldest first; with `owner`, only its own."""
        return [
            task for task in self._all if not task.done() and (owner is None or task.owner is owner)
        ]

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        assert not self.is_closed()
        self._task_number += 1
        number = self._task_number
        # The default names of asyncio count all tasks of the process, whatever ran before.
        task = SimulatedTask(coro, loop=self, name=name or f"task {number}", context=context)
        task.number = number
        task.owner = OWNER.get() if context is None else context.get(OWNER)
        if len(self._all) > self._purge_at:
            self._all = [old for old in self._all if not old.done()]
            self._purge_at = max(64, 2 * len(self._all))
        self._all.append(task)
        return task

    def run_in_executor(
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run `func` on the loop, a little later."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except BaseException as error:  # noqa: BLE001 - it belongs to who awaits the future
                future.set_exception(error)
            else:
                future.set_result(result)

        self.call_later(self._random.randrange(1, 500) / 1_000_000, run)
        return future

    def call_soon_threadsafe(
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        assert threading.get_ident() == self._thread_of_loop, "a real thread in a simulation"
        return self.call_soon(callback, *args, context=context)

    def call_at_us(
        self,
        when_us: int,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """`call_at` by the integer clock."""
        return self.call_at(when_us / 1_000_000, callback, *args, context=context)

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("a real connection in a simulation")

    async def create_server(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("a real server in a simulation")

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        raise AssertionError("a real look-up in a simulation")

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what asyncio would log: a run with problems has failed.

        What a dead node's leftovers run into is no problem.
        """
        error = context.get("exception")
        handle: Any = context.get("handle")
        where = context.get("task") or context.get("future") or handle or ""
        owner = handle._context.get(OWNER) if handle is not None else getattr(where, "owner", None)
        if isinstance(error, NodeDead) or (owner is not None and not owner.alive):
            return
        self.problems.append(f"{context.get('message')}: {error!r} {where}".strip())

    def describe(self) -> str:
        """Where each task waits, one a line."""
        lines = [f"at {self.now_us} us"]
        for task in self._all:
            if not task.done():
                owner = task.owner.name if task.owner else "-"
                places = " > ".join(_waiting_places(task))
                lines.append(f"  {task.number} {task.get_name()} ({owner}): {places}")
        return "\n".join(lines)

    def _run_once(self) -> None:
        self._forget_cancelled_timers()
        timers: list[asyncio.TimerHandle] = self._scheduled
        ready = self._ready
        if not ready and not self._stopping:
            if not timers:
                raise Deadlock(f"nothing is scheduled; the tasks wait {self.describe()}")
            self.now_us = max(self.now_us, _microseconds(timers[0]))
        elif self._turn_us_max:
            self.now_us += self._random.randint(0, self._turn_us_max)
        if self.limit_us is not None and self.now_us > self.limit_us:
            raise TimeLimit(f"the time of the run is over {self.describe()}")
        while timers and _microseconds(timers[0]) <= self.now_us:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            ready.append(timer)
        turn: list[asyncio.Handle] = list(ready)
        ready.clear()
        if len(turn) > 1 and self._random.random() < self._shuffle:
            self._random.shuffle(turn)
        for handle in turn:
            if not handle._cancelled:
                self._run_handle(handle)

    def _run_handle(self, handle: asyncio.Handle) -> None:
        owner: Owner | None = handle._context.get(OWNER)
        if owner is not None and not owner.admits(handle):
            return
        if self.trace.count % _COLLECT_EVERY == 0:
            gc.collect(1)
        name = owner.name if owner is not None else "-"
        self.trace.add(f"{self.now_us} {name} {self._label(handle)}")
        handle._run()
        if owner is not None:
            owner.ran()

    def readmit(self, handle: asyncio.Handle) -> None:
        """Make a callback ready that its owner kept back."""
        self._ready.append(handle)

    def _label(self, handle: asyncio.Handle) -> str:
        callback = handle._callback
        while isinstance(callback, functools.partial):
            callback = callback.func
        task = getattr(callback, "__self__", None)
        if isinstance(task, SimulatedTask):
            return f"task {task.number} {task.get_name()}"
        name: str = getattr(callback, "__qualname__", type(callback).__qualname__)
        return name

    def _forget_cancelled_timers(self) -> None:
        timers: list[asyncio.TimerHandle] = self._scheduled
        cancelled: int = self._timer_cancelled_count
        if len(timers) > 100 and cancelled * 2 > len(timers):
            for timer in timers:
                if timer.cancelled():
                    timer._scheduled = False
            timers[:] = [timer for timer in timers if not timer.cancelled()]
            heapq.heapify(timers)
            self._timer_cancelled_count = 0
        while timers and timers[0].cancelled():
            self._timer_cancelled_count -= 1
            heapq.heappop(timers)._scheduled = False


def _waiting_places(task: asyncio.Task[Any]) -> list[str]:
    """The coroutines from the task's own to the innermost, each with its line."""
    places = []
    inner: Any = task.get_coro()
    while inner is not None and getattr(inner, "cr_frame", None) is not None:
        places.append(f"{inner.cr_frame.f_code.co_qualname}:{inner.cr_frame.f_lineno}")
        inner = inner.cr_await
    return places


def _microseconds(timer: asyncio.TimerHandle) -> int:
    return round(timer.when() * 1_000_000)
