"""Whether a partition takes a write at this moment, and what it says if not."""

from collections.abc import Sized
from typing import Generic, TypeVar

from pegaskv.base.errors import (
    Busy,
    DiskFull,
    FollowerTable,
    NotEnoughMembers,
    NotReady,
    PartitionClosed,
    RequestError,
)
from pegaskv.base.limits import (
    PARTITION_BYTES_UNAPPLIED_MAX,
    PARTITION_BYTES_UNCOMMITTED_MAX,
    PARTITION_MUTATIONS_UNCOMMITTED_MAX,
)
from pegaskv.replica.guards import Guarded

__all__ = ["Admission"]

_T = TypeVar("_T")


class _Bar(Generic[_T]):
    """An attribute that bars writes while it is true; what it is at first is false."""

    __slots__ = ("_first", "_name")

    def __init__(self, first: _T) -> None:
        self._first = first

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, replica: "Admission | None", owner: type) -> _T:
        if replica is None:
            return self._first
        found: _T = vars(replica).get(self._name, self._first)
        return found

    def __set__(self, replica: "Admission", value: _T) -> None:
        vars(replica)[self._name] = value
        replica.raise_guards()


class Admission(Guarded):
    """The part of a replica that refuses writes; `read_only` says until an operator acts.

    Invariant: `admits` is that a client's write is taken unless too many are under way.
    """

    admits = False
    uncommitted_mutations_max = PARTITION_MUTATIONS_UNCOMMITTED_MAX
    uncommitted_bytes_max = PARTITION_BYTES_UNCOMMITTED_MAX
    applying_bytes_max = PARTITION_BYTES_UNAPPLIED_MAX
    read_only = _Bar("")
    disk_full = _Bar(False)
    # Why there are too few members to write to, or "".
    too_few_members = _Bar("")
    engine_failed = _Bar[BaseException | None](None)
    # Why the replica does not serve until an operator acts, or "".
    closed = ""
    # Batches without a decree, and those that are not committed.
    full: Sized
    in_flight: Sized
    uncommitted_bytes = 0
    applying_bytes = 0

    def refusal(self) -> RequestError:
        """Why the replica does not serve at this moment."""
        if self.closed:
            return PartitionClosed(f"partition {self.gpid} is closed: {self.closed}")
        return NotReady(f"partition {self.gpid} is not ready yet")

    def raise_guards(self) -> None:
        """Bring the flags that the hot path looks at in line with the rest."""
        super().raise_guards()
        self.admits = (
            self._serving
            and not self._follower
            and not self.too_few_members
            and not self.disk_full
            and not self.read_only
            and self.engine_failed is None
        )

    def admit(self, size: int = 0) -> None:
        """Raise the error that a client's write of `size` bytes is answered with, if any."""
        if self._follower and self._serving:
            raise FollowerTable(
                f"table {self.gpid[0]} is the target of a duplication and takes no writes",
                hint="write at the source; or open it, by `open_table` or a duplication back",
            )
        self.admit_received(size)

    def admit_received(self, size: int = 0) -> None:
        """Raise the error that a duplicated write is answered with, if any."""
        if not self._serving:
            raise self.refusal()
        if self.too_few_members:
            raise NotEnoughMembers(self.too_few_members)
        if self.disk_full:
            raise DiskFull(f"partition {self.gpid} refuses writes: the disk is nearly full")
        if self.read_only:
            raise PartitionClosed(f"partition {self.gpid} takes no writes: {self.read_only}")
        if self.engine_failed is not None:
            raise Busy(
                f"partition {self.gpid} is reopening its storage after {self.engine_failed}",
                details={"retry_after_ms": 500},
            )
        if (
            len(self.full) + len(self.in_flight) >= self.uncommitted_mutations_max
            or self.uncommitted_bytes + size > self.uncommitted_bytes_max
            or self.applying_bytes > self.applying_bytes_max
        ):
            raise Busy(
                f"partition {self.gpid} has too many writes under way",
                details={"retry_after_ms": 20},
            )
