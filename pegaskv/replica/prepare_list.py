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
    """Prepared mutations above `committed`, in decree order; on the hot path.

    `last_prepared` is the highest decree in the window, or the commit point when it is empty.
    """

    __slots__ = ("_mutations", "committed", "last_prepared")

    def __init__(self, committed: int) -> None:
        self.committed = committed
        self.last_prepared = committed
        self._mutations: deque[Mutation] = deque()

    def __len__(self) -> int:
        return len(self._mutations)

    def __iter__(self) -> Iterator[Mutation]:
        return iter(self._mutations)

    def add(self, mutation: Mutation) -> None:
        """Append the mutation of the next decree."""
        decree = mutation.decree
        assert decree == self.last_prepared + 1
        self._mutations.append(mutation)
        self.last_prepared = decree

    def commit(self, decree: int) -> None:
        """Move the commit point up to `decree`, which must be prepared."""
        assert decree <= self.last_prepared
        forget = self._mutations.popleft
        if decree == self.committed + 1:
            # Mostly.
            forget()
            self.committed = decree
            return
        for _ in range(decree - self.committed):
            forget()
        if decree > self.committed:
            self.committed = decree

    def take(self, decree: int) -> list[Mutation]:
        """Commit up to `decree`, which must be prepared; return what that commits."""
        if decree <= self.committed:
            return []
        assert decree <= self.last_prepared
        first = self._mutations.popleft
        taken = [first() for _ in range(decree - self.committed)]
        self.committed = decree
        return taken

    def put(self, mutation: Mutation) -> bool | None:
        """Take a mutation that another replica gave its decree and ballot.

        True: it is new, and what was here from its decree on, of lower ballots, is gone. False:
        it is here, or committed. None: decrees before it are missing, or its ballot is lower than
        that of the one before it; nothing was changed.
        """
        decree = mutation.decree
        if decree == self.last_prepared + 1:
            if self._mutations and self._mutations[-1].ballot > mutation.ballot:
                return None
            self._mutations.append(mutation)
            self.last_prepared = decree
            return True
        if decree > self.last_prepared:
            return None
        if decree <= self.committed:
            return False
        place = decree - self.committed - 1
        there = self._mutations[place]
        if there.ballot >= mutation.ballot:
            return False
        while len(self._mutations) > place:
            self._mutations.pop()
        self._mutations.append(mutation)
        self.last_prepared = decree
        return True

    def cut(self) -> None:
        """Forget what is not committed."""
        self._mutations.clear()
        self.last_prepared = self.committed

    def replace(self, mutations: list[Mutation]) -> None:
        """Exchange the whole window for one of the same or a greater length."""
        assert len(mutations) >= len(self._mutations)
        self._mutations = deque(mutations)
        self.last_prepared = self.committed + len(mutations)

    def check(self) -> None:
        """Assert the invariants."""
        assert self.last_prepared == self.committed + len(self._mutations)
        previous_ballot = 0
        for offset, mutation in enumerate(self._mutations):
            assert mutation.decree == self.committed + 1 + offset
            assert mutation.ballot >= previous_ballot
            previous_ballot = mutation.ballot
