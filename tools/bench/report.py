"""What a bench found: comparisons, as one table and one JSON line."""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from rich.console import Console
from rich.table import Table

__all__ = ["OURS", "Comparison", "Report", "alternate", "show", "spread", "turns"]

# The name of our own side in every comparison.
OURS: Final = "pegaskv"

SideT = TypeVar("SideT")


@dataclass
class Comparison:
    """One measurement: the rounds of each side, ours first, peers as far as there are any."""

    name: str
    unit: str
    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, taken: Mapping[str, float | None]) -> None:
        """Add one round: a figure for each side, None for one that could not be had."""
        for side, value in taken.items():
            if value is not None:
                self.rounds.setdefault(side, []).append(value)

    @property
    def ours(self) -> list[float]:
        """Our own rounds."""
        return self.rounds.get(OURS, [])

    @property
    def peers(self) -> list[str]:
        """The names of the other sides."""
        return [side for side in self.rounds if side != OURS]

    @property
    def digits(self) -> int:
        """How many digits after the point are worth reading."""
        return 0 if self.ours and min(self.ours) >= 100 else 2

    def ratios(self, peer: str) -> list[float]:
        """Ours divided by the peer's, round by round."""
        pairs = zip(self.ours, self.rounds.get(peer, []), strict=False)
        return [ours / theirs for ours, theirs in pairs if theirs]

    def ratio(self, peer: str) -> float | None:
        """The median of `ratios`, or None when the peer was not there."""
        ratios = self.ratios(peer)
        return statistics.median(ratios) if ratios else None


@dataclass
class Report:
    """All comparisons of one bench, what they are, and what a reader must know of this run."""

    name: str
    about: str
    comparisons: list[Comparison] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    # How long and on what machine it ran, for the JSON line.
    run: dict[str, Any] = field(default_factory=dict)

    def start(self, name: str, unit: str) -> Comparison:
        """Begin a comparison."""
        self.comparisons.append(Comparison(name, unit))
        return self.comparisons[-1]

    def note(self, text: str) -> None:
        """Say `text` below the table, once."""
        if text not in self.notes:
            self.notes.append(text)

    def find(self, name: str) -> Comparison | None:
        """Return the comparison of that name."""
        return next((one for one in self.comparisons if one.name == name), None)

    def rows(self) -> Iterator[tuple[str, str, str, str, str, str]]:
        """Yield name, unit, ours, peer's name, peer's and ratio: a row for each peer."""
        for one in self.comparisons:
            ours = spread(one.ours, one.digits)
            if not one.peers:
                yield one.name, one.unit, ours, "", "", ""
            for number, peer in enumerate(one.peers):
                first = (one.name, one.unit, ours) if number == 0 else ("", "", "")
                theirs = spread(one.rounds[peer], one.digits)
                yield *first, peer, theirs, spread(one.ratios(peer), 2)

    def as_json(self) -> str:
        """One line with every round."""
        results: list[dict[str, Any]] = []
        for one in self.comparisons:
            ratios = {peer: [round(value, 3) for value in one.ratios(peer)] for peer in one.peers}
            results.append(
                {
                    "name": one.name,
                    "unit": one.unit,
                    "rounds": {
                        side: [round(value, 4) for value in values]
                        for side, values in one.rounds.items()
                    },
                    "ratios": ratios,
                    "ratio": {
                        peer: round(statistics.median(values), 3)
                        for peer, values in ratios.items()
                        if values
                    },
                }
            )
        return json.dumps(
            {
                "bench": self.name,
                "about": self.about,
                **self.run,
                "results": results,
                "notes": self.notes,
            }
        )


def turns(sides: Mapping[str, SideT], number: int) -> list[tuple[str, SideT]]:
    """Return the sides in the order of round `number`: every second one goes backwards.

    So a machine that becomes slower or faster all the time favours nobody.
    """
    order = list(sides.items())
    return order if number % 2 == 0 else order[::-1]


def alternate(
    comparison: Comparison,
    sides: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    parts: int = 1,
) -> None:
    """Let each side measure in each round, in so many parts, and take the mean of them.

    A machine that is slower for half a second is so for all sides then.
    """
    for number in range(rounds):
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for part in range(parts):
            for name, side in turns(sides, number * parts + part):
                taken[name].append(side())
        comparison.add({name: statistics.fmean(rates) for name, rates in taken.items()})


def spread(values: list[float], digits: int = 0) -> str:
    """Median, least and most."""
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    if len(values) == 1:
        return f"{middle:,.{digits}f}"
    return f"{middle:,.{digits}f} ({low:,.{digits}f}..{high:,.{digits}f})"


def show(report: Report) -> None:
    """Print the table."""
    rounds = max((len(one.ours) for one in report.comparisons), default=0)
    table = Table(title=f"{report.name}: median (least..most) of {rounds} rounds")
    for column in ("what", "unit", OURS, "peer", "", "ratio by round"):
        table.add_column(column, justify="left" if column in ("what", "unit", "peer") else "right")
    for row in report.rows():
        table.add_row(*row)
    console = Console(width=150)
    console.print(table)
    for note in report.notes:
        console.print(f"* {note}", highlight=False, markup=False)
