"""The replica's machine: roles, decrees, barriers."""

import random

import pytest

from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.mutations import encode_mutation
from pegaskv.replica.effects import Append, Effect, Refuse
from pegaskv.replica.events import Assigned, Deactivated
from pegaskv.replica.machine import TRANSITIONS, ReplicaMachine
from pegaskv.replica.prepare_list import Mutation

GPID = Gpid(1, 0)


def propose(machine: ReplicaMachine, timestamp: int = 10) -> Mutation | None:
    return machine.propose(encode_mutation(timestamp, []), timestamp, timestamp)


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
