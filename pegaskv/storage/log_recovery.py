"""What a start makes of the log that it finds: what is whole, what is torn, what is lost.

Nothing that can be read is trusted to be durable: a process that was killed leaves
bytes in the page cache that a power cut may still take. So only what a later frame
claims as synced counts as durable; the last segment is copied to a cold segment and
synced before anybody sees it, and appends go to a new one.

The tail begins at the first bad block of the last segment, unless a valid frame
anywhere claims to have been written when more was durable than can be read: that is
damage. Then what can be read is copied likewise, the damaged file is kept aside, and
a report that survives restarts names who may have lost what.

Nothing on disk is changed before everything was read. Each step after that may be
the last one before a crash: the next start sees the old files, or both, or the new.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pegaskv.base.errors import CorruptionError
from pegaskv.base.types import Gpid
from pegaskv.runtime.clock import Clock
from pegaskv.storage.disk import Disk
from pegaskv.storage.log_damage import (
    Damage,
    DamageReport,
    Gap,
    assess,
    decode_reports,
    encode_reports,
)
from pegaskv.storage.log_format import (
    DATA_START,
    FRAME_BYTES,
    Frame,
    LogRecord,
    LogRun,
    SegmentHeader,
    decode_footer,
    decode_records,
    find_frames,
    footer_begins,
    parse_header,
    position_of,
    runs_of,
    scan_frames,
    valid_history,
)
from pegaskv.storage.log_index import LogIndex
from pegaskv.storage.log_segments import (
    BLOCK_BYTES,
    make_header,
    parse_name,
    read_runs,
    room_may_come,
    segment_path,
    write_cold,
)

__all__ = ["Damage", "RecoveredLog", "Wanted", "recover_log", "settle_damage", "valid_history"]

Wanted = Callable[[Gpid, int, int], bool]

_log = logging.getLogger(__name__)

_REPORT: Final = "damage.json"
_ASIDE: Final = ".damaged"


@dataclass(slots=True)
class RecoveredLog:
    """What a start found in the log.

    `records` has, for each partition, what its replica lacks, in the order in which it was
    written; copies may stand twice.
    """

    records: dict[Gpid, list[LogRecord]] = field(default_factory=dict)
    # What acknowledged records may be lost, of whom; kept until it is settled.
    damage: Damage | None = None
    # The highest incarnation of any record: a new one must be above it.
    highest_incarnation: int = 0
    # The number that the next segment takes.
    next_number: int = 1


@dataclass(slots=True)
class _Found:
    """One segment as it lies there."""

    number: int
    cold: bool
    path: Path
    header: SegmentHeader | None
    size: int
    # What the footer says, and where it begins; None when there is none that can be read.
    footer: list[LogRun] | None = None
    footer_at: int = 0
    # Whether there is unused room behind it; `size` ends before that.
    untrimmed: bool = False
    # All of it, once that was worth reading.
    data: bytes | None = None
    # Valid frames in stretches; between two of them something cannot be read.
    stretches: list[list[Frame]] = field(default_factory=list)
    # Where in `stretches` durable bytes are missing: before the one of this index.
    gaps: list[int] = field(default_factory=list)

    @property
    def has_content(self) -> bool:
        """Whether it ever took a record, as far as can be seen."""
        if self.footer is not None or any(self.stretches):
            return True
        # Without a header no block can be believed, but an unused segment is all zeros.
        assert self.data is not None
        return self.header is None and self.data[DATA_START:].strip(b"\0") != b""

    @property
    def end(self) -> int:
        """Where the first stretch ends."""
        first = self.stretches[0] if self.stretches else []
        return first[-1].end if first else DATA_START

    @property
    def complete(self) -> bool:
        """Whether every byte up to the footer can be read."""
        return self.footer is not None and (self.data is None or self.end == self.size)


def recover_log(
    disk: Disk, directory: Path, index: LogIndex, *, clock: Clock, wanted: Wanted
) -> RecoveredLog:
    """Read the log in `directory`, make what it holds durable, and fill `index`. Blocks.

    `wanted` tells whether a replica of this incarnation lacks a decree; if it does, it lacks
    those above too. When this returns, every record that it returned is durable, and no
    segment is left that could take another one.

    Raises:
        UnsupportedFormat: another version of the software wrote it; nothing was changed.
        OSError: the disk refused; a later start may try again.

    """
    return _Recovery(disk, directory, index, clock, wanted).run()


def settle_damage(disk: Disk, directory: Path) -> None:
    """Forget the report of lost records: whoever lost something knows it durably. Blocks."""
    disk.unlink(directory / _REPORT, missing_ok=True)
    disk.fsync_dir(directory)


@dataclass(slots=True)
class _OfReplica:
    """What is kept of one incarnation, and what `wanted` has said of it."""

    records: list[LogRecord] = field(default_factory=list)
    wanted_from: int = 1 << 64
    unwanted_to: int = -1


class _Recovery:
    """One recovery, so that its parts need not hand everything to each other."""

    def __init__(
        self, disk: Disk, directory: Path, index: LogIndex, clock: Clock, wanted: Wanted
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._index = index
        self._clock = clock
        self._wanted = wanted
        self._result = RecoveredLog()
        self._known: dict[tuple[int, int, int], _OfReplica] = {}

    def run(self) -> RecoveredLog:
        disk, directory = self._disk, self._directory
        disk.make_dirs(directory)
        hot, cold, useless = self._list()
        last, synced, spares = self._last_with_content(hot)
        for found in hot:
            self._weigh(found, synced if found is last else None)
        for found in cold:
            self._weigh(found, None)
        stream = [each for found in hot for each in self._take(found)]
        copies = [each for found in cold for each in self._take(found)]
        damaged = [found for found in hot + cold if found.gaps]
        damage = self._damage(damaged, stream, copies)
        rewritten = [found for found in hot + cold if not found.complete]
        if last is not None and last.complete and synced < position_of(last.number, last.size):
            # It is whole, but for all we know only in the page cache.
            rewritten.append(last)
        for key, of_key in self._known.items():
            if of_key.records:
                self._result.records.setdefault(Gpid(*key[:2]), []).extend(of_key.records)
        self._result.highest_incarnation = self._index.highest_incarnation
        # Up to here nothing was changed.
        self._store_report(damage)
        for found in hot:
            if found.untrimmed:
                self._cut(found)
        try:
            self._rewrite(rewritten)
        except OSError as error:
            if not room_may_come(error):
                raise
            self._make_room(spares, rewritten)
            spares = []
            self._rewrite(rewritten)
        for found in damaged:
            disk.rename(found.path, found.path.with_name(found.path.name + _ASIDE))
        for found in [*rewritten, *spares]:
            if not found.gaps:
                disk.unlink(found.path)
        for name in useless:
            disk.unlink(directory / name)
        disk.fsync_dir(directory)
        return self._result

    # --- Finding -------------------------------------------------------------------------

    def _list(self) -> tuple[list[_Found], list[_Found], list[str]]:
        """Return the hot segments, the cold ones, and the names of what was never finished."""
        hot: list[_Found] = []
        cold: list[_Found] = []
        useless: list[str] = []
        for name in self._disk.list(self._directory):
            parsed = parse_name(name)
            if parsed is None:
                continue
            number, is_cold, state = parsed
            self._result.next_number = max(self._result.next_number, number + 1)
            if state == ".tmp":
                useless.append(name)
            elif not state:
                (cold if is_cold else hot).append(self._look(number, cold=is_cold))
        return hot, cold, useless

    def _look(self, number: int, *, cold: bool) -> _Found:
        """Read a segment's header and footer; all of it when one of them is missing."""
        path = segment_path(self._directory, number, cold=cold)
        file = self._disk.open(path)
        try:
            header = parse_header(file.read_at(0, DATA_START), number)
            found = _Found(number, cold, path, header, file.size())
            if header is not None:
                # A footer that has a valid checksum and no whole runs is no footer.
                with contextlib.suppress(CorruptionError):
                    runs = read_runs(file, header)
                    if runs is not None:
                        found.footer, found.footer_at = runs
        finally:
            file.close()
        if found.footer is None or self._lacks(found.footer):
            self._load(found)
        return found

    def _lacks(self, runs: list[LogRun]) -> bool:
        return any(
            self._wanted(Gpid(run.table_id, run.partition_index), run.incarnation, run.last)
            for run in runs
        )

    def _load(self, found: _Found) -> None:
        """Read all of a segment and find its frames."""
        found.data = data = self._disk.read_bytes(found.path)
        header = found.header
        if header is None:
            return
        found.stretches = [scan_frames(data, header, DATA_START)]
        end = found.end
        for frame in find_frames(data, header, end + 1):
            if frame.start != end:
                found.stretches.append([])
            found.stretches[-1].append(frame)
            end = frame.end
        if found.footer is None and len(found.stretches) == 1 and found.stretches[0]:
            self._look_for_seal(found, found.stretches[0][-1])

    def _look_for_seal(self, found: _Found, last: Frame) -> None:
        """A segment that was sealed ends with its footer, also when it was not cut there yet."""
        if last.is_footer:
            assert found.data is not None
            with contextlib.suppress(CorruptionError):
                found.footer = decode_footer(found.data, last.start, last.end)
                found.footer_at, found.size = last.start, last.end
                found.untrimmed = True

    def _last_with_content(self, hot: list[_Found]) -> tuple[_Found | None, int, list[_Found]]:
        """Take unused segments off the end of `hot`; return the last, what is synced, and them."""
        spares: list[_Found] = []
        while hot and not hot[-1].has_content:
            spares.append(hot.pop())
        if not hot:
            return None, 0, spares
        claims = [found.header.synced for found in [hot[-1], *spares] if found.header is not None]
        claims += [frame.synced for stretch in hot[-1].stretches for frame in stretch]
        last, synced = hot[-1], max(claims, default=0)
        if last.data is None and synced < position_of(last.number, last.size):
            self._load(last)
        return last, synced, spares

    # --- Weighing ------------------------------------------------------------------------

    def _weigh(self, found: _Found, synced: int | None) -> None:
        """Decide which missing bytes of a segment are a tail and which are gaps.

        `synced` is None for a segment that was closed, all of which was durable.
        """
        if found.complete:
            return
        if found.header is None:
            assert found.data is not None
            found.gaps = [0]
            return
        assert found.data is not None
        kept = found.stretches[:1]
        end = found.end
        for stretch in found.stretches[1:]:
            if synced is not None and position_of(found.number, end) >= synced:
                break
            found.gaps.append(len(kept))
            kept.append(stretch)
            end = stretch[-1].end
        found.stretches = kept
        if synced is not None and position_of(found.number, end) >= synced:
            return
        ended = bool(kept[-1]) and kept[-1][-1].is_footer
        # A footer that cannot be read holds no record: nothing is lost with it.
        if not ended and not footer_begins(found.data, end):
            found.gaps.append(len(kept))

    def _take(self, found: _Found) -> Iterator[LogRun | Gap]:
        """Put a segment's records into the index and the result; yield its runs and gaps."""
        index = self._index
        if found.data is None:
            assert found.footer is not None
            index.add_segment(found.number, found.footer, cold=found.cold)
            yield from found.footer
            return
        now_ms = self._clock.monotonic_ms()
        index.open_segment(found.number, cold=found.cold)
        for position, stretch in enumerate(found.stretches):
            if position in found.gaps:
                yield Gap(found.number, found.cold, found.footer)
            taken: list[LogRecord] = []
            for frame in stretch:
                if frame.is_footer:
                    continue
                records = decode_records(found.data, frame.start, frame.end)
                index.note(records, frame.start, frame.end, now_ms)
                self._keep(records)
                if found.gaps:
                    taken += records
            if found.gaps:
                yield from runs_of(taken)
        if len(found.stretches) in found.gaps:
            yield Gap(found.number, found.cold, found.footer)
        runs = index.end_segment()
        index.close_segment(found.number)
        if not found.gaps:
            yield from runs

    def _keep(self, records: list[LogRecord]) -> None:
        """Keep those of the records that a replica lacks."""
        known = self._known
        for record in records:
            key = record[:3]
            of_key = known.get(key)
            if of_key is None:
                of_key = known[key] = _OfReplica()
            decree = record[4]
            if decree < of_key.wanted_from:
                if decree <= of_key.unwanted_to:
                    continue
                if not self._wanted(Gpid(key[0], key[1]), key[2], decree):
                    of_key.unwanted_to = decree
                    continue
                of_key.wanted_from = decree
            of_key.records.append(record)

    def _damage(
        self, damaged: list[_Found], stream: list[LogRun | Gap], copies: list[LogRun | Gap]
    ) -> Damage:
        """Return what was reported before and what was found now, as far as anybody cares."""
        reports: list[DamageReport] = []
        path = self._directory / _REPORT
        if self._disk.exists(path):
            try:
                reports += decode_reports(self._disk.read_bytes(path))
            except CorruptionError as error:
                _log.error("%s: every replica counts as one that lost something", error)
                reports.append(DamageReport((), {}, frozenset(), others_too=True))
        if damaged:
            files = tuple(found.path.name + _ASIDE for found in damaged)
            gaps = [each for each in copies if isinstance(each, Gap)]
            runs = [each for each in copies if isinstance(each, LogRun)]
            report = assess([*stream, *gaps], runs, files)
            _log.error("the log is damaged; kept aside: %s", ", ".join(files))
            reports = [each for each in reports if each.files != files] + [report]
        return Damage(tuple(reports)).still_wanted(self._wanted)

    # --- Changing ------------------------------------------------------------------------

    def _store_report(self, damage: Damage) -> None:
        path = self._directory / _REPORT
        if damage.reports:
            self._result.damage = damage
            data = encode_reports(damage.reports)
            if not self._disk.exists(path) or self._disk.read_bytes(path) != data:
                self._disk.write_atomic(path, data)
        elif self._disk.exists(path):
            settle_damage(self._disk, self._directory)

    def _make_room(self, spares: list[_Found], rewritten: list[_Found]) -> None:
        """Give back what is allocated and holds nothing: on a full disk it is what there is."""
        for found in spares:
            self._disk.unlink(found.path)
        for found in rewritten:
            if found.footer is None and not found.gaps and found.size > found.end:
                # Behind its last block there are zeros, and what nobody was told of.
                self._cut(found)
        self._disk.fsync_dir(self._directory)

    def _cut(self, found: _Found) -> None:
        file = self._disk.open(found.path, writable=True)
        try:
            file.truncate(found.end)
        finally:
            file.close()

    def _rewrite(self, rewritten: list[_Found]) -> None:
        """Copy what can be read of these segments to a cold one, durably."""
        index = self._index
        numbers = [found.number for found in rewritten]
        runs = [
            run.as_log_run()
            for segment in index.segments()
            if segment.number in numbers
            for run in segment.runs
        ]
        if runs:
            number = self._result.next_number
            self._result.next_number += 1
            header = make_header(self._disk, self._clock, number, 0)
            write_cold(self._disk, self._directory, header, _bodies(rewritten), runs)
            index.add_segment(number, runs, cold=True)
        index.remove_segments(numbers)


def _bodies(segments: list[_Found]) -> Iterator[bytes]:
    """Yield the records of all blocks, as they are, in large pieces."""
    pieces: list[bytes] = []
    size = 0
    for found in segments:
        assert found.data is not None
        for stretch in found.stretches:
            for frame in stretch:
                if frame.is_footer:
                    continue
                pieces.append(found.data[frame.start + FRAME_BYTES : frame.end])
                size += len(pieces[-1])
                if size >= BLOCK_BYTES:
                    yield b"".join(pieces)
                    pieces, size = [], 0
    if size:
        yield b"".join(pieces)
