"""pure: one entry: what it may become, and what is said of it.

Answers that refuse something say what is so, why it does not go, and what does.
"""

from collections.abc import Mapping
from typing import Any

from pegaskv.base.errors import DuplicationNotFound, InvalidArgument
from pegaskv.base.types import FailMode, TableStatus
from pegaskv.codec.messages_duplication import PartitionProgress
from pegaskv.meta.cluster import Cluster, TableRecord
from pegaskv.meta.duplications import Book, Entry
from pegaskv.meta.events import AddDuplication, ModifyDuplication

__all__ = [
    "differences",
    "end_of",
    "find_entry",
    "modified",
    "requested",
    "stored_map",
]


def find_entry(book: Book, table: TableRecord, dupid: int) -> Entry:
    """Return the duplication of a table. Raises DuplicationNotFound: the hint has which it has."""
    entry = book.get(table.table_id, dupid)
    if entry is None or not entry.live:
        there = book.of_table(table.table_id)
        named = ", ".join(f"{one.dupid} (to `{one.remote_cluster}`)" for one in there)
        raise DuplicationNotFound(
            f"table `{table.name}` has no duplication {dupid}",
            hint=f"it has {named}" if named else "it is duplicated nowhere: `add_dup`",
        )
    return entry


def modified(entry: Entry, event: ModifyDuplication, now: int) -> tuple[Entry, list[str]]:
    """Return the entry as it is asked for, and warnings; the same when nothing changes.

    Raises:
        InvalidArgument: it cannot become so; says why, and what can be done.

    """
    match event.action:
        case "pause":
            if entry.failure:
                raise InvalidArgument(
                    f"duplication {entry.dupid} is broken, so there is nothing to pause: "
                    f"{entry.failure}",
                    hint="`start_dup --copy` begins it anew, `remove_dup` ends it",
                )
            return entry.changed(paused=True), []
        case "start":
            return _started(entry, stalled=event.stalled), []
        case "copy":
            return _copied(entry, event), []
        case "remove":
            return end_of(entry, now), []
        case "fail_mode":
            mode = FailMode(event.argument)
            warnings = []
            if mode is FailMode.SKIP:
                warnings.append(
                    "rows that the target finds invalid will be left out; they are counted, and "
                    "the duplication is shown as incomplete then"
                )
            return entry.changed(fail_mode=mode), warnings
    raise AssertionError(f"no such action: {event.action}")


def _started(entry: Entry, *, stalled: bool) -> Entry:
    if entry.failure:
        raise InvalidArgument(
            f"duplication {entry.dupid} is broken and cannot go on: {entry.failure}",
            hint="`start_dup --copy` begins it anew with a copy of all rows, `remove_dup` ends it",
        )
    if entry.paused:
        return entry.changed(paused=False, attempt=entry.attempt + 1)
    # Whoever starts what is stalled wants it tried now.
    return entry.changed(attempt=entry.attempt + 1) if stalled else entry


def _copied(entry: Entry, event: ModifyDuplication) -> Entry:
    if entry.checkpoint and not entry.ensured and not entry.failure:
        # The copy has not begun: a new uuid would only leave another one to be forgotten.
        return entry.changed(paused=False, attempt=entry.attempt + 1)
    return entry.changed(
        uuid=event.new_uuid,
        earlier=(*entry.earlier, (entry.uuid, True)),
        ensured=False,
        checkpoint=True,
        # The copy makes the table where it is gone, and takes it where it is.
        wanted="merge" if entry.remote_table_id else entry.wanted,
        paused=False,
        failure="",
        failed_at=0,
        attempt=entry.attempt + 1,
    )


def end_of(entry: Entry, now: int) -> Entry:
    """Return the entry as one that is removed: the target has to forget all its uuids."""
    uuids = (entry.uuid, *(uuid for uuid, _ in entry.earlier))
    return entry.changed(
        removed_at=max(1, now),
        untold=uuids,
        earlier=tuple((uuid, False) for uuid, _ in entry.earlier),
    )


# What is said of it.


def requested(event: AddDuplication, table: TableRecord) -> dict[str, Any]:
    """Return what was asked for, by the names of an entry's fields."""
    return {
        "remote_cluster": event.remote_cluster,
        "remote_table": event.remote_table or table.name,
        "checkpoint": event.checkpoint,
        "remote_replica_count": event.remote_replica_count or table.replica_count,
    }


def differences(entry: Entry, event: AddDuplication, table: TableRecord) -> dict[str, str]:
    """Return how the entry differs from what was asked for: a sentence for each field."""
    found = {}
    wanted = requested(event, table)
    # Not given means: as it is.
    if event.remote_table is not None and entry.remote_table != event.remote_table:
        sentence = f"its remote table is `{entry.remote_table}`, not `{event.remote_table}`"
        found["remote_table"] = sentence
    if entry.checkpoint != event.checkpoint:
        copies = "copies" if entry.checkpoint else "does not copy"
        found["checkpoint"] = f"it {copies} existing rows"
    count = entry.remote_replica_count or table.replica_count
    if count != wanted["remote_replica_count"]:
        wanted_count = wanted["remote_replica_count"]
        sentence = f"its remote replica count is {count}, not {wanted_count}"
        found["remote_replica_count"] = sentence
    return found


def stored_map(cluster: Cluster, entry: Entry) -> dict[str, Any]:
    """Return what the records say of an entry, as it travels; the rest comes from who runs it."""
    table = cluster.tables.get(entry.table_id)
    dropped = table is None or table.status is TableStatus.DROPPED
    count = 0 if table is None else table.partition_count
    progress = cluster.book.progress(entry)
    return {
        "dupid": entry.dupid,
        "uuid": entry.uuid.hex(),
        "table": "" if table is None else table.name,
        "table_id": entry.table_id,
        "table_dropped": dropped,
        "status": cluster.book.phase(entry, count, paused=dropped).value,
        "remote_cluster": entry.remote_cluster,
        "remote_cluster_id": entry.remote_cluster_id,
        "remote_cluster_uuid": entry.remote_cluster_uuid,
        "remote_table": entry.remote_table,
        "remote_table_id": entry.remote_table_id,
        "remote_partition_count": entry.remote_partition_count,
        "remote_replica_count": entry.remote_replica_count
        or (0 if table is None else table.replica_count),
        "checkpoint": entry.checkpoint,
        "paused": entry.paused or dropped,
        "fail_mode": entry.fail_mode.value,
        "created_at": entry.created_at,
        "failure": entry.failure,
        "incomplete": any(one.partition.skipped for one in progress.values()),
        "partitions": [
            _partition(progress[index].partition if index in progress else PartitionProgress(index))
            for index in range(count)
        ],
    }


def _partition(progress: PartitionProgress) -> Mapping[str, Any]:
    return {
        "index": progress.index,
        "status": progress.status.value,
        "start_decree": progress.start_decree,
        "confirmed_decree": progress.confirmed_decree,
        "skipped": progress.skipped,
    }
