"""One thread beside the loop, for work that blocks.

A worker runs what it is given one after another and calls back on the loop. A
queue and `call_soon_threadsafe` are all there is: an executor with futures
costs more on the path of every synced write. A disk has at least two workers,
so that a sync never waits behind a scan.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

__all__ = ["ThreadWorker", "Worker"]

T = TypeVar("T")

# How often an idle thread looks whether the main thread still lives.
_ORPHAN_CHECK_S: Final = 1.0

_Done = Callable[[Any, BaseException | None], Any]


class Worker(Protocol):
    """Runs functions in order, off the loop; the simulation runs them inline, later."""

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], Any]
    ) -> None:
        """Run `work`; then, on the loop, `done(result, None)` or `done(None, error)`."""
        ...

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` and return its result or raise its error.

        Work that has started is never abandoned: cancelling the caller leaves it running.
        """
        ...

    @property
    def pending(self) -> int:
        """How many functions wait or run."""
        ...

    async def close(self) -> None:
        """Run all that was submitted, then end the thread."""
        ...


class ThreadWorker:
    """A worker with a thread of its own; made, used and closed on one loop.

    The thread is no daemon, since work that has begun must be finished; but when the main thread
    ends without `close`, this one ends too once all that was submitted has run.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.name = name
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], _Done] | None] = queue.SimpleQueue()
        self._pending = 0
        self._closed = False
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=False)
        self._thread.start()

    @property
    def pending(self) -> int:
        """How many functions wait or run."""
        return self._pending

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], Any]
    ) -> None:
        """Run `work` in the thread; then, on the loop, `done(result, None)` or `done(None, error)`.

        Raises RuntimeError when the worker is closed.
        """
        if self._closed:
            raise RuntimeError(f"worker {self.name!r} is closed")
        self._pending += 1
        self._queue.put((work, done))

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in the thread and return its result or raise its error.

        Cancelling the caller leaves the work running; its outcome is then dropped.
        """
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            elif isinstance(error, StopIteration):
                # A future refuses this one, and the caller would wait for ever.
                future.set_exception(RuntimeError("the work raised StopIteration"))
            else:
                future.set_exception(error)

        self.submit(work, done)
        return await future

    async def close(self) -> None:
        """Run all that was submitted, then end the thread; a second call only waits for that."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
        await self._ended.wait()
        # Its last call is made: this takes no time.
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                item = self._queue.get(timeout=_ORPHAN_CHECK_S)
            except queue.Empty:
                if threading.main_thread().is_alive():
                    continue
                item = None
            if item is None:
                self._call(self._ended.set)
                return
            work, done = item
            result: Any = None
            failure: BaseException | None = None
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
                failure = error
            self._call(self._finish, done, result, failure)
            # Hold nothing big while waiting for more.
            del item, work, done, result, failure

    def _finish(self, done: _Done, result: Any, error: BaseException | None) -> None:
        self._pending -= 1
        done(result, error)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            # The loop is closed: there is nobody left to tell.
            assert self._loop.is_closed()
