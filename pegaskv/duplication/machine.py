"""pure: the log of one source partition on its way to the partitions of the target.

Counts of partitions are powers of two and the hash is common, so source partition s of n
writes only to target partitions t with t ≡ s modulo the smaller count. Each pair is a
stream of its own: the target stores how far it got together with the rows, a batch says
what it follows, and the target tells when something is missing. Then all streams of the
partition are opened again and go on from what the target has.

It promises (names as in the project's invariants):

* confirmed <= shipped <= committed and synced at the source; confirmed never falls (I-D1, I-D2);
* every own operation above the start is in exactly the batch that its stream expects, so
  none is lost and none is applied twice (I-D3, I-D5);
* the target gets them in the order of decrees (I-D4).
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pegaskv.codec.messages_duplication import ShippedRecord
from pegaskv.codec.mutations import mutation_timestamps
from pegaskv.duplication.slicing import content_of, slice_for

__all__ = ["Batch", "LogMachine", "Lost", "target_indices"]

_NO_DECREE: Final = 0


def target_indices(index: int, count: int, remote_count: int) -> list[int]:
    """Return the target partitions that source partition `index` of `count` can write to."""
    least = min(count, remote_count)
    return list(range(index % least, remote_count, least))


class Lost(NamedTuple):
    """Decrees that one side should have and has not: nothing can go on."""

    text: str


@dataclass(slots=True)
class Batch:
    """What one target partition gets at once: everything of (previous, last] that is its."""

    target: int
    previous: int
    last: int
    clock_us: int
    # [decree, mutation, decree, mutation, ...]
    mutations: list[int | bytes] = field(default_factory=list)
    size: int = 0
    # Of its oldest mutation: the decree, and when it was written. Both 0 without one.
    first: int = 0
    timestamp_us: int = 0
    own: int = 0


@dataclass(slots=True)
class _Stream:
    """One target partition: `acked` is stored there, `sent` is on its way."""

    acked: int = _NO_DECREE
    acked_clock_us: int = 0
    sent: int = _NO_DECREE
    in_flight: deque[Batch] = field(default_factory=deque)


class LogMachine:
    """Where the streams of one source partition are.

    `read` is the decree up to which the log was read into batches. Invariants (`check`):
    acked <= sent <= read in each stream, batches in flight are contiguous by decree.
    """

    def __init__(self, index: int, count: int, remote_count: int, *, start_decree: int) -> None:
        self.start_decree = start_decree
        self.read = start_decree
        self.read_clock_us = 0
        self._mask = remote_count - 1
        self._whole = remote_count <= count
        self._streams = {t: _Stream() for t in target_indices(index, count, remote_count)}
        # The last decree with own operations, and with rows of other clusters.
        self._last_own = _NO_DECREE
        self._last_received = _NO_DECREE
        self.shipped = 0

    @property
    def targets(self) -> list[int]:
        """The target partitions, in order."""
        return list(self._streams)

    def opened(
        self,
        progress: dict[int, tuple[int, int]],
        *,
        committed_decree: int,
        confirmed_decree: int,
    ) -> Lost | None:
        """The target told how far each stream is, and the source's clock there.

        Nothing is on its way. `confirmed_decree` is what the meta server has stored.
        """
        decrees = [decree for decree, _ in progress.values()]
        most, least = max(decrees), min(decrees)
        if most > committed_decree:
            return Lost(
                f"the source lost decrees {committed_decree + 1} to {most}, "
                "which the target has already"
            )
        if least < confirmed_decree:
            return Lost(
                f"the target lost what it had confirmed: it is at decree {least} "
                f"and was at {confirmed_decree}"
            )
        for target, stream in self._streams.items():
            # The answer that would have told may have been lost with its connection.
            decree, clock_us = progress[target]
            stream.acked = stream.sent = decree
            stream.acked_clock_us = max(stream.acked_clock_us, clock_us)
            stream.in_flight.clear()
        self.read = max(self.start_decree, least)
        self._last_own = self._last_received = _NO_DECREE
        return None

    def take(
        self, records: list[ShippedRecord], *, shippable_decree: int, clock_us: int
    ) -> list[Batch]:
        """Return the batches that carry `records`, which follow what was read before.

        `clock_us` is the source's clock at `shippable_decree`.
        """
        batches: dict[int, Batch] = {}
        for decree, payload in records:
            assert decree == self.read + 1, "the log of a source is read without a gap"
            self.read = decree
            first, last = mutation_timestamps(payload)
            self.read_clock_us = max(self.read_clock_us, last)
            content = content_of(payload)
            if content.received_rows:
                self._last_received = decree
            if not content.own:
                continue
            self._last_own = decree
            for target, stream in self._streams.items():
                if decree <= stream.sent:
                    continue
                if not self._whole:
                    part = slice_for(payload, target, self._mask)
                elif content.pure:
                    part = payload
                else:
                    part = slice_for(payload, 0, 0)
                if not part:
                    continue
                batch = batches.get(target)
                if batch is None:
                    batch = batches[target] = Batch(
                        target, stream.sent, decree, 0, first=decree, timestamp_us=first
                    )
                batch.mutations += (decree, part)
                batch.size += len(part)
                batch.own += 1
        if self.read == shippable_decree:
            self.read_clock_us = max(self.read_clock_us, clock_us)
        for batch in batches.values():
            self._send(batch, self.read)
        return list(batches.values())

    def empty_batches(self) -> list[Batch]:
        """Return what moves the progress of streams that got nothing for a while.

        Progress alone is no reason: two clusters would answer each other for ever.
        """
        wanted = max(self._last_own, self._last_received)
        found = []
        for target, stream in self._streams.items():
            if stream.sent < wanted:
                batch = Batch(target, stream.sent, self.read, 0)
                self._send(batch, self.read)
                found.append(batch)
        return found

    def _send(self, batch: Batch, last: int) -> None:
        stream = self._streams[batch.target]
        batch.last = last
        batch.clock_us = self.read_clock_us
        stream.sent = last
        stream.in_flight.append(batch)
        self.shipped += batch.own

    def acked(self, target: int, progress: int) -> bool:
        """The target answered one batch; False when it misses something: open again."""
        stream = self._streams[target]
        if progress > stream.sent:
            # An answer to what an earlier run sent; the stream knows of it when it is opened.
            return False
        expected = stream.in_flight[0].last if stream.in_flight else stream.sent
        while stream.in_flight and stream.in_flight[0].last <= progress:
            batch = stream.in_flight.popleft()
            stream.acked_clock_us = max(stream.acked_clock_us, batch.clock_us)
        stream.acked = max(stream.acked, progress)
        return progress >= expected

    # What is known.

    @property
    def stored_decree(self) -> int:
        """Every target partition has stored progress up to here."""
        return min(stream.acked for stream in self._streams.values())

    @property
    def stored_clock_us(self) -> int:
        """The source's clock at `stored_decree`, or earlier."""
        return min(stream.acked_clock_us for stream in self._streams.values())

    @property
    def confirmed_decree(self) -> int:
        """Every own operation up to here is stored at the target."""
        firsts = [
            next((one for one in stream.in_flight if one.own), None)
            for stream in self._streams.values()
        ]
        return min((one.first for one in firsts if one is not None), default=self.read + 1) - 1

    @property
    def batches_in_flight(self) -> int:
        """Of the stream that has most."""
        return max(len(stream.in_flight) for stream in self._streams.values())

    @property
    def unconfirmed(self) -> int:
        """Mutations with own operations that are on their way."""
        return sum(b.own for stream in self._streams.values() for b in stream.in_flight)

    @property
    def oldest_timestamp_us(self) -> int:
        """When the oldest operation that is on its way was written; 0 when there is none."""
        firsts = [
            batch.timestamp_us
            for stream in self._streams.values()
            for batch in stream.in_flight
            if batch.timestamp_us
        ]
        return min(firsts, default=0)

    @property
    def wants_empty_batches(self) -> bool:
        """Whether `empty_batches` would return any."""
        wanted = max(self._last_own, self._last_received)
        return any(stream.sent < wanted for stream in self._streams.values())

    def check(self) -> None:
        """Assert the invariants; tests call this after every step."""
        for stream in self._streams.values():
            assert stream.acked <= stream.sent
            previous = stream.acked
            for batch in stream.in_flight:
                assert batch.previous >= previous or batch.previous == 0
                assert batch.last > batch.previous
                previous = batch.last
            assert not stream.in_flight or stream.sent == stream.in_flight[-1].last
