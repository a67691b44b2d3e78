"""What one replica does next: prepare, commit, follow, serve.

The machine has no log, no engine, no clock. It takes one event and returns
effects, and the same events always give the same effects. What happens once per
partition and tick (`propose`, `logged`, `acknowledged`, `accept`, `follow`) comes as
a call and not as an event: two objects for each would cost as much as the decision.

Nobody goes on in an old role: a machine starts inactive, whatever its replica
was before, and becomes primary only by a ballot higher than any it has seen.
Each ballot begins with a barrier: the tail that was prepared under older ballots
is proposed again, then an empty mutation; nothing is served before the barrier is
committed. So an old tail is either part of the history or can never come back.

A primary commits a decree when its own log and every secondary's have it, by the
table's durability: all of them, not most. While a proposal is open it obeys both
configurations, so that whichever holds, nothing committed is missing there. A
secondary takes only what the primary of its ballot sends, without a gap, and what
it has of a lower ballot gives way.

The rules are those of PacificA ("PacificA: Replication in Log-Based Distributed
Storage Systems", 2008); `tests/model` searches their states.
"""

from collections.abc import Mapping
from typing import Final, assert_never

from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.mutations import encode_mutation
from pegaskv.replica.effects import Append, Effect, Refuse
from pegaskv.replica.events import (
    Assigned,
    Deactivated,
    Event,
    Followed,
    ProposalClosed,
    ProposalOpened,
    Taught,
)
from pegaskv.replica.prepare_list import Mutation, PrepareList

__all__ = ["TRANSITIONS", "ReplicaMachine"]

_INACTIVE: Final = ReplicaStatus.INACTIVE
_PRIMARY: Final = ReplicaStatus.PRIMARY
_SECONDARY: Final = ReplicaStatus.SECONDARY
_LEARNER: Final = ReplicaStatus.POTENTIAL_SECONDARY

# From each status, the ones that may follow; to the same one only by a higher ballot, but for a
# learner, who may be taught again.
TRANSITIONS: Final[Mapping[ReplicaStatus, frozenset[ReplicaStatus]]] = {
    _INACTIVE: frozenset({_PRIMARY, _SECONDARY, _LEARNER}),
    _PRIMARY: frozenset({_PRIMARY, _SECONDARY, _LEARNER, _INACTIVE}),
    _SECONDARY: frozenset({_PRIMARY, _SECONDARY, _LEARNER, _INACTIVE}),
    # It never leads before it was a secondary.
    _LEARNER: frozenset({_SECONDARY, _LEARNER, _INACTIVE}),
}


class ReplicaMachine:
    """One partition's replica on one node.

    Invariants: committed <= last prepared; ballots never fall; `serving` only as
    primary and after the barrier of the present ballot was committed; a primary has
    committed nothing that its own log or a member of either configuration lacks.
    """

    __slots__ = (
        "_acknowledged",
        "_barrier",
        "_joining",
        "_logged",
        "_streamed",
        "ballot",
        "gpid",
        "prepared",
        "proposing",
        "secondaries",
        "serving",
        "status",
    )

    def __init__(
        self, gpid: Gpid, *, ballot: int = 0, committed: int = 0, tail: list[Mutation] | None = None
    ) -> None:
        self.gpid = gpid
        self.ballot = ballot
        self.status = _INACTIVE
        self.serving = False
        self.secondaries: tuple[str, ...] = ()
        # Whether the outcome of a proposal of this primary is unknown.
        self.proposing = False
        self.prepared = PrepareList(committed)
        self._barrier = 0
        # Up to where the own log has everything, and each member of either configuration.
        self._logged = committed
        self._acknowledged: dict[str, int] = {}
        self._joining = ""
        # Of a follower: up to where it was told by the primary of this very ballot.
        self._streamed = committed
        for mutation in tail or ():
            self.prepared.add(mutation)
            self.ballot = max(self.ballot, mutation.ballot)

    @property
    def committed(self) -> int:
        """The last committed decree."""
        return self.prepared.committed

    @property
    def followers(self) -> tuple[str, ...]:
        """Who must have a decree before it is committed, of both configurations."""
        return tuple(self._acknowledged)

    def step(self, event: Event) -> list[Effect]:
        """Take one event; return what must be done, in this order."""
        match event:
            case Assigned(ballot, secondaries):
                return self._on_assigned(ballot, secondaries)
            case Followed(ballot):
                return self._on_followed(ballot)
            case Taught(ballot):
                return self._on_taught(ballot)
            case ProposalOpened(joining):
                return self._on_proposal_opened(joining)
            case ProposalClosed():
                self._on_proposal_closed()
                return []
            case Deactivated(ballot):
                self.ballot = max(self.ballot, ballot)
                self._leave_role(_INACTIVE)
                return []
            case _:
                assert_never(event)

    # A primary's tick.

    def propose(self, mutation: Mutation) -> bool:
        """Give a mutation the present ballot and the next decree; the caller puts it into the log.

        False when the replica is not primary, and nothing was changed.
        """
        if self.status is not _PRIMARY:
            return False
        prepared = self.prepared
        mutation.ballot = self.ballot
        mutation.decree = prepared.last_prepared + 1
        prepared.add(mutation)
        return True

    def logged(self, decree: int) -> bool:
        """The own log holds everything up to `decree`, by the table's durability.

        The caller applies and answers what is at or below `committed` now. True when that
        included the barrier of the present ballot, so that clients may come.
        """
        # What was logged under an earlier role commits nothing: its decree was proposed again.
        if self.status is not _PRIMARY or decree <= self._logged:
            return False
        self._logged = decree
        if self.serving and not self._acknowledged:
            # `_advance`, written out for who has no members.
            self.prepared.commit(decree)
            return False
        return self._advance()

    def acknowledged(self, member: str, ballot: int, decree: int) -> bool:
        """`member` has everything up to `decree` of what was sent under `ballot`; as `logged`."""
        acknowledged = self._acknowledged
        if ballot != self.ballot or decree <= acknowledged.get(member, decree):
            return False
        acknowledged[member] = decree
        return self._advance()

    def has_all_committed(self, acknowledged: int) -> bool:
        """Whether who has acknowledged so much lacks nothing that is committed."""
        return self.status is _PRIMARY and acknowledged >= self.prepared.committed

    def _advance(self) -> bool:
        decree = self._logged
        for acknowledged in self._acknowledged.values():
            if acknowledged < decree:
                decree = acknowledged
        prepared = self.prepared
        if decree <= prepared.committed:
            return False
        prepared.commit(decree)
        if self.serving or decree < self._barrier:
            return False
        self.serving = True
        return True

    # A secondary's tick.

    def accept(self, mutation: Mutation) -> bool | None:
        """Take what the primary has prepared.

        True: it is new, and goes into the log. False: it is here already. None: it is not of the
        primary that this replica follows, or something before it is missing; nothing was changed.
        """
        if mutation.ballot != self.ballot or (
            self.status is not _SECONDARY and self.status is not _LEARNER
        ):
            return None
        new = self.prepared.put(mutation)
        if new is not None and mutation.decree > self._streamed:
            self._streamed = mutation.decree
        return new

    def accept_copied(self, mutation: Mutation) -> bool | None:
        """Take what a learner has copied of its primary's log, whatever its ballot; as `accept`."""
        if mutation.ballot > self.ballot or self.status is not _LEARNER:
            return None
        new = self.prepared.put(mutation)
        if new is not None and mutation.decree > self._streamed:
            self._streamed = mutation.decree
        return new

    def follow(self, committed: int) -> list[Mutation]:
        """The primary of this ballot has committed so far; return what that commits here.

        Never of an older tail: this primary may have something else there.
        """
        if self.status is not _SECONDARY and self.status is not _LEARNER:
            return []
        prepared = self.prepared
        return prepared.take(min(committed, self._streamed, prepared.last_prepared))

    # Roles.

    def _on_assigned(self, ballot: int, secondaries: tuple[str, ...]) -> list[Effect]:
        if ballot <= self.ballot:
            return [Refuse(f"ballot {ballot} is not above {self.ballot}")]
        if _PRIMARY not in TRANSITIONS[self.status]:
            return [Refuse("a replica that learns cannot lead")]
        self._leave_role(_PRIMARY)
        self.ballot = ballot
        self.secondaries = secondaries
        committed = self.prepared.committed
        self._logged = committed
        self._acknowledged = dict.fromkeys(secondaries, committed)
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
        return [Append(window, committed)]

    def _on_followed(self, ballot: int) -> list[Effect]:
        if ballot < self.ballot or (ballot == self.ballot and self.status is _PRIMARY):
            return [Refuse(f"ballot {ballot} is not above {self.ballot}")]
        if ballot > self.ballot or self.status is not _SECONDARY:
            self._leave_role(_SECONDARY)
            self.ballot = ballot
        return []

    def _on_taught(self, ballot: int) -> list[Effect]:
        if ballot < self.ballot or (
            ballot == self.ballot and self.status in (_PRIMARY, _SECONDARY)
        ):
            return [Refuse(f"ballot {ballot} is not above {self.ballot}")]
        self._leave_role(_LEARNER)
        self.ballot = ballot
        # What was prepared and copied before may be void: it is copied again.
        self.prepared.cut()
        return []

    def _on_proposal_opened(self, joining: str) -> list[Effect]:
        if self.status is not _PRIMARY or self.proposing:
            return [Refuse("a proposal is open, or this is no primary")]
        self.proposing = True
        if joining:
            assert joining not in self._acknowledged
            # It has all that is committed, or nobody would propose it; the rest it must tell.
            self._acknowledged[joining] = self.prepared.committed
            self._joining = joining
        return []

    def _on_proposal_closed(self) -> None:
        self.proposing = False
        if self._joining:
            self._acknowledged.pop(self._joining, None)
            self._joining = ""
            # It may have been the last that was missing.
            self._advance()

    def _leave_role(self, status: ReplicaStatus) -> None:
        assert status in TRANSITIONS[self.status] or status is self.status
        self.status = status
        self.serving = False
        self.proposing = False
        self.secondaries = ()
        self._acknowledged = {}
        self._joining = ""
        self._streamed = self.prepared.committed

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        self.prepared.check()
        assert all(mutation.ballot <= self.ballot for mutation in self.prepared)
        committed = self.prepared.committed
        if self.serving:
            assert self.status is _PRIMARY
            assert committed >= self._barrier
        if self.status is _PRIMARY:
            assert all(mutation.ballot == self.ballot for mutation in self.prepared)
            assert set(self.secondaries) <= set(self._acknowledged)
            assert all(decree >= committed for decree in self._acknowledged.values())
        else:
            assert not self._acknowledged
            assert not self.proposing
