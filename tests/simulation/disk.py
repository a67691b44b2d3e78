"""A disk in memory that keeps its contract and not one promise more.

`kill` ends the process: the page cache survives it, so the next process (`reborn`) sees every byte
that was written. `power_cut` ends the machine: each file keeps what was synced and, of the rest,
all, nothing, some pages, or zeros; each name in a directory that was not synced is there or is not.

Every call that changes something is counted as one I/O (`ios`), every read likewise (`reads`), and
any of them can be made to go wrong (`plan`, `plan_read`). So a test can try a crash or an error at
every single one.
"""

import errno
from enum import Enum
from pathlib import Path
from random import Random
from typing import Final

from tests.simulation.errors import NodeDead
from tests.simulation.platter import DirectoryNode, FileNode, Node, Platter

__all__ = ["Fault", "SimulatedDisk", "SimulatedFile"]

_UNLIMITED: Final = 1 << 50


class Fault(Enum):
    """What can go wrong at one I/O."""

    # An error; nothing was done. Of an fdatasync: the unsynced bytes will never be durable.
    FAIL = "fail"
    # The disk is full; nothing was done.
    FULL = "full"
    # An error after a part of the write was done; anything else just fails.
    TEAR = "tear"
    # The process ends before it, after it, or in the middle of the write.
    KILL_BEFORE = "kill before"
    KILL_AFTER = "kill after"
    KILL_TORN = "kill torn"


class SimulatedFile:
    """An open file of a simulated disk."""

    def __init__(self, disk: "SimulatedDisk", node: FileNode, path: Path, writable: bool) -> None:
        self._disk = disk
        self._node = node
        self._path = path
        self._writable = writable
        self._closed = False

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`, or raise OSError."""
        self._check(write=True)
        data = bytes(data)
        with self._disk._io(f"write {self._path}") as fault:
            if fault in (Fault.TEAR, Fault.KILL_TORN):
                data = data[: self._disk._platter.random.randrange(len(data) + 1)]
            size = max(len(self._node.data), offset + len(data))
            self._disk._need(size - len(self._node.data))
            if offset > len(self._node.data):
                self._node.change(len(self._node.data), b"", offset)
            self._node.change(offset, data, size)

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only at the end of the file."""
        self._check(write=False)
        self._disk._read(f"read {self._path}")
        return bytes(self._node.data[offset : offset + length])

    def size(self) -> int:
        """The file's length in bytes."""
        self._check(write=False)
        return len(self._node.data)

    def preallocate(self, length: int) -> None:
        """Extend the file with zeros to `length` bytes; what it holds stays."""
        self._check(write=True)
        with self._disk._io(f"preallocate {self._path}"):
            size = len(self._node.data)
            if length > size:
                self._disk._need(length - size)
                self._node.change(size, b"", length)

    def truncate(self, length: int) -> None:
        """Cut the file to `length` bytes."""
        self._check(write=True)
        with self._disk._io(f"truncate {self._path}"):
            self._disk._need(length - len(self._node.data))
            self._node.change(length, b"", length)

    def fdatasync(self) -> None:
        """Make all bytes written so far durable."""
        self._check(write=False)
        try:
            with self._disk._io(f"fdatasync {self._path}"):
                self._node.synced()
        except OSError:
            self._node.doomed()
            raise

    def close(self) -> None:
        """Close; a second call does nothing."""
        self._disk._check_alive()
        self._closed = True

    def _check(self, *, write: bool) -> None:
        self._disk._check_alive()
        if self._closed or (write and not self._writable):
            raise OSError(errno.EBADF, "bad file descriptor", str(self._path))


class SimulatedLock:
    """A lock that dies with the disk's process."""

    def __init__(self, disk: "SimulatedDisk", path: Path) -> None:
        self._disk = disk
        self._path: Path | None = path

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        self._disk._check_alive()
        if self._path is not None:
            self._disk._platter.locks.discard(self._path)
            self._path = None


class _Io:
    """The two sides of one I/O: what goes wrong before it, and what after."""

    def __init__(self, disk: "SimulatedDisk", what: str) -> None:
        self._disk = disk
        self._what = what
        self._fault: Fault | None = None

    def __enter__(self) -> Fault | None:
        disk = self._disk
        disk._check_alive()
        self._fault = fault = disk._plan.pop(disk.ios, None)
        disk.ios += 1
        if disk.trace is not None:
            disk.trace.append(self._what)
        writes = self._what.startswith("write ")
        if fault is Fault.KILL_BEFORE or (fault is Fault.KILL_TORN and not writes):
            disk.kill()
            raise NodeDead(f"killed before: {self._what}")
        if fault is Fault.FAIL or (fault is Fault.TEAR and not writes):
            raise OSError(errno.EIO, "input/output error", self._what)
        if fault is Fault.FULL:
            raise OSError(errno.ENOSPC, "no space left on device", self._what)
        return fault

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is not None:
            return
        if self._fault in (Fault.KILL_AFTER, Fault.KILL_TORN):
            self._disk.kill()
            raise NodeDead(f"killed at: {self._what}")
        if self._fault is Fault.TEAR:
            raise OSError(errno.EIO, "input/output error", self._what)


class SimulatedDisk:
    """`Disk` in memory, as one process sees it."""

    def __init__(
        self,
        random: Random,
        *,
        capacity_bytes: int = _UNLIMITED,
        _platter: Platter | None = None,
    ) -> None:
        self._platter = _platter if _platter is not None else Platter(random, capacity_bytes)
        self._plan: dict[int, Fault] = {}
        self._read_plan: dict[int, Fault] = {}
        self._dead = False
        # Directories that this process has made durable.
        self._durable: set[Path] = set()
        self.ios = 0
        self.reads = 0
        # A list here collects a line for each I/O.
        self.trace: list[str] | None = None

    # What a test does to it.

    def plan(self, after: int, fault: Fault) -> None:
        """Let the I/O go wrong that comes after `after` more of them (0 = the next)."""
        self._plan[self.ios + after] = fault

    def plan_read(self, after: int, fault: Fault = Fault.FAIL) -> None:
        """Let the read go wrong that comes after `after` more of them (0 = the next)."""
        self._read_plan[self.reads + after] = fault

    @property
    def planned(self) -> int:
        """How many planned faults have not come yet."""
        return len(self._plan) + len(self._read_plan)

    @property
    def dead(self) -> bool:
        """Whether the process of this disk has ended."""
        return self._dead

    def kill(self) -> None:
        """End the process: every call raises NodeDead from now on, and nothing is lost."""
        if not self._dead:
            self._dead = True
            self._platter.locks.clear()

    def power_cut(self) -> None:
        """End the machine: what was not synced may be lost, in any part."""
        self.kill()
        self._platter.settle()

    def reborn(self) -> "SimulatedDisk":
        """The same disk, as the next process sees it."""
        assert self._dead, "the process lives"
        return SimulatedDisk(self._platter.random, _platter=self._platter)

    def set_capacity(self, capacity_bytes: int) -> None:
        """Change the size of the disk; what it holds stays."""
        self._platter.capacity_bytes = capacity_bytes

    def flip(self, path: Path, offset: int, bits: int = 0x01) -> None:
        """Damage one byte of a file, on the platter as well as in the page cache."""
        node = self._file(path)
        node.data[offset] ^= bits
        for change in node.changes:
            if change.offset <= offset < change.offset + len(change.new):
                piece = bytearray(change.new)
                piece[offset - change.offset] ^= bits
                change.new = bytes(piece)

    # What the process may do.

    def create(self, path: Path) -> SimulatedFile:
        """Open a new file for reading and writing; FileExistsError if it is there."""
        with self._io(f"create {path}"):
            directory = self._directory(path.parent)
            if path.name in directory.entries:
                raise FileExistsError(errno.EEXIST, "file exists", str(path))
            node = FileNode()
            self._platter.name([(directory, path.name, node)])
        return SimulatedFile(self, node, path, True)

    def open(self, path: Path, *, writable: bool = False) -> SimulatedFile:
        """Open an existing file; FileNotFoundError if it is not there."""
        self._read(f"open {path}")
        return SimulatedFile(self, self._file(path), path, writable)

    def read_bytes(self, path: Path) -> bytes:
        """Return the whole file."""
        self._read(f"read {path}")
        return bytes(self._file(path).data)

    def write_atomic(self, path: Path, data: bytes) -> None:
        """Replace `path` durably: temporary file, fsync, rename, fsync of the directory."""
        temporary = path.with_name(path.name + ".tmp")
        self.unlink(temporary, missing_ok=True)
        file = self.create(temporary)
        try:
            file.write_at(0, data)
            file.fdatasync()
            file.close()
            self.rename(temporary, path)
        except OSError:
            self.unlink(temporary, missing_ok=True)
            raise
        self.fsync_dir(path.parent)

    def exists(self, path: Path) -> bool:
        """Whether a file or directory has this name."""
        self._read(f"look for {path}")
        return self._find(path) is not None

    def is_dir(self, path: Path) -> bool:
        """Whether `path` is a directory."""
        self._read(f"look for {path}")
        return isinstance(self._find(path), DirectoryNode)

    def list(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        self._read(f"list {path}")
        return sorted(self._directory(path).entries)

    def make_dir(self, path: Path) -> None:
        """Make a directory; its name, or the next one, is durable with its parent's next sync."""
        with self._io(f"mkdir {path}"):
            if self._find(path) is not None:
                raise FileExistsError(errno.EEXIST, "file exists", str(path))
            self._platter.name([(self._directory(path.parent), path.name, DirectoryNode())])
        self._durable.discard(path)

    def make_dirs(self, path: Path) -> None:
        """Make the directory and its parents durably; fine if it is there."""
        self._check_alive()
        for directory in [*reversed(path.parents), path][1:]:
            node = self._find(directory)
            if isinstance(node, FileNode):
                raise FileExistsError(errno.EEXIST, "file exists", str(directory))
            if node is None:
                with self._io(f"mkdir {directory}"):
                    parent = self._directory(directory.parent)
                    self._platter.name([(parent, directory.name, DirectoryNode())])
                self._durable.discard(directory)
            if directory not in self._durable:
                # Another process may have made it and died before it was durable.
                self.fsync_dir(directory.parent)
                self._durable.add(directory)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or directory; an existing target file is replaced."""
        with self._io(f"rename {source} {target}"):
            node = self._find(source)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
            directory = self._directory(target.parent)
            there = directory.entries.get(target.name)
            if isinstance(there, DirectoryNode) and there is not node:
                raise IsADirectoryError(errno.EISDIR, "is a directory", str(target))
            self._platter.name(
                [
                    (directory, target.name, node),
                    (self._directory(source.parent), source.name, None),
                ]
                if source != target
                else []
            )

    def link(self, source: Path, target: Path) -> None:
        """Give the file a second name."""
        with self._io(f"link {source} {target}"):
            node = self._file(source)
            directory = self._directory(target.parent)
            if target.name in directory.entries:
                raise FileExistsError(errno.EEXIST, "file exists", str(target))
            self._platter.name([(directory, target.name, node)])

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        """Remove a file's name."""
        if missing_ok and self._find(path) is None:
            self._check_alive()
            return
        with self._io(f"unlink {path}"):
            self._file(path)
            self._platter.name([(self._directory(path.parent), path.name, None)])

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all in it; fine if it is not there."""
        self._check_alive()
        node = self._find(path)
        if node is None:
            return
        if isinstance(node, FileNode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(path))
        for name in sorted(node.entries):
            if isinstance(node.entries[name], DirectoryNode):
                self.remove_tree(path / name)
            else:
                self.unlink(path / name)
        with self._io(f"rmdir {path}"):
            self._platter.name([(self._directory(path.parent), path.name, None)])

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        with self._io(f"fsync_dir {path}"):
            self._platter.sync_names(self._directory(path))

    def free_bytes(self, path: Path) -> tuple[int, int]:
        """Return (free, total) bytes of the file system that holds `path`."""
        self._check_alive()
        total = self._platter.capacity_bytes
        return max(0, total - self._platter.named_bytes()), total

    def lock(self, path: Path) -> SimulatedLock:
        """Lock a file, made if need be; BlockingIOError if another process holds it."""
        self._check_alive()
        if path in self._platter.locks:
            raise BlockingIOError(errno.EAGAIN, "locked by another process", str(path))
        if self._find(path) is None:
            self.create(path).close()
        self._file(path)
        self._platter.locks.add(path)
        return SimulatedLock(self, path)

    def boot_id(self) -> str:
        """A string that changes whenever the machine starts anew."""
        self._check_alive()
        return f"simulated-boot-{self._platter.boots}"

    # Inside.

    def _io(self, what: str) -> _Io:
        return _Io(self, what)

    def _read(self, what: str) -> None:
        self._check_alive()
        fault = self._read_plan.pop(self.reads, None)
        self.reads += 1
        if fault in (Fault.KILL_BEFORE, Fault.KILL_AFTER, Fault.KILL_TORN):
            self.kill()
            raise NodeDead(f"killed at: {what}")
        if fault is not None:
            raise OSError(errno.EIO, "input/output error", what)

    def _check_alive(self) -> None:
        if self._dead:
            raise NodeDead("the process of this disk has ended")

    def _need(self, more_bytes: int) -> None:
        platter = self._platter
        if (
            more_bytes > 0
            and platter.capacity_bytes < _UNLIMITED
            and platter.named_bytes() + more_bytes > platter.capacity_bytes
        ):
            raise OSError(errno.ENOSPC, "no space left on device")

    def _find(self, path: Path) -> Node | None:
        assert path.is_absolute(), f"{path} is not absolute"
        node: Node | None = self._platter.root
        for name in path.parts[1:]:
            if not isinstance(node, DirectoryNode):
                return None
            node = node.entries.get(name)
        return node

    def _file(self, path: Path) -> FileNode:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory", str(path))
        if isinstance(node, DirectoryNode):
            raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
        return node

    def _directory(self, path: Path) -> DirectoryNode:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory", str(path))
        if isinstance(node, FileNode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(path))
        return node
