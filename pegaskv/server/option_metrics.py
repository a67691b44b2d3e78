"""What is configured, as gauges: an alarm compares a use with its bound, not with a number."""

from collections.abc import Iterable, Mapping
from typing import Final

from pegaskv.base import limits
from pegaskv.base.metrics import Labels, Metric
from pegaskv.server.config import Config

__all__ = ["FIXED_BOUNDS", "OPTION_DEFAULTS", "option_metrics"]

# Which bounds are only the defaults of options: section and name.
OPTION_DEFAULTS: Final[Mapping[str, tuple[str, str]]] = {
    "BEFORE_HELLO_BYTES_MAX": ("server", "hello_bytes_max"),
    "CONNECTION_BYTES_IN_FLIGHT_MAX": ("server", "connection_in_flight_bytes_max"),
    "CONNECTION_OUTPUT_BYTES_MAX": ("server", "connection_unsent_bytes_max"),
    "CONNECTION_OUTPUT_PAUSE_BYTES": ("server", "connection_unsent_pause_bytes"),
    "CONNECTION_REQUESTS_IN_FLIGHT_MAX": ("server", "connection_requests_max"),
    "PARTITION_BYTES_UNAPPLIED_MAX": ("replica", "partition_unapplied_bytes_max"),
    "PARTITION_BYTES_UNCOMMITTED_MAX": ("replica", "partition_uncommitted_bytes_max"),
    "PARTITION_MUTATIONS_UNCOMMITTED_MAX": ("replica", "partition_uncommitted_mutations_max"),
    "PROCESS_BYTES_IN_FLIGHT_MAX": ("server", "in_flight_bytes_max"),
}
# The others are part of the protocol or of what is stored: the same in every server of a release.
FIXED_BOUNDS: Final = tuple(name for name in limits.__all__ if name not in OPTION_DEFAULTS)


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
    bounds = [((("name", name.lower()),), float(getattr(limits, name))) for name in FIXED_BOUNDS]
    yield Metric(
        "pegaskv_limit",
        "gauge",
        "Bounds of the protocol and of stored data, the same in every server of a release.",
        tuple(bounds),
    )
