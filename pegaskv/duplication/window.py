"""pure: how many requests may be under way to one server of another cluster.

A server that is slow is not asked more than it can answer in time: otherwise what it works
at would always be what nobody waits for any more. This follows TCP's congestion control
(RFC 5681): one after a time-out, twice as many for each round of answers up to half of what
was too much, from there one more a round. Each server has a window of its own, so that one
that stands still takes nothing from the others.
"""

__all__ = ["Window"]


class Window:
    """Requests to one server; `full` says that it gets no more for now."""

    def __init__(self, requests_max: int) -> None:
        self.under_way = 0
        self._max = float(requests_max)
        self._size = self._threshold = self._max

    @property
    def full(self) -> bool:
        """Whether as many are under way as there may be."""
        return self.under_way >= int(self._size)

    def answered(self) -> None:
        """A reply came in time."""
        faster = self._size < self._threshold
        more = 1.0 if faster else 1 / self._size
        self._size = min(self._size + more, self._max)

    def timed_out(self) -> None:
        """No reply came in time; the first that is late speaks for all that were sent with it."""
        if self._size > 1.0:
            self._threshold = min(self._size, float(self.under_way)) / 2
            self._size = 1.0
