"""A checkpoint on its way from one server to another: kept for its readers, and put together.

The server that gives it keeps hard links beside the replica, under a name of their own: the
published checkpoint is replaced by the next flush. The server that takes it puts the files
together in a directory beside the replica, which is not touched before all of them are whole
(`DataDirectory.install_learned`).

Each page goes with a digest of its bytes and its place, taken where it is read and compared
before it is written: so a copy begins at once, however large it is, no page is read twice,
and none is believed that was meant for elsewhere. All methods block.
"""

from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final

import xxhash

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.checkpoints import CHECKPOINT_FILE, publish, read_checkpoint, temporary_path
from pegaskv.storage.disk import Disk, File
from pegaskv.storage.engine import CheckpointInfo, Engine, EngineFactory, ReplicaState

__all__ = ["CopiedCheckpoint", "KeptCheckpoint", "kept_name", "page_digest", "remove_unfinished"]

_CHECKPOINT: Final = Path("checkpoint") / "1"


def page_digest(name: str, offset: int, data: bytes) -> bytes:
    """Return xxh3_128 of a piece of a file and of where it belongs."""
    digest = xxhash.xxh3_128(name.encode() + b"\0" + offset.to_bytes(8, "big"))
    digest.update(data)
    return digest.digest()


def kept_name(random: Random) -> str:
    """Return a name for a checkpoint that is kept, which no other one ever had."""
    return f"learn-{random.getrandbits(64):016x}"


class KeptCheckpoint:
    """A checkpoint of hard links that stays until `remove`, whatever is flushed meanwhile."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.state = ReplicaState()
        # (name, bytes)
        self.files: tuple[tuple[str, int], ...] = ()
        self._disk = disk

    def make(self, engine: Engine) -> None:
        """Flush the engine and link its tables; the state is read from them.

        Raises:
            OSError, CorruptionError: there is no checkpoint.

        """
        self._disk.make_dirs(self.path.parent)
        engine.checkpoint(self.path)
        info, self.state = read_checkpoint(self._disk, self.path)
        self.files = info.files

    def knows(self, name: str) -> bool:
        """Whether it has a file of this name."""
        return any(name == each for each, _ in self.files)

    def read(self, name: str, offset: int, length: int) -> tuple[bytes, bytes]:
        """Return a piece of a file and its digest.

        Raises:
            FileNotFoundError: the checkpoint was removed.
            OSError: the disk refused.

        """
        file = self._disk.open(self.path / name)
        try:
            data = file.read_at(offset, length)
        finally:
            file.close()
        return data, page_digest(name, offset, data)

    def remove(self) -> None:
        """Give the links up; what a failure leaves is removed by the next start."""
        with suppress(OSError):
            self._disk.remove_tree(temporary_path(self.path))
            self._disk.remove_tree(self.path)


class CopiedCheckpoint:
    """A checkpoint of another server as it is put together under `path`, page by page.

    Pages of one file come in order; a file that was begun begins anew at offset 0.
    """

    def __init__(
        self, disk: Disk, path: Path, name: str, state: ReplicaState, files: list[tuple[str, int]]
    ) -> None:
        self.name = name
        self.state = state
        self.files = files
        self.bytes = sum(size for _, size in files)
        # What is durable and complete.
        self.whole: set[str] = set()
        # Bytes in files that are whole, and in the one at hand.
        self.copied = 0
        self._disk = disk
        self._path = path
        self._target = path / _CHECKPOINT
        self._file: File | None = None
        self._end = 0
        _check_names(files)

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Which files are not whole yet."""
        return [(name, size) for name, size in self.files if name not in self.whole]

    def begin(self) -> None:
        """Make room; what is left of another copy goes."""
        self.whole.clear()
        self.copied = 0
        remove_unfinished(self._disk, self._path)
        self._disk.make_dirs(temporary_path(self._target))

    def is_there(self) -> bool:
        """Whether what was copied before still lies where it was put."""
        return self._disk.exists(temporary_path(self._target))

    def write(self, name: str, offset: int, data: bytes, digest: bytes) -> None:
        """Write a page.

        Raises:
            CorruptionError: it is not what was read there, or pages are missing before it.
            OSError: the disk refused.

        """
        if digest != page_digest(name, offset, data):
            raise CorruptionError(f"the copy of {name} at {offset} is not what was read")
        path = temporary_path(self._target) / name
        if offset == 0:
            self.close()
            self._disk.unlink(path, missing_ok=True)
            self._file = self._disk.create(path)
            self._end = 0
            self.copied = sum(size for each, size in self.files if each in self.whole)
        if self._file is None or self._end != offset:
            raise CorruptionError(f"the copy of {name} lacks what is before {offset}")
        self._file.write_at(offset, data)
        self._end += len(data)
        self.copied += len(data)

    def finish(self, name: str) -> None:
        """Make the file at hand durable.

        Raises:
            CorruptionError: it is not complete.
            OSError: the disk refused.

        """
        file, size = self._file, dict(self.files)[name]
        if file is None or self._end != size:
            raise CorruptionError(f"the copy of {name} has not {size} bytes")
        file.fdatasync()
        self.close()
        self.whole.add(name)

    def close(self) -> None:
        """Close the file at hand; it is not whole."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def publish(self) -> CheckpointInfo:
        """All files are whole: make a checkpoint of them, unless it is one already."""
        assert not self.missing
        self.close()
        if self._disk.exists(self._target):
            return read_checkpoint(self._disk, self._target)[0]
        # An attempt that the disk refused may have left this.
        self._disk.unlink(temporary_path(self._target) / CHECKPOINT_FILE, missing_ok=True)
        return publish(self._disk, self._target, self.state, self.files)

    def prove(self, factory: EngineFactory) -> None:
        """Make the engine of it that takes the old one's place; it is closed.

        Raises:
            CorruptionError: the tables do not open, or are not at the state that was named.
            OSError: the disk refused.

        """
        engine_path = self._path / "engine"
        self._disk.remove_tree(engine_path)
        engine = factory.open_checkpoint(self._target, engine_path)
        try:
            state = engine.state()
        finally:
            engine.close()
        if state != self.state:
            raise CorruptionError(f"the copied tables are at {state}, not at {self.state}")


def remove_unfinished(disk: Disk, path: Path) -> None:
    """Remove a replica that was being put together; it is not mistaken for a whole one.

    Raises:
        OSError: the disk refused.

    """
    if not disk.exists(path):
        return
    if disk.exists(path / "manifest"):
        # With it a start takes it for whole.
        disk.unlink(path / "manifest")
        disk.fsync_dir(path)
    disk.remove_tree(path)


def _check_names(files: list[tuple[str, int]]) -> None:
    names = [name for name, _ in files]
    for name, size in files:
        if "/" in name or name in ("", ".", "..", CHECKPOINT_FILE) or "\0" in name or size < 0:
            raise CorruptionError(f"a checkpoint has no file {name!r} of {size} bytes")
    if len(set(names)) != len(names):
        raise CorruptionError("a checkpoint has each file once")
