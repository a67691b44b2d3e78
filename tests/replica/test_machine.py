"""The replica's machine: roles, decrees, barriers."""

import random
from collections.abc import Callable

import pytest

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
from pegaskv.replica.machine import TRANSITIONS, ReplicaMachine
from pegaskv.replica.prepare_list import Mutation

GPID = Gpid(1, 0)


def propose(machine: ReplicaMachine, timestamp: int = 10) -> Mutation | None:
    mutation = Mutation(0, 0, timestamp, timestamp, encode_mutation(timestamp, []))
    return mutation if machine.propose(mutation) else None


def primary(ballot: int = 1) -> ReplicaMachine:
    machine = ReplicaMachine(GPID)
    machine.step(Assigned(ballot))
    assert machine.logged(1)
    machine.check()
    return machine


def test_a_new_machine_is_inactive_and_refuses_proposals() -> None:
    machine = ReplicaMachine(GPID, ballot=7, committed=40)
    assert machine.status is ReplicaStatus.INACTIVE
    assert propose(machine) is None
    assert machine.prepared.last_prepared == 40


def test_nothing_is_served_before_the_barrier_is_committed() -> None:
    machine = ReplicaMachine(GPID, ballot=3, committed=8)
    effects = machine.step(Assigned(4))
    assert isinstance(effects[0], Append)
    assert [mutation.decree for mutation in effects[0].mutations] == [9]
    assert not machine.serving
    assert machine.logged(9)
    assert machine.serving
    assert machine.committed == 9


def test_an_old_tail_is_proposed_again_under_the_new_ballot_before_the_barrier() -> None:
    tail = [Mutation(3, 9, 5, 6, b"a"), Mutation(3, 10, 7, 7, b"b")]
    machine = ReplicaMachine(GPID, ballot=2, committed=8, tail=tail)
    assert machine.ballot == 3
    (append,) = machine.step(Assigned(5))
    assert isinstance(append, Append)
    assert [(m.ballot, m.decree, m.payload[:1]) for m in append.mutations[:2]] == [
        (5, 9, b"a"),
        (5, 10, b"b"),
    ]
    assert append.mutations[2].decree == 11
    assert append.committed == 8
    assert not machine.logged(10)
    assert not machine.serving
    assert machine.logged(11)
    assert machine.committed == 11


@pytest.mark.parametrize("ballot", [1, 4, 5])
def test_a_ballot_that_is_not_higher_is_refused(ballot: int) -> None:
    machine = ReplicaMachine(GPID, ballot=5)
    assert isinstance(machine.step(Assigned(ballot))[0], Refuse)
    assert machine.status is ReplicaStatus.INACTIVE


def test_decrees_follow_each_other_and_commit_in_order() -> None:
    machine = primary()
    decrees = []
    for timestamp in (10, 11, 12):
        mutation = propose(machine, timestamp)
        assert mutation is not None
        decrees.append(mutation.decree)
        assert machine.committed == 1
    assert decrees == [2, 3, 4]
    for logged, committed in ((3, 3), (2, 3), (3, 3), (4, 4)):
        machine.logged(logged)
        assert machine.committed == committed


def test_a_deactivated_replica_commits_nothing_that_was_under_way() -> None:
    machine = primary()
    propose(machine)
    machine.step(Deactivated())
    assert not machine.logged(2)
    assert machine.committed == 1
    assert not machine.serving


def test_every_transition_of_the_table_is_reached_and_no_other() -> None:
    events: dict[ReplicaStatus, Callable[[int], Event]] = {
        ReplicaStatus.INACTIVE: lambda ballot: Deactivated(ballot),
        ReplicaStatus.PRIMARY: lambda ballot: Assigned(ballot, ("n2",)),
        ReplicaStatus.SECONDARY: lambda ballot: Followed(ballot),
        ReplicaStatus.POTENTIAL_SECONDARY: lambda ballot: Taught(ballot),
    }
    for before, make_before in events.items():
        for after, make_after in events.items():
            machine = ReplicaMachine(GPID)
            machine.step(make_before(1))
            assert machine.status is before
            machine.step(make_after(2))
            machine.check()
            if machine.status is after:
                assert after in TRANSITIONS[before] or before is after
            else:
                assert machine.status is before
                assert after not in TRANSITIONS[before]


def group(ballot: int = 1) -> ReplicaMachine:
    """A primary with two secondaries, which serves."""
    machine = ReplicaMachine(GPID)
    machine.step(Assigned(ballot, ("n2", "n3")))
    machine.logged(1)
    machine.acknowledged("n2", ballot, 1)
    assert not machine.serving
    machine.acknowledged("n3", ballot, 1)
    assert machine.serving
    machine.check()
    return machine


def test_a_decree_is_committed_when_the_own_log_and_every_secondary_have_it() -> None:
    machine = group()
    for timestamp in (10, 11):
        assert propose(machine, timestamp) is not None
    for have, committed in (
        (lambda: machine.acknowledged("n2", 1, 3), 1),
        (lambda: machine.acknowledged("n3", 1, 2), 1),
        (lambda: machine.logged(3), 2),
        (lambda: machine.acknowledged("n4", 1, 3), 2),
        (lambda: machine.acknowledged("n3", 1, 3), 3),
    ):
        have()
        machine.check()
        assert machine.committed == committed


def test_what_was_acknowledged_under_an_older_ballot_commits_nothing() -> None:
    machine = group()
    propose(machine)
    machine.step(Assigned(2, ("n2",)))
    machine.logged(3)
    assert not machine.acknowledged("n2", 1, 3)
    assert machine.committed == 1
    assert machine.acknowledged("n2", 2, 3)
    assert machine.committed == 3


def test_while_a_proposal_is_open_both_configurations_must_have_a_decree() -> None:
    machine = group()
    assert not machine.step(ProposalOpened("n4"))
    assert set(machine.followers) == {"n2", "n3", "n4"}
    propose(machine)
    machine.logged(2)
    machine.acknowledged("n2", 1, 2)
    machine.acknowledged("n3", 1, 2)
    assert machine.committed == 1
    machine.acknowledged("n4", 1, 2)
    assert machine.committed == 2
    assert isinstance(machine.step(ProposalOpened(""))[0], Refuse)
    propose(machine, 11)
    machine.logged(3)
    machine.acknowledged("n2", 1, 3)
    machine.acknowledged("n3", 1, 3)
    machine.step(ProposalClosed())
    machine.check()
    assert machine.committed == 3


def follower(status: type[Followed] | type[Taught] = Followed) -> ReplicaMachine:
    machine = ReplicaMachine(GPID)
    machine.step(status(3))
    return machine


def mutation(ballot: int, decree: int, text: bytes = b"") -> Mutation:
    return Mutation(ballot, decree, 1, 1, text)


def test_a_secondary_takes_what_its_primary_sends_and_nothing_with_a_gap() -> None:
    machine = follower()
    assert machine.accept(mutation(3, 1)) is True
    assert machine.accept(mutation(3, 1)) is False
    assert machine.accept(mutation(3, 3)) is None
    assert machine.accept(mutation(2, 2)) is None
    assert machine.accept(mutation(4, 2)) is None
    assert machine.accept(mutation(3, 2)) is True
    assert [each.decree for each in machine.follow(9)] == [1, 2]
    assert machine.accept(mutation(3, 2)) is False
    machine.check()


def test_a_tail_of_a_lower_ballot_gives_way_with_all_that_is_behind_it() -> None:
    machine = follower()
    for decree in (1, 2, 3):
        machine.accept(mutation(3, decree, b"old"))
    machine.follow(1)
    machine.step(Followed(5))
    assert machine.accept(mutation(5, 2, b"new")) is True
    assert machine.prepared.last_prepared == 2
    assert [each.payload for each in machine.follow(2)] == [b"new"]
    machine.check()


def test_a_learner_takes_copies_of_any_ballot_and_forgets_its_tail_when_taught_anew() -> None:
    machine = follower(Taught)
    assert machine.accept_copied(mutation(1, 1)) is True
    assert machine.accept_copied(mutation(4, 2)) is None
    assert machine.accept(mutation(3, 2)) is True
    machine.follow(1)
    machine.step(Taught(4))
    assert machine.prepared.last_prepared == 1
    assert isinstance(machine.step(Assigned(5))[0], Refuse)
    machine.step(Followed(5))
    assert machine.status is ReplicaStatus.SECONDARY
    machine.check()


def test_a_replica_that_follows_nobody_takes_nothing() -> None:
    machine = ReplicaMachine(GPID, ballot=3)
    assert machine.accept(mutation(3, 1)) is None
    assert machine.follow(1) == []


@pytest.mark.parametrize("seed", range(60))
def test_random_events_keep_the_invariants_and_lose_no_committed_decree(seed: int) -> None:
    rng = random.Random(seed)
    machine = ReplicaMachine(GPID)
    ballot = logged = 0
    content: dict[int, bytes] = {}
    committed: dict[int, bytes] = {}
    served = 0
    for step in range(200):
        effects: list[Effect] = []
        match rng.randrange(10):
            case 0:
                ballot += rng.randrange(2)
                effects = machine.step(Assigned(ballot))
            case 1 if rng.random() < 0.3:
                effects = machine.step(Deactivated())
            case 2 | 3 | 4:
                logged = rng.randint(logged, max(machine.prepared.last_prepared, logged))
                served += machine.logged(logged)
                for decree in range(max(committed, default=0) + 1, machine.committed + 1):
                    committed[decree] = content[decree]
            case _:
                mutation = propose(machine, step)
                if mutation is not None:
                    effects = [Append([mutation], machine.committed)]
        machine.check()
        for effect in effects:
            if isinstance(effect, Append):
                for mutation in effect.mutations:
                    assert mutation.decree > machine.committed
                    content[mutation.decree] = mutation.payload
        assert all(content[decree] == payload for decree, payload in committed.items())
    assert served, "the world was so bad that it tested nothing"
