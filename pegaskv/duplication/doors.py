"""What a duplication needs of the server that it runs in, as protocols.

Replica, meta and duplication are siblings that never import each other; the composition
root hands one's doors to the other.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_duplication import (
    CopyPage,
    EnsureAnswer,
    PartitionProgress,
    ProgressReport,
    RemoteWork,
    ShippedRecord,
)

__all__ = [
    "CopyPage",
    "EnsureAnswer",
    "MetaDoor",
    "ProgressDoor",
    "RemoteWork",
    "ShippedRecord",
    "SourcePartition",
    "SourceReplicas",
]


class SourcePartition(Protocol):
    """A primary replica on this server, as a source."""

    gpid: Gpid
    partition_count: int

    @property
    def serving(self) -> bool:
        """Whether it is primary, nobody else can be, and its barrier is committed."""
        ...

    @property
    def ballot(self) -> int:
        """Under which it leads, or did."""
        ...

    @property
    def term(self) -> int:
        """Another number whenever it leads again after others may have led."""
        ...

    @property
    def shippable_decree(self) -> int:
        """The last decree that is committed and synced: none above it may be shipped."""
        ...

    @property
    def committed_decree(self) -> int:
        """The last decree that is committed; with `os` it may not be synced yet."""
        ...

    @property
    def clock_us(self) -> int:
        """No own operation above `shippable_decree` has a timestamp at or below this."""
        ...

    @property
    def size_bytes(self) -> int:
        """About how much the tables hold."""
        ...

    def start_decree(self, uuid: bytes) -> int:
        """The decree of the committed PIN of this duplication; 0 when there is none."""
        ...

    def subscribe(self, on_advance: Callable[[], None]) -> Callable[[], None]:
        """Call `on_advance` on the loop whenever `shippable_decree` rose or `serving` changed.

        Returns what ends the subscription. The callback must not block and not fail.
        """
        ...

    async def read_records(self, from_decree: int, max_bytes: int) -> list[ShippedRecord]:
        """Return the records from `from_decree` up to `shippable_decree`, about `max_bytes`.

        At least one when there is one. From memory when they are fresh: then it does not
        suspend.

        Raises:
            CorruptionError: the log lacks a decree that should be there; it says which.
            OSError: the log could not be read at this moment.

        """
        ...

    async def read_rows(self, start_key: bytes, max_rows: int, max_bytes: int) -> CopyPage:
        """Return a page of rows from `start_key` on, from a snapshot taken now.

        Raises:
            RequestError, CorruptionError, OSError: not now.

        """
        ...

    async def leave_damaged_log(self, decree: int) -> str:
        """The log here cannot be read at `decree`: let a member lead that has it.

        Returns why that is in vain, or "" when another one is about to lead.

        Raises:
            RequestError: a member could not be asked, or nobody can lead now.

        """
        ...

    def note_back(self, uuid: bytes, target: int, back: tuple[bytes, ...]) -> None:
        """A partition of the target has pinned its log for these duplications to here.

        They may bring writes that are older than what the target has confirmed.
        """
        ...

    def hold(self, uuid: bytes, decree: int, clock_us: int) -> None:
        """The target has everything up to `decree`, and that is stored: let the log go."""
        ...

    def held_bytes(self, uuid: bytes) -> int:
        """Bytes of the log that this duplication keeps from being given back."""
        ...


class SourceReplicas(Protocol):
    """All replicas of this server."""

    def source(self, gpid: Gpid) -> SourcePartition | None:
        """The replica, if it is here and primary."""
        ...

    def replica_state(self, gpid: Gpid) -> Mapping[str, Any]:
        """What is shown of a replica; `closed` says why it serves nobody until somebody acts."""
        ...


class ProgressDoor(Protocol):
    """The leading meta server, as duplications on replica servers see it."""

    async def report_progress(self, reports: list[ProgressReport]) -> list[PartitionProgress]:
        """Store the reports (one commit if they fit); return when they are stored.

        Reports of entries that are gone or ended are ignored.

        Raises:
            RequestError: nothing is known of them; report again.

        """
        ...


class MetaDoor(ProgressDoor, Protocol):
    """The leading meta server, as the coordinator beside it sees it."""

    def remote_work(self) -> list[RemoteWork]:
        """What has to be done at other clusters now: read when `on_remote_work` was called."""
        ...

    async def ensured(self, dupid: int, uuid: bytes, answer: EnsureAnswer) -> None:
        """The target answered: stored, then pushed. Raises RequestError: tell it again."""
        ...

    async def forgotten(self, dupid: int, uuid: bytes) -> None:
        """The target has forgotten a removed duplication, or nobody will ever ask it again."""
        ...


# What is shown of one duplication's partition, by name.
LiveState = Mapping[str, Any]
