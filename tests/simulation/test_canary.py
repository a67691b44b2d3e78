"""The simulator finds what was hidden from it, and nothing where nothing is."""

import os
import time
from typing import Final

import pytest

from tests.simulation.toy import BUGS, run

# Each bug is found within these; the rarest shows up in one run of fifteen.
SEEDS: Final = 120
CLEAN_SEEDS: Final = 30


def verdict(seed: int, bug: str) -> str:
    """What is wrong with this run, in words; empty if nothing is."""
    try:
        _, outcome = run(seed, bug)
    except (AssertionError, OSError, ValueError) as error:
        return repr(error)
    return "; ".join(outcome.wrong)


def test_the_correct_version_is_clean_under_faults() -> None:
    acknowledged = unknown = crashes = 0
    for seed in range(CLEAN_SEEDS):
        _, outcome = run(seed)
        assert outcome.wrong == [], f"seed {seed}"
        acknowledged += outcome.acknowledged
        unknown += outcome.unknown
        crashes += outcome.crashes
    assert acknowledged > 50 * CLEAN_SEEDS
    assert unknown > CLEAN_SEEDS, "no request was ever in doubt: there were no faults"
    assert crashes > CLEAN_SEEDS


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    for seed in range(SEEDS):
        found = verdict(seed, bug)
        if found:
            assert verdict(seed, bug) == found, "the same seed tells another story"
            return
    pytest.fail(f"{BUGS[bug]}: not found in {SEEDS} seeds")


@pytest.mark.soak
def test_the_correct_version_is_clean_for_as_long_as_it_is_given() -> None:
    end = time.monotonic() + 60 * float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    seed = 1_000_000
    while time.monotonic() < end:
        found = verdict(seed, "")
        assert not found, f"seed {seed}: {found}"
        seed += 1
    assert seed > 1_000_000
