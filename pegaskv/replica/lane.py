"""Where large requests are worked at, a slice in each turn of the loop.

A request of thousands of rows takes milliseconds, and everybody waits while the loop is in
it. So it is cut into steps, and one step is made in each turn of the loop: of those who wait,
one after another, so that a single large request does not wait behind the many of somebody
else. Between steps for clients the loop rests while others call (`net.turns`). Requests under
one key (a connection, a stream of a duplication) are worked at in order.

How many wait is bounded by what connections may have under way.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Generator
from typing import Any, Final

from pegaskv.base.errors import Busy, InternalError, RequestError
from pegaskv.net.connection import ServerConnection

__all__ = ["SLICE_BYTES", "SLICE_ROWS", "Lane", "Steps"]

_log = logging.getLogger(__name__)

# What a step should take at most: about half a millisecond.
SLICE_ROWS: Final = 64
SLICE_BYTES: Final = 128 * 1024

Steps = Generator[None, None, None]

_ENDED: Final[Any] = object()

_Request = tuple[ServerConnection, int, Steps]


class Lane:
    """Steps of large requests, taken in turns.

    Invariant: while anything waits, one call is scheduled.
    """

    def __init__(self) -> None:
        self._waiting: dict[Any, deque[_Request]] = {}
        self.steps = 0

    def holds(self, key: Any) -> bool:
        """Whether something waits under `key`: what comes later has to wait behind it."""
        return key in self._waiting

    def begin(
        self, key: Any, connection: ServerConnection, request_id: int, steps: Steps, *, rows: int
    ) -> None:
        """Defer a request of `rows` rows, whose last step has to answer it.

        The first step of a small one is made here and now, and mostly is all of it.
        An error of a later step is the answer.
        """
        if rows > SLICE_ROWS:
            self.queue(key, connection, request_id, steps)
            return
        connection.in_flight += 1
        try:
            ended = next(steps, _ENDED) is _ENDED
        except BaseException:
            connection.in_flight -= 1
            raise
        if not ended:
            connection.in_flight -= 1
            self.queue(key, connection, request_id, steps)

    def queue(self, key: Any, connection: ServerConnection, request_id: int, steps: Steps) -> None:
        """Defer a request, and make all of its steps in later turns."""
        connection.defer()
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._step)
        self._waiting.setdefault(key, deque()).append((connection, request_id, steps))

    def _step(self) -> None:
        key, requests = next(iter(self._waiting.items()))
        connection, request_id, steps = requests[0]
        self.steps += 1
        connection.write_waiting()
        began_us = connection.pace.now_us()
        try:
            if connection.closed:
                # Nobody waits for it; what it has done stays done, as with any lost answer.
                steps.close()
                ended = True
            else:
                ended = next(steps, _ENDED) is _ENDED
        except Exception as error:  # noqa: BLE001 - a stranger's request ends nothing
            ended = True
            connection.finish(connection.error(request_id, _as_request_error(error)))
        # Now it is the others' turn.
        del self._waiting[key]
        if ended:
            requests.popleft()
        if requests:
            self._waiting[key] = requests
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._go_on, connection, began_us)
        if ended:
            connection.flush()

    def _go_on(self, connection: ServerConnection, began_us: int) -> None:
        """Make the next step, or rest before it if it and the last one are clients'."""
        # The tick that the last step has caused is over by now, and counts too.
        following = next(iter(self._waiting.values()))[0][0]
        both = connection.rests and following.rests
        rest_s = connection.pace.rest_s(began_us) if both else 0.0
        if rest_s:
            asyncio.get_running_loop().call_later(rest_s, self._step)
        else:
            self._step()


def _as_request_error(error: Exception) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return Busy("no memory for this request", details={"retry_after_ms": 200})
    _log.error("a step of a large request failed", exc_info=error)
    return InternalError(f"the request failed: {type(error).__name__}")
