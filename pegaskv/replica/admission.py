"""Whether a partition takes a write at this moment, and what it says if not."""

from collections.abc import Sized

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


class Admission(Guarded):
    """The part of a replica that refuses writes; `read_only` says until an operator acts."""

    uncommitted_mutations_max = PARTITION_MUTATIONS_UNCOMMITTED_MAX
    uncommitted_bytes_max = PARTITION_BYTES_UNCOMMITTED_MAX
    applying_bytes_max = PARTITION_BYTES_UNAPPLIED_MAX
    read_only = ""
    disk_full = False
    # Why there are too few members to write to, or "".
    too_few_members = ""
    # Why the replica does not serve until an operator acts, or "".
    closed = ""
    engine_failed: BaseException | None = None
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
