"""Each of the five failures that duplication is known for is impossible, in virtual time."""

import pytest

from tests.simulation.five_failures import SCENARIOS, Pair, Scenario, play

_ALL = [
    pytest.param(scenario, id=f"{failure}: {name}")
    for failure, scenarios in SCENARIOS.items()
    for name, scenario in scenarios.items()
]


@pytest.mark.parametrize("scenario", _ALL)
def test_none_of_the_five_failures_comes(scenario: Scenario) -> None:
    play(scenario)


def test_a_source_does_not_spin_while_its_target_is_silent() -> None:
    async def scenario(pair: Pair) -> None:
        table = await pair.fill("t", 0, 8)
        await pair.add("t")
        await pair.reach("t", "DS_LOG")
        pair.beta.node.stall()
        for number in range(30):
            await table.set(b"h%d" % number, b"s", b"v")
        before = pair.world.trace.count
        await pair.world.sleep_ms(2_500)
        turns.append(pair.world.trace.count - before)
        pair.beta.node.resume()
        await pair.equal("t")

    turns: list[int] = []
    play(scenario)
    assert 50 < turns[0] < 1_000
