"""Plays seeds of a simulated world, and tells how to see one again that fails.

    python -m tools.simulate --seeds 1000
    python -m tools.simulate --world duplication --from 4711 --seeds 1 --twice

The worlds: `cluster` is a whole replicated cluster, `group` the same with a meta server that
only compares and sets, `standalone` one server, `duplication` two clusters, and `crashes` a
crash at every step of one.

A seed decides everything: what clients do, what goes wrong and when, the options of the
servers, the network and the disks. What it chose is printed with a failure, and a failing
run of a cluster is made smaller: `--shrink` says for how many seconds that is tried. `--jobs`
spreads the seeds over processes, each with a loop of its own; a seed means the same in all.
The exit status is 1 when a seed failed.
"""

import argparse
import importlib
import logging
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

__all__ = ["WORLDS", "main"]

# The simulator is part of the tests, which are not type-checked: its doors by name.
WORLDS: Final = {
    "cluster": ("tests.simulation.cluster_world", "simulate_cluster"),
    "group": ("tests.simulation.cluster_world", "simulate_group"),
    "standalone": ("tests.simulation.standalone_world", "simulate"),
    "duplication": ("tests.simulation.duplication_world", "simulate_duplication"),
    "duplicated-clusters": (
        "tests.simulation.duplicated_clusters",
        "simulate_duplicated_clusters",
    ),
    "crashes": ("tests.simulation.crash_points", "simulate_crash"),
}
# Those whose failing runs can be made smaller, and how.
_SHRINKS: Final = {
    "cluster": ("tests.simulation.cluster_shrink", "shrink_cluster"),
    "group": ("tests.simulation.cluster_shrink", "shrink_group"),
}
_PROGRESS_S: Final = 10.0


class _Task(NamedTuple):
    world: str
    seed: int
    twice: bool
    shrink_s: int = 0


class _Verdict(NamedTuple):
    seed: int
    wrong: str
    told: str
    # What is left of it when all is left out that it does not need.
    shrunk: str = ""


def main(arguments: list[str] | None = None) -> int:
    """Play the seeds; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many (100)")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first one (0)")
    parser.add_argument("--world", choices=WORLDS, default="cluster", help="(cluster)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (1)")
    parser.add_argument("--twice", action="store_true", help="each must play the same twice")
    parser.add_argument("--shrink", type=int, default=120, help="seconds for each failure (120)")
    parser.add_argument("--logs", action="store_true", help="show what the servers log")
    chosen = parser.parse_args(arguments)
    if not chosen.logs:
        logging.disable(logging.CRITICAL)
    seeds = range(chosen.first, chosen.first + chosen.seeds)
    tasks = [_Task(chosen.world, seed, chosen.twice, chosen.shrink) for seed in seeds]
    try:
        failed = _tell(_play_all(tasks, chosen.jobs), len(tasks), chosen.world)
    finally:
        logging.disable(logging.NOTSET)
    return 1 if failed else 0


def _play_all(tasks: list[_Task], jobs: int) -> Iterator[_Verdict]:
    if jobs <= 1:
        yield from map(_play, tasks)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, _quiet) as pool:
        yield from pool.imap_unordered(_play, tasks, chunksize=4)


def _quiet() -> None:
    logging.disable(logging.CRITICAL)


def _play(task: _Task) -> _Verdict:
    verdict = _judge(task)
    if not verdict.wrong or task.world not in _SHRINKS or not task.shrink_s:
        return verdict
    module, name = _SHRINKS[task.world]
    shrink: Callable[[int, Callable[[], bool]], str] = getattr(
        importlib.import_module(module), name
    )
    end = time.monotonic() + task.shrink_s
    return verdict._replace(shrunk=shrink(task.seed, lambda: time.monotonic() < end))


def _judge(task: _Task) -> _Verdict:
    module, name = WORLDS[task.world]
    simulate: Callable[[int], Any] = getattr(importlib.import_module(module), name)
    try:
        run = simulate(task.seed)
        wrong = "\n  ".join(run.wrong)
        if task.twice and not wrong and simulate(task.seed).digest != run.digest:
            wrong = "the second time it played something else"
    except Exception as error:  # noqa: BLE001 - whatever it is, the seed has failed
        notes = getattr(error, "__notes__", [])
        return _Verdict(task.seed, f"{type(error).__name__}: {error}", "; ".join(notes))
    return _Verdict(task.seed, wrong, run.told)


def _tell(verdicts: Iterable[_Verdict], count: int, world: str) -> int:
    """Print failures as they come, and where it stands now and then; return how many failed."""
    failed = 0
    began = told_at = time.monotonic()
    for done, (seed, wrong, options, shrunk) in enumerate(verdicts, 1):
        if wrong:
            failed += 1
            print(f"seed {seed} of {world} failed:\n  {wrong}\n  it chose: {options}")
            print(f"  again: python -m tools.simulate --world {world} --from {seed} --seeds 1")
            if shrunk:
                print(f"  smaller: {shrunk}")
            sys.stdout.flush()
        now = time.monotonic()
        if now - told_at > _PROGRESS_S:
            told_at = now
            print(f"{done} of {count} seeds, {failed} failed", file=sys.stderr)
    print(f"{world}: {count} seeds, {failed} failed, {time.monotonic() - began:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(main())
