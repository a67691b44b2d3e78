"""The files of one replica beside its manifest: its engine, its checkpoint, notes on damage.

```
engine/                 its rows
engine.restored/        what will take their place, until it is whole
engine.damaged/         what they took the place of, until the next time
checkpoint/8/           the last published checkpoint
learners/learn-1f/      a checkpoint that is kept while another server copies it
damage                  that its tables are damaged and nothing could mend them; in words
accepted                which losses an operator has accepted
compacted               which order of a manual compaction was carried out last
```

An engine is exchanged by two renames, and each step can be cut short: `tidy` finishes or
undoes it. All methods block.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pegaskv.base.errors import CorruptionError
from pegaskv.base.types import Gpid
from pegaskv.base.version import ACCEPTED_FORMAT
from pegaskv.storage.checkpoints import read_checkpoint, seal, unseal
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import CheckpointInfo, Engine, EngineFactory, ReplicaState

__all__ = ["Accepted", "ReplicaFiles"]

_DAMAGE: Final = "damage"
_ACCEPTED: Final = "accepted"
_COMPACTED: Final = "compacted"


@dataclass(frozen=True, slots=True)
class Accepted:
    """What an operator has accepted to be lost of one incarnation.

    `files` are the parts of the log that were kept aside, `gap` is the first decree that the
    log lacks (0: none was accepted).
    """

    incarnation: int = 0
    files: frozenset[str] = frozenset()
    gap: int = 0


class ReplicaFiles:
    """The files of one replica; `path` is its directory."""

    def __init__(self, disk: Disk, path: Path, gpid: Gpid) -> None:
        self._disk = disk
        self._path = path
        self._gpid = gpid
        self.engine_path = path / "engine"
        self._restored = path / "engine.restored"
        self.learners_path = path / "learners"

    def tidy(self) -> None:
        """Finish or undo what a crash cut short."""
        disk, path = self._disk, self._path
        names = disk.list(path)
        if self._restored.name in names and "engine" not in names:
            disk.rename(self._restored, self.engine_path)
            disk.fsync_dir(path)
        for name in ("engine.restored", "engine.restored.tmp", "engine.tmp"):
            disk.remove_tree(path / name)
        # Who copied it asks for another one.
        disk.remove_tree(self.learners_path)
        if "checkpoint" in names:
            for name in disk.list(path / "checkpoint"):
                if name.endswith(".tmp"):
                    disk.remove_tree(path / "checkpoint" / name)

    # --- The checkpoint --------------------------------------------------------------------

    def publish_checkpoint(self, engine: Engine) -> CheckpointInfo:
        """Flush the engine and publish a checkpoint in place of the last one.

        Raises:
            OSError, CorruptionError: there is no new checkpoint; the last one stays.

        """
        directory = self._path / "checkpoint"
        self._disk.make_dirs(directory)
        numbers = self._checkpoints()
        info = engine.checkpoint(directory / str(max(numbers, default=0) + 1))
        # One that stays is removed with the next.
        with suppress(OSError):
            for number in numbers:
                self._disk.remove_tree(directory / str(number))
        return info

    def checkpoint_state(self) -> ReplicaState:
        """Return what the last checkpoint holds; decree 0 if there is none to fall back on."""
        numbers = self._checkpoints()
        if numbers:
            with suppress(CorruptionError):
                return read_checkpoint(self._disk, self._checkpoint(numbers[-1]))[1]
        return ReplicaState()

    def open_checkpoint(self, factory: EngineFactory) -> Engine:
        """Open an engine made from the last checkpoint, beside the one that is in use.

        When it was found good and closed, `adopt` puts it in the other's place.

        Raises:
            CorruptionError: there is no checkpoint, or it is damaged too.

        """
        numbers = self._checkpoints()
        if not numbers:
            raise CorruptionError(f"partition {self._gpid} has no checkpoint")
        self._disk.remove_tree(self._restored)
        return factory.open_checkpoint(self._checkpoint(numbers[-1]), self._restored)

    def open_empty(self, factory: EngineFactory) -> Engine:
        """Open an empty engine beside the one that is in use, for `adopt` as well."""
        self._disk.remove_tree(self._restored)
        return factory.open(self._restored)

    def restore_checkpoint(self, factory: EngineFactory) -> Engine:
        """Put the last checkpoint in the place of an engine that does not open; open it.

        Raises:
            CorruptionError: there is no checkpoint, or it is damaged too.

        """
        self.open_checkpoint(factory).close()
        self.adopt()
        return factory.open(self.engine_path)

    def start_over(self, factory: EngineFactory) -> Engine:
        """Put an empty engine in the place of one that does not open; open it."""
        self.open_empty(factory).close()
        self.adopt()
        return factory.open(self.engine_path)

    def salvage(
        self, factory: EngineFactory, known: ReplicaState | None = None
    ) -> list[tuple[bytes, bytes]]:
        """Put what can be read of a closed engine in its place; return where rows are lost.

        `known` is a state that its tables had; that of the last checkpoint is known anyway.

        Raises:
            CorruptionError: nothing can be told from what is left.

        """
        self._disk.remove_tree(self._restored)
        known = max(known or ReplicaState(), self.checkpoint_state(), key=lambda each: each.decree)
        lost = factory.salvage(self.engine_path, self._restored, known)
        self.adopt()
        return lost

    def adopt(self) -> None:
        """Put what is in `engine.restored` in the engine's place; both must be closed.

        What was there is kept beside it until the next time. An error in the middle leaves
        nothing lost: another call goes on.
        """
        disk, path = self._disk, self._path
        if disk.exists(self._restored):
            damaged = path / "engine.damaged"
            if disk.exists(self.engine_path):
                disk.remove_tree(damaged)
                disk.rename(self.engine_path, damaged)
                disk.fsync_dir(path)
            disk.rename(self._restored, self.engine_path)
        disk.fsync_dir(path)

    def _checkpoint(self, number: int) -> Path:
        return self._path / "checkpoint" / str(number)

    def _checkpoints(self) -> list[int]:
        # Looking makes no directory: the disk may be full.
        directory = self._path / "checkpoint"
        names = self._disk.list(directory) if self._disk.exists(directory) else []
        return sorted(int(name) for name in names if name.isdecimal())

    # --- Notes -----------------------------------------------------------------------------

    def damage(self) -> str:
        """Why the tables are known to be damaged; empty when they are not."""
        path = self._path / _DAMAGE
        if not self._disk.exists(path):
            return ""
        return self._disk.read_bytes(path).decode("utf-8", "replace") or "damaged"

    def note_damage(self, reason: str) -> None:
        """Note durably that the tables are damaged, until `forget_damage`."""
        self._disk.write_atomic(self._path / _DAMAGE, reason.encode())

    def forget_damage(self) -> None:
        """The tables are whole again, or their loss was accepted."""
        self._disk.unlink(self._path / _DAMAGE, missing_ok=True)
        self._disk.fsync_dir(self._path)

    def accepted(self) -> Accepted:
        """Return what an operator has accepted; nothing if that cannot be read."""
        path = self._path / _ACCEPTED
        if not self._disk.exists(path):
            return Accepted()
        with suppress(CorruptionError):
            match unseal(self._disk.read_bytes(path), str(path)):
                case [int(version), int(incarnation), [*files], int(gap)] if (
                    version == ACCEPTED_FORMAT
                ):
                    return Accepted(incarnation, frozenset(map(str, files)), gap)
        return Accepted()

    def accept(self, accepted: Accepted) -> None:
        """Note durably what an operator has accepted."""
        value = [ACCEPTED_FORMAT, accepted.incarnation, sorted(accepted.files), accepted.gap]
        self._disk.write_atomic(self._path / _ACCEPTED, seal(value))

    def compacted(self) -> int:
        """Return the time of the last order of a compaction that was carried out; 0 = none.

        One that cannot be read counts as none: to compact once more does no harm.
        """
        path = self._path / _COMPACTED
        with suppress(OSError, ValueError):
            if self._disk.exists(path):
                return int(self._disk.read_bytes(path))
        return 0

    def note_compacted(self, ordered_for: int) -> None:
        """Note durably that the order for that time was carried out."""
        self._disk.write_atomic(self._path / _COMPACTED, b"%d" % ordered_for)
