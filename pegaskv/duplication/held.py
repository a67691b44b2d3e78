"""How much log duplications may keep: all together, and whose end it is when that is too much."""

from collections.abc import Callable, Iterable
from typing import Final

from pegaskv.base.types import Gpid
from pegaskv.runtime.clock import Clock

__all__ = ["HeldLog"]

# Looked at so often at the most, whoever asks.
_FRESH_MS: Final = 500


class HeldLog:
    """Adds up what is held. `look` yields (partition, duplication, bytes), of all that run.

    A partition's log is there once, however many duplications keep it. The one that keeps most
    is given up first: one that is small and fails for a moment must not pay for another.
    """

    def __init__(
        self,
        clock: Clock,
        bytes_max: int,
        free_bytes: Callable[[], int],
        look: Callable[[], Iterable[tuple[Gpid, bytes, int]]],
    ) -> None:
        self._clock = clock
        # 0: half of the space that is free when it is first asked for.
        self.bytes_max = bytes_max
        self._free_bytes = free_bytes
        self._look = look
        self._looked_ms = -_FRESH_MS
        self._worst = b""
        self._reason = ""

    def why_too_much(self, uuid: bytes) -> str:
        """Why this duplication has to be given up for the log that it keeps; "" if it has not."""
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._looked_ms >= _FRESH_MS:
            self._looked_ms = now_ms
            self._add_up()
        return self._reason if uuid == self._worst else ""

    def _add_up(self) -> None:
        self._worst = b""
        self.bytes_max = self.bytes_max or self._free_bytes() // 2
        by_partition: dict[Gpid, int] = {}
        by_duplication: dict[bytes, int] = {}
        for gpid, uuid, held in self._look():
            by_partition[gpid] = max(by_partition.get(gpid, 0), held)
            by_duplication[uuid] = by_duplication.get(uuid, 0) + held
        total = sum(by_partition.values())
        # No number: the disk could not be asked.
        if total <= self.bytes_max or not self.bytes_max:
            return
        self._worst = max(by_duplication, key=lambda uuid: by_duplication[uuid])
        self._reason = (
            f"needs_copy: {total} bytes of log were held for duplications, more than "
            f"max_log_bytes_held = {self.bytes_max}, and this one held most "
            f"({by_duplication[self._worst]} bytes); start it again by `start_dup --copy`"
        )
