"""Why an address cannot be listened on, in words and as an exit status."""

import errno
from collections.abc import Awaitable
from typing import TypeVar

from pegaskv.base.errors import PegasKVError

__all__ = ["ListenError", "listening"]

T = TypeVar("T")


class ListenError(PegasKVError):
    """An address cannot be listened on; `in_use` says that another process has it."""

    def __init__(self, message: str, *, hint: str, in_use: bool) -> None:
        super().__init__(message, hint=hint)
        self.in_use = in_use


async def listening(flag: str, address: str, attempt: Awaitable[T]) -> T:
    """Return what `attempt` to listen on `address`, given by `flag`, returns.

    Raises:
        ListenError: it failed.

    """
    try:
        return await attempt
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        if in_use:
            reason, hint = (
                "is in use by another process",
                f"stop it, or choose another address by {flag} (port 0 picks a free one)",
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            reason, hint = (
                "is no address of this machine",
                f"{flag} names an address of an interface here, 0.0.0.0 for all",
            )
        elif error.errno in (errno.EACCES, errno.EPERM):
            reason, hint = "may not be used by this user", "choose a port above 1023"
        elif error.errno is not None and error.errno < 0:
            # The resolver has numbers of its own.
            reason, hint = f"cannot be resolved: {error.strerror}", f"{flag} is HOST:PORT"
        else:
            reason, hint = f"cannot be used: {error}", f"{flag} is HOST:PORT"
        raise ListenError(f"{address} {reason}", hint=hint, in_use=in_use) from error
