"""What the parts of a server count, as plain values.

The hot path adds to plain integers; whoever owns them offers a function that
returns `Metric` values, and the HTTP server asks for them when it is asked.
Names follow Prometheus: a prefix `pegaskv_`, the unit last, `_total` on counters.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Labels", "Metric", "MetricSource", "gauges"]

Labels: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One family: a name, its meaning, and a value for each set of labels."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: tuple[tuple[Labels, float], ...]


MetricSource: TypeAlias = Callable[[], Iterable[Metric]]


def gauges(*families: tuple[str, str, float]) -> Iterable[Metric]:
    """Yield a gauge without labels for each (name, meaning, value)."""
    for name, text, value in families:
        yield Metric(f"pegaskv_{name}", "gauge", text, (((), float(value)),))
