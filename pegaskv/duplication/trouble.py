"""What is in the way of a duplication: since when, how often it was tried, when next.

An answer that is late is shown as a failure before it counts as one, so that a silent link
is seen within a second or two and not only when the request's time is over.
"""

from random import Random
from typing import Any, Final

from pegaskv.duplication.failures import UNREACHABLE, Failure, retry_ms
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.runtime.clock import Clock

__all__ = ["Trouble", "closed_state"]

_LATE_MS: Final = 1_000


class Trouble:
    """Of one run or one piece of remote work. `failure` is None when all is well."""

    def __init__(self, clock: Clock, random: Random, options: DuplicationOptions) -> None:
        self.failure: Failure | None = None
        self.attempts = 0
        self.retries = 0
        self._clock = clock
        self._random = random
        self._options = options
        self._since_us = 0
        self._next_us = 0
        self._stalled_ms = 0
        # When the oldest request went out that was not answered; 0 when there is none.
        self._asked_ms = 0

    def asked(self) -> None:
        """A request went out."""
        self._asked_ms = self._asked_ms or self._clock.monotonic_ms()

    def heard(self, *, more: bool = False) -> None:
        """The other side is there, whatever it says. `more` is still under way."""
        self._asked_ms = self._clock.monotonic_ms() if more else 0

    def answered(self, *, more: bool = False) -> None:
        """The other side did what it was asked for: it is over. `more` is still under way."""
        self.heard(more=more)
        if self.failure is None:
            return
        self._stalled_ms += self._present_ms
        self.failure = None
        self.attempts = self._since_us = self._next_us = 0

    def failed(self, failure: Failure, *, least_ms: int = 0) -> int:
        """An attempt failed; return the milliseconds before the next one."""
        self._asked_ms = 0
        options = self._options
        pause_ms = retry_ms(
            failure, self.attempts, least=options.retry_ms_min, most=options.retry_ms_max
        )
        pause_ms = max(pause_ms, least_ms)
        pause_ms = self._random.randint((pause_ms + 1) // 2, pause_ms)
        now_us = self._clock.wall_us()
        self.failure = failure
        self._since_us = self._since_us or now_us
        self.attempts += 1
        self.retries += 1
        self._next_us = now_us + pause_ms * 1_000
        return pause_ms

    def begin_again(self) -> None:
        """Somebody changed something: the next pauses are short again."""
        self.attempts = 0

    def broken(self, text: str) -> None:
        """There is no next attempt."""
        self.failure = Failure("broken", text)
        self._since_us = self._since_us or self._clock.wall_us()
        self._next_us = 0

    def shown(self, remote_cluster: str) -> dict[str, Any]:
        """Return what is shown; empty when all is well."""
        failure, since_us, next_us = self.failure, self._since_us, self._next_us
        attempts = self.attempts
        now_us = self._clock.wall_us()
        waited_ms = self._clock.monotonic_ms() - self._asked_ms if self._asked_ms else 0
        if waited_ms > _LATE_MS:
            text = f"{remote_cluster} has not answered for {waited_ms / 1_000:.1f} s"
            failure = Failure(UNREACHABLE, text)
            since_us = since_us or now_us - waited_ms * 1_000
            next_us = now_us + max(0, self._options.timeout_ms - waited_ms) * 1_000
            attempts += 1
        if failure is None:
            return {}
        if next_us:
            # One that is due is under way.
            next_us = max(next_us, now_us)
        return {
            "error": failure.text,
            "last_error": failure.text,
            "error_class": failure.error_class,
            "stalled_since": since_us / 1_000_000,
            "attempts": attempts,
            "next_attempt_at": next_us / 1_000_000,
        }

    @property
    def seconds_stalled(self) -> int:
        """All of it together, the present one included."""
        return (self._stalled_ms + self._present_ms) // 1_000

    @property
    def _present_ms(self) -> int:
        if not self._since_us:
            return 0
        return max(0, self._clock.wall_us() - self._since_us) // 1_000


def closed_state(text: str, since_us: int) -> dict[str, Any]:
    """Return what is shown where a closed partition is in the way: it is not tried, but opened."""
    return {
        "error": text,
        "last_error": text,
        "error_class": "source_closed",
        "stalled_since": since_us / 1_000_000,
        "attempts": 0,
        "next_attempt_at": 0,
    }
