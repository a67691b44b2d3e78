"""Every bound is seen: what is configured, what a release has, and what the process allows."""

import pytest

from pegaskv.base import limits
from pegaskv.base.errors import ConfigurationError
from pegaskv.server.config import Config, ServerOptions, config_from_text
from pegaskv.server.memory_budget import bytes_in_flight_max
from pegaskv.server.option_metrics import FIXED_BOUNDS, OPTION_DEFAULTS, option_metrics

MIB = 1024 * 1024


def test_every_option_that_is_a_number_is_shown_with_its_value() -> None:
    config = config_from_text("[server]\nconnections_max = 77\n[replica]\nscans_waiting_max = 5\n")
    options, _ = option_metrics(config)
    shown = {
        (dict(labels)["section"], dict(labels)["name"]): value for labels, value in options.samples
    }
    assert shown == {
        (section, name): value
        for section, values in config.as_sections().items()
        for name, value in values.items()
        if type(value) is int
    }
    assert shown["server", "connections_max"] == 77
    assert shown["replica", "scans_waiting_max"] == 5
    assert len(shown) > 50


def test_every_bound_of_a_release_is_shown() -> None:
    _, bounds = option_metrics(Config())
    shown = {dict(labels)["name"]: value for labels, value in bounds.samples}
    assert shown == {name.lower(): getattr(limits, name) for name in FIXED_BOUNDS}
    assert shown["hash_key_bytes_max"] == 65_534
    # The others are seen as options.
    sections = Config().as_sections()
    for name, (section, option) in OPTION_DEFAULTS.items():
        assert sections[section][option] == getattr(limits, name)
    assert {*FIXED_BOUNDS, *OPTION_DEFAULTS} == {*limits.__all__}


def test_connections_get_what_is_set_within_what_files_and_memory_allow() -> None:
    server = ServerOptions(
        connections_max=500, connection_requests_max=9, in_flight_bytes_max=32 * MIB
    )
    given = server.acceptor_options(connections_max=100, descriptor_max=7, bytes_max=64 * MIB)
    assert (given.connections_max, given.descriptor_max) == (100, 7)
    assert given.connection_requests_max == 9
    assert (given.bytes_in_flight_max, given.bytes_unsent_max) == (32 * MIB, 64 * MIB)


def test_more_than_the_default_may_be_under_way_when_there_is_memory() -> None:
    assert bytes_in_flight_max(16 << 30, 1 << 30) == 1 << 30
    assert bytes_in_flight_max(1 << 30, 1 << 30) == 64 * MIB
    assert bytes_in_flight_max(0, 1 << 30) == 4 * MIB
    assert bytes_in_flight_max(1 << 40, MIB) == MIB


@pytest.mark.parametrize(
    "text",
    [
        "connection_requests_max = 0",
        "connection_in_flight_bytes_max = 1000",
        "in_flight_bytes_max = 1048577",
        "connection_unsent_pause_bytes = 20000000",
        "unsent_bytes_max = 2000000",
        "bulk_share_percent = 0",
        "bulk_share_percent = 101",
        "hello_bytes_max = 100",
        "hello_bytes_max = 70000",
        "hello_timeout_ms = 0",
    ],
)
def test_bounds_that_cannot_be_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config_from_text(f"[server]\n{text}\n")
    named = text.partition(" ")[0].removeprefix("connection_")
    assert named in str(caught.value)
