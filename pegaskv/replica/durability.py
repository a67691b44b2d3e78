"""Between the two durabilities of a table: what holds meanwhile, and what the manifest says.

A change is an order in the partition's own log. To `fsync`: commits wait for a sync from
the moment that it is wanted. To `os`: acknowledgements before a sync may come only once
the manifest says durably that the replica's tail may be lost.
"""

import logging
from collections.abc import Callable

from pegaskv.base.types import Durability, ReplicaStatus
from pegaskv.codec.mutations import OperationKind
from pegaskv.replica.control import propose_control
from pegaskv.replica.replica import Replica
from pegaskv.runtime.worker import Worker
from pegaskv.storage.directories import DataDirectory

__all__ = ["DurabilityChanges"]

_log = logging.getLogger(__name__)


class DurabilityChanges:
    """Carries changes of durability out, over one server's replicas."""

    def __init__(self, directory: DataDirectory, worker: Worker) -> None:
        self._directory = directory
        self._worker = worker

    def want(self, replica: Replica, wanted: Durability) -> None:
        """The table is to have this durability."""
        if wanted is not replica.wanted_durability and replica.machine.serving:
            replica.wanted_durability = wanted
            if wanted is Durability.FSYNC:
                # From here on commits wait; the order itself is the first that does.
                replica.fsync = True
            propose_control(replica, OperationKind.DURABILITY, [wanted.value.encode()])
        elif replica.durability is Durability.OS and replica.fsync:
            self._allow_os(replica)

    def on_ordered(self, replica: Replica, durability: Durability) -> None:
        """The order is committed."""
        replica.durability = durability
        if replica.machine.status is not ReplicaStatus.PRIMARY:
            # Nobody orders here: what the primary has ordered is what is wanted.
            replica.wanted_durability = durability
            replica.fsync = replica.fsync or durability is Durability.FSYNC
        if durability is Durability.OS:
            self._allow_os(replica)
        else:
            self._mark_os(replica, acknowledged=False)

    def _allow_os(self, replica: Replica) -> None:
        """Acknowledge without a sync once the manifest says so: its tail may be lost."""

        def marked() -> None:
            replica.fsync = replica.wanted_durability is Durability.FSYNC

        self._mark_os(replica, acknowledged=True, then=marked)

    def _mark_os(
        self, replica: Replica, *, acknowledged: bool, then: Callable[[], None] | None = None
    ) -> None:
        replica.durability_marks += 1
        mark = replica.durability_marks

        def done(_: None, error: BaseException | None) -> None:
            if error is not None:
                _log.error("partition %s stays in fsync mode: %s", replica.gpid, error)
            elif then is not None and mark == replica.durability_marks:
                # A later mark may say the opposite.
                then()

        self._worker.submit(
            lambda: self._directory.mark_os_acknowledged(replica.gpid, acknowledged), done
        )
