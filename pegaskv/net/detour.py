"""How a handler says that a request is for another handler.

The handlers of the hot path have no room for what few tables need, such as throttling.
They raise a `Detour` before they have done anything, and the connection hands the
message to the handler that it names. That one may also keep the message for later: it
calls `defer`, and gives the message to the table of handlers again when its time has come.
"""

from collections.abc import Callable
from typing import Any

__all__ = ["Detour"]


class Detour(Exception):
    """Nothing was done yet: another one takes the request, in place of the one that was called."""

    def __init__(self, handler: Callable[[Any, list[Any]], None]) -> None:
        super().__init__()
        self._handler = handler

    def take(self, connection: Any, message: list[Any]) -> Exception | None:
        """Call the handler; return what it raised."""
        try:
            self._handler(connection, message)
        except Exception as error:  # noqa: BLE001 - as in the connection's own loop
            return error
        return None
