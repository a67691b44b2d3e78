"""From signals to one stop event.

SIGTERM and SIGINT ask for a clean stop. After the first SIGINT the next one ends
the process at once, by the kernel, so that Ctrl-C twice works even when the
loop is stuck: nothing acknowledged depends on a clean stop. SIGHUP calls a hook,
for reading part of the configuration again.
"""

import asyncio
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["StopSignals"]


class StopSignals:
    """Handles the signals of this process inside a `with` block, on the running loop.

    `stop` is set by the first SIGTERM or SIGINT; `reason` is then the signal's name.
    """

    def __init__(self, *, on_hangup: Callable[[], Any] | None = None) -> None:
        self.stop = asyncio.Event()
        self.reason: str | None = None
        self._on_hangup = on_hangup
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        loop = self._loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], Any]] = {
            signal.SIGTERM: self._on_terminate,
            signal.SIGINT: self._on_interrupt,
        }
        if self._on_hangup is not None:
            handlers[signal.SIGHUP] = self._on_hangup
        for number, handler in handlers.items():
            self._before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, handler)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        for number, before in self._before.items():
            self._loop.remove_signal_handler(number)
            signal.signal(number, before)
        self._before.clear()

    def _on_terminate(self) -> None:
        self._set(signal.SIGTERM)

    def _on_interrupt(self) -> None:
        assert self._loop is not None
        self._set(signal.SIGINT)
        # From here on the kernel answers SIGINT: the process ends, whatever the loop does.
        self._loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _set(self, number: signal.Signals) -> None:
        if self.reason is None:
            self.reason = number.name
        self.stop.set()
