"""A disk in memory that keeps its contract and not one promise more.

`kill` ends the process: the page cache survives it, so the next process (`reborn`) sees every byte
that was written. `power_cut` ends the machine: each file keeps what was synced and, of the rest,
all, nothing, some pages, or zeros; each name in a directory that was not synced is there or is not.

Every call that changes something is counted as one I/O (`ios`), every read likewise (`reads`), and
any of them can be made to go wrong (`plan`, `plan_read`). So a test can try a crash or an error at
every single one.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from random import Random
from typing import Final

from tests.simulation.errors import NodeDead

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


@dataclass(slots=True)
class _Change:
    """One change of a file that is not known to be durable: enough to undo it and do it again."""

    offset: int
    old: bytes
    new: bytes
    old_size: int
    new_size: int
    # A sync failed on it: it is never durable, whatever follows.
    doomed: bool = False
    # A later sync succeeded; it is kept here only because an older change is doomed.
    synced: bool = False

    def apply(self, data: bytearray) -> None:
        _resize(data, self.new_size)
        data[self.offset : self.offset + len(self.new)] = self.new

    def undo(self, data: bytearray) -> None:
        _resize(data, self.old_size)
        data[self.offset : self.offset + len(self.old)] = self.old


@dataclass(slots=True, eq=False)
class _FileNode:
    """A file's bytes as a read shows them, and what of them may be lost."""

    data: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)

    def change(self, offset: int, new: bytes, new_size: int) -> None:
        data = self.data
        old_size = len(data)
        old = bytes(data[min(offset, new_size) : max(offset + len(new), old_size)])
        if new_size >= old_size:
            old = bytes(data[offset : offset + len(new)])
        change = _Change(offset, old, new, old_size, new_size)
        change.apply(data)
        self.changes.append(change)

    def synced(self) -> None:
        if any(change.doomed for change in self.changes):
            for change in self.changes:
                change.synced = not change.doomed
        else:
            self.changes.clear()

    def doomed(self) -> None:
        for change in self.changes:
            if not change.synced:
                change.doomed = True

    def settle(self, random: Random) -> None:
        """Decide what a power cut leaves; it is durable then."""
        changes, self.changes = self.changes, []
        if not changes:
            return
        data = self.data
        for change in reversed(changes):
            change.undo(data)
        open_changes = [change for change in changes if not change.doomed and not change.synced]
        mode = random.choice(("all", "nothing", "pages", "pages", "zeros"))
        page_bytes = random.choice((512, 4096))
        size_steps = random.choice((0, len(open_changes), random.randint(0, len(open_changes))))
        kept_steps: dict[int, int] = {}
        step = 0
        for change in changes:
            if change.doomed:
                continue
            if change.synced or mode == "all":
                change.apply(data)
                continue
            step += 1
            if mode == "zeros":
                change.new = bytes(len(change.new))
                change.apply(data)
            elif mode == "pages":
                if step <= size_steps:
                    _resize(data, change.new_size)
                for offset, piece in _pages(change, page_bytes):
                    page = offset // page_bytes
                    if page not in kept_steps:
                        kept_steps[page] = random.randint(0, len(open_changes))
                    if step <= kept_steps[page] and offset + len(piece) <= len(data):
                        data[offset : offset + len(piece)] = piece


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    elif size > len(data):
        data.extend(bytes(size - len(data)))


def _pages(change: _Change, page_bytes: int) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(change.new):
        offset = change.offset + position
        length = min(page_bytes - offset % page_bytes, len(change.new) - position)
        yield offset, change.new[position : position + length]
        position += length


@dataclass(slots=True, eq=False)
class _DirectoryNode:
    entries: "dict[str, _FileNode | _DirectoryNode]" = field(default_factory=dict)


_Node = _FileNode | _DirectoryNode


@dataclass(slots=True)
class _Naming:
    """One change of names, in one or two directories: (directory, name, old, new)."""

    parts: list[tuple[_DirectoryNode, str, _Node | None, _Node | None]]

    def touches(self, directories: list[_DirectoryNode]) -> bool:
        return any(part[0] is directory for part in self.parts for directory in directories)

    def apply(self) -> None:
        for directory, name, _old, new in self.parts:
            _set_name(directory, name, new)

    def undo(self) -> None:
        for directory, name, old, _new in reversed(self.parts):
            _set_name(directory, name, old)


def _set_name(directory: _DirectoryNode, name: str, node: _Node | None) -> None:
    if node is None:
        directory.entries.pop(name, None)
    else:
        directory.entries[name] = node


class _Platter:
    """What outlives a process: the files, the names, and the chance that rules them."""

    def __init__(self, random: Random, capacity_bytes: int) -> None:
        self.random = random
        self.capacity_bytes = capacity_bytes
        self.root = _DirectoryNode()
        self.namings: list[_Naming] = []
        # Nodes that a name may still lead to after a power cut, though none does now.
        self.boots = 1
        self.locks: set[Path] = set()

    def used_bytes(self) -> int:
        return sum(len(node.data) for node in self.files())

    def files(self) -> list[_FileNode]:
        """Every file that has a name, or may have one after a power cut; each once."""
        found: dict[int, _FileNode] = {}
        roots: list[_Node] = [self.root]
        for naming in self.namings:
            roots += [node for part in naming.parts for node in part[2:] if node is not None]
        seen: set[int] = set()
        while roots:
            node = roots.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, _FileNode):
                found[id(node)] = node
            else:
                roots += node.entries.values()
        return list(found.values())

    def named_bytes(self) -> int:
        """What the files with a name take now; a file with two names is counted once."""
        found: dict[int, int] = {}
        waiting: list[_Node] = [self.root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, _FileNode):
                found[id(node)] = len(node.data)
            else:
                waiting += node.entries.values()
        return sum(found.values())

    def sync_names(self, directory: _DirectoryNode) -> None:
        """A journal commits what came before with it: also what shares a directory with it."""
        touched = [directory]
        left: list[_Naming] = []
        for naming in reversed(self.namings):
            if naming.touches(touched):
                touched += [part[0] for part in naming.parts]
            else:
                left.append(naming)
        self.namings = left[::-1]

    def settle(self) -> None:
        random = self.random
        for node in self.files():
            node.settle(random)
        namings, self.namings = self.namings, []
        for naming in reversed(namings):
            naming.undo()
        mode = random.choice(("all", "nothing", "prefix", "some"))
        prefix = random.randint(0, len(namings))
        for position, naming in enumerate(namings):
            if (
                mode == "all"
                or (mode == "prefix" and position < prefix)
                or (mode == "some" and random.random() < 0.5)
            ):
                naming.apply()
        self.boots += 1


class SimulatedFile:
    """An open file of a simulated disk."""

    def __init__(self, disk: "SimulatedDisk", node: _FileNode, path: Path, writable: bool) -> None:
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
        _platter: _Platter | None = None,
    ) -> None:
        self._platter = _platter if _platter is not None else _Platter(random, capacity_bytes)
        self._plan: dict[int, Fault] = {}
        self._read_plan: dict[int, Fault] = {}
        self._dead = False
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
            node = _FileNode()
            self._name([(directory, path.name, node)])
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
        file.write_at(0, data)
        file.fdatasync()
        file.close()
        self.rename(temporary, path)
        self.fsync_dir(path.parent)

    def exists(self, path: Path) -> bool:
        """Whether a file or directory has this name."""
        self._read(f"look for {path}")
        return self._find(path) is not None

    def is_dir(self, path: Path) -> bool:
        """Whether `path` is a directory."""
        self._read(f"look for {path}")
        return isinstance(self._find(path), _DirectoryNode)

    def list(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        self._read(f"list {path}")
        return sorted(self._directory(path).entries)

    def make_dirs(self, path: Path) -> None:
        """Make the directory and its parents durably; fine if it is there."""
        self._check_alive()
        for directory in [*reversed(path.parents), path]:
            node = self._find(directory)
            if node is None:
                with self._io(f"mkdir {directory}"):
                    parent = self._directory(directory.parent)
                    self._name([(parent, directory.name, _DirectoryNode())])
                self.fsync_dir(directory.parent)
            elif isinstance(node, _FileNode):
                raise FileExistsError(errno.EEXIST, "file exists", str(directory))

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or directory; an existing target file is replaced."""
        with self._io(f"rename {source} {target}"):
            node = self._find(source)
            if node is None:
                raise FileNotFoundError(errno.ENOENT, "no such file", str(source))
            directory = self._directory(target.parent)
            there = directory.entries.get(target.name)
            if isinstance(there, _DirectoryNode) and there is not node:
                raise IsADirectoryError(errno.EISDIR, "is a directory", str(target))
            self._name(
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
            self._name([(directory, target.name, node)])

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        """Remove a file's name."""
        if missing_ok and self._find(path) is None:
            self._check_alive()
            return
        with self._io(f"unlink {path}"):
            self._file(path)
            self._name([(self._directory(path.parent), path.name, None)])

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all in it; fine if it is not there."""
        self._check_alive()
        node = self._find(path)
        if node is None:
            return
        if isinstance(node, _FileNode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(path))
        for name in sorted(node.entries):
            if isinstance(node.entries[name], _DirectoryNode):
                self.remove_tree(path / name)
            else:
                self.unlink(path / name)
        with self._io(f"rmdir {path}"):
            self._name([(self._directory(path.parent), path.name, None)])

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

    def _find(self, path: Path) -> _Node | None:
        assert path.is_absolute(), f"{path} is not absolute"
        node: _Node | None = self._platter.root
        for name in path.parts[1:]:
            if not isinstance(node, _DirectoryNode):
                return None
            node = node.entries.get(name)
        return node

    def _file(self, path: Path) -> _FileNode:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory", str(path))
        if isinstance(node, _DirectoryNode):
            raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
        return node

    def _directory(self, path: Path) -> _DirectoryNode:
        node = self._find(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "no such file or directory", str(path))
        if isinstance(node, _FileNode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", str(path))
        return node

    def _name(self, changes: list[tuple[_DirectoryNode, str, _Node | None]]) -> None:
        naming = _Naming(
            [(directory, name, directory.entries.get(name), new) for directory, name, new in changes]
        )
        naming.apply()
        self._platter.namings.append(naming)
