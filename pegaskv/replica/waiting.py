"""Replicas whose storage the disk refused to open: tried again until it does.

A full disk, a bad sector, a process out of files: none of them is a reason to keep the
whole server down, or to wait for a restart once it has passed. The replica stays closed
meanwhile and says why.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

from pegaskv.base.errors import PegasKVError
from pegaskv.base.types import Gpid
from pegaskv.replica.recovery import RecoveredReplica, open_late
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.engine import EngineFactory
from pegaskv.storage.mutation_log import MutationLog

__all__ = ["WaitingReplicas"]

_log = logging.getLogger(__name__)

_PAUSE_MS: Final = 1_000
_PAUSE_MS_MAX: Final = 30_000


class WaitingReplicas:
    """Tries to open what is `waiting` in `recovered`; `on_opened` is told of each that is not."""

    def __init__(
        self,
        recovered: Mapping[Gpid, RecoveredReplica],
        *,
        log: MutationLog,
        directory: DataDirectory,
        factory: EngineFactory,
        clock: Clock,
        worker: Worker,
        on_opened: Callable[[Gpid], Awaitable[None]],
    ) -> None:
        self._recovered = recovered
        self._log = log
        self._directory = directory
        self._factory = factory
        self._clock = clock
        self._worker = worker
        self._on_opened = on_opened
        # How often each was tried, and when it is next.
        self._tries: dict[Gpid, int] = {}
        self._due_ms: dict[Gpid, int] = {}

    async def look(self) -> None:
        """Try those whose turn has come."""
        for gpid, replica in list(self._recovered.items()):
            now_ms = self._clock.monotonic_ms()
            if self._recovered.get(gpid) is not replica:
                # Purged while another one was tried.
                continue
            if not replica.waiting or now_ms < self._due_ms.get(gpid, 0):
                continue
            tries = self._tries[gpid] = self._tries.get(gpid, 0) + 1
            self._due_ms[gpid] = now_ms + min(_PAUSE_MS << min(tries - 1, 10), _PAUSE_MS_MAX)
            await self._try(gpid, replica)

    async def _try(self, gpid: Gpid, replica: RecoveredReplica) -> None:
        found = RecoveredReplica(incarnation=replica.incarnation, lost_from=replica.lost_from)
        try:
            await self._worker.run(
                partial(open_late, self._directory, self._factory, self._log, gpid, found)
            )
        except MemoryError:
            await self._close(found)
            return
        if self._recovered.get(gpid) is not replica:
            # Its table was purged meanwhile.
            await self._close(found)
            return
        if found.waiting:
            if found.closed != replica.closed:
                _log.error("partition %s is closed: %s", gpid, found.closed)
            replica.closed = found.closed
            return
        replica.take(found)
        if not replica.closed:
            _log.warning("the storage of partition %s is open", gpid)
        try:
            await self._on_opened(gpid)
        except (OSError, PegasKVError) as error:
            # The next push of its table opens it.
            _log.error("partition %s could not be opened: %s", gpid, error)

    async def _close(self, found: RecoveredReplica) -> None:
        if found.engine is not None:
            try:
                await self._worker.run(found.engine.close)
            except (OSError, PegasKVError) as error:
                _log.warning("an engine did not close cleanly: %s", error)
