"""Reading the log while it is written: a partition's history, and what of a segment lives.

A segment that a reader was sent to may be copied and removed meanwhile: then its
records are in a cold segment of the same number, or the index knows a new place.
"""

from pathlib import Path
from typing import Final

from pegaskv.base.errors import CorruptionError
from pegaskv.base.types import Gpid
from pegaskv.storage.disk import Disk
from pegaskv.storage.log_format import LogRecord, encode_records, valid_history
from pegaskv.storage.log_index import Hold, LogIndex, Run
from pegaskv.storage.log_segments import BLOCK_BYTES, read_records, segment_path

__all__ = ["bodies_of", "live_records", "reaches_below", "read_history"]

_READ_ATTEMPTS: Final = 10


def read_history(
    disk: Disk,
    directory: Path,
    index: LogIndex,
    gpid: Gpid,
    *,
    from_decree: int,
    max_bytes: int,
    ballot: int,
    through: int,
) -> list[LogRecord]:
    """Return the valid history of a partition from `from_decree` on, about `max_bytes` of it.

    Blocks. `ballot` is that of the decree below, or 0; nothing above `through` is returned.

    Raises:
        CorruptionError: the log lacks a decree that should be there, or it is damaged.

    """
    for _ in range(_READ_ATTEMPTS):
        try:
            history = _read(disk, directory, index, gpid, from_decree, max_bytes, ballot)
        except FileNotFoundError:
            continue
        return [record for record in history if record.decree <= through]
    raise CorruptionError(f"the log of partition {gpid} changes faster than it can be read")


def _read(
    disk: Disk,
    directory: Path,
    index: LogIndex,
    gpid: Gpid,
    from_decree: int,
    max_bytes: int,
    ballot: int,
) -> list[LogRecord]:
    key = (*gpid, index.incarnation(gpid))
    found: list[LogRecord] = []
    size = 0
    highest = from_decree
    for run in index.held_runs(gpid, from_decree):
        # Runs come by their first decree: no later one can change what is complete below it.
        if size >= max_bytes and run.first > highest:
            break
        for record in _records_of(disk, directory, run):
            if record[:3] == key and record.decree >= from_decree:
                found.append(record)
                size += len(record.payload)
                highest = max(highest, record.decree)
    history: list[LogRecord] = []
    size = 0
    for record in valid_history(found, ballot=ballot):
        if record.decree != from_decree + len(history):
            raise CorruptionError(
                f"the log of partition {gpid} lacks decrees "
                f"{from_decree + len(history)} to {record.decree - 1}"
            )
        history.append(record)
        size += len(record.payload)
        if size >= max_bytes:
            break
    return history


def _records_of(disk: Disk, directory: Path, run: Run) -> list[LogRecord]:
    """Read a run's blocks, wherever they are by now."""
    number, start, end = run.segment, run.start, run.end
    try:
        path = segment_path(directory, number, cold=False)
        return list(read_records(disk, path, number, start, end))
    except FileNotFoundError:
        path = segment_path(directory, number, cold=True)
        return list(read_records(disk, path, number, start, end))


def live_records(disk: Disk, path: Path, number: int, holds: dict[Gpid, Hold]) -> list[LogRecord]:
    """Return the records of a segment that somebody needs. Blocks."""
    return [
        record
        for record in read_records(disk, path, number, 0, 0)
        if holds[Gpid(record[0], record[1])].covers(record.incarnation, record.decree)
    ]


def reaches_below(now: Hold, then: Hold) -> bool:
    """Whether `now` covers a record that `then` did not."""
    if now.incarnation == then.incarnation:
        return now.decree < then.decree
    return now.incarnation >= 0 or now.covers(-1, 0)


def bodies_of(records: list[LogRecord]) -> list[bytes]:
    """Cut records into the bodies of blocks."""
    bodies: list[bytes] = []
    piece: list[LogRecord] = []
    size = 0
    for record in records:
        piece.append(record)
        size += len(record.payload)
        if size >= BLOCK_BYTES:
            bodies.append(encode_records(piece))
            piece, size = [], 0
    if piece:
        bodies.append(encode_records(piece))
    return bodies
