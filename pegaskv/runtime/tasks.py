"""The owner of every background task.

A task that nobody owns dies in silence, or is collected while it runs. So tasks
are started here and nowhere else: a scope holds its tasks, cancels them when it
ends and waits until they have ended. A crash of one ends the whole scope, and
is seen: `__aexit__` or `close` raises it with the task's name in a note.

Cancellation is never swallowed. A scope that is cancelled passes it on to its
tasks, waits for all of them, and only then lets it through.

Two ways to hold one. A block waits for its tasks, as a nursery does:

    async with TaskScope("replica 3.0") as scope:
        scope.start("machine", drive(machine, mailbox, perform))
        scope.keep("beacon", send_beacon, pause=lambda: clock.sleep_ms(1_000))

An object that lives long keeps a scope as a member and ends it by `close`; then
`on_crash` tells at once what otherwise only `close` would raise.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["TaskScope"]

T = TypeVar("T")


class TaskScope:
    """Owns tasks: they end with it, and their crash ends it.

    Invariant: once `closed`, every task that is left has been cancelled, exactly once.
    """

    def __init__(
        self, name: str, *, on_crash: Callable[[BaseException], Any] | None = None
    ) -> None:
        self.name = name
        self._on_crash = on_crash
        # A dict keeps the order of starting; that of a set would differ from run to run.
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._crash: BaseException | None = None
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []
        # The task that is inside the `async with` block at the moment, and whether we cancelled it.
        self._host: asyncio.Task[Any] | None = None
        self._host_cancelled = False

    @property
    def closed(self) -> bool:
        """Whether nothing can be started any more."""
        return self._closed

    @property
    def running(self) -> int:
        """How many tasks have not ended."""
        return len(self._tasks)

    @property
    def crash(self) -> BaseException | None:
        """The first error that a task ended with."""
        return self._crash

    def start(self, name: str, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `coroutine` as a task of this scope.

        Raises RuntimeError when the scope is closed; the coroutine is then closed unrun.
        """
        if self._closed:
            coroutine.close()
            raise RuntimeError(f"task {name!r} was not started: scope {self.name!r} is closed")
        task = asyncio.get_running_loop().create_task(coroutine, name=f"{self.name}: {name}")
        self._tasks[task] = None
        task.add_done_callback(self._on_ended)
        return task

    def keep(
        self,
        name: str,
        function: Callable[[], Awaitable[Any]],
        *,
        pause: Callable[[], Awaitable[Any]],
    ) -> asyncio.Task[None]:
        """Run `function`, then `pause`, again and again until cancelled."""
        return self.start(name, _repeat(function, pause))

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended; a second call only waits.

        Raises the first crash, unless `on_crash` was told of it.
        """
        assert asyncio.current_task() not in self._tasks, "a task would wait for its own end"
        self._cancel()
        cancelled = await self._drained()
        if cancelled is not None:
            raise cancelled
        if self._crash is not None and self._on_crash is None:
            raise self._crash

    async def __aenter__(self) -> "TaskScope":
        assert self._host is None, "the scope is entered already"
        self._host = asyncio.current_task()
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        host, self._host = self._host, None
        if self._host_cancelled:
            # The cancellation that ended the block was ours: it must not count as the caller's.
            assert host is not None
            host.uncancel()
        if error is not None:
            self._cancel()
        cancelled = await self._drained()
        self._closed = True
        if self._crash is None:
            if cancelled is not None and error is None:
                raise cancelled
            return
        if error is None or isinstance(error, asyncio.CancelledError):
            raise self._crash
        error.add_note(f"and in the scope: {self._crash!r}")

    def _on_ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self._on_error(task.get_name(), error)
        if not self._tasks:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._waiters.clear()

    def _on_error(self, name: str, error: BaseException) -> None:
        if self._crash is not None:
            self._crash.add_note(f"task {name!r} failed after it: {error!r}")
            return
        error.add_note(f"in task {name!r}")
        self._crash = error
        self._cancel()
        if self._host is not None:
            self._host_cancelled = True
            self._host.cancel()
        if self._on_crash is not None:
            self._on_crash(error)

    def _cancel(self) -> None:
        # Once only: a second cancellation would hit a task in the middle of its clean-up.
        if self._closed:
            return
        self._closed = True
        for task in list(self._tasks):
            task.cancel()

    async def _drained(self) -> asyncio.CancelledError | None:
        """Wait for the last task; being cancelled meanwhile cancels them and is returned."""
        cancelled = None
        while self._tasks:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError as error:
                cancelled = error
                self._cancel()
        return cancelled


async def _repeat(
    function: Callable[[], Awaitable[Any]], pause: Callable[[], Awaitable[Any]]
) -> None:
    while True:
        await function()
        await pause()
