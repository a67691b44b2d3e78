"""A `MetaStore` in one process: an append-only file of records with snapshots.

For one meta server and for tests: nothing to install, and every byte goes through the
`Disk` seam. The whole map is in memory; the file makes it durable. Its promises:

* a commit returns after its record was synced, so it survives any crash;
* commits happen one after another: guards are checked in memory when their turn comes;
* opening never trusts the page cache. What was read, up to the first bad record, is
  written into a new file that is synced and published before anybody sees a key; an
  old file is never appended to;
* a failed write may have left anything, so the store is unusable from then on. `recover`
  opens it again in the same process, by the same way as a start;
* when commits outgrow the snapshot, a new file with a new snapshot takes over.

The caller holds the lock of the directory: the store has one owner.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pegaskv.coordination.record_file import (
    Contents,
    commit_record,
    end_record,
    read_contents,
    snapshot_blocks,
)
from pegaskv.coordination.store import (
    ABSENT,
    COMMIT_BYTES_MAX,
    COMMIT_OPERATIONS_MAX,
    Compacted,
    Conflict,
    Fence,
    Fenced,
    Guard,
    Session,
    StoreUnavailable,
    Versioned,
    WatchEvent,
)
from pegaskv.runtime.worker import Worker
from pegaskv.storage.disk import Disk, File

__all__ = ["COMPACT_BYTES", "EmbeddedStore"]

# A file of this size, and of twice its snapshot's, gives way to a new one.
COMPACT_BYTES: Final = 4 * 1024 * 1024

# A watcher that is further behind than this must list again.
_HISTORY_COMMITS: Final = 1_000

_PREFIX: Final = "records-"
_TEMPORARY: Final = ".tmp"


@dataclass(slots=True)
class _OpenFile:
    """The file that takes the next commit."""

    file: File
    generation: int
    size: int
    snapshot_bytes: int


@dataclass(slots=True)
class _Commit:
    """A commit that waits for its turn."""

    guards: tuple[Guard, ...]
    changes: dict[str, bytes | None]
    fence: Fence | None
    done: asyncio.Future[int]


class EmbeddedSession:
    """A lease that lasts as long as the process: nobody else could take it."""

    def __init__(self, store: "EmbeddedStore") -> None:
        self._store = store
        self._lost = asyncio.Event()

    @property
    def lost(self) -> asyncio.Event:
        """Set when the session was closed."""
        return self._lost

    async def close(self) -> None:
        """End it, and the leaderships that were won in it."""
        self._lost.set()
        self._store._on_session_closed(self)


class EmbeddedStore:
    """The one owner of a directory of record files; use `open`.

    Invariants: at most one piece of work is with the worker; memory never shows a
    commit that is not synced.
    """

    def __init__(
        self, disk: Disk, directory: Path, *, worker: Worker, compact_bytes: int = COMPACT_BYTES
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._worker = worker
        self._compact_bytes = compact_bytes
        self._compact_at = compact_bytes
        self._entries: dict[str, Versioned] = {}
        self._revision = 0
        self._open: _OpenFile | None = None
        self._queue: deque[_Commit] = deque()
        self._working = False
        self._broken: str | None = "it is not open"
        self._cause: BaseException | None = None
        self._closed = False
        # Changes of the last commits, for watchers; `_known_after` is the revision before them.
        self._history: deque[tuple[int, Sequence[WatchEvent]]] = deque()
        self._known_after = 0
        self._changed: asyncio.Future[None] | None = None
        self._leaders: dict[str, tuple[Fence, EmbeddedSession]] = {}
        self._candidates: dict[str, deque[asyncio.Future[None]]] = {}
        self._tokens = 0
        self.torn_bytes = 0
        self.compactions = 0

    @classmethod
    async def open(
        cls, disk: Disk, directory: Path, *, worker: Worker, compact_bytes: int = COMPACT_BYTES
    ) -> "EmbeddedStore":
        """Open the store in `directory`, which is made if it is not there.

        Raises:
            StoreUnavailable: the disk refused; the cause is the OSError.
            CorruptionError: acknowledged records are damaged; nothing was changed.
            UnsupportedFormat: another version of the software wrote it.

        """
        store = cls(disk, directory, worker=worker, compact_bytes=compact_bytes)
        await store.recover()
        store._known_after = store._revision
        store._history.clear()
        return store

    @property
    def usable(self) -> bool:
        """Whether commits are possible: no write has failed since the last `recover`."""
        return self._broken is None and not self._closed

    # Reading.

    async def get(self, key: str) -> Versioned | None:
        """Return the value, or None."""
        self._require_usable()
        return self._entries.get(key)

    async def list(self, prefix: str) -> tuple[dict[str, Versioned], int]:
        """Return all keys that begin with `prefix`, in order, and the store's revision."""
        self._require_usable()
        keys = sorted(key for key in self._entries if key.startswith(prefix))
        return {key: self._entries[key] for key in keys}, self._revision

    async def watch(self, prefix: str, from_revision: int) -> AsyncIterator[WatchEvent]:
        """Yield the changes after `from_revision`, in order, until the store is closed."""
        seen = from_revision
        while True:
            if seen < self._known_after:
                raise Compacted(f"changes after revision {seen} are not kept: list again")
            # A copy: commits come while the caller holds what was yielded.
            for revision, events in list(self._history):
                if revision > seen:
                    for event in events:
                        if event.key.startswith(prefix):
                            yield event
                    seen = revision
            if self._closed:
                raise StoreUnavailable("the meta store is closed")
            if seen >= self._revision:
                if self._changed is None:
                    self._changed = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._changed)

    # Writing.

    async def commit(
        self,
        *,
        guards: Sequence[Guard] = (),
        puts: Mapping[str, bytes] | None = None,
        deletes: Sequence[str] = (),
        fence: Fence | None = None,
    ) -> int:
        """Write all or nothing, synced; return the new revision.

        A caller that is cancelled leaves the commit to happen or not. A commit without
        changes checks its guards and returns the present revision.

        Raises:
            Conflict: a guard did not hold.
            Fenced: another process leads.
            ValueError: more than COMMIT_OPERATIONS_MAX operations or COMMIT_BYTES_MAX bytes.
            StoreUnavailable: the outcome is unknown; `recover` makes the store usable again.

        """
        changes = _changes(puts or {}, deletes)
        if max(len(changes), len(guards)) > COMMIT_OPERATIONS_MAX:
            raise ValueError(f"a commit has at most {COMMIT_OPERATIONS_MAX} operations")
        size = sum(len(key.encode()) + len(value or b"") for key, value in changes.items())
        if size > COMMIT_BYTES_MAX:
            raise ValueError(f"a commit of {size} bytes; the limit is {COMMIT_BYTES_MAX}")
        self._require_usable()
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append(_Commit(tuple(guards), changes, fence, done))
        self._go_on()
        return await done

    async def recover(self) -> None:
        """Make the store usable after a failed write, if the disk lets it.

        A commit whose outcome was unknown has happened or not from then on.

        Raises:
            StoreUnavailable: the disk refuses still; the cause is the OSError.
            CorruptionError: acknowledged records are damaged; nothing was changed.

        """
        if self._closed:
            raise StoreUnavailable("the meta store is closed")
        if self._broken is None:
            return
        if self._working:
            raise StoreUnavailable("the meta store is being opened")
        self._working = True
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        old, self._open = self._open, None

        def work() -> tuple[_OpenFile, Contents]:
            if old is not None:
                old.file.close()
            return _open_newest(self._disk, self._directory)

        def done(result: tuple[_OpenFile, Contents] | None, error: BaseException | None) -> None:
            self._working = False
            if result is not None:
                if self._closed:
                    result[0].file.close()
                else:
                    self._take_over(*result)
            if not opened.done():
                if error is None:
                    opened.set_result(None)
                else:
                    opened.set_exception(self._as_unavailable(error))

        self._worker.submit(work, done)
        await opened

    async def close(self) -> None:
        """Finish the commit at hand, refuse those behind it, and close the file."""
        if self._closed:
            return
        self._closed = True
        self._refuse_all(StoreUnavailable("the meta store is closed"))
        self._wake_watchers()
        for waiting in self._candidates.values():
            _call_up(waiting)
        # When this has run, what was under way has ended here too, and nothing new begins.
        await self._worker.run(lambda: None)
        if self._open is not None:
            opened, self._open = self._open, None
            whole = self._broken is None
            await self._worker.run(lambda: _close(opened, whole))

    # Leading.

    async def session(self, ttl_ms: int) -> Session:
        """Open a session; it ends when it is closed and at no other time."""
        assert ttl_ms > 0
        return EmbeddedSession(self)

    async def campaign(self, election: str, session: Session, value: bytes) -> Fence:
        """Return when `session` leads `election`: at once, unless another session does."""
        assert isinstance(session, EmbeddedSession)
        while (leader := self._leaders.get(election)) is not None and not self._closed:
            if leader[1] is session:
                return leader[0]
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = self._candidates.setdefault(election, deque())
            waiting.append(turn)
            try:
                await turn
            finally:
                waiting.remove(turn)
        if self._closed or session.lost.is_set():
            raise StoreUnavailable("the session has ended")
        self._tokens += 1
        fence = Fence(election, self._tokens)
        self._leaders[election] = (fence, session)
        return fence

    async def resign(self, fence: Fence) -> None:
        """Stop leading; nothing happens if that has ended already."""
        leader = self._leaders.get(fence.election)
        if leader is not None and leader[0] == fence:
            self._depose(fence.election)

    def _on_session_closed(self, session: EmbeddedSession) -> None:
        for election in [name for name, (_, by) in self._leaders.items() if by is session]:
            self._depose(election)

    def _depose(self, election: str) -> None:
        del self._leaders[election]
        _call_up(self._candidates.get(election, ()))

    # One piece of work after another.

    def _go_on(self) -> None:
        """Give the worker what comes next, if it has nothing."""
        while self._queue and not self._working and self._open is not None:
            if self._open.size >= self._compact_at:
                self._compact(self._open)
                return
            commit = self._queue.popleft()
            refusal = self._refusal(commit)
            if commit.done.done():
                continue
            if refusal is not None:
                commit.done.set_exception(refusal)
            elif not commit.changes:
                commit.done.set_result(self._revision)
            else:
                self._write(self._open, commit)

    def _refusal(self, commit: _Commit) -> Exception | None:
        fence = commit.fence
        if fence is not None:
            leader = self._leaders.get(fence.election)
            if leader is None or leader[0] != fence:
                return Fenced(f"`{fence.election}` is led by somebody else")
        for guard in commit.guards:
            entry = self._entries.get(guard.key)
            revision = ABSENT if entry is None else entry.revision
            if revision != guard.revision:
                return Conflict(f"{guard.key} is at revision {revision}, not {guard.revision}")
        return None

    def _write(self, target: _OpenFile, commit: _Commit) -> None:
        revision = self._revision + 1
        record = commit_record(target.size, target.generation, revision, commit.changes.items())

        def work() -> None:
            target.file.write_at(target.size, record)
            target.file.fdatasync()

        def done(result: None, error: BaseException | None) -> None:
            self._working = False
            if error is not None:
                self._break(commit, error)
                return
            target.size += len(record)
            self._apply(revision, commit.changes)
            if not commit.done.done():
                commit.done.set_result(revision)
            self._go_on()

        self._working = True
        self._worker.submit(work, done)

    def _apply(self, revision: int, changes: Mapping[str, bytes | None]) -> None:
        events = []
        for key, value in changes.items():
            if value is not None:
                self._entries[key] = Versioned(value, revision)
            elif self._entries.pop(key, None) is None:
                continue
            events.append(WatchEvent(key, value, revision))
        self._revision = revision
        self._remember(revision, events)

    def _remember(self, revision: int, events: Sequence[WatchEvent]) -> None:
        self._history.append((revision, events))
        while len(self._history) > _HISTORY_COMMITS:
            self._known_after = self._history.popleft()[0]
        self._wake_watchers()

    def _wake_watchers(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)

    def _compact(self, old: _OpenFile) -> None:
        """Let a new file with a snapshot take over."""
        # Nothing changes the entries while the worker is busy.
        contents = Contents(old.generation + 1, self._revision, _plain(self._entries))

        def work() -> _OpenFile | None:
            try:
                written = _write_temporary(self._disk, self._directory, contents)
            except OSError:
                # The old file is whole and goes on.
                return None
            _publish(self._disk, self._directory, written.generation)
            old.file.close()
            _remove_old(self._disk, self._directory, written.generation)
            return written

        def done(written: _OpenFile | None, error: BaseException | None) -> None:
            self._working = False
            if error is not None:
                self._break(None, error)
                return
            if written is not None:
                self._use(written)
                self.compactions += 1
            else:
                self._compact_at = old.size + self._compact_bytes
            self._go_on()

        self._working = True
        self._worker.submit(work, done)

    # Failing and coming back.

    def _require_usable(self) -> None:
        if self._closed:
            raise StoreUnavailable("the meta store is closed")
        if self._broken is not None:
            raise StoreUnavailable(
                f"the meta store cannot be used: {self._broken}"
            ) from self._cause

    def _break(self, commit: _Commit | None, error: BaseException) -> None:
        self._broken = str(error) or repr(error)
        self._cause = error
        if commit is not None and not commit.done.done():
            commit.done.set_exception(self._as_unavailable(error))
        self._refuse_all(self._as_unavailable(error))

    def _refuse_all(self, error: BaseException) -> None:
        while self._queue:
            waiting = self._queue.popleft()
            if not waiting.done.done():
                waiting.done.set_exception(error)

    def _as_unavailable(self, error: BaseException) -> BaseException:
        if not isinstance(error, OSError):
            return error
        unavailable = StoreUnavailable(f"the meta store cannot be written: {error}")
        unavailable.__cause__ = error
        return unavailable

    def _use(self, opened: _OpenFile) -> None:
        self._open = opened
        self._compact_at = max(self._compact_bytes, 2 * opened.snapshot_bytes)

    def _take_over(self, opened: _OpenFile, contents: Contents) -> None:
        """Show what the file holds; watchers hear of what an unknown commit has changed."""
        assert contents.revision >= self._revision, "the file has forgotten a commit"
        before = self._entries
        self._entries = {key: Versioned(*entry) for key, entry in contents.entries.items()}
        self.torn_bytes = contents.torn_bytes
        self._use(opened)
        self._broken = self._cause = None
        if contents.revision > self._revision:
            self._revision = contents.revision
            events = [
                WatchEvent(key, None, contents.revision)
                for key in before
                if key not in self._entries
            ]
            events += [
                WatchEvent(key, entry.value, entry.revision)
                for key, entry in self._entries.items()
                if before.get(key) != entry
            ]
            self._remember(contents.revision, events)


def _changes(puts: Mapping[str, bytes], deletes: Sequence[str]) -> dict[str, bytes | None]:
    changes: dict[str, bytes | None] = dict(puts)
    for key in deletes:
        if key in changes:
            raise ValueError(f"{key} is named twice in one commit")
        changes[key] = None
    return changes


def _plain(entries: Mapping[str, Versioned]) -> dict[str, tuple[bytes, int]]:
    return {key: (entry.value, entry.revision) for key, entry in entries.items()}


def _call_up(candidates: Iterable[asyncio.Future[None]]) -> None:
    for candidate in candidates:
        if not candidate.done():
            candidate.set_result(None)


# What follows blocks, and runs in the worker.


def _open_newest(disk: Disk, directory: Path) -> tuple[_OpenFile, Contents]:
    """Read the newest file and write what it says into the next one."""
    disk.make_dirs(directory)
    generations = _generations(disk, directory)
    contents = Contents(0)
    if generations:
        newest = _path(directory, generations[-1])
        contents = read_contents(disk.read_bytes(newest), str(newest))
    # The name decides what is newest; a header that says otherwise changes nothing.
    contents.generation = (generations[-1] if generations else 0) + 1
    opened = _write_temporary(disk, directory, contents)
    _publish(disk, directory, opened.generation)
    _remove_old(disk, directory, opened.generation)
    return opened, contents


def _generations(disk: Disk, directory: Path) -> list[int]:
    found = []
    for name in disk.list(directory):
        digits = name.removeprefix(_PREFIX)
        if digits != name and digits.isdecimal():
            found.append(int(digits))
    return sorted(found)


def _path(directory: Path, generation: int) -> Path:
    return directory / f"{_PREFIX}{generation:010d}"


def _write_temporary(disk: Disk, directory: Path, contents: Contents) -> _OpenFile:
    """Write and sync a snapshot under a name that no start reads."""
    temporary = _path(directory, contents.generation).with_suffix(_TEMPORARY)
    disk.unlink(temporary, missing_ok=True)
    file = disk.create(temporary)
    try:
        size = 0
        for block in snapshot_blocks(contents.generation, contents.revision, contents.entries):
            file.write_at(size, block)
            size += len(block)
        file.fdatasync()
    except BaseException:
        file.close()
        raise
    return _OpenFile(file, contents.generation, size, size)


def _publish(disk: Disk, directory: Path, generation: int) -> None:
    """Make the file the newest one, durably: from now on it counts."""
    path = _path(directory, generation)
    disk.rename(path.with_suffix(_TEMPORARY), path)
    disk.fsync_dir(directory)


def _remove_old(disk: Disk, directory: Path, generation: int) -> None:
    """Remove what `generation` replaces; what stays is removed another time."""
    newest = _path(directory, generation).name
    try:
        for name in disk.list(directory):
            if name.startswith(_PREFIX) and name != newest:
                disk.unlink(directory / name, missing_ok=True)
    except OSError:
        pass


def _close(opened: _OpenFile, whole: bool) -> None:
    """Close the file, with a last record if all of it is good."""
    try:
        if whole:
            opened.file.write_at(opened.size, end_record(opened.size, opened.generation))
            opened.file.fdatasync()
    except OSError:
        # The last record only says that the stop was clean.
        pass
    finally:
        opened.file.close()
