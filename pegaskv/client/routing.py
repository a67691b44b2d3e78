"""pure: which node serves a partition, and what an error says about that.

The table below is the whole policy of repeating: each kind of error is given
up, repeated after a pause, or repeated with fresh routing, always or once. A write is repeated
only when it was certainly not applied, or when the caller said that he accepts
the risk (`retry_unknown`); reads are repeated freely.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

from pegaskv.base.errors import (
    Busy,
    BusyCreating,
    BusyDropping,
    NotEnoughMembers,
    NotPrimary,
    NotReady,
    NotServing,
    PartitionClosed,
    RequestError,
    TableNotFound,
    Timeout,
    Unavailable,
    WireError,
    WrongPartition,
)
from pegaskv.base.hashing import is_power_of_two
from pegaskv.base.limits import PARTITION_COUNT_MAX
from pegaskv.base.types import Durability

__all__ = ["Advice", "PartitionTable", "advise", "outcome_unknown", "read_partition_table"]


class Advice(Enum):
    """What to do after an error."""

    GIVE_UP = auto()
    AGAIN = auto()
    REFRESH = auto()
    # The node does not know the table's id: look once whether the name has another by now.
    REFRESH_ONCE = auto()
    # The node keeps the partition closed: look once whether another one serves it by now.
    ELSEWHERE = auto()


# Errors that are not here are given up.
ADVICE: Final[dict[type[RequestError], Advice]] = {
    NotServing: Advice.REFRESH,
    NotPrimary: Advice.REFRESH,
    WrongPartition: Advice.REFRESH,
    NotReady: Advice.REFRESH,
    Busy: Advice.AGAIN,
    NotEnoughMembers: Advice.AGAIN,
    BusyCreating: Advice.AGAIN,
    BusyDropping: Advice.AGAIN,
    TableNotFound: Advice.REFRESH_ONCE,
    PartitionClosed: Advice.ELSEWHERE,
    # Only when nothing is at stake, see `advise`.
    Unavailable: Advice.REFRESH,
    Timeout: Advice.REFRESH,
}


def outcome_unknown(error: RequestError) -> bool:
    """Whether the write that met `error` may have been applied."""
    return isinstance(error, Timeout | Unavailable) and error.maybe_applied


def advise(error: RequestError, *, retry_unknown: bool) -> Advice:
    """Say what follows `error`; `retry_unknown` accepts that a write is applied twice."""
    if outcome_unknown(error) and not retry_unknown:
        return Advice.GIVE_UP
    if isinstance(error, Busy) and type(error.details) is dict and "throttled_by" in error.details:
        # Whoever limits a table wants to see less of it, not the same again and again.
        return Advice.GIVE_UP
    return ADVICE.get(type(error), Advice.GIVE_UP)


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A table's partitions as the meta server told them; a primary is HOST:PORT or None."""

    table_id: int
    version: int
    primaries: tuple[str | None, ...]
    secondaries: tuple[tuple[str, ...], ...] = ()
    # Whether writes wait for the disk or for other servers, as far as is known.
    waits: bool = True

    def replaces(self, known: "PartitionTable | None") -> bool:
        """Whether to go by this one; an old answer of a lagging meta server is not taken."""
        return known is None or known.table_id != self.table_id or self.version >= known.version


def read_partition_table(fields: list[Any], *, asked: str) -> PartitionTable:
    """Read the fields of a QUERY_CONFIG reply that came from the address `asked`.

    An empty primary address means that very address.

    Raises:
        WireError: it is not such a reply.

    """
    try:
        table_id, count, version, partitions = fields[:4]
        durability = fields[4] if len(fields) > 4 else Durability.FSYNC.value
        if type(table_id) is not int or type(count) is not int or type(version) is not int:
            raise WireError("ids, counts and versions are whole numbers")
        if not is_power_of_two(count) or count > PARTITION_COUNT_MAX:
            raise WireError(f"{count} is no partition count")
        primaries: list[str | None] = [None] * count
        seen: set[int] = set()
        secondaries: list[tuple[str, ...]] = [()] * count
        for index, _ballot, primary, others in partitions:
            if type(index) is not int or not 0 <= index < count or index in seen:
                raise WireError(f"partition {index!r} of {count}")
            if primary is not None and type(primary) is not str:
                raise WireError("an address is text")
            seen.add(index)
            if not isinstance(others, list) or any(type(each) is not str for each in others):
                raise WireError("secondaries are addresses")
            secondaries[index] = tuple(each or asked for each in others)
            primaries[index] = asked if primary == "" else primary
    except (TypeError, ValueError) as error:
        raise WireError(str(error)) from None
    waits = any(secondaries) or durability != Durability.OS.value
    return PartitionTable(table_id, version, tuple(primaries), tuple(secondaries), waits)
