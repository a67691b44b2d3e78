"""`tools.simulate` plays what it is told, and a seed that fails can be seen again."""

import pytest

from pegaskv.storage.mutation_log import MutationLog
from tests.simulation import plants_standalone
from tools import simulate


@pytest.mark.parametrize("world", list(simulate.WORLDS))
def test_a_seed_of_each_world_is_clean(world: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate.main(["--world", world, "--seeds", "1", "--from", "4"]) == 0
    assert capsys.readouterr().out.startswith(f"{world}: 1 seeds, 0 failed")


def test_a_seed_that_fails_is_printed_with_what_it_chose_and_how_to_see_it_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant = plants_standalone.PLANTS["a write is acknowledged before the sync"]
    sync = MutationLog.sync
    plant.put_back(monkeypatch)
    assert MutationLog.sync is not sync
    arguments = ["--world", "standalone", "--from", str(plant.seed), "--seeds", "1"]
    assert simulate.main(arguments) == 1
    told = capsys.readouterr().out
    assert f"seed {plant.seed} of standalone failed" in told
    assert "latency_us=" in told
    assert f"again: python -m tools.simulate {' '.join(arguments)}" in told


def test_a_world_that_plays_otherwise_the_second_time_has_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.simulation import standalone_world

    real, played = standalone_world.simulate, []

    def simulate_otherwise(seed: int) -> standalone_world.Run:
        played.append(seed)
        return real(seed + len(played), rounds=1)

    monkeypatch.setattr(standalone_world, "simulate", simulate_otherwise)
    assert simulate.main(["--world", "standalone", "--seeds", "1", "--twice"]) == 1
    assert "the second time" in capsys.readouterr().out
    assert len(played) == 2
