"""Rows in LevelDB; its three files alone import plyvel. `get` and `write` are on the hot path.

LevelDB is a cache of the mutation log, so nothing is synced but by `flush`, and
LevelDB's own log is removed before every open: the tables alone are the truth, and
they are always an exact prefix. Every block that is read has its checksum compared.

Closing a handle while another thread is inside it ends the process. So each engine
owns its handle, and every operation is counted while it lasts; `close` refuses new
ones, waits for those under way, and only then closes. The counter is a list: its
`append` and `pop` are atomic and cost 20 ns each, a lock five times as much. An open
snapshot counts until it is closed.
"""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import plyvel

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import STATE_KEY, CheckpointInfo, EngineClosed, ReplicaState
from pegaskv.storage.leveldb_errors import translate, translated
from pegaskv.storage.leveldb_files import TableLinker, make_ready, newest_log, restore
from pegaskv.storage.leveldb_marks import Marks, is_marked
from pegaskv.storage.leveldb_salvage import Salvage
from pegaskv.storage.leveldb_snapshot import LevelDBSnapshot
from pegaskv.storage.options import StorageOptions

__all__ = ["LevelDBEngine", "LevelDBFactory"]

# LevelDB delays each write at 8 files in level 0, and stops them all at 12.
_LEVEL0_FILES_CALM: Final = 6
# How much may be written before `calm` looks again.
_SAMPLE_BYTES: Final = 1024 * 1024
# What a row takes in memory beyond its bytes in a batch: a node and its alignment.
_BYTES_PER_ROW: Final = 32
# How much of a damaged engine is copied in one batch.
_SALVAGE_BYTES: Final = 256 * 1024
_CACHE_SHARE_MIN: Final = 512 * 1024
# Above every key, reserved ones included.
_END: Final = b"\xff" * 16
_DRAIN_POLL_S: Final = 0.001
_DRAIN_POLLS_MAX: Final = 30_000
# Beside a thread that only writes, one in forty flushes does nothing.
_FLUSH_TRIES_MAX: Final = 100


class LevelDBFactory:
    """Opens LevelDB engines and deals out one budget of block cache among them.

    Each engine gets an eighth of what is left of the budget, and at most a sixteenth of
    all: few partitions have large caches, and many stay inside the budget, but for the
    512 KiB that everyone gets.
    """

    def __init__(self, disk: Disk, options: StorageOptions | None = None) -> None:
        self._disk = disk
        self._options = options or StorageOptions()
        self._cache_left = self._options.block_cache_bytes
        self._open: set[Path] = set()
        # One entry for each flush or compaction that was asked for and is under way.
        self._working: list[None] = []
        self._lock = threading.Lock()

    def open(self, path: Path) -> "LevelDBEngine":
        """Open or create the engine in directory `path`.

        Raises:
            CorruptionError: the tables do not open.
            OSError: the disk refused, or another engine has the directory open.

        """
        cache = self._admit(path)
        try:
            make_ready(self._disk, path)
            return LevelDBEngine(
                self._disk,
                path,
                self._options,
                cache,
                self._working,
                lambda: self._dismiss(path, cache),
            )
        except BaseException:
            self._dismiss(path, cache)
            raise

    def open_checkpoint(self, checkpoint: Path, path: Path) -> "LevelDBEngine":
        """Open a new engine in the new directory `path` from a published checkpoint.

        Raises:
            CorruptionError: the checkpoint is not as it was published.
            FileExistsError: `path` is there already.

        """
        restore(self._disk, checkpoint, path)
        return self.open(path)

    def salvage(self, path: Path, target: Path, known: ReplicaState) -> list[tuple[bytes, bytes]]:
        """Make a new engine in the new directory `target` of what is left of the one in `path`.

        Of a key that a damaged block may have had, only what a younger table says is taken.
        Returns the ranges (first and last stored key) in which rows may be lost.

        Raises:
            CorruptionError: its MANIFEST is damaged, or nobody knows what it had reached.
            OSError: the disk refused; `target` may be there in part.

        """
        salvage = Salvage(self._disk, path)
        engine = self.open(target)
        try:
            state = ReplicaState()
            rows: list[bytes | None] = []
            size = 0
            for key, row in salvage.rows():
                if key == STATE_KEY:
                    state = ReplicaState.decode(row)
                    continue
                rows += (key, row)
                size += len(key) + len(row)
                if size >= _SALVAGE_BYTES:
                    engine.write(rows, known)
                    rows, size = [], 0
            if not max(state.decree, known.decree):
                raise CorruptionError(f"what {path} had reached is lost")
            engine.write(rows, max(state, known, key=lambda each: each.decree))
            engine.flush()
        finally:
            engine.close()
        return [(each.first, each.last) for each in salvage.damage]

    def _admit(self, path: Path) -> int:
        with self._lock:
            if path in self._open:
                # LevelDB would refuse too, but only after its log was removed.
                raise OSError(errno.EBUSY, "an engine is open in this directory", str(path))
            self._open.add(path)
            share = min(self._options.block_cache_bytes // 16, self._cache_left // 8)
            share = max(share, _CACHE_SHARE_MIN)
            self._cache_left -= share
            return share

    def _dismiss(self, path: Path, share: int) -> None:
        with self._lock:
            self._open.discard(path)
            self._cache_left += share


class LevelDBEngine:
    """One open LevelDB. `get` and `write` may run beside each other; two writes may not.

    `working` has an entry for each flush or compaction under way, of all engines on the disk.

    Invariant: `_get` and `_write_batch` are the handle's own methods until `close` has
    begun, and raise from then on; whoever loaded them before is in `_uses`.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        options: StorageOptions,
        cache_bytes: int,
        working: list[None],
        on_closed: Callable[[], None],
    ) -> None:
        self.path = path
        self._disk = disk
        self._working = working
        self._on_closed = on_closed
        with translated():
            self._db = plyvel.DB(
                str(path),
                create_if_missing=True,
                paranoid_checks=True,
                write_buffer_size=options.write_buffer_bytes,
                lru_cache_size=cache_bytes,
                max_open_files=options.open_files_max,
                block_size=options.block_bytes,
                bloom_filter_bits=options.bloom_bits,
                max_file_size=options.table_file_bytes,
            )
        try:
            with translated():
                stored = self._db.get(STATE_KEY, verify_checksums=True)
            self._encoded_state = ReplicaState.decode(stored).encode()
            self._linker = TableLinker(disk, path)
            self._log_number = newest_log(disk, path)
        except BaseException:
            self._db.close()
            raise
        self._uses: list[None] = []
        self._marks = Marks()
        self._closing = self._closed = False
        self._close_lock = threading.Lock()
        self._files_lock = threading.Lock()
        self._get: Callable[..., Any] = self._db.get
        self._write_batch: Callable[[], Any] = self._db.write_batch
        # Bytes of memory taken by all writes; at the last sample; when the memtable was new.
        self._written = 0
        self._sampled = 0
        self._switched = 0
        self._flushed: int = 0
        self._memtable_calm = options.write_buffer_bytes * 3 // 4
        self._calm = True

    def get(self, key: bytes) -> bytes | None:
        """Return the stored row.

        Raises:
            CorruptionError: the table that holds it is damaged.
            EngineClosed: `close` has begun.

        """
        uses = self._uses
        uses.append(None)
        try:
            # A mark is empty.
            return self._get(key, verify_checksums=True) or None
        except plyvel.Error as error:
            raise translate(error) from None
        finally:
            uses.pop()

    def write(self, rows: list[bytes | None], state: ReplicaState) -> None:
        """Apply a flat list [key, row, key, None = remove, ...] and the state, atomically.

        Raises:
            OSError: the engine takes no more writes until it is opened again.
            CorruptionError: likewise, since a compaction met a damaged table.
            EngineClosed: `close` has begun.

        """
        uses = self._uses
        uses.append(None)
        try:
            batch = self._write_batch()
            put = batch.put
            if self._marks.worn:
                self._marks.drop_worn(self._get, batch)
            pairs: Iterator[Any] = iter(rows)
            for key in pairs:
                row = next(pairs)
                if row is not None:
                    put(key, row)
                elif is_marked(key):
                    put(key, b"")
                else:
                    batch.delete(key)
            encoded = state.encode()
            put(STATE_KEY, encoded)
            batch.write()
            self._encoded_state = encoded
            self._written += (
                batch.approximate_size() + len(rows) * (_BYTES_PER_ROW // 2) + _BYTES_PER_ROW
            )
        except plyvel.Error as error:
            raise translate(error) from None
        finally:
            uses.pop()

    def state(self) -> ReplicaState:
        """Return the state of the last write."""
        return ReplicaState.decode(self._encoded_state)

    def snapshot(self) -> "LevelDBSnapshot":
        """Return the engine as it is now; it must be closed, since `close` waits for it.

        Raises:
            EngineClosed: `close` has begun.

        """
        self._uses.append(None)
        try:
            if self._closing:
                self._refuse()
            return LevelDBSnapshot(self._db.snapshot(), self._uses, self._marks)
        except BaseException:
            self._uses.pop()
            raise

    def flush(self) -> int:
        """Make everything written before the call durable; return its decree.

        Raises:
            OSError: it did not become durable; the engine takes no more writes.
            CorruptionError: likewise.
            EngineClosed: `close` has begun.

        """
        with self._use() as db:
            decree = self._flush(db)
            with self._work():
                self._marks.tidy(db)
            return decree

    def checkpoint(self, target: Path) -> CheckpointInfo:
        """Flush, and publish a copy of hard links as the new directory `target`.

        Its decree is read from its tables: writes made meanwhile may be in it.

        Raises:
            FileExistsError: `target` is there already.
            OSError: the disk refused; nothing was published.
            EngineClosed: `close` has begun.

        """
        with self._use() as db, self._work():
            self._flush(db)
            with self._files_lock:
                return self._linker.checkpoint(target)

    def compact(self, first: bytes = b"", last: bytes | None = None) -> None:
        """Rewrite the tables that have keys from `first` to `last` (None: to the end).

        Removed rows give their space back then.

        Raises:
            OSError: the disk refused; the engine takes no more writes.
            CorruptionError: likewise, since a damaged table was met.
            EngineClosed: `close` has begun.

        """
        with self._use() as db, self._work():
            self._flush(db)
            db.compact_range(start=first, stop=_END if last is None else last)
            # It returns nothing; an error stops all later writes, so an empty one asks.
            db.write_batch().write()

    def compaction_cuts(self, step_bytes: int) -> list[bytes]:
        """Return keys, in order, between which there are tables of about `step_bytes`.

        Raises:
            OSError, CorruptionError: the MANIFEST could not be read.
            EngineClosed: `close` has begun.

        """
        with self._use(), self._files_lock:
            return self._linker.cuts(step_bytes)

    def size_bytes(self) -> int:
        """Roughly the bytes of all tables on disk."""
        with self._use() as db:
            return int(db.approximate_size(b"", _END))

    def calm(self) -> bool:
        """Whether a write on the loop would not be made to wait.

        It looks again after each MiB written, and at every call once it was not calm. While
        any engine flushes, a write may wait at the disk: LevelDB's log grows by each one, and a
        commit of the file system's journal keeps files from growing.
        """
        if self._working:
            return False
        if self._calm and self._written - self._sampled < _SAMPLE_BYTES:
            return True
        with self._use() as db:
            self._calm = self._sample(db)
        return self._calm

    def close(self) -> None:
        """Wait for what is under way, flush and close; a second call does nothing.

        A thread that has an open snapshot of this engine must not call it.

        Raises:
            OSError: something is still under way after 30 s. Everything new is refused,
                and the handle stays open until another call finds it idle.

        """
        with self._close_lock:
            if self._closed:
                return
            self._closing = True
            self._get = self._write_batch = self._refuse
            # Polled: closing is rare, and a signal would cost every read something.
            pause = threading.Event()
            polls = 0
            while self._uses:
                polls += 1
                if polls > _DRAIN_POLLS_MAX:
                    raise OSError(errno.EBUSY, "the engine is still in use", str(self.path))
                pause.wait(_DRAIN_POLL_S)
            # What cannot be flushed is in the mutation log.
            with suppress(OSError, CorruptionError), translated():
                self._flush(self._db)
            self._db.close()
            self._closed = True
        self._on_closed()

    def _flush(self, db: Any) -> int:
        # Both are taken first: what is written during the flush may or may not be in it.
        state = ReplicaState.decode(self._encoded_state)
        written = self._written
        if written == self._flushed:
            return state.decree
        with self._files_lock, self._work(), translated():
            # All that was written is in the logs up to this one.
            number = newest_log(self._disk, self.path)
            for _ in range(_FLUSH_TRIES_MAX):
                # Without bounds this compacts nothing: it writes the memtable to a synced
                # table and waits for that. But it reports no error; an error stops all later
                # writes, so an empty one asks for it. And if a write of another thread is
                # under way it may be taken for a part of that and do nothing. So MANIFEST
                # has the last word: it says from which log on the rows are not in tables.
                db.compact_range()
                db.write_batch().write()
                if self._linker.first_unflushed_log() > number:
                    break
            else:
                raise OSError(errno.EIO, f"{self.path}: flushes do not get through")
            self._log_number = newest_log(self._disk, self.path)
        self._flushed = max(self._flushed, written)
        self._switched = max(self._switched, written)
        return state.decree

    def _sample(self, db: Any) -> bool:
        before, self._sampled = self._sampled, self._written
        if self._written - self._switched >= self._memtable_calm:
            # LevelDB may have begun a new memtable by itself; each has a log of its own.
            number = newest_log(self._disk, self.path)
            if number != self._log_number:
                self._log_number = number
                self._switched = before
        return (
            self._written - self._switched < self._memtable_calm
            and int(db.get_property(b"leveldb.num-files-at-level0")) < _LEVEL0_FILES_CALM
        )

    @contextmanager
    def _use(self) -> Iterator[Any]:
        self._uses.append(None)
        try:
            if self._closing:
                self._refuse()
            with translated():
                yield self._db
        finally:
            self._uses.pop()

    @contextmanager
    def _work(self) -> Iterator[None]:
        self._working.append(None)
        try:
            yield
        finally:
            self._working.pop()

    def _refuse(self, *_args: object, **_options: object) -> NoReturn:
        raise EngineClosed(f"engine {self.path} is closed")
