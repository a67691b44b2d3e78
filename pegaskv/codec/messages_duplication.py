"""What the parts of a duplication tell each other: orders, progress, and the entry on the wire.

An entry belongs to the meta server, which stores it before anybody sees it. It tells the
replica servers by orders in each push of the table, and they report progress, which is
stored before it counts. Nothing is concluded from what a list lacks: an order ends because
it says so.
"""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pegaskv.base.types import DuplicationStatus, FailMode, Gpid

__all__ = [
    "UUID_BYTES",
    "CopyPage",
    "DuplicationOrder",
    "EnsureAnswer",
    "EnsureOutcome",
    "PartitionProgress",
    "ProgressReport",
    "RemoteWork",
    "ShippedRecord",
    "SourceOrder",
    "lost_pin",
    "progress_key",
]

UUID_BYTES: Final = 16


class EnsureOutcome:
    """What `ENSURE_DUPLICATION` answers; words on the wire."""

    CREATED: Final = "CREATED"
    ALREADY_YOURS: Final = "ALREADY_YOURS"
    EXISTS_FOREIGN: Final = "EXISTS_FOREIGN"


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """How far one source partition is in one duplication, as it is stored.

    `status` is DS_PREPARE, DS_APP or DS_LOG. `copied_key` is the stored key below which
    everything is copied (of use in DS_APP only). `confirmed_clock_us` is the source
    partition's clock at `confirmed_decree`. `skipped` operations and rows were left out (fail
    mode skip), the last of them in mutation `skipped_decree`.
    """

    index: int
    status: DuplicationStatus = DuplicationStatus.DS_PREPARE
    start_decree: int = 0
    confirmed_decree: int = 0
    confirmed_clock_us: int = 0
    copied_key: bytes = b""
    skipped: int = 0
    skipped_decree: int = 0


@dataclass(frozen=True, slots=True)
class DuplicationOrder:
    """An outgoing duplication as replica servers must obey it; part of a table's push.

    `ended` = removed or broken: the pin is given up. With `broken` tombstones stay, since
    a new copy will come. `remote_table_id` is 0 until the target has been ensured.
    """

    dupid: int
    uuid: bytes
    remote_cluster: str
    remote_cluster_id: int = 0
    # HOST:PORT of its meta servers, separated by commas; with the credentials if any.
    metas: str = ""
    user: str = ""
    password_file: str = ""
    remote_table_id: int = 0
    remote_partition_count: int = 0
    checkpoint: bool = True
    paused: bool = False
    ended: bool = False
    broken: bool = False
    fail_mode: FailMode = FailMode.SLOW
    # Changes with every order that restarts a back-off: start_dup, a changed entry.
    attempt: int = 0
    # As it is stored, of all partitions that ever reported.
    progress: tuple[PartitionProgress, ...] = ()
    # Of the cluster that was ensured; another one at its address is not believed.
    remote_cluster_uuid: str = ""


@dataclass(frozen=True, slots=True)
class SourceOrder:
    """An incoming duplication that a table takes; part of its push. Others are refused."""

    uuid: bytes
    cluster_id: int
    cluster_uuid: str
    cluster_name: str
    table_id: int
    ended: bool = False


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """One partition's news for the meta server: stored, then in force.

    A `failure` that is not empty asks the meta server to store that the duplication is
    broken, for this reason: found by the primary of `ballot`, and by no former one.
    """

    gpid: Gpid
    dupid: int
    uuid: bytes
    progress: PartitionProgress
    failure: str = ""
    ballot: int = 0


class ShippedRecord(NamedTuple):
    """One committed and synced mutation of a source partition, as the log has it."""

    decree: int
    payload: bytes


class CopyPage(NamedTuple):
    """Rows of a snapshot in key order, tombstones and expired ones too: [stored key, row, ...].

    `next_key` is the stored key to go on from, None at the end of the partition. No own
    operation that the snapshot lacks has a timestamp at or below `clock_us`.
    """

    rows: list[bytes]
    next_key: bytes | None
    decree: int
    clock_us: int


class EnsureAnswer(NamedTuple):
    """What a target's meta server answered; `outcome` is one of `EnsureOutcome`."""

    outcome: str
    table_id: int
    partition_count: int
    cluster_id: int
    cluster_uuid: str
    text: str


class RemoteWork(NamedTuple):
    """One thing to be done at another cluster's meta server.

    `kind` is "ensure" or "forget"; `fields` are the fields of its request, ready to be sent.
    `attempt` changes when the back-off has to begin again.
    """

    kind: str
    dupid: int
    uuid: bytes
    table_name: str
    remote_cluster: str
    remote_cluster_id: int
    metas: str
    user: str
    password_file: str
    fields: tuple[Any, ...]
    attempt: int = 0
    since_unix_seconds: int = 0


def progress_key(uuid: bytes, source_count: int, source_index: int) -> bytes:
    """Return what follows the reserved prefix of progress: one entry a source partition."""
    return uuid + source_count.to_bytes(4, "big") + source_index.to_bytes(4, "big")


def lost_pin(before: int, now: int) -> str:
    """Say that the mark in the log from which everything is shipped is not the first one."""
    return (
        f"the source lost its pin of decree {before} and has one of decree {now}: writes in "
        "between may be missing at the target; `start_dup --copy` copies all rows anew"
    )
