"""Two whole clusters in virtual time: whatever happened, both end with the same rows.

One-way and two-way, equal and different partition counts, copies interrupted with deletes
in between, expiry against late writes, clocks that differ and jump, targets that are not
there yet; and a second `add_dup` in any phase changes nothing.
"""

import os
import time
from typing import Final

import pytest

from tests.helpers import groups
from tests.simulation.duplication_world import simulate_duplication

SEEDS: Final = 24


@pytest.mark.parametrize("block", groups(1, soak=8))
def test_both_clusters_end_with_the_same_rows(block: int) -> None:
    runs = [simulate_duplication(seed) for seed in range(block, SEEDS, 8)]
    for run in runs:
        assert run.wrong == [], f"seed {run.seed}"
    assert sum(run.acknowledged for run in runs) > 200
    assert sum(run.compared for run in runs) > 40
    assert sum(run.faults for run in runs) > 5


def test_a_seed_tells_one_story() -> None:
    assert simulate_duplication(3).digest == simulate_duplication(3).digest


@pytest.mark.soak
def test_fresh_seeds_are_clean_for_as_long_as_it_is_given() -> None:
    end = time.monotonic() + 60 * float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    seed = time.time_ns() % 1_000_000_000
    while time.monotonic() < end:
        run = simulate_duplication(seed)
        assert run.wrong == [], (
            f"seed {seed}: tests.simulation.duplication_world.simulate_duplication({seed})"
        )
        seed += 1
