"""The worlds of one server find the mistakes that single servers are known for.

Each plant is an old mistake put back into production code; see `plants_standalone.py`.
"""

from typing import Final

import pytest

from pegaskv.client import calls
from tests.simulation.plants_standalone import PLANTS
from tests.simulation.standalone_world import count_under_kills, simulate

SEEDS: Final = 200


@pytest.mark.parametrize("name", list(PLANTS))
def test_a_planted_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One seed of each is known to find it; when the worlds have changed, look for another."""
    plant = PLANTS[name]
    plant.put_back(monkeypatch)
    for seed in (plant.seed, *range(SEEDS)):
        if _verdict(seed):
            return
    pytest.fail(f"{name}: not found in {SEEDS} seeds")


@pytest.mark.soak
@pytest.mark.parametrize("name", list(PLANTS))
def test_a_planted_mistake_is_found_from_the_first_seed_on(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        PLANTS[name].put_back(patch)
        seed = next((seed for seed in range(SEEDS) if _verdict(seed)), None)
    assert seed is not None, f"{name}: not found in {SEEDS} seeds"
    assert not _verdict(seed), "found where there is nothing"
    with capsys.disabled():
        print(f"\n{name}: found by seed {seed}")  # noqa: T201 - what the soak is for


def _verdict(seed: int) -> str:
    try:
        run = simulate(seed)
    except Exception as error:  # noqa: BLE001 - a broken server may fail in any way
        return repr(error)
    return "; ".join(run.wrong)


def test_a_counter_under_kills_counts_each_increment_once() -> None:
    acknowledged, unknown, counted = count_under_kills(0)
    assert acknowledged <= counted <= acknowledged + unknown
    assert min(acknowledged, unknown) > 5


def test_a_client_that_tries_unanswered_writes_again_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = calls.advise
    monkeypatch.setattr(
        calls, "advise", lambda error, *, retry_unknown: real(error, retry_unknown=True)
    )
    acknowledged, unknown, counted = count_under_kills(0)
    assert counted > acknowledged + unknown
