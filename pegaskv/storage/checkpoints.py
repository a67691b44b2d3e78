"""What a published checkpoint says of itself: its state, its files and their sizes.

A checkpoint is a directory that appears whole, by a rename, or not at all. Its
file `CHECKPOINT` is written last. Sizes are compared when it is read: a file cut
short is found before anything is opened; damage inside a file is found by the
file's own checksums when it is read.
"""

from pathlib import Path
from struct import Struct
from typing import Final

import google_crc32c

from pegaskv.base.errors import CorruptionError, UnsupportedFormat, WireError
from pegaskv.base.version import CHECKPOINT_FORMAT
from pegaskv.codec.packing import pack, unpack
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import CheckpointInfo, ReplicaState

__all__ = [
    "CHECKPOINT_FILE",
    "publish",
    "read_checkpoint",
    "seal",
    "temporary_path",
    "unseal",
    "write_new",
]

CHECKPOINT_FILE: Final = "CHECKPOINT"
_CRC: Final = Struct(">I")


def seal(value: object) -> bytes:
    """Return msgpack bytes of `value` with a CRC-32C behind them: one small file's contents."""
    body = pack(value)
    return body + _CRC.pack(google_crc32c.value(body))


def unseal(data: bytes, what: str) -> object:
    """Return what `seal` was given.

    Raises:
        CorruptionError: the bytes are not what was written; `what` names them.

    """
    body = data[: -_CRC.size]
    if len(data) <= _CRC.size or _CRC.pack(google_crc32c.value(body)) != data[-_CRC.size :]:
        raise CorruptionError(f"{what} is damaged")
    try:
        return unpack(body)
    except WireError as error:
        raise CorruptionError(f"{what} is damaged: {error.message}") from None


def temporary_path(target: Path) -> Path:
    """The name under which `target` is prepared; what has it after a crash is rubbish."""
    return target.with_name(target.name + ".tmp")


def write_new(disk: Disk, path: Path, data: bytes) -> None:
    """Write a file that is not there yet; its bytes are durable, its name is not."""
    file = disk.create(path)
    try:
        file.write_at(0, data)
        file.fdatasync()
    finally:
        file.close()


def publish(
    disk: Disk, target: Path, state: ReplicaState, files: list[tuple[str, int]]
) -> CheckpointInfo:
    """Seal the prepared `temporary_path(target)` and rename it to `target`.

    The files in it must be durable; their names become so here.
    """
    temporary = temporary_path(target)
    described = [CHECKPOINT_FORMAT, state.encode(), [list(file) for file in files]]
    write_new(disk, temporary / CHECKPOINT_FILE, seal(described))
    disk.fsync_dir(temporary)
    disk.rename(temporary, target)
    disk.fsync_dir(target.parent)
    return CheckpointInfo(target, state.decree, tuple(files))


def read_checkpoint(disk: Disk, path: Path) -> tuple[CheckpointInfo, ReplicaState]:
    """Return what the published checkpoint `path` holds; every file's size was compared.

    Raises:
        CorruptionError: a file is missing, or is not as it was written.
        UnsupportedFormat: another version wrote it.

    """
    what = f"checkpoint {path}"
    try:
        described = unseal(disk.read_bytes(path / CHECKPOINT_FILE), what)
    except FileNotFoundError:
        raise CorruptionError(f"{what} has no {CHECKPOINT_FILE}") from None
    if isinstance(described, list) and described and described[0] != CHECKPOINT_FORMAT:
        raise UnsupportedFormat(
            f"{what} has format {described[0]}, this software reads {CHECKPOINT_FORMAT}"
        )
    match described:
        case [_, bytes(encoded), [*entries]]:
            state = ReplicaState.decode(encoded)
        case _:
            raise CorruptionError(f"{what} is damaged")
    files: list[tuple[str, int]] = []
    for entry in entries:
        match entry:
            case [str(name), int(size)] if "/" not in name and name not in ("", ".", ".."):
                files.append((name, size))
            case _:
                raise CorruptionError(f"{what} is damaged")
    for name, size in files:
        _check_size(disk, path / name, size)
    return CheckpointInfo(path, state.decree, tuple(files)), state


def _check_size(disk: Disk, path: Path, size: int) -> None:
    try:
        file = disk.open(path)
    except FileNotFoundError:
        raise CorruptionError(f"{path} is missing") from None
    try:
        if file.size() != size:
            raise CorruptionError(f"{path} has {file.size()} bytes instead of {size}")
    finally:
        file.close()
