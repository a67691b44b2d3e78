"""pure: this cluster as the source of duplications: what is asked for, and what comes of it.

An entry is stored before anybody acts on it, and its table's version rises with it, so
that every replica is told and whoever waits for that can wait. The end of an entry is a
state too: it is kept, unseen, until the replicas have let its log go and the target has
forgotten it.

It promises that a table has one duplication to each cluster, whatever is asked at once;
that nothing that is refused changes anything; and that progress never goes back.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final

from pegaskv.base.errors import DuplicationExists, InvalidArgument
from pegaskv.base.limits import REPLICA_COUNT_MAX
from pegaskv.base.types import DuplicationStatus
from pegaskv.codec.messages_duplication import (
    EnsureOutcome,
    PartitionProgress,
    ProgressReport,
    lost_pin,
)
from pegaskv.meta import remotes, tables
from pegaskv.meta.cluster import CHANGE_OPERATIONS_MAX, Change, TableRecord
from pegaskv.meta.duplications import Entry, Progress, merged_progress
from pegaskv.meta.effects import Answer, Effect
from pegaskv.meta.entries import (
    differences,
    end_of,
    find_entry,
    modified,
    requested,
    stored_map,
)
from pegaskv.meta.events import (
    AddCluster,
    AddDuplication,
    Ensured,
    Forgotten,
    ModifyDuplication,
    RemotesChanged,
    RemoveCluster,
    ReportProgress,
    SourceRequest,
)
from pegaskv.meta.host import Host
from pegaskv.meta.remotes import RemoteClusterInfo, RemoteRecord
from pegaskv.meta.waiting import Need

__all__ = ["FORGET_FOR_S", "Sources"]

# A target that cannot be reached for so long is not told any more.
FORGET_FOR_S: Final = 24 * 3_600

_Key = tuple[int, int]


class Sources:
    """What goes out; `host` stores and tells.

    Invariant: between two events nothing is left in `_to_look_at` or `_to_push`.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        # Entries whose next step may be due.
        self._to_look_at: dict[_Key, None] = {}
        # Tables whose orders have changed without an entry.
        self._to_push: list[int] = []
        self._orphans: list[Progress] = []

    @property
    def has_work(self) -> bool:
        """Whether `next_commit` has anything to look at."""
        return bool(self._to_look_at or self._to_push or self._orphans)

    def on_request(self, event: SourceRequest) -> list[Effect]:
        """Take a request."""
        match event:
            case AddDuplication():
                return self._on_add(event)
            case ModifyDuplication():
                return self._on_modify(event)
            case AddCluster():
                return self._on_add_cluster(event)
            case RemoveCluster():
                return self._on_remove_cluster(event)
            case ReportProgress():
                return self._on_report(event)
            case Ensured():
                return self._on_ensured(event)
            case Forgotten():
                return self._on_forgotten(event)

    # What else happens.

    def on_started(self) -> None:
        """Look at everything that is stored."""
        book = self._host.cluster.book
        self._look_at(book.all())
        self._orphans = book.orphans()

    def on_time(self) -> None:
        """Some time has passed: who was not reached for a day is not told any more."""
        self._look_at(one for one in self._host.cluster.book.all() if not one.live)

    def on_table_changed(self, table_id: int) -> None:
        """A table is being purged, or its nodes know all that is stored."""
        self._look_at(self._host.cluster.book.entries.get(table_id, {}).values())

    def on_remotes_changed(self, event: RemotesChanged) -> list[Effect]:
        """The configuration names other clusters than before."""
        cluster = self._host.cluster
        before, cluster.configured = cluster.remotes, dict(event.clusters)
        cluster.generation += 1
        after = cluster.remotes
        names = {name for name in {*before, *after} if before.get(name) != after.get(name)}
        self._push_entries_to(names)
        return []

    def _look_at(self, entries: Iterable[Entry]) -> None:
        self._to_look_at.update(((one.table_id, one.dupid), None) for one in entries)

    def _push_entries_to(self, names: set[str]) -> None:
        found = {
            one.table_id
            for one in self._host.cluster.book.all()
            if one.live and one.remote_cluster in names
        }
        self._to_push = sorted({*self._to_push, *found} & set(self._host.cluster.tables))

    # Add.

    def _on_add(self, event: AddDuplication) -> list[Effect]:
        host = self._host
        remote = self._remote(event.remote_cluster)
        if not 0 <= event.remote_replica_count <= REPLICA_COUNT_MAX:
            raise InvalidArgument(
                f"a table cannot have {event.remote_replica_count} replicas",
                hint=f"from 1 to {REPLICA_COUNT_MAX}, or 0 for as many as here",
            )
        if event.remote_table is not None:
            tables.check_name(event.remote_table)
        table = tables.find_available(host.cluster, event.table)
        self._check_is_new(event, table)
        back = [one for one in table.live_sources if one.order.cluster_id == remote.cluster_id]
        known = back[0].order.table_id if back and event.remote_table is None else 0
        self._check_target(event, table, known)
        if not event.mesh:
            _check_topology(table, remote)
        wanted = "create" if event.checkpoint else "existing"
        if event.merge or back:
            wanted = "merge"
        entry = Entry(
            table_id=table.table_id,
            dupid=self._next_dupid(),
            uuid=event.new_uuid,
            remote_cluster=remote.name,
            remote_cluster_id=remote.cluster_id,
            remote_table=event.remote_table or table.name,
            wanted=wanted,
            checkpoint=event.checkpoint,
            remote_replica_count=event.remote_replica_count,
            mesh=event.mesh,
            created_at=host.now,
            remote_table_id=known,
        )
        # A follower that goes back to where it comes from is no follower any more.
        follower = table.follower and not back
        warnings = _warnings(table, event, two_way=bool(back))
        more = ((table.table_id, entry.dupid), warnings, entry)
        if event.checkpoint:
            return self._store_entry(entry, event.request_id, more, need=None, follower=follower)
        # Nothing that is written after the answer may be missed: every partition has its pin.
        return self._store_entry(
            entry, event.request_id, more, need=Need.IN_FORCE, follower=follower
        )

    def _next_dupid(self) -> int:
        """Return the second of now, or if need be a later one: no id is given twice."""
        cluster = self._host.cluster
        assert cluster.record is not None
        last = max(cluster.record.last_dupid, cluster.book.last_dupid)
        return max(last + 1, self._host.now)

    def _remote(self, name: str) -> RemoteClusterInfo:
        identity = self._host.identity
        if name == identity.name:
            raise InvalidArgument(
                f"`{name}` is this cluster: a table cannot be duplicated to its own cluster"
            )
        remote = remotes.find(self._host.cluster.remotes, name)
        if remote.cluster_id == identity.cluster_id:
            raise InvalidArgument(
                f"cluster `{name}` is known with the id {remote.cluster_id}, which is that of this "
                "cluster",
                hint="every cluster needs an id of its own: [cluster] id",
            )
        return remote

    def _check_is_new(self, event: AddDuplication, table: TableRecord) -> None:
        for entry in self._host.cluster.book.of_table(table.table_id):
            if entry.remote_cluster == event.remote_cluster:
                other = differences(entry, event, table)
                text = (
                    f"table `{table.name}` is duplicated to cluster `{entry.remote_cluster}` "
                    f"already, by duplication {entry.dupid} to table `{entry.remote_table}`"
                )
                if other:
                    text += f"; it is not what was asked for: {'; '.join(other.values())}"
                in_force = self._host.delivery.acknowledged(table.table_id, table.version)
                if not (entry.checkpoint or in_force):
                    text += (
                        "; not every partition has marked its log for it yet, so what is written "
                        "now may be missed: ask again in a moment"
                    )
                raise DuplicationExists(
                    text,
                    hint=f"`query_dup {table.name}` shows it; nothing was changed",
                    details={
                        "existing": stored_map(self._host.cluster, entry),
                        "requested": requested(event, table),
                        "differences": list(other),
                        "in_force": in_force,
                    },
                )

    def _check_target(self, event: AddDuplication, table: TableRecord, known: int) -> None:
        name = event.remote_table or table.name
        for other in self._host.cluster.book.all():
            if not other.live or other.remote_cluster != event.remote_cluster:
                continue
            if other.remote_table == name or (known and other.remote_table_id == known):
                record = self._host.cluster.tables.get(other.table_id)
                whose = f"{other.table_id}" if record is None else f"`{record.name}`"
                raise InvalidArgument(
                    f"table {whose} is duplicated to table `{other.remote_table}` of cluster "
                    f"`{other.remote_cluster}` already",
                    hint="choose another remote table",
                )

    # Entries.

    def _store_entry(
        self,
        entry: Entry,
        request_id: int,
        more: tuple[object, ...],
        *,
        need: Need | None = Need.STORED,
        follower: bool | None = None,
    ) -> list[Effect]:
        """Store an entry, tell the table's nodes, and answer: when they know, or at once (None)."""
        host = self._host
        table, cluster = host.cluster.tables[entry.table_id], host.cluster.record
        assert cluster is not None
        changed = table.changed() if follower is None else table.changed(follower=follower)

        def then() -> list[Effect]:
            self._look_at([entry])
            if need is not None:
                return host.told(request_id, table.table_id, more, need)
            answer = Answer(request_id, None, more)
            return [answer, *host.delivery.change(table.table_id, set(), first=set())]

        given = None if entry.dupid <= cluster.last_dupid else entry.dupid
        record = None if given is None else replace(cluster, last_dupid=given)
        return host.store(Change(record, tables=(changed,), book=(entry,)), then)

    def _on_modify(self, event: ModifyDuplication) -> list[Effect]:
        host = self._host
        table = tables.find_available(host.cluster, event.table)
        entry = find_entry(host.cluster.book, table, event.dupid)
        changed, warnings = modified(entry, event, host.now)
        more = ((table.table_id, entry.dupid), warnings, changed)
        if changed == entry:
            return [Answer(event.request_id, None, more)]
        return self._store_entry(changed, event.request_id, more)

    def _on_ensured(self, event: Ensured) -> list[Effect]:
        """The target has listed the uuid: shipping can begin."""
        entry = self._host.cluster.book.by_uuid(event.dupid, event.uuid)
        answer = event.answer
        if (
            entry is None
            or not entry.live
            or entry.ensured
            or entry.failure
            or entry.table_id not in self._host.cluster.tables
            or answer.outcome == EnsureOutcome.EXISTS_FOREIGN
        ):
            return [Answer(event.request_id, None)]
        if answer.table_id < 1:
            raise InvalidArgument(f"cluster `{entry.remote_cluster}` answered no table id")
        tables.check_partition_count(answer.partition_count)
        record = self._host.cluster.record
        assert record is not None
        if answer.cluster_uuid == record.uuid:
            raise InvalidArgument(f"cluster `{entry.remote_cluster}` is this cluster itself")
        ensured = entry.changed(
            ensured=True,
            remote_table_id=answer.table_id,
            remote_partition_count=answer.partition_count,
            remote_cluster_uuid=answer.cluster_uuid,
        )
        return self._store_entry(ensured, event.request_id, (), need=None)

    def _on_forgotten(self, event: Forgotten) -> list[Effect]:
        for entry in self._host.cluster.book.all():
            if entry.dupid == event.dupid and event.uuid in entry.untold:
                left = tuple(one for one in entry.untold if one != event.uuid)
                return self._host.store(
                    Change(book=(entry.changed(untold=left),)),
                    lambda: self._answer_forgotten(event),
                )
        return [Answer(event.request_id, None)]

    def _answer_forgotten(self, event: Forgotten) -> list[Effect]:
        self._look_at(one for one in self._host.cluster.book.all() if one.dupid == event.dupid)
        return [Answer(event.request_id, None)]

    # Progress.

    def _on_report(self, event: ReportProgress) -> list[Effect]:
        """Failures first, one commit each; then all progress, in as few as it takes."""
        changes: list[Callable[[], list[Effect] | None]] = []
        heard: dict[str, Progress] = {}
        live: list[str] = []
        for report in event.reports:
            entry = self._reported(report)
            if entry is None:
                continue
            report = self._checked(entry, report)
            if report.failure:
                changes.append(lambda report=report: self._break(report, go_on))  # type: ignore[misc]
                continue
            index = report.progress.index
            stored = self._host.cluster.book.one_progress(entry, index)
            if stored is None or stored.uuid != entry.uuid:
                stored = Progress(entry.table_id, entry.dupid, entry.uuid, PartitionProgress(index))
            known = heard.get(stored.key, stored)
            heard[stored.key] = Progress(
                entry.table_id,
                entry.dupid,
                entry.uuid,
                merged_progress(known.partition, report.progress),
                known.unknown,
            )
            live.append(stored.key)
        batches = self._news(heard.values())

        def go_on() -> list[Effect]:
            while changes:
                effects = changes.pop(0)()
                if effects is not None:
                    return effects
            if batches:
                batch = batches.pop(0)
                return self._host.store(Change(book=batch), lambda: self._on_progress(batch, go_on))
            answered = [heard[key].partition for key in live]
            return [Answer(event.request_id, None, (answered,))]

        return go_on()

    def _checked(self, entry: Entry, report: ProgressReport) -> ProgressReport:
        """Return the report; as a failure, if what it starts from is not what it was before."""
        stored = self._host.cluster.book.one_progress(entry, report.progress.index)
        before = stored.partition.start_decree if stored and stored.uuid == entry.uuid else 0
        now = report.progress.start_decree
        if report.failure or not before or now in (0, before):
            return report
        return replace(report, failure=lost_pin(before, now))

    def _reported(self, report: ProgressReport) -> Entry | None:
        """Return the entry of a report; None when it is over for it."""
        cluster = self._host.cluster
        entry = cluster.book.get(report.gpid.table_id, report.dupid)
        table = cluster.tables.get(report.gpid.table_id)
        if entry is None or table is None or table.purging:
            return None
        if entry.uuid != report.uuid or not entry.live or entry.failure:
            return None
        return entry if 0 <= report.progress.index < table.partition_count else None

    def _leads(self, report: ProgressReport) -> bool:
        """Whether who reports is the primary still: a former one may not know what has come."""
        partitions = self._host.cluster.partitions.get(report.gpid.table_id, {})
        partition = partitions.get(report.gpid.partition_index)
        return report.ballot == 0 or (partition is not None and partition.ballot == report.ballot)

    def _news(self, heard: Iterable[Progress]) -> list[tuple[Progress, ...]]:
        """Return what is not stored yet, in batches that one commit can hold."""
        book, news = self._host.cluster.book, []
        for one in heard:
            entry = book.get(one.table_id, one.dupid)
            assert entry is not None
            if book.one_progress(entry, one.partition.index) != one:
                news.append(one)
        size = CHANGE_OPERATIONS_MAX
        return [tuple(news[place : place + size]) for place in range(0, len(news), size)]

    def _on_progress(
        self, batch: Iterable[Progress], go_on: Callable[[], list[Effect]]
    ) -> list[Effect]:
        book = self._host.cluster.book
        for one in batch:
            entry = book.get(one.table_id, one.dupid)
            if entry is not None and entry.earlier:
                self._look_at([entry])
        return go_on()

    def _break(
        self, report: ProgressReport, go_on: Callable[[], list[Effect]]
    ) -> list[Effect] | None:
        """It can never go on: that is stored first, then its pins are given up."""
        entry = self._reported(report)
        if entry is None or not self._leads(report):
            return None
        host = self._host
        text = f"partition {report.gpid}: {report.failure}"
        broken = entry.changed(failure=text[:_FAILURE_CHARACTERS_MAX], failed_at=max(1, host.now))
        table = host.cluster.tables[entry.table_id].changed()

        def then() -> list[Effect]:
            told = host.delivery.change(table.table_id, set(), first=set())
            return told + go_on()

        return host.store(Change(tables=(table,), book=(broken,)), then)

    # Other clusters.

    def _on_add_cluster(self, event: AddCluster) -> list[Effect]:
        cluster, identity = self._host.cluster, self._host.identity
        known = cluster.remotes
        info = remotes.check_new(
            event.info, known.values(), own_name=identity.name, own_id=identity.cluster_id
        )
        answer = Answer(event.request_id, None, (info,))
        if known.get(info.name) == info:
            return [answer]
        if info.name in cluster.configured:
            raise InvalidArgument(
                f"cluster `{info.name}` is in the configuration, with other values",
                hint=f"change [clusters.{info.name}] there",
            )
        used = self._users(info.name)
        if used and known[info.name].cluster_id != info.cluster_id:
            raise InvalidArgument(
                f"cluster `{info.name}` is known with the id {known[info.name].cluster_id}, and "
                f"{used} is duplicated there",
                hint="a cluster keeps its id; remove those duplications first",
            )
        stored = cluster.book.remotes.get(info.name)
        record = RemoteRecord(info, {} if stored is None else stored.unknown)

        def then() -> list[Effect]:
            self._push_entries_to({info.name})
            return [answer]

        return self._host.store(Change(book=(record,)), then)

    def _on_remove_cluster(self, event: RemoveCluster) -> list[Effect]:
        cluster, name = self._host.cluster, event.name
        if name in cluster.configured:
            raise InvalidArgument(
                f"cluster `{name}` is in the configuration",
                hint=f"take the section [clusters.{name}] out of it",
            )
        info = remotes.find(cluster.remotes, name)
        used = self._users(name)
        if used:
            raise InvalidArgument(
                f"{used} is duplicated to cluster `{name}`",
                hint="`remove_dup` ends a duplication",
            )
        record = cluster.book.remotes[name]
        return self._host.store(
            Change(removed_book=(record,)), lambda: [Answer(event.request_id, None, (info,))]
        )

    def _users(self, name: str) -> str:
        """Return the names of tables that are duplicated to a cluster, in words."""
        cluster = self._host.cluster
        found = [
            cluster.tables[one.table_id].name
            for one in cluster.book.all()
            if one.live and one.remote_cluster == name and one.table_id in cluster.tables
        ]
        return ", ".join(f"table `{one}`" for one in sorted(found)[:5])

    # What the records ask for.

    def next_commit(self) -> list[Effect]:
        """Do the next thing that is due, or find that nothing is."""
        host = self._host
        if self._orphans:
            batch = tuple(self._orphans[:CHANGE_OPERATIONS_MAX])
            del self._orphans[: len(batch)]
            return host.store(Change(removed_book=batch))
        if self._to_push:
            return self._push_tables()
        key = next(iter(self._to_look_at))
        del self._to_look_at[key]
        entry = host.cluster.book.get(*key)
        return [] if entry is None else self._next_of(entry)

    def _push_tables(self) -> list[Effect]:
        host = self._host
        batch = self._to_push[:CHANGE_OPERATIONS_MAX]
        del self._to_push[: len(batch)]
        batch = [one for one in batch if one in host.cluster.tables]
        if not batch:
            return []
        changed = tuple(host.cluster.tables[one].changed() for one in batch)

        def then() -> list[Effect]:
            found: list[Effect] = []
            for table_id in batch:
                found += host.delivery.change(table_id, set(), first=set())
            return found

        return host.store(Change(tables=changed), then)

    def _next_of(self, entry: Entry) -> list[Effect]:
        host, book = self._host, self._host.cluster.book
        table = host.cluster.tables.get(entry.table_id)
        if entry.live and (table is None or table.purging):
            # The rows go, and the log with them; the target is told.
            ended = end_of(entry, host.now)
            return host.store(Change(book=(ended,)), lambda: self._looked_at(ended))
        obeyed = host.delivery.obeyed(entry.table_id)
        if not entry.live:
            told = not entry.untold or host.now - entry.removed_at > FORGET_FOR_S
            return self._delete(entry) if told and obeyed else []
        if not entry.earlier or table is None:
            return []
        if any(broken for _, broken in entry.earlier):
            phase = book.phase(entry, table.partition_count, paused=False)
            shipping = phase in (DuplicationStatus.DS_LOG, DuplicationStatus.DS_PAUSE)
            if not shipping or entry.failure:
                return []
            # The new copy is done: what was kept for the old ones may go.
            over = entry.changed(earlier=tuple((uuid, False) for uuid, _ in entry.earlier))
            return self._store_unasked(over, table)
        return host.store(Change(book=(entry.changed(earlier=()),))) if obeyed else []

    def _looked_at(self, entry: Entry) -> list[Effect]:
        self._look_at([entry])
        return []

    def _store_unasked(self, entry: Entry, table: TableRecord) -> list[Effect]:
        host = self._host
        return host.store(
            Change(tables=(table.changed(),), book=(entry,)),
            lambda: host.delivery.change(table.table_id, set(), first=set()),
        )

    def _delete(self, entry: Entry) -> list[Effect]:
        """Remove the records of its progress in batches, and its own with the last of them."""
        left = self._host.cluster.book.stored_progress(entry)
        batch = tuple(left[: CHANGE_OPERATIONS_MAX - 1])
        if len(batch) == len(left):
            return self._host.store(Change(removed_book=(*batch, entry)))
        return self._host.store(Change(removed_book=batch), lambda: self._looked_at(entry))


# What stands in a record and in every answer about it.
_FAILURE_CHARACTERS_MAX: Final = 1_000


def _check_topology(table: TableRecord, remote: RemoteClusterInfo) -> None:
    for source in table.live_sources:
        if source.order.cluster_id != remote.cluster_id:
            other = source.order.cluster_name
            raise InvalidArgument(
                f"table `{table.name}` gets rows from cluster `{other}`, which would not go on "
                f"to `{remote.name}`: only rows that are written here do",
                hint=f"duplicate from `{other}` to `{remote.name}` directly; if every two of "
                "these clusters are connected in both directions, add it with --mesh",
            )


def _warnings(table: TableRecord, event: AddDuplication, *, two_way: bool) -> list[str]:
    found = []
    if two_way:
        found.append(
            f"table `{table.name}` is written on both clusters: of two writes to one row the later "
            "stays, and incr, check_and_set and check_and_mutate are exact within one cluster only"
        )
    if not event.checkpoint:
        found.append("rows that are there already are not copied")
    return found
