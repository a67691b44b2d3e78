"""pure: this cluster as the target of duplications that others began.

The other side repeats what it asks until it has an answer, so every answer here can be
given again: the uuid that a table lists says that its duplication was taken. It is listed
in the record that makes the table, so no crash can leave a table that nobody owns.

It promises that no table is touched that belongs to somebody else, and that nothing is
answered before every partition knows whom it may take rows from.
"""

from dataclasses import replace
from typing import Final

from pegaskv.base.errors import DuplicationNotListed, InvalidArgument, TableNotFound
from pegaskv.base.types import TableStatus
from pegaskv.codec.messages_duplication import EnsureOutcome, SourceOrder
from pegaskv.meta import envs, tables
from pegaskv.meta.cluster import Change, TableRecord
from pegaskv.meta.duplications import Source
from pegaskv.meta.effects import Answer, Effect
from pegaskv.meta.events import EnsureDuplication, ForgetDuplication, TargetRequest
from pegaskv.meta.host import Host
from pegaskv.meta.options import MetaOptions
from pegaskv.meta.waiting import Need

__all__ = ["Targets"]

# Requests are late by seconds or minutes; so many removals in that time are out of the question.
_FORGOTTEN_MAX: Final = 1_000


class Targets:
    """What comes in; `host` stores and tells."""

    def __init__(self, host: Host, options: MetaOptions) -> None:
        self._host = host
        self._options = options
        # Tables with sources that have ended, whose replicas may have obeyed.
        self._to_clean: list[int] = []

    @property
    def has_work(self) -> bool:
        """Whether `next_commit` has anything to look at."""
        return bool(self._to_clean)

    def on_request(self, event: TargetRequest) -> list[Effect]:
        """Take a request of another cluster."""
        if isinstance(event, ForgetDuplication):
            return self._on_forget(event)
        return self._on_ensure(event)

    def on_obeyed(self, table_id: int) -> None:
        """Every node has acknowledged what is stored about a table."""
        table = self._host.cluster.tables.get(table_id)
        if table is not None and len(table.live_sources) < len(table.sources):
            self._to_clean.append(table_id)

    def next_commit(self) -> list[Effect]:
        """Take ended sources out of a table's record, when every replica has forgotten them."""
        table = self._host.cluster.tables.get(self._to_clean.pop())
        if table is None or not self._host.delivery.obeyed(table.table_id):
            return []
        live = tuple(table.live_sources)
        if len(live) == len(table.sources):
            return []
        # The version stays: to nodes, what is not listed means nothing.
        return self._host.store(Change(tables=(replace(table, sources=live),)))

    # Ensure.

    def _on_ensure(self, event: EnsureDuplication) -> list[Effect]:
        self._check_other(event)
        listed = self._listed(event.uuid)
        if listed is not None:
            return self._again(event, *listed)
        record = self._host.cluster.record
        assert record is not None
        if event.uuid in record.forgotten:
            # It was asked before, and comes late: nobody would ever send anything.
            raise _removed(event.name)
        table = self._meant(event)
        if table is None:
            return self._create(event)
        if table.source_clusters.get(event.cluster_id, event.cluster_uuid) != event.cluster_uuid:
            raise InvalidArgument(
                f"table `{table.name}` has rows of another cluster that has the id "
                f"{event.cluster_id} too",
                hint="every cluster needs an id of its own: [cluster] id",
            )
        for source in table.live_sources:
            if source.order.cluster_uuid != event.cluster_uuid:
                continue
            if source.order.table_id == event.source_table_id:
                if (source.dupid, source.attempt) > (event.dupid, event.attempt):
                    raise _removed(table.name)
                return self._replace(event, table, source)
            if event.wanted != "create":
                raise InvalidArgument(
                    f"table `{table.name}` gets the rows of table {source.order.table_id} of "
                    f"cluster `{source.order.cluster_name}`, so those of its table "
                    f"{event.source_table_id} cannot go there too",
                    hint="choose another remote table",
                )
        if event.wanted == "create" or event.known_table_id not in (0, table.table_id):
            # Of the name that was meant, but not the table.
            return self._foreign(event, table)
        return self._adopt(event, table)

    def _check_other(self, event: EnsureDuplication) -> None:
        """Refuse a cluster that is this one, or cannot be told from it."""
        record = self._host.cluster.record
        assert record is not None
        if event.cluster_uuid == record.uuid:
            raise InvalidArgument(
                "a cluster cannot duplicate to itself",
                hint="the addresses of that cluster are those of this one",
            )
        if event.cluster_id == self._host.identity.cluster_id:
            raise InvalidArgument(
                f"cluster `{event.cluster_name}` has the id {event.cluster_id}, which is that of "
                "this cluster",
                hint="every cluster needs an id of its own: [cluster] id",
            )

    def _listed(self, uuid: bytes) -> tuple[TableRecord, Source] | None:
        for table in self._host.cluster.tables.values():
            for source in table.sources:
                if source.order.uuid == uuid and not table.purging:
                    return table, source
        return None

    def _meant(self, event: EnsureDuplication) -> TableRecord | None:
        cluster = self._host.cluster
        table = cluster.tables.get(event.known_table_id)
        if table is None or table.purging:
            return cluster.named(event.name)
        if table.status is TableStatus.DROPPED:
            raise _dropped(table)
        return table

    def _again(self, event: EnsureDuplication, table: TableRecord, source: Source) -> list[Effect]:
        """The uuid is listed: the last answer was lost, or the server died before it."""
        order = source.order
        if (order.cluster_uuid, order.table_id) != (event.cluster_uuid, event.source_table_id):
            raise InvalidArgument("this duplication uuid belongs to another table")
        if order.ended:
            raise _removed(table.name)
        if table.status is TableStatus.DROPPED:
            raise _dropped(table)
        return self._told(event, table, "it is listed")

    def _replace(self, event: EnsureDuplication, table: TableRecord, old: Source) -> list[Effect]:
        """The same table under a new uuid: what the old one sends is refused from now on."""
        sources = tuple(one.ended() if one is old else one for one in table.sources)
        changed = self._with_source(table.changed(sources=sources), event)
        return self._store(event, changed, "it replaces the one before")

    def _adopt(self, event: EnsureDuplication, table: TableRecord) -> list[Effect]:
        if table.status is TableStatus.CREATING:
            raise tables.being_created(table)
        if not event.mesh:
            for entry in self._host.cluster.book.of_table(table.table_id):
                if entry.remote_cluster_id != event.cluster_id:
                    raise InvalidArgument(
                        f"table `{table.name}` is duplicated to cluster "
                        f"`{entry.remote_cluster}`, which would not get what comes from "
                        f"`{event.cluster_name}`",
                        hint="if every two of these clusters are connected in both directions, "
                        "add it with --mesh",
                    )
        return self._store(event, self._with_source(table.changed(), event), "its rows stay")

    def _store(self, event: EnsureDuplication, table: TableRecord, text: str) -> list[Effect]:
        return self._host.store(Change(tables=(table,)), lambda: self._told(event, table, text))

    def _told(self, event: EnsureDuplication, table: TableRecord, text: str) -> list[Effect]:
        more = (EnsureOutcome.ALREADY_YOURS, f"table `{table.name}`: {text}")
        return self._host.told(event.request_id, table.table_id, more, Need.IN_FORCE)

    def _foreign(self, event: EnsureDuplication, table: TableRecord) -> list[Effect]:
        text = f"table `{table.name}` (id {table.table_id}) is there already, and "
        sources = table.live_sources
        if sources:
            owners = " and ".join(
                f"table {one.order.table_id} of cluster `{one.order.cluster_name}`"
                for one in sources
            )
            text += f"gets the rows of {owners}"
        elif table.follower:
            text += "is left from a duplication that was removed"
        else:
            text += "was made by a client of that cluster"
        text += "; it is not touched: choose another remote table, or add with --merge"
        return [Answer(event.request_id, table.info(), (EnsureOutcome.EXISTS_FOREIGN, text))]

    def _create(self, event: EnsureDuplication) -> list[Effect]:
        host, name = self._host, tables.check_name(event.name)
        if event.wanted == "existing":
            raise TableNotFound(
                f"no table is named `{name}` there",
                hint="create it there, or add the duplication with a copy, which makes it",
            )
        count = tables.check_partition_count(event.partition_count)
        values = envs.merged({}, envs.checked(event.envs))
        takers = len(host.nodes.takers)
        try:
            tables.check_replica_count(event.replica_count, takers)
        except InvalidArgument as error:
            hint = f"start more servers there, or add the duplication with -r {takers}"
            raise InvalidArgument(error.message, hint=hint) from None
        tables.check_room(host.cluster, count, self._options)
        table = TableRecord(
            table_id=host.cluster.next_table_id,
            name=name,
            status=TableStatus.CREATING,
            partition_count=count,
            replica_count=event.replica_count,
            envs=values,
            created_at=host.now,
            follower=True,
        )
        more = (EnsureOutcome.CREATED, f"table `{name}` was made with {count} partitions")
        listed = self._with_source(table, event)
        return host.begin_creation(event.request_id, listed, more, Need.IN_FORCE)

    @staticmethod
    def _with_source(table: TableRecord, event: EnsureDuplication) -> TableRecord:
        source = Source(
            SourceOrder(
                event.uuid,
                event.cluster_id,
                event.cluster_uuid,
                event.cluster_name,
                event.source_table_id,
            ),
            event.dupid,
            event.attempt,
        )
        return replace(
            table,
            sources=(*table.sources, source),
            source_clusters={**table.source_clusters, event.cluster_id: event.cluster_uuid},
        )

    # Forget.

    def _on_forget(self, event: ForgetDuplication) -> list[Effect]:
        host, record = self._host, self._host.cluster.record
        assert record is not None
        listed = self._listed(event.uuid)
        unknown = Answer(event.request_id, None, (False,))
        if listed is not None and event.table_id not in (0, listed[0].table_id):
            return [unknown]
        noted = None
        if event.uuid not in record.forgotten:
            last = (*record.forgotten, event.uuid)[-_FORGOTTEN_MAX:]
            noted = replace(record, forgotten=last)
        if listed is None:
            return [unknown] if noted is None else host.store(Change(noted), lambda: [unknown])
        table, source = listed
        if not source.live:
            return host.told(event.request_id, table.table_id, (True,))
        sources = tuple(one.ended() if one is source else one for one in table.sources)
        return host.store(
            Change(noted, tables=(table.changed(sources=sources),)),
            lambda: host.told(event.request_id, table.table_id, (True,)),
        )


def _removed(name: str) -> DuplicationNotListed:
    return DuplicationNotListed(
        f"this duplication to table `{name[:80]}` was removed or replaced at its source",
        hint="`query_dup` there shows which it has; `add_dup` makes a new one",
    )


def _dropped(table: TableRecord) -> TableNotFound:
    return TableNotFound(
        f"table `{table.name}` (id {table.table_id}) was dropped there",
        hint=f"`recall {table.table_id}` there brings it back",
    )
