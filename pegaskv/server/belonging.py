"""What a data directory belongs to: one kind of server, and one cluster.

The files of a meta server mean nothing to a replica server, and those of one cluster's
replica must never be offered to another cluster. So the first start writes down which kind
of server the directory is of, and a replica server which cluster it has joined; whoever
comes later with something else is refused before anything is touched.
"""

from pathlib import Path
from typing import Final

from pegaskv.base.errors import DirectoryUnusable
from pegaskv.storage.disk import Disk

__all__ = ["check_role", "joined_cluster", "keep_role", "remember_cluster"]

_ROLE: Final = "role"
_CLUSTER: Final = "cluster"
_WORDS: Final = {
    "standalone": "a standalone server",
    "meta": "a meta server",
    "replica": "a replica server",
}
_CHARACTERS_MAX: Final = 64


def check_role(disk: Disk, path: Path, role: str) -> None:
    """Refuse a directory that another kind of server uses; one that is new is fine. Blocks.

    Raises:
        DirectoryUnusable: it is another's, or says what is no kind of server.
        OSError: it cannot be read.

    """
    found = _role_of(disk, path)
    if found in ("", role):
        return
    if found not in _WORDS:
        raise DirectoryUnusable(
            f"{path / _ROLE} is damaged: it holds {found!r}",
            hint=f"write one of {', '.join(_WORDS)} into it, whose data it is",
        )
    raise DirectoryUnusable(
        f"{path} is the data directory of {_WORDS[found]}, and this is {_WORDS[role]}",
        hint=f"name another by --data, or serve this one by `pegaskv {found}`",
    )


def keep_role(disk: Disk, path: Path, role: str) -> None:
    """Write down whose directory this is, which was taken before. Blocks; raises OSError."""
    if not disk.exists(path / _ROLE):
        disk.write_atomic(path / _ROLE, f"{role}\n".encode())


def joined_cluster(disk: Disk, path: Path) -> str:
    """Return the uuid of the cluster that this directory is a part of; "" if of none yet. Blocks.

    Raises:
        DirectoryUnusable: what is written there is no uuid.
        OSError: it cannot be read.

    """
    text = _text(disk, path / _CLUSTER)
    if len(text) > _CHARACTERS_MAX or not text.isprintable():
        raise DirectoryUnusable(
            f"{path / _CLUSTER} is damaged: it holds {text[:40]!r}",
            hint="put the uuid of the cluster back, as `cluster_info` of its meta server shows it",
        )
    return text


def remember_cluster(disk: Disk, path: Path, uuid: str) -> None:
    """Write down which cluster this directory is a part of. Blocks; raises OSError."""
    disk.write_atomic(path / _CLUSTER, f"{uuid}\n".encode())


def _role_of(disk: Disk, path: Path) -> str:
    if disk.exists(path / _ROLE):
        return _text(disk, path / _ROLE) or "nothing"
    # Before there were others, all directories were those of standalone servers, which keep the
    # records of a meta server and replicas side by side.
    records = path / "meta"
    return "standalone" if disk.exists(records) and disk.list(records) else ""


def _text(disk: Disk, path: Path) -> str:
    if not disk.exists(path):
        return ""
    return disk.read_bytes(path).decode("ascii", errors="backslashreplace").strip()
