"""Engines that failed, and tables that rotted: who mends them, and how it stands.

A read that meets a damaged block is no reason to take the partition away from everybody
else: the engine stays, its other rows are served, and beside it the last checkpoint is
opened, brought up from the log and read to its end, or a young partition made anew from
the log alone. If that is whole it takes the engine's place and nothing was lost. But a
checkpoint shares its files with the engine, so mostly it has the same damage. Then, with
one replica, nobody has those rows: reads of them are refused with what an operator can do,
all else goes on, and it is noted for the next start, which says so again, looks whether it
is still so, and gives the rows up with `--accept-loss`.

Sooner or later a compaction meets the block, and LevelDB takes no more writes: then the
partition refuses them too, and goes on reading. Opening it again would not help.

An engine that failed for another reason is opened again (`reopening`).
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

from pegaskv.base.errors import (
    CorruptionError,
    InternalError,
    NotReady,
    PegasKVError,
    RequestError,
)
from pegaskv.base.types import Gpid
from pegaskv.replica.recovery import bring_up_from_log
from pegaskv.replica.reopening import Reopening
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import Worker
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.engine import Engine, EngineFactory
from pegaskv.storage.mutation_log import MutationLog

__all__ = ["WHAT_TO_DO", "Repairs"]

_log = logging.getLogger(__name__)

WHAT_TO_DO: Final = (
    "put the partition's directory back from a backup, or start the server once with "
    "--accept-loss to give up the rows that cannot be read"
)
# What has every row, when only the way from the disk was bad.
_ITSELF: Final = "the tables it has"
# How much is read between two other jobs of the worker.
_ROWS_PER_JOB: Final = 2_000
_TRIES_MAX: Final = 5
_PAUSE_MS: Final = 5_000


class Repairs:
    """The repairs of one server's replicas.

    `damaged` says of which partitions rows are lost, as far as this server can tell.
    """

    def __init__(
        self,
        *,
        log: MutationLog,
        directory: DataDirectory,
        factory: EngineFactory,
        clock: Clock,
        worker: Worker,
        scope: TaskScope,
        disk_has_room: Callable[[], Awaitable[bool]],
        is_gone: Callable[[Replica], bool],
    ) -> None:
        self._log = log
        self._directory = directory
        self._factory = factory
        self._clock = clock
        self._worker = worker
        self._scope = scope
        self._disk_has_room = disk_has_room
        self._is_gone = is_gone
        self.damaged: dict[Gpid, str] = {}
        self._mending: set[Gpid] = set()
        # Whose checkpoint was found whole and is to take the engine's place.
        self._mended: set[Gpid] = set()
        self._failures: dict[Gpid, list[int]] = {}
        self.stopping = False

    # --- What happens --------------------------------------------------------------------

    def on_corruption(self, replica: Replica, error: BaseException) -> RequestError:
        """A read met a damaged table; return what it is answered."""
        gpid = replica.gpid
        what = f"a table file of partition {gpid} is damaged: {error}"
        if gpid in self.damaged:
            return InternalError(what, hint=f"its other rows are served; {WHAT_TO_DO}")
        if replica.engine_failed is None or isinstance(replica.engine_failed, CorruptionError):
            self._begin_to_mend(replica, error)
        return NotReady(f"{what}; it is being mended")

    def on_engine_failed(self, replica: Replica, error: BaseException) -> None:
        """The engine takes no more writes."""
        gpid = replica.gpid
        if gpid in self._mended:
            self._reopen(replica)
        elif gpid in self.damaged and isinstance(error, CorruptionError):
            self._refuse_writes(replica)
        elif isinstance(error, CorruptionError):
            self._begin_to_mend(replica, error)
        elif gpid not in self._mending:
            _log.error("the storage of partition %s failed, it is opened again: %s", gpid, error)
            self._reopen(replica)

    def on_known_damage(self, replica: Replica, reason: str) -> None:
        """An earlier process found damage that it could not mend: look whether it is there."""
        _log.error("partition %s has damaged tables: %s; %s", replica.gpid, reason, WHAT_TO_DO)
        self.damaged[replica.gpid] = reason
        self._start(f"look at {replica.gpid}", self._look_again(replica))

    def may_publish(self, gpid: Gpid) -> bool:
        """Whether a new checkpoint may take the place of the last one: not while that may help."""
        return gpid not in self._mending and gpid not in self._mended

    def forget(self, gpid: Gpid) -> None:
        """The replica is gone."""
        self.damaged.pop(gpid, None)
        self._failures.pop(gpid, None)
        self._mended.discard(gpid)

    def _start(self, name: str, job: Coroutine[Any, Any, None]) -> None:
        if self.stopping or self._scope.closed:
            job.close()
        else:
            self._scope.start(name, job)

    # --- Opening again -------------------------------------------------------------------

    def _reopen(self, replica: Replica) -> None:
        gpid = replica.gpid
        reopening = Reopening(
            replica,
            log=self._log,
            directory=self._directory,
            factory=self._factory,
            clock=self._clock,
            worker=self._worker,
            failures=self._failures.setdefault(gpid, []),
            disk_has_room=self._disk_has_room,
            is_gone=partial(self._is_gone, replica),
            adopt=gpid in self._mended,
        )
        self._mended.discard(gpid)
        self._start(f"reopen {gpid}", reopening.run())

    def _refuse_writes(self, replica: Replica) -> None:
        replica.read_only = f"its tables are damaged: {self.damaged[replica.gpid]}; {WHAT_TO_DO}"
        _log.error("partition %s takes no more writes, and goes on reading", replica.gpid)

    # --- Mending -------------------------------------------------------------------------

    def _begin_to_mend(self, replica: Replica, error: BaseException) -> None:
        gpid = replica.gpid
        if gpid in self._mending or self.stopping:
            return
        _log.error("a table file of partition %s is damaged: %s", gpid, error)
        self._mending.add(gpid)
        self._start(f"mend {gpid}", self._mend(replica, error))

    async def _mend(self, replica: Replica, error: BaseException) -> None:
        gpid = replica.gpid
        try:
            source, why = await self._whole_source(replica)
        finally:
            self._mending.discard(gpid)
        if self._is_gone(replica):
            return
        if not source:
            await self._give_up(replica, f"{error}; {why}")
            return
        _log.warning("partition %s goes on from %s: nothing is lost", gpid, source)
        if source != _ITSELF:
            self._mended.add(gpid)
        elif replica.engine_failed is None:
            return
        if replica.engine_failed is None:
            replica.fail_engine(error)
        else:
            self._reopen(replica)

    async def _whole_source(self, replica: Replica) -> tuple[str, str]:
        """Find what has every row; return its name, or "" and why there is nothing.

        A checkpoint or an engine made from the log is then ready to be adopted.
        """
        files = self._directory.files(replica.gpid)
        reasons = []
        for source, opening in (
            ("its last checkpoint and the log", files.open_checkpoint),
            ("the log alone", files.open_empty),
        ):
            reason = await self._why_not(replica, partial(opening, self._factory))
            if not reason:
                return source, ""
            reasons.append(f"{source}: {reason}")
        try:
            await self._read_all(replica.engine, replica)
        except (OSError, PegasKVError, MemoryError):
            return "", "; ".join(reasons)
        # What was read was damaged on its way from the disk.
        return _ITSELF, ""

    async def _why_not(self, replica: Replica, opening: Callable[[], Engine]) -> str:
        """Bring an engine up beside the damaged one and read all of it; "" when it is whole."""
        reason = "it could not be tried"
        for _ in range(_TRIES_MAX):
            try:
                await self._prepare(replica, opening)
            except CorruptionError as error:
                return str(error)
            except (OSError, PegasKVError, MemoryError) as error:
                # It may pass.
                reason = str(error) or "no memory"
                _log.warning("partition %s cannot be mended yet: %s", replica.gpid, reason)
                await self._clock.sleep_ms(_PAUSE_MS)
            else:
                return ""
            if self._is_gone(replica):
                break
        return reason

    async def _prepare(self, replica: Replica, opening: Callable[[], Engine]) -> None:
        gpid, committed = replica.gpid, replica.machine.committed
        engine = await self._worker.run(opening)
        try:
            await self._worker.run(partial(bring_up_from_log, engine, self._log, gpid, committed))
            await self._read_all(engine, replica)
        finally:
            await self._worker.run(engine.close)

    async def _read_all(self, engine: Engine, replica: Replica) -> None:
        """Read every row, some at a time.

        Raises:
            CorruptionError: one of them cannot be read.

        """
        start: bytes | None = b""
        while start is not None and not self._is_gone(replica):
            start = await self._worker.run(partial(_read_some, engine, start))

    async def _give_up(self, replica: Replica, reason: str) -> None:
        gpid = replica.gpid
        if replica.has_others:
            # They have every row: whoever leads lets this server copy it anew.
            replica.close_for(f"its tables are damaged: {reason}")
            _log.error("partition %s is given up on this server: %s", gpid, replica.closed)
            return
        self.damaged[gpid] = reason
        _log.error(
            "partition %s: rows are lost in its damaged tables: %s; its other rows are served; %s",
            gpid,
            reason,
            WHAT_TO_DO,
        )
        if isinstance(replica.engine_failed, CorruptionError):
            self._refuse_writes(replica)
        elif replica.engine_failed is not None:
            self._reopen(replica)
        try:
            await self._worker.run(partial(self._directory.files(gpid).note_damage, reason))
        except OSError as error:
            _log.warning("the damage of partition %s could not be noted: %s", gpid, error)

    async def _look_again(self, replica: Replica) -> None:
        gpid = replica.gpid
        try:
            await self._read_all(replica.engine, replica)
        except (OSError, PegasKVError, MemoryError):
            return
        if self._is_gone(replica):
            return
        try:
            await self._worker.run(self._directory.files(gpid).forget_damage)
        except OSError as error:
            _log.warning("partition %s: %s", gpid, error)
        self.damaged.pop(gpid, None)
        _log.warning("the tables of partition %s are whole again", gpid)


def _read_some(engine: Engine, start: bytes) -> bytes | None:
    """Read rows from `start` on; return where to go on, None at the end. Blocks."""
    snapshot = engine.snapshot()
    try:
        for seen, (key, _) in enumerate(snapshot.iterate(start, b"")):
            if seen == _ROWS_PER_JOB:
                return key
    finally:
        snapshot.close()
    return None
