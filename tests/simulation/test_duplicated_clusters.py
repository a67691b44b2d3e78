"""Two replicated clusters in virtual time: whatever happens on either side, both end equal.

And the mistakes that are easily made with several replicas are found, each within a number
of seeds (`plants_clusters`).
"""

import os
import time
from dataclasses import replace
from random import Random
from typing import Any, Final

import pytest

from pegaskv.base.errors import PegasKVError
from tests.simulation.duplicated_clusters import ClustersStory, simulate_duplicated_clusters
from tests.simulation.plants_clusters import PLANTS, Plant

SEEDS: Final = 200
# What makes a seed cost much; the soak plays that too.
_QUICK: Final[dict[str, Any]] = {
    "source_partitions": 1,
    "rounds": 1,
    "absent_s": 0,
    "slow_copy": False,
}
_KINDS_QUICK: Final = ("kill", "meta kill", "operate", "pause", "reset", "stop", "wipe")
# Who is found by most seeds, each of which costs little: what a seed plays may be another one
# after any change.
_PLANTS_QUICK: Final = (
    "secondaries keep the log for ever",
    "a new primary ships from its own commit",
    "progress is kept beside the rows",
)


def test_both_clusters_end_with_the_same_rows() -> None:
    runs = []
    for seed in (3, 4):
        story = replace(ClustersStory.draw(Random(f"quick {seed}")), **_QUICK, kinds=_KINDS_QUICK)
        runs.append(simulate_duplicated_clusters(seed, story))
    for run in runs:
        assert run.wrong == [], f"seed {run.seed}: {run.told}"
    assert sum(run.acknowledged for run in runs) > 50
    assert sum(run.faults for run in runs) > 3
    assert sum(run.compared for run in runs) > 10


def _verdict(name: str, plant: Plant, seed: int) -> str:
    story = replace(ClustersStory.draw(Random(f"{name} {seed}")), **plant.story)
    try:
        return "; ".join(simulate_duplicated_clusters(seed, story).wrong)
    except (PegasKVError, AssertionError, TimeoutError) as error:
        return repr(error)


@pytest.mark.parametrize("name", _PLANTS_QUICK)
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant = PLANTS[name]
    plant.put_back(monkeypatch)
    for seed in (plant.seed, *range(SEEDS)):
        if _verdict(name, plant, seed):
            return
    pytest.fail(f"{name}: not found in {SEEDS} seeds")


@pytest.mark.soak
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("name", PLANTS)
def test_each_planted_mistake_is_found_from_the_first_seed_on(
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


@pytest.mark.soak
@pytest.mark.timeout(7_200)
def test_fresh_seeds_are_clean_for_as_long_as_it_is_given() -> None:
    end = time.monotonic() + 60 * float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    seed = time.time_ns() % 1_000_000_000
    while time.monotonic() < end:
        run = simulate_duplicated_clusters(seed)
        assert run.wrong == [], (
            f"python -m tools.simulate --world duplicated-clusters --from {seed} --seeds 1"
        )
        seed += 1
