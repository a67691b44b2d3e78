"""A loop that does not sleep for a moment after a request.

Whoever calls one after another waits mostly for two processes that fall asleep and are woken
again. With this, the loop looks at its sockets again and again for some microseconds after a
request, and the next one finds it awake. That costs a processor, so it is an option, and it
happens only where requests come as quickly as that.
"""

from collections.abc import Callable
from typing import Any, Final

__all__ = ["Spinner"]

# It begins when requests are not further apart than so many spins: without it they take longer.
_QUICK: Final = 4


class Spinner:
    """Keeps a loop awake for `spin_us` microseconds after each `wake`, while `is_useful`.

    `now_us` may jump: that ends a spin.
    """

    def __init__(
        self,
        spin_us: int,
        *,
        now_us: Callable[[], int],
        call_soon: Callable[[Callable[[], Any]], Any],
        is_useful: Callable[[], object],
    ) -> None:
        self._spin_us = spin_us
        self._now_us = now_us
        self._call_soon = call_soon
        self._is_useful = is_useful
        self._touched_us = 0
        self._spinning = False

    def wake(self) -> None:
        """A request came, or went."""
        now_us = self._now_us()
        quick = 0 <= now_us - self._touched_us <= self._spin_us * _QUICK
        self._touched_us = now_us
        if quick and not self._spinning:
            self._spinning = True
            # A loop with something to call does not wait for its sockets, it looks at them.
            self._call_soon(self._turn)

    def _turn(self) -> None:
        if 0 <= self._now_us() - self._touched_us < self._spin_us and self._is_useful():
            self._call_soon(self._turn)
        else:
            self._spinning = False
