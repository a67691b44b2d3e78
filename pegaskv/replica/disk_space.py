"""Free space on the data disk: looked at now and then; below a share of it writes are refused.

They are refused while there is still room for what is under way, for the log's next
segments, and for compactions, which need space to give more back.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from pegaskv.replica.replica import Replica
from pegaskv.runtime.worker import Worker
from pegaskv.storage.disk import Disk

__all__ = ["DiskSpace"]

_log = logging.getLogger(__name__)


class DiskSpace:
    """What was found last: `free_bytes`, and `full` while writes are refused."""

    def __init__(
        self,
        disk: Disk,
        path: Path,
        *,
        worker: Worker,
        min_free_percent: int,
        replicas: Callable[[], Iterable[Replica]],
    ) -> None:
        self._disk = disk
        self._path = path
        self._worker = worker
        self._min_free_percent = min_free_percent
        self._replicas = replicas
        self.free_bytes = 0
        self.full = False

    async def look(self) -> None:
        """Look, and tell all replicas when it has become too little, or enough again."""
        try:
            free, total = await self._worker.run(lambda: self._disk.free_bytes(self._path))
        except OSError as error:
            _log.warning("the free space of the data disk is not known: %s", error)
            return
        self.free_bytes = free
        full = free * 100 < total * self._min_free_percent
        if full == self.full:
            return
        self.full = full
        if full:
            _log.error(
                "the disk is nearly full (%d MiB free, below %d %%): writes are refused",
                free >> 20,
                self._min_free_percent,
            )
        else:
            _log.warning("the disk has room again (%d MiB free): writes resume", free >> 20)
        for replica in self._replicas():
            replica.disk_full = full

    async def has_room(self) -> bool:
        """Look, and return whether writes are taken."""
        await self.look()
        return not self.full
