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

__all__ = ["RECENT_BYTES_MAX", "Shipping", "ShippingMemory"]

# Of each pinned partition; older mutations are read from the log.
RECENT_BYTES_MAX: Final = 4 * 1024 * 1024


class ShippingMemory:
    """What all partitions of a server keep in memory to be shipped, under one bound.

    Above it the partition that was written longest ago gives up what it keeps: its duplications
    have it already, or are behind and read the log anyway. The newest mutation of all stays.
    Invariant: `bytes` is the sum over `_holders`, which are in the order of their last write.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes = 0
        self._holders: dict[Shipping, None] = {}
        self._newest: Shipping | None = None

    def changed(self, holder: "Shipping", more: int) -> None:
        """`holder` was written, and keeps so many bytes more than before."""
        self.bytes += more
        if holder is not self._newest:
            self._holders.pop(holder, None)
            self._holders[holder] = None
            self._newest = holder
        while self.bytes > self.bytes_max:
            oldest = next(iter(self._holders))
            if not oldest.give_back(keep_last=oldest is holder):
                break

    def released(self, holder: "Shipping", size: int) -> None:
        """`holder` keeps so many bytes less."""
        self.bytes -= size
        if not holder.recent_bytes:
            self._holders.pop(holder, None)
            if holder is self._newest:
                self._newest = None


class Shipping:
    """One replica's shippable end.

    Invariants: `shippable` and `clock_us` never fall; no own operation above `shippable` has a
    timestamp at or below `clock_us`; `_recent` has consecutive decrees.
    """

    def __init__(self, committed: int, clock_us: int, memory: ShippingMemory | None = None) -> None:
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
        self.recent_bytes = 0
        # Exchanged for that of the server before anything is kept.
        self.memory = memory or ShippingMemory(RECENT_BYTES_MAX)
        # (decree, last timestamp) of what is not shippable yet.
        self._clocks: deque[tuple[int, int]] = deque()
        # How often this replica began to lead.
        self.terms = 0
        self._listeners: list[Callable[[], None]] = []

    def look(self, proposed: Participation) -> None:
        """Pins have changed."""
        self.pinned = proposed.holds_log
        if not self.pinned:
            self.give_back()
            self._clocks.clear()
        for uuid in list(self.confirmed):
            if not proposed.pins.get(uuid):
                del self.confirmed[uuid]
        for uuid in [uuid for uuid in self.back if uuid not in proposed.pins]:
            del self.back[uuid]
        self.notify()

    def restart(self, committed: int, clock_us: int, *, durable: bool) -> None:
        """From here on this replica leads; `clock_us` is that of what is committed.

        `durable`: all of that is on this disk. If not, only what was shippable before is: what
        was synced beyond it may have been exchanged since.
        """
        self.terms += 1
        self.give_back()
        self._clocks.clear()
        self._clocks.append((committed, clock_us))
        self.synced = committed if durable else min(self.synced, self.shippable)
        self.advance(committed)

    def remember(self, decree: int, payload: bytes) -> None:
        """A mutation goes into the log; one of the same decree before it is void."""
        recent, clocks = self._recent, self._clocks
        before = self.recent_bytes
        while recent and recent[-1][0] >= decree:
            self.recent_bytes -= len(recent.pop()[1])
        while clocks and clocks[-1][0] >= decree:
            clocks.pop()
        if recent and recent[-1][0] != decree - 1:
            recent.clear()
            self.recent_bytes = 0
        recent.append((decree, payload))
        clocks.append((decree, mutation_timestamps(payload)[1]))
        self.recent_bytes += len(payload)
        while self.recent_bytes > RECENT_BYTES_MAX and len(recent) > 1:
            self.recent_bytes -= len(recent.popleft()[1])
        self.memory.changed(self, self.recent_bytes - before)

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
        size = 0
        while recent and recent[0][0] <= decree:
            size += len(recent.popleft()[1])
        self._release(size)

    def give_back(self, *, keep_last: bool = False) -> bool:
        """Keep nothing in memory, or the newest mutation alone; whether that is less."""
        recent = self._recent
        last = recent.pop() if keep_last and recent else None
        size = self.recent_bytes - (len(last[1]) if last else 0)
        recent.clear()
        if last:
            recent.append(last)
        self._release(size)
        return size > 0

    def _release(self, size: int) -> None:
        if size:
            self.recent_bytes -= size
            self.memory.released(self, size)

    def awaited_back(self, uuid: bytes) -> set[bytes]:
        """Return what the target of a duplication will ship to here, by the uuids."""
        return {back for known in self.back.get(uuid, {}).values() for back in known}

    def confirmed_us(self, uuid: bytes, participation: Participation) -> int:
        """Return the clock up to which the target of a duplication has all; 0 = none.

        Nor does it count while something may come back from there that is not known here.
        """
        if not self.awaited_back(uuid) <= participation.sources.keys():
            return 0
        return self.confirmed.get(uuid, 0)

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
