"""Giving up log: dead segments go, and what lives of mostly dead ones is copied.

Copies go to cold segments, which take nothing else: what a duplication holds for days is
copied once, and not again at every turnover. An old segment goes only when the copy is
durable, and who reads meanwhile finds one of the two.
"""

import functools
import logging
from collections.abc import Callable
from pathlib import Path

from pegaskv.base.errors import CorruptionError
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.disk import Disk
from pegaskv.storage.log_format import LogRecord, runs_of
from pegaskv.storage.log_index import LogIndex, Segment
from pegaskv.storage.log_reading import bodies_of, live_records, reaches_below
from pegaskv.storage.log_segments import make_header, remove_segments, segment_path, write_cold

__all__ = ["Collector"]

_log = logging.getLogger(__name__)


class Collector:
    """The collections of one log; one at a time. `take_number` gives a new segment's number."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        *,
        clock: Clock,
        worker: Worker,
        index: LogIndex,
        take_number: Callable[[], int],
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._clock = clock
        self._worker = worker
        self._index = index
        self._take_number = take_number
        self._busy = False

    async def collect(self) -> None:
        """Drop dead segments; copy the live records of mostly dead ones to a cold segment.

        Returns at once while another collection is under way.

        Raises:
            OSError: the disk refused; nothing is lost, and the next call tries again.

        """
        if self._busy:
            return
        self._busy = True
        try:
            await self._remove(self._index.dead_segments())
            sparse = self._index.sparse_segments()
            if sparse:
                await self._copy(sparse)
        finally:
            self._busy = False

    async def _remove(self, segments: list[Segment]) -> None:
        if not segments:
            return
        self._index.remove_segments(segment.number for segment in segments)
        paths = [self._path(segment) for segment in segments]
        await self._worker.run(
            functools.partial(remove_segments, self._disk, self._directory, paths)
        )

    async def _copy(self, segments: list[Segment]) -> None:
        holds = self._index.holds_of(segments)
        records: list[LogRecord] = []
        copied: list[Segment] = []
        for segment in segments:
            path, number = self._path(segment), segment.number
            try:
                records += await self._worker.run(
                    functools.partial(live_records, self._disk, path, number, holds)
                )
            except (CorruptionError, OSError) as error:
                if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                    raise
                # Its readers will meet the same; it stays as it is until all of it is dead.
                _log.error("%s cannot be copied: %s", path.name, error)
                segment.spoilt = True
                continue
            copied.append(segment)
        runs = runs_of(records)
        number = self._take_number()
        header = make_header(self._disk, self._clock, number, 0)
        if runs:
            await self._worker.run(
                lambda: write_cold(self._disk, self._directory, header, bodies_of(records), runs)
            )
        now = self._index.holds_of(copied)
        if any(reaches_below(now[gpid], holds[gpid]) for gpid in now):
            # Somebody wants more by now than was copied.
            path = segment_path(self._directory, number, cold=True)
            await self._worker.run(lambda: self._disk.unlink(path, missing_ok=True))
            return
        if runs:
            self._index.add_segment(number, runs, cold=True)
        await self._remove(copied)

    def _path(self, segment: Segment) -> Path:
        return segment_path(self._directory, segment.number, cold=segment.cold)
