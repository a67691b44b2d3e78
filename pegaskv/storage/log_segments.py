"""The files of the mutation log: their names, and each way in which one is made or read.

All functions block. `NNNNNNNNNN.log` is a segment that took appends, `.cold` one of
copies, which is complete from the moment it has its name; `.tmp` was never finished,
`.damaged` was kept aside.
"""

import contextlib
import errno
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import xxhash

from pegaskv.base.errors import CorruptionError
from pegaskv.runtime.clock import Clock
from pegaskv.storage.disk import Disk, File
from pegaskv.storage.log_format import (
    DATA_START,
    TRAILER_BYTES,
    LogRecord,
    LogRun,
    SegmentHeader,
    decode_footer,
    decode_records,
    encode_block,
    encode_footer,
    encode_header,
    footer_offset,
    parse_header,
    position_of,
    scan_frames,
    wrap_records,
)

__all__ = [
    "BLOCK_BYTES",
    "OpenSegment",
    "create_first",
    "create_segment",
    "grow_segment",
    "log_failure",
    "make_header",
    "nothing",
    "parse_name",
    "prove_closed",
    "read_records",
    "read_runs",
    "remove_segments",
    "seal_segment",
    "segment_path",
    "trim_segment",
    "write_cold",
]

# How much copied records go into one block.
BLOCK_BYTES: Final = 1024 * 1024
# How much of a segment is zeroed at once. A sync of the log that meets it at the disk waits a few
# milliseconds; in smaller pieces a segment is not there when writes at full speed need it.
_GROW_BYTES: Final = 4 * 1024 * 1024

_SEGMENT_BYTES_LEAST: Final = 12 * 1024

# A full disk, and a process or machine at its limit of files or memory.
_SHORTAGES: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)

_NAME: Final = re.compile(r"([0-9]{10})\.(log|cold)(\.tmp|\.damaged|)", re.ASCII)


@dataclass(slots=True)
class OpenSegment:
    """A segment that takes records, or will when its turn comes."""

    header: SegmentHeader
    file: File
    path: Path
    # How far the file is preallocated.
    capacity: int


def segment_path(directory: Path, number: int, *, cold: bool) -> Path:
    """Return the name of a segment's file."""
    return directory / f"{number:010d}.{'cold' if cold else 'log'}"


def parse_name(name: str) -> tuple[int, bool, str] | None:
    """Return (number, cold, what is behind it) of a file of ours; None for any other."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), match[2] == "cold", match[3])


def make_header(disk: Disk, clock: Clock, number: int, synced: int) -> SegmentHeader:
    """Return the header of a new segment, with a salt that nobody outside can guess."""
    seed = f"{disk.boot_id()} {clock.wall_us()} {clock.monotonic_ms()} {number}"
    salt = xxhash.xxh3_64_intdigest(seed.encode()) & 0xFFFF_FFFF
    return SegmentHeader(number, salt, synced)


def create_segment(disk: Disk, directory: Path, header: SegmentHeader) -> OpenSegment:
    """Make the file of a hot segment, with nothing but its header; nothing is durable yet."""
    path = segment_path(directory, header.number, cold=False)
    file = disk.create(path)
    segment = OpenSegment(header, file, path, DATA_START)
    try:
        file.write_at(0, encode_header(header))
    except (OSError, MemoryError):
        discard_segment(disk, segment)
        raise
    return segment


def grow_segment(disk: Disk, segment: OpenSegment, capacity: int) -> bool:
    """Preallocate one more piece and sync; True when the segment is as large as wanted.

    When it is, its name is durable too, and it may take records.
    """
    try:
        segment.capacity = min(segment.capacity + _GROW_BYTES, capacity)
        segment.file.preallocate(segment.capacity)
        segment.file.fdatasync()
        if segment.capacity < capacity:
            return False
        disk.fsync_dir(segment.path.parent)
    except (OSError, MemoryError):
        discard_segment(disk, segment)
        raise
    return True


def create_first(
    disk: Disk, directory: Path, make_header: Callable[[], SegmentHeader], size: int
) -> OpenSegment:
    """Make a segment of `size` bytes, ready for records; on a full disk a smaller one.

    The records that open the replicas find room in it, so that they can be read.
    """
    while True:
        segment = create_segment(disk, directory, make_header())
        try:
            while not grow_segment(disk, segment, size):
                pass
        except OSError as error:
            size //= 4
            if not room_may_come(error) or size < _SEGMENT_BYTES_LEAST:
                raise
        else:
            return segment


def discard_segment(disk: Disk, segment: OpenSegment) -> None:
    """Give up a segment that has taken no record; an error here changes nothing."""
    with contextlib.suppress(OSError):
        segment.file.close()
        disk.unlink(segment.path, missing_ok=True)


def seal_segment(segment: OpenSegment, end: int, footer: bytes) -> None:
    """End a segment at `end` with its footer, durably; it takes no more records.

    The zeros behind it stay: to cut them off changes the file's length, and a sync of that
    waits for whatever else the file system's journal has under way.
    """
    segment.file.write_at(end, footer)
    segment.file.fdatasync()


def trim_segment(segment: OpenSegment, end: int) -> None:
    """Cut a sealed segment behind its footer, which is read from the end, and close it."""
    try:
        segment.file.truncate(end)
    finally:
        segment.file.close()


def write_cold(
    disk: Disk, directory: Path, header: SegmentHeader, bodies: Iterable[bytes], runs: list[LogRun]
) -> None:
    """Write a cold segment of records; it is complete and durable when this returns."""
    path = segment_path(directory, header.number, cold=True)
    temporary = path.with_name(path.name + ".tmp")
    file = disk.create(temporary)
    try:
        file.write_at(0, encode_header(header))
        end = DATA_START
        for body in bodies:
            position = position_of(header.number, end)
            block = wrap_records(body, position=position, synced=header.synced, salt=header.salt)
            file.write_at(end, block)
            end += len(block)
        position = position_of(header.number, end)
        file.write_at(
            end, encode_footer(runs, position=position, synced=header.synced, salt=header.salt)
        )
        file.fdatasync()
        file.close()
        disk.rename(temporary, path)
        disk.fsync_dir(directory)
    except OSError:
        # The space is given back; the first error is the one to tell.
        with contextlib.suppress(OSError):
            file.close()
            disk.unlink(temporary, missing_ok=True)
        raise


def read_runs(file: File, header: SegmentHeader) -> tuple[list[LogRun], int] | None:
    """Return the runs of a closed segment and where its footer begins; None without one."""
    size = file.size()
    tail = file.read_at(max(size - TRAILER_BYTES, 0), TRAILER_BYTES)
    start = footer_offset(tail, size)
    if not start:
        return None
    data = file.read_at(start, size - start)
    frames = scan_frames(data, header, start, base=start)
    if len(frames) != 1 or not frames[0].is_footer or frames[0].end != size:
        return None
    return decode_footer(data, 0, len(data)), start


def read_records(disk: Disk, path: Path, number: int, start: int, end: int) -> Iterator[LogRecord]:
    """Yield the records of the blocks from `start` to `end` (0 = up to the footer).

    Raises:
        CorruptionError: bytes that were written cannot be read.
        FileNotFoundError: the segment is gone: its records are in another one.
        UnsupportedFormat: another version of the software wrote it.

    """
    file = disk.open(path)
    try:
        header = parse_header(file.read_at(0, DATA_START), number)
        if header is None:
            raise CorruptionError(f"the header of {path.name} is damaged")
        if not end:
            found = read_runs(file, header)
            if found is None:
                raise CorruptionError(f"the footer of {path.name} is damaged")
            end = found[1]
        start = max(start, DATA_START)
        data = file.read_at(start, end - start)
    finally:
        file.close()
    frames = scan_frames(data, header, start, base=start)
    reached = frames[-1].end if frames else start
    if reached != end:
        raise CorruptionError(f"{path.name} is damaged at byte {reached}")
    for frame in frames:
        yield from decode_records(data, frame.start - start, frame.end - start)


def prove_closed(spare: OpenSegment, synced: int) -> None:
    """Put an empty block into the next segment: the proof that this one is durable. Blocks."""
    header = spare.header
    position = position_of(header.number, DATA_START)
    block = encode_block([], position=position, synced=synced, salt=header.salt)
    spare.file.write_at(DATA_START, block)
    spare.file.fdatasync()


def log_failure(error: BaseException) -> OSError:
    """A fresh error for each who meets a broken log, with the first as its cause."""
    number = error.errno if isinstance(error, OSError) else None
    fresh = OSError(number or errno.EIO, f"the log has failed: {error}")
    fresh.__cause__ = error
    return fresh


def remove_segments(disk: Disk, directory: Path, paths: list[Path]) -> None:
    """Remove segments that nobody needs. Blocks."""
    for path in paths:
        disk.unlink(path, missing_ok=True)
    disk.fsync_dir(directory)


def room_may_come(error: BaseException) -> bool:
    """Whether a segment that could not be made for it can be made later: nothing is broken."""
    return isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno in _SHORTAGES
    )


def nothing() -> None:
    """What a worker does for somebody who only waits for his turn."""
