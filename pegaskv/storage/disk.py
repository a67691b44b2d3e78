"""The only door to files.

All calls block and are meant for a worker thread, except that a small append
may run on the loop (it ends in the page cache). The simulated disk forgets what
was not synced, tears pages, fills up and fails on demand, so code above may rely
on nothing but what is said here:

* bytes written are durable after `File.fdatasync`, a name after `fsync_dir` of its
  directory, and neither before;
* `rename` replaces its target atomically, but is durable only after `fsync_dir`;
* after a failed `fdatasync` the file's unsynced bytes are gone, whatever a read shows.
"""

from pathlib import Path
from typing import Protocol

__all__ = ["Disk", "DiskLock", "File"]


class File(Protocol):
    """An open file."""

    def write_at(self, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`, or raise OSError."""
        ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return up to `length` bytes; fewer only at the end of the file."""
        ...

    def size(self) -> int:
        """The file's length in bytes."""
        ...

    def preallocate(self, length: int) -> None:
        """Extend the file with zeros to `length` bytes, so that writing them needs no space.

        What the file holds already stays as it is.
        """
        ...

    def truncate(self, length: int) -> None:
        """Cut the file to `length` bytes."""
        ...

    def fdatasync(self) -> None:
        """Make all bytes written so far durable."""
        ...

    def close(self) -> None:
        """Close; a second call does nothing."""
        ...


class DiskLock(Protocol):
    """An exclusive lock that ends with the process."""

    def release(self) -> None:
        """Give the lock up."""
        ...


class Disk(Protocol):
    """A file system below one or more directories; paths are absolute."""

    def create(self, path: Path) -> File:
        """Open a new file for reading and writing; FileExistsError if it is there."""
        ...

    def open(self, path: Path, *, writable: bool = False) -> File:
        """Open an existing file; FileNotFoundError if it is not there."""
        ...

    def read_bytes(self, path: Path) -> bytes:
        """Return the whole file."""
        ...

    def write_atomic(self, path: Path, data: bytes) -> None:
        """Replace `path` durably: temporary file, fsync, rename, fsync of the directory."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether a file or directory has this name."""
        ...

    def is_dir(self, path: Path) -> bool:
        """Whether `path` is a directory."""
        ...

    def list(self, path: Path) -> list[str]:
        """Return the names in a directory, sorted."""
        ...

    def make_dir(self, path: Path) -> None:
        """Make a directory; its name, or the next one, is durable with its parent's next sync."""
        ...

    def make_dirs(self, path: Path) -> None:
        """Make the directory and its parents durably; fine if it is there."""
        ...

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or directory; an existing target file is replaced."""
        ...

    def link(self, source: Path, target: Path) -> None:
        """Give the file a second name."""
        ...

    def unlink(self, path: Path, *, missing_ok: bool = False) -> None:
        """Remove a file's name."""
        ...

    def remove_tree(self, path: Path) -> None:
        """Remove a directory with all in it; fine if it is not there."""
        ...

    def fsync_dir(self, path: Path) -> None:
        """Make the names in a directory durable."""
        ...

    def free_bytes(self, path: Path) -> tuple[int, int]:
        """Return (free, total) bytes of the file system that holds `path`."""
        ...

    def lock(self, path: Path) -> DiskLock:
        """Lock a file, made if need be; BlockingIOError if another process holds it."""
        ...

    def boot_id(self) -> str:
        """A string that changes whenever the machine starts anew."""
        ...
