"""What a partition may ship, and who wants to know; the last of it stays in memory.

A mutation may be shipped when it is committed and synced: what a power cut could take back
must not be on another cluster. The newest mutations are kept here while there is a pin, so
that the last write goes out without a look at the disk. On the path of every write of a
pinned table, so it does little.
"""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from pegaskv.codec.mutations import mutation_timestamps
from pegaskv.replica.participation import Participation

__all__ = ["RECENT_BYTES_MAX", "Shipping"]

# Of each pinned partition; older mutations are read from the log.
RECENT_BYTES_MAX: Final = 4 * 1024 * 1024


class Shipping:
    """One replica's shippable end.

    Invariants: `shippable` and `clock_us` never fall; no own operation above `shippable` has a
    timestamp at or below `clock_us`; `_recent` has consecutive decrees.
    """

    def __init__(self, committed: int, clock_us: int) -> None:
        # All that was recovered is durable.
        self.synced = committed
        self.shippable = committed
        self.clock_us = clock_us
        self.pinned = False
        # What each target has confirmed, by uuid: the source's clock there.
        self.confirmed: dict[bytes, int] = {}
        # To which cluster the outgoing duplications go, as far as orders have told, by uuid.
        self.remotes: dict[bytes, int] = {}
        # Duplications from a target back to here that it has pinned, by the uuid of the outgoing
        # one and the target's partition: one that is not known here yet may bring old writes.
        self.back: dict[bytes, dict[int, tuple[bytes, ...]]] = {}
        self._recent: deque[tuple[int, bytes]] = deque()
        self._recent_bytes = 0
        # (decree, last timestamp) of what is not shippable yet.
        self._clocks: deque[tuple[int, int]] = deque()
        self._listeners: list[Callable[[], None]] = []

    def look(self, proposed: Participation) -> None:
        """Pins have changed."""
        self.pinned = proposed.holds_log
        if not self.pinned:
            self._recent.clear()
            self._clocks.clear()
            self._recent_bytes = 0
        for uuid in list(self.confirmed):
            if not proposed.pins.get(uuid):
                del self.confirmed[uuid]
        for uuid in [uuid for uuid in self.back if uuid not in proposed.pins]:
            del self.back[uuid]
        self.notify()

    def remember(self, decree: int, payload: bytes) -> None:
        """A mutation goes into the log; one of the same decree before it is void."""
        recent, clocks = self._recent, self._clocks
        while recent and recent[-1][0] >= decree:
            self._recent_bytes -= len(recent.pop()[1])
        while clocks and clocks[-1][0] >= decree:
            clocks.pop()
        if recent and recent[-1][0] != decree - 1:
            recent.clear()
            self._recent_bytes = 0
        recent.append((decree, payload))
        clocks.append((decree, mutation_timestamps(payload)[1]))
        self._recent_bytes += len(payload)
        while self._recent_bytes > RECENT_BYTES_MAX and len(recent) > 1:
            self._recent_bytes -= len(recent.popleft()[1])

    def advance(self, committed: int) -> None:
        """Decrees up to `committed` are committed, those up to `synced` are durable."""
        shippable = min(committed, self.synced)
        if shippable <= self.shippable:
            return
        clocks = self._clocks
        while clocks and clocks[0][0] <= shippable:
            self.clock_us = max(self.clock_us, clocks.popleft()[1])
        self.shippable = shippable
        self.notify()

    def recent(self, from_decree: int, max_bytes: int) -> list[tuple[int, bytes]] | None:
        """Return shippable mutations from `from_decree` on; None when they are not here."""
        recent = self._recent
        if not recent or recent[0][0] > from_decree:
            return None
        found: list[tuple[int, bytes]] = []
        size = 0
        for decree, payload in islice(recent, from_decree - recent[0][0], None):
            if decree > self.shippable or (found and size + len(payload) > max_bytes):
                break
            found.append((decree, payload))
            size += len(payload)
        return found

    def forget(self, decree: int) -> None:
        """Nobody will ask for mutations up to `decree` again."""
        recent = self._recent
        while recent and recent[0][0] <= decree:
            self._recent_bytes -= len(recent.popleft()[1])

    def awaited_back(self, uuid: bytes) -> set[bytes]:
        """Return what the target of a duplication will ship to here, by the uuids."""
        return {back for known in self.back.get(uuid, {}).values() for back in known}

    def subscribe(self, on_advance: Callable[[], None]) -> Callable[[], None]:
        """Call `on_advance` whenever more may be shipped or the role changed; return the end."""
        self._listeners.append(on_advance)

        def end() -> None:
            if on_advance in self._listeners:
                self._listeners.remove(on_advance)

        return end

    def notify(self) -> None:
        """Tell whoever listens to look again."""
        for on_advance in tuple(self._listeners):
            on_advance()
