"""The part of a replica that follows a primary: take, hold, decode what is committed. Hot.

What the primary sends goes into the log as it is; it is decoded only when the primary has
committed it, and then for many decrees at once.
"""

from collections.abc import Callable
from typing import Any, Final

from pegaskv.base.errors import PegasKVError
from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.mutations import OperationKind, mutation_timestamps
from pegaskv.codec.values import LEAST_EXPIRY, ROW_HEADER_BYTES
from pegaskv.lease.lease import Grace
from pegaskv.replica.applying import Applying
from pegaskv.replica.batch import Batch
from pegaskv.replica.machine import ReplicaMachine
from pegaskv.replica.participation import Participation
from pegaskv.replica.prepare_list import Mutation
from pegaskv.replica.replay import mutation_effects
from pegaskv.replica.row_cache import RowCache
from pegaskv.replica.shipping import Shipping
from pegaskv.replica.ticking import Tick
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Engine
from pegaskv.storage.mutation_log import LogRecord

__all__ = ["FOLLOWS", "Follower", "may_vanish"]

FOLLOWS: Final = frozenset({ReplicaStatus.SECONDARY, ReplicaStatus.POTENTIAL_SECONDARY})
# Committed mutations of a primary are decoded when there are so many, or after a while.
_FOLLOWED_MAX: Final = 32


def may_vanish(row: bytes | None) -> bool:
    """Whether a row expires or is a tombstone, so that a sweep finds it some day."""
    return (
        row is not None
        and len(row) >= ROW_HEADER_BYTES
        and (row >= LEAST_EXPIRY or bool(row[11] & 1))
    )


class Follower(Applying):
    """Invariant: `_followed` are the decrees right after the last one that was decoded."""

    # Whether what the sweep removes may have come since its last pass.
    expires = True
    # The time of a manual compaction in seconds since 1970, 0 when none is ordered.
    compaction_ordered_for = 0
    # An open request of this replica to lead: until it is answered its old primary hears nothing.
    claiming = False

    def __init__(
        self,
        *,
        gpid: Gpid,
        machine: ReplicaMachine,
        engine: Engine,
        cache: RowCache,
        incarnation: int,
        last_timestamp_us: int,
        participation: Participation,
        apply_worker: Worker,
        tick: Tick,
        on_engine_failed: Callable[[Any, BaseException], None],
        on_control: Callable[[Any, OperationKind, list[bytes]], None],
        grace: Grace,
    ) -> None:
        super().__init__(
            engine=engine,
            cache=cache,
            participation=participation,
            apply_worker=apply_worker,
            tick=tick,
            on_engine_failed=on_engine_failed,
        )
        self.gpid = gpid
        self.machine = machine
        self.incarnation = incarnation
        # What was copied with the tables; records at or below it are of no use to them.
        self.base_decree = machine.committed
        self.last_timestamp_us = last_timestamp_us
        # What all of the log has made of it, where `participation` is the committed part.
        self.proposed = participation.copy()
        self.shipping = Shipping(machine.committed, engine.state().last_timestamp_us)
        self.shipping.look(self.proposed)
        # When the primary was heard, and what it has committed and is not decoded.
        self.grace = grace
        self._followed: list[Mutation] = []
        self._call_soon = tick.call_soon
        self._on_control = on_control

    @property
    def has_others(self) -> bool:
        """Whether other servers have the partition too."""
        return bool(self.machine.secondaries) or self.machine.status in FOLLOWS

    def may_answer_late(self, now_ms: int) -> bool:
        """Whether this is a secondary that is near its primary: it may answer who allows that."""
        return (
            self.machine.status is ReplicaStatus.SECONDARY
            and not self.closed
            and not self.reopening
            and not self.grace.over(now_ms)
        )

    @property
    def sweepable(self) -> bool:
        """Whether rows that nobody can see may be removed: each server does so for itself."""
        return self.serving or (
            self.machine.status is ReplicaStatus.SECONDARY
            and not self.closed
            and not self.reopening
        )

    def accept(self, record: LogRecord, taken: list[LogRecord], *, copied: bool = False) -> bool:
        """Take a record that the primary has sent, or that was copied from its log.

        What is new is appended to `taken`, which goes into the log. False: refused.
        """
        if self.closed or self.claiming:
            return False
        machine = self.machine
        first = record.first_timestamp_us
        mutation = Mutation(record.ballot, record.decree, first, first, record.payload)
        new = machine.accept_copied(mutation) if copied else machine.accept(mutation)
        if new is None:
            return False
        if new:
            if record.incarnation != self.incarnation:
                record = record._replace(incarnation=self.incarnation)
            taken.append(record)
        if record.committed > machine.prepared.committed:
            self.follow(record.committed)
        return True

    def follow(self, committed: int) -> None:
        """The primary has committed so far."""
        taken = self.machine.follow(committed)
        if taken:
            if not self.behind:
                self._lag(self)
            known = len(self._followed)
            self._followed += taken
            if known < _FOLLOWED_MAX <= len(self._followed):
                self._call_soon(self.digest)

    @property
    def behind(self) -> bool:
        """Whether the engine lacks what is committed."""
        return self.unapplied is not None or bool(self._followed)

    def digest(self) -> None:
        """Decode what the primary has committed, and hold it where reads see it."""
        followed, self._followed = self._followed, []
        gathered: Batch | None = None
        for mutation in followed:
            try:
                rows, controls = mutation_effects(mutation.payload, mutation.decree, self.proposed)
                last = mutation_timestamps(mutation.payload)[1]
            except PegasKVError as error:
                # Never skipped: what comes behind it may build on it.
                self.close_for(f"mutation {mutation.decree} cannot be applied: {error}")
                break
            if gathered is None or controls:
                self._keep_followed(gathered)
                gathered = Batch(mutation.first_timestamp_us)
            self._fill(gathered, mutation, rows, last)
            if controls:
                gathered.controls = tuple(controls)
                self._keep_followed(gathered)
                gathered = None
        self._keep_followed(gathered)

    def _keep_followed(self, batch: Batch | None) -> None:
        if batch is not None:
            self._keep(batch)
            self.expires = self.expires or any(map(may_vanish, batch.rows.values()))
            for kind, fields in batch.controls:
                self._on_control(self, kind, fields)
            if batch.controls:
                self.shipping.look(self.proposed)

    def apply_now(self) -> None:
        """Write what is committed to the engine: here if it is calm, else in a thread."""
        if self._followed:
            self.digest()
        super().apply_now()

    def _batch_from(self, mutation: Mutation) -> Batch:
        """Make the batch of a mutation that this process did not collect: nobody waits for it."""
        first, last = mutation_timestamps(mutation.payload)
        batch = Batch(first)
        rows, controls = mutation_effects(mutation.payload, mutation.decree, self.proposed)
        batch.controls = tuple(controls)
        self._fill(batch, mutation, rows, last)
        return batch

    def _fill(
        self, batch: Batch, mutation: Mutation, rows: list[bytes | None], last_timestamp_us: int
    ) -> None:
        """Add the rows of the next mutation to a batch."""
        batch.rows.update(zip(rows[::2], rows[1::2], strict=True))  # type: ignore[arg-type]
        batch.size += len(mutation.payload)
        batch.decree, batch.ballot = mutation.decree, mutation.ballot
        if self.proposed.sources:
            progress = self.proposed.progress_in(rows)
            batch.progress = {**batch.progress, **progress} if batch.progress else progress
        # Not that of a barrier: it is no operation, and the clock in the engine never falls.
        self.last_timestamp_us = max(self.last_timestamp_us, last_timestamp_us)
        batch.last_timestamp_us = self.last_timestamp_us

    @property
    def _applied_timestamp_us(self) -> int:
        """The timestamp of the last operation that is committed here."""
        if self.unapplied is not None:
            return self.unapplied.last_timestamp_us
        if self.reopening:
            # Nobody knows; too little is never wrong.
            return 0
        return self.engine.state().last_timestamp_us

    def close_for(self, reason: str) -> None:
        """Serve nobody until an operator acts."""
        self.closed = reason
        self.serving = False
        self.shipping.notify()
