"""pure: tables and partitions as the meta server stores them, and the bytes of their records.

One record for the cluster, one for each table, one for each partition; every key has the
revision at which it was read or written, and every change is guarded by the revisions of
all that it touches. A field that this software does not know is kept when its record is
written again (G5).

What was stored is never asserted when it is loaded: what makes no sense together is named
in `problems` and served as far as it goes. Only bytes that are no record stop a start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from pegaskv.base.errors import CorruptionError, WireError
from pegaskv.base.types import Gpid, PartitionConfiguration, TableInfo, TableStatus
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.meta.duplications import Book, BookRecord, Progress, Source, order_of, read_sources
from pegaskv.meta.levels import Level
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
from pegaskv.meta.remotes import RemoteClusterInfo

__all__ = [
    "CHANGE_OPERATIONS_MAX",
    "Change",
    "Cluster",
    "ClusterRecord",
    "PartitionRecord",
    "TableRecord",
]

# What one commit may hold in any store.
CHANGE_OPERATIONS_MAX: Final = 100

_CLUSTER_KEY: Final = "cluster"
_TABLES: Final = "tables/"
_PARTITIONS: Final = "partitions/"
# So many former members of a partition are remembered.
_DROPPED_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """What there is once: the uuid made at the first start, the next table id, the last dupid.

    `forgotten` are the uuids of incoming duplications that were removed at their source, the
    last ones: what their source asked before that may come later, and is refused.
    `never_given` are ranges (first, last) of table ids that were passed over, since a node had
    data under them that no record speaks of. `level` is what an operator set last.
    """

    uuid: str
    next_table_id: int = 1
    last_dupid: int = 0
    forgotten: tuple[bytes, ...] = ()
    level: Level = Level.LIVELY
    never_given: tuple[tuple[int, int], ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def was_given(self, table_id: int) -> bool:
        """Whether there was a table with this id for sure, be it purged by now."""
        passed_over = any(first <= table_id <= last for first, last in self.never_given)
        return 0 < table_id < self.next_table_id and not passed_over

    def passing_over(self, table_id: int) -> "ClusterRecord":
        """Return it with all ids up to `table_id` taken, although no table had them."""
        skipped = (*self.never_given, (self.next_table_id, table_id))
        return replace(self, next_table_id=table_id + 1, never_given=skipped)

    def pack(self) -> bytes:
        """Return the bytes that are stored."""
        fields = {
            "uuid": self.uuid,
            "next_table_id": self.next_table_id,
            "last_dupid": self.last_dupid,
            "forgotten": list(self.forgotten),
            "level": self.level.value,
            "never_given": [list(one) for one in self.never_given],
        }
        return pack_record(self.unknown, fields)


@dataclass(frozen=True, slots=True)
class TableRecord:
    """A table; times are Unix seconds, 0 = not so.

    `purging` is stored before the first row is removed: from then on there is no way back,
    whatever the clock says.
    """

    table_id: int
    name: str
    status: TableStatus
    partition_count: int
    replica_count: int
    envs: Mapping[str, str] = field(default_factory=dict)
    created_at: int = 0
    dropped_at: int = 0
    expires_at: int = 0
    version: int = 1
    purging: bool = False
    # Made by a duplication and not opened since.
    follower: bool = False
    sources: tuple[Source, ...] = ()
    # Of every cluster whose rows ever came in: its id, and the uuid that has to go with it.
    source_clusters: Mapping[int, str] = field(default_factory=dict)
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Where it is stored."""
        return f"{_TABLES}{self.table_id}"

    def changed(self, **changes: Any) -> "TableRecord":
        """Return the next version of it."""
        return replace(self, version=self.version + 1, **changes)

    def info(self) -> TableInfo:
        """Return it as others see it."""
        return TableInfo(
            table_id=self.table_id,
            name=self.name,
            status=self.status,
            partition_count=self.partition_count,
            replica_count=self.replica_count,
            envs=dict(self.envs),
            created_at=self.created_at,
            dropped_at=self.dropped_at,
            expires_at=self.expires_at,
            version=self.version,
            follower=self.follower,
        )

    @property
    def live_sources(self) -> list[Source]:
        """What may come in now."""
        return [one for one in self.sources if one.live]

    def pack(self) -> bytes:
        """Return the bytes that are stored."""
        fields = {
            "name": self.name,
            "status": self.status.value,
            "partition_count": self.partition_count,
            "replica_count": self.replica_count,
            "envs": dict(self.envs),
            "created_at": self.created_at,
            "dropped_at": self.dropped_at,
            "expires_at": self.expires_at,
            "version": self.version,
            "purging": self.purging,
            "follower": self.follower,
            "sources": [one.to_map() for one in self.sources],
            "source_clusters": {str(one): uuid for one, uuid in self.source_clusters.items()},
        }
        return pack_record(self.unknown, fields)


@dataclass(frozen=True, slots=True)
class PartitionRecord:
    """Who serves a partition, by node id; ballot 0 means that nobody ever did.

    `dropped` are members that went since it had as many as its table wants, the last one last:
    they have most of what a new member needs.
    """

    gpid: Gpid
    ballot: int = 0
    primary: str | None = None
    secondaries: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    unknown: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Where it is stored."""
        return f"{_PARTITIONS}{self.gpid.table_id}/{self.gpid.partition_index}"

    @property
    def members(self) -> tuple[str, ...]:
        """The nodes that may hold data of it."""
        return self.secondaries if self.primary is None else (self.primary, *self.secondaries)

    def under(
        self, ballot: int, primary: str, secondaries: tuple[str, ...], *, replica_count: int
    ) -> "PartitionRecord":
        """Return its next configuration."""
        assert ballot > self.ballot
        members = {primary, *secondaries}
        assert len(members) == len(secondaries) + 1
        went = [one for one in (*self.dropped, *self.members) if one not in members]
        # The last time counts.
        dropped = tuple(dict.fromkeys(reversed(went)))[:_DROPPED_MAX][::-1]
        if len(members) >= replica_count:
            dropped = ()
        return replace(
            self, ballot=ballot, primary=primary, secondaries=secondaries, dropped=dropped
        )

    def configuration(self) -> PartitionConfiguration:
        """Return it as replicas see it."""
        return PartitionConfiguration(self.gpid, self.ballot, self.primary, self.secondaries)

    def pack(self) -> bytes:
        """Return the bytes that are stored."""
        fields = {
            "ballot": self.ballot,
            "primary": self.primary,
            "secondaries": list(self.secondaries),
            "dropped": list(self.dropped),
        }
        return pack_record(self.unknown, fields)


@dataclass(frozen=True, slots=True)
class Change:
    """Records to write and to delete in one commit."""

    cluster: ClusterRecord | None = None
    tables: tuple[TableRecord, ...] = ()
    partitions: tuple[PartitionRecord, ...] = ()
    removed_partitions: tuple[Gpid, ...] = ()
    removed_table: int | None = None
    # Of duplications and other clusters.
    book: tuple[BookRecord, ...] = ()
    removed_book: tuple[BookRecord, ...] = ()

    def puts(self) -> dict[str, bytes]:
        """Return the records to write."""
        found = {} if self.cluster is None else {_CLUSTER_KEY: self.cluster.pack()}
        found.update((table.key, table.pack()) for table in self.tables)
        found.update((partition.key, partition.pack()) for partition in self.partitions)
        found.update((record.key, record.pack()) for record in self.book)
        return found

    def touched(self) -> list[str]:
        """Return the keys of all that it writes or deletes."""
        keys = [] if self.cluster is None else [_CLUSTER_KEY]
        keys += [table.key for table in self.tables]
        keys += [partition.key for partition in self.partitions]
        keys += [record.key for record in self.book]
        return [*keys, *self.deletes()]

    def deletes(self) -> tuple[str, ...]:
        """Return the keys to delete."""
        keys = [PartitionRecord(gpid).key for gpid in self.removed_partitions]
        if self.removed_table is not None:
            keys.append(f"{_TABLES}{self.removed_table}")
        keys += [record.key for record in self.removed_book]
        return tuple(keys)

    @property
    def is_progress(self) -> bool:
        """Whether it changes nothing that other clusters have to do with."""
        return all(isinstance(one, Progress) for one in (*self.book, *self.removed_book)) and not (
            self.tables or self.removed_table or self.cluster
        )


class Cluster:
    """All records in memory, as the store has them.

    Invariant: `names` has exactly the tables that are not dropped, each name once.
    """

    def __init__(self) -> None:
        self.record: ClusterRecord | None = None
        self.tables: dict[int, TableRecord] = {}
        self.partitions: dict[int, dict[int, PartitionRecord]] = {}
        self.partition_count = 0
        self.problems: list[str] = []
        self.book = Book()
        # Of the configuration file, which goes before what was added at run time.
        self.configured: dict[str, RemoteClusterInfo] = {}
        # Rises with whatever may be work at other clusters.
        self.generation = 0
        self._ids: dict[str, int] = {}
        self._revisions: dict[str, int] = {}

    @classmethod
    def load(cls, records: Mapping[str, tuple[bytes, int]]) -> "Cluster":
        """Build it from (value, revision) by key.

        Raises:
            CorruptionError: a record cannot be read.
            UnsupportedFormat: newer software wrote a record.

        """
        cluster = cls()
        for key, (value, revision) in records.items():
            cluster._revisions[key] = revision
            try:
                cluster._load_one(key, value)
            except (WireError, KeyError, TypeError, ValueError) as error:
                raise CorruptionError(
                    f"the meta record `{key}` cannot be read: {error!r}"
                ) from None
        for table in sorted(cluster.tables.values(), key=lambda one: one.table_id):
            cluster._check_loaded(table)
        for table_id in [one for one in cluster.partitions if one not in cluster.tables]:
            cluster.problems.append(f"partitions of table {table_id}, which is not recorded")
            cluster.partition_count -= len(cluster.partitions.pop(table_id))
        return cluster

    def dump(self) -> dict[str, bytes]:
        """Return all records as they are stored."""
        partitions = [one for table in self.partitions.values() for one in table.values()]
        tables, book = tuple(self.tables.values()), tuple(self.book.records())
        return Change(self.record, tables, tuple(partitions), book=book).puts()

    @property
    def remotes(self) -> dict[str, RemoteClusterInfo]:
        """The other clusters, by their names here."""
        return {name: one.info for name, one in self.book.remotes.items()} | self.configured

    def orders(self, table_id: int) -> tuple[DuplicationOrder, ...]:
        """Return what the replicas of a table have to do about what goes out of it."""
        entries = self.book.entries.get(table_id)
        if not entries:
            return ()
        dropped = self.tables[table_id].status is TableStatus.DROPPED
        remotes, found = self.remotes, list[DuplicationOrder]()
        for _, entry in sorted(entries.items()):
            progress = [one.partition for one in self.book.progress(entry).values()]
            remote = remotes.get(entry.remote_cluster)
            found += order_of(entry, remote, progress, paused=dropped)
        return tuple(found)

    @property
    def names(self) -> list[str]:
        """The names that are taken."""
        return list(self._ids)

    @property
    def next_table_id(self) -> int:
        """An id that no table ever had, as far as any record says."""
        stored = 1 if self.record is None else self.record.next_table_id
        return max(stored, 1, *(table_id + 1 for table_id in self.tables))

    def named(self, name: str) -> TableRecord | None:
        """Return the table that has this name and is not dropped."""
        table_id = self._ids.get(name)
        return None if table_id is None else self.tables[table_id]

    def partition(self, gpid: Gpid) -> PartitionRecord | None:
        """Return the partition's record."""
        return self.partitions.get(gpid.table_id, {}).get(gpid.partition_index)

    def missing(self, table: TableRecord) -> list[int]:
        """Return the indices of partitions without a record."""
        there = self.partitions.get(table.table_id, {})
        return [index for index in range(table.partition_count) if index not in there]

    def members(self, table_id: int) -> list[str]:
        """Return the nodes that may hold data of the table, sorted."""
        partitions = self.partitions.get(table_id, {}).values()
        return sorted({node for one in partitions for node in one.members})

    def guards(self, change: Change) -> tuple[tuple[str, int], ...]:
        """Return the revisions (0 = not there) at which the touched keys must still be."""
        return tuple((key, self._revisions.get(key, 0)) for key in change.touched())

    def apply(self, change: Change, revision: int) -> None:
        """Take over what was stored at `revision`."""
        for key in change.touched():
            self._revisions[key] = revision
        for key in change.deletes():
            self._revisions.pop(key, None)
        if change.cluster is not None:
            self.record = change.cluster
        for table in change.tables:
            self._put_table(table)
        for partition in change.partitions:
            self._put_partition(partition)
        for gpid in change.removed_partitions:
            partitions = self.partitions.get(gpid.table_id, {})
            if partitions.pop(gpid.partition_index, None) is not None:
                self.partition_count -= 1
        if change.removed_table is not None:
            table = self.tables.pop(change.removed_table)
            assert table.status is TableStatus.DROPPED
            assert not self.partitions.pop(table.table_id, {})
        for record in change.book:
            self.book.put(record)
        for record in change.removed_book:
            self.book.remove(record)
        if not change.is_progress:
            self.generation += 1

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        alive = {t.name: i for i, t in self.tables.items() if t.status is not TableStatus.DROPPED}
        assert self._ids == alive, "names and tables differ"
        taken = [t for t in self.tables.values() if t.status is not TableStatus.DROPPED]
        assert len(alive) == len(taken), "two tables have one name"
        assert self.partition_count == sum(map(len, self.partitions.values()))
        for table in self.tables.values():
            assert self.record is not None
            assert table.table_id < self.record.next_table_id
            for index, partition in self.partitions.get(table.table_id, {}).items():
                assert partition.gpid == (table.table_id, index)
                assert 0 <= index < table.partition_count
                assert (partition.ballot == 0) == (not partition.members)
                assert (partition.ballot == 0) == (partition.primary is None)
                assert len(set(partition.members)) == len(partition.members)
                assert not {*partition.dropped} & {*partition.members}
            if table.status is TableStatus.AVAILABLE:
                assert not self.missing(table)
                assert all(one.ballot for one in self.partitions[table.table_id].values())
            assert table.status is TableStatus.DROPPED or not table.purging
            for source in table.sources:
                assert table.source_clusters[source.order.cluster_id] == source.order.cluster_uuid
        self.book.check()

    # Loading.

    def _load_one(self, key: str, value: bytes) -> None:
        if key == _CLUSTER_KEY:
            fields = unpack_record(key, value)
            self.record = _read_cluster(fields)
        elif key.startswith(_TABLES):
            table_id = int(key.removeprefix(_TABLES))
            self.tables[table_id] = _read_table(table_id, unpack_record(key, value))
        elif key.startswith(_PARTITIONS):
            table, index = key.removeprefix(_PARTITIONS).split("/")
            gpid = Gpid(int(table), int(index))
            self._put_partition(_read_partition(gpid, unpack_record(key, value)))
        else:
            self.book.load_one(key, value)
        # Other keys are other software's: they are left alone.

    def _check_loaded(self, table: TableRecord) -> None:
        name = f"table `{table.name}` (id {table.table_id})"
        if table.status is not TableStatus.DROPPED:
            holder = self._ids.setdefault(table.name, table.table_id)
            if holder != table.table_id:
                self.problems.append(f"{name}: table {holder} has the same name")
        partitions = self.partitions.setdefault(table.table_id, {})
        for index in [one for one in partitions if one >= table.partition_count]:
            self.problems.append(f"{name}: partition {index} is beyond its partition count")
            del partitions[index]
            self.partition_count -= 1
        if table.status is TableStatus.AVAILABLE and (missing := self.missing(table)):
            # Not made anew: an empty partition would be served in place of a lost one.
            self.problems.append(f"{name}: partitions without a record: {missing[:10]}")

    def _put_table(self, table: TableRecord) -> None:
        old = self.tables.get(table.table_id)
        if old is not None and self._ids.get(old.name) == old.table_id:
            del self._ids[old.name]
        if table.status is not TableStatus.DROPPED:
            # Two tables of one name can only come from elsewhere: the first keeps it.
            self._ids.setdefault(table.name, table.table_id)
        self.tables[table.table_id] = table
        self.partitions.setdefault(table.table_id, {})

    def _put_partition(self, partition: PartitionRecord) -> None:
        partitions = self.partitions.setdefault(partition.gpid.table_id, {})
        if partition.gpid.partition_index not in partitions:
            self.partition_count += 1
        partitions[partition.gpid.partition_index] = partition


def _read_cluster(fields: dict[str, Any]) -> ClusterRecord:
    following = as_count(fields.pop("next_table_id"))
    # A record of before this field does not say which ids were passed over: any may have been.
    unsure = [[1, following - 1]] if following > 1 else []
    never_given = [as_list(one) for one in as_list(fields.pop("never_given", unsure))]
    return ClusterRecord(
        uuid=as_text(fields.pop("uuid")),
        next_table_id=following,
        last_dupid=as_count(fields.pop("last_dupid", 0)),
        forgotten=tuple(as_bytes(one) for one in as_list(fields.pop("forgotten", []))),
        level=as_known("the cluster's level", fields.pop("level", Level.LIVELY.value), Level),
        never_given=tuple((as_count(first), as_count(last)) for first, last in never_given),
        unknown=fields,
    )


def _read_table(table_id: int, fields: dict[str, Any]) -> TableRecord:
    status = as_known(f"table {table_id}'s status", fields.pop("status"), TableStatus)
    return TableRecord(
        table_id=table_id,
        name=as_text(fields.pop("name")),
        status=status,
        partition_count=as_count(fields.pop("partition_count")),
        replica_count=as_count(fields.pop("replica_count")),
        envs=_envs(fields.pop("envs", {})),
        created_at=as_count(fields.pop("created_at", 0)),
        dropped_at=as_count(fields.pop("dropped_at", 0)),
        expires_at=as_count(fields.pop("expires_at", 0)),
        version=as_count(fields.pop("version")),
        purging=bool(fields.pop("purging", False)),
        follower=bool(fields.pop("follower", False)),
        sources=read_sources(fields.pop("sources", [])),
        source_clusters=_clusters(fields.pop("source_clusters", {})),
        unknown=fields,
    )


def _read_partition(gpid: Gpid, fields: dict[str, Any]) -> PartitionRecord:
    primary = fields.pop("primary")
    return PartitionRecord(
        gpid=gpid,
        ballot=as_count(fields.pop("ballot")),
        primary=None if primary is None else as_text(primary),
        secondaries=tuple(as_text(node) for node in fields.pop("secondaries")),
        dropped=tuple(as_text(node) for node in fields.pop("dropped", [])),
        unknown=fields,
    )


def _clusters(value: Any) -> dict[int, str]:
    return {int(as_text(name)): as_text(uuid) for name, uuid in as_map(value).items()}


def _envs(value: Any) -> dict[str, str]:
    return {as_text(name): as_text(one) for name, one in as_map(value).items()}
