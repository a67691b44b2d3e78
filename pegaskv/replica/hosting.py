"""Which partitions are here, and in which role: what the meta server and primaries say is done.

A replica is opened from what the start recovered, made empty at its first assignment, or
copied from a primary (`studies`). It takes a role by a ballot, from the meta server's push
or, as a secondary, from its primary's word. After a start the meta server's word comes
first: what this node was allowed to do before it ended is known there and not here.

Never is an empty replica put in the place of one that had data.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pegaskv.base.errors import InvalidArgument, NotPrimary, NotReady
from pegaskv.base.types import (
    Durability,
    Gpid,
    PartitionConfiguration,
    ReplicaStatus,
    TableInfo,
    TableStatus,
)
from pegaskv.codec.messages_meta import Order, OrderKind, TablePush
from pegaskv.replica.control import begin_to_serve, give_orders
from pegaskv.replica.doors import Peers
from pegaskv.replica.durability import DurabilityChanges
from pegaskv.replica.events import Deactivated, Followed
from pegaskv.replica.ground import Ground, Partitions
from pegaskv.replica.membership import Membership
from pegaskv.replica.recovery import RecoveredReplica
from pegaskv.replica.replica import Replica
from pegaskv.replica.settings import take_settings
from pegaskv.replica.studies import Studies
from pegaskv.replica.teaching import Teaching
from pegaskv.storage.engine import Engine
from pegaskv.storage.replica_files import Accepted

__all__ = ["Hosting"]

_log = logging.getLogger(__name__)

_PRIMARY = ReplicaStatus.PRIMARY
_MEMBERS = frozenset({ReplicaStatus.PRIMARY, ReplicaStatus.SECONDARY})
_WAIT_MS = 5
_SERVING_MS = 30_000


class Hosting:
    """The partitions of one server, by their roles.

    `make` builds a replica around an opened engine, `close_engine` ends one, and `forget` drops
    whatever else is kept of a partition that goes. `membership`, `studies` and `teaching` are
    set before anything is called.
    """

    membership: Membership
    studies: Studies
    teaching: Teaching

    def __init__(
        self,
        partitions: Partitions,
        ground: Ground,
        *,
        peers: Peers,
        process: str,
        durability: DurabilityChanges,
        next_incarnation: int,
        old_damage: frozenset[str],
        make: Callable[[TableInfo, Gpid, RecoveredReplica, Engine], Replica],
        close_engine: Callable[[Engine | None], Awaitable[None]],
        forget: Callable[[Gpid], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._replicas = partitions.replicas
        self._recovered = partitions.recovered
        self._closed = partitions.closed
        self._tables = partitions.tables
        self._directory = ground.directory
        self._disk = ground.disk
        self._factory = ground.factory
        self._log = ground.log
        self._clock = ground.clock
        self._front = ground.front
        self._worker = ground.workers.upkeep
        self._peers = peers
        self._process = process
        self._durability = durability
        self._next_incarnation = next_incarnation
        # Damage of the log that is older than any replica which is made from now on.
        self._old_damage = old_damage
        self._make = make
        self._close_engine = close_engine
        self._forget = forget
        self._is_stopping = is_stopping
        self._table_versions: dict[int, int] = {}
        # The push with the newest orders of each table about duplications.
        self.orders: dict[int, TablePush] = {}
        self._configuring = asyncio.Lock()
        # What a closed partition was assigned last, for when it can be opened.
        self._assigned: dict[Gpid, PartitionConfiguration] = {}
        # Under which ballot the meta server has named this node, and told this process so.
        self._named: dict[Gpid, int] = {}
        # Of partitions that are led here: set when they serve, or never will.
        self._serving: dict[Gpid, asyncio.Event] = {}
        # Whether the meta server has answered this process's report.
        self.joined = False
        self.tell_opened_late: Callable[[TablePush], Awaitable[None]] | None = None

    @property
    def node_id(self) -> str:
        """Of this server, made once."""
        return self._directory.node_id

    # --- What the meta server says -----------------------------------------------------

    async def configure(self, push: TablePush) -> None:
        """Take a table's state as the meta server stored it; return when it is in force.

        A version or ballot at or below the one that is known is ignored.
        """
        if push.process not in ("", self._process):
            raise InvalidArgument("the push is for an earlier process of this node")
        async with self._configuring:
            table = push.table
            self._peers.set_addresses(push.addresses)
            if push.purged:
                await self._remove_table(table.table_id)
                return
            known = self._table_versions.get(table.table_id, -1)
            if table.version >= known:
                self._tables[table.table_id] = table
                self._table_versions[table.table_id] = table.version
                self.orders[table.table_id] = push
            opened = []
            for configuration in push.partitions:
                serving = await self._take(table, configuration, push)
                if serving is not None:
                    opened.append(serving)
            # Others may have been given their ballots by what they asked for.
            opened += [
                self._serving[replica.gpid]
                for replica in self._replicas_of(table.table_id)
                if replica.machine.status is _PRIMARY and replica.gpid in self._serving
            ]
        # Not under the lock: the log may have no room, and a purge may be what makes some.
        try:
            async with self._clock.timeout_ms(_SERVING_MS):
                for serving in opened:
                    await serving.wait()
        except TimeoutError:
            # It goes on by itself, and the next push finds it so.
            raise NotReady(f"not every partition of table {table.name} serves yet") from None
        known_table = self._tables.get(table.table_id)
        if known_table is not None:
            self.apply_table(known_table)
            orders = self.orders[table.table_id]
            replicas = self._replicas_of(table.table_id)
            await give_orders(replicas, orders.duplications, orders.sources)

    def _replicas_of(self, table_id: int) -> list[Replica]:
        return [each for each in self._replicas.values() if each.gpid[0] == table_id]

    async def _take(
        self, table: TableInfo, configuration: PartitionConfiguration, push: TablePush
    ) -> asyncio.Event | None:
        """Take one partition's configuration; return what is set when it serves, if it leads."""
        gpid, node_id = configuration.gpid, self.node_id
        replica = self._replicas.get(gpid)
        if node_id in (configuration.primary, *configuration.secondaries):
            self._named[gpid] = max(configuration.ballot, self._named.get(gpid, 0))
        if node_id != configuration.primary and node_id not in configuration.secondaries:
            if replica is not None and configuration.ballot > replica.machine.ballot:
                self._leave(replica, configuration.ballot)
            return None
        if self.studies.is_preparing(gpid):
            # Whatever it was, it has nothing now; whoever leads will see.
            return None
        if replica is None:
            index = gpid.partition_index
            replica = await self._open(
                table,
                configuration,
                first=index in push.first_assignment,
                amnesiac=index in push.accept_amnesia,
            )
        if replica is None:
            return None
        if node_id != configuration.primary:
            self._follow(replica, configuration)
            return None
        return self._lead(replica, table, configuration)

    def _lead(
        self, replica: Replica, table: TableInfo, configuration: PartitionConfiguration
    ) -> asyncio.Event | None:
        if replica.closed or configuration.ballot <= replica.machine.ballot:
            return None
        # Whoever waits for an earlier ballot waits for this one now.
        serving = self._serving.get(replica.gpid)
        if serving is None or serving.is_set():
            serving = self._serving[replica.gpid] = asyncio.Event()
        replica.available = table.status is TableStatus.AVAILABLE
        take_settings(replica, table)
        replica.on_serving = partial(begin_to_serve, replica, self.orders, serving)
        if not replica.assign(configuration.ballot, configuration.secondaries):
            return None
        self.studies.end(replica.gpid)
        self.membership.lead(replica)
        if configuration.secondaries:
            _log.info("partition %s: primary under ballot %d", replica.gpid, configuration.ballot)
        return serving

    def _follow(self, replica: Replica, configuration: PartitionConfiguration) -> bool:
        if (
            replica.closed
            or self.studies.lacks(replica)
            or not replica.step_down(Followed(configuration.ballot))
        ):
            return False
        self.studies.end(replica.gpid)
        table = self._tables.get(replica.gpid.table_id)
        if table is not None:
            take_settings(replica, table)
        return True

    def _leave(self, replica: Replica, ballot: int) -> None:
        _log.info("partition %s: no member any more under ballot %d", replica.gpid, ballot)
        self.studies.end(replica.gpid)
        replica.step_down(Deactivated(ballot))

    def on_configured(self, configuration: PartitionConfiguration) -> None:
        """Take what the meta server has answered to a proposal."""
        replica = self._replicas.get(configuration.gpid)
        table = self._tables.get(configuration.gpid.table_id)
        if replica is None or table is None or self.studies.is_preparing(configuration.gpid):
            return
        node_id = self.node_id
        if node_id == configuration.primary:
            self._lead(replica, table, configuration)
        elif node_id in configuration.secondaries:
            self._follow(replica, configuration)
        elif configuration.ballot > replica.machine.ballot:
            self._leave(replica, configuration.ballot)

    async def obey(self, order: Order) -> str:
        """Do what an order says, or say why not; obeying twice changes nothing.

        Raises:
            NotPrimary: it is for another ballot, or for a primary that is not here.
            InvalidArgument: the partition has no such member.

        """
        replica = self._replicas.get(order.gpid)
        if order.kind is OrderKind.DISCARD:
            return await self._discard(order)
        if (
            replica is None
            or replica.machine.status is not _PRIMARY
            or replica.machine.ballot != order.ballot
        ):
            raise NotPrimary(f"partition {order.gpid} is not led here under ballot {order.ballot}")
        if order.address:
            self._peers.set_addresses({order.node_id: order.address})
        if order.kind is OrderKind.ADD_LEARNER:
            return self.membership.learn(replica, order.node_id)
        if order.kind is OrderKind.REMOVE:
            return self.membership.dismiss(replica, order.node_id)
        if order.node_id not in replica.machine.secondaries:
            raise InvalidArgument(f"node {order.node_id} is no secondary of {order.gpid}")
        self.membership.hand_over(replica, order.node_id, keep=True)
        return "it is handed over"

    async def _discard(self, order: Order) -> str:
        async with self._configuring:
            gpid = order.gpid
            replica, recovered = self._replicas.get(gpid), self._recovered.get(gpid)
            known = 0 if recovered is None else recovered.ballot
            if replica is not None:
                known = replica.machine.ballot
            if (
                not self.joined
                or max(known, self._named.get(gpid, 0)) > order.ballot
                or (replica is not None and replica.machine.status in _MEMBERS)
            ):
                raise NotReady(f"partition {gpid} may be needed here")
            await self._remove(gpid)
        return "it is gone"

    # --- What a primary says -----------------------------------------------------------

    def adopt(
        self,
        table: TableInfo,
        configuration: PartitionConfiguration,
        addresses: Mapping[str, str],
        *,
        learner: bool,
    ) -> bool:
        """Follow, or learn from, the primary of a configuration; False: not at the moment."""
        gpid = configuration.gpid
        self._peers.set_addresses(addresses)
        if self._is_stopping():
            return False
        if table.table_id not in self._tables:
            self._tables[table.table_id] = table
            self.orders.setdefault(table.table_id, TablePush(table))
        replica = self._replicas.get(gpid)
        if replica is None and self._configuring.locked():
            # It may be being opened at this moment, and has one owner.
            return False
        if learner:
            return self._may_learn(configuration) and self.studies.begin(table, configuration)
        if gpid not in self._named or self.studies.is_preparing(gpid):
            return False
        if replica is None:
            recovered = self._recovered.get(gpid)
            if recovered is None or recovered.engine is None or recovered.closed:
                return False
            if recovered.amnesiac:
                return False
            replica = self._make(table, gpid, recovered, recovered.engine)
            del self._recovered[gpid]
        return self._follow(replica, configuration)

    def _may_learn(self, configuration: PartitionConfiguration) -> bool:
        """Whether a primary may let this node begin anew.

        One that is behind would take away what the present members need: whoever was named a
        member is taught by a later ballot only.
        """
        gpid, ballot = configuration.gpid, configuration.ballot
        replica, recovered = self._replicas.get(gpid), self._recovered.get(gpid)
        known = replica.machine.ballot if replica is not None else 0
        if recovered is not None:
            known = max(known, recovered.ballot)
        return self.joined and ballot >= known and ballot > self._named.get(gpid, 0)

    def join(self, gpid: Gpid, ballot: int, node_id: str, next_decree: int) -> bool:
        """A learner of a partition led here asks for the stream; False: copy more log."""
        replica = self._replicas.get(gpid)
        if (
            replica is None
            or replica.machine.status is not _PRIMARY
            or replica.machine.ballot != ballot
        ):
            raise NotPrimary(f"partition {gpid} is not led here under ballot {ballot}")
        joined = self.membership.join(replica, node_id, next_decree)
        if joined:
            # What was kept for it is of no use any more, and another may begin.
            self.teaching.release(gpid, node_id)
        return joined

    # --- Opening -----------------------------------------------------------------------

    async def _open(
        self,
        table: TableInfo,
        configuration: PartitionConfiguration,
        *,
        first: bool,
        amnesiac: bool,
    ) -> Replica | None:
        """Open a replica; None when it stays closed, which `_closed` explains."""
        gpid = configuration.gpid
        recovered = self._recovered.get(gpid)
        if recovered is None:
            recovered = await self._first_or_missing(gpid, first=first)
            self._recovered[gpid] = recovered
        if recovered.engine is None or recovered.closed:
            self._closed[gpid] = recovered.closed
            self._assigned[gpid] = configuration
            return None
        if recovered.amnesiac:
            alone = not configuration.secondaries and table.replica_count == 1
            if not (amnesiac or alone):
                reason = "it may lack what it acknowledged before the machine went down"
                self._closed[gpid] = reason
                return None
            _log.warning(
                "partition %s may lack writes that it has acknowledged, and goes on with what it "
                "has",
                gpid,
            )
            await self._worker.run(partial(self._directory.clear_amnesia, gpid))
            recovered.amnesiac = False
        self._closed.pop(gpid, None)
        replica = self._make(table, gpid, recovered, recovered.engine)
        self._recovered.pop(gpid, None)
        return replica

    async def on_opened_late(self, gpid: Gpid) -> None:
        """Give a replica that waited for its storage what it was assigned meanwhile."""
        async with self._configuring:
            configuration = self._assigned.pop(gpid, None)
            table = self._tables.get(gpid.table_id)
            if configuration is None or table is None or gpid not in self._recovered:
                return
            serving = await self._take(table, configuration, TablePush(table))
            if gpid not in self._replicas:
                return
            self._closed.pop(gpid, None)
        if serving is not None:
            await serving.wait()
        self.apply_table(self._tables.get(gpid.table_id, table))
        if (push := self.orders.get(gpid.table_id)) and self.tell_opened_late:
            await self.tell_opened_late(push)

    async def _first_or_missing(self, gpid: Gpid, *, first: bool) -> RecoveredReplica:
        if not first:
            # Never an empty replica in the place of one that had data.
            reason = "its replica is missing on this server, which the meta server names for it"
            _log.error("partition %s stays closed: %s", gpid, reason)
            return RecoveredReplica(closed=reason)
        number = self.take_incarnation()
        directory, factory = self._directory, self._factory

        def create() -> tuple[int, Engine]:
            try:
                # An earlier try got so far, and its engine was never written.
                manifest = directory.manifest(gpid)
            except KeyError:
                now_us = self._clock.wall_us()
                manifest = directory.create_replica(gpid, number, created_at_us=now_us)
            if self._old_damage:
                directory.files(gpid).accept(Accepted(manifest.incarnation, self._old_damage))
            return manifest.incarnation, factory.open(directory.engine_path(gpid))

        incarnation, engine = await self._worker.run(create)
        self._log.set_incarnation(gpid, incarnation, 0)
        return RecoveredReplica(engine=engine, incarnation=incarnation)

    def take_incarnation(self) -> int:
        """Return a number that no replica here ever had."""
        number = self._next_incarnation
        self._next_incarnation += 1
        return number

    # --- Tables ------------------------------------------------------------------------

    def apply_table(self, table: TableInfo) -> None:
        """Bring a table's status and envs to its replicas."""
        for replica in self._replicas_of(table.table_id):
            take_settings(replica, table)
            available = table.status is TableStatus.AVAILABLE and not self._is_stopping()
            replica.set_available(available)
            wanted = Durability(table.envs.get("durability", Durability.FSYNC.value))
            self._durability.want(replica, wanted)

    async def _remove_table(self, table_id: int) -> None:
        """Close and delete the replicas of a table that was purged."""
        # Those that are in the directory alone are left of a purge that failed.
        here: Iterable[Any] = [
            *self._replicas,
            *self._recovered,
            *(one.gpid for one in self._directory.list_replicas()),
        ]
        for gpid in sorted({Gpid(*gpid) for gpid in here if gpid[0] == table_id}):
            await self._remove(gpid)
        self._tables.pop(table_id, None)
        self.orders.pop(table_id, None)

    async def _remove(self, gpid: Gpid) -> None:
        await self.studies.cancel(gpid)
        replica = self._replicas.pop(gpid, None)
        if replica is not None:
            replica.refuse_waiting()
            while replica.in_flight and not replica.streams and not self._front.stopped:
                await self._clock.sleep_ms(_WAIT_MS)
            replica.deactivate()
            self.studies.forget_accepted(gpid)
            await self._close_engine(replica.engine)
        recovered = self._recovered.pop(gpid, None)
        if recovered is not None:
            await self._close_engine(recovered.engine)
        when = self._clock.wall_us()
        await self._worker.run(partial(self._delete, gpid, when))
        self._log.forget(gpid)
        self._closed.pop(gpid, None)
        self._assigned.pop(gpid, None)
        self._serving.pop(gpid, None)
        self._forget(gpid)

    def _delete(self, gpid: Gpid, at_us: int) -> None:
        if not self._disk.exists(self._directory.replica_path(gpid)):
            # It was missing before, and its partition closed for that.
            return
        # The time to change one's mind was the table's reserve: its space is wanted now. What
        # a crash leaves in the trash goes at the next start.
        self._disk.remove_tree(self._directory.trash_replica(gpid, "purged", at_us=at_us))

    # --- Leaving -----------------------------------------------------------------------

    def hand_all_over(self) -> int:
        """Hand every partition over that somebody else can lead; return how many are left."""
        left = 0
        for replica in self._replicas.values():
            if replica.machine.status is not _PRIMARY or not replica.machine.secondaries:
                continue
            left += 1
            ready = [
                stream.node_id
                for stream in replica.streams.values()
                if stream.opened and not stream.learner
            ]
            if ready and replica.machine.serving:
                # Each node gets its share.
                chosen = sorted(ready)[replica.index % len(ready)]
                self.membership.hand_over(replica, chosen, keep=False)
        return left
