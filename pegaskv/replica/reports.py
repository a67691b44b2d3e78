"""What a replica server says of its replicas: to the meta server, and to people."""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from pegaskv.base.types import Gpid
from pegaskv.codec.messages_meta import ReplicaReport
from pegaskv.replica.participation import participation_state
from pegaskv.replica.recovery import RecoveredReplica
from pegaskv.replica.replica import Replica

__all__ = ["replica_reports", "replica_state"]


def replica_reports(
    replicas: Mapping[tuple[int, int], Replica], recovered: Mapping[Gpid, RecoveredReplica]
) -> tuple[ReplicaReport, ...]:
    """Return what the meta server must know of all replicas, in order."""
    reports = [
        ReplicaReport(
            replica.gpid,
            replica.machine.ballot,
            replica.machine.prepared.last_prepared,
            replica.machine.committed,
            replica.closed,
            replica.machine.status,
        )
        for replica in replicas.values()
    ]
    reports += [
        ReplicaReport(
            gpid,
            found.ballot,
            found.last_decree,
            found.decree,
            found.closed,
            amnesiac=found.amnesiac,
        )
        for gpid, found in recovered.items()
    ]
    return tuple(sorted(reports, key=attrgetter("gpid")))


def replica_state(replica: Replica, damage: str = "") -> dict[str, Any]:
    """Return what `app` shows of an open replica; `damage`: why rows of it are lost, if any."""
    return {
        "status": replica.machine.status.value,
        "serving": replica.serving,
        "closed": replica.closed,
        "storage_error": str(replica.engine_failed or damage),
        "ballot": replica.machine.ballot,
        "committed_decree": replica.machine.committed,
        "durability": replica.durability.value,
        "size_bytes": replica.engine.size_bytes() if not replica.reopening else 0,
        "follower": replica.follower,
        **participation_state(replica.participation),
    }
