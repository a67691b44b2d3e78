"""Configuration files to options: the one place that reads them.

A file is TOML with the sections `[cluster]`, `[clusters.NAME]`, `[server]`, `[meta]`,
`[replica]`, `[storage]`, `[duplication]`, `[auth]` and `[log]`. Each part of the server
has one frozen class of options: its fields are what a section may hold, its defaults the
only defaults, but for the few that differ by the kind of server (`_ROLE_DEFAULTS`).
Whatever is unknown is refused with the name that was probably meant, since a misspelt
option that is ignored is found when it is too late.

Every error is a `ConfigurationError` that begins with the name of the file.
"""

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from pegaskv.base.errors import ConfigurationError
from pegaskv.base.limits import FRAME_UNCOUNTED_BYTES_MAX, SPIN_US_MAX
from pegaskv.base.options import nearest, options_from_mapping
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.lease.options import LeaseOptions
from pegaskv.meta.options import MetaOptions
from pegaskv.net.options import AcceptorOptions
from pegaskv.replica.options import ReplicaOptions
from pegaskv.storage.disk import Disk
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.options import StorageOptions

__all__ = [
    "ClusterOptions",
    "Config",
    "LoggingOptions",
    "MembershipOptions",
    "RemoteClusterOptions",
    "ServerOptions",
    "config_from_text",
    "parse_address",
    "read_config",
]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SECTIONS: Final = (
    "cluster",
    "clusters",
    "server",
    "meta",
    "replica",
    "storage",
    "duplication",
    "auth",
    "log",
)
# Sections that a kind of server has no use for. They may stand in a file that several share.
_UNUSED_SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "standalone": (),
    "meta": ("replica", "storage"),
    "replica": ("meta",),
}
# What no file means where it is not the same for all kinds of server: section, option, value.
_ROLE_DEFAULTS: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "standalone": {},
    "meta": {"meta": {"default_replica_count": 3}},
    "replica": {"server": {"listen": "127.0.0.1:34801", "http": "127.0.0.1:34201"}},
}
# Known names that have nothing to set yet: a file of a later version fails by its keys.
_WITHOUT_OPTIONS: Final = ("auth",)

_SERVER_LEAST: Final[Mapping[str, int]] = {
    "connections_max": 1,
    "connections_per_address_max": 1,
    "http_connections_max": 1,
    "lingering_connections_max": 1,
    "connection_requests_max": 1,
    "connection_in_flight_bytes_max": 64 * 1024,
    "in_flight_bytes_max": 1024 * 1024,
    "connection_unsent_pause_bytes": 4 * 1024,
    "connection_unsent_bytes_max": 64 * 1024,
    "unsent_bytes_max": 1024 * 1024,
    "output_stall_timeout_ms": 100,
    # A hello of ours has about a hundred bytes.
    "hello_bytes_max": 512,
    "hello_timeout_ms": 10,
    "partial_frame_timeout_ms": 10,
    "drain_timeout_ms": 1,
}

OptionsT = TypeVar("OptionsT")


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Section [cluster]: what this cluster is called, here and at the others."""

    name: str = "pegaskv"
    # From 1 to 127, and different in every cluster that duplicates to or from this one.
    id: int = 1

    def validate(self) -> None:
        """Refuse names and ids that other clusters could not use.

        Raises:
            ConfigurationError: names the option and its range.

        """
        _check_name("[cluster] name", self.name)
        if not 1 <= self.id <= 127:
            raise ConfigurationError(f"[cluster] id: must be from 1 to 127, not {self.id}")


@dataclass(frozen=True, slots=True)
class RemoteClusterOptions:
    """Section [clusters.NAME]: another cluster, reached through its meta servers."""

    # HOST:PORT, several separated by commas.
    metas: str = ""
    id: int = 0
    user: str = ""
    password_file: str = ""

    def validate(self) -> None:
        """Refuse a cluster that cannot be reached.

        Raises:
            ConfigurationError: names the option and its range.

        """
        if not self.metas:
            raise ConfigurationError("[clusters.NAME] metas: must be given, as HOST:PORT,...")
        for address in self.metas.split(","):
            parse_address(address.strip(), "[clusters.NAME] metas")
        if not 1 <= self.id <= 127:
            raise ConfigurationError(f"[clusters.NAME] id: must be from 1 to 127, not {self.id}")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Section [server]: where the process listens and keeps its data."""

    listen: str = "127.0.0.1:34601"
    # HOST:PORT of /metrics and /health, or none.
    http: str = "127.0.0.1:34101"
    # Empty: pegaskv/standalone in the user's data directory ($XDG_DATA_HOME or ~/.local/share).
    data: str = ""
    # At most half of the files that the process may have open, whatever stands here.
    connections_max: int = AcceptorOptions().connections_max
    connections_per_address_max: int = AcceptorOptions().connections_per_address_max
    http_connections_max: int = 64
    # Refused connections that are kept open for a moment, so that they can read why.
    lingering_connections_max: int = AcceptorOptions().lingering_max
    # Requests that are under way, of one connection and of all; a sixteenth of the memory that
    # is free at the start is the most, whatever stands here.
    connection_requests_max: int = AcceptorOptions().connection_requests_max
    connection_in_flight_bytes_max: int = AcceptorOptions().connection_in_flight_bytes_max
    in_flight_bytes_max: int = AcceptorOptions().bytes_in_flight_max
    # Replies that their client does not read: when its requests are read no more, when it is cut
    # off, and how many of all there may be.
    connection_unsent_pause_bytes: int = AcceptorOptions().connection_unsent_pause_bytes
    connection_unsent_bytes_max: int = AcceptorOptions().connection_unsent_bytes_max
    unsent_bytes_max: int = AcceptorOptions().bytes_unsent_max
    output_stall_timeout_ms: int = AcceptorOptions().output_stall_timeout_ms
    # The most of the loop's time, in percent, for clients that send or ask for much at once, while
    # others call too; 100 = all of it.
    bulk_share_percent: int = AcceptorOptions().bulk_share_percent
    # What a client may send before its hello is accepted, and by when it must have said it.
    hello_bytes_max: int = AcceptorOptions().hello_bytes_max
    hello_timeout_ms: int = AcceptorOptions().hello_timeout_ms
    partial_frame_timeout_ms: int = AcceptorOptions().partial_frame_timeout_ms
    # A clean stop waits so long for answers that are under way.
    drain_timeout_ms: int = 3_000
    # After a request the loop looks for the next one for so long before it sleeps.
    spin_us: int = 0

    def validate(self) -> None:
        """Refuse addresses and numbers that cannot be.

        Raises:
            ConfigurationError: names the option and its range.

        """
        parse_address(self.listen, "[server] listen")
        if self.http != "none":
            parse_address(self.http, "[server] http")
        for name, least in _SERVER_LEAST.items():
            if getattr(self, name) < least:
                raise ConfigurationError(f"[server] {name}: must be at least {least}")
        if not 0 <= self.spin_us <= SPIN_US_MAX:
            raise ConfigurationError(f"[server] spin_us: must be 0 to {SPIN_US_MAX}")
        if not 1 <= self.bulk_share_percent <= 100:
            raise ConfigurationError("[server] bulk_share_percent: must be 1 to 100")
        if self.hello_bytes_max > FRAME_UNCOUNTED_BYTES_MAX:
            raise ConfigurationError(
                f"[server] hello_bytes_max: must be at most {FRAME_UNCOUNTED_BYTES_MAX}"
            )
        for small, large in (
            ("connection_unsent_pause_bytes", "connection_unsent_bytes_max"),
            ("connection_unsent_bytes_max", "unsent_bytes_max"),
            ("connection_in_flight_bytes_max", "in_flight_bytes_max"),
        ):
            if getattr(self, small) > getattr(self, large):
                raise ConfigurationError(f"[server] {small}: must not exceed {large}")

    def acceptor_options(
        self, *, connections_max: int, descriptor_max: int, bytes_max: int
    ) -> AcceptorOptions:
        """Return the bounds of connections, within what files and memory of the process allow."""
        return AcceptorOptions(
            connections_max=min(self.connections_max, connections_max),
            connections_per_address_max=self.connections_per_address_max,
            descriptor_max=descriptor_max,
            lingering_max=self.lingering_connections_max,
            connection_requests_max=self.connection_requests_max,
            connection_in_flight_bytes_max=self.connection_in_flight_bytes_max,
            bytes_in_flight_max=min(self.in_flight_bytes_max, bytes_max),
            connection_unsent_pause_bytes=self.connection_unsent_pause_bytes,
            connection_unsent_bytes_max=self.connection_unsent_bytes_max,
            bytes_unsent_max=min(self.unsent_bytes_max, bytes_max),
            output_stall_timeout_ms=self.output_stall_timeout_ms,
            bulk_share_percent=self.bulk_share_percent,
            hello_bytes_max=self.hello_bytes_max,
            hello_timeout_ms=self.hello_timeout_ms,
            partial_frame_timeout_ms=self.partial_frame_timeout_ms,
        )


@dataclass(frozen=True, slots=True)
class MembershipOptions:
    """Section [replica], of a replica server: which cluster it is a part of."""

    # The cluster's meta servers: HOST:PORT, several separated by commas.
    metas: str = "127.0.0.1:34601"
    # HOST:PORT by which clients and other servers reach this one, where it is not [server] listen:
    # behind a forwarded port, for one. Empty: where it listens.
    advertise: str = ""

    def validate(self) -> None:
        """Refuse what is no list of addresses, or no address.

        Raises:
            ConfigurationError: names the option.

        """
        for address in self.metas.split(","):
            parse_address(address.strip(), "[replica] metas")
        if self.advertise and parse_address(self.advertise, "[replica] advertise")[1] == 0:
            raise ConfigurationError("[replica] advertise: port 0 is none that others can reach")

    @property
    def addresses(self) -> list[str]:
        """The meta servers, one by one."""
        return [address.strip() for address in self.metas.split(",")]


@dataclass(frozen=True, slots=True)
class LoggingOptions:
    """Section [log]: what is logged on stderr, and how it looks."""

    level: str = "info"
    format: str = "text"

    def validate(self) -> None:
        """Refuse words that mean nothing.

        Raises:
            ConfigurationError: names the option and its range.

        """
        _check_word("[log] level", self.level, ("debug", "info", "warning", "error"))
        _check_word("[log] format", self.format, ("text", "json"))


@dataclass(frozen=True, slots=True)
class Config:
    """All options of a process of one kind; `[replica]` and `[storage]` hold those of parts."""

    role: str = "standalone"
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    clusters: Mapping[str, RemoteClusterOptions] = field(default_factory=dict)
    server: ServerOptions = field(default_factory=ServerOptions)
    meta: MetaOptions = field(default_factory=MetaOptions)
    replica: ReplicaOptions = field(default_factory=ReplicaOptions)
    lease: LeaseOptions = field(default_factory=LeaseOptions)
    membership: MembershipOptions = field(default_factory=MembershipOptions)
    storage: StorageOptions = field(default_factory=StorageOptions)
    storage_log: LogOptions = field(default_factory=LogOptions)
    duplication: DuplicationOptions = field(default_factory=DuplicationOptions)
    log: LoggingOptions = field(default_factory=LoggingOptions)

    def with_server(self, **changes: str) -> "Config":
        """Return this with options of [server] replaced, as flags do.

        Raises:
            ConfigurationError: a value cannot be.

        """
        server = dataclasses.replace(self.server, **changes)  # type: ignore[arg-type]
        server.validate()
        return dataclasses.replace(self, server=server)

    def with_metas(self, metas: str) -> "Config":
        """Return this with other meta servers, as a flag names them.

        Raises:
            ConfigurationError: they are no addresses.

        """
        membership = dataclasses.replace(self.membership, metas=metas)
        membership.validate()
        return dataclasses.replace(self, membership=membership)

    def as_sections(self) -> dict[str, dict[str, Any]]:
        """Return every option that this kind of server uses, as a file would hold them."""
        replica = dataclasses.asdict(self.replica)
        if self.role == "replica":
            # A server that is alone belongs to no other, and has nobody to hear from.
            replica |= dataclasses.asdict(self.membership) | dataclasses.asdict(self.lease)
        sections = {
            "cluster": dataclasses.asdict(self.cluster),
            "server": dataclasses.asdict(self.server),
            "meta": dataclasses.asdict(self.meta),
            "replica": replica,
            "storage": dataclasses.asdict(self.storage) | dataclasses.asdict(self.storage_log),
            "duplication": dataclasses.asdict(self.duplication),
            "log": dataclasses.asdict(self.log),
        }
        for unused in _UNUSED_SECTIONS[self.role]:
            del sections[unused]
        return sections


def read_config(disk: Disk, path: Path, role: str = "standalone") -> Config:
    """Read the configuration file of a server of the kind `role`.

    Raises:
        ConfigurationError: it cannot be read, is no TOML, or holds what cannot be.

    """
    try:
        text = disk.read_bytes(path).decode()
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read: {error.strerror}",
            hint=f"--config names a TOML file; conf/{role}.toml is one with every option",
        ) from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from None
    try:
        return config_from_text(text, role)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error.message}", hint=error.hint) from None


def config_from_text(text: str, role: str = "standalone") -> Config:
    """Build the options that `text`, a TOML document, describes for a server of the kind `role`.

    Raises:
        ConfigurationError: it is no TOML, or holds what cannot be.

    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigurationError(f"is not TOML: {error}") from None
    for name, section in document.items():
        if name not in _SECTIONS:
            guess = nearest(name, _SECTIONS)
            what = f"unknown section [{name}]" if isinstance(section, dict) else None
            raise ConfigurationError(
                what or f"option `{name}` stands outside of a section",
                hint=f"did you mean [{guess}]?" if guess else f"known: {', '.join(_SECTIONS)}",
            )
        if not isinstance(section, dict):
            raise ConfigurationError(f"`{name}` must be a section: [{name}]")
    for name in _WITHOUT_OPTIONS:
        for key in document.get(name, {}):
            raise ConfigurationError(
                f"unknown option `{key}` in section [{name}]",
                hint=f"[{name}] has no options in this version",
            )

    values = {
        name: {**_ROLE_DEFAULTS[role].get(name, {}), **document.get(name, {})} for name in _SECTIONS
    }

    def section_of(cls: type[OptionsT], name: str) -> OptionsT:
        return options_from_mapping(cls, values[name], section=name)

    replica = _parts("replica", values, ReplicaOptions, MembershipOptions, LeaseOptions)
    storage = _parts("storage", values, StorageOptions, LogOptions)
    return Config(
        role=role,
        cluster=section_of(ClusterOptions, "cluster"),
        clusters=_remote_clusters(document.get("clusters", {})),
        server=section_of(ServerOptions, "server"),
        meta=section_of(MetaOptions, "meta"),
        replica=replica(ReplicaOptions),
        lease=replica(LeaseOptions),
        membership=replica(MembershipOptions),
        storage=storage(StorageOptions),
        storage_log=storage(LogOptions),
        duplication=section_of(DuplicationOptions, "duplication"),
        log=section_of(LoggingOptions, "log"),
    )


class _Part(Protocol):
    def __call__(self, cls: type[OptionsT]) -> OptionsT: ...


def _parts(section: str, values: Mapping[str, Mapping[str, Any]], *classes: type[Any]) -> _Part:
    """Return what builds the options of each of `classes`, which share a section."""
    names = {cls: [each.name for each in dataclasses.fields(cls)] for cls in classes}
    known = [name for part in names.values() for name in part]
    assert len(set(known)) == len(known), f"two parts of [{section}] claim one option"
    for key in values[section]:
        if key not in known:
            guess = nearest(key, known)
            raise ConfigurationError(
                f"unknown option `{key}` in section [{section}]",
                hint=f"did you mean `{guess}`?" if guess else f"known: {', '.join(known)}",
            )

    def part(cls: type[OptionsT]) -> OptionsT:
        chosen = {key: value for key, value in values[section].items() if key in names[cls]}
        try:
            return options_from_mapping(cls, chosen, section=section)
        except ConfigurationError as error:
            if error.message.startswith("["):
                raise
            raise ConfigurationError(f"[{section}] {error.message}", hint=error.hint) from None

    return part


def _remote_clusters(values: Mapping[str, Any]) -> dict[str, RemoteClusterOptions]:
    clusters = {}
    for name, section in values.items():
        if not isinstance(section, dict):
            raise ConfigurationError(
                f"option `{name}` stands outside of a cluster",
                hint="a remote cluster has a section of its own: [clusters.NAME]",
            )
        _check_name("the name in [clusters.NAME]", name)
        try:
            clusters[name] = options_from_mapping(
                RemoteClusterOptions, section, section=f"clusters.{name}"
            )
        except ConfigurationError as error:
            raise ConfigurationError(
                error.message.replace("[clusters.NAME]", f"[clusters.{name}]"), hint=error.hint
            ) from None
    return clusters


def parse_address(text: str, what: str) -> tuple[str, int]:
    """Return the host and port of `HOST:PORT`; an IPv6 host stands in brackets.

    Raises:
        ConfigurationError: it is not an address; begins with `what`.

    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not host or not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise ConfigurationError(
            f"{what}: {text!r} is not HOST:PORT", hint="for example 127.0.0.1:34601, or [::1]:34601"
        )
    return host, int(port)


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{what}: {name!r} is not a name",
            hint="1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first",
        )


def _check_word(what: str, word: str, known: tuple[str, ...]) -> None:
    if word not in known:
        guess = nearest(word, known)
        raise ConfigurationError(
            f"{what}: {word!r} is none of {', '.join(known)}",
            hint=f"did you mean `{guess}`?" if guess else "",
        )
