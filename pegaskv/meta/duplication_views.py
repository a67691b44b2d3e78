"""pure: what is said of duplications: the records, and what those who run them see now.

The records know what is certain; the replica servers and whoever talks to other clusters
know what happens at this moment. Both are one map to who asks. Where they differ the
phase is that of the records, and a failure that is stored comes before all others.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pegaskv.base.metrics import Labels, Metric
from pegaskv.base.types import DuplicationStatus, Gpid, TableStatus
from pegaskv.codec.messages_duplication import RemoteWork
from pegaskv.meta import tables
from pegaskv.meta.cluster import Cluster, TableRecord
from pegaskv.meta.duplications import Entry
from pegaskv.meta.entries import stored_map
from pegaskv.meta.host import Identity
from pegaskv.meta.live import NO_STATES, LiveStates
from pegaskv.meta.remotes import RemoteClusterInfo

__all__ = [
    "RemoteState",
    "Views",
    "cluster_map",
    "remote_work",
    "source_map",
]

RemoteState = Callable[[int, bytes], Mapping[str, Any]]

_TROUBLE: Final = ("last_error", "error_class", "stalled_since", "attempts", "next_attempt_at")
_NO_TROUBLE: Final = ("", "", 0, 0, 0)
_SUMS: Final = ("gap", "bytes_held", "shipped", "retries", "conflicts", "skipped")
# A reply has a bound: so many partitions are listed one by one, or none.
_PARTITIONS_LISTED_MAX: Final = 8_192

_FAILURE_CLASSES: Final = (
    ("source lost", "source_lost"),
    ("target lost", "target_lost"),
    ("target is gone for good", "target_purged"),
    ("log damaged", "log_damaged"),
    ("max_log_bytes_held", "log_limit"),
)

_PHASE_NUMBERS: Final = {
    DuplicationStatus.DS_PREPARE.value: 1,
    DuplicationStatus.DS_APP.value: 2,
    DuplicationStatus.DS_LOG.value: 3,
    DuplicationStatus.DS_PAUSE.value: 3,
}


class Views:
    """Looks at the records of `cluster`, which are replaced when the server begins anew.

    `live` is what the replica servers say of duplications at the moment.
    """

    def __init__(
        self,
        cluster: Callable[[], Cluster],
        *,
        remote_state: RemoteState,
    ) -> None:
        self._cluster = cluster
        self._remote_state = remote_state

    def entry(self, entry: Entry, live: LiveStates = NO_STATES) -> dict[str, Any]:
        """Return an entry as it travels."""
        shown: dict[str, Any] = stored_map(self._cluster(), entry)
        running = shown["partitions"] if entry.live else []
        partitions = [self._partition(entry, one, live) for one in running]
        for name in _SUMS:
            shown[name] = sum(_number(one, name) for one in partitions)
        shown["lag_ms"] = max((_number(one, "lag_ms") for one in partitions), default=0)
        shown["incomplete"] = shown["incomplete"] or shown["skipped"] > 0
        shown["caught_up"] = (
            bool(partitions)
            and shown["status"] == DuplicationStatus.DS_LOG.value
            and all(one.get("caught_up") is True for one in partitions)
        )
        shown["partitions"] = partitions
        return shown | self._trouble(entry, partitions)

    def of_table(self, name: str, live: LiveStates = NO_STATES) -> list[dict[str, Any]]:
        """Return the duplications of a table. Raises TableNotFound."""
        table = tables.find(self._cluster(), name)
        entries = self._cluster().book.of_table(table.table_id)
        return [self.entry(one, live) for one in entries]

    def tables_matching(self, pattern: str, match: str) -> list[int]:
        """Return the tables with such names that are duplicated, dropped ones included."""
        cluster = self._cluster()
        return [
            table_id
            for table_id in sorted(cluster.book.entries)
            if (table := cluster.tables.get(table_id)) is not None
            and _matches(table.name, pattern, match)
        ]

    def matching(
        self, pattern: str, match: str, live: LiveStates = NO_STATES
    ) -> list[dict[str, Any]]:
        """Return the duplications of the tables with such names, dropped ones included."""
        book = self._cluster().book
        found = [
            entry
            for table_id in self.tables_matching(pattern, match)
            for entry in book.of_table(table_id)
        ]
        shown = [self.entry(one, live) for one in found]
        if sum(len(one["partitions"]) for one in shown) > _PARTITIONS_LISTED_MAX:
            for one in shown:
                one["partitions"] = []
        return shown

    def stalled(self, table_name: str, dupid: int, live: LiveStates) -> bool:
        """Whether a duplication waits for its next attempt."""
        table = self._cluster().named(table_name)
        entry = None if table is None else self._cluster().book.get(table.table_id, dupid)
        return entry is not None and bool(self.entry(entry, live)["last_error"])

    def metrics(self) -> Iterable[Metric]:
        """Yield the state of each duplication."""
        phases: list[tuple[Labels, float]] = []
        paused: list[tuple[Labels, float]] = []
        broken: list[tuple[Labels, float]] = []
        for table_id, table in sorted(self._cluster().tables.items()):
            for entry in self._cluster().book.of_table(table_id):
                labels: Labels = (
                    ("table", table.name),
                    ("remote_cluster", entry.remote_cluster),
                    ("dupid", str(entry.dupid)),
                )
                dropped = table.status is TableStatus.DROPPED
                phase = self._cluster().book.phase(entry, table.partition_count, paused=dropped)
                phases.append((labels, _PHASE_NUMBERS[phase.value]))
                paused.append((labels, int(entry.paused or dropped)))
                broken.append((labels, int(bool(entry.failure))))
        for name, text, samples in (
            ("phase", "1 = DS_PREPARE, 2 = DS_APP, 3 = DS_LOG, as it is stored.", phases),
            ("paused", "Whether it is paused, or its table dropped.", paused),
            ("broken", "Whether it needs a decision to go on.", broken),
        ):
            yield Metric(f"pegaskv_meta_duplication_{name}", "gauge", text, tuple(samples))

    def _partition(
        self, entry: Entry, stored: Mapping[str, Any], states: LiveStates
    ) -> dict[str, Any]:
        gpid = Gpid(entry.table_id, stored["index"])
        record = self._cluster().partition(gpid)
        primary = None if record is None else record.primary
        live = states.duplication(gpid, primary, entry.uuid)
        defaults = {"last_committed_decree": 0, "gap": 0, "lag_ms": 0, "copied_rows": 0}
        shown = {**defaults, **stored, **live}
        shown["index"], shown["status"] = stored["index"], stored["status"]
        shown["start_decree"] = shown["start_decree"] or stored["start_decree"]
        shown["error"] = live.get("last_error", "")
        return shown

    def _trouble(self, entry: Entry, partitions: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what is in the way: what is stored, else what has been for longest."""
        if entry.failure:
            error_class = next(
                (name for text, name in _FAILURE_CLASSES if text in entry.failure), "broken"
            )
            values = (entry.failure, error_class, entry.failed_at, 0, 0)
            return dict(zip(_TROUBLE, values, strict=True))
        if entry.live and entry.remote_cluster not in self._cluster().remotes:
            text = f"cluster `{entry.remote_cluster}` is not known any more"
            return dict(zip(_TROUBLE, (text, "unreachable", 0, 0, 0), strict=True))
        found: Mapping[str, Any] = {}
        if entry.live and not entry.ensured:
            found = self._remote_state(entry.dupid, entry.uuid)
        if not found.get("last_error"):
            stalled = [one for one in partitions if one["error"]]
            found = min(stalled, key=lambda one: _number(one, "stalled_since"), default={})
        pairs = zip(_TROUBLE, _NO_TROUBLE, strict=True)
        return {name: found.get(name, default) for name, default in pairs}


def remote_work(cluster: Cluster, identity: Identity) -> list[RemoteWork]:
    """Return what has to be done at other clusters now."""
    remotes, found = cluster.remotes, []
    for entry in cluster.book.all():
        table = cluster.tables.get(entry.table_id)
        remote = remotes.get(entry.remote_cluster)
        if not entry.live:
            for uuid in entry.untold:
                fields = (entry.remote_table_id, uuid)
                found.append(_work("forget", entry, uuid, table, remote, fields))
        elif (
            table is not None
            and table.status is TableStatus.AVAILABLE
            and not (entry.ensured or entry.paused or entry.failure)
        ):
            fields = _ensure_fields(cluster, identity, entry, table)
            found.append(_work("ensure", entry, entry.uuid, table, remote, fields))
    return found


def _ensure_fields(
    cluster: Cluster, identity: Identity, entry: Entry, table: TableRecord
) -> tuple[Any, ...]:
    assert cluster.record is not None
    return (
        entry.uuid,
        cluster.record.uuid,
        identity.cluster_id,
        identity.name,
        table.table_id,
        entry.remote_table,
        entry.wanted,
        table.partition_count,
        entry.remote_replica_count or table.replica_count,
        dict(table.envs),
        {
            "mesh": entry.mesh,
            "table_id": entry.remote_table_id,
            "dupid": entry.dupid,
            "attempt": entry.attempt,
        },
    )


def _work(
    kind: str,
    entry: Entry,
    uuid: bytes,
    table: TableRecord | None,
    remote: RemoteClusterInfo | None,
    fields: tuple[Any, ...],
) -> RemoteWork:
    return RemoteWork(
        kind,
        entry.dupid,
        uuid,
        "" if table is None else table.name,
        entry.remote_cluster,
        entry.remote_cluster_id,
        "" if remote is None else remote.metas,
        "" if remote is None else remote.user,
        "" if remote is None else remote.password_file,
        fields,
        entry.attempt,
        entry.removed_at,
    )


def source_map(table: TableRecord) -> list[dict[str, Any]]:
    """Return what comes into a table, as TABLE_INFO shows it."""
    return [
        {
            "uuid": one.order.uuid.hex(),
            "cluster": one.order.cluster_name,
            "cluster_id": one.order.cluster_id,
            "cluster_uuid": one.order.cluster_uuid,
            "table_id": one.order.table_id,
        }
        for one in table.live_sources
    ]


def cluster_map(cluster: Cluster, info: RemoteClusterInfo) -> dict[str, Any]:
    """Return another cluster as LIST_CLUSTERS shows it; where the password is, not what."""
    used = [one for one in cluster.book.all() if one.live and one.remote_cluster == info.name]
    return {
        "name": info.name,
        "metas": info.metas,
        "cluster_id": info.cluster_id,
        # As it answered last.
        "cluster_uuid": next((one.remote_cluster_uuid for one in used if one.ensured), ""),
        "user": info.user,
        "password_file": info.password_file,
        "configured": info.name in cluster.configured,
        "duplications": len(used),
    }


def _number(fields: Mapping[str, Any], name: str) -> Any:
    value = fields.get(name, 0)
    return value if type(value) in (int, float) else 0


def _matches(name: str, pattern: str, match: str) -> bool:
    match match:
        case "all":
            return True
        case "exact":
            return name == pattern
        case "prefix":
            return name.startswith(pattern)
        case "postfix":
            return name.endswith(pattern)
    return pattern in name
