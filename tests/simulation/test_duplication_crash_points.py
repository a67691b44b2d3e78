"""A duplication whose servers die three times, at any await and in any I/O, goes on by itself.

The enumeration is in `crash_points.py`; here every so many-th of its cases is played, and in
`make soak` each of them.
"""

from typing import Final

import pytest

from tests.simulation.crash_points import BLOWS, SCENES, all_cases, count_points, survive

# About ten cases of each scene; no divisor of any count, so that all kinds of cases come.
STRIDE: Final = 211


@pytest.mark.parametrize("scene", list(SCENES))
def test_killed_three_times_at_any_await_it_goes_on(scene: str) -> None:
    causes = _play(scene, STRIDE)
    assert causes, "the target was never away for long"


@pytest.mark.soak
@pytest.mark.parametrize("scene", list(SCENES))
def test_killed_three_times_at_each_await_it_goes_on(scene: str) -> None:
    """About six minutes a scene."""
    assert _play(scene, 1) > 100


def _play(scene: str, stride: int) -> int:
    points = count_points(scene)
    cases = list(all_cases(scene, points))
    assert min(points.steps.values()) > 100
    assert min(points.ios.values()) > 50
    causes, wrong = 0, []
    for case in cases[::stride]:
        outcome = survive(case, points)
        causes += outcome.causes
        if outcome.wrong or outcome.blows != BLOWS:
            wrong.append(f"{case}: {outcome}")
    assert not wrong, "\n".join(wrong)
    return causes
