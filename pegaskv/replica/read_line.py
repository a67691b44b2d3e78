"""Range reads that wait for their thread: in turns of their connections, and never far ahead.

The thread may read faster than the loop sends. So it gets two reads at a time, and pages that
nobody has sent do not pile up: neither in memory, nor in one turn of the loop. And whoever
has hundreds of scans under way waits for them himself.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from pegaskv.net.connection import ServerConnection
from pegaskv.runtime.worker import Worker

__all__ = ["ReadLine"]

# One that is read while the other one is sent.
_UNDER_WAY_MAX: Final = 2

_Work = Callable[[], Any]
_Done = Callable[[Any, BaseException | None], None]


class ReadLine:
    """The reads of one server that want the worker's thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lines: dict[ServerConnection, deque[tuple[_Work, _Done]]] = {}
        self._under_way = 0
        self._waiting = 0
        self._stopped = False

    @property
    def pending(self) -> int:
        """How many reads wait, and whatever else the thread has to do."""
        return self._waiting + self._worker.pending

    def submit(self, connection: ServerConnection, work: _Work, done: _Done) -> None:
        """Run `work` in the thread when it is the connection's turn; then `done` on the loop."""
        if self._stopped:
            return
        self._waiting += 1
        self._lines.setdefault(connection, deque()).append((work, done))
        self._go_on()

    def stop(self) -> None:
        """Give the thread nothing more, since it is about to end: who waits has gone by now."""
        self._stopped = True
        self._lines.clear()
        self._waiting = 0

    def _go_on(self) -> None:
        while self._lines and self._under_way < _UNDER_WAY_MAX:
            connection = next(iter(self._lines))
            line = self._lines.pop(connection)
            work, done = line.popleft()
            if line:
                # Behind the others.
                self._lines[connection] = line
            self._waiting -= 1
            self._under_way += 1
            self._worker.submit(work, partial(self._ended, done))

    def _ended(self, done: _Done, result: Any, error: BaseException | None) -> None:
        self._under_way -= 1
        self._go_on()
        done(result, error)
