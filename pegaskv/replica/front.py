"""The owner of the tick. On the hot path: no task, future or dataclass per request.

Requests fill batches (`writes`); at the end of the loop turn the front closes the
batches of all partitions, appends them to the log as one block, and steps each
partition's machine synchronously. Tables that wait for the disk share one sync;
while it runs in its thread the next batches fill, and when it ends the next tick
goes to the disk before the last one is answered. There is never a delay to make a
batch larger.

A failed append or sync of the log ends all acknowledgements of this process: the
front stops, `on_fatal` is told, and the process recovers by a restart.
"""

from collections.abc import Callable
from typing import Any, Final

from pegaskv.net.connection import ServerConnection
from pegaskv.replica.replica import Replica
from pegaskv.storage.mutation_log import LogRecord, MutationLog

__all__ = ["Front"]

# How long committed rows may wait for others to share a write to the engine.
_APPLY_AFTER_S: Final = 0.01


class Front:
    """Batches of all partitions to the log, and their answers to the connections."""

    def __init__(
        self,
        *,
        log: MutationLog,
        call_soon: Callable[[Callable[[], Any]], Any],
        call_later: Callable[[float, Callable[[], Any]], Any],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._log = log
        self.call_soon = call_soon
        self._call_later = call_later
        self._lagging: list[Replica] = []
        self._on_fatal = on_fatal
        self._dirty: list[Replica] = []
        self._scheduled = False
        self._syncing: list[tuple[Replica, int]] | None = None
        # What `os` tables have committed and a duplication may ship once it is synced: what the
        # sync under way covers, and what the next one will.
        self._covered: list[tuple[Replica, int]] = []
        self._uncovered: list[tuple[Replica, int]] = []
        self.stopped = False
        self.ticks = 0
        self.syncs = 0
        log.on_ready = self._schedule

    def wake(self, replica: Replica) -> None:
        """`replica` has something for the next tick."""
        self._dirty.append(replica)
        if not self._scheduled:
            self._schedule()

    def lag(self, replica: Replica) -> None:
        """`replica` holds committed rows that its engine has not taken."""
        if not self._lagging:
            self._call_later(_APPLY_AFTER_S, self._catch_up)
        self._lagging.append(replica)

    def _catch_up(self) -> None:
        lagging, self._lagging = self._lagging, []
        for replica in lagging:
            replica.apply_now()

    def sync_os_tables(self) -> None:
        """Sync what `os` tables wrote, unless a sync is running or nothing is unsynced."""
        if self._syncing is None and self._log.unsynced and not self.stopped:
            self._start_sync([])

    @property
    def idle(self) -> bool:
        """Whether no tick is open or in flight."""
        return not self._dirty and self._syncing is None

    def _schedule(self) -> None:
        self._scheduled = True
        self.call_soon(self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        # When the log is switching segments it calls `_schedule` once it is ready.
        if not self._dirty or self.stopped or not self._log.ready():
            return
        held: list[Replica] = []
        records: list[LogRecord] = []
        synced: list[tuple[Replica, int]] = []
        unsynced: list[tuple[Replica, int]] = []
        for replica in self._dirty:
            if replica.fsync and self._syncing is not None:
                held.append(replica)
                continue
            replica.dirty = False
            replica.close_batches(records)
            decree = replica.machine.prepared.last_prepared
            (synced if replica.fsync else unsynced).append((replica, decree))
        self._dirty = held
        if not records:
            return
        self.ticks += 1
        try:
            self._log.append(records)
        except OSError as error:
            self._fail(error)
            return
        if synced:
            self._start_sync(synced)
        if unsynced:
            self._commit(unsynced)

    def _start_sync(self, replicas: list[tuple[Replica, int]]) -> None:
        self._syncing = replicas
        self._covered, self._uncovered = self._uncovered, []
        self.syncs += 1
        self._log.sync(self._on_synced)

    def _on_synced(self, error: BaseException | None) -> None:
        synced, self._syncing = self._syncing, None
        if self.stopped:
            return
        if error is not None:
            self._fail(error)
            return
        assert synced is not None
        covered, self._covered = self._covered, []
        for replica, decree in synced + covered:
            replica.shipping.synced = max(replica.shipping.synced, decree)
        if self._dirty:
            # The disk gets the next tick before the clients get their answers.
            self._tick()
        if synced:
            self._commit(synced)
        for replica, _ in covered:
            replica.shipping.advance(replica.machine.committed)
        self._sync_uncovered()

    def _commit(self, logged: list[tuple[Replica, int]]) -> None:
        if self.stopped:
            return
        # A dictionary, since the order of a set of objects differs from run to run.
        touched: dict[ServerConnection, None] = {}
        for replica, decree in logged:
            replica.on_logged(decree, touched)
        for connection in touched:
            connection.flush()
        for replica, decree in logged:
            shipping = replica.shipping
            if shipping.synced < decree and shipping.pinned:
                self._uncovered.append((replica, decree))
            shipping.advance(replica.machine.committed)
        self._sync_uncovered()

    def _sync_uncovered(self) -> None:
        """Sync at once what only that keeps from being shipped."""
        if self._uncovered and self._syncing is None and not self.stopped:
            self._start_sync([])

    def _fail(self, error: BaseException) -> None:
        self.stopped = True
        self._on_fatal(error)
