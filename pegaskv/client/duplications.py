"""pure: what is known of a duplication, as the meta server tells it.

A reply is read leniently, since servers and clients are upgraded at different times: what
a newer server adds is ignored, what an older one does not know yet has a default. Only
what makes a duplication is required: its id, its phase, and where it goes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, Final

from pegaskv.base.errors import WireError
from pegaskv.base.types import DuplicationStatus, FailMode

__all__ = [
    "Duplication",
    "DuplicationPartition",
    "RemoteCluster",
    "cluster_from_wire",
    "duplication_from_wire",
]

_REQUIRED: Final = ("dupid", "status", "remote_cluster", "remote_table")
_PARTITION_REQUIRED: Final = ("index", "status")


@dataclass(frozen=True, slots=True)
class DuplicationPartition:
    """One partition of the source table, and how far it is.

    `start_decree` 0 = its log is not kept for the duplication yet; `last_committed_decree`
    0 = the server that holds it has not told. `gap` counts the decrees that the target has
    not confirmed, `lag_ms` the age of the oldest of them.
    """

    index: int
    status: DuplicationStatus
    start_decree: int = 0
    confirmed_decree: int = 0
    last_committed_decree: int = 0
    gap: int = 0
    lag_ms: int = 0
    copied_rows: int = 0
    error: str = ""
    caught_up: bool = False

    @property
    def known(self) -> bool:
        """Whether `gap` says anything: the server that holds the partition has reported."""
        # A partition that keeps its log for a duplication has committed that order at least.
        return self.start_decree > 0 and self.last_committed_decree > 0

    def has(self, decree: int) -> bool:
        """Whether everything up to `decree` is certainly on the target."""
        if self.status is not DuplicationStatus.DS_LOG or not self.known:
            return False
        # Decrees that carry nothing to ship are never confirmed one by one.
        return self.confirmed_decree >= decree or self.gap == 0 or self.caught_up


@dataclass(frozen=True, slots=True)
class Duplication:
    """A table of this cluster that is shipped to another one. Times are Unix seconds, 0 = not so.

    `status` is the least advanced partition's phase, DS_PAUSE when paused in DS_LOG.
    `failure` is not empty when it is broken and needs a decision; `last_error` and
    `error_class` say why it does not go on at this moment, `stalled_since` since when, and
    `next_attempt_at` when it tries again by itself. `asked_at` is when this was so.
    """

    dupid: int
    status: DuplicationStatus
    remote_cluster: str
    remote_table: str
    table: str = ""
    table_id: int = 0
    uuid: str = ""
    remote_cluster_id: int = 0
    remote_table_id: int = 0
    remote_partition_count: int = 0
    remote_replica_count: int = 0
    checkpoint: bool = True
    paused: bool = False
    fail_mode: FailMode = FailMode.SLOW
    created_at: float = 0.0
    failure: str = ""
    last_error: str = ""
    error_class: str = ""
    stalled_since: float = 0.0
    attempts: int = 0
    next_attempt_at: float = 0.0
    gap: int = 0
    lag_ms: int = 0
    bytes_held: int = 0
    shipped: int = 0
    retries: int = 0
    conflicts: int = 0
    skipped: int = 0
    incomplete: bool = False
    caught_up: bool = False
    partitions: tuple[DuplicationPartition, ...] = ()
    asked_at: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def copied_rows(self) -> int:
        """Existing rows that were copied so far."""
        return sum(partition.copied_rows for partition in self.partitions)

    @property
    def stalled_seconds(self) -> float:
        """How long it has not gone on; 0 when it does."""
        return max(0.0, self.asked_at - self.stalled_since) if self.stalled_since else 0.0

    @property
    def next_attempt_seconds(self) -> float:
        """In how many seconds it tries again by itself; 0 = now, or not at all."""
        return max(0.0, self.next_attempt_at - self.asked_at) if self.next_attempt_at else 0.0


@dataclass(frozen=True, slots=True)
class RemoteCluster:
    """Another cluster by the name that it has here; `metas` as HOST:PORT,...

    `cluster_uuid` is empty until it was reached once. `detail` is what else the server says.
    """

    name: str
    metas: str = ""
    cluster_id: int = 0
    cluster_uuid: str = ""
    user: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


def duplication_from_wire(
    fields: Any, *, now_us: int, warnings: tuple[str, ...] = ()
) -> Duplication:
    """Read a duplication as a reply carries it; `now_us` is the caller's wall clock.

    Raises:
        WireError: it is no map, or what makes a duplication is missing or of a wrong type.

    """
    reader = _Reader("duplication", fields, _REQUIRED)
    partitions = tuple(
        sorted(map(_partition, reader.entries("partitions")), key=lambda each: each.index)
    )
    gap = sum(partition.gap for partition in partitions)
    return Duplication(
        dupid=reader.integer("dupid"),
        status=reader.status(),
        remote_cluster=reader.text("remote_cluster"),
        remote_table=reader.text("remote_table"),
        table=reader.text("table"),
        table_id=reader.integer("table_id"),
        uuid=reader.text("uuid"),
        remote_cluster_id=reader.integer("remote_cluster_id"),
        remote_table_id=reader.integer("remote_table_id"),
        remote_partition_count=reader.integer("remote_partition_count"),
        remote_replica_count=reader.integer("remote_replica_count"),
        checkpoint=reader.boolean("checkpoint", default=True),
        paused=reader.boolean("paused"),
        fail_mode=reader.fail_mode(),
        created_at=reader.number("created_at"),
        failure=reader.text("failure"),
        last_error=reader.text("last_error"),
        error_class=reader.text("error_class"),
        stalled_since=reader.number("stalled_since"),
        attempts=reader.integer("attempts"),
        next_attempt_at=reader.number("next_attempt_at"),
        gap=reader.integer("gap", gap),
        lag_ms=int(reader.number("lag_ms")),
        bytes_held=reader.integer("bytes_held"),
        shipped=reader.integer("shipped"),
        retries=reader.integer("retries"),
        conflicts=reader.integer("conflicts"),
        skipped=reader.integer("skipped"),
        incomplete=reader.boolean("incomplete"),
        caught_up=reader.boolean("caught_up"),
        partitions=partitions,
        # The server's own clock, when it tells it, so that ages are right everywhere.
        asked_at=reader.number("now", now_us / 1_000_000),
        warnings=warnings,
    )


def _partition(fields: Any) -> DuplicationPartition:
    reader = _Reader("partition of a duplication", fields, _PARTITION_REQUIRED)
    confirmed = reader.integer("confirmed_decree")
    last = reader.integer("last_committed_decree")
    return DuplicationPartition(
        index=reader.integer("index"),
        status=reader.status(),
        start_decree=reader.integer("start_decree"),
        confirmed_decree=confirmed,
        last_committed_decree=last,
        gap=reader.integer("gap", max(0, last - confirmed)),
        lag_ms=int(reader.number("lag_ms")),
        copied_rows=reader.integer("copied_rows"),
        error=reader.text("error"),
        caught_up=reader.boolean("caught_up"),
    )


def cluster_from_wire(fields: Any) -> RemoteCluster:
    """Read a remote cluster as a reply carries it.

    Raises:
        WireError: it is no map, or has no name.

    """
    reader = _Reader("remote cluster", fields, ("name",))
    metas = fields.get("metas")
    if isinstance(metas, list | tuple):
        metas = ",".join(map(str, metas))
    known = {"name", "metas", "cluster_id", "id", "cluster_uuid", "uuid", "user"}
    return RemoteCluster(
        name=reader.text("name"),
        metas=metas or "",
        cluster_id=reader.integer("cluster_id", reader.integer("id")),
        cluster_uuid=reader.text("cluster_uuid", reader.text("uuid")),
        user=reader.text("user"),
        detail={str(name): value for name, value in fields.items() if name not in known},
    )


class _Reader:
    """Takes typed fields out of a map. What is absent, or nil, has its default."""

    def __init__(self, what: str, fields: Any, required: tuple[str, ...]) -> None:
        if not isinstance(fields, Mapping):
            raise WireError(f"not a {what}: {fields!r:.60}")
        missing = [name for name in required if fields.get(name) is None]
        if missing:
            raise WireError(f"not a {what}: {', '.join(missing)} missing")
        self._what = what
        self._fields = fields

    def _wrong(self, name: str) -> WireError:
        return WireError(f"not a {self._what}: {name} is {self._fields.get(name)!r:.60}")

    def integer(self, name: str, default: int = 0) -> int:
        value = self._fields.get(name)
        if value is None:
            return default
        if type(value) is not int:
            raise self._wrong(name)
        return value

    def number(self, name: str, default: float = 0.0) -> float:
        value = self._fields.get(name)
        if value is None:
            return default
        if type(value) not in (int, float):
            raise self._wrong(name)
        if not isfinite(value):
            raise self._wrong(name)
        return float(value)

    def text(self, name: str, default: str = "") -> str:
        value = self._fields.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name)
        return value

    def boolean(self, name: str, *, default: bool = False) -> bool:
        value = self._fields.get(name)
        if value is None:
            return default
        if type(value) is not bool:
            raise self._wrong(name)
        return value

    def entries(self, name: str) -> list[Any]:
        value = self._fields.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(name)
        return value

    def status(self) -> DuplicationStatus:
        try:
            return DuplicationStatus(self.text("status"))
        except ValueError:
            raise self._wrong("status") from None

    def fail_mode(self) -> FailMode:
        try:
            return FailMode(self.text("fail_mode", FailMode.SLOW.value))
        except ValueError:
            raise self._wrong("fail_mode") from None
