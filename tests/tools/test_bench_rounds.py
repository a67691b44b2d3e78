"""How benches take turns, and wait for a server to be calm."""

from typing import Any

import pytest

from tools.bench import processes
from tools.bench.report import OURS, Report, alternate


def test_a_round_is_taken_in_parts_and_a_slow_moment_is_everybodys() -> None:
    asked: list[str] = []

    def side(name: str, rate: float) -> float:
        asked.append(name)
        # The machine is half as fast during the second half of what is asked of it.
        return rate if len(asked) <= 8 else rate / 2

    comparison = Report("any", "").start("calls", "calls/s")
    rates = {OURS: lambda: side(OURS, 60.0), "peer": lambda: side("peer", 120.0)}
    alternate(comparison, rates, 2, parts=4)
    pairs = [tuple(asked[at : at + 2]) for at in range(0, 16, 2)]
    assert pairs == [(OURS, "peer"), ("peer", OURS)] * 4
    assert comparison.rounds == {OURS: [60.0, 30.0], "peer": [120.0, 60.0]}
    assert comparison.ratios("peer") == [0.5, 0.5]
    alternate(comparison, {OURS: iter([1.0, 3.0]).__next__, "peer": lambda: 1.0}, 1, parts=2)
    assert comparison.ours[-1] == 2.0


@pytest.mark.parametrize("works_for", [2, 1_000])
async def test_a_server_that_never_rests_ends_the_bench(
    works_for: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def cpu_seconds(pid: int) -> float:
        nonlocal looks
        looks += 1
        return float(min(looks, works_for))

    monkeypatch.setattr(processes, "cpu_seconds", cpu_seconds)
    monkeypatch.setattr(processes, "_CALM_LOOK_S", 0.001)
    monkeypatch.setattr(processes, "_CALM_S", 0.01)

    class Busy:
        pid = 1

    busy: Any = Busy()
    if works_for == 2:
        await processes.calm(busy)
        assert looks == 3
    else:
        with pytest.raises(SystemExit, match="still works"):
            await processes.calm(busy)
