"""A duplication whose servers die three times, at any await and in any I/O, goes on by itself.

The enumeration is in `crash_points.py`; here every so many-th of its cases is played, in
`make soak` as many as its time allows, and by `tools.simulate --world crashes` each of them.
"""

import os
import time
from collections.abc import Iterable
from random import Random
from typing import Final

import pytest

from tests.simulation.crash_points import (
    SCENES,
    Case,
    Points,
    all_cases,
    count_points,
    survive,
)

# About five cases of each scene; no divisor of any count, so that all kinds of cases come.
STRIDE: Final = 431


@pytest.mark.parametrize("scene", list(SCENES))
def test_killed_three_times_at_any_await_it_goes_on(scene: str) -> None:
    points = count_points(scene)
    cases = list(all_cases(scene, points))
    assert min(points.steps.values()) > 100
    assert min(points.ios.values()) > 50
    assert _play(cases[::STRIDE], points), "the target was never away for long"


@pytest.mark.soak
@pytest.mark.parametrize("scene", list(SCENES))
def test_killed_three_times_at_each_await_it_goes_on(scene: str) -> None:
    """Each case takes a sixth of a second or so."""
    points = count_points(scene)
    cases = list(all_cases(scene, points))
    Random(time.time_ns()).shuffle(cases)
    minutes = float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    end = time.monotonic() + 60 * minutes / len(SCENES)
    assert _play((case for case in cases if time.monotonic() < end), points)


def _play(cases: Iterable[Case], points: Points) -> int:
    """Return in how many cases the source had to say what is wrong."""
    causes, wrong = 0, []
    for case in cases:
        outcome = survive(case, points)
        causes += outcome.causes
        if outcome.wrong:
            wrong.append(f"{case}: {outcome}")
    assert not wrong, "\n".join(wrong)
    return causes
