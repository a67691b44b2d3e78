"""What is configured, as gauges: an alarm compares a use with its bound, not with a number."""

from collections.abc import Iterable

from pegaskv.base import limits
from pegaskv.base.metrics import Labels, Metric
from pegaskv.server.config import Config

__all__ = ["option_metrics"]


def option_metrics(config: Config) -> Iterable[Metric]:
    """Yield every option that is a number, and every bound that is the same in all servers."""
    options: list[tuple[Labels, float]] = [
        ((("section", section), ("name", name)), float(value))
        for section, values in config.as_sections().items()
        for name, value in values.items()
        if type(value) is int
    ]
    yield Metric(
        "pegaskv_option",
        "gauge",
        "Options of the configuration that are numbers; the unit is in the name.",
        tuple(options),
    )
    bounds = [((("name", name.lower()),), float(getattr(limits, name))) for name in limits.__all__]
    yield Metric(
        "pegaskv_limit",
        "gauge",
        "Bounds of the protocol and of stored data, the same in every server of a release.",
        tuple(bounds),
    )
