"""The whole standalone server under kill -9 and power cuts, in virtual time.

An acknowledged write to an `fsync` table survives both, one to an `os` table survives
kill -9; nothing is invented, no multi_set is halved, and what was seen once stays.
"""

import os
import time
from collections.abc import Callable
from typing import Any, Final

import pytest

from pegaskv.replica.front import Front
from pegaskv.storage.log_index import LogIndex
from pegaskv.storage.mutation_log import MutationLog
from tests.simulation.standalone_world import Run, simulate

SEEDS: Final = 24
PLANT_SEEDS: Final = 40


@pytest.mark.parametrize("block", range(4))
def test_nothing_acknowledged_is_lost_and_nothing_is_invented(block: int) -> None:
    runs = [simulate(seed) for seed in range(block, SEEDS, 4)]
    for run in runs:
        assert run.wrong == [], f"seed {run.seed}"
    assert sum(run.acknowledged for run in runs) > 1_000
    assert sum(run.power_cuts for run in runs) > 5
    assert sum(run.kills for run in runs) > 5
    assert sum(run.checks for run in runs) >= 5 * len(runs)


def test_a_seed_tells_one_story() -> None:
    assert simulate(7, rounds=2).digest == simulate(7, rounds=2).digest
    assert simulate(7, rounds=2).digest != simulate(8, rounds=2).digest


def _acknowledge_before_the_sync(patch: pytest.MonkeyPatch) -> None:
    def sync(self: MutationLog, done: Callable[[BaseException | None], Any]) -> None:
        self._worker.submit(lambda: None, lambda _, error: done(error))

    patch.setattr(MutationLog, "sync", sync)


def _lose_the_end_of_the_log(patch: pytest.MonkeyPatch) -> None:
    from pegaskv.replica import recovery

    real = recovery.split_history

    def short(valid: Any, flushed: int) -> Any:
        return real(list(valid)[:-1], flushed)

    patch.setattr(recovery, "split_history", short)


def _flush_less_than_is_said(patch: pytest.MonkeyPatch) -> None:
    real = LogIndex.mark_flushed

    def more(self: LogIndex, gpid: Any, decree: int, now_ms: int) -> None:
        real(self, gpid, decree + 200, now_ms)

    patch.setattr(LogIndex, "mark_flushed", more)


def _acknowledge_before_the_append(patch: pytest.MonkeyPatch) -> None:
    real = Front._tick

    def tick(self: Front) -> None:
        for replica in self._dirty:
            if replica.open is not None:
                for connection, reply in replica.open.replies:
                    connection.finish(list(reply))
                    connection.flush()
                replica.open.replies = []
        real(self)

    patch.setattr(Front, "_tick", tick)


PLANTS: Final[dict[str, Callable[[pytest.MonkeyPatch], None]]] = {
    "a write is acknowledged before the sync": _acknowledge_before_the_sync,
    "a write is acknowledged before it is in the log": _acknowledge_before_the_append,
    "the replay stops one short": _lose_the_end_of_the_log,
    "more counts as flushed than is": _flush_less_than_is_said,
}


@pytest.mark.parametrize("plant", list(PLANTS))
def test_a_planted_mistake_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[plant](monkeypatch)
    for seed in range(PLANT_SEEDS):
        if _verdict(seed):
            return
    pytest.fail(f"{plant}: not found in {PLANT_SEEDS} seeds")


def _verdict(seed: int) -> str:
    try:
        run: Run = simulate(seed)
    except Exception as error:  # noqa: BLE001 - a broken server may fail in any way
        return repr(error)
    return "; ".join(run.wrong)


@pytest.mark.soak
def test_fresh_seeds_are_clean_for_as_long_as_it_is_given() -> None:
    end = time.monotonic() + 60 * float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    seed = time.time_ns() % 1_000_000_000
    while time.monotonic() < end:
        run = simulate(seed)
        assert run.wrong == [], f"seed {seed}: tests.simulation.standalone_world.simulate({seed})"
        seed += 1
