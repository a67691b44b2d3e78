"""The next segment of the log, made ahead, so that the switch to it waits for nothing.

It is zeroed piece by piece, since a sync of the log that meets such a piece at the disk waits
for it. On a full disk it is tried again each second.
"""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.disk import Disk
from pegaskv.storage.log_format import SegmentHeader
from pegaskv.storage.log_segments import (
    OpenSegment,
    create_segment,
    discard_segment,
    grow_segment,
    room_may_come,
)

__all__ = ["SpareSegment"]

_log = logging.getLogger(__name__)

# How long to wait before a full disk is asked for room again.
_FULL_PAUSE_MS: Final = 1_000


class SpareSegment:
    """Makes the next segment in the background; one at a time.

    `wanted` says whether the log will need one at all, `on_made` that there is one, `on_failed`
    that there will be none for another reason than a lack of room.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        *,
        size: int,
        clock: Clock,
        worker: Worker,
        next_header: Callable[[], SegmentHeader],
        wanted: Callable[[], bool],
        on_made: Callable[[], None],
        on_failed: Callable[[BaseException], None],
    ) -> None:
        # When it is made, and while it is being made.
        self.segment: OpenSegment | None = None
        self.preparing = False
        self._disk = disk
        self._directory = directory
        self._size = size
        self._clock = clock
        self._worker = worker
        self._next_header = next_header
        self._wanted = wanted
        self._on_made = on_made
        self._on_failed = on_failed
        self._retry: asyncio.TimerHandle | None = None
        self._full_since_ms: int | None = None

    def prepare(self) -> None:
        """Begin to make one, unless there is one or it is under way."""
        if (
            self.preparing
            or self.segment is not None
            or self._retry is not None
            or not self._wanted()
        ):
            return
        self.preparing = True
        header = self._next_header()
        self._worker.submit(lambda: create_segment(self._disk, self._directory, header), self._grow)

    def take(self) -> OpenSegment | None:
        """Return the segment, which is the caller's from now on; None if there is none."""
        segment, self.segment = self.segment, None
        return segment

    def stop(self) -> None:
        """Try no more; what is being made is discarded if it is not `wanted`."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _grow(self, segment: OpenSegment | None, error: BaseException | None) -> None:
        if segment is None:
            assert error is not None
            self._not_prepared(error)
            return
        if not self._wanted():
            self._worker.submit(lambda: discard_segment(self._disk, segment), self._on_discarded)
            return

        def grown(complete: bool | None, error: BaseException | None) -> None:
            if error is not None:
                self._not_prepared(error)
            elif not complete:
                self._grow(segment, None)
            else:
                self._on_grown(segment)

        self._worker.submit(lambda: grow_segment(self._disk, segment, self._size), grown)

    def _on_grown(self, segment: OpenSegment) -> None:
        self.preparing = False
        self.segment = segment
        if self._full_since_ms is not None:
            waited_ms = self._clock.monotonic_ms() - self._full_since_ms
            _log.warning("the log has room again after %d ms", waited_ms)
            self._full_since_ms = None
        self._on_made()

    def _on_discarded(self, _: None, error: BaseException | None) -> None:
        self.preparing = False

    def _not_prepared(self, error: BaseException) -> None:
        self.preparing = False
        if not self._wanted():
            return
        if not room_may_come(error):
            self._on_failed(error)
            return
        if self._full_since_ms is None:
            self._full_since_ms = self._clock.monotonic_ms()
            _log.error("the log has no room for its next segment yet: %s", error or "no memory")
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later(_FULL_PAUSE_MS / 1_000, self._prepare_again)

    def _prepare_again(self) -> None:
        self._retry = None
        self.prepare()
