"""What can go wrong at the shell itself, and the exit status of everything that can.

The statuses are frozen: scripts rely on them. Errors of the cluster come from
`pegaskv.base.errors`; those of the shell have negative codes, which never travel.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from pegaskv.base.errors import (
    DuplicationExists,
    PegasKVError,
    RequestError,
    TableExists,
    Timeout,
    Unavailable,
)

__all__ = [
    "EXIT_ALREADY_EXISTS",
    "EXIT_CANNOT_CONNECT",
    "EXIT_FAILED",
    "EXIT_INTERRUPTED",
    "EXIT_OK",
    "EXIT_USAGE",
    "AlreadyDuplicated",
    "Interrupted",
    "NotConfirmed",
    "NotReached",
    "ShellError",
    "UsageError",
    "exit_status",
]

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_CANNOT_CONNECT: Final = 3
EXIT_ALREADY_EXISTS: Final = 4
EXIT_INTERRUPTED: Final = 130


class ShellError(PegasKVError):
    """An error of the shell; `status` is the exit status that it means.

    `lines` explain it to a person; `data` does to a script, beside code and message.
    """

    code: ClassVar[int] = -1
    name: ClassVar[str] = "ERR_SHELL"
    status: ClassVar[int] = EXIT_FAILED

    def __init__(
        self,
        message: str = "",
        *,
        hint: str = "",
        lines: Sequence[str] = (),
        data: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.lines = lines
        self.data = data or {}


class UsageError(ShellError):
    """The line, an option or a file cannot be understood, so nothing was sent."""

    code = -2
    name = "ERR_USAGE"
    status = EXIT_USAGE


class NotConfirmed(ShellError):
    """The operator said no, so nothing was sent."""

    code = -3
    name = "ERR_NOT_CONFIRMED"


class NotReached(ShellError):
    """What was waited for did not come in its time."""

    code = -5
    name = "ERR_NOT_REACHED"


class AlreadyDuplicated(ShellError):
    """The cluster's answer to a second `add_dup`, with the stored entry beside the request."""

    code = DuplicationExists.code
    name = DuplicationExists.name
    status = EXIT_ALREADY_EXISTS


class Interrupted(ShellError):
    """Ctrl-C while a command ran."""

    code = -4
    name = "ERR_INTERRUPTED"
    status = EXIT_INTERRUPTED


def exit_status(error: BaseException, *, connected: bool) -> int:
    """Return the exit status of a command that ended in `error`.

    `connected` says whether the cluster has answered anything in this session:
    until it did, silence means that it cannot be reached.
    """
    if isinstance(error, ShellError):
        return error.status
    if isinstance(error, TableExists | DuplicationExists):
        return EXIT_ALREADY_EXISTS
    unreachable = isinstance(error, Unavailable | Timeout)
    if isinstance(error, OSError) and not isinstance(error, RequestError):
        unreachable = True
    if unreachable and not connected:
        return EXIT_CANNOT_CONNECT
    return EXIT_FAILED
