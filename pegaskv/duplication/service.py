"""All duplications that start from the primaries of this server.

Orders come with each push of a table; nothing is concluded from what a push lacks. Each
(partition, duplication) has a run of its own, so an empty partition never waits behind a
large one. What runs share is here: the remote clusters with their windows, the rate of
copies, the bound on the log that is held, and one report to the meta server at a time for
all that have news.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from pegaskv.base.errors import PegasKVError
from pegaskv.base.metrics import Labels, Metric, gauges
from pegaskv.base.types import DuplicationStatus, Gpid
from pegaskv.codec.messages_duplication import DuplicationOrder, PartitionProgress, ProgressReport
from pegaskv.codec.messages_meta import TablePush
from pegaskv.duplication.doors import ProgressDoor, SourcePartition, SourceReplicas
from pegaskv.duplication.held import HeldLog
from pegaskv.duplication.options import DuplicationOptions
from pegaskv.duplication.pacing import CopyPace
from pegaskv.duplication.remote import RemoteCluster, RemoteClusters
from pegaskv.duplication.run import PartitionRun
from pegaskv.duplication.trouble import closed_state
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope

__all__ = ["DuplicationService"]

_log = logging.getLogger(__name__)

_PHASES = {
    DuplicationStatus.DS_PREPARE: 1,
    DuplicationStatus.DS_APP: 2,
    DuplicationStatus.DS_LOG: 3,
}


class DuplicationService:
    """The source side of duplication on one replica server.

    `free_bytes` returns the free space of the data disk; it is asked once.
    """

    def __init__(
        self,
        *,
        sources: SourceReplicas,
        meta: ProgressDoor,
        remotes: RemoteClusters,
        clock: Clock,
        random: Random,
        scope: TaskScope,
        options: DuplicationOptions,
        free_bytes: Callable[[], int],
    ) -> None:
        self.clock = clock
        self.random = random
        self.options = options
        self._sources = sources
        self._meta = meta
        self._remotes = remotes
        self._scope = scope
        self._held = HeldLog(clock, options.max_log_bytes_held, free_bytes, self._held_now)
        self._runs: dict[tuple[Gpid, bytes], tuple[PartitionRun, asyncio.Task[None]]] = {}
        # The newest push of each table.
        self._pushes: dict[int, TablePush] = {}
        # When somebody first saw that a source partition serves nobody.
        self._closed_since: dict[Gpid, int] = {}
        # The newest report of each run, and who waits for it to be stored.
        self._reports: dict[tuple[Gpid, bytes], ProgressReport] = {}
        self._reporting: list[asyncio.Future[None]] = []
        self._reporter: asyncio.Task[None] | None = None
        self._pace = CopyPace(clock, options.copy_bytes_per_second)

    # --- Orders --------------------------------------------------------------------------

    async def configure(self, push: TablePush) -> None:
        """Take a table's orders; returns when they are known here.

        Several pushes of a table may be under way, and an older one may have waited for its
        partitions for longer: what has begun to serve since gets the newest orders.
        """
        table = push.table
        if push.purged:
            for gpid, uuid in [key for key in self._runs if key[0].table_id == table.table_id]:
                await self._end(gpid, uuid)
                self._closed_since.pop(gpid, None)
            self._pushes.pop(table.table_id, None)
            return
        newest = self._pushes.get(table.table_id, push)
        if table.version >= newest.table.version:
            newest = self._pushes[table.table_id] = push
        for order in newest.duplications:
            stored = {one.index: one for one in order.progress}
            for index in range(table.partition_count):
                gpid = Gpid(table.table_id, index)
                progress = stored.get(index) or PartitionProgress(index)
                await self._obey(gpid, order, progress)

    async def _obey(self, gpid: Gpid, order: DuplicationOrder, progress: PartitionProgress) -> None:
        source = None if order.ended else self._sources.source(gpid)
        if source is None:
            await self._end(gpid, order.uuid)
            return
        remote = self._remotes.get(order.metas) if order.metas else None
        running = self._runs.get((gpid, order.uuid))
        if running is not None and running[0].source is source and running[0].term == source.term:
            running[0].update(order, remote)
            return
        await self._end(gpid, order.uuid)
        self._start(gpid, order, remote, progress, source)

    def _start(
        self,
        gpid: Gpid,
        order: DuplicationOrder,
        remote: RemoteCluster | None,
        progress: PartitionProgress,
        source: SourcePartition,
    ) -> None:
        run = PartitionRun(self, source, order, remote, progress)
        name = f"duplication {order.dupid} of partition {gpid}"
        self._runs[gpid, order.uuid] = run, self._scope.start(name, run.run())

    async def _end(self, gpid: Gpid, uuid: bytes) -> None:
        found = self._runs.pop((gpid, uuid), None)
        self._reports.pop((gpid, uuid), None)
        if found is not None:
            run, task = found
            run.end()
            task.cancel()

    async def stop(self) -> None:
        """End all runs; what was confirmed and not stored is found out again by the next."""
        for gpid, uuid in list(self._runs):
            await self._end(gpid, uuid)
        await self._remotes.close()

    # --- What runs need ------------------------------------------------------------------

    def report(self, report: ProgressReport) -> "asyncio.Future[None]":
        """Store progress at the meta server, together with that of others.

        The future ends when it is stored, or raises PegasKVError: nothing is known of it.
        """
        self._reports[report.gpid, report.uuid] = report
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reporting.append(stored)
        if self._reporter is None or self._reporter.done():
            self._reporter = self._scope.start("report progress", self._report_all())
        return stored

    async def _report_all(self) -> None:
        while self._reports:
            reports, self._reports = list(self._reports.values()), {}
            waiting, self._reporting = self._reporting, []
            try:
                await self._meta.report_progress(reports)
            except PegasKVError as error:
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
                        # Most have nobody who waits.
                        future.exception()
            else:
                for future in waiting:
                    if not future.done():
                        future.set_result(None)

    async def throttle(self, size: int, sent: int) -> None:
        """Wait until so many bytes may be sent, of a copy that has sent `sent` before."""
        await self._pace.wait(size, sent)

    def log_is_held_too_long(self, uuid: bytes) -> str:
        """Why a duplication must be given up for the log that is held; "" if it need not."""
        return self._held.why_too_much(uuid)

    def _held_now(self) -> Iterable[tuple[Gpid, bytes, int]]:
        for (gpid, uuid), (run, _) in self._runs.items():
            yield gpid, uuid, run.source.held_bytes(uuid)

    # --- What is shown ---------------------------------------------------------------------

    def state(self, gpid: Gpid, uuid: bytes) -> dict[str, Any]:
        """Return what is shown of one partition; empty when nothing runs here."""
        found = self._runs.get((gpid, uuid))
        state = {} if found is None else found[0].state()
        why = self._why_not_serving(gpid) if found is None or not found[0].source.serving else ""
        if not why:
            self._closed_since.pop(gpid, None)
        elif not state.get("last_error"):
            since_us = self._closed_since.setdefault(gpid, self.clock.wall_us())
            state |= closed_state(f"partition {gpid} {why}", since_us)
        return state

    def _why_not_serving(self, gpid: Gpid) -> str:
        replica = self._sources.replica_state(gpid)
        if closed := replica.get("closed"):
            return f"is closed: {closed}"
        if error := replica.get("storage_error"):
            return f"opens its storage again: {error}"
        return ""

    def metrics(self) -> Iterable[Metric]:
        """Yield what is counted of each duplication."""
        sums: dict[Labels, dict[str, float]] = {}
        for (gpid, _), (run, _) in sorted(self._runs.items(), key=lambda item: item[0]):
            labels: Labels = (
                ("table", self._pushes[gpid.table_id].table.name),
                ("remote_cluster", run.order.remote_cluster),
                ("dupid", str(run.order.dupid)),
            )
            state = run.state()
            values = sums.setdefault(labels, {"phase": 3.0, "lag_ms": 0.0})
            values["phase"] = min(values["phase"], _PHASES[run.status])
            values["lag_ms"] = max(values["lag_ms"], state["lag_ms"])
            for name in _SUMMED:
                values[name] = values.get(name, 0.0) + state[name]
        for name, (kind, text) in _FAMILIES.items():
            samples = tuple((labels, values[name]) for labels, values in sums.items())
            suffix = "_total" if kind == "counter" else ""
            yield Metric(f"pegaskv_duplication_{name}{suffix}", kind, text, samples)  # type: ignore[arg-type]
        requests, sent = self._remotes.most_under_way()
        yield from gauges(
            ("duplication_window_requests", "Requests to the server that has most.", requests),
            (
                "duplication_window_requests_max",
                "Their bound.",
                self.options.window_requests_max,
            ),
            ("duplication_window_bytes", "Bytes on their way to the cluster that has most.", sent),
            ("duplication_window_bytes_max", "Their bound.", self.options.window_bytes),
            (
                "duplication_bytes_held_max",
                "Where a duplication is broken for the log that is kept; 0: never asked for yet.",
                self._held.bytes_max,
            ),
        )


_FAMILIES = {
    "phase": ("gauge", "1 = DS_PREPARE, 2 = DS_APP, 3 = DS_LOG: the least of the partitions'."),
    "lag_ms": ("gauge", "Age of the oldest write that is not at the target."),
    "gap": ("gauge", "Mutations that are not at the target."),
    "bytes_held": ("gauge", "Bytes of log that are kept for it."),
    "shipped": ("counter", "Mutations sent."),
    "copied_rows": ("counter", "Rows of existing data sent."),
    "retries": ("counter", "Attempts after a failure."),
    "conflicts": ("counter", "Rows that lost against a newer version at the target."),
    "skipped": ("counter", "Operations left out, since the target finds them invalid."),
    "seconds_stalled": ("counter", "Seconds in which partitions could not go on."),
}
_SUMMED = [name for name in _FAMILIES if name not in ("phase", "lag_ms")]
