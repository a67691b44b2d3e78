"""The whole standalone server under kill -9 and power cuts, in virtual time.

An acknowledged write to an `fsync` table survives both, one to an `os` table survives
kill -9; nothing is invented, no multi_set is halved, and what was seen once stays.
"""

import os
import time
from typing import Final

import pytest

from tests.helpers import groups
from tests.simulation.standalone_world import simulate

SEEDS: Final = 24


@pytest.mark.parametrize("block", groups(2, soak=8))
def test_nothing_acknowledged_is_lost_and_nothing_is_invented(block: int) -> None:
    runs = [simulate(seed) for seed in range(block, SEEDS, 8)]
    for run in runs:
        assert run.wrong == [], f"seed {run.seed}"
    assert sum(run.acknowledged for run in runs) > 500
    assert sum(run.power_cuts for run in runs) > 2
    assert sum(run.kills for run in runs) > 2
    assert sum(run.checks for run in runs) >= 5 * len(runs)


def test_a_seed_tells_one_story() -> None:
    assert simulate(7, rounds=2).digest == simulate(7, rounds=2).digest
    assert simulate(7, rounds=2).digest != simulate(8, rounds=2).digest


@pytest.mark.soak
def test_fresh_seeds_are_clean_for_as_long_as_it_is_given() -> None:
    end = time.monotonic() + 60 * float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    seed = time.time_ns() % 1_000_000_000
    while time.monotonic() < end:
        run = simulate(seed)
        assert run.wrong == [], f"seed {seed}: tests.simulation.standalone_world.simulate({seed})"
        seed += 1
