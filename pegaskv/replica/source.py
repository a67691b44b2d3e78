"""A primary replica as the source of duplications: what it may ship, from memory or the log.

Nothing that is not committed and synced leaves this door, in rows neither: what a power
cut takes back here must not be on another cluster.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from pegaskv.base.errors import CorruptionError, NotReady
from pegaskv.base.types import Gpid
from pegaskv.codec.keys import RESERVED_PREFIX
from pegaskv.codec.messages_duplication import CopyPage, ShippedRecord
from pegaskv.replica.replica import Replica
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Snapshot
from pegaskv.storage.mutation_log import LogGone, MutationLog

__all__ = ["ReplicaSource"]

# How many bytes of the log are read at once, at most.
_READ_BYTES_MAX: Final = 64 * 1024 * 1024


class ReplicaSource:
    """One replica; it stays usable, and tells so, when the replica serves no more."""

    def __init__(
        self,
        replica: Replica,
        *,
        log: MutationLog,
        reader: Worker,
        now_ms: Callable[[], int],
        on_released: Callable[[], None],
        leave_damaged_log: Callable[[Replica, int], Awaitable[str]],
    ) -> None:
        self.gpid: Gpid = replica.gpid
        self.partition_count: int = replica.mask + 1
        self._replica = replica
        self._log = log
        self._reader = reader
        self._now_ms = now_ms
        self._on_released = on_released
        self._leave_damaged_log = leave_damaged_log
        # Up to where each duplication has let the log go.
        self._held: dict[bytes, int] = {}

    @property
    def serving(self) -> bool:
        """Whether it is primary, nobody else can be, and its barrier is committed."""
        replica = self._replica
        return replica.serving and replica.lease.valid(self._now_ms())

    @property
    def ballot(self) -> int:
        """Under which it leads, or did."""
        return self._replica.machine.ballot

    @property
    def term(self) -> int:
        """Another number whenever it leads again after others may have led."""
        return self._replica.shipping.terms

    @property
    def shippable_decree(self) -> int:
        """The last decree that is committed and synced."""
        return self._replica.shipping.shippable

    @property
    def committed_decree(self) -> int:
        """The last decree that is committed; with `os` it may not be synced yet."""
        return self._replica.machine.committed

    @property
    def clock_us(self) -> int:
        """No own operation above `shippable_decree` has a timestamp at or below this."""
        return self._replica.shipping.clock_us

    @property
    def size_bytes(self) -> int:
        """About how much the tables hold."""
        replica = self._replica
        return 0 if replica.reopening else replica.engine.size_bytes()

    def start_decree(self, uuid: bytes) -> int:
        """The decree of the committed PIN of this duplication; 0 when there is none."""
        return self._replica.participation.pins.get(uuid, 0)

    def subscribe(self, on_advance: Callable[[], None]) -> Callable[[], None]:
        """Call `on_advance` on the loop whenever `shippable_decree` rose or `serving` changed.

        Returns what ends the subscription. The callback must not block and not fail.
        """
        return self._replica.shipping.subscribe(on_advance)

    async def read_records(self, from_decree: int, max_bytes: int) -> list[ShippedRecord]:
        """Return the records from `from_decree` up to `shippable_decree`, about `max_bytes`.

        At least one when there is one. From memory when they are fresh: then it does not
        suspend.

        Raises:
            CorruptionError: the log lacks a decree that should be there; it says which.
            OSError: the log could not be read at this moment.

        """
        shipping = self._replica.shipping
        end = shipping.shippable
        if from_decree > end:
            return []
        recent = shipping.recent(from_decree, max_bytes)
        if recent is not None:
            return [ShippedRecord(decree, payload) for decree, payload in recent]
        most = min(max(max_bytes, 1), _READ_BYTES_MAX)
        # What lies above was prepared, and perhaps never committed.
        records = await self._reader.run(
            lambda: self._log.read(self.gpid, from_decree, most, through=end)
        )
        found = [ShippedRecord(record.decree, record.payload) for record in records]
        if not found or found[0].decree != from_decree:
            raise CorruptionError(
                f"the log of partition {self.gpid} lacks decrees {from_decree} to "
                f"{found[0].decree - 1 if found else end}"
            )
        return found

    async def read_rows(self, start_key: bytes, max_rows: int, max_bytes: int) -> CopyPage:
        """Return a page of rows from `start_key` on, from a snapshot taken now.

        Raises:
            RequestError, CorruptionError, OSError: not now.

        """
        replica = self._replica
        if not replica.serving:
            raise replica.refusal()
        taken: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
        decree = clock_us = 0

        def take(snapshot: Snapshot | BaseException) -> None:
            nonlocal decree, clock_us
            if isinstance(snapshot, BaseException):
                if not taken.done():
                    taken.set_exception(snapshot)
            elif taken.done():
                snapshot.close()
            else:
                # The engine is at rest here, so this is the snapshot's own state; one that
                # takes no writes has the rest laid over it.
                state = replica.engine.state()
                decree, clock_us = state.decree, state.last_timestamp_us
                if replica.unapplied is not None:
                    decree = replica.unapplied.decree
                taken.set_result(snapshot)

        replica.snapshot_then(take)
        try:
            snapshot = await taken
        except asyncio.CancelledError:
            if not taken.cancelled() and taken.exception() is None:
                taken.result().close()
            raise
        rows, next_key = await self._reader.run(
            lambda: _page(snapshot, start_key, max_rows, max_bytes)
        )
        await self._wait_until_shippable(decree)
        return CopyPage(rows, next_key, decree, clock_us)

    async def _wait_until_shippable(self, decree: int) -> None:
        """Return when `decree` is synced.

        Raises:
            NotReady: the replica serves no more, or is no source any more.

        """
        replica = self._replica
        shipping = replica.shipping
        while replica.serving and shipping.pinned and shipping.shippable < decree:
            moved = asyncio.Event()
            end = shipping.subscribe(moved.set)
            try:
                await moved.wait()
            finally:
                end()
        if not replica.serving or shipping.shippable < decree:
            raise NotReady(f"partition {self.gpid} is no source at the moment")

    async def leave_damaged_log(self, decree: int) -> str:
        """The log here cannot be read at `decree`: let a member lead that has it.

        Returns why that is in vain, or "" when another one is about to lead.

        Raises:
            RequestError: a member could not be asked, or nobody can lead now.

        """
        return await self._leave_damaged_log(self._replica, decree)

    def note_back(self, uuid: bytes, target: int, back: tuple[bytes, ...]) -> None:
        """A partition of the target has pinned its log for these duplications to here."""
        pinned = self._replica.shipping.back
        if back:
            pinned.setdefault(uuid, {})[target] = back
        elif uuid in pinned:
            pinned[uuid].pop(target, None)

    def hold(self, uuid: bytes, decree: int, clock_us: int) -> None:
        """The target has everything up to `decree`, and that is stored: let the log go."""
        start_decree = self.start_decree(uuid)
        if not start_decree:
            return
        shipping = self._replica.shipping
        if clock_us > shipping.confirmed.get(uuid, 0):
            shipping.confirmed[uuid] = clock_us
        if decree > self._held.get(uuid, start_decree):
            try:
                self._log.set_pin(self.gpid, uuid.hex(), decree)
            except LogGone:
                # An old confirmation, heard after a restart: more was confirmed and given up.
                return
            self._held[uuid] = self._replica.held[uuid] = decree
            pins = self._replica.participation.pins.items()
            shipping.forget(min(self._held.get(each, start) for each, start in pins if start))
            self._on_released()

    def held_bytes(self, uuid: bytes) -> int:
        """Bytes of the log that this duplication keeps from being given back."""
        return self._log.held_bytes(self.gpid, uuid.hex())


def _page(
    snapshot: Snapshot, start_key: bytes, max_rows: int, max_bytes: int
) -> tuple[list[bytes], bytes | None]:
    """Read up to the bounds, one row at least; then close the snapshot."""
    rows: list[bytes] = []
    size = 0
    try:
        if start_key >= RESERVED_PREFIX:
            return rows, None
        for key, row in snapshot.iterate(start_key, RESERVED_PREFIX):
            if rows and (len(rows) >= 2 * max_rows or size + len(key) + len(row) > max_bytes):
                return rows, key
            rows.append(key)
            rows.append(row)
            size += len(key) + len(row)
        return rows, None
    finally:
        snapshot.close()
