"""What is shown of one source partition's run: its counts, its gap, its lag."""

from typing import Any

from pegaskv.base.types import DuplicationStatus
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.duplication.doors import SourcePartition
from pegaskv.duplication.machine import LogMachine
from pegaskv.duplication.skipping import Skipped
from pegaskv.duplication.trouble import Trouble
from pegaskv.runtime.clock import Clock

__all__ = ["Shown"]


class Shown:
    """Counts of one run; `shipped` is what earlier machines have shipped."""

    def __init__(self, clock: Clock, confirmed_decree: int) -> None:
        self.conflicts = 0
        self.shipped = 0
        self.copied_rows = 0
        self.removed_rows = 0
        self.confirmed_decree = confirmed_decree
        self._clock = clock
        self._behind_since_us = 0

    def note_confirmed(self, machine: LogMachine) -> None:
        """The target has stored more."""
        self.confirmed_decree = max(self.confirmed_decree, machine.confirmed_decree)

    def state(
        self,
        order: DuplicationOrder,
        status: DuplicationStatus,
        source: SourcePartition,
        machine: LogMachine | None,
        skipped: Skipped,
        trouble: Trouble,
    ) -> dict[str, Any]:
        """Return what `query_dup` shows of the partition."""
        last = source.committed_decree
        in_log = status is DuplicationStatus.DS_LOG and machine is not None
        behind = 0
        if in_log:
            assert machine is not None
            behind = max(0, last - machine.read) + machine.unconfirmed
        confirmed = last if in_log and not behind else min(self.confirmed_decree, last)
        state = {
            "status": status.value,
            "start_decree": source.start_decree(order.uuid),
            "confirmed_decree": confirmed,
            "last_committed_decree": last,
            "gap": behind if in_log else max(0, last - confirmed),
            "lag_ms": self._lag_ms(machine, behind),
            "bytes_held": source.held_bytes(order.uuid),
            "shipped": self.shipped + (machine.shipped if machine else 0),
            "retries": trouble.retries,
            "conflicts": self.conflicts,
            "copied_rows": self.copied_rows,
            "removed_rows": self.removed_rows,
            "skipped": skipped.count,
            "skipped_keys": skipped.keys(),
            "caught_up": in_log and not behind,
            "seconds_stalled": trouble.seconds_stalled,
        }
        return state | trouble.shown(order.remote_cluster)

    def _lag_ms(self, machine: LogMachine | None, behind: int) -> int:
        """How old the oldest write is that is not at the target."""
        if not behind or machine is None:
            self._behind_since_us = 0
            return 0
        now_us = self._clock.wall_us()
        oldest_us = machine.oldest_timestamp_us or self._behind_since_us or now_us
        self._behind_since_us = oldest_us
        return max(0, (now_us - oldest_us) // 1_000)
