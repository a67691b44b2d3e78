"""Rows in memory, under the contract of LevelDB: the engine of the simulator.

It keeps to the `Disk` seam, so a simulated power loss takes what was not flushed,
and all that the layers above can see is the same: after a crash it is at the last
flush, or later if it flushed by itself as LevelDB does when a buffer is full.
"""

import errno
import threading
from bisect import bisect_left, insort
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from struct import Struct
from typing import Final

import google_crc32c

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.checkpoints import publish, read_checkpoint, temporary_path, write_new
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import (
    STATE_KEY,
    CheckpointInfo,
    EngineClosed,
    ReplicaState,
    cuts_between,
    in_chunks,
)

__all__ = ["MemoryEngine", "MemoryFactory", "MemorySnapshot"]

_ROWS_FILE: Final = "rows"
_MAGIC: Final = b"pegaskv memory engine 1\n"
_LENGTHS: Final = Struct(">II")
_CRC: Final = Struct(">I")
# One write in so many is followed by a flush of the engine's own, if it was given chance.
_WRITES_PER_FLUSH: Final = 16


class MemoryFactory:
    """Opens memory engines; with `random` they flush by themselves now and then."""

    def __init__(self, disk: Disk, random: Random | None = None) -> None:
        self._disk = disk
        self._random = random

    def open(self, path: Path) -> "MemoryEngine":
        """Open or create the engine in directory `path`.

        Raises:
            CorruptionError: its file is damaged.

        """
        self._disk.make_dirs(path)
        file = path / _ROWS_FILE
        rows = _decode(self._disk.read_bytes(file), file) if self._disk.exists(file) else {}
        return MemoryEngine(self._disk, path, rows, self._random)

    def open_checkpoint(self, checkpoint: Path, path: Path) -> "MemoryEngine":
        """Open a new engine in the new directory `path` from a published checkpoint.

        Raises:
            CorruptionError: the checkpoint is not as it was published.
            FileExistsError: `path` is there already.

        """
        disk = self._disk
        if disk.exists(path):
            raise FileExistsError(errno.EEXIST, "engine is there already", str(path))
        read_checkpoint(disk, checkpoint)
        data = disk.read_bytes(checkpoint / _ROWS_FILE)
        _decode(data, checkpoint / _ROWS_FILE)
        temporary = temporary_path(path)
        disk.remove_tree(temporary)
        disk.make_dirs(temporary)
        write_new(disk, temporary / _ROWS_FILE, data)
        disk.fsync_dir(temporary)
        disk.rename(temporary, path)
        disk.fsync_dir(path.parent)
        return self.open(path)

    def salvage(self, path: Path, target: Path, known: ReplicaState) -> list[tuple[bytes, bytes]]:
        """Copy the rows, which have one checksum: all of them or none.

        Raises:
            CorruptionError: its file is damaged.

        """
        engine = self.open(target)
        rows = self.open(path)._rows.by_key
        state = max(ReplicaState.decode(rows.get(STATE_KEY)), known, key=lambda each: each.decree)
        engine.write([part for pair in rows.items() for part in pair], state)
        engine.close()
        return []


class _Rows:
    """A dictionary with its keys in order; frozen once a snapshot holds it."""

    __slots__ = ("by_key", "keys")

    def __init__(self, by_key: dict[bytes, bytes], keys: list[bytes] | None = None) -> None:
        self.by_key = by_key
        self.keys = sorted(by_key) if keys is None else keys

    def copy(self) -> "_Rows":
        return _Rows(dict(self.by_key), list(self.keys))

    def apply(self, key: bytes, row: bytes | None) -> None:
        if row is None:
            if self.by_key.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]
            return
        if key not in self.by_key:
            insort(self.keys, key)
        self.by_key[key] = row


class MemoryEngine:
    """One replica's rows in a dictionary."""

    def __init__(
        self, disk: Disk, path: Path, rows: dict[bytes, bytes], random: Random | None
    ) -> None:
        self.path = path
        self._disk = disk
        self._random = random
        self._rows = _Rows(rows)
        # The rows belong to a snapshot too: they are copied before the next write.
        self._shared = False
        self._lock = threading.Lock()
        self._state = ReplicaState.decode(rows.get(STATE_KEY)).encode()
        self._flushed: _Rows | None = None
        self._broken: OSError | None = None
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        """Return the stored row.

        Raises:
            EngineClosed: the engine was closed.

        """
        self._check_open()
        return self._rows.by_key.get(key)

    def write(self, rows: list[bytes | None], state: ReplicaState) -> None:
        """Apply a flat list [key, row, key, None = remove, ...] and the state, atomically.

        Raises:
            OSError: an earlier flush failed; no more writes until it is opened again.
            EngineClosed: the engine was closed.

        """
        self._check_open()
        self._check_sound()
        with self._lock:
            if self._shared:
                self._rows = self._rows.copy()
                self._shared = False
            pairs = iter(rows)
            for key in pairs:
                assert key is not None
                self._rows.apply(bytes(key), next(pairs))
            self._state = state.encode()
            self._rows.apply(STATE_KEY, self._state)
        if self._random is not None and self._random.randrange(_WRITES_PER_FLUSH) == 0:
            # As with LevelDB, it is the next write that hears of a failure.
            with suppress(OSError):
                self.flush()

    def snapshot(self) -> "MemorySnapshot":
        """Return the engine as it is now.

        Raises:
            EngineClosed: the engine was closed.

        """
        self._check_open()
        return MemorySnapshot(self._freeze())

    def state(self) -> ReplicaState:
        """Return the state of the last write."""
        return ReplicaState.decode(self._state)

    def flush(self) -> int:
        """Make everything written before the call durable; return its decree.

        Raises:
            OSError: it did not become durable; the engine takes no more writes.
            EngineClosed: the engine was closed.

        """
        self._check_open()
        self._check_sound()
        rows = self._freeze()
        if rows is not self._flushed:
            try:
                self._disk.write_atomic(self.path / _ROWS_FILE, _encode(rows))
            except OSError as error:
                self._broken = error
                raise
            self._flushed = rows
        return _state_of(rows).decree

    def checkpoint(self, target: Path) -> CheckpointInfo:
        """Flush, and publish a copy as the new directory `target`.

        Raises:
            FileExistsError: `target` is there already.
            OSError: the disk refused; nothing was published.
            EngineClosed: the engine was closed.

        """
        disk = self._disk
        self._check_open()
        if disk.exists(target):
            raise FileExistsError(errno.EEXIST, "checkpoint is there already", str(target))
        self.flush()
        rows = self._freeze()
        data = _encode(rows)
        temporary = temporary_path(target)
        disk.remove_tree(temporary)
        disk.make_dir(temporary)
        write_new(disk, temporary / _ROWS_FILE, data)
        return publish(disk, target, _state_of(rows), [(_ROWS_FILE, len(data))])

    def compact(self, first: bytes = b"", last: bytes | None = None) -> None:
        """Nothing: removed rows take no space."""
        self._check_open()

    def compaction_cuts(self, step_bytes: int) -> list[bytes]:
        """Return keys between which there are about `step_bytes` of keys and rows each."""
        self._check_open()
        rows = sorted(self._rows.by_key.items())
        return cuts_between(((key, len(key) + len(row)) for key, row in rows), step_bytes)

    def size_bytes(self) -> int:
        """The bytes of all keys and rows."""
        self._check_open()
        return sum(len(key) + len(row) for key, row in self._rows.by_key.items())

    def calm(self) -> bool:
        """Always: no write waits."""
        return True

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        if self._closed:
            return
        # What cannot be flushed is in the mutation log.
        with suppress(OSError):
            self.flush()
        self._closed = True

    def _freeze(self) -> _Rows:
        # The rows as they are; the next write works on a copy.
        with self._lock:
            self._shared = True
            return self._rows

    def _check_open(self) -> None:
        if self._closed:
            raise EngineClosed(f"engine {self.path} is closed")

    def _check_sound(self) -> None:
        # Errors stay until the engine is opened again, as LevelDB's do.
        if self._broken is not None:
            raise OSError(self._broken.errno, f"an earlier flush failed: {self._broken}")


class MemorySnapshot:
    """The engine as it was at one moment."""

    def __init__(self, rows: _Rows) -> None:
        self._rows: _Rows | None = rows

    def get(self, key: bytes) -> bytes | None:
        """Return the row as it was.

        Raises:
            EngineClosed: the snapshot was closed.

        """
        return self._open_rows().by_key.get(key)

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False, marks: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) with start <= key < stop (b"" = no end) in key order, or downward.

        Removed rows are in nobody's way here, so there are no marks.

        Raises:
            EngineClosed: the snapshot was closed.

        """
        keys = self._open_rows().keys
        first = bisect_left(keys, start)
        end = bisect_left(keys, stop) if stop else len(keys)
        positions = range(first, end)
        for position in reversed(positions) if reverse else positions:
            rows = self._open_rows()
            yield keys[position], rows.by_key[keys[position]]

    def chunks(self, start: bytes, stop: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield what `iterate` yields, as `in_chunks` cuts it; raises the same."""
        return in_chunks(self.iterate(start, stop))

    def close(self) -> None:
        """Let the snapshot go; a second call does nothing."""
        self._rows = None

    def _open_rows(self) -> _Rows:
        if self._rows is None:
            raise EngineClosed("snapshot is closed")
        return self._rows


def _state_of(rows: _Rows) -> ReplicaState:
    return ReplicaState.decode(rows.by_key.get(STATE_KEY))


def _encode(rows: _Rows) -> bytes:
    out = bytearray(_MAGIC)
    for key in rows.keys:
        row = rows.by_key[key]
        out += _LENGTHS.pack(len(key), len(row)) + key + row
    return bytes(out) + _CRC.pack(google_crc32c.value(bytes(out)))


def _decode(data: bytes, path: Path) -> dict[bytes, bytes]:
    body = data[: -_CRC.size]
    if not body.startswith(_MAGIC) or _CRC.pack(google_crc32c.value(body)) != data[-_CRC.size :]:
        raise CorruptionError(f"{path} is damaged")
    rows: dict[bytes, bytes] = {}
    at = len(_MAGIC)
    while at < len(body):
        key_length, row_length = _LENGTHS.unpack_from(body, at)
        at += _LENGTHS.size
        rows[body[at : at + key_length]] = body[at + key_length : at + key_length + row_length]
        at += key_length + row_length
    return rows
