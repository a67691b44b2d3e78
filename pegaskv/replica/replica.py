"""One partition on this node: its machine, its engine, its open batches. On the hot path.

The machine decides; this class keeps what the machine must not know: the rows of
each mutation, who waits for it, and the engine that it is applied to. It runs on
the loop and awaits nothing.

Where a key is looked up, in this order: batches that are open, full or in the log
(for atomic operations only), committed rows that the engine has not taken yet, and
the engine. Plain reads see committed rows only.

The engine gets committed rows late and many at once, since a LevelDB write costs ten
times as much as a row in it: until then they are in `applying`, where reads look first.
When a write would be made to wait, it goes through a thread. A failed engine write ends
the engine, not the replica: committed rows stay in `applying`, reads and scans go on,
writes are refused, and `repairs` sees to the engine.
"""

from collections import deque
from collections.abc import Callable
from itertools import chain
from typing import Any, Final

from pegaskv.base.errors import NotReady, PegasKVError
from pegaskv.base.types import Durability, Gpid
from pegaskv.codec.mutations import OperationKind, encode_mutation, mutation_timestamps
from pegaskv.codec.values import seconds_since_epoch
from pegaskv.net.connection import ServerConnection
from pegaskv.replica.admission import Admission
from pegaskv.replica.batch import Batch
from pegaskv.replica.effects import Append
from pegaskv.replica.events import Assigned, Deactivated
from pegaskv.replica.machine import ReplicaMachine
from pegaskv.replica.overlay import OverlaidSnapshot
from pegaskv.replica.participation import DURABILITY_KEY, Participation
from pegaskv.replica.prepare_list import Mutation
from pegaskv.replica.replay import mutation_controls, mutation_rows
from pegaskv.replica.shipping import Shipping
from pegaskv.replica.slow_requests import SlowRequests
from pegaskv.replica.ticking import Tick
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Engine, ReplicaState, Snapshot
from pegaskv.storage.mutation_log import LogRecord

__all__ = ["Replica"]

# Committed rows are written to the engine when there are so many, or so many bytes of
# them; the front sees to it that none waits longer than a few milliseconds.
_APPLY_ROWS: Final = 512
_APPLY_BYTES: Final = 256 * 1024
# More than this goes through the thread also when the engine is calm.
_LOOP_ROWS: Final = 1_024
_LOOP_BYTES: Final = 512 * 1024

_MISSING: Final[Any] = object()


class Replica(Admission):
    """A partition's replica.

    Invariants: `serving` implies that the machine serves and nothing closed the replica;
    `in_flight` holds the batches of exactly the decrees in the machine's window.
    """

    reopening = False
    available = True
    # Whether what the sweep removes may have come since its last pass.
    expires = True
    earliest_expiry = 0
    # Batches that were never logged.
    batches_refused = 0

    def __init__(
        self,
        gpid: Gpid,
        *,
        machine: ReplicaMachine,
        engine: Engine,
        incarnation: int,
        partition_count: int,
        cluster_id: int,
        last_timestamp_us: int,
        participation: Participation,
        clock: Clock,
        apply_worker: Worker,
        tick: Tick,
        on_engine_failed: Callable[["Replica", BaseException], None],
        on_control: Callable[["Replica", OperationKind, list[bytes]], None],
        slow: SlowRequests,
    ) -> None:
        self.gpid = gpid
        self.machine = machine
        self.engine = engine
        self.incarnation = incarnation
        self.index = gpid.partition_index
        self.mask = partition_count - 1
        self.cluster_bits = cluster_id << 1
        self.last_timestamp_us = last_timestamp_us
        self.default_ttl = 0
        stored = engine.get(DURABILITY_KEY)
        self.durability = Durability(stored.decode()) if stored else Durability.FSYNC
        # How often the manifest was told whether `os` acknowledgements may come.
        self.durability_marks = 0
        self.wanted_durability = self.durability
        # Whether commits wait for a sync; `os` takes effect once the manifest says so.
        self.fsync = True
        # What the committed part of the log has made of the partition, and all of it.
        self.participation = participation
        self.proposed = participation.copy()
        self.shipping = Shipping(machine.committed, engine.state().last_timestamp_us)
        self.shipping.look(self.proposed)
        # Set while the front has this replica on its list for the next tick.
        self.dirty = False
        # When that was.
        self._woken_ms = 0
        # The barrier of the present ballot is committed, and nobody was told.
        self._begins_to_serve = False

        self.open: Batch | None = None
        self.full: deque[Batch] = deque()
        self.in_flight: deque[Batch] = deque()
        self._unproposed: list[tuple[Mutation, int]] = []
        self.uncommitted_bytes = 0
        self.applying: dict[bytes, bytes | None] = {}
        self.unapplied: deque[Batch] = deque()
        self.applying_bytes = 0
        # How many of the unapplied batches a thread is writing at the moment.
        self._in_thread = 0
        # Who waits for a snapshot that holds everything up to a decree.
        self._snapshots: deque[tuple[int, Callable[[Snapshot | BaseException], None]]] = deque()

        self._clock = clock
        self._apply_worker = apply_worker
        self._wake, self._lag, self._call_soon = tick.wake, tick.lag, tick.call_soon
        self.after_sync = tick.after_sync
        self._on_engine_failed = on_engine_failed
        self._on_control = on_control
        self._slow = slow
        self.on_serving: Callable[[], None] | None = None

    # --- Reading -----------------------------------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        """Return the committed row under a stored key."""
        if self.applying:
            row = self.applying.get(key, _MISSING)
            if row is not _MISSING:
                return row  # type: ignore[no-any-return]
        return self.engine.get(key)

    def snapshot_then(self, use: Callable[[Snapshot | BaseException], None]) -> None:
        """Call `use` with a snapshot that holds all that is committed now.

        On the loop, at once unless the engine is behind. The caller closes the snapshot.
        """
        self.apply_now()
        if self.reopening:
            use(NotReady(f"partition {self.gpid} is reopening its storage"))
        elif not self.unapplied or self.engine_failed is not None:
            use(self._view())
        else:
            self._snapshots.append((self.unapplied[-1].decree, use))

    def _view(self) -> Snapshot | BaseException:
        try:
            snapshot = self.engine.snapshot()
            # What the engine does not take is seen beside it.
            return OverlaidSnapshot(snapshot, self.applying) if self.applying else snapshot
        except (OSError, MemoryError, PegasKVError) as error:
            return error

    # --- Filling batches ---------------------------------------------------------------

    def open_batch(self, size: int = 0) -> Batch:
        """Return the batch that takes the next operation; `size` is what is about to come.

        Raises:
            NotReady, PartitionClosed, FollowerTable, DiskFull, Busy: nothing can be written now.

        """
        self.admit(size)
        batch = self.open
        if batch is None:
            batch = self.open = self.begin_batch()
        return batch

    def begin_batch(self) -> Batch:
        """Return a batch above all that was written, which the next tick takes up."""
        wall_us = self._clock.wall_us()
        first = self.last_timestamp_us + 1
        if first < wall_us:
            first = wall_us
        self.last_timestamp_us = first - 1
        if not self.dirty:
            self.dirty = True
            self._woken_ms = self._wake(self)
        return Batch(first, seconds_since_epoch(wall_us), self._woken_ms)

    def continue_batch(self) -> Batch:
        """Put the open batch behind the full ones and return a new one."""
        batch = self.open
        assert batch is not None
        batch.last_timestamp_us = self.last_timestamp_us
        self.full.append(batch)
        self.uncommitted_bytes += batch.size
        self.open = self.begin_batch()
        return self.open

    @property
    def last_pending(self) -> Batch | None:
        """The youngest batch that is not committed."""
        if self.open is not None:
            return self.open
        pending = self.full or self.in_flight
        return pending[-1] if pending else None

    def answer_after_pending(self, connection: ServerConnection, reply: Any) -> None:
        """Send `reply` once all that is pending now is committed; at once if nothing is.

        What was evaluated against pending writes must not be told before they are sure.
        """
        batch = self.last_pending
        if batch is None:
            if reply[1] == 0:
                reply[2] = self.machine.committed
            connection.out.append(reply)
            return
        connection.defer()
        batch.replies.append((connection, reply))

    # --- The tick ----------------------------------------------------------------------

    def assign(self, ballot: int) -> None:
        """Become primary under `ballot`: the tail and a barrier go into the log first."""
        for effect in self.machine.step(Assigned(ballot)):
            if isinstance(effect, Append):
                self._unproposed = [(mutation, effect.committed) for mutation in effect.mutations]
        self.serving = False
        self.shipping.notify()
        if self._unproposed and not self.dirty:
            self.dirty = True
            self._woken_ms = self._wake(self)

    @property
    def pending_bytes(self) -> int:
        """The bytes of batches that have no decree."""
        size = self.open.size if self.open is not None else 0
        return size + sum(batch.size for batch in self.full) if self.full else size

    def close_batches(
        self, records: list[LogRecord], most: int = 1 << 30, *, bytes_max: int = 1 << 62
    ) -> None:
        """Give each open batch a decree and append its record to `records`.

        No more than `most`, and none after those that passed `bytes_max`. Raises MemoryError
        when a batch found no room; it is then as if `most` had been less.
        """
        if self._unproposed:
            self._repropose(records)
        full, machine = self.full, self.machine
        batch = self.open
        if batch is not None:
            batch.last_timestamp_us = self.last_timestamp_us
            full.append(batch)
            self.uncommitted_bytes += batch.size
            self.open = None
        while full and most and bytes_max > 0:
            most -= 1
            batch = full[0]
            # If there is no memory for it, the batch stays where it is.
            payload = encode_mutation(batch.first_timestamp_us, batch.operations)
            bytes_max -= batch.size
            full.popleft()
            mutation = machine.propose(payload, batch.first_timestamp_us, batch.last_timestamp_us)
            if mutation is None:
                self._refuse(batch)
                # What came behind it may be of the same request: none of it must go on alone.
                while full:
                    self._refuse(full.popleft())
                break
            self._in_log(batch, mutation, machine.prepared.committed, records)

    def _repropose(self, records: list[LogRecord]) -> None:
        known = {batch.decree: batch for batch in self.in_flight}
        self.in_flight.clear()
        for mutation, committed in self._unproposed:
            if mutation.decree <= self.machine.committed:
                # Its record of an earlier ballot became durable while the log was not ready.
                continue
            batch = known.get(mutation.decree) or self._batch_from(mutation)
            self._in_log(batch, mutation, committed, records)
        self._unproposed = []

    def _batch_from(self, mutation: Mutation) -> Batch:
        """Make the batch of a mutation that came from the log: nobody waits for it."""
        first, last = mutation_timestamps(mutation.payload)
        batch = Batch(first, 0)
        self.last_timestamp_us = max(self.last_timestamp_us, last)
        # Not that of a barrier: it is no operation, and the clock in the engine never falls.
        batch.last_timestamp_us = self.last_timestamp_us
        rows = mutation_rows(mutation.payload, mutation.decree, self.proposed)
        batch.controls = tuple(mutation_controls(mutation.payload))
        batch.progress = self.proposed.progress_in(rows)
        self.shipping.look(self.proposed)
        batch.rows = dict(zip(rows[::2], rows[1::2], strict=True))  # type: ignore[arg-type]
        batch.size = len(mutation.payload)
        self.uncommitted_bytes += batch.size
        return batch

    def _in_log(
        self, batch: Batch, mutation: Mutation, committed: int, records: list[LogRecord]
    ) -> None:
        batch.decree = mutation.decree
        batch.ballot = mutation.ballot
        self.in_flight.append(batch)
        if self.shipping.pinned:
            self.shipping.remember(mutation.decree, mutation.payload)
        table_id, index = self.gpid
        records.append(
            LogRecord(
                table_id,
                index,
                self.incarnation,
                mutation.ballot,
                mutation.decree,
                committed,
                mutation.first_timestamp_us,
                mutation.payload,
            )
        )

    def _refuse(self, batch: Batch) -> None:
        # It is in no mutation: the client may send it again elsewhere.
        self.uncommitted_bytes -= batch.size
        self.batches_refused += 1
        error = self.refusal()
        for connection, reply in batch.replies:
            connection.finish(connection.error(reply[0], error))
            connection.flush()
        for call in batch.settled:
            call()

    def prepare_answers(
        self,
        decree: int,
        answers: dict[ServerConnection, list[Any]],
        counts: list[tuple[Batch, int]],
    ) -> None:
        """Add the replies that go out when `decree` is committed, and how many of each batch."""
        for batch in self.in_flight:
            if batch.decree > decree:
                break
            counts.append((batch, len(batch.replies)))
            number = batch.decree
            for connection, reply in batch.replies:
                if reply[1] == 0:
                    reply[2] = number
                found = answers.get(connection)
                if found is None:
                    answers[connection] = [reply]
                else:
                    found.append(reply)

    def commit(self, decree: int) -> None:
        """The log has everything up to `decree`; `take_committed` follows in the same turn."""
        if self.machine.logged(decree):
            self._begins_to_serve = True

    def take_committed(self, touched: dict[ServerConnection, None], now_ms: int) -> None:
        """Hand over what the machine has committed; answer into `touched` who was not."""
        committed = self.machine.prepared.committed
        in_flight = self.in_flight
        last: ServerConnection | None = None
        while in_flight and in_flight[0].decree <= committed:
            batch = in_flight.popleft()
            self.uncommitted_bytes -= batch.size
            self._keep(batch)
            for kind, fields in batch.controls:
                self._on_control(self, kind, fields)
            for call in batch.settled:
                call()
            decree = batch.decree
            if now_ms - batch.opened_ms >= self.slow_ms:
                self._slow.on_batch(self, batch, now_ms - batch.opened_ms)
            replies = batch.replies
            # Who came after the answers were packed is answered here.
            for connection, reply in replies[batch.answered :] if batch.answered else replies:
                if reply[1] == 0:
                    reply[2] = decree
                # `finish`, written out.
                connection.in_flight -= 1
                connection.out.append(reply)
                if connection is not last:
                    touched[connection] = None
                    last = connection
        if self._begins_to_serve:
            self._begins_to_serve = False
            self._open_for_clients()

    def _look_whether_to_serve(self) -> None:
        self.serving = (
            self.available and self.machine.serving and not self.closed and not self.reopening
        )
        self.shipping.notify()

    def _open_for_clients(self) -> None:
        self._look_whether_to_serve()
        if self.on_serving is not None:
            self.on_serving()

    # --- The engine --------------------------------------------------------------------

    def _keep(self, batch: Batch) -> None:
        """Hold committed rows where reads see them until the engine has taken them."""
        if not self.unapplied:
            self._lag(self)
        self.unapplied.append(batch)
        self.applying_bytes += batch.size
        applying = self.applying
        for kind, fields in batch.controls:
            rows = self.participation.obey(kind, fields, batch.decree)
            batch.rows.update(zip(rows[::2], rows[1::2], strict=True))  # type: ignore[arg-type]
        if batch.progress:
            self.participation.progress.update(batch.progress)
        applying.update(batch.rows)
        if len(applying) >= _APPLY_ROWS or self.applying_bytes >= _APPLY_BYTES:
            # Once the answers are on their way.
            self._call_soon(self.apply_now)

    def apply_now(self) -> None:
        """Write what is committed to the engine: here if it is calm, else in a thread."""
        if not self.unapplied or self._in_thread or self.engine_failed is not None:
            return
        rows = list(chain.from_iterable(self.applying.items()))
        last = self.unapplied[-1]
        state = ReplicaState(last.decree, last.ballot, last.last_timestamp_us)
        engine = self.engine
        try:
            calm = len(rows) <= _LOOP_ROWS * 2 and self.applying_bytes <= _LOOP_BYTES
            calm = calm and engine.calm()
            if calm:
                engine.write(rows, state)
        except MemoryError:
            # They are safe in the log and visible here; the front asks again soon.
            self._lag(self)
            return
        except (OSError, PegasKVError) as error:
            self.fail_engine(error)
            return
        if calm:
            self.unapplied.clear()
            self.applying.clear()
            self.applying_bytes = 0
            self._hand_out_snapshots(last.decree)
            return
        self._in_thread = len(self.unapplied)

        def done(_: None, error: BaseException | None) -> None:
            if engine is self.engine and self._in_thread:
                self._on_applied(error)

        self._apply_worker.submit(lambda: engine.write(rows, state), done)

    def _on_applied(self, error: BaseException | None) -> None:
        count, self._in_thread = self._in_thread, 0
        if error is not None:
            self.fail_engine(error)
            return
        decree = 0
        for _ in range(count):
            batch = self.unapplied.popleft()
            decree = batch.decree
            self.applying_bytes -= batch.size
        # Made anew: one deletion looks like any other, so nobody can tell whose row is there.
        self.applying.clear()
        for batch in self.unapplied:
            self.applying.update(batch.rows)
        self._hand_out_snapshots(decree)
        self.apply_now()

    def _hand_out_snapshots(self, decree: int) -> None:
        """The engine is at `decree`: whoever waited for that has waited long enough."""
        while self._snapshots and self._snapshots[0][0] <= decree:
            self._snapshots.popleft()[1](self._view())

    def fail_engine(self, error: BaseException) -> None:
        """The engine takes no more writes: keep rows here until it has been opened again."""
        if self.engine_failed is not None:
            # It is being opened again already.
            return
        self.engine_failed = error
        self._in_thread = 0
        while self._snapshots:
            self._snapshots.popleft()[1](self._view())
        self._on_engine_failed(self, error)

    def _refuse_snapshots(self, reason: str) -> None:
        while self._snapshots:
            self._snapshots.popleft()[1](NotReady(reason))

    def replace_engine(self, engine: Engine) -> None:
        """Go on with an engine that was opened again and brought up from the log.

        What was committed meanwhile and is above its decree is applied to it here.
        """
        self.engine = engine
        self.engine_failed = None
        self.reopening = False
        kept = [batch for batch in self.unapplied if batch.decree > engine.state().decree]
        self.unapplied.clear()
        self.applying.clear()
        self.applying_bytes = 0
        for batch in kept:
            batch.controls = ()
            batch.progress = None
            self._keep(batch)

    # --- Life --------------------------------------------------------------------------

    def set_available(self, available: bool) -> None:
        """Serve, or stop serving clients while the table is dropped."""
        self.available = available
        self._look_whether_to_serve()

    def close_for(self, reason: str) -> None:
        """Serve nobody until an operator acts."""
        self.closed = reason
        self.serving = False
        self.shipping.notify()

    def refuse_waiting(self) -> None:
        """Take no writes any more, and refuse those that are in no mutation yet."""
        self.available = self.serving = False
        self._unproposed = []
        if self.open is not None:
            self.full.append(self.open)
            self.uncommitted_bytes += self.open.size
            self.open = None
        while self.full:
            self._refuse(self.full.popleft())
        self.shipping.notify()

    def deactivate(self) -> None:
        """Leave for good; what is in the log stays there, the engine gets nothing more."""
        self.available = self.serving = False
        self.machine.step(Deactivated())
        self.unapplied.clear()
        self.applying.clear()
        self.applying_bytes = self._in_thread = 0
        self._refuse_snapshots(f"partition {self.gpid} is gone")
        self.shipping.give_back()
        self.shipping.notify()
        for batch in self.in_flight:
            for call in batch.settled:
                call()
        if self.on_serving is not None:
            # Whoever waits for it waits in vain.
            self.on_serving()

    @property
    def idle(self) -> bool:
        """Whether nothing is open, in the log uncommitted, or waiting for the engine."""
        return (
            self.open is None
            and not self.full
            and not self.in_flight
            and not self._unproposed
            and not self.unapplied
        )
