"""Whole replicated clusters in virtual time: nothing acknowledged is lost, nothing old is read.

Crashes, power cuts, pauses beyond the lease, cuts in one direction or both, resets, slow, full
and failing disks, clocks that drift and jump, a meta server that is gone, operators: then
everything serves again, is complete again, and the same on all members.
"""

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Final

import pytest

from tests.simulation.cluster_aimed import AIMED
from tests.simulation.cluster_faults import KINDS
from tests.simulation.cluster_shrink import shrink
from tests.simulation.cluster_world import (
    ClusterRun,
    Story,
    TableStory,
    simulate_cluster,
    simulate_group,
    story_of,
)

SEEDS: Final = 4
GROUP_SEEDS: Final = 4


def test_clusters_keep_what_they_promise() -> None:
    runs = [simulate_cluster(seed, _short(story_of(seed))) for seed in range(SEEDS)]
    for run in runs:
        assert run.wrong == [], f"seed {run.seed}: {run.told}"
    assert sum(run.done for run in runs) > 50 * SEEDS
    assert sum(run.checked for run in runs) > 50 * SEEDS
    assert sum(run.compared for run in runs) > SEEDS
    assert sum(sum(run.faults.values()) for run in runs) > SEEDS
    assert sum(run.reached.primaries for run in runs) > 2 * SEEDS


def test_groups_of_replicas_keep_what_they_promise_with_the_least_meta_server() -> None:
    runs = [simulate_group(seed, _stress(seed)) for seed in range(GROUP_SEEDS)]
    for run in runs:
        assert run.wrong == [], f"seed {run.seed}: {run.told}"
    proposals: Counter[str] = sum((run.reached.proposals for run in runs), Counter())
    assert proposals["remove"]
    assert proposals["upgrade"]
    assert sum(run.reached.recovered for run in runs)


def _short(story: Story) -> Story:
    return replace(story, seconds=min(story.seconds, 8), pace_ms=max(story.pace_ms, 60))


def _stress(seed: int) -> Story:
    return replace(
        _short(Story.draw(Random(f"stress {seed}"))),
        kinds=("ambush", "isolate", "kill", "pause"),
        tables=(TableStory(3, 1, "fsync"),),
        at_once=2,
        between_ms=300,
    )


@pytest.mark.parametrize("kind", AIMED)
def test_groups_keep_what_they_promise_in_what_is_aimed_at_them(kind: str) -> None:
    run = simulate_group(0, replace(_stress(0), kinds=(kind,), seconds=12))
    assert run.wrong == []
    assert run.faults[kind]


def test_every_kind_of_fault_is_drawn_by_some_seed() -> None:
    drawn = {kind for seed in range(200) for kind in story_of(seed).kinds}
    assert drawn == {*KINDS, *AIMED}


_TELL: Final = (
    "import logging; logging.disable(logging.CRITICAL)\n"
    "from tests.simulation.cluster_world import simulate_cluster\n"
    "print(simulate_cluster(95).digest)"
)


def test_a_seed_tells_one_story_in_every_process() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", _TELL],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert simulate_cluster(95).digest == answer.stdout.strip()


def test_a_failing_run_is_made_smaller() -> None:
    story = replace(story_of(0), kinds=("kill", "pause", "reset"), seconds=16, writers=4)

    def play(seed: int, story: Story) -> ClusterRun:
        """Fails as long as something is killed for three seconds or more."""
        run = ClusterRun(seed)
        if "kill" in story.kinds and story.seconds >= 3:
            run.wrong.append("it was killed")
        return run

    told = shrink(7, story, play)
    assert "kinds=('kill',)" in told
    assert "seconds=3" in told
    assert "writers=1" in told
    assert told.endswith("it was killed")


@pytest.mark.soak
@pytest.mark.parametrize("world", [simulate_cluster, simulate_group])
def test_fresh_seeds_of_clusters_are_clean_for_as_long_as_it_is_given(world: object) -> None:
    end = time.monotonic() + 30 * float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    seed = time.time_ns() % 1_000_000_000
    while time.monotonic() < end:
        run = world(seed)  # type: ignore[operator]
        assert run.wrong == [], f"seed {seed}: {run.told}"
        seed += 1
