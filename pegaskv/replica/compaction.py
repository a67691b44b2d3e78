"""Manual compaction: rewrites the tables of partitions when an operator orders it.

LevelDB gives the space of removed rows back when it happens to rewrite their tables. Whoever
has deleted a lot, or lets many rows expire, may want it now: the envs in
`pegaskv.base.compaction` order it, and each server does it for its own replicas, one after
another. Rows that nobody can see are removed first. What is rewritten still stands in the
last checkpoint, so a new one takes its place at the end.

A partition is rewritten in steps, since nothing can interrupt one: between two of them other
upkeep has its turn, and a stop, a full disk or a changed mind ends it. Which order was carried
out is noted beside the replica, so that a restart repeats only what was not finished.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from pegaskv.base.errors import PegasKVError
from pegaskv.base.types import Gpid
from pegaskv.replica.expiry import Sweeper
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.engine import Engine, EngineClosed

__all__ = ["ManualCompactions"]

_log = logging.getLogger(__name__)

# About half a second of work.
_STEP_BYTES: Final = 32 * 1024 * 1024
_PAUSE_MS: Final = 20


class ManualCompactions:
    """Carries out what the envs of tables order, for the replicas of one server.

    `publish` makes a checkpoint of a replica; `may_publish` says whether that may replace the
    last one now.
    """

    def __init__(
        self,
        *,
        directory: DataDirectory,
        clock: Clock,
        worker: Worker,
        sweeper: Sweeper,
        publish: Callable[[Replica], Awaitable[None]],
        may_publish: Callable[[Gpid], bool],
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._worker = worker
        self._sweeper = sweeper
        self._publish = publish
        self._may_publish = may_publish
        # The order that was last carried out, as noted on the disk; of each replica looked at.
        self._done: dict[Gpid, int] = {}
        self.finished = 0
        self.pending = 0

    def forget(self, gpid: Gpid) -> None:
        """The replica is gone, or is another one now."""
        self._done.pop(gpid, None)

    async def compact_due(self, replicas: Iterable[Replica]) -> None:
        """Compact those for which an order is open, one after another."""
        now = self._clock.wall_us() // 1_000_000
        ordered = [
            replica
            for replica in replicas
            if self._done.get(replica.gpid, 0) < replica.compaction_ordered_for <= now
        ]
        due = [replica for replica in ordered if await self._is_due(replica)]
        self.pending = len(due)
        for replica in due:
            engine, ordered_for = replica.engine, replica.compaction_ordered_for
            try:
                if await self._compact(replica, engine, ordered_for):
                    self.pending -= 1
            except (OSError, PegasKVError) as error:
                _log.warning("the compaction of %s was given up: %s", replica.gpid, error)
                if engine is replica.engine and not isinstance(error, EngineClosed):
                    replica.fail_engine(error)

    async def _is_due(self, replica: Replica) -> bool:
        gpid = replica.gpid
        if gpid not in self._done:
            done = await self._worker.run(self._directory.files(gpid).compacted)
            self._done[gpid] = done
        return self._done[gpid] < replica.compaction_ordered_for

    def _may(self, replica: Replica, engine: Engine, ordered_for: int) -> bool:
        """Whether to begin or to go on: a compaction needs room for what it writes anew."""
        return (
            replica.sweepable
            and replica.engine is engine
            and replica.engine_failed is None
            and replica.compaction_ordered_for == ordered_for
            and not replica.disk_full
            and self._may_publish(replica.gpid)
        )

    async def _compact(self, replica: Replica, engine: Engine, ordered_for: int) -> bool:
        """Carry out an order; return whether it was possible to its end."""
        gpid, run = replica.gpid, self._worker.run
        may = partial(self._may, replica, engine, ordered_for)
        if not may():
            return False
        began_ms = self._clock.monotonic_ms()
        await self._sweeper.sweep(replica)
        before = await run(engine.size_bytes)
        cuts = await run(partial(engine.compaction_cuts, _STEP_BYTES))
        for first, last in zip((b"", *cuts), (*cuts, None), strict=True):
            if not may():
                _log.info("the compaction of %s stops before its end", gpid)
                return False
            await run(partial(engine.compact, first, last))
            await self._clock.sleep_ms(_PAUSE_MS)
        after = await run(engine.size_bytes)
        await self._publish(replica)
        if not may():
            return False
        await run(partial(self._directory.files(gpid).note_compacted, ordered_for))
        self._done[gpid] = ordered_for
        self.finished += 1
        _log.info(
            "partition %s is compacted: %.1f MB of tables before, %.1f MB now, in %.1f s",
            gpid,
            before / 1e6,
            after / 1e6,
            (self._clock.monotonic_ms() - began_ms) / 1_000,
        )
        return True
