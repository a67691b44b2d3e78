"""The replica's machine: roles, decrees, barriers."""

import random

import pytest

from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.mutations import encode_mutation
from pegaskv.replica.effects import Append, Commit, Effect, Refuse, Serve
from pegaskv.replica.events import Assigned, Deactivated, Event, Logged, Proposed
from pegaskv.replica.machine import TRANSITIONS, ReplicaMachine
from pegaskv.replica.prepare_list import Mutation

GPID = Gpid(1, 0)


def proposed(timestamp: int = 10) -> Proposed:
    return Proposed(encode_mutation(timestamp, []), timestamp, timestamp)


def primary(ballot: int = 1) -> ReplicaMachine:
    machine = ReplicaMachine(GPID)
    machine.step(Assigned(ballot))
    machine.step(Logged(1))
    machine.check()
    return machine


def test_a_new_machine_is_inactive_and_refuses_proposals() -> None:
    machine = ReplicaMachine(GPID, ballot=7, committed=40)
    assert machine.status is ReplicaStatus.INACTIVE
    assert isinstance(machine.step(proposed())[0], Refuse)
    assert machine.prepared.last_prepared == 40


def test_nothing_is_served_before_the_barrier_is_committed() -> None:
    machine = ReplicaMachine(GPID, ballot=3, committed=8)
    effects = machine.step(Assigned(4))
    assert isinstance(effects[0], Append)
    assert [mutation.decree for mutation in effects[0].mutations] == [9]
    assert not machine.serving
    assert machine.step(Logged(9)) == [Commit(9), Serve(4)]
    assert machine.serving


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
    machine.step(Logged(10))
    assert not machine.serving
    assert machine.step(Logged(11)) == [Commit(11), Serve(5)]


@pytest.mark.parametrize("ballot", [1, 4, 5])
def test_a_ballot_that_is_not_higher_is_refused(ballot: int) -> None:
    machine = ReplicaMachine(GPID, ballot=5)
    assert isinstance(machine.step(Assigned(ballot))[0], Refuse)
    assert machine.status is ReplicaStatus.INACTIVE


def test_decrees_follow_each_other_and_commit_in_order() -> None:
    machine = primary()
    decrees = []
    for timestamp in (10, 11, 12):
        (append,) = machine.step(proposed(timestamp))
        assert isinstance(append, Append)
        decrees.append(append.mutations[0].decree)
        assert append.committed == 1
    assert decrees == [2, 3, 4]
    assert machine.step(Logged(3)) == [Commit(3)]
    assert machine.step(Logged(3)) == []
    assert machine.step(Logged(4)) == [Commit(4)]


def test_a_deactivated_replica_commits_nothing_that_was_under_way() -> None:
    machine = primary()
    machine.step(proposed())
    machine.step(Deactivated())
    assert machine.step(Logged(2)) == []
    assert machine.committed == 1
    assert not machine.serving


def test_every_transition_of_the_table_is_reached_and_no_other() -> None:
    assert TRANSITIONS[ReplicaStatus.INACTIVE] == {ReplicaStatus.PRIMARY}
    machine = primary()
    machine.step(Assigned(2))
    assert machine.status is ReplicaStatus.PRIMARY
    machine.step(Deactivated())
    assert machine.status is ReplicaStatus.INACTIVE


@pytest.mark.parametrize("seed", range(60))
def test_random_events_keep_the_invariants_and_lose_no_committed_decree(seed: int) -> None:
    rng = random.Random(seed)
    machine = ReplicaMachine(GPID)
    ballot = logged = 0
    content: dict[int, bytes] = {}
    committed: dict[int, bytes] = {}
    served = 0
    for step in range(200):
        event: Event
        match rng.randrange(10):
            case 0:
                ballot += rng.randrange(2)
                event = Assigned(ballot)
            case 1 if rng.random() < 0.3:
                event = Deactivated()
            case 2 | 3 | 4:
                logged = rng.randint(logged, max(machine.prepared.last_prepared, logged))
                event = Logged(logged)
            case _:
                event = proposed(step)
        effects: list[Effect] = machine.step(event)
        machine.check()
        for effect in effects:
            if isinstance(effect, Append):
                for mutation in effect.mutations:
                    assert mutation.decree > machine.committed
                    content[mutation.decree] = mutation.payload
            elif isinstance(effect, Commit):
                for decree in range(max(committed, default=0) + 1, effect.decree + 1):
                    committed[decree] = content[decree]
            elif isinstance(effect, Serve):
                served += 1
        assert all(content[decree] == payload for decree, payload in committed.items())
    assert served, "the world was so bad that it tested nothing"
