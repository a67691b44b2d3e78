"""The files of a LevelDB directory: made ready to open, linked to a checkpoint, restored.

Three rules come from what LevelDB does. Its own log may have holes after a power
loss, so it is removed before every open. It makes a new empty database where
CURRENT is missing and then removes all tables, so that is looked for first. It
gives a file number out again if the edit that used it was lost, and truncates
what has it: so a table is linked only when a *durable* MANIFEST names it.
"""

import errno
import re
from pathlib import Path
from typing import Final

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.checkpoints import publish, read_checkpoint, temporary_path, write_new
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import STATE_KEY, CheckpointInfo, ReplicaState, cuts_between
from pegaskv.storage.leveldb_manifest import LiveTable, ManifestReader, manifest_name
from pegaskv.storage.leveldb_table import find_newest

__all__ = ["TableLinker", "live_tables", "make_ready", "newest_log", "restore"]

_LOG_NAME: Final = re.compile(r"(\d+)\.log")
_TABLE_NAME: Final = re.compile(r"\d+\.(ldb|sst)")

# A compaction may remove a table between the look at MANIFEST and the link; each try
# starts from the newest version. More than four tries were never seen.
_LINK_TRIES_MAX: Final = 50
_COPY_BYTES: Final = 1024 * 1024


def newest_log(disk: Disk, path: Path) -> int:
    """Return the number of the log that the open LevelDB in `path` writes.

    Raises:
        OSError: there is none; somebody else removed it.

    """
    names = (_LOG_NAME.fullmatch(name) for name in disk.list(path))
    numbers = [int(match[1]) for match in names if match]
    if not numbers:
        raise FileNotFoundError(errno.ENOENT, "LevelDB's log was removed", str(path))
    return max(numbers)


def make_ready(disk: Disk, path: Path) -> None:
    """Bring the directory to where LevelDB may open it: no log, sound MANIFEST, all tables.

    Raises:
        CorruptionError: what is there must not be opened.

    """
    disk.make_dirs(path)
    names = disk.list(path)
    for name in names:
        if _LOG_NAME.fullmatch(name):
            disk.unlink(path / name)
    if "CURRENT" not in names:
        if any(_TABLE_NAME.fullmatch(name) for name in names):
            raise CorruptionError(f"{path} has tables and no CURRENT")
        return
    name = manifest_name(disk.read_bytes(path / "CURRENT"))
    if name not in names:
        raise CorruptionError(f"{path} has no {name}")
    reader = _read_manifest(disk, path / name)
    for table in reader.tables():
        _check_table(disk, path / table.name, table)


def live_tables(disk: Disk, path: Path) -> list[LiveTable]:
    """Return the tables of the closed database in `path`.

    Raises:
        CorruptionError: CURRENT or MANIFEST is missing or damaged.

    """
    try:
        name = manifest_name(disk.read_bytes(path / "CURRENT"))
        return _read_manifest(disk, path / name).tables()
    except FileNotFoundError as error:
        raise CorruptionError(f"{error.filename or path} is missing") from None


def _read_manifest(disk: Disk, path: Path) -> ManifestReader:
    reader = ManifestReader()
    data = disk.read_bytes(path)
    reader.advance(data)
    reader.check_end(data[reader.valid_bytes :])
    if reader.valid_bytes < len(data):
        # The end of an edit that was never synced: nothing depends on it yet.
        file = disk.open(path, writable=True)
        try:
            file.truncate(reader.valid_bytes)
            file.fdatasync()
        finally:
            file.close()
    return reader


def _check_table(disk: Disk, path: Path, table: LiveTable) -> None:
    # LevelDB opens with a table cut short, and finds out at some later read.
    try:
        file = disk.open(path)
    except FileNotFoundError:
        raise CorruptionError(f"{path} is missing") from None
    try:
        size = file.size()
    finally:
        file.close()
    if size != table.size:
        raise CorruptionError(f"{path} has {size} bytes instead of {table.size}")


class TableLinker:
    """Publishes checkpoints of one open LevelDB; remembers how far it has read MANIFEST."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk = disk
        self._path = path
        # LevelDB begins a new MANIFEST at every open and at no other time.
        self._manifest = path / manifest_name(disk.read_bytes(path / "CURRENT"))
        self._reader = ManifestReader()
        # So much of it is durable.
        self._synced = 0

    def checkpoint(self, target: Path) -> CheckpointInfo:
        """Link the live tables into the new directory `target`; flush before.

        Raises:
            FileExistsError: `target` is there already.
            OSError: the disk refused; nothing was published.

        """
        disk = self._disk
        if disk.exists(target):
            raise FileExistsError(errno.EEXIST, "checkpoint is there already", str(target))
        temporary = temporary_path(target)
        for left in range(_LINK_TRIES_MAX, 0, -1):
            disk.remove_tree(temporary)
            disk.make_dir(temporary)
            tables = self._live()
            try:
                for table in tables:
                    disk.link(self._path / table.name, temporary / table.name)
                break
            except FileNotFoundError:
                if left == 1:
                    raise
        manifest = self._prefix()
        write_new(disk, temporary / self._manifest.name, manifest)
        write_new(disk, temporary / "CURRENT", self._manifest.name.encode() + b"\n")
        files = [(table.name, table.size) for table in tables]
        files.append((self._manifest.name, len(manifest)))
        files.append(("CURRENT", len(self._manifest.name) + 1))
        # The tables' bytes were synced by LevelDB before its MANIFEST named them.
        return publish(disk, target, _state_in_tables(disk, temporary, tables), files)

    def first_unflushed_log(self) -> int:
        """Return the number below which all logs are in tables, durably."""
        self._live()
        assert self._reader.log_number is not None
        return self._reader.log_number

    def cuts(self, step_bytes: int) -> list[bytes]:
        """Return keys, in order, between which there are tables of about `step_bytes`."""
        sizes = sorted((table.first_key, table.size) for table in self._live())
        return cuts_between(sizes, step_bytes)

    def _live(self) -> list[LiveTable]:
        file = self._disk.open(self._manifest)
        try:
            start = self._reader.valid_bytes
            self._reader.advance(file.read_at(start, file.size() - start))
            if self._reader.valid_bytes > self._synced:
                # What a power loss could still take back must not be linked: see above.
                file.fdatasync()
                self._synced = self._reader.valid_bytes
        finally:
            file.close()
        return self._reader.tables()

    def _prefix(self) -> bytes:
        file = self._disk.open(self._manifest)
        try:
            return file.read_at(0, self._reader.valid_bytes)
        finally:
            file.close()


def _state_in_tables(disk: Disk, directory: Path, tables: list[LiveTable]) -> ReplicaState:
    # The newest state in any table: the exact end of what the checkpoint holds. Of one key the
    # newest is in the lowest level, and in level 0, where tables overlap, in the youngest. So
    # the first table that has it will do, and it is nearly always a small one.
    for table in sorted(tables, key=lambda table: (table.level, -table.number)):
        if not table.first_key <= STATE_KEY <= table.last_key:
            continue
        file = disk.open(directory / table.name)
        try:
            found = find_newest(file.read_at, table.size, STATE_KEY)
        finally:
            file.close()
        if found is not None:
            return ReplicaState.decode(found[1])
    return ReplicaState()


def restore(disk: Disk, checkpoint: Path, path: Path) -> None:
    """Make the new directory `path` from a published checkpoint, ready to be opened.

    Tables are linked, or copied where they cannot be; they are never written in place.

    Raises:
        CorruptionError: the checkpoint is not as it was published.
        FileExistsError: `path` is there already.

    """
    if disk.exists(path):
        raise FileExistsError(errno.EEXIST, "engine is there already", str(path))
    info, _ = read_checkpoint(disk, checkpoint)
    temporary = temporary_path(path)
    disk.remove_tree(temporary)
    disk.make_dirs(temporary)
    for name, _ in info.files:
        if _TABLE_NAME.fullmatch(name):
            _link_or_copy(disk, checkpoint / name, temporary / name)
        else:
            write_new(disk, temporary / name, disk.read_bytes(checkpoint / name))
    disk.fsync_dir(temporary)
    disk.rename(temporary, path)
    disk.fsync_dir(path.parent)


def _link_or_copy(disk: Disk, source: Path, target: Path) -> None:
    try:
        disk.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        _copy(disk, source, target)


def _copy(disk: Disk, source: Path, target: Path) -> None:
    reading = disk.open(source)
    try:
        writing = disk.create(target)
        try:
            at = 0
            while piece := reading.read_at(at, _COPY_BYTES):
                writing.write_at(at, piece)
                at += len(piece)
            writing.fdatasync()
        finally:
            writing.close()
    finally:
        reading.close()
