"""Handlers of requests between servers: read at once, answered when the work is done.

These are few and may take long, so each has a task; the hot path has handlers of its own.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from pegaskv.base.errors import NotReady, PegasKVError, RequestError
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.runtime.tasks import TaskScope

__all__ = ["deferring"]

_RETRIED: Final = "the sender tries again by itself"


def deferring(
    scope: TaskScope, name: str, begin: Callable[[list[Any]], Awaitable[tuple[Any, ...]]]
) -> Handler:
    """Return a handler that runs what `begin` returns as a task of `scope`.

    `begin` gets the fields of a request and reads them before it returns: what it raises is
    the answer. What the work raises is too; that something cannot be done at this moment
    (PegasKVError, OSError) is answered as `NotReady`.
    """

    def handle(connection: ServerConnection, message: list[Any]) -> None:
        work = begin(message[3:])
        connection.defer()
        scope.start(name, _answer(connection, message, work))

    return handle


async def _answer(
    connection: ServerConnection, message: list[Any], work: Awaitable[tuple[Any, ...]]
) -> None:
    try:
        reply = (message[0], 0, *await work)
    except RequestError as error:
        reply = connection.error(message[0], error)
    except (PegasKVError, OSError) as error:
        text = str(error) or type(error).__name__
        reply = connection.error(message[0], NotReady(text, hint=_RETRIED))
    connection.finish(reply)
    connection.flush()
