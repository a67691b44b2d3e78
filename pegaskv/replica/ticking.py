"""What a replica needs of the owner of the tick."""

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Tick"]


class Tick(Protocol):
    """See `front.Front`; there is one for all replicas of a server."""

    call_soon: Callable[[Callable[[], Any]], Any]

    def wake(self, replica: Any) -> int:
        """`replica` has something for the next tick; returns when it was first woken for."""
        ...

    def lag(self, replica: Any) -> None:
        """`replica` holds committed rows that its engine has not taken."""
        ...

    def apply_soon(self, replica: Any) -> None:
        """`replica` holds so many of them that its engine should take them."""
        ...

    def hurry(self) -> None:
        """Somebody who was woken for need not wait for the members any more."""
        ...

    def untold(self, replica: Any) -> None:
        """`replica` has committed what its members have not heard of."""
        ...

    def after_sync(self, call: Callable[[], None]) -> None:
        """Call back once all that is in the log now is durable; never, if the log fails."""
        ...
