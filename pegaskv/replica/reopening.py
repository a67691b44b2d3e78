"""An engine that failed: closed, opened again, and brought up from the log.

While this is tried the replica keeps its committed rows in memory and refuses writes.
An engine is tried after a pause that doubles with each failure of the last ten
minutes. With one replica nobody else has the rows, so it is tried for ever. While the
disk is full the old engine stays: it takes no writes and answers reads.

Tables that do not open, or that cannot take what the log has, are exchanged for the last
checkpoint, or made anew from a log that has everything. When that does not help either the
replica is closed: trying again would change nothing.
"""

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from pegaskv.base.errors import CorruptionError, PegasKVError
from pegaskv.replica.recovery import DamagedTables, bring_up_from_log
from pegaskv.replica.replay import whole_history
from pegaskv.replica.replica import Replica
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.engine import Engine, EngineFactory
from pegaskv.storage.mutation_log import MutationLog

__all__ = ["Reopening"]

_log = logging.getLogger(__name__)

_FAILURES_WITHIN_MS: Final = 600_000
# With others who have the partition, that often is for good.
_FAILURES_MAX: Final = 3
_PAUSE_MS: Final = 500
_PAUSE_MS_MAX: Final = 30_000


class Reopening:
    """One replica's way back to an engine; `run` ends when it has one, or is gone.

    `failures` are the times of its failures, and outlive this object. `adopt`: an engine that
    was found whole lies ready to take the old one's place.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        log: MutationLog,
        directory: DataDirectory,
        factory: EngineFactory,
        clock: Clock,
        worker: Worker,
        failures: list[int],
        disk_has_room: Callable[[], Awaitable[bool]],
        is_gone: Callable[[], bool],
        adopt: bool = False,
    ) -> None:
        self._replica = replica
        self._log = log
        self._directory = directory
        self._factory = factory
        self._clock = clock
        self._worker = worker
        self._failures = failures
        self._disk_has_room = disk_has_room
        self._is_gone = is_gone
        self._adopt = adopt
        # The tables were opened and could not take what the log has.
        self._distrusted = False

    async def run(self) -> None:
        """Try until the replica has an engine again."""
        replica = self._replica
        while True:
            while not await self._disk_has_room():
                await self._clock.sleep_ms(_PAUSE_MS)
            await self._pause()
            if self._is_gone():
                return
            try:
                engine = await self._opened_again()
            except DamagedTables as error:
                if self._distrusted and replica.has_others:
                    self._leave(str(error))
                    return
                if self._distrusted:
                    replica.close_for(
                        f"its tables are damaged, and its checkpoint too: {error}; start with "
                        "--accept-loss to go on without the rows that cannot be read"
                    )
                    _log.error("partition %s stays closed: %s", replica.gpid, replica.closed)
                    return
                self._distrusted = True
                continue
            except (PegasKVError, OSError, MemoryError) as error:
                reason = str(error) or "no memory"
                _log.error("the storage of partition %s does not open: %s", replica.gpid, reason)
                replica.engine_failed = error
                if replica.has_others and len(self._failures) >= _FAILURES_MAX:
                    self._leave(reason)
                    return
                continue
            if self._is_gone():
                await self._close(engine)
                return
            replica.replace_engine(engine)
            replica.set_available(replica.available)
            _log.warning("the storage of partition %s is open again", replica.gpid)
            return

    def _leave(self, reason: str) -> None:
        """Others have all of it: this replica is given up, and copied from them anew."""
        replica = self._replica
        replica.engine_gone = True
        replica.close_for(f"its storage failed for good: {reason}")
        _log.error("partition %s is given up on this server: %s", replica.gpid, replica.closed)

    async def _pause(self) -> None:
        now_ms = self._clock.monotonic_ms()
        recent = [at_ms for at_ms in self._failures if now_ms - at_ms < _FAILURES_WITHIN_MS]
        self._failures[:] = [*recent, now_ms]
        if recent:
            await self._clock.sleep_ms(min(_PAUSE_MS << min(len(recent), 16), _PAUSE_MS_MAX))

    async def _close(self, engine: Engine) -> None:
        try:
            await self._worker.run(engine.close)
        except (OSError, PegasKVError) as error:
            _log.warning("an engine did not close cleanly: %s", error)

    async def _opened_again(self) -> Engine:
        replica = self._replica
        old, committed = replica.engine, replica.machine.committed
        replica.reopening = True
        # It serves no more, and whoever listens hears of it.
        replica.set_available(replica.available)
        return await self._worker.run(lambda: self._reopen(old, committed))

    def _reopen(self, old: Engine, committed: int) -> Engine:
        """Close the old engine and open a new one that holds all up to `committed`. Blocks."""
        gpid = self._replica.gpid
        try:
            old.close()
        except (OSError, PegasKVError) as error:
            # It failed before; what it lacks is in the log.
            _log.warning("the failed storage of %s closed with: %s", gpid, error)
        if self._adopt:
            self._directory.files(gpid).adopt()
            self._adopt = False
        try:
            if self._distrusted:
                raise CorruptionError("its tables do not take what the log has")
            engine = self._factory.open(self._directory.engine_path(gpid))
        except CorruptionError as error:
            engine = self._another(error, committed)
        try:
            bring_up_from_log(engine, self._log, gpid, committed)
        except DamagedTables as error:
            engine.close()
            with suppress(OSError):
                self._directory.files(gpid).note_damage(str(error))
            raise
        except BaseException:
            engine.close()
            raise
        return engine

    def _another(self, error: CorruptionError, committed: int) -> Engine:
        """Open the checkpoint instead, or an engine that takes all from the log. Blocks."""
        gpid = self._replica.gpid
        files = self._directory.files(gpid)
        try:
            return files.restore_checkpoint(self._factory)
        except CorruptionError as second:
            try:
                records = self._log.read(gpid, 1, 1 << 40, through=committed)
                missing = whole_history(records)
            except CorruptionError as third:
                missing = str(third)
            if missing:
                if self._distrusted:
                    raise DamagedTables(f"{error} ({second}; {missing})") from None
                raise CorruptionError(f"{error} ({second}; {missing})") from None
        return files.start_over(self._factory)
