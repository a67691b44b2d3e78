"""pure: why a duplication cannot go on at the moment, in a class, a sentence, and what helps."""

from typing import Final, NamedTuple

from pegaskv.base.errors import (
    AuthenticationError,
    Busy,
    BusyCreating,
    BusyDropping,
    ClockSkew,
    CorruptionError,
    DiskFull,
    DuplicationNotListed,
    ForwardToOthers,
    InvalidArgument,
    InvalidData,
    NotEnoughMembers,
    NotPrimary,
    NotReady,
    NotServing,
    PartitionClosed,
    PegasKVError,
    PermissionDenied,
    RequestError,
    TableNotFound,
    Timeout,
    Unavailable,
    UnknownOperation,
    WrongPartition,
)
from pegaskv.codec.messages_duplication import DuplicationOrder

__all__ = [
    "UNREACHABLE",
    "Failure",
    "Foreign",
    "failure_of",
    "retry_ms",
    "why_broken",
]

UNREACHABLE: Final = "unreachable"
_CLOCK_MS: Final = 3_000
# What may end by itself or at the target, where nobody tells us: looked at often enough
# that the duplication goes on within seconds.
_SOON_MS_MAX: Final = {
    UNREACHABLE: 2_000,
    "foreign": 3_000,
    "not_listed": 3_000,
    "target_gone": 3_000,
    "target_closed": 3_000,
    "busy": 3_000,
    "target_full": 3_000,
    "source_error": 3_000,
}
# It may come from another server, and is shown for each of thousands of partitions.
_CHARACTERS_MAX: Final = 400


class Foreign(PegasKVError):
    """The table or the cluster that answered is not the one that is meant."""


class Failure(NamedTuple):
    """What is shown while a duplication is stalled."""

    error_class: str
    text: str


_CLASSES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (AuthenticationError, "refused"),
    (PermissionDenied, "refused"),
    (ClockSkew, "clock"),
    (Foreign, "foreign"),
    (DuplicationNotListed, "not_listed"),
    (TableNotFound, "target_gone"),
    (PartitionClosed, "target_closed"),
    (UnknownOperation, "target_too_old"),
    (InvalidData, "rejected"),
    (InvalidArgument, "unacceptable"),
    (DiskFull, "target_full"),
    (Timeout, UNREACHABLE),
    (Unavailable, UNREACHABLE),
    (Busy, "busy"),
    (BusyCreating, "busy"),
    (BusyDropping, "busy"),
    (NotReady, "busy"),
    (NotEnoughMembers, "busy"),
    (NotServing, "busy"),
    (NotPrimary, "busy"),
    (WrongPartition, "busy"),
    (ForwardToOthers, "busy"),
    (CorruptionError, "source_error"),
)


def failure_of(error: BaseException) -> Failure:
    """Classify what stopped a duplication for now; `why_broken` is asked first."""
    text = (str(error) or type(error).__name__)[:_CHARACTERS_MAX]
    for cls, name in _CLASSES:
        if isinstance(error, cls):
            return Failure(name, text)
    if isinstance(error, MemoryError):
        return Failure("source_error", "this server has no memory for it at the moment")
    if isinstance(error, OSError):
        return Failure("source_error", f"this server could not read what is to be sent: {text}")
    name = type(error).name if isinstance(error, RequestError) else type(error).__name__
    return Failure("target_error", f"the target answered {name}: {text}"[:_CHARACTERS_MAX])


def why_broken(error: BaseException, order: DuplicationOrder) -> str:
    """Why no attempt can ever succeed after this error; "" when one may."""
    details = error.details if isinstance(error, TableNotFound) else None
    if (
        isinstance(details, dict)
        and details.get("purged") is True
        # Said by the cluster itself, not by another one that was put at its address.
        and order.remote_cluster_uuid
        and details.get("cluster_uuid") == order.remote_cluster_uuid
    ):
        return (
            f"the target is gone for good: its table (id {order.remote_table_id} at "
            f"{order.remote_cluster}) was dropped and its time to be recalled has passed; "
            "`start_dup --copy` makes it anew, `remove_dup` ends the duplication"
        )
    return ""


def retry_ms(failure: Failure, attempts: int, *, least: int, most: int) -> int:
    """Return the pause before the next attempt, before chance shortens it."""
    if failure.error_class == "clock":
        return _CLOCK_MS
    ceiling = min(most, least << min(attempts, 16))
    return min(ceiling, _SOON_MS_MAX.get(failure.error_class, ceiling))
