"""The rules of replication hold in every state within bounds, and each planted mistake is found.

The searches here take seconds; `make soak` makes the bounds wider.
"""

import os
import time
from random import Random

import pytest

from tests.model.happenings import Step, steps, take
from tests.model.model import Bounds, Broken, Rules, State, first_state
from tests.model.plants import NOT_NEEDED, PLANTS, WIDE, Plant, find
from tests.model.search import say, search, walk
from tests.model.wide import QUICK, WIDER, until

# Fewer would mean that something no longer happens in the model.
STATES_MIN = 1_000


@pytest.mark.parametrize("name", list(QUICK))
def test_the_rules_hold_in_every_state_within_bounds(name: str) -> None:
    found = search(Rules(), QUICK[name])
    assert not found.broken, "\n".join([found.broken, *found.way])
    assert found.complete
    assert found.states > STATES_MIN


@pytest.mark.parametrize("seed", range(2))
def test_the_rules_hold_on_random_walks_with_wide_bounds(seed: int) -> None:
    bounds = Bounds(nodes=3 + seed, writes=5, ballots=8, kills=4, wipes=1)
    rules = Rules(lease=1 + seed, grace=1 + 2 * seed)
    found = walk(rules, bounds, Random(seed), steps_max=120, walks=100)
    assert not found.broken, "\n".join([found.broken, *found.way])
    assert found.steps > 10_000


@pytest.mark.parametrize("name", list(PLANTS))
def test_a_planted_mistake_in_the_rules_is_found(name: str) -> None:
    found = find(PLANTS[name])
    assert found.broken, f"{name} was not found in {found.states} states"
    assert found.way


@pytest.mark.parametrize("name", ["served_without_a_lease", "a_claim_outlives_its_process"])
def test_the_way_to_a_mistake_can_be_gone_again(name: str) -> None:
    """The search takes nodes for one another; what it tells has one number for each."""
    plant = PLANTS[name]
    state = first_state(plant.rules, plant.bounds)
    *before, last = find(plant).way
    for told in before:
        state = take(plant.rules, plant.bounds, state, _step(plant, state, told))
    with pytest.raises(Broken):
        take(plant.rules, plant.bounds, state, _step(plant, state, last))


def _step(plant: Plant, state: State, told: str) -> Step:
    return next(step for step in steps(plant.rules, plant.bounds, state) if say(step) == told)


@pytest.mark.soak
@pytest.mark.parametrize("name", list(WIDER))
def test_the_rules_hold_within_wider_bounds(name: str) -> None:
    minutes = float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    found = search(Rules(), WIDER[name], stop=until(time.monotonic() + 60 * minutes))
    assert not found.broken, "\n".join([found.broken, *found.way])


@pytest.mark.soak
@pytest.mark.parametrize("name", list(NOT_NEEDED))
def test_nothing_breaks_without_what_is_said_not_to_be_needed(name: str) -> None:
    for bounds in QUICK.values():
        assert not search(NOT_NEEDED[name], bounds).broken
    assert not walk(NOT_NEEDED[name], WIDE, Random(0), steps_max=100, walks=20_000).broken


@pytest.mark.soak
def test_the_rules_hold_on_many_random_walks() -> None:
    bounds = Bounds(nodes=4, writes=6, ballots=12, kills=6, wipes=2, commit_point_forgotten=True)
    for seed in range(20):
        found = walk(Rules(), bounds, Random(seed), steps_max=200, walks=1_000)
        assert not found.broken, "\n".join([f"seed {seed}: {found.broken}", *found.way])
