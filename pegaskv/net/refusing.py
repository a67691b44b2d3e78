"""What whoever speaks wrongly to the protocol's port is told."""

from collections.abc import Container
from typing import Any, Final

from pegaskv.base.errors import InvalidArgument, RequestError, UnknownOperation

__all__ = ["HTTP_ANSWER", "HTTP_METHODS", "explain_shape", "has_id"]

HTTP_METHODS: Final = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"OPTIONS ", b"DELETE ")
# A browser or curl shows this to whoever took the wrong port.
HTTP_ANSWER: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
    b"This port speaks the protocol of pegaskv. HTTP has a port of its own (--http).\n"
)

_REQUEST_ID_MAX: Final = 0xFFFFFFFF


def has_id(message: Any) -> bool:
    """Whether `message` is a list that begins with a request id."""
    return (
        type(message) is list
        and len(message) > 0
        and type(message[0]) is int
        and 0 < message[0] <= _REQUEST_ID_MAX
    )


def explain_shape(message: list[Any], operations: Container[int]) -> RequestError | None:
    """Return what is wrong with a message that has an id; None if no handler could tell."""
    if len(message) < 3:
        return InvalidArgument("a request is [id, operation, time limit, ...]")
    operation = message[1]
    if type(operation) is not int:
        return InvalidArgument("an operation is a whole number")
    if type(message[2]) is not int and type(message[2]) is not list:
        return InvalidArgument("a time limit is a whole number of milliseconds")
    if operation not in operations:
        return UnknownOperation(
            f"unknown operation {operation}", hint="the client may be newer than the server"
        )
    return None
