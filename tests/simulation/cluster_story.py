"""What a seed of a cluster plays, and what came of it."""

from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from tests.simulation.cluster_aimed import AIMED
from tests.simulation.cluster_faults import KINDS

__all__ = ["ClusterRun", "Story", "TableStory"]


@dataclass(frozen=True)
class TableStory:
    """One table of a run."""

    replicas: int
    partitions: int
    durability: str


@dataclass(frozen=True)
class Story:
    """What a seed plays; drawn from it unless a test says otherwise."""

    servers: int
    tables: tuple[TableStory, ...]
    clients: int
    writers: int
    seconds: int
    pace_ms: int
    # Faults that are under way at a time at the most, how long apart they begin, and which.
    at_once: int
    between_ms: int
    kinds: tuple[str, ...]
    call_s: float = 4.0

    @classmethod
    def draw(cls, random: Random, kinds: tuple[str, ...] = KINDS) -> "Story":
        """Draw one."""
        servers = random.choice([3, 3, 3, 4, 5])
        tables = []
        for _ in range(random.choice([1, 1, 2])):
            replicas = random.choice([1, 2, 3, 3, 3, 3])
            # Alone, what is not synced is lost with the power.
            durability = "fsync" if replicas == 1 else random.choice(["fsync", "fsync", "os"])
            tables.append(TableStory(replicas, random.choice([1, 1, 2, 4]), durability))
        count = random.choice([1, 2, 3, 5, len(kinds)])
        return cls(
            servers=servers,
            tables=tuple(tables),
            clients=random.choice([1, 2, 3]),
            writers=random.choice([2, 4, 6]),
            seconds=random.choice([8, 20, 40, 60]),
            pace_ms=random.choice([20, 60, 200]),
            at_once=random.choice([1, 2, 3, 4]),
            between_ms=random.choice([100, 500, 1_000, 3_000]),
            kinds=tuple(sorted(random.sample(kinds, count))),
        )

    def with_aim(self, random: Random) -> "Story":
        """Mostly the same; now and then with faults that are aimed as well."""
        if random.random() < 0.7:
            return self
        aimed = random.sample(sorted(AIMED), random.choice([1, 1, 2]))
        return replace(self, kinds=tuple(sorted({*self.kinds, *aimed})))


@dataclass
class ClusterRun:
    """What one seed did, and what was wrong with it."""

    seed: int
    wrong: list[str] = field(default_factory=list)
    done: int = 0
    unknown: int = 0
    refused: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    reached: Any = None
    checked: int = 0
    compared: int = 0
    failures: int = 0
    # Longest times until all was served, and complete, after the end of the faults.
    served_ms: int = 0
    complete_ms: int = 0
    refused_for_good: list[str] = field(default_factory=list)
    digest: str = ""
    # What the seed chose.
    told: str = ""
