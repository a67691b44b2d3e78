"""Configuration: what is unknown or cannot be is refused by name; file and code are equal."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from pegaskv.base.errors import ConfigurationError
from pegaskv.server.config import (
    Config,
    RemoteClusterOptions,
    config_from_text,
    parse_address,
    read_config,
)
from pegaskv.storage.local_disk import LocalDisk

CONF = Path(__file__).parents[2] / "conf"
ROLES = ("standalone", "meta", "replica")


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        config_from_text(text)
    return str(caught.value)


# The file that is shipped.


@pytest.mark.parametrize("role", ROLES)
def test_the_shipped_file_holds_every_option_with_its_default(role: str) -> None:
    document = tomllib.loads((CONF / f"{role}.toml").read_text())
    assert document == config_from_text("", role).as_sections()


@pytest.mark.parametrize("role", ROLES)
def test_the_shipped_file_is_what_no_file_means(role: str) -> None:
    assert read_config(LocalDisk(), CONF / f"{role}.toml", role) == config_from_text("", role)
    assert config_from_text("") == Config()


@pytest.mark.parametrize("role", ROLES)
def test_every_option_of_the_shipped_file_has_a_comment(role: str) -> None:
    comment = False
    options = 0
    for line in (CONF / f"{role}.toml").read_text().splitlines():
        if re.match(r"[a-z_]+ = ", line):
            options += 1
            assert comment, f"no comment above `{line}`"
            comment = False
        elif line.startswith("# "):
            comment = True
    assert options > 30


# Kinds of servers.


def test_each_kind_of_server_listens_where_others_look_for_it() -> None:
    found = {role: config_from_text("", role).server for role in ROLES}
    assert [found[role].listen.rpartition(":")[2] for role in ROLES] == ["34601", "34601", "34801"]
    assert [found[role].http.rpartition(":")[2] for role in ROLES] == ["34101", "34101", "34201"]
    assert config_from_text("", "replica").membership.addresses == [found["meta"].listen]


def test_a_table_has_three_copies_where_there_are_several_servers() -> None:
    counts = [config_from_text("", role).meta.default_replica_count for role in ROLES]
    assert counts == [1, 3, 1]
    text = "[meta]\ndefault_replica_count = 2"
    assert config_from_text(text, "meta").meta.default_replica_count == 2


def test_one_file_may_be_for_all_kinds_of_servers() -> None:
    text = "[cluster]\nid = 7\n[meta]\ntables_max = 9\n[replica]\nmetas = 'a:1, b:2'\n"
    for role in ROLES:
        config = config_from_text(text + "lease_ms = 3000\ngrace_ms = 4000\n", role)
        assert config.cluster.id == 7
        assert config.meta.tables_max == 9
        assert config.membership.addresses == ["a:1", "b:2"]
        assert (config.lease.lease_ms, config.lease.grace_ms) == (3_000, 4_000)
        assert config.lease.beacon_interval_ms == 1_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lease_ms = 6000", "[replica] the lease must be"),
        ("lease_ms = 'x'", "[replica] lease_ms: expected"),
        ("prepare_timeout_ms = 0", "[replica] prepare_timeout_ms must be above 0"),
        ("metas = 'nowhere'", "[replica] metas: 'nowhere' is not HOST:PORT"),
        ("metas = ''", "[replica] metas: '' is not HOST:PORT"),
        ("advertise = 'here'", "[replica] advertise: 'here' is not HOST:PORT"),
        ("advertise = 'here:0'", "[replica] advertise: port 0"),
        ("grace_sm = 1", "did you mean `grace_ms`?"),
        ("min_free_percent = 90", "[replica] min_free_percent: must be"),
    ],
)
def test_what_a_replica_server_cannot_be_is_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config_from_text(f"[replica]\n{text}", "replica")
    assert said in str(caught.value)


# What is unknown.


@pytest.mark.parametrize(
    ("text", "named", "meant"),
    [
        ("[clustr]\nid = 2", "[clustr]", "[cluster]"),
        ("[server]\nlisten_on = 'x:1'", "`listen_on`", "`listen`"),
        ("[meta]\ndefault_partition_counts = 8", "`default_partition_counts`", "`default_par"),
        ("[storage]\nblok_bytes = 4096", "`blok_bytes`", "`block_bytes`"),
        ("[storage]\nlog_segment_byte = 4096", "`log_segment_byte`", "`log_segment_bytes`"),
        ("[replica]\nmin_free_precent = 5", "`min_free_precent`", "`min_free_percent`"),
        ("[log]\nlevle = 'info'", "`levle`", "`level`"),
        ("[log]\nlevel = 'inof'", "'inof'", "`info`"),
        ("[clusters.far]\nmeta = 'x:1'", "`meta`", "`metas`"),
        ("server = 5", "`server`", "section"),
        ("serve = 5", "`serve`", "[server]"),
    ],
)
def test_what_is_unknown_is_refused_with_the_nearest_name(
    text: str, named: str, meant: str
) -> None:
    message = refusal(text)
    assert named in message
    assert meant in message


def test_a_section_of_a_later_version_may_stand_empty_and_its_options_are_refused() -> None:
    assert config_from_text("[auth]\n") == Config()
    assert "no options in this version" in refusal("[auth]\nuser = 'x'")


# What cannot be.


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[cluster]\nid = 0", "[cluster] id"),
        ("[cluster]\nid = 128", "[cluster] id"),
        ("[cluster]\nid = true", "[cluster] id"),
        ("[cluster]\nid = '5'", "[cluster] id"),
        ("[cluster]\nname = ''", "[cluster] name"),
        ("[cluster]\nname = '../up'", "[cluster] name"),
        ("[cluster]\nname = 5", "[cluster] name"),
        ("[server]\nlisten = '34601'", "[server] listen"),
        ("[server]\nlisten = 'localhost:'", "[server] listen"),
        ("[server]\nlisten = 'localhost:65536'", "[server] listen"),
        ("[server]\nlisten = '::1:34601'", "[server] listen"),
        ("[server]\nhttp = 'no'", "[server] http"),
        ("[server]\nconnections_max = 0", "[server] connections_max"),
        ("[server]\nconnections_max = 1.5", "[server] connections_max"),
        ("[replica]\nmin_free_percent = 99", "[replica] min_free_percent"),
        ("[meta]\ndefault_partition_count = 3", "[meta] default_partition_count"),
        ("[log]\nformat = 'xml'", "[log] format"),
        ("[clusters.far]\nid = 2", "[clusters.far] metas"),
        ("[clusters.far]\nmetas = 'far'\nid = 2", "[clusters.far] metas"),
        ("[clusters.far]\nmetas = 'far:1'", "[clusters.far] id"),
        ("[clusters.'a b']\nmetas = 'far:1'\nid = 2", "'a b'"),
        ("[clusters]\nmetas = 'far:1'", "[clusters.NAME]"),
        ("[server", "TOML"),
        ("[server]\nlisten = 'a:1'\nlisten = 'b:1'", "TOML"),
        ("a = " + "[" * 5_000, "TOML"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(text: str, named: str) -> None:
    assert named in refusal(text)


def test_remote_clusters_are_read_by_name() -> None:
    config = config_from_text(
        "[clusters.far]\nmetas = 'a:1, b:2'\nid = 7\nuser = 'u'\npassword_file = '/p'"
    )
    assert config.clusters == {"far": RemoteClusterOptions("a:1, b:2", 7, "u", "/p")}


def test_options_of_both_parts_of_storage_are_read() -> None:
    config = config_from_text("[storage]\nblock_bytes = 8192\nlog_segment_bytes = 67108864")
    assert config.storage.block_bytes == 8_192
    assert config.storage_log.log_segment_bytes == 67_108_864


def test_a_flag_wins_over_the_file_and_is_checked_alike() -> None:
    config = config_from_text("[server]\nlisten = 'a:1'\nhttp = 'b:2'")
    changed = config.with_server(listen="c:3")
    assert (changed.server.listen, changed.server.http) == ("c:3", "b:2")
    with pytest.raises(ConfigurationError, match="listen"):
        config.with_server(listen="c")


def test_errors_begin_with_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("[server]\nlitsen = 'x:1'")
    with pytest.raises(ConfigurationError) as caught:
        read_config(LocalDisk(), path)
    assert str(caught.value).startswith(f"{path}: unknown option `litsen`")


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_config(LocalDisk(), tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="irectory"):
        read_config(LocalDisk(), tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9\n")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        read_config(LocalDisk(), tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:34601", ("127.0.0.1", 34_601)),
        ("[::1]:0", ("::1", 0)),
        ("db-1.example:80", ("db-1.example", 80)),
    ],
)
def test_addresses_are_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, "x") == address


def test_no_option_carries_its_unit_twice() -> None:
    """The unit is in the key: a number without one would have to be looked up."""
    unitless = {
        "id", "connections_max", "connections_per_address_max", "bloom_bits",
        "open_files_max", "default_partition_count", "default_replica_count",
        "tables_max", "partitions_max", "requests_max", "scans_waiting_max",
        "throttled_requests_max", "slow_request_lines_max", "http_connections_max",
        "lingering_connections_max",
        "window_requests_max", "batches_in_flight_max", "pages_in_flight_max",
        "connection_requests_max", "partition_uncommitted_mutations_max",
        "learners_per_node_max", "balance_moves_max",
    }  # fmt: skip
    units = (
        "_ms",
        "_bytes",
        "_bytes_per_second",
        "_bytes_held",
        "_us",
        "_percent",
        "_seconds",
        "_ms_min",
        "_ms_max",
        "_bytes_max",
        "_segments",
    )
    checked = 0
    sections = [
        section for role in ROLES for section in config_from_text("", role).as_sections().values()
    ]
    for section in sections:
        for name, value in section.items():
            if type(value) is int and name not in unitless:
                checked += 1
                assert name.endswith(units), f"{name} has no unit"
    assert checked > 10


def test_options_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().server.listen = "x:1"  # type: ignore[misc]
