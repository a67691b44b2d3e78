"""Handlers of requests between servers: read at once, answered when the work is done.

These are few and may take long, so each has a task; the hot path has handlers of its own.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from pegaskv.base.errors import NotReady, PegasKVError, RequestError
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.runtime.tasks import TaskScope

__all__ = ["Work", "deferring"]

_RETRIED: Final = "the sender tries again by itself"


# What is done after a request was read; returns the fields of its reply.
Work = Callable[[], Awaitable[tuple[Any, ...]]]


def deferring(scope: TaskScope, name: str, begin: Callable[[list[Any]], Work]) -> Handler:
    """Return a handler that runs what `begin` returns as a task of `scope`.

    `begin` gets the fields of a request and reads them before it returns: what it raises is
    the answer. What the work raises is too; that something cannot be done at this moment
    (PegasKVError, OSError) is answered as `NotReady`, and so is what `scope` cuts short by its
    end.
    """

    def handle(connection: ServerConnection, message: list[Any]) -> None:
        if scope.closed:
            raise _stopping()
        work = begin(message[3:])
        connection.defer()
        scope.start(name, _answer(connection, message, work))

    return handle


async def _answer(connection: ServerConnection, message: list[Any], work: Work) -> None:
    reply = connection.error(message[0], _stopping())
    try:
        reply = (message[0], 0, *await work())
    except RequestError as error:
        reply = connection.error(message[0], error)
    except (PegasKVError, OSError) as error:
        text = str(error) or type(error).__name__
        reply = connection.error(message[0], NotReady(text, hint=_RETRIED))
    finally:
        connection.finish(reply)
        connection.flush()


def _stopping() -> NotReady:
    return NotReady("the server is stopping", hint=_RETRIED)
