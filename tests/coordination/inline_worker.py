"""A worker without a thread: the work is done in a later turn of the loop, one after another."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["InlineWorker"]

T = TypeVar("T")


class InlineWorker:
    """Keeps the order of real workers, and lets a test see every turn."""

    def __init__(self) -> None:
        self._queue: deque[tuple[Callable[[], Any], Callable[..., Any]]] = deque()

    @property
    def pending(self) -> int:
        return len(self._queue)

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], Any]
    ) -> None:
        self._queue.append((work, done))
        asyncio.get_running_loop().call_soon(self._do)

    async def run(self, work: Callable[[], T]) -> T:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

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
        await self.run(lambda: None)

    def _do(self) -> None:
        work, done = self._queue.popleft()
        result: Any = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to the caller
            failure = error
        asyncio.get_running_loop().call_soon(done, result, failure)
