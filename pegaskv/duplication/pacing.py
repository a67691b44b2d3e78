"""The rate of copies: `copy_bytes_per_second`, shared by all copies of a server.

Whose copy will then have sent least goes first, so a small partition waits for one page of
a large one at the most, however many partitions are being copied.
"""

from typing import Final

from pegaskv.runtime.clock import Clock

__all__ = ["CopyPace"]

_MS_MIN: Final = 1


class CopyPace:
    """Lets pages of copies go at so many bytes a second; 0 = as fast as they come."""

    def __init__(self, clock: Clock, bytes_per_second: int) -> None:
        self._clock = clock
        self._rate = bytes_per_second
        # When the next page may go.
        self._free_at_ms = 0
        self._number = 0
        # (bytes that its copy will have sent, number) of each page that waits.
        self._waiting: set[tuple[int, int]] = set()

    async def wait(self, size: int, sent: int) -> None:
        """Return when a page of `size` bytes may go, of a copy that has sent `sent` bytes."""
        if not (self._rate and size):
            return
        clock = self._clock
        self._number += 1
        mine = (sent + size, self._number)
        self._waiting.add(mine)
        try:
            while True:
                now_ms = clock.monotonic_ms()
                if now_ms >= self._free_at_ms and min(self._waiting) == mine:
                    break
                await clock.sleep_ms(max(_MS_MIN, self._free_at_ms - now_ms))
        finally:
            self._waiting.discard(mine)
        self._free_at_ms = now_ms + size * 1_000 // self._rate
