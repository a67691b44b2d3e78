"""The one write-ahead log of a replica server: append, sync, switch, read, collect.

The log is the truth and the engines are a cache of it. All partitions share it: one
append and at most one sync per tick. On the hot path: `append`, `ready` and `sync`.

A segment is preallocated ahead, synced and footed before the next one takes a record.
While the log switches to that next one `ready` is False: a millisecond or two, since most
of the segment was synced while it still took records, or as long as the disk is full,
which the log looks at again each second. A failed append or sync breaks the log for
good: every later call raises, and the process recovers by a restart, which never
appends to an old segment (`log_recovery`).

The loop owns all state; the worker gets files and bytes. Whoever shares the worker
waits for its syncs, so give the log one of its own, and `background` another for
what is long.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from pegaskv.base.errors import PegasKVError
from pegaskv.base.types import Gpid
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.disk import Disk
from pegaskv.storage.log_collecting import Collector
from pegaskv.storage.log_damage import Damage, Loss
from pegaskv.storage.log_format import (
    DATA_START,
    LogRecord,
    RecordFields,
    SegmentHeader,
    encode_block,
    encode_footer,
    footer_bytes,
    position_of,
    valid_history,
)
from pegaskv.storage.log_index import NO_PINS, LogGone, LogIndex, Pin
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.log_reading import read_history
from pegaskv.storage.log_recovery import RecoveredLog, Wanted, recover_log, settle_damage
from pegaskv.storage.log_segments import (
    OpenSegment,
    create_first,
    log_failure,
    make_header,
    nothing,
    prove_closed,
    room_may_come,
    seal_segment,
    trim_segment,
)
from pegaskv.storage.log_spare import SpareSegment

__all__ = [
    "Damage",
    "LogGone",
    "LogRecord",
    "Loss",
    "MutationLog",
    "Pin",
    "RecordFields",
    "RecoveredLog",
    "valid_history",
]

_log = logging.getLogger(__name__)

# A segment is given up when less than this share of it is left. When more than the second share
# is unsynced then, it takes records in half of what is left while that is synced: the switch waits
# for the rest only.
_RESERVE_SHARE: Final = 8
_UNSYNCED_SHARE: Final = 256
Done = Callable[[BaseException | None], None]


class MutationLog:
    """The log of one data directory; made by `recover`.

    Invariants: at most one sync, one switch, one preparation and one collection are under
    way; `_synced` never passes what a successful sync covered.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        *,
        options: LogOptions,
        clock: Clock,
        worker: Worker,
        background: Worker | None,
        index: LogIndex,
        next_number: int,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._options = options
        self._clock = clock
        self._worker = worker
        self._background = background or worker
        self._index = index
        self._next_number = next_number
        # Called on the loop when `ready` has become True.
        self.on_ready: Callable[[], None] | None = None
        self._ready = False
        self._broken: BaseException | None = None
        self._closed = False
        # The segment that takes records, the end of its last block, where it is given up once
        # little is unsynced, and where it is in any case.
        self._segment: OpenSegment | None = None
        self._end = 0
        self._base = 0
        self._ends_at = 0
        self._ends_before = 0
        self._sealed_at_once = 0
        self._ending = False
        # The position up to which everything is durable, and the end of the last block.
        self._synced = position_of(next_number, 0)
        self._appended = self._synced
        self._sync_done: Done | None = None
        self._sync_after_switch: Done | None = None
        self._switching = False
        self._spare = SpareSegment(
            disk,
            directory,
            size=options.log_segment_bytes,
            clock=clock,
            worker=self._background,
            next_header=self._next_header,
            wanted=lambda: not self._closed and self._broken is None,
            on_made=self._use_spare,
            on_failed=self._fail,
        )
        self._collector = Collector(
            disk,
            directory,
            clock=clock,
            worker=self._background,
            index=index,
            take_number=self._take_number,
        )

    @classmethod
    def recover(
        cls,
        disk: Disk,
        directory: Path,
        *,
        options: LogOptions,
        clock: Clock,
        worker: Worker,
        wanted: Wanted,
        background: Worker | None = None,
    ) -> tuple["MutationLog", RecoveredLog]:
        """Open the log in `directory`, made if need be; return it and what it held. Blocks.

        `wanted(gpid, incarnation, decree)` says whether a replica lacks the decree, and with
        it all above: those records are returned. Every record that is returned is durable.
        Then each replica must be introduced by `set_incarnation`, and each partition that
        `partitions` names and nobody has, given up by `forget`: until then its records stay.

        Raises:
            UnsupportedFormat: another version of the software wrote it; nothing was changed.
            OSError: the disk refused; a later start may try again.

        """
        index = LogIndex(options)
        recovered = recover_log(disk, directory, index, clock=clock, wanted=wanted)
        log = cls(
            disk,
            directory,
            options=options,
            clock=clock,
            worker=worker,
            background=background,
            index=index,
            next_number=recovered.next_number,
        )
        index.strict = True
        try:
            log._install(create_first(disk, directory, log._next_header, options.log_segment_bytes))
        except OSError as error:
            if not room_may_come(error):
                raise
            # What was read may be served; `ready` asks for room again.
            _log.error("the log cannot take records yet: %s", error)
        return log, recovered

    # --- The hot path ----------------------------------------------------------------------

    def ready(self) -> bool:
        """Whether `append` may be called; `on_ready` tells when it may again.

        True also when the log is broken, so that the caller meets the error.
        """
        if self._ready:
            return True
        if self._segment is None:
            self._spare.prepare()
        return self._broken is not None

    def append(self, records: Sequence[RecordFields]) -> None:
        """Write `records` as one block into the page cache; durable only after `sync`.

        The caller has seen `ready` in this turn of the loop. Records must be of present
        incarnations. A block that is larger than the segment's rest lengthens the segment.

        Raises:
            OSError: the log is broken; nothing may be acknowledged any more.
            MemoryError: nothing was written; the same records may be given again.

        """
        if self._broken is not None:
            raise log_failure(self._broken)
        segment = self._segment
        assert self._ready, "append while the log is not ready"
        assert segment is not None
        start = self._end
        data = encode_block(
            records,
            position=self._base | start,
            synced=self._synced,
            salt=segment.header.salt,
        )
        end = start + len(data)
        index = self._index
        # Each record may begin a run, and the footer must find room too.
        needed = end + footer_bytes(index.open_runs + len(records))
        try:
            if needed > segment.capacity:
                self._lengthen(segment, needed)
            segment.file.write_at(start, data)
        except OSError as error:
            self._fail(error)
            raise
        self._end = end
        self._appended = self._base | end
        try:
            index.note(records, start, end, self._clock.monotonic_ms())
        except MemoryError as error:
            self._fail(error)  # The block is in the file: it must not be given again.
            raise log_failure(error) from error
        if needed > self._ends_at:
            self._approach_end(segment, needed)
        elif self._spare.segment is None:
            self._spare.prepare()

    @property
    def unsynced(self) -> bool:
        """Whether something was appended that is not known to be durable."""
        return self._appended > self._synced

    def sync(self, done: Done) -> None:
        """Make everything appended so far durable, then call `done(None)` or `done(error)`.

        One at a time. After an error the log is broken.
        """
        assert self._sync_done is None, "two syncs at once"
        assert self._sync_after_switch is None, "two syncs at once"
        if self._switching:
            # The switch syncs all that was appended.
            self._sync_after_switch = done
            return
        self._sync_done = done
        segment = self._segment
        if self._broken is not None or segment is None or not self.unsynced:
            self._worker.submit(nothing, self._on_synced_already)
            return
        self._worker.submit(
            segment.file.fdatasync, functools.partial(self._on_synced, self._appended)
        )

    def _on_synced(self, position: int, _: None, error: BaseException | None) -> None:
        if error is not None:
            self._fail(error)
        elif self._broken is None:
            self._synced = max(self._synced, position)
        self._finish_sync()

    def _on_synced_already(self, _: None, error: BaseException | None) -> None:
        self._finish_sync()

    def _finish_sync(self) -> None:
        done, self._sync_done = self._sync_done, None
        assert done is not None
        done(None if self._broken is None else log_failure(self._broken))

    def _fail(self, error: BaseException) -> None:
        if self._broken is not None:
            return
        self._broken = error
        self._ready = False
        _log.error("the log has failed and takes no more records: %s", error)
        if self.on_ready is not None and not self._closed:
            # Nobody waits for a log that will never be ready: the next append tells why.
            self.on_ready()

    # --- Segments ----------------------------------------------------------------------------

    def _lengthen(self, segment: OpenSegment, needed: int) -> None:
        """Reserve room for a block that does not fit, before anything is written."""
        assert needed < 1 << 32, "a segment of 4 GiB"
        segment.file.preallocate(needed)
        segment.capacity = needed

    def _approach_end(self, segment: OpenSegment, needed: int) -> None:
        """The segment is nearly full: switch when little of it is left to sync."""
        unsynced = self._appended - self._synced
        if needed > self._ends_before or (unsynced <= self._sealed_at_once and not self._ending):
            self._switch()
        elif not self._ending:
            self._ending = True
            self._worker.submit(
                segment.file.fdatasync,
                functools.partial(self._on_nearly_synced, segment, self._appended),
            )

    def _on_nearly_synced(
        self, segment: OpenSegment, position: int, _: None, error: BaseException | None
    ) -> None:
        if error is not None:
            self._fail(error)
        elif self._broken is None:
            self._synced = max(self._synced, position)
            if self._segment is segment:
                self._switch()

    def _switch(self) -> None:
        """Close the segment in the worker; the spare takes its place."""
        segment = self._segment
        assert segment is not None
        self._ready = False
        self._switching = True
        footer = self._footer(segment)
        end = self._end
        self._segment = None
        self._spare.prepare()
        self._worker.submit(
            lambda: seal_segment(segment, end, footer),
            functools.partial(self._on_sealed, segment, end + len(footer)),
        )

    def _footer(self, segment: OpenSegment) -> bytes:
        """Return the footer that ends the open segment where it is now."""
        return encode_footer(
            self._index.end_segment(),
            position=self._base | self._end,
            synced=self._synced,
            salt=segment.header.salt,
        )

    def _on_sealed(
        self, segment: OpenSegment, end: int, _: None, error: BaseException | None
    ) -> None:
        self._switching = False
        if error is not None:
            self._fail(error)
        else:
            self._trim(segment, end)
            if self._broken is None:
                self._synced = max(self._synced, position_of(segment.header.number, end))
        done, self._sync_after_switch = self._sync_after_switch, None
        if done is not None:
            self._sync_done = done
            self._finish_sync()
        self._use_spare()

    def _trim(self, segment: OpenSegment, end: int) -> None:
        """Cut a sealed segment behind its footer; until then no collection may read it."""

        def trimmed(_: None, error: BaseException | None) -> None:
            if error is not None:
                _log.warning("%s keeps its unused room: %s", segment.path.name, error)
            self._index.close_segment(segment.header.number)

        self._background.submit(lambda: trim_segment(segment, end), trimmed)

    def _use_spare(self) -> None:
        """Let the spare take records, when there is one and its turn has come."""
        if (
            self._segment is not None
            or self._switching
            or self._closed
            or self._broken is not None
            or (segment := self._spare.take()) is None
        ):
            return
        self._install(segment)
        if self.on_ready is not None:
            self.on_ready()

    def _install(self, segment: OpenSegment) -> None:
        number = segment.header.number
        self._segment = segment
        self._base = position_of(number, 0)
        self._end = DATA_START
        size = min(self._options.log_segment_bytes, segment.capacity)
        self._ends_at = segment.capacity - size // _RESERVE_SHARE
        self._ends_before = segment.capacity - size // (2 * _RESERVE_SHARE)
        self._sealed_at_once = size // _UNSYNCED_SHARE
        self._ending = False
        # The header is durable, and so is every segment before it.
        self._synced = self._appended = self._base | DATA_START
        self._index.open_segment(number)
        self._ready = True

    def _next_header(self) -> SegmentHeader:
        """Return the header of the next segment; what it claims as synced was so before."""
        return make_header(self._disk, self._clock, self._take_number(), self._synced)

    def _take_number(self) -> int:
        number = self._next_number
        self._next_number += 1
        return number

    # --- Retention -----------------------------------------------------------------------------

    def partitions(self) -> list[Gpid]:
        """Return every partition that has records in the log or was introduced."""
        return self._index.partitions()

    def set_incarnation(
        self, gpid: Gpid, incarnation: int, base_decree: int, *, pins: Mapping[str, int] = NO_PINS
    ) -> None:
        """Of this partition only records of `incarnation` count, and those above `base_decree`.

        Needed before the first append for it. Pins are cleared; `pins` are set: what is above
        them will be appended, as of a replica that is learned from another server.
        """
        now_ms = self._clock.monotonic_ms()
        self._index.set_incarnation(gpid, incarnation, base_decree, now_ms, pins)

    def forget(self, gpid: Gpid) -> None:
        """The replica is gone: its records need not be kept."""
        self._index.forget(gpid)

    def mark_flushed(self, gpid: Gpid, decree: int) -> None:
        """The partition's engine holds everything up to `decree` durably."""
        self._index.mark_flushed(gpid, decree, self._clock.monotonic_ms())

    @property
    def total_unflushed(self) -> int:
        """About how many bytes of log a restart would replay."""
        return self._index.total_unflushed

    def flush_candidates(self, now_ms: int) -> list[Gpid]:
        """Return the partitions that should be flushed now, the largest first."""
        return self._index.flush_candidates(now_ms)

    def set_pin(self, gpid: Gpid, name: str, decree: int) -> None:
        """Keep records above `decree` until the pin `name` is moved or cleared.

        A pin is not stored: each start sets it anew, before anything is collected.

        Raises:
            LogGone: some of them are not there any more; no pin was set or moved.

        """
        self._index.set_pin(gpid, name, decree, self._clock.monotonic_ms())

    def clear_pin(self, gpid: Gpid, name: str) -> None:
        """Give a pin up; fine if there is none."""
        self._index.clear_pin(gpid, name)

    def pins(self, gpid: Gpid) -> dict[str, Pin]:
        """Return the pins of a partition by name: where each is, since when, what it holds."""
        return self._index.pins(gpid)

    def held_bytes(self, gpid: Gpid, name: str) -> int:
        """About how many bytes of log nobody but pins keeps above this one; 0 without it."""
        pin = self._index.pins(gpid).get(name)
        return 0 if pin is None else pin.held_bytes

    def settle_damage(self) -> None:
        """Drop the report of lost records; blocks.

        To be called when every replica that lost something has stored that, or its
        operator accepted the loss: until then each start reports it again.
        """
        settle_damage(self._disk, self._directory)

    async def collect(self) -> None:
        """Drop dead segments; copy the live records of mostly dead ones to a cold segment.

        Returns at once while another collection is under way.

        Raises:
            OSError: the disk refused; nothing is lost, and the next call tries again.

        """
        if not self._closed:
            await self._collector.collect()

    # --- Reading -------------------------------------------------------------------------------

    @property
    def appended_position(self) -> int:
        """Where the last block ends; what was appended is durable once `synced_position` is here.

        Positions only grow, over segments too.
        """
        return self._appended

    @property
    def synced_position(self) -> int:
        """Up to where everything is known to be durable."""
        return self._synced

    def read(
        self,
        gpid: Gpid,
        from_decree: int,
        max_bytes: int,
        *,
        ballot: int = 0,
        through: int = (1 << 64) - 1,
    ) -> list[LogRecord]:
        """Return the valid history from `from_decree` on, about `max_bytes` of it. Blocks.

        May be called from a worker. What lies above the commit point was prepared only, and
        the last of it may be in the page cache only: `through` is the last decree that the
        caller may believe. `ballot` is that of the decree below, if known.

        Raises:
            CorruptionError: the log lacks a decree that should be there, or it is damaged.

        """
        return read_history(
            self._disk,
            self._directory,
            self._index,
            gpid,
            from_decree=from_decree,
            max_bytes=max_bytes,
            ballot=ballot,
            through=through,
        )

    # --- The end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Sync and foot the segment, so that the next start has nothing to copy.

        A second call does nothing. An error of the disk is logged: whatever was
        acknowledged is durable already.
        """
        if self._closed:
            return
        self._closed = True
        self._ready = False
        self._spare.stop()
        while self._switching or self._spare.preparing or self._sync_done is not None:
            await self._worker.run(nothing)
            await self._background.run(nothing)
        segment, spare = self._segment, self._spare.take()
        self._segment = None
        try:
            await self._worker.run(lambda: self._close(segment, spare))
        except (OSError, PegasKVError) as error:
            _log.warning("the log did not close cleanly: %s", error)

    def _close(self, segment: OpenSegment | None, spare: OpenSegment | None) -> None:
        synced = self._synced
        if segment is not None:
            if self._broken is None:
                footer = self._footer(segment)
                end = self._end + len(footer)
                seal_segment(segment, self._end, footer)
                trim_segment(segment, end)
                synced = self._base | end
            else:
                segment.file.close()
        if spare is not None:
            if self._broken is None:
                prove_closed(spare, synced)
            spare.file.close()
