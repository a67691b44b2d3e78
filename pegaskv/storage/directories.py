"""Where a server keeps everything: its lock, its identity, its replicas, its trash.

```
FORMAT                      what this is and which version of it
lock                        locked while a process uses it; holds the process id
node                        the node's uuid, made once
boot                        which boot of the machine used it last, and whether it stopped cleanly
log/  meta/                 the mutation log; the meta server's own files
replicas/5.3/manifest       incarnation and marks of one replica
replicas/5.3/engine/        its rows
replicas/5.3/...            checkpoint and notes, see `replica_files`
replicas/5.3.learn/         a copy from another server that will take its place, see `learned`
trash/5.3.<us>.<why>/       a replica that was removed; kept for a while
```

Each step can be cut short at any I/O and is finished or undone by the next `open`. A
directory that is not ours, or of another format, is refused before anything is touched.
Nothing here is ever deleted but leftovers, old checkpoints and old trash.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Final
from uuid import UUID

from pegaskv.base.errors import (
    CorruptionError,
    DirectoryUnusable,
    PegasKVError,
    UnsupportedFormat,
)
from pegaskv.base.types import Gpid
from pegaskv.base.version import BOOT_FORMAT, DATA_FORMAT, MANIFEST_FORMAT, VERSION
from pegaskv.storage.checkpoints import seal, temporary_path, unseal, write_new
from pegaskv.storage.disk import Disk, DiskLock
from pegaskv.storage.engine import CheckpointInfo, Engine, EngineFactory, ReplicaState
from pegaskv.storage.learned import remove_unfinished
from pegaskv.storage.replica_files import Accepted, ReplicaFiles

__all__ = ["DataDirectory", "ReplicaManifest"]

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_TITLE: Final = "pegaskv data directory"

# What may stand in a directory before FORMAT does: a creation that was cut short.
_UNFINISHED: Final = frozenset({"lock", "FORMAT.tmp", "lost+found"})
_GPID_NAME: Final = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)")
_TRASH_NAME: Final = re.compile(r"\d+\.\d+\.(\d+)\..*")
_LEARN: Final = ".learn"
_LEARNED_ANEW: Final = "learned-anew"
_REASON_CHARACTERS_MAX: Final = 60


@dataclass(frozen=True, slots=True)
class ReplicaManifest:
    """What a replica's directory says of itself.

    Log records of another incarnation, or at or below `base_decree`, are not this
    replica's. `os_acknowledged`: it acknowledged writes that were not synced.
    `amnesiac`: it did, and the machine went down before they were.
    """

    gpid: Gpid
    incarnation: int
    base_decree: int = 0
    base_ballot: int = 0
    os_acknowledged: bool = False
    amnesiac: bool = False
    created_at_us: int = 0

    def encode(self) -> bytes:
        """Return the contents of the manifest file."""
        return seal(
            [
                MANIFEST_FORMAT,
                [*self.gpid],
                self.incarnation,
                self.base_decree,
                self.base_ballot,
                self.os_acknowledged,
                self.amnesiac,
                self.created_at_us,
            ]
        )

    @classmethod
    def decode(cls, data: bytes, what: str) -> "ReplicaManifest":
        """Read what `encode` wrote; `what` names the file.

        Raises:
            CorruptionError: the bytes are not what was written.
            UnsupportedFormat: another version wrote them.

        """
        value = unseal(data, what)
        if isinstance(value, list) and value and value[0] != MANIFEST_FORMAT:
            raise UnsupportedFormat(
                f"{what} has format {value[0]}, this software reads {MANIFEST_FORMAT}"
            )
        match value:
            case [
                _,
                [int(table_id), int(index)],
                int(incarnation),
                int(base_decree),
                int(base_ballot),
                bool(os_acknowledged),
                bool(amnesiac),
                int(created_at_us),
            ]:
                return cls(
                    Gpid(table_id, index),
                    incarnation,
                    base_decree,
                    base_ballot,
                    os_acknowledged,
                    amnesiac,
                    created_at_us,
                )
        raise CorruptionError(f"{what} is damaged")


class DataDirectory:
    """An open data directory; this process has it alone until `close`.

    `damaged` holds the replicas whose manifest cannot be used, with the reason: they
    are neither listed nor touched.
    """

    @classmethod
    def open(
        cls, disk: Disk, path: Path, *, random: Random, process_id: int | None = None
    ) -> "DataDirectory":
        """Take the directory, making it if it is not there. Blocks.

        `process_id` is what another process is told that finds the directory locked.

        Raises:
            DirectoryUnusable: it is in use, not ours, of another format, damaged, or the
                operating system refuses; the message names it and the hint says what to do.

        """
        try:
            _check_ours(disk, path)
            disk.make_dirs(path)
            lock = _take_lock(disk, path, process_id)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            return cls(disk, path, lock, random)
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError):
                raise _unusable(path, error) from error
            raise

    def __init__(self, disk: Disk, path: Path, lock: DiskLock, random: Random) -> None:
        self.path = path
        self.log_path = path / "log"
        self.meta_path = path / "meta"
        self.damaged: dict[Gpid, PegasKVError] = {}
        self._disk = disk
        self._lock = lock
        self._replicas_path = path / "replicas"
        self._trash_path = path / "trash"
        self._manifests: dict[Gpid, ReplicaManifest] = {}

        if not disk.exists(path / "FORMAT"):
            disk.write_atomic(path / "FORMAT", f"{_TITLE}\nformat {DATA_FORMAT}\n".encode())
        disk.make_dirs(self._replicas_path)
        disk.make_dirs(self._trash_path)
        self._tidy()
        self._load_manifests()
        self.node_id = self._load_node_id(random)
        self._boot_id = disk.boot_id()
        self.was_clean_stop, self.same_boot = self._last_stop()
        if not self.was_clean_stop and not self.same_boot:
            # Kept in the manifests before `boot` forgets it: this process may die as well.
            for manifest in self.list_replicas():
                if manifest.os_acknowledged and not manifest.amnesiac:
                    self._save(replace(manifest, amnesiac=True))
        self._write_boot(clean=False)

    # --- The process ---------------------------------------------------------------------

    def mark_clean_stop(self) -> None:
        """Note durably that all that was acknowledged is synced; nothing may be written after."""
        self._write_boot(clean=True)

    def close(self) -> None:
        """Give the directory up; a second call does nothing."""
        self._lock.release()

    # --- Replicas ------------------------------------------------------------------------

    def list_replicas(self) -> list[ReplicaManifest]:
        """Return the manifests of all replicas, by table and partition."""
        return [self._manifests[gpid] for gpid in sorted(self._manifests)]

    def manifest(self, gpid: Gpid) -> ReplicaManifest:
        """Return the manifest of a replica that is there; KeyError if it is not."""
        return self._manifests[gpid]

    def replica_path(self, gpid: Gpid) -> Path:
        """The directory of a replica."""
        return self._replicas_path / str(gpid)

    def engine_path(self, gpid: Gpid) -> Path:
        """The directory of a replica's engine."""
        return self.replica_path(gpid) / "engine"

    def create_replica(
        self,
        gpid: Gpid,
        incarnation: int,
        *,
        created_at_us: int,
        base_decree: int = 0,
        base_ballot: int = 0,
    ) -> ReplicaManifest:
        """Make the directory of a new replica, with an empty engine directory. Blocks.

        Raises:
            FileExistsError: there is one, perhaps damaged.

        """
        disk = self._disk
        path = self.replica_path(gpid)
        if disk.exists(path):
            raise FileExistsError(f"{path} is there already")
        manifest = ReplicaManifest(
            gpid, incarnation, base_decree, base_ballot, created_at_us=created_at_us
        )
        temporary = temporary_path(path)
        disk.remove_tree(temporary)
        disk.make_dirs(temporary / "engine")
        write_new(disk, temporary / "manifest", manifest.encode())
        disk.fsync_dir(temporary)
        disk.rename(temporary, path)
        disk.fsync_dir(self._replicas_path)
        self._manifests[gpid] = manifest
        return manifest

    def mark_os_acknowledged(self, gpid: Gpid, acknowledged: bool) -> None:
        """Note durably whether the replica acknowledges writes before they are synced. Blocks.

        True before the first such acknowledgement; False after a sync that came later
        than the last one.
        """
        manifest = self._manifests[gpid]
        if manifest.os_acknowledged != acknowledged:
            self._save(replace(manifest, os_acknowledged=acknowledged))

    def clear_amnesia(self, gpid: Gpid) -> None:
        """Note durably that what the replica may have lost was settled. Blocks."""
        manifest = self._manifests[gpid]
        if manifest.amnesiac:
            self._save(replace(manifest, amnesiac=False))

    def trash_replica(self, gpid: Gpid, reason: str, *, at_us: int) -> Path:
        """Move a replica, damaged or not, to the trash; return where it is. Blocks.

        Its engine must be closed. The name says when and why.
        """
        # A start would put it in the place of what is gone.
        remove_unfinished(self._disk, self.learned_path(gpid))
        why = re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-")[:_REASON_CHARACTERS_MAX]
        target = self._trash_name(gpid, why or "removed", at_us)
        self._move_to_trash(gpid, target)
        self._manifests.pop(gpid, None)
        self.damaged.pop(gpid, None)
        return target

    def empty_trash(self, *, before_us: int) -> int:
        """Delete what was trashed before that wall time; return how many replicas. Blocks."""
        count = 0
        for name in self._disk.list(self._trash_path):
            match = _TRASH_NAME.fullmatch(name)
            if match is not None and int(match[1]) < before_us:
                self._disk.remove_tree(self._trash_path / name)
                count += 1
        return count

    # --- What is learned of another server ---------------------------------------------------

    def learned_path(self, gpid: Gpid) -> Path:
        """Where a copy of a replica is put together until it is whole."""
        return self._replicas_path / f"{gpid}{_LEARN}"

    def begin_incarnation(
        self, gpid: Gpid, incarnation: int, state: ReplicaState, *, accepted: frozenset[str]
    ) -> None:
        """Let a replica go on from `state`, which its tables hold, under a new number. Blocks.

        What the log has of it under the old one is never read again. `accepted` are the
        damaged parts of the log that are older than this.
        """
        if accepted:
            self.files(gpid).accept(Accepted(incarnation, accepted))
        self._save(
            replace(
                self._manifests[gpid],
                incarnation=incarnation,
                base_decree=state.decree,
                base_ballot=state.ballot,
            )
        )

    def install_learned(
        self,
        gpid: Gpid,
        incarnation: int,
        state: ReplicaState,
        *,
        at_us: int,
        accepted: frozenset[str],
        keep_old: bool,
    ) -> None:
        """Put what lies whole under `learned_path` in the replica's place. Blocks.

        Both engines must be closed. A crash at any point leaves the one or the other. With
        `keep_old` the old replica stays in the trash, in the place of an earlier one.

        Raises:
            OSError: the old replica stays, or the disk refused that too.

        """
        disk, learned, path = self._disk, self.learned_path(gpid), self.replica_path(gpid)
        if accepted:
            ReplicaFiles(disk, learned, gpid).accept(Accepted(incarnation, accepted))
        manifest = ReplicaManifest(
            gpid, incarnation, state.decree, state.ballot, created_at_us=at_us
        )
        disk.write_atomic(learned / "manifest", manifest.encode())
        earlier = [
            name
            for name in disk.list(self._trash_path)
            if name.startswith(f"{gpid}.") and name.endswith(f".{_LEARNED_ANEW}")
        ]
        old = self._trash_name(gpid, _LEARNED_ANEW, at_us) if disk.exists(path) else None
        try:
            if old is not None:
                # Once it is away a start finishes what comes.
                self._move_to_trash(gpid, old)
            disk.rename(learned, path)
        except OSError:
            if old is not None and not disk.exists(path):
                disk.rename(old, path)
            raise
        self._manifests[gpid] = manifest
        self.damaged.pop(gpid, None)
        disk.fsync_dir(self._replicas_path)
        with suppress(OSError):
            # What stays here is removed by the next start.
            for name in earlier:
                disk.remove_tree(self._trash_path / name)
            if old is not None and not keep_old:
                disk.remove_tree(old)

    # --- What a replica has beside its manifest --------------------------------------------

    def files(self, gpid: Gpid) -> ReplicaFiles:
        """The files of a replica beside its manifest."""
        return ReplicaFiles(self._disk, self.replica_path(gpid), gpid)

    def publish_checkpoint(self, gpid: Gpid, engine: Engine) -> CheckpointInfo:
        """Flush the engine and publish a checkpoint in place of the last one. Blocks.

        Raises:
            OSError, CorruptionError: there is no new checkpoint; the last one stays.

        """
        return self.files(gpid).publish_checkpoint(engine)

    def checkpoint_decree(self, gpid: Gpid) -> int:
        """Return the decree of the last checkpoint, 0 if there is none to fall back on. Blocks."""
        return self.files(gpid).checkpoint_state().decree

    def restore_checkpoint(self, gpid: Gpid, factory: EngineFactory) -> Engine:
        """Put the last checkpoint in the place of an engine that does not open. Blocks.

        The damaged engine is kept beside it until the next time.

        Raises:
            CorruptionError: there is no checkpoint, or it is damaged too.

        """
        return self.files(gpid).restore_checkpoint(factory)

    # --- Inside --------------------------------------------------------------------------

    def _save(self, manifest: ReplicaManifest) -> None:
        self._disk.write_atomic(self.replica_path(manifest.gpid) / "manifest", manifest.encode())
        self._manifests[manifest.gpid] = manifest

    def _trash_name(self, gpid: Gpid, why: str, at_us: int) -> Path:
        while True:
            target = self._trash_path / f"{gpid}.{at_us}.{why}"
            if not self._disk.exists(target):
                return target
            at_us += 1

    def _move_to_trash(self, gpid: Gpid, target: Path) -> None:
        self._disk.rename(self.replica_path(gpid), target)
        self._disk.fsync_dir(self._trash_path)
        self._disk.fsync_dir(self._replicas_path)

    def _tidy(self) -> None:
        # Finish or undo what a crash cut short.
        disk = self._disk
        for name in disk.list(self._replicas_path):
            path = self._replicas_path / name
            if name.endswith(_LEARN):
                self._tidy_learned(path)
        for name in disk.list(self._replicas_path):
            path = self._replicas_path / name
            if name.endswith(".tmp"):
                disk.remove_tree(path)
            elif _GPID_NAME.fullmatch(name) and disk.is_dir(path):
                # Whose it is makes no difference to its files.
                ReplicaFiles(disk, path, Gpid(0, 0)).tidy()

    def _tidy_learned(self, path: Path) -> None:
        # Its manifest is written last, when all else in it is durable.
        disk = self._disk
        place = path.with_name(path.name.removesuffix(_LEARN))
        if disk.exists(path / "manifest") and not disk.exists(place):
            disk.rename(path, place)
            disk.fsync_dir(self._replicas_path)
        else:
            remove_unfinished(disk, path)

    def _load_manifests(self) -> None:
        for name in self._disk.list(self._replicas_path):
            match = _GPID_NAME.fullmatch(name)
            if match is None:
                continue
            gpid = Gpid(int(match[1]), int(match[2]))
            try:
                self._manifests[gpid] = self._load_manifest(gpid)
            except PegasKVError as error:
                self.damaged[gpid] = error

    def _load_manifest(self, gpid: Gpid) -> ReplicaManifest:
        path = self.replica_path(gpid) / "manifest"
        if not self._disk.exists(path):
            raise CorruptionError(f"{path} is missing")
        manifest = ReplicaManifest.decode(self._disk.read_bytes(path), str(path))
        if manifest.gpid != gpid:
            raise CorruptionError(f"{path} is of partition {manifest.gpid}")
        if not self._disk.is_dir(self.engine_path(gpid)):
            # An engine made anew would be an empty replica in the place of a full one.
            raise CorruptionError(f"{self.engine_path(gpid)} is missing")
        return manifest

    def _load_node_id(self, random: Random) -> str:
        path = self.path / "node"
        if self._disk.exists(path):
            text = self._disk.read_bytes(path).strip()
            try:
                return str(UUID(text.decode("ascii")))
            except ValueError:
                raise DirectoryUnusable(
                    f"{path} is damaged: it holds {text[:40]!r}",
                    hint="put the node's uuid back, as the meta server lists it",
                ) from None
        if self._manifests or self.damaged:
            raise DirectoryUnusable(
                f"{path} is missing, but there are replicas",
                hint="put the node's uuid back, as the meta server lists it",
            )
        node_id = str(UUID(int=random.getrandbits(128), version=4))
        self._disk.write_atomic(path, f"{node_id}\n".encode())
        return node_id

    def _last_stop(self) -> tuple[bool, bool]:
        # (whether the last process stopped cleanly, whether the machine ran since)
        path = self.path / "boot"
        if not self._disk.exists(path):
            fresh = not self._manifests and not self.damaged
            return fresh, fresh
        try:
            value = unseal(self._disk.read_bytes(path), str(path))
        except CorruptionError:
            return False, False
        match value:
            case [int(version), str(boot_id), bool(clean)] if version == BOOT_FORMAT:
                return clean, boot_id == self._boot_id
        return False, False

    def _write_boot(self, *, clean: bool) -> None:
        path, data = self.path / "boot", seal([BOOT_FORMAT, self._boot_id, clean])
        before = self._disk.read_bytes(path) if self._disk.exists(path) else b""
        if before == data:
            return
        try:
            self._disk.write_atomic(path, data)
        except OSError as error:
            if error.errno not in _NO_ROOM or len(before) != len(data):
                raise
            # In place it needs no room. If it is torn it counts as a power cut, which is safe.
            file = self._disk.open(path, writable=True)
            try:
                file.write_at(0, data)
                file.fdatasync()
            finally:
                file.close()


def _check_ours(disk: Disk, path: Path) -> None:
    # Refuse before anything is made or changed.
    if not disk.exists(path):
        return
    if not disk.is_dir(path):
        raise DirectoryUnusable(f"{path} is not a directory", hint="name another with --data")
    names = set(disk.list(path))
    if "FORMAT" not in names:
        if names - _UNFINISHED:
            raise DirectoryUnusable(
                f"{path} is not empty and not a data directory of pegaskv",
                hint="name another directory with --data; this one was not touched",
            )
        return
    lines = disk.read_bytes(path / "FORMAT").decode("utf-8", "replace").splitlines()
    if lines[:1] != [_TITLE]:
        raise DirectoryUnusable(
            f"{path}/FORMAT is not that of a data directory of pegaskv",
            hint="name another directory with --data; this one was not touched",
        )
    if lines[1:2] != [f"format {DATA_FORMAT}"]:
        found = lines[1] if len(lines) > 1 else "no format"
        raise DirectoryUnusable(
            f"{path} has {found[:40]!r}; pegaskv {VERSION} reads format {DATA_FORMAT}",
            hint="start the version that wrote it, or a newer one; nothing was changed",
        )


def _take_lock(disk: Disk, path: Path, process_id: int | None) -> DiskLock:
    name = path / "lock"
    try:
        lock = disk.lock(name)
    except BlockingIOError:
        holder = ""
        with suppress(OSError):
            text = disk.read_bytes(name).decode("ascii", "replace").strip()
            holder = f" {text}" if text.isdecimal() else ""
        raise DirectoryUnusable(
            f"{path} is in use by another process{holder}",
            hint="stop that process, or name another directory with --data",
        ) from None
    with _released_on_error(lock):
        file = disk.open(name, writable=True)
        try:
            file.truncate(0)
            if process_id is not None:
                # For people only: a full disk is no reason not to start.
                try:
                    file.write_at(0, f"{process_id}\n".encode())
                except OSError as error:
                    if error.errno not in _NO_ROOM:
                        raise
        finally:
            file.close()
    return lock


@contextmanager
def _released_on_error(lock: DiskLock) -> Iterator[None]:
    try:
        yield
    except OSError:
        lock.release()
        raise


def _unusable(path: Path, error: OSError) -> DirectoryUnusable:
    return DirectoryUnusable(
        f"{path} cannot be used: {error.strerror or error}",
        hint="it must be a directory that this user can read and write, with space on its disk",
    )
