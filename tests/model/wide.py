"""Searches the rules as far as there is time: `python -m tests.model.wide [MINUTES [NAME]]`.

Prints for each of the bounds below how many states there are, and whether that was all.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from tests.model.model import Bounds, Rules
from tests.model.plants import CLAIMS
from tests.model.search import search

__all__ = ["QUICK", "WIDER", "main", "until"]

MINUTES: Final = 10.0

# Seconds each.
QUICK: Final[Mapping[str, Bounds]] = {
    "claims and restarts": CLAIMS._replace(writes=2, ballots=3, kills=1),
    "one change of any kind": Bounds(writes=1, ballots=2, kills=1),
    "two changes of any kind": Bounds(writes=0, ballots=3, kills=0),
    "a wiped disk": Bounds(writes=1, ballots=2, kills=0, wipes=1),
}
WIDER: Final[Mapping[str, Bounds]] = {
    "two writes": Bounds(writes=2, ballots=2, kills=1),
    "two writes and three ballots": Bounds(writes=2, ballots=3, kills=0),
    "a restart and three ballots": Bounds(writes=1, ballots=3, kills=1),
    "all of it": Bounds(writes=2, ballots=3, kills=1),
    "forgotten commit points": Bounds(
        writes=2, ballots=3, kills=2, commit_point_forgotten=True, learning=False, hand_over=False
    ),
    "a wiped disk and three ballots": Bounds(writes=1, ballots=3, kills=0, wipes=1),
    "claims of four nodes": CLAIMS._replace(nodes=4, writes=2, ballots=4, kills=1),
}


def until(end: float) -> Callable[[], bool]:
    """Make a `stop` for a search, by the monotonic clock."""
    return lambda: time.monotonic() > end


def main(arguments: list[str]) -> int:
    """Search for some minutes each, print, and return 1 if something is broken."""
    seconds_max = 60 * (float(arguments[0]) if arguments else MINUTES)
    names = arguments[1:] or [*QUICK, *WIDER]
    for name in names:
        bounds = QUICK[name] if name in QUICK else WIDER[name]
        began = time.monotonic()
        found = search(Rules(), bounds, stop=until(began + seconds_max))
        seconds = time.monotonic() - began
        extent = "all" if found.complete else "not all"
        print(  # noqa: T201 - what it is for
            f"{name}: {found.states} states ({extent}), {found.steps} steps, {seconds:.0f} s",
            flush=True,
        )
        if found.broken:
            print(found.broken, *found.way, sep="\n  ")  # noqa: T201
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
