"""All partitions of one replica server: open, serve, flush, repair, close.

The stub is the side of the replica server that may wait. It recovers replicas from
their engines and the log, opens them when the meta server says so, and looks after
them: flushes that let log go, expired rows, free space, engines that failed. The
hot path runs beside it, in `front`, `writes` and `read_handlers`.

Nothing serves after a start until the meta server has given it a new ballot and the
barrier of that ballot is committed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from random import Random
from typing import Any, Final

from pegaskv.base.errors import PegasKVError
from pegaskv.base.metrics import Metric
from pegaskv.base.types import Durability, Gpid, ReplicaStatus, TableInfo
from pegaskv.codec.messages_meta import NodeBeacon, NodeReport, Order, OrderKind, TablePush
from pegaskv.codec.mutations import OperationKind
from pegaskv.lease.options import LeaseOptions
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.connection import Handler
from pegaskv.replica.compaction import ManualCompactions
from pegaskv.replica.control import on_pin_changed
from pegaskv.replica.disk_space import DiskSpace
from pegaskv.replica.doors import ConfigurationDoor, NoMeta, NoPeers, Peers
from pegaskv.replica.durability import DurabilityChanges
from pegaskv.replica.expiry import Sweeper
from pegaskv.replica.front import Front
from pegaskv.replica.ground import Ground, Partitions
from pegaskv.replica.group import Group
from pegaskv.replica.machine import ReplicaMachine
from pegaskv.replica.membership import LOOK_MS
from pegaskv.replica.metrics import bound_metrics, replica_metrics
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.recovery import RecoveredReplica, RecoveredServer, recover_replicas
from pegaskv.replica.repairs import Repairs
from pegaskv.replica.replica import Replica
from pegaskv.replica.reports import replica_reports, replica_state
from pegaskv.replica.request_handlers import request_handlers
from pegaskv.replica.roles import Roles
from pegaskv.replica.row_cache import RowCaches
from pegaskv.replica.settings import min_write_replicas, take_bounds
from pegaskv.replica.shipping import ShippingMemory
from pegaskv.replica.slow_requests import SlowRequests
from pegaskv.replica.source import ReplicaSource
from pegaskv.replica.throttling import ThrottledLine
from pegaskv.replica.waiting import WaitingReplicas
from pegaskv.replica.workers import Workers
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import Engine, EngineFactory
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.mutation_log import MutationLog

__all__ = ["ReplicaStub", "Workers"]

_log = logging.getLogger(__name__)

_STOP_PATIENCE_MS: Final = 5_000


class ReplicaStub:
    """One replica server without its sockets.

    `on_fatal` is called once when the log has failed: nothing is acknowledged any more,
    and the process must end to recover by a restart.
    """

    def __init__(
        self,
        *,
        directory: DataDirectory,
        disk: Disk,
        engine_factory: EngineFactory,
        clock: Clock,
        workers: Workers,
        scope: TaskScope,
        cluster_id: int,
        options: ReplicaOptions,
        log_options: LogOptions,
        on_fatal: Callable[[BaseException], None],
        accept_loss: bool = False,
        random: Random,
        meta: ConfigurationDoor | None = None,
        peers: Peers | None = None,
        lease: LeaseOptions | None = None,
    ) -> None:
        self._directory = directory
        self._disk = disk
        self._engine_factory = engine_factory
        self._clock = clock
        self._workers = workers
        self._scope = scope
        self._cluster_id = cluster_id
        self._options = options
        self._log_options = log_options
        self._on_fatal = on_fatal
        self._accept_loss = accept_loss
        # A server that is alone has nobody to ask and nobody to speak to.
        self._group = Group(meta or NoMeta(), peers or NoPeers(), lease or LeaseOptions(), random)
        self._roles: Roles | None = None
        self._tell_opened_late: Callable[[TablePush], Awaitable[None]] | None = None
        self._log: MutationLog | None = None
        self._front: Front | None = None
        self._partitions = Partitions()
        self._replicas = self._partitions.replicas
        self._recovered = self._partitions.recovered
        self._tables = self._partitions.tables
        self._sources: dict[tuple[int, int], ReplicaSource] = {}
        self._repairs: Repairs | None = None
        self._waiting: WaitingReplicas | None = None
        self._durability = DurabilityChanges(directory, workers.upkeep)
        self._sweeper = Sweeper(
            clock=clock, worker=workers.upkeep, interval_ms=options.expiry_sweep_interval_ms
        )
        self._compactions = self._make_compactions()
        self._slow = SlowRequests(
            now_ms=clock.monotonic_ms,
            table_name=self._table_name,
            lines_max=options.slow_request_lines_max,
        )
        self._line = ThrottledLine(
            now_ms=clock.monotonic_ms, waiting_max=options.throttled_requests_max
        )
        self._shipping_memory = ShippingMemory(options.shipping_bytes_max)
        self._row_caches = RowCaches(options.row_cache_bytes)
        # Whether there may be log that nobody needs.
        self._collect_due = True
        self._stopping = False
        self._space = DiskSpace(
            disk,
            directory.path,
            worker=workers.upkeep,
            min_free_percent=options.min_free_percent,
            replicas=self._replicas.values,
        )

    def _make_compactions(self) -> ManualCompactions:
        return ManualCompactions(
            directory=self._directory,
            clock=self._clock,
            worker=self._workers.upkeep,
            sweeper=self._sweeper,
            publish=self._flush,
            may_publish=lambda gpid: self._repairs is not None and self._repairs.may_publish(gpid),
        )

    # --- Start and stop ----------------------------------------------------------------

    async def start(self) -> None:
        """Recover all replicas and begin to look after them; they serve after `configure`.

        Raises:
            UnsupportedFormat, OSError: the data directory cannot be used.

        """
        recovered = await self._workers.upkeep.run(
            lambda: recover_replicas(
                directory=self._directory,
                disk=self._disk,
                engine_factory=self._engine_factory,
                clock=self._clock,
                log_worker=self._workers.log,
                background_worker=self._workers.segments,
                log_options=self._log_options,
                accept_loss=self._accept_loss,
            )
        )
        self._log = recovered.log
        self._recovered.update(recovered.replicas)
        loop = asyncio.get_running_loop()
        self._front = Front(
            log=self._log,
            now_ms=self._clock.monotonic_ms,
            call_soon=loop.call_soon,
            call_later=loop.call_later,
            on_fatal=self._on_log_failed,
        )
        self._repairs = Repairs(
            log=self._log,
            directory=self._directory,
            factory=self._engine_factory,
            clock=self._clock,
            worker=self._workers.upkeep,
            scope=self._scope,
            disk_has_room=self._space.has_room,
            is_gone=self._is_gone,
        )
        roles = self._roles = self._make_roles(recovered, self._front)
        self._waiting = WaitingReplicas(
            self._recovered,
            log=self._log,
            directory=self._directory,
            factory=self._engine_factory,
            clock=self._clock,
            worker=self._workers.upkeep,
            on_opened=roles.hosting.on_opened_late,
        )
        await self._space.look()
        # What the start of the log has freed may be room enough.
        await self._waiting.look()
        clock, options = self._clock, self._options
        for name, function, pause_ms in (
            ("disk", self._space.look, options.disk_check_interval_ms),
            ("sync os tables", self._sync_os_tables, options.os_sync_interval_ms),
            ("flush", self._flush_due, options.flush_interval_ms),
            ("expiry", self._sweep, 1_000),
            ("compaction", self._compact, 1_000),
            ("waiting replicas", self._waiting.look, 500),
            ("members", roles.membership.look, LOOK_MS),
            ("learners", roles.teaching.look, 1_000),
        ):
            self._scope.keep(name, function, pause=lambda ms=pause_ms: clock.sleep_ms(ms))  # type: ignore[misc]

    def _make_roles(self, recovered: RecoveredServer, front: Front) -> Roles:
        ground = Ground(
            directory=self._directory,
            disk=self._disk,
            factory=self._engine_factory,
            log=recovered.log,
            front=front,
            clock=self._clock,
            workers=self._workers,
            scope=self._scope,
        )
        roles = Roles(
            self._group,
            self._partitions,
            ground,
            recovered,
            durability=self._durability,
            make=self._make_replica,
            close_engine=self._close_engine,
            forget=self._forget,
            is_stopping=lambda: self._stopping,
            on_released=self._look_at_log,
        )
        roles.hosting.tell_opened_late = self._tell_opened_late
        return roles

    @property
    def _its_roles(self) -> Roles:
        assert self._roles is not None
        return self._roles

    def begin_to_stop(self) -> None:
        """Let no request wait for its time: all are answered before the server stops."""
        self._line.release_all()

    async def stop(self) -> None:
        """Finish what is in the log, flush, and close; the caller has stopped the requests.

        Raises:
            OSError: what `os` tables have acknowledged could not be synced: no clean stop.

        """
        self._stopping = True
        if self._repairs is not None:
            self._repairs.stopping = True
        for replica in self._replicas.values():
            replica.set_available(False)
        front, log = self._front, self._log
        failed = front is None or front.stopped
        if front is not None and not failed:
            give_up_at = self._clock.monotonic_ms() + _STOP_PATIENCE_MS
            while self._clock.monotonic_ms() < give_up_at and not (
                front.idle
                and not self._unsynced
                and all(one.idle or one.engine_failed for one in self._replicas.values())
            ):
                front.sync_os_tables()
                for replica in self._replicas.values():
                    replica.apply_now()
                await self._clock.sleep_ms(5)
        unsynced = self._unsynced
        await self._scope.close()
        self._workers.reads.stop()
        for replica in self._replicas.values():
            await self._close_engine(replica.engine)
        for recovered in self._recovered.values():
            await self._close_engine(recovered.engine)
        if log is not None:
            await log.close()
        if unsynced and not failed:
            raise OSError("the log could not be synced to its end")

    @property
    def _unsynced(self) -> bool:
        """Whether the log holds what an `os` table has acknowledged and no sync has covered."""
        front, log = self._front, self._log
        return front is not None and log is not None and (front.stopped or log.unsynced)

    async def _close_engine(self, engine: Engine | None) -> None:
        if engine is None:
            return
        try:
            await self._workers.upkeep.run(engine.close)
        except (OSError, PegasKVError) as error:
            # Nothing is lost: the log has what the tables lack.
            _log.warning("an engine did not close cleanly: %s", error)

    def _on_log_failed(self, error: BaseException) -> None:
        for replica in self._replicas.values():
            replica.close_for(f"the log of this server has failed: {error}")
        self._on_fatal(error)

    # --- What others ask ---------------------------------------------------------------

    @property
    def process(self) -> str:
        """What tells this start of the server from all others."""
        return self._group.process

    @property
    def syncing(self) -> bool:
        """Whether the disk is at work for a tick."""
        return self._front is not None and self._front.syncing

    def handlers(self) -> dict[int, Handler]:
        """Return the handlers of all data operations."""
        assert self._repairs is not None
        requests = request_handlers(
            self._replicas,
            self._partitions.closed,
            clock=self._clock,
            workers=self._workers,
            scans_waiting_max=self._options.scans_waiting_max,
            on_corruption=self._repairs.on_corruption,
            line=self._line,
            slow=self._slow,
        )
        return {**requests, **self._its_roles.handlers()}

    @property
    def free_bytes(self) -> int:
        """Free space on the data disk, as it was last found."""
        return self._space.free_bytes

    def source(self, gpid: Gpid) -> ReplicaSource | None:
        """Return a replica as the source of duplications, if it is here and primary."""
        replica = self._replicas.get(gpid)
        if replica is None or replica.machine.status is not ReplicaStatus.PRIMARY:
            return None
        return self._sources.get(gpid)

    def node_report(self, address: str) -> NodeReport:
        """Return who this node is and which replicas it has."""
        reports = replica_reports(self._replicas, self._recovered)
        return NodeReport(self._directory.node_id, address, reports, self._group.process)

    @property
    def damaged(self) -> Mapping[Gpid, str]:
        """Of which partitions rows cannot be read any more, and why."""
        return {} if self._repairs is None else self._repairs.damaged

    def replica_state(self, gpid: Gpid) -> dict[str, Any]:
        """Return what `app` shows of a replica; empty when it is not here."""
        replica = self._replicas.get(gpid)
        if replica is None:
            recovered = self._recovered.get(gpid)
            if recovered is None:
                return {}
            return {"status": "inactive", "closed": recovered.closed}
        return replica_state(replica, self.damaged.get(gpid, ""))

    # --- What the meta server says -----------------------------------------------------

    async def configure(self, push: TablePush) -> None:
        """Take a table's state as the meta server stored it; return when it is in force.

        A version or ballot at or below the one that is known is ignored.
        """
        await self._its_roles.hosting.configure(push)
        self._collect_due = self._collect_due or push.purged

    async def obey(self, order: Order) -> str:
        """Do what an order about one partition says, or say why not."""
        self._collect_due = self._collect_due or order.kind is OrderKind.DISCARD
        return await self._its_roles.hosting.obey(order)

    def on_joined(self) -> None:
        """The meta server has answered this process's report: what it said is the truth now."""
        self._its_roles.hosting.joined = True

    def hand_over(self) -> int:
        """Begin to hand over what others can lead; return how many partitions are left."""
        return self._its_roles.hosting.hand_all_over()

    def beacon(self) -> NodeBeacon:
        """Return what the meta server hears each second."""
        return NodeBeacon(
            self._directory.node_id,
            self._group.process,
            self.free_bytes,
            self._space.full,
            self._its_roles.studies.progress,
        )

    def states(self, table_id: int = 0) -> list[tuple[Gpid, dict[str, Any]]]:
        """Return what is shown of the replicas of a table; 0: of all."""
        here = {Gpid(*gpid) for gpid in (*self._replicas, *self._recovered)}
        wanted = sorted(gpid for gpid in here if table_id in (0, gpid.table_id))
        return [(gpid, self.replica_state(gpid)) for gpid in wanted]

    @property
    def on_opened_late(self) -> Callable[[TablePush], Awaitable[None]] | None:
        """Who is told the push of a table of which a replica has opened later than it came."""
        return self._tell_opened_late

    @on_opened_late.setter
    def on_opened_late(self, call: Callable[[TablePush], Awaitable[None]] | None) -> None:
        self._tell_opened_late = call
        if self._roles is not None:
            self._roles.hosting.tell_opened_late = call

    @property
    def may_answer(self) -> Callable[[], bool]:
        """What every connection asks before it writes: whether the leases hold."""
        return self._its_roles.membership.may_answer

    def attach(self, acceptor: Acceptor) -> None:
        """Let the front and the acceptor, through which requests come, know of each other."""
        assert self._front is not None
        self._front.attend(acceptor.single)
        self._front.write_waiting = acceptor.outgoing.write

    def _make_replica(
        self, table: TableInfo, gpid: Gpid, recovered: RecoveredReplica, engine: Engine
    ) -> Replica:
        assert self._front is not None
        assert self._repairs is not None
        replica = Replica(
            gpid,
            machine=ReplicaMachine(
                gpid,
                ballot=recovered.ballot,
                committed=recovered.decree,
                tail=recovered.tail,
            ),
            engine=engine,
            cache=self._row_caches.make(),
            incarnation=recovered.incarnation,
            partition_count=table.partition_count,
            cluster_id=self._cluster_id,
            last_timestamp_us=recovered.last_timestamp_us,
            participation=recovered.participation,
            clock=self._clock,
            apply_worker=self._workers.apply,
            tick=self._front,
            on_engine_failed=self._repairs.on_engine_failed,
            on_control=self._on_control,
            slow=self._slow,
            lease=self._group.lease,
        )
        replica.min_members = min_write_replicas(table.replica_count)
        replica.disk_full = self._space.full
        replica.shipping.memory = self._shipping_memory
        take_bounds(replica, self._options)
        self._replicas[gpid] = replica
        assert self._log is not None
        self._sources[gpid] = ReplicaSource(
            replica,
            log=self._log,
            reader=self._workers.scan,
            now_ms=self._clock.monotonic_ms,
            on_released=self._look_at_log,
            leave_damaged_log=self._its_roles.damaged_logs.leave,
        )
        if recovered.damage:
            self._repairs.on_known_damage(replica, recovered.damage)
        return replica

    def _on_control(self, replica: Replica, kind: OperationKind, fields: list[bytes]) -> None:
        if kind is OperationKind.DURABILITY:
            self._durability.on_ordered(replica, Durability(fields[0].decode()))
            return
        assert self._log is not None
        on_pin_changed(self._log, replica, fields[0])
        self._collect_due = True

    def _forget(self, gpid: Gpid) -> None:
        """The replica is gone."""
        assert self._repairs is not None
        self._sweeper.forget(gpid)
        self._compactions.forget(gpid)
        self._sources.pop(gpid, None)
        self._repairs.forget(gpid)

    # --- Upkeep ------------------------------------------------------------------------

    async def _sync_os_tables(self) -> None:
        assert self._front is not None
        self._front.sync_os_tables()

    def _look_at_log(self) -> None:
        self._collect_due = True

    async def _flush_due(self) -> None:
        """Flush what holds too much log, then give up log that nobody needs."""
        assert self._log is not None
        assert self._repairs is not None
        may_publish = self._repairs.may_publish
        due = self._log.flush_candidates(self._clock.monotonic_ms())
        for gpid in due:
            replica = self._replicas.get(gpid)
            if replica is not None and replica.engine_failed is None and may_publish(gpid):
                await self._flush(replica)
        if not due and not self._collect_due:
            return
        self._collect_due = True
        try:
            await self._log.collect()
        except OSError as error:
            _log.warning("log that nobody needs could not be given up: %s", error)
        else:
            self._collect_due = False

    async def _flush(self, replica: Replica) -> None:
        assert self._log is not None
        replica.apply_now()
        engine = replica.engine
        try:
            info = await self._workers.upkeep.run(
                lambda: self._directory.publish_checkpoint(replica.gpid, engine)
            )
        except (OSError, PegasKVError) as error:
            if engine is replica.engine and not self._stopping:
                replica.fail_engine(error)
            return
        self._log.mark_flushed(replica.gpid, info.decree)

    async def _sweep(self) -> None:
        await self._sweeper.sweep_due(list(self._replicas.values()))

    async def _compact(self) -> None:
        await self._compactions.compact_due(list(self._replicas.values()))

    def _is_gone(self, replica: Replica) -> bool:
        return self._replicas.get(replica.gpid) is not replica

    # --- Metrics -----------------------------------------------------------------------

    def metrics(self) -> Iterable[Metric]:
        """Return what the replica server counts, per table where that means something."""
        replicas = self._replicas.values()
        closed = [replica.closed for replica in replicas]
        closed += [recovered.closed for recovered in self._recovered.values()]
        front, log = self._front, self._log
        yield from replica_metrics(
            replicas,
            self._table_name,
            replicas_closed=sum(1 for reason in closed if reason),
            replicas_damaged=len(self.damaged),
            rows_expired_total=self._sweeper.rows_expired,
            manual_compactions_total=self._compactions.finished,
            manual_compactions_pending=self._compactions.pending,
            disk_free_bytes=self.free_bytes,
            disk_full=int(self._space.full),
            log_appends_total=front.ticks if front is not None else 0,
            log_syncs_total=front.syncs if front is not None else 0,
            log_unflushed_bytes=log.total_unflushed if log is not None else 0,
            log_unflushed_bytes_max=self._log_options.flush_total_bytes,
        )
        yield from bound_metrics(
            replicas,
            self._options,
            scans=self._workers.reads,
            line=self._line,
            row_caches=self._row_caches,
        )
        if self._roles is not None:
            yield from self._roles.metrics()

    def _table_name(self, table_id: int) -> str:
        return self._tables[table_id].name if table_id in self._tables else str(table_id)
