"""The worlds of replicated clusters find the mistakes that replicated systems are known for.

Each plant is an old mistake put back into production code; see `plants_cluster.py`. It must be
found within a number of seeds: by an invariant, by a judge, or by a cluster that gets stuck.
"""

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.simulation.cluster_world import Story, simulate_cluster, simulate_group
from tests.simulation.plants_cluster import PLANTS, Plant, table

SEEDS: Final = 200
# These are found in a second each; the others are for the soak.
QUICK: Final = (
    "records are acknowledged and dropped",
    "a restarted primary goes on in its role",
    "the lease is not looked at after the read",
    "one secondary need not acknowledge",
    "too few members take writes",
    # By faults that are aimed at them.
    "the meta server does not compare ballots",
    "a process that has ended proposes",
    "a primary is believed before the meta server",
    "a claim that is open still acknowledges",
    "an upgrade obeys the old configuration only",
    "the history ignores ballots",
    "records of an old incarnation are replayed",
)
_WORLDS: Final = {"group": simulate_group, "cluster": simulate_cluster}


def verdict(name: str, plant: Plant, seed: int) -> str:
    """What is wrong with a run of a plant, in words; empty if nothing is."""
    story = replace(Story.draw(Random(f"{name} {seed}")), **plant.overrides)
    try:
        return "; ".join(_WORLDS[plant.world](seed, story).wrong)
    except Exception as error:  # noqa: BLE001 - a broken server may fail in any way
        return repr(error)


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_mistake_of_replication_is_found(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One seed of each is known to find it; when the worlds have changed, look for another."""
    plant = PLANTS[name]
    plant.put_back(monkeypatch)
    for seed in (plant.seed, *range(SEEDS)):
        if verdict(name, plant, seed):
            return
    pytest.fail(f"{name}: not found in {SEEDS} seeds")


def test_the_page_on_testing_has_each_mistake_of_replication() -> None:
    page = (Path(__file__).parents[2] / "docs" / "testing.md").read_text().splitlines()
    assert [row for row in table() if row not in page] == []


@pytest.mark.soak
@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_mistake_of_replication_is_found_from_the_first_seed_on(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = PLANTS[name]
    with monkeypatch.context() as patch:
        plant.put_back(patch)
        seed = next((seed for seed in range(SEEDS) if verdict(name, plant, seed)), None)
    assert seed is not None, f"{name}: not found in {SEEDS} seeds"
    assert not verdict(name, plant, seed), "found where there is nothing"
    with capsys.disabled():
        print(f"\n{name}: found by seed {seed}")  # noqa: T201 - what the soak is for
