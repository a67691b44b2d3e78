"""The worlds and scenarios of two clusters find the mistakes that duplications are known for.

Each plant is an old mistake put back into production code; see `plants_duplication.py`. It
must be found by each scenario that is named for it, and by random worlds within a number of
seeds: by rows that differ, by a duplication that gets stuck, or by a server that falls over.
"""

from dataclasses import replace
from random import Random
from typing import Final

import pytest

from pegaskv.base.errors import PegasKVError
from tests.simulation.crash_points import Case, count_points, survive
from tests.simulation.duplication_world import Story, simulate_duplication
from tests.simulation.five_failures import SCENARIOS, Scenario, play
from tests.simulation.plants_duplication import PLANTS, Plant

SEEDS: Final = 200

_BY_SCENARIOS: Final = [name for name, plant in PLANTS.items() if plant.scenarios]
_BY_WORLDS: Final = [name for name, plant in PLANTS.items() if plant.story]
# What a scenario finds, worlds need to find in the soak only.
_BY_WORLDS_ALONE: Final = [name for name in _BY_WORLDS if not PLANTS[name].scenarios]


@pytest.mark.parametrize("name", _BY_SCENARIOS)
def test_each_scenario_named_for_a_mistake_finds_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PLANTS[name].put_back(monkeypatch)
    for scenario in PLANTS[name].scenarios:
        with pytest.raises(AssertionError):
            _play_some(scenario)


def _play_some(scenario: Scenario) -> None:
    """Where chance makes the pauses, one may end in time."""
    for seed in (1, 2, 3):
        play(scenario, seed)


def test_each_of_the_five_failures_has_a_mistake_that_is_found() -> None:
    shown = {scenario for plant in PLANTS.values() for scenario in plant.scenarios}
    for failure, scenarios in SCENARIOS.items():
        assert shown & set(scenarios.values()), failure


@pytest.mark.parametrize("name", _BY_WORLDS_ALONE)
def test_random_worlds_find_a_planted_mistake(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed of each is known to find it; when the worlds have changed, look for another."""
    plant = PLANTS[name]
    plant.put_back(monkeypatch)
    for seed in (plant.seed, *range(SEEDS)):
        if _verdict(name, plant, seed):
            return
    pytest.fail(f"{name}: not found in {SEEDS} seeds")


@pytest.mark.soak
@pytest.mark.parametrize("name", _BY_WORLDS)
def test_a_planted_mistake_is_found_from_the_first_seed_on(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = PLANTS[name]
    with monkeypatch.context() as patch:
        plant.put_back(patch)
        seed = next((seed for seed in range(SEEDS) if _verdict(name, plant, seed)), None)
    assert seed is not None, f"{name}: not found in {SEEDS} seeds"
    assert not _verdict(name, plant, seed), "found where there is nothing"
    with capsys.disabled():
        print(f"\n{name}: found by seed {seed}")  # noqa: T201 - what the soak is for


def _verdict(name: str, plant: Plant, seed: int) -> str:
    story = replace(Story.draw(Random(f"{name} {seed}")), **plant.story)
    try:
        return "; ".join(simulate_duplication(seed, story).wrong)
    except (PegasKVError, AssertionError, TimeoutError) as error:
        return repr(error)


def test_the_enumeration_of_crashes_finds_a_start_that_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    points = count_points("empty")
    case = Case("empty", ("alpha",), power=False, point=points.steps["alpha"] // 4)
    assert survive(case, points).wrong == []
    PLANTS["a restart forgets where the log begins"].put_back(monkeypatch)
    assert survive(case, points).wrong
