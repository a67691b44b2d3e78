"""What the figures should be: the least that is accepted of each, and the aim.

A target names a comparison by the beginning of its name, since names say how many rows there
were. Ratios are ours by the peer's, medians over the rounds.
"""

import statistics
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["MISSED", "TARGETS", "Target"]

MISSED: Final = "**missed**"

_REDIS_PY: Final = "redis-py"
_EIGHT: Final = "8 partitions"
_ONE: Final = "1 replica"


@dataclass(frozen=True)
class Target:
    """One figure: a ratio to `peer`, or with none the value itself; at least or at most."""

    bench: str
    comparison: str
    peer: str
    least: float
    aim: float
    at_most: bool = False
    # The worst of the rounds, not the middle one.
    worst: bool = False
    # What a reader should know if it is missed.
    why: str = ""

    def figure(self, result: dict[str, Any]) -> float | None:
        """Return the figure of a comparison as JSON has it, None if its peer was not there."""
        if not self.peer:
            rounds = result["rounds"].get("pegaskv", [])
            pick = max if self.worst else statistics.median
            return pick(rounds) if rounds else None
        ratio = result["ratio"].get(self.peer)
        return None if ratio is None else float(ratio)

    def verdict(self, figure: float) -> str:
        """Say how the figure stands to the target."""
        reached = [
            figure <= limit if self.at_most else figure >= limit for limit in (self.least, self.aim)
        ]
        if not reached[0]:
            return MISSED
        return "aim reached" if reached[1] else "held"


def _steady(phase: str, why: str = "") -> list[Target]:
    return [
        *(
            Target("steadiness", f"{phase}: {kind}, p99", "quiet", 3, 2, at_most=True, why=why)
            for kind in ("read", "write")
        ),
        *(
            Target(
                "steadiness",
                f"{phase}: {kind}, longest stop",
                "",
                100,
                50,
                at_most=True,
                worst=True,
            )
            for kind in ("read", "write")
        ),
    ]


_SPIN: Final = (
    "A client and a server that stay awake take a processor each; where there are two, and "
    "anything else runs, they take it from one another."
)
_FULL_SPEED: Final = (
    "A server that is written to as fast as it can has no idle time: a call waits for what came "
    "before it in its turn of the loop. And the writer, the server and LevelDB's thread leave the "
    "measuring process less than it needs on two processors; its last row says how late it was."
)
_MANY: Final = (
    "With 256 partitions nearly every write of a tick is in a batch of its own, with a decree, a "
    "record and a place in an engine of its own; with 8 there are six in each."
)

TARGETS: Final = (
    Target("client", "set, os, 50 tasks", _REDIS_PY, 5, 6.5),
    Target("client", "get, os, 50 tasks", _REDIS_PY, 6, 7.5),
    Target("client", "set, os, 1 task", _REDIS_PY, 0.8, 2.5),
    Target("client", "get, os, 1 task", _REDIS_PY, 0.9, 3),
    Target("client", "set, os, 1 task, spin", _REDIS_PY, 1.3, 2.5, why=_SPIN),
    Target("client", "get, os, 1 task, spin", _REDIS_PY, 1.8, 3, why=_SPIN),
    Target("client", "set, fsync, 50 tasks", _REDIS_PY, 3.5, 5),
    Target("server", "set, depth 16 x 50", "bare loop", 0.55, 0.75),
    Target("server", "get, depth 16 x 50", "bare loop", 0.7, 0.95),
    Target("server", "set, depth 1 x 50", "Redis, raw", 0.38, 0.55),
    Target("server", "get, depth 1 x 50", "Redis, raw", 0.55, 0.75),
    Target("scan", "full_scan", "", 400_000, 650_000),
    Target("duplication", "copy of", "Redis", 1.0, 1.5),
    Target("duplication", "backlog of", "Redis, stream", 0.6, 1.5),
    Target("duplication", "last write, idle, p99", "", 5, 2, at_most=True),
    *(
        Target("replication", f"server CPU of a set, {how} tasks", _ONE, 3.2, 2.5, at_most=True)
        for how in ("os, 50", "os, 200", "fsync, 50", "fsync, 200")
    ),
    *(
        Target(
            "replication",
            f"CPU of a set, {how} tasks, client and servers",
            _ONE,
            3.2,
            2.5,
            at_most=True,
        )
        for how in ("os, 50", "fsync, 50")
    ),
    Target("replication", "server CPU of a get, os, 50 tasks", _ONE, 1.15, 1.05, at_most=True),
    Target("replication", "set, os, 256 partitions", _EIGHT, 1.6, 1.3, at_most=True, why=_MANY),
    Target("replication", "set, fsync, 256 partitions", _EIGHT, 1.6, 1.3, at_most=True),
    Target("replication", "syncs a tick, fsync, 8 partitions", "", 1, 1, at_most=True),
    Target("replication", "syncs a tick, fsync, 256 partitions", "", 1, 1, at_most=True),
    Target("replication", "kill -9 of a primary: writes again, p99", "", 6, 5.5, at_most=True),
    Target("replication", "kill -9 of a primary: reads again, p99", "", 6, 5.5, at_most=True),
    Target("replication", "kill -9 of a secondary: writes again, p99", "", 3, 2.5, at_most=True),
    Target("replication", "kill -9 of a secondary: reads again, p99", "", 3, 0.1, at_most=True),
    Target("replication", "a copy to an empty server", "", 50, 100),
    Target("replication", "calls that failed during the copy", "", 0, 0, at_most=True),
    *_steady("rows at full speed", _FULL_SPEED),
    *_steady("new segments of the log"),
    *_steady("checkpoints"),
    *_steady("a full compaction"),
    *_steady("a sweep"),
    Target("partitions", "set, os, 256 partitions", _EIGHT, 1.6, 1.3, at_most=True, why=_MANY),
    Target("partitions", "set, fsync, 256 partitions", _EIGHT, 1.6, 1.3, at_most=True),
    Target("partitions", "syncs a tick, fsync, 8 partitions", "", 1, 1, at_most=True),
    Target("partitions", "syncs a tick, fsync, 256 partitions", "", 1, 1, at_most=True),
    Target("memory", "idle, 8 empty partitions, with HTTP", "", 60, 40, at_most=True),
)
