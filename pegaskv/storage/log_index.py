"""pure: what each log segment holds, what must be kept, and who should be flushed.

The log is shared by all partitions of a server; this is the only account of which
part of it is whose. Its unit is the run: records of one partition in one segment
with consecutive decrees of one ballot. Rules:

* a record lives while its incarnation is the partition's present one, and it is
  not flushed or a pin is not past it; of a partition that nobody has spoken of yet
  everything lives (unknown means keep);
* a closed segment without live records goes; one that is less than half alive has
  its live records copied to a cold segment first, once nothing in it waits for a flush;
* a partition is to be flushed when it holds too much unflushed log, or too old; or,
  largest first, while all together hold more than half of what they may.

`note` is on the hot path: once per tick, a few steps per record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from pegaskv.base.errors import PegasKVError
from pegaskv.base.types import Gpid
from pegaskv.storage.log_format import RECORD_BYTES, LogRun, RecordFields
from pegaskv.storage.log_options import LogOptions

__all__ = ["NO_PINS", "Hold", "LogGone", "LogIndex", "Pin", "Run", "Segment"]

# What `_Partition.incarnation` is before and after anybody answers for the partition.
_UNKNOWN: Final = -1
_FORGOTTEN: Final = -2

# Runs are cut at this share of a segment, so that what is live is known finely enough.
_RUN_SHARE: Final = 32

# So many small cold segments are made one, so that their number stays small.
_SMALL_COLD_MAX: Final = 8


class LogGone(PegasKVError):
    """A pin asks for records that were given up; `lowest` is the lowest decree that it may have."""

    def __init__(self, message: str, lowest: int) -> None:
        super().__init__(message)
        self.lowest = lowest


class Pin(NamedTuple):
    """One pin: records above `decree` are kept.

    `held_bytes` is about how much of them nobody but pins keeps any more, `moved_ms` when the
    pin came to its decree.
    """

    decree: int
    held_bytes: int
    moved_ms: int


class Hold(NamedTuple):
    """Which records of a partition live: of this incarnation, above this decree."""

    incarnation: int
    decree: int

    def covers(self, incarnation: int, decree: int) -> bool:
        """Whether a record lives."""
        if self.incarnation == _UNKNOWN:
            return True
        return incarnation == self.incarnation and decree > self.decree


_KEEP_ALL: Final = Hold(_UNKNOWN, 0)
NO_PINS: Final[Mapping[str, int]] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Run:
    """A `LogRun` as memory has it; `start` and `end` bound its blocks in the segment (0 = all)."""

    partition: "_Partition"
    segment: int
    incarnation: int
    ballot: int
    first: int
    last: int
    committed: int
    size: int
    start: int
    end: int

    def as_log_run(self) -> LogRun:
        """The run as a footer says it."""
        return LogRun(
            *self.partition.gpid,
            self.incarnation,
            self.ballot,
            self.first,
            self.last,
            self.committed,
            self.size,
        )


@dataclass(slots=True, eq=False)
class Segment:
    """A segment and its runs, in the order of their first records."""

    number: int
    cold: bool
    # How many hot segments had been opened when it was.
    ordinal: int
    runs: list[Run] = field(default_factory=list)
    closed: bool = False
    # A copy of it failed: it is left alone.
    spoilt: bool = False

    @property
    def size(self) -> int:
        """Bytes of all its records."""
        return sum(run.size for run in self.runs)

    @property
    def live(self) -> int:
        """Bytes of its live records, rounded up to whole runs."""
        return sum(run.size for run in self.runs if run.partition.holds(run))


@dataclass(slots=True, eq=False)
class _Partition:
    gpid: Gpid
    incarnation: int = _UNKNOWN
    flushed: int = 0
    pins: dict[str, int] = field(default_factory=dict)
    # When each came to where it is.
    pins_moved_ms: dict[str, int] = field(default_factory=dict)
    # The run that the next record most likely continues.
    run: Run | None = None
    # Runs of the present incarnation that a reader may ask for, and those above `flushed`.
    held: list[Run] = field(default_factory=list)
    unflushed: list[Run] = field(default_factory=list)
    unflushed_bytes: int = 0
    # When the oldest of them was appended; a little late after a flush.
    oldest_ms: int = 0

    @property
    def hold(self) -> Hold:
        return Hold(self.incarnation, min([self.flushed, *self.pins.values()]))

    def holds(self, run: Run) -> bool:
        return self.hold.covers(run.incarnation, run.last)


def _kept_bytes(partition: _Partition, decree: int) -> int:
    """Sum up what is flushed and above `decree`; of a run in part, in proportion."""
    total = 0
    for run in partition.held:
        kept = min(run.last, partition.flushed) - max(decree, run.first - 1)
        if kept > 0:
            total += run.size * kept // (run.last - run.first + 1)
    return total


class LogIndex:
    """All segments of one log, the one that takes records last.

    Invariants: a partition's `unflushed` are the runs of its incarnation that end above
    `flushed`; `total_unflushed` is the sum over all partitions.
    """

    def __init__(self, options: LogOptions) -> None:
        self._options = options
        self._run_bytes = max(options.log_segment_bytes // _RUN_SHARE, 1)
        self._segments: dict[int, Segment] = {}
        self._partitions: dict[tuple[int, int], _Partition] = {}
        self._open = Segment(0, cold=False, ordinal=0, closed=True)
        self._hot_opened = 0
        # Set once recovery is over: only records of present incarnations come from then on.
        self.strict = False
        self.total_unflushed = 0

    # --- What is written -----------------------------------------------------------------

    @property
    def open_runs(self) -> int:
        """How many runs the open segment has: its footer will be that long."""
        return len(self._open.runs)

    def open_segment(self, number: int, *, cold: bool = False) -> None:
        """From now on `note` speaks of this segment."""
        assert number not in self._segments
        self._open = self._add_segment(number, cold=cold)

    def note(self, records: Sequence[RecordFields], start: int, end: int, now_ms: int) -> None:
        """Records were written into the open segment, as the block from `start` to `end`."""
        number = self._open.number
        run_bytes = self._run_bytes
        get = self._partitions.get
        total = 0
        for table, index, incarnation, ballot, decree, committed, _, payload in records:
            size = RECORD_BYTES + len(payload)
            partition = get((table, index))
            if partition is None:
                partition = self._partition(Gpid(table, index))
            run = partition.run
            flushed = partition.flushed
            if (
                run is None
                or run.segment != number
                or (last := run.last) + 1 != decree
                # What the tables have already is in no run with what they have not.
                or last == flushed
                or run.ballot != ballot
                or run.incarnation != incarnation
                or run.size >= run_bytes
            ):
                run = self._begin_run(partition, incarnation, ballot, decree, start)
            run.last = decree
            run.committed = committed
            run.size += size
            run.end = end
            if decree > flushed and incarnation == partition.incarnation:
                if not partition.unflushed_bytes:
                    partition.oldest_ms = now_ms
                partition.unflushed_bytes += size
                total += size
        self.total_unflushed += total

    def end_segment(self) -> list[LogRun]:
        """The open segment takes no more; return what its footer must say."""
        return [run.as_log_run() for run in self._open.runs]

    def close_segment(self, number: int) -> None:
        """The segment has ended, and its file has its footer at the end: it may be collected."""
        self._segments[number].closed = True

    def add_segment(self, number: int, runs: Iterable[LogRun], *, cold: bool) -> None:
        """A closed segment is there that holds `runs`."""
        segment = self._add_segment(number, cold=cold)
        segment.closed = True
        for table, index, incarnation, ballot, first, last, committed, size in runs:
            partition = self._partition(Gpid(table, index))
            run = Run(partition, number, incarnation, ballot, first, last, committed, size, 0, 0)
            segment.runs.append(run)
            if incarnation == partition.incarnation:
                if partition.hold.covers(incarnation, last):
                    partition.held.append(run)
                if last > partition.flushed:
                    partition.unflushed.append(run)

    def remove_segments(self, numbers: Iterable[int]) -> None:
        """These segments are gone, or their live runs are in another one by now."""
        gone = {number: self._segments.pop(number) for number in numbers}
        touched = {
            run.partition.gpid: run.partition for segment in gone.values() for run in segment.runs
        }
        for partition in touched.values():
            if partition.run is not None and partition.run.segment in gone:
                partition.run = None
            partition.held = [run for run in partition.held if run.segment not in gone]
            partition.unflushed = [run for run in partition.unflushed if run.segment not in gone]
            self._count(partition)

    def _add_segment(self, number: int, *, cold: bool) -> Segment:
        if not cold:
            self._hot_opened += 1
        segment = Segment(number, cold, self._hot_opened)
        self._segments[number] = segment
        return segment

    def _partition(self, gpid: Gpid) -> _Partition:
        partition = self._partitions.get(gpid)
        if partition is None:
            partition = self._partitions[gpid] = _Partition(gpid)
        return partition

    def _begin_run(
        self, partition: _Partition, incarnation: int, ballot: int, decree: int, start: int
    ) -> Run:
        # A record of another incarnation would be dead at once, and its write lost.
        assert not self.strict or incarnation == partition.incarnation, (
            f"a record of {partition.gpid} with incarnation {incarnation}, "
            f"which has {partition.incarnation}"
        )
        run = Run(
            partition, self._open.number, incarnation, ballot, decree, decree, 0, 0, start, start
        )
        partition.run = run
        self._open.runs.append(run)
        if incarnation == partition.incarnation:
            partition.held.append(run)
            if decree > partition.flushed:
                partition.unflushed.append(run)
        return run

    # --- What is needed --------------------------------------------------------------------

    def partitions(self) -> list[Gpid]:
        """Every partition that has a record in the log, or was spoken of."""
        return sorted(partition.gpid for partition in self._partitions.values())

    def set_incarnation(
        self,
        gpid: Gpid,
        incarnation: int,
        base_decree: int,
        now_ms: int,
        pins: Mapping[str, int] = NO_PINS,
    ) -> None:
        """Of this partition only records of `incarnation` above `base_decree` are unflushed.

        What `pins` keep will be appended; of other incarnations they keep nothing.
        """
        assert incarnation >= 0
        partition = self._partition(gpid)
        partition.incarnation = incarnation
        partition.flushed = base_decree
        partition.pins = dict(pins)
        partition.pins_moved_ms = dict.fromkeys(pins, now_ms)
        self._look_again(partition, now_ms)

    def forget(self, gpid: Gpid) -> None:
        """All records of the partition are dead."""
        partition = self._partition(gpid)
        partition.incarnation = _FORGOTTEN
        partition.pins, partition.pins_moved_ms = {}, {}
        self._look_again(partition, 0)

    def mark_flushed(self, gpid: Gpid, decree: int, now_ms: int) -> None:
        """The engine holds everything up to `decree` durably."""
        partition = self._partitions[gpid]
        partition.flushed = max(partition.flushed, decree)
        partition.unflushed = [run for run in partition.unflushed if run.last > decree]
        if partition.run is not None and partition.run.last <= decree:
            # It is in neither list any more: what comes next must begin a run that is.
            partition.run = None
        self._drop_unheld(partition)
        self._count(partition)
        # What is left was appended while the engine flushed.
        partition.oldest_ms = now_ms

    def set_pin(self, gpid: Gpid, name: str, decree: int, now_ms: int) -> None:
        """Records above `decree` are kept until the pin is moved or cleared.

        Raises:
            LogGone: some of them are not there any more; no pin was set or moved.

        """
        partition = self._partition(gpid)
        lower = decree < partition.hold.decree
        if lower:
            lowest = self._lowest_pin(partition)
            if decree < lowest:
                raise LogGone(
                    f"the log of partition {gpid} lacks decrees {decree + 1} to {lowest}", lowest
                )
        if partition.pins.get(name) != decree:
            partition.pins_moved_ms[name] = now_ms
        partition.pins[name] = decree
        if lower:
            self._look_again(partition, partition.oldest_ms)
        else:
            self._drop_unheld(partition)

    def _lowest_pin(self, partition: _Partition) -> int:
        """The decree above which every record of the present incarnation is there."""
        if partition.incarnation < 0:
            return 0
        lowest = partition.hold.decree
        # Downward from what is kept anyway, as long as the next run joins on.
        for run in sorted(self._runs_of(partition), key=lambda run: -run.last):
            if run.last < lowest:
                break
            lowest = min(lowest, run.first - 1)
        return lowest

    def clear_pin(self, gpid: Gpid, name: str) -> None:
        """Give the pin up; fine if there is none."""
        partition = self._partition(gpid)
        partition.pins.pop(name, None)
        partition.pins_moved_ms.pop(name, None)
        self._drop_unheld(partition)

    def pins(self, gpid: Gpid) -> dict[str, Pin]:
        """Return the pins of a partition by their names."""
        partition = self._partitions.get(gpid)
        if partition is None:
            return {}
        return {
            name: Pin(decree, _kept_bytes(partition, decree), partition.pins_moved_ms[name])
            for name, decree in partition.pins.items()
        }

    def _runs_of(self, partition: _Partition) -> list[Run]:
        return [
            run
            for segment in self._segments.values()
            for run in segment.runs
            if run.partition is partition and run.incarnation == partition.incarnation
        ]

    def _drop_unheld(self, partition: _Partition) -> None:
        hold = partition.hold
        partition.held = [run for run in partition.held if hold.covers(run.incarnation, run.last)]

    def _look_again(self, partition: _Partition, now_ms: int) -> None:
        """Find the partition's runs anew, after its rule has changed."""
        hold = partition.hold
        runs = self._runs_of(partition) if partition.incarnation >= 0 else []
        partition.run = None
        # At once: another thread may be reading by them.
        partition.held = [run for run in runs if run.last > hold.decree]
        partition.unflushed = [run for run in runs if run.last > partition.flushed]
        partition.oldest_ms = now_ms
        self._count(partition)

    def _count(self, partition: _Partition) -> None:
        """Sum up the unflushed bytes; of a run that is flushed in part, in proportion."""
        total = 0
        for run in partition.unflushed:
            above = run.last - max(partition.flushed, run.first - 1)
            total += run.size * above // (run.last - run.first + 1)
        self.total_unflushed += total - partition.unflushed_bytes
        partition.unflushed_bytes = total

    # --- What is to be done ----------------------------------------------------------------

    def unflushed_bytes(self, gpid: Gpid) -> int:
        """About how many bytes of log a restart would replay for the partition."""
        partition = self._partitions.get(gpid)
        return 0 if partition is None else partition.unflushed_bytes

    def flush_candidates(self, now_ms: int) -> list[Gpid]:
        """Return the partitions that should be flushed now, the largest first."""
        options = self._options
        chosen: list[_Partition] = []
        others: list[_Partition] = []
        total = self.total_unflushed
        waiting = [each for each in self._partitions.values() if each.unflushed_bytes]
        for partition in sorted(waiting, key=lambda each: -each.unflushed_bytes):
            oldest = min(self._segments[run.segment].ordinal for run in partition.unflushed)
            if (
                partition.unflushed_bytes > options.flush_partition_bytes
                or now_ms - partition.oldest_ms >= options.flush_age_ms
                or self._hot_opened - oldest >= options.flush_age_segments
            ):
                chosen.append(partition)
                total -= partition.unflushed_bytes
            else:
                others.append(partition)
        for partition in others:
            # Those that are written alike would all be due together; from half on they take turns.
            if total <= options.flush_total_bytes // 2:
                break
            chosen.append(partition)
            total -= partition.unflushed_bytes
        return [partition.gpid for partition in chosen]

    def dead_segments(self) -> list[Segment]:
        """Closed segments without a live record."""
        return [
            segment
            for segment in self._segments.values()
            if segment.closed and not any(run.partition.holds(run) for run in segment.runs)
        ]

    def sparse_segments(self) -> list[Segment]:
        """Closed segments whose live records should be copied to one cold segment.

        Not while all that is in them is about to be flushed: that lets them go without a copy.
        """
        sparse: list[Segment] = []
        small: list[Segment] = []
        youngest = self._hot_opened - self._options.flush_age_segments
        for segment in self._segments.values():
            if not segment.closed or segment.spoilt:
                continue
            if not segment.cold and segment.ordinal >= youngest:
                continue
            size, live = segment.size, segment.live
            if live > 0 and live * 2 < size:
                sparse.append(segment)
            elif (
                segment.cold
                and live > 0
                and size * _SMALL_COLD_MAX <= (self._options.log_segment_bytes)
            ):
                small.append(segment)
        if len(small) >= _SMALL_COLD_MAX:
            sparse += small
        # Not more than makes one segment: the rest has its turn next.
        total = 0
        taken: list[Segment] = []
        for segment in sorted(sparse, key=lambda each: each.number):
            if taken and total + segment.live > self._options.log_segment_bytes:
                break
            total += segment.live
            taken.append(segment)
        return taken

    def holds_of(self, segments: Iterable[Segment]) -> dict[Gpid, Hold]:
        """Return what lives now of each partition that has records in these segments."""
        return {
            run.partition.gpid: run.partition.hold for segment in segments for run in segment.runs
        }

    def hold(self, gpid: Gpid) -> Hold:
        """Return which records of the partition live."""
        partition = self._partitions.get(gpid)
        return _KEEP_ALL if partition is None else partition.hold

    def held_runs(self, gpid: Gpid, from_decree: int) -> list[Run]:
        """Return the runs that may hold `from_decree` or later ones, by their first decree.

        May be called from another thread than the one that changes the index.
        """
        partition = self._partitions.get(gpid)
        if partition is None:
            return []
        runs = [run for run in tuple(partition.held) if run.last >= from_decree]
        return sorted(runs, key=lambda run: (run.first, run.segment))

    def incarnation(self, gpid: Gpid) -> int:
        """Return the present incarnation; negative when there is none."""
        partition = self._partitions.get(gpid)
        return _UNKNOWN if partition is None else partition.incarnation

    def segments(self) -> list[Segment]:
        """Return all segments in the order of their numbers."""
        return sorted(self._segments.values(), key=lambda each: each.number)

    @property
    def highest_incarnation(self) -> int:
        """The highest incarnation of any record; 0 when there is none."""
        return max(
            (run.incarnation for each in self._segments.values() for run in each.runs), default=0
        )

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        assert self.total_unflushed == sum(
            partition.unflushed_bytes for partition in self._partitions.values()
        )
        for partition in self._partitions.values():
            runs = self._runs_of(partition)
            if partition.incarnation >= 0:
                assert {id(run) for run in partition.unflushed} == {
                    id(run) for run in runs if run.last > partition.flushed
                }
                assert {id(run) for run in partition.held} == {
                    id(run) for run in runs if run.last > partition.hold.decree
                }
            else:
                assert not partition.unflushed_bytes
