"""Each of the five failures that duplication is known for is impossible, in virtual time."""

import pytest

from tests.simulation.five_failures import SCENARIOS, Scenario, play

_ALL = [
    pytest.param(scenario, id=f"{failure}: {name}")
    for failure, scenarios in SCENARIOS.items()
    for name, scenario in scenarios.items()
]


@pytest.mark.parametrize("scenario", _ALL)
def test_none_of_the_five_failures_comes(scenario: Scenario) -> None:
    play(scenario)
