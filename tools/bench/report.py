"""Comparisons as one table and one JSON line."""

import json
import statistics
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

__all__ = ["Comparison", "show"]


@dataclass
class Comparison:
    """One measurement: our rounds, and the peer's of the same rounds if there is one."""

    name: str
    unit: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)

    def add(self, ours: float, peer: float | None = None) -> None:
        """Add one round."""
        self.ours.append(ours)
        if peer is not None:
            self.peer.append(peer)

    @property
    def digits(self) -> int:
        """How many digits after the point are worth reading."""
        return 0 if self.ours and min(self.ours) >= 100 else 2

    @property
    def ratios(self) -> list[float]:
        """Ours divided by the peer's, round by round."""
        return [ours / peer for ours, peer in zip(self.ours, self.peer, strict=False)]


def _spread(values: list[float], digits: int = 0) -> str:
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f}  ({low:,.{digits}f} to {high:,.{digits}f})"


def show(title: str, comparisons: list[Comparison]) -> str:
    """Print the table; return the JSON line."""
    table = Table(title=f"{title}: median (least to most) of {len(comparisons[0].ours)} rounds")
    for column in ("what", "unit", "pegaskv", "peer", "ratio"):
        table.add_column(column, justify="left" if column in ("what", "unit") else "right")
    for comparison in comparisons:
        table.add_row(
            comparison.name,
            comparison.unit,
            _spread(comparison.ours, comparison.digits),
            _spread(comparison.peer, comparison.digits),
            _spread(comparison.ratios, 2),
        )
    Console(width=120).print(table)
    return json.dumps(
        {
            "bench": title,
            "results": [
                {
                    "name": comparison.name,
                    "unit": comparison.unit,
                    "ours": [round(value, 3) for value in comparison.ours],
                    "peer": [round(value, 3) for value in comparison.peer],
                    "ratio": round(statistics.median(comparison.ratios), 3)
                    if comparison.ratios
                    else None,
                }
                for comparison in comparisons
            ],
        }
    )
