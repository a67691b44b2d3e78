"""pure: duplications as the meta server stores them: entries, their progress, and sources.

An entry is a duplication that goes out of a table, with a uuid of its own, which is stored
before any other cluster hears of it. Beside it each source partition has a record of its
progress, which is written often and belongs to one uuid: that of another is as good as
none. What comes into a table stands in the table's own record, as its sources.

Whether an entry goes on is said by what is stored: `removed_at` and `failure` end it, a
uuid in `earlier` is one that it had before. What depends on the moment (a table that is
dropped, other clusters that are known) is never stored.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pegaskv.base.types import DuplicationStatus, FailMode
from pegaskv.codec.messages_duplication import (
    UUID_BYTES,
    DuplicationOrder,
    PartitionProgress,
    SourceOrder,
)
from pegaskv.meta.records import (
    as_bytes,
    as_count,
    as_known,
    as_list,
    as_map,
    as_text,
    pack_record,
    unpack_record,
)
from pegaskv.meta.remotes import CLUSTERS, RemoteClusterInfo, RemoteRecord, read_remote

__all__ = [
    "PHASES",
    "Book",
    "BookRecord",
    "Entry",
    "Progress",
    "Source",
    "merged_progress",
    "order_of",
    "read_sources",
]

_ENTRIES: Final = "duplications/"
_PROGRESS: Final = "progress/"

_PREPARE: Final = DuplicationStatus.DS_PREPARE
_APP: Final = DuplicationStatus.DS_APP
_LOG: Final = DuplicationStatus.DS_LOG
_REMOVED: Final = DuplicationStatus.DS_REMOVED

# The phases in their order.
PHASES: Final = (_PREPARE, _APP, _LOG)


@dataclass(frozen=True, slots=True)
class Entry:
    """One duplication; times are Unix seconds, 0 = not so.

    `ensured` says that the target has listed `uuid`; the remote table's id may be known
    before, from an earlier uuid. `wanted` is what the target is asked for. Of `earlier`
    uuids the replicas still have to be told that they are over: before the copy is done
    as broken (tombstones stay), then for good. `untold` uuids are those that the target has
    to forget after the removal.
    """

    table_id: int
    dupid: int
    uuid: bytes
    remote_cluster: str
    remote_cluster_id: int
    remote_table: str
    wanted: str
    checkpoint: bool = True
    remote_replica_count: int = 0
    mesh: bool = False
    fail_mode: FailMode = FailMode.SLOW
    created_at: int = 0
    paused: bool = False
    attempt: int = 0
    ensured: bool = False
    remote_table_id: int = 0
    remote_partition_count: int = 0
    remote_cluster_uuid: str = ""
    failure: str = ""
    failed_at: int = 0
    earlier: tuple[tuple[bytes, bool], ...] = ()
    removed_at: int = 0
    untold: tuple[bytes, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Where it is stored."""
        return f"{_ENTRIES}{self.table_id}/{self.dupid}"

    @property
    def live(self) -> bool:
        """Whether anybody may see it."""
        return self.removed_at == 0

    def changed(self, **changes: Any) -> "Entry":
        """Return it with other values."""
        return replace(self, **changes)

    def pack(self) -> bytes:
        """Return the bytes that are stored."""
        fields = {name: getattr(self, name) for name in _PLAIN}
        fields |= {
            "status": (_PREPARE if self.live else _REMOVED).value,
            "uuid": self.uuid,
            "fail_mode": self.fail_mode.value,
            "earlier": [list(one) for one in self.earlier],
            "untold": list(self.untold),
        }
        return pack_record(self.unknown, fields)


_TEXTS: Final = ("remote_cluster", "remote_table", "wanted", "remote_cluster_uuid", "failure")
_COUNTS: Final = (
    "remote_cluster_id",
    "remote_replica_count",
    "created_at",
    "attempt",
    "remote_table_id",
    "remote_partition_count",
    "failed_at",
    "removed_at",
)
_FLAGS: Final = ("checkpoint", "mesh", "paused", "ensured")
_PLAIN: Final = (*_TEXTS, *_COUNTS, *_FLAGS)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one partition is, under one uuid."""

    table_id: int
    dupid: int
    uuid: bytes
    partition: PartitionProgress
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Where it is stored."""
        return f"{_PROGRESS}{self.table_id}/{self.dupid}/{self.partition.index}"

    def pack(self) -> bytes:
        """Return the bytes that are stored."""
        one = self.partition
        fields = {
            "uuid": self.uuid,
            "status": one.status.value,
            "start_decree": one.start_decree,
            "confirmed_decree": one.confirmed_decree,
            "confirmed_clock_us": one.confirmed_clock_us,
            "copied_key": one.copied_key,
            "skipped": one.skipped,
            "skipped_decree": one.skipped_decree,
        }
        return pack_record(self.unknown, fields)


@dataclass(frozen=True, slots=True)
class Source:
    """What may come into a table; part of its record. An ended one is told to the replicas.

    `dupid` and `attempt` are the other side's: of one duplication, later attempts go before
    earlier ones that come late.
    """

    order: SourceOrder
    dupid: int = 0
    attempt: int = 0
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether it may send."""
        return not self.order.ended

    def ended(self) -> "Source":
        """Return it as one that may send nothing any more."""
        return replace(self, order=replace(self.order, ended=True))

    def to_map(self) -> dict[str, Any]:
        """Return what stands in the table's record."""
        order = self.order
        return {
            **self.unknown,
            "uuid": order.uuid,
            "cluster_id": order.cluster_id,
            "cluster_uuid": order.cluster_uuid,
            "cluster_name": order.cluster_name,
            "table_id": order.table_id,
            "ended": order.ended,
            "dupid": self.dupid,
            "attempt": self.attempt,
        }


BookRecord = Entry | Progress | RemoteRecord


def merged_progress(old: PartitionProgress, new: PartitionProgress) -> PartitionProgress:
    """Return what is known after `new` was heard: nothing goes back."""
    status = max(old.status, new.status, key=PHASES.index)
    copied = max(old.copied_key, new.copied_key) if status is _APP else b""
    return PartitionProgress(
        index=new.index,
        status=status,
        # A pin has one decree, for ever.
        start_decree=old.start_decree or new.start_decree,
        confirmed_decree=max(old.confirmed_decree, new.confirmed_decree),
        confirmed_clock_us=max(old.confirmed_clock_us, new.confirmed_clock_us),
        copied_key=copied,
        skipped=max(old.skipped, new.skipped),
        skipped_decree=max(old.skipped_decree, new.skipped_decree),
    )


def order_of(
    entry: Entry,
    remote: RemoteClusterInfo | None,
    progress: Iterable[PartitionProgress],
    *,
    paused: bool,
) -> Iterator[DuplicationOrder]:
    """Yield what replica servers must obey of an entry: it, and the uuids that it had."""
    for uuid, broken in entry.earlier:
        yield DuplicationOrder(
            entry.dupid,
            uuid,
            entry.remote_cluster,
            entry.remote_cluster_id,
            ended=True,
            broken=broken and entry.live,
        )
    failed = bool(entry.failure)
    yield DuplicationOrder(
        dupid=entry.dupid,
        uuid=entry.uuid,
        remote_cluster=entry.remote_cluster,
        remote_cluster_id=entry.remote_cluster_id,
        metas="" if remote is None else remote.metas,
        user="" if remote is None else remote.user,
        password_file="" if remote is None else remote.password_file,
        remote_table_id=entry.remote_table_id if entry.ensured else 0,
        remote_partition_count=entry.remote_partition_count if entry.ensured else 0,
        checkpoint=entry.checkpoint,
        paused=paused or entry.paused,
        ended=failed or not entry.live,
        broken=failed and entry.live,
        fail_mode=entry.fail_mode,
        attempt=entry.attempt,
        progress=tuple(progress),
        remote_cluster_uuid=entry.remote_cluster_uuid if entry.ensured else "",
    )


class Book:
    """All entries, progress and run-time clusters in memory, as the store has them."""

    def __init__(self) -> None:
        self.entries: dict[int, dict[int, Entry]] = {}
        self.remotes: dict[str, RemoteRecord] = {}
        self._progress: dict[tuple[int, int], dict[int, Progress]] = {}

    def load_one(self, key: str, value: bytes) -> bool:
        """Take a record that is stored at `key`; whether it is one of these."""
        if key.startswith(_ENTRIES):
            table_id, dupid = map(int, key.removeprefix(_ENTRIES).split("/"))
            self.put(_read_entry(table_id, dupid, unpack_record(key, value)))
        elif key.startswith(_PROGRESS):
            table_id, dupid, index = map(int, key.removeprefix(_PROGRESS).split("/"))
            self.put(_read_progress(table_id, dupid, index, unpack_record(key, value)))
        elif key.startswith(CLUSTERS):
            name = key.removeprefix(CLUSTERS)
            self.put(read_remote(name, unpack_record(key, value)))
        else:
            return False
        return True

    def all(self) -> Iterator[Entry]:
        """Yield every entry, removed ones too."""
        for entries in self.entries.values():
            yield from entries.values()

    def of_table(self, table_id: int) -> list[Entry]:
        """Return the entries of a table that are not removed, by id."""
        entries = self.entries.get(table_id, {})
        return [one for _, one in sorted(entries.items()) if one.live]

    def get(self, table_id: int, dupid: int) -> Entry | None:
        """Return an entry, also a removed one."""
        return self.entries.get(table_id, {}).get(dupid)

    def by_uuid(self, dupid: int, uuid: bytes) -> Entry | None:
        """Return the entry that has this uuid now."""
        for entries in self.entries.values():
            entry = entries.get(dupid)
            if entry is not None and entry.uuid == uuid:
                return entry
        return None

    def progress(self, entry: Entry) -> dict[int, Progress]:
        """Return what is stored of its partitions, under the uuid that it has."""
        found = self._progress.get((entry.table_id, entry.dupid), {})
        return {index: one for index, one in sorted(found.items()) if one.uuid == entry.uuid}

    def stored_progress(self, entry: Entry) -> list[Progress]:
        """Return all records of progress at the entry's keys, of earlier uuids too."""
        return list(self._progress.get((entry.table_id, entry.dupid), {}).values())

    def one_progress(self, entry: Entry, index: int) -> Progress | None:
        """Return what is stored of one partition, of earlier uuids too."""
        return self._progress.get((entry.table_id, entry.dupid), {}).get(index)

    def phase(self, entry: Entry, partition_count: int, *, paused: bool) -> DuplicationStatus:
        """Return the phase that is shown: the least of its partitions'."""
        if not entry.live:
            return _REMOVED
        least = _PREPARE
        stored = self._progress.get((entry.table_id, entry.dupid), {})
        if entry.ensured and len(stored) >= partition_count:
            least = _LOG
            for index in range(partition_count):
                one = stored.get(index)
                status = _PREPARE
                if one is not None and one.uuid == entry.uuid:
                    status = one.partition.status
                least = min(least, status, key=PHASES.index)
        if least is _LOG and (paused or entry.paused):
            return DuplicationStatus.DS_PAUSE
        return least

    def put(self, record: BookRecord) -> None:
        """Take a record that is stored."""
        match record:
            case Entry():
                self.entries.setdefault(record.table_id, {})[record.dupid] = record
            case Progress():
                there = self._progress.setdefault((record.table_id, record.dupid), {})
                there[record.partition.index] = record
            case RemoteRecord():
                self.remotes[record.info.name] = record

    def remove(self, record: BookRecord) -> None:
        """Take notice that a record is deleted."""
        match record:
            case Entry():
                entries = self.entries[record.table_id]
                del entries[record.dupid]
                if not entries:
                    del self.entries[record.table_id]
            case Progress():
                key = (record.table_id, record.dupid)
                del self._progress[key][record.partition.index]
                if not self._progress[key]:
                    del self._progress[key]
            case RemoteRecord():
                del self.remotes[record.info.name]

    def records(self) -> Iterator[BookRecord]:
        """Yield everything that is stored."""
        yield from self.all()
        for progress in self._progress.values():
            yield from progress.values()
        yield from self.remotes.values()

    def orphans(self) -> list[Progress]:
        """Return progress whose entry is not there."""
        return [
            one
            for (table_id, dupid), found in self._progress.items()
            if self.get(table_id, dupid) is None
            for one in found.values()
        ]

    @property
    def last_dupid(self) -> int:
        """The greatest id of an entry that is stored."""
        return max((one.dupid for one in self.all()), default=0)

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        uuids = [one.uuid for one in self.all()]
        assert len(uuids) == len(set(uuids)), "two entries have one uuid"
        for table_id, entries in self.entries.items():
            live = [one.remote_cluster for one in entries.values() if one.live]
            assert len(live) == len(set(live)), "a table is duplicated to one cluster twice"
            for dupid, entry in entries.items():
                assert (entry.table_id, entry.dupid) == (table_id, dupid)
                assert not entry.untold or not entry.live
                assert not entry.ensured or entry.remote_table_id
        targets = [(one.remote_cluster, one.remote_table) for one in self.all() if one.live]
        assert len(targets) == len(set(targets)), "two tables are duplicated to one"


# Reading.


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is not true or false")
    return value


def _uuid(value: Any) -> bytes:
    if len(as_bytes(value)) != UUID_BYTES:
        raise ValueError(f"{value!r} is no uuid")
    return bytes(value)


def _read_entry(table_id: int, dupid: int, fields: dict[str, Any]) -> Entry:
    values: dict[str, Any] = {}
    for names, read in ((_TEXTS, as_text), (_COUNTS, as_count), (_FLAGS, _flag)):
        values |= {name: read(fields.pop(name)) for name in names}
    status = as_known("a duplication's status", fields.pop("status"), DuplicationStatus)
    if (status is _REMOVED) != (values["removed_at"] > 0):
        raise ValueError("its status and the time of its removal differ")
    return Entry(
        table_id=table_id,
        dupid=dupid,
        uuid=_uuid(fields.pop("uuid")),
        fail_mode=as_known("a duplication's fail mode", fields.pop("fail_mode"), FailMode),
        earlier=tuple((_uuid(uuid), _flag(one)) for uuid, one in as_list(fields.pop("earlier"))),
        untold=tuple(map(_uuid, as_list(fields.pop("untold")))),
        **values,
        unknown=fields,
    )


def _read_progress(table_id: int, dupid: int, index: int, fields: dict[str, Any]) -> Progress:
    status = as_known("a progress record's status", fields.pop("status"), DuplicationStatus)
    if status not in PHASES:
        raise ValueError(f"{status.value} is no phase of a partition")
    return Progress(
        table_id,
        dupid,
        _uuid(fields.pop("uuid")),
        PartitionProgress(
            index,
            status,
            as_count(fields.pop("start_decree")),
            as_count(fields.pop("confirmed_decree")),
            as_count(fields.pop("confirmed_clock_us")),
            as_bytes(fields.pop("copied_key")),
            as_count(fields.pop("skipped", 0)),
            as_count(fields.pop("skipped_decree", 0)),
        ),
        fields,
    )


def read_sources(value: Any) -> tuple[Source, ...]:
    """Read the sources that stand in a table's record; raises ValueError or KeyError."""
    found = []
    for one in as_list(value):
        fields = as_map(one)
        order = SourceOrder(
            _uuid(fields.pop("uuid")),
            as_count(fields.pop("cluster_id")),
            as_text(fields.pop("cluster_uuid")),
            as_text(fields.pop("cluster_name")),
            as_count(fields.pop("table_id")),
            _flag(fields.pop("ended")),
        )
        dupid, attempt = fields.pop("dupid", 0), fields.pop("attempt", 0)
        found.append(Source(order, as_count(dupid), as_count(attempt), fields))
    return tuple(found)
