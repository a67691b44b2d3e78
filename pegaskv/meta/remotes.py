"""pure: the other clusters by their names here, from the configuration and added at run time.

What the configuration file says goes before what was added by a command: the file is
what an operator looks at.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.options import nearest
from pegaskv.meta.records import as_count, as_text, pack_record

__all__ = [
    "CLUSTERS",
    "CLUSTERS_MAX",
    "CLUSTER_ID_MAX",
    "ConfiguredCluster",
    "RemoteClusterInfo",
    "RemoteRecord",
    "check_new",
    "configured",
    "find",
    "read_remote",
]

CLUSTERS: Final = "clusters/"
CLUSTER_ID_MAX: Final = 127
CLUSTERS_MAX: Final = 1_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_ADDRESS: Final = re.compile(r"(?:\[[^\[\],\s]+\]|[^\[\]:,\s]+):([0-9]{1,5})", re.ASCII)


class ConfiguredCluster(Protocol):
    """What the configuration says of a cluster, in its section [clusters.NAME]."""

    @property
    def metas(self) -> str: ...  # noqa: D102
    @property
    def id(self) -> int: ...  # noqa: D102
    @property
    def user(self) -> str: ...  # noqa: D102
    @property
    def password_file(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class RemoteClusterInfo:
    """Another cluster; `metas` are HOST:PORT of its meta servers, separated by commas."""

    name: str
    metas: str
    cluster_id: int
    user: str = ""
    password_file: str = ""


@dataclass(frozen=True, slots=True)
class RemoteRecord:
    """A cluster that was added at run time, as it is stored."""

    info: RemoteClusterInfo
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Where it is stored."""
        return f"{CLUSTERS}{self.info.name}"

    def pack(self) -> bytes:
        """Return the bytes that are stored."""
        info = self.info
        fields = {
            "metas": info.metas,
            "cluster_id": info.cluster_id,
            "user": info.user,
            "password_file": info.password_file,
        }
        return pack_record(self.unknown, fields)


def read_remote(name: str, fields: dict[str, Any]) -> RemoteRecord:
    """Read what `RemoteRecord.pack` made."""
    info = RemoteClusterInfo(
        name,
        as_text(fields.pop("metas")),
        as_count(fields.pop("cluster_id")),
        as_text(fields.pop("user", "")),
        as_text(fields.pop("password_file", "")),
    )
    return RemoteRecord(info, fields)


def configured(clusters: Mapping[str, ConfiguredCluster]) -> dict[str, RemoteClusterInfo]:
    """Return the clusters of the configuration."""
    return {
        name: RemoteClusterInfo(
            name,
            ",".join(part.strip() for part in one.metas.split(",")),
            one.id,
            one.user,
            one.password_file,
        )
        for name, one in clusters.items()
    }


def find(clusters: Mapping[str, RemoteClusterInfo], name: str) -> RemoteClusterInfo:
    """Return the cluster with this name. Raises InvalidArgument: the hint names the nearest."""
    found = clusters.get(name)
    if found is None:
        guess = nearest(name[:64], list(clusters))
        raise InvalidArgument(
            f"no cluster is known as `{name[:80]}`",
            hint=f"did you mean `{guess}`?"
            if guess is not None
            else "make it known by `add_cluster`, or in the configuration as [clusters.NAME]; "
            "`ls_clusters` lists what is known",
        )
    return found


def check_new(
    info: RemoteClusterInfo,
    others: Iterable[RemoteClusterInfo],
    *,
    own_name: str,
    own_id: int,
) -> RemoteClusterInfo:
    """Return the cluster as it may be stored; raise InvalidArgument if it cannot be."""
    name, cluster_id = info.name, info.cluster_id
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"a cluster cannot be named {name[:80]!r}",
            hint="1 to 64 letters, digits, `_`, `.` and `-`, a letter or a digit first",
        )
    if name == own_name:
        raise InvalidArgument(f"`{name}` is this cluster itself")
    if not 1 <= cluster_id <= CLUSTER_ID_MAX:
        raise InvalidArgument(
            f"a cluster cannot have the id {cluster_id}", hint=f"from 1 to {CLUSTER_ID_MAX}"
        )
    if cluster_id == own_id:
        raise InvalidArgument(
            f"{cluster_id} is the id of this cluster",
            hint="every cluster needs an id of its own: [cluster] id",
        )
    for other in others:
        if other.cluster_id == cluster_id and other.name != name:
            raise InvalidArgument(
                f"cluster `{other.name}` has the id {cluster_id} already",
                hint="every cluster needs an id of its own",
            )
    addresses = [part.strip() for part in info.metas.split(",")]
    for address in addresses:
        match = _ADDRESS.fullmatch(address)
        if match is None or not 1 <= int(match[1]) <= 65_535:
            raise InvalidArgument(
                f"meta servers: {address[:80]!r} is not HOST:PORT",
                hint="for example 10.0.0.1:34601, several separated by commas",
            )
    return RemoteClusterInfo(name, ",".join(addresses), cluster_id, info.user, info.password_file)
