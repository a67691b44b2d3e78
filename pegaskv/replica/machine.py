"""What one replica does next: prepare, commit, serve.

The machine has no log, no engine, no clock. It takes one event and returns
effects, and the same events always give the same effects. What happens once per
partition and tick (`propose`, `logged`) comes as a call and not as an event: two
objects for each would cost as much as the decision.

Nobody goes on in an old role: a machine starts inactive, whatever its replica
was before, and becomes primary only by a ballot higher than any it has seen.
Each ballot begins with a barrier: the tail that was prepared under older ballots
is proposed again, then an empty mutation; nothing is served before the barrier is
committed. So an old tail is either part of the history or can never come back.

With one member in the configuration a mutation is committed when the own log has
it by the table's durability.
"""

from collections.abc import Mapping
from typing import Final, assert_never

from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.mutations import encode_mutation
from pegaskv.replica.effects import Append, Effect, Refuse
from pegaskv.replica.events import Assigned, Deactivated, Event
from pegaskv.replica.prepare_list import Mutation, PrepareList

__all__ = ["TRANSITIONS", "ReplicaMachine"]

_INACTIVE: Final = ReplicaStatus.INACTIVE
_PRIMARY: Final = ReplicaStatus.PRIMARY

# From each status, the ones that may follow. A primary becomes primary again by a new ballot.
TRANSITIONS: Final[Mapping[ReplicaStatus, frozenset[ReplicaStatus]]] = {
    _INACTIVE: frozenset({_PRIMARY}),
    _PRIMARY: frozenset({_PRIMARY, _INACTIVE}),
}


class ReplicaMachine:
    """One partition's replica on one node.

    Invariants: committed <= last prepared; ballots never fall; `serving` only as
    primary and after the barrier of the present ballot was committed.
    """

    __slots__ = ("_barrier", "ballot", "gpid", "prepared", "serving", "status")

    def __init__(
        self, gpid: Gpid, *, ballot: int = 0, committed: int = 0, tail: list[Mutation] | None = None
    ) -> None:
        self.gpid = gpid
        self.ballot = ballot
        self.status = _INACTIVE
        self.serving = False
        self.prepared = PrepareList(committed)
        self._barrier = 0
        for mutation in tail or ():
            self.prepared.add(mutation)
            self.ballot = max(self.ballot, mutation.ballot)

    @property
    def committed(self) -> int:
        """The last committed decree."""
        return self.prepared.committed

    def step(self, event: Event) -> list[Effect]:
        """Take one event; return what must be done, in this order."""
        match event:
            case Assigned():
                return self._on_assigned(event.ballot)
            case Deactivated():
                self.status = _INACTIVE
                self.serving = False
                return []
            case _:
                assert_never(event)

    def propose(
        self, payload: bytes, first_timestamp_us: int, last_timestamp_us: int
    ) -> Mutation | None:
        """Give collected operations the next decree; the caller puts the mutation into the log.

        None when the replica is not primary, and nothing was changed.
        """
        if self.status is not _PRIMARY:
            return None
        prepared = self.prepared
        mutation = Mutation(
            self.ballot, prepared.last_prepared + 1, first_timestamp_us, last_timestamp_us, payload
        )
        prepared.add(mutation)
        return mutation

    def logged(self, decree: int) -> bool:
        """The own log holds everything up to `decree`, by the table's durability.

        The caller applies and answers what is at or below `committed` now. True when that
        included the barrier of the present ballot, so that clients may come.
        """
        # What was logged under an earlier role commits nothing: its decree was proposed again.
        if self.status is not _PRIMARY or decree <= self.prepared.committed:
            return False
        self.prepared.commit(decree)
        if self.serving or decree < self._barrier:
            return False
        self.serving = True
        return True

    def _on_assigned(self, ballot: int) -> list[Effect]:
        if ballot <= self.ballot:
            return [Refuse(f"ballot {ballot} is not above {self.ballot}")]
        assert _PRIMARY in TRANSITIONS[self.status]
        self.status = _PRIMARY
        self.ballot = ballot
        self.serving = False
        window = [
            Mutation(
                ballot,
                mutation.decree,
                mutation.first_timestamp_us,
                mutation.last_timestamp_us,
                mutation.payload,
            )
            for mutation in self.prepared
        ]
        last = window[-1].last_timestamp_us if window else 0
        self._barrier = self.prepared.last_prepared + 1
        window.append(Mutation(ballot, self._barrier, last, last, encode_mutation(last, [])))
        self.prepared.replace(window)
        return [Append(window, self.prepared.committed)]

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        self.prepared.check()
        assert all(mutation.ballot <= self.ballot for mutation in self.prepared)
        if self.serving:
            assert self.status is _PRIMARY
            assert self.prepared.committed >= self._barrier
