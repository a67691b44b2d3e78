"""pure: the window of mutations that are prepared and not yet committed.

Decrees in it are contiguous and start right after the commit point; ballots
never fall as decrees rise.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Mutation", "PrepareList"]


@dataclass(slots=True)
class Mutation:
    """What one decree holds; `payload` is encoded by `codec.mutations`."""

    ballot: int
    decree: int
    first_timestamp_us: int
    last_timestamp_us: int
    payload: bytes


class PrepareList:
    """Prepared mutations above `committed`, in decree order."""

    __slots__ = ("_mutations", "committed")

    def __init__(self, committed: int) -> None:
        self.committed = committed
        self._mutations: deque[Mutation] = deque()

    def __len__(self) -> int:
        return len(self._mutations)

    def __iter__(self) -> Iterator[Mutation]:
        return iter(self._mutations)

    @property
    def last_prepared(self) -> int:
        """The highest decree in the window, or the commit point when it is empty."""
        return self.committed + len(self._mutations)

    def add(self, mutation: Mutation) -> None:
        """Append the mutation of the next decree."""
        assert mutation.decree == self.last_prepared + 1
        self._mutations.append(mutation)

    def commit(self, decree: int) -> None:
        """Move the commit point up to `decree`, which must be prepared."""
        assert decree <= self.last_prepared
        while self.committed < decree:
            self._mutations.popleft()
            self.committed += 1

    def replace(self, mutations: list[Mutation]) -> None:
        """Exchange the whole window for one of the same or a greater length."""
        assert len(mutations) >= len(self._mutations)
        self._mutations = deque(mutations)

    def check(self) -> None:
        """Assert the invariants."""
        previous_ballot = 0
        for offset, mutation in enumerate(self._mutations):
            assert mutation.decree == self.committed + 1 + offset
            assert mutation.ballot >= previous_ballot
            previous_ballot = mutation.ballot
