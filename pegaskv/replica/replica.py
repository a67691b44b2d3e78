"""One partition on this node: its machine, its open batches, its members. On the hot path.

The machine decides; this class keeps what the machine must not know: the rows of
each mutation, who waits for it, and (`applying`) the engine that it is applied to. It
runs on the loop and awaits nothing. As a primary it fills batches and sends what it logs
down the streams to its members; as a secondary it takes what comes up from its primary.

Where a key is looked up, in this order: batches that are open, full or in the log
(for atomic operations only), committed rows that the engine has not taken yet, and
the engine. Plain reads see committed rows only.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from pegaskv.base.errors import NotPrimary, RequestError, Unavailable
from pegaskv.base.types import Durability, Gpid, ReplicaStatus
from pegaskv.codec.mutations import OperationKind, encode_mutation
from pegaskv.lease.lease import Grace, PrimaryLease
from pegaskv.lease.options import LeaseOptions
from pegaskv.net.connection import ServerConnection
from pegaskv.replica.batch import Batch
from pegaskv.replica.effects import Append
from pegaskv.replica.events import Assigned, Deactivated, Followed, Taught
from pegaskv.replica.follower import FOLLOWS, Follower, may_vanish
from pegaskv.replica.machine import ReplicaMachine
from pegaskv.replica.participation import DURABILITY_KEY, Participation
from pegaskv.replica.prepare_list import Mutation
from pegaskv.replica.ring import Ring
from pegaskv.replica.row_cache import RowCache
from pegaskv.replica.slow_requests import SlowRequests
from pegaskv.replica.streams import Stream
from pegaskv.replica.ticking import Tick
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.engine import Engine
from pegaskv.storage.mutation_log import LogRecord, RecordFields

__all__ = ["Replica"]

_PRIMARY: Final = ReplicaStatus.PRIMARY


class Replica(Follower):
    """A partition's replica.

    Invariants: `serving` implies that the machine serves and nothing closed the replica;
    `in_flight` holds the batches of exactly the decrees in the machine's window.
    """

    available = True
    # A primary whose members have all acknowledged within the lease; others have none to lose.
    leased = True
    # A primary that is about to hand over takes nothing new.
    draining = False
    min_members = 1
    # The table wants more replicas than before, and they are being made.
    growing = False
    earliest_expiry = 0
    # Of rows that are written without a time to live, in seconds; 0 = for ever.
    default_ttl = 0
    # Batches that were never logged.
    batches_refused = 0

    def __init__(
        self,
        gpid: Gpid,
        *,
        machine: ReplicaMachine,
        engine: Engine,
        cache: RowCache,
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
        lease: LeaseOptions,
    ) -> None:
        super().__init__(
            engine=engine,
            cache=cache,
            participation=participation,
            apply_worker=apply_worker,
            tick=tick,
            on_engine_failed=on_engine_failed,
            gpid=gpid,
            machine=machine,
            incarnation=incarnation,
            last_timestamp_us=last_timestamp_us,
            on_control=on_control,
            grace=Grace(lease, clock.monotonic_ms()),
        )
        self.index = gpid.partition_index
        self.mask = partition_count - 1
        self.cluster_bits = cluster_id << 1
        stored = engine.get(DURABILITY_KEY)
        self.durability = Durability(stored.decode()) if stored else Durability.FSYNC
        # How often the manifest was told whether `os` acknowledgements may come.
        self.durability_marks = 0
        self.wanted_durability = self.durability
        # Whether commits wait for a sync; `os` takes effect once the manifest says so.
        self.fsync = True
        # Set while the front has this replica on its list for the next tick.
        self.dirty = False
        # When that was.
        self._woken_ms = 0
        # Nobody was told yet that the barrier of the present ballot is committed.
        self._begins_to_serve = False

        self.open: Batch | None = None
        self.full: deque[Batch] = deque()
        self.in_flight: deque[Batch] = deque()
        self._unproposed: list[tuple[Mutation, int]] = []
        self.uncommitted_bytes = 0

        # Of a primary: the ways to its members and learners, and until when they let it serve.
        self.streams: dict[str, Stream] = {}
        self.lease = PrimaryLease(lease)
        # What learners may ask for: the newest records, while there is one.
        self.ring: Ring | None = None
        # Up to where each outgoing duplication has let the log go, by uuid.
        self.held: dict[bytes, int] = {}

        self._clock, self._wall_us = clock, clock.wall_us
        self._wake, self.after_sync = tick.wake, tick.after_sync
        self._hurry, self._told = tick.hurry, tick.untold
        self._slow = slow
        self.on_serving: Callable[[], None] | None = None

    # --- Filling batches ---------------------------------------------------------------

    def open_batch(self, size: int = 0) -> Batch:
        """Return the batch that takes the next operation; `size` is what is about to come.

        Raises:
            NotReady, PartitionClosed, FollowerTable, DiskFull, Busy: nothing can be written now.

        """
        # With nothing under way a single write always fits.
        if (
            not self.admits
            or self.full
            or self.in_flight
            or self.applying_bytes > self.applying_bytes_max
        ):
            self.admit(size)
        batch = self.open
        if batch is None:
            batch = self.open = self.begin_batch()
        return batch

    def begin_batch(self) -> Batch:
        """Return a batch above all that was written, which the next tick takes up."""
        wall_us = self._wall_us()
        first = self.last_timestamp_us + 1
        if first < wall_us:
            first = wall_us
        self.last_timestamp_us = first - 1
        if not self.dirty:
            self.dirty = True
            self._woken_ms = self._wake(self)
        return Batch(first, wall_us, self._woken_ms)

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

    def assign(self, ballot: int, secondaries: tuple[str, ...] = ()) -> bool:
        """Become primary under `ballot`: the tail and a barrier go into the log first.

        False when the ballot is not above all that this replica has seen.
        """
        leads = self.machine.status is _PRIMARY
        self.digest()
        effects = self.machine.step(Assigned(ballot, secondaries))
        if not isinstance(effects[0], Append):
            return False
        if not leads:
            self.proposed = self.participation.copy()
            # What is proposed again may have been written before the last that is committed was
            # decoded here: the clock must not be past it.
            again = [each.first_timestamp_us for each in effects[0].mutations]
            clock_us = min([self._applied_timestamp_us, *(one - 1 for one in again if one)])
            self.shipping.restart(self.machine.committed, clock_us, durable=self.fsync)
            self.shipping.look(self.proposed)
        self._unproposed = [(mutation, effects[0].committed) for mutation in effects[0].mutations]
        self._begins_to_serve = True
        self.draining = False
        self._look_whether_to_serve()
        if not self.dirty:
            self.dirty = True
            self._woken_ms = self._wake(self)
        else:
            self._hurry()
        return True

    def waits_for_members(self, *, gathering: bool) -> bool:
        """Whether the last mutation, or with `gathering` others', must be committed first."""
        if self._unproposed:
            return False
        if gathering or self.in_flight:
            return True
        for stream in self.streams.values():  # noqa: SIM110 - once for each tick: no generator
            if stream.opened and stream.line.full:
                return True
        return False

    @property
    def pending_bytes(self) -> int:
        """The bytes of batches that have no decree."""
        size = self.open.size if self.open is not None else 0
        return size + sum(batch.size for batch in self.full) if self.full else size

    def close_batches(
        self, records: list[RecordFields], most: int = 1 << 30, *, bytes_max: int = 1 << 62
    ) -> None:
        """Give each open batch a decree and append its record to `records`.

        No more than `most`, and none after those that passed `bytes_max`. Raises MemoryError
        when a batch found no room; it is then as if `most` had been less.
        """
        if self._unproposed:
            self._repropose(records)
        full = self.full
        batch = self.open
        if batch is not None:
            batch.last_timestamp_us = self.last_timestamp_us
            if not full:
                # Mostly it is the only one.
                batch.payload = encode_mutation(batch.first_timestamp_us, batch.operations)
                self.open = None
                self.uncommitted_bytes += batch.size
                self._close(batch, records)
                return
            full.append(batch)
            self.uncommitted_bytes += batch.size
            self.open = None
        while full and most and bytes_max > 0:
            most -= 1
            batch = full[0]
            # If there is no memory for it, the batch stays where it is.
            batch.payload = encode_mutation(batch.first_timestamp_us, batch.operations)
            bytes_max -= batch.size
            full.popleft()
            self._close(batch, records)

    def _close(self, batch: Batch, records: list[RecordFields]) -> None:
        """Give a batch that has its payload a decree."""
        # Memory that is let go at once, and not with the batch, is used again while it is warm.
        batch.operations.clear()
        machine = self.machine
        if machine.propose(batch):
            self._in_log(batch, machine.prepared.committed, records)
            return
        self._refuse(batch)
        # What came behind it may be of the same request: none of it must go on alone.
        while self.full:
            self._refuse(self.full.popleft())

    def _repropose(self, records: list[RecordFields]) -> None:
        known = {batch.decree: batch for batch in self.in_flight}
        self.in_flight.clear()
        for mutation, committed in self._unproposed:
            if mutation.decree <= self.machine.committed:
                # Its record of an earlier ballot became durable while the log was not ready.
                continue
            batch = known.get(mutation.decree)
            if batch is None:
                batch = self._batch_from(mutation)
                self.shipping.look(self.proposed)
                self.uncommitted_bytes += batch.size
            batch.ballot, batch.payload = mutation.ballot, mutation.payload
            self._in_log(batch, committed, records)
        self._unproposed = []

    def _in_log(self, batch: Batch, committed: int, records: list[RecordFields]) -> None:
        self.in_flight.append(batch)
        if self.shipping.pinned:
            self.shipping.remember(batch.decree, batch.payload)
        fields = self._fields(batch, committed)
        records.append(fields)
        if self.streams or self.ring is not None:
            record = LogRecord._make(fields)
            for stream in self.streams.values():
                if stream.opened:
                    stream.send(record)
            if self.ring is not None:
                self.ring.add(record)

    def _fields(self, mutation: Mutation, committed: int) -> RecordFields:
        table_id, index = self.gpid
        return (
            table_id,
            index,
            self.incarnation,
            mutation.ballot,
            mutation.decree,
            committed,
            mutation.first_timestamp_us,
            mutation.payload,
        )

    def held_pins(self) -> list[Any]:
        """Return [table id, partition index, uuid, decree, clock, ...]: what targets have.

        Up to the decree the log may go, and so may tombstones up to the clock.
        """
        participation, shipping = self.participation, self.shipping
        return [
            part
            for uuid, decree in self.held.items()
            if participation.pins.get(uuid)
            for part in (*self.gpid, uuid, decree, shipping.confirmed_us(uuid, participation))
        ]

    def keep_ring(self) -> Ring:
        """A learner is coming: keep what it will join with, from the commit point on."""
        if self.ring is None:
            self.ring = Ring(self.window())
        return self.ring

    def window(self) -> list[LogRecord]:
        """Return the records that are prepared and not committed, as a stream begins with them."""
        committed = self.machine.committed
        return [
            LogRecord._make(self._fields(mutation, committed)) for mutation in self.machine.prepared
        ]

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

    def take_committed(
        self, touched: dict[ServerConnection, list[int] | None], now_ms: int
    ) -> bool:
        """Hand over what the machine has just committed, and to `touched` who is to be told.

        With its reply, if that is of a connection's only request; other replies are in `out`.
        False: all that is under way waits for members still, so nothing is new.
        """
        committed = self.machine.prepared.committed
        in_flight = self.in_flight
        if in_flight and in_flight[0].decree > committed:
            return False
        last: ServerConnection | None = None
        while in_flight and in_flight[0].decree <= committed:
            batch = in_flight.popleft()
            self.uncommitted_bytes -= batch.size
            self._keep(batch)
            if batch.controls:
                for kind, fields in batch.controls:
                    self._on_control(self, kind, fields)
            if batch.settled:
                for call in batch.settled:
                    call()
            if now_ms - batch.opened_ms >= self.slow_ms:
                self._slow.on_batch(self, batch, now_ms - batch.opened_ms)
            replies, decree, answered = batch.replies, batch.decree, batch.answered
            if answered < len(replies):
                # Who came after the answers were packed is answered here.
                for connection, reply in replies[answered:] if answered else replies:
                    if reply[1] == 0:
                        reply[2] = decree
                        if connection.in_flight == 1 and len(reply) == 3:
                            touched[connection] = reply
                            continue
                    # `finish`, written out.
                    connection.in_flight -= 1
                    connection.out.append(reply)
                    if connection is not last:
                        touched[connection] = None
                        last = connection
            # The engine may want the batch for a while, nobody these.
            replies.clear()
            batch.payload = b""
        if self.streams:
            self._told(self)
        if self._begins_to_serve and self.machine.serving:
            self._begins_to_serve = False
            self._open_for_clients()
        return True

    def _look_whether_to_serve(self) -> None:
        self.serving = (
            self.available
            and self.machine.serving
            and self.leased
            and not self.draining
            and not self.closed
            and not self.reopening
        )
        self.shipping.notify()

    def set_leased(self, leased: bool, *, draining: bool | None = None) -> None:
        """The members' leases hold, or have ended; or a hand-over has begun, or was given up."""
        self.leased = leased
        if draining is not None:
            self.draining = draining
        self._look_whether_to_serve()

    def _open_for_clients(self) -> None:
        self._look_whether_to_serve()
        if self.on_serving is not None:
            self.on_serving()

    # --- Life --------------------------------------------------------------------------

    def set_available(self, available: bool) -> None:
        """Serve, or stop serving clients while the table is dropped."""
        self.available = available
        self._look_whether_to_serve()

    def refuse_waiting(self) -> None:
        """Take no writes any more, and refuse those that are in no mutation yet."""
        self.available = self.serving = False
        self._refuse_unproposed()
        self.shipping.notify()

    def _refuse_unproposed(self) -> None:
        self._unproposed = []
        if self.open is not None:
            self.full.append(self.open)
            self.uncommitted_bytes += self.open.size
            self.open = None
        while self.full:
            self._refuse(self.full.popleft())

    def deactivate(self) -> None:
        """Leave for good; what is in the log stays there, the engine gets nothing more."""
        self.available = self.serving = False
        self.step_down(Deactivated())
        self._followed.clear()
        self._forget_applied()
        self._in_thread = None
        self._refuse_snapshots(f"partition {self.gpid} is gone")

    def step_down(self, event: Followed | Taught | Deactivated) -> bool:
        """Follow somebody, or nobody; what was under way may or may not hold. False: refused."""
        led = self.machine.status is _PRIMARY
        if self.machine.step(event):
            return False
        self.grace.heard(self._clock.monotonic_ms())
        self.end_streams()
        self.ring = None
        self.draining = self._begins_to_serve = False
        self.leased = True
        self._look_whether_to_serve()
        if led:
            self._give_up_pending()
        if self.on_serving is not None:
            # Whoever waits for it waits in vain.
            self.on_serving()
        return True

    def end_streams(self) -> None:
        """Its members get nothing from here any more."""
        for stream in self.streams.values():
            stream.end()
        self.streams.clear()

    def _give_up_pending(self) -> None:
        """Answer who waits: refused if it is in no mutation, unknown if it is (L14)."""
        self._refuse_unproposed()
        unknown = Unavailable(
            f"partition {self.gpid} has another primary now; the write may or may not have been "
            "applied",
            details={"maybe_applied": True},
            maybe_applied=True,
        )
        while self.in_flight:
            batch = self.in_flight.popleft()
            for connection, reply in batch.replies:
                connection.finish(connection.error(reply[0], unknown))
                connection.flush()
            for call in batch.settled:
                call()
            # As a mutation it stays prepared until somebody knows how it ends.
            batch.replies.clear()
            batch.rows.clear()
        self.uncommitted_bytes = 0
        self.proposed = self.participation.copy()
        self.shipping.give_back()
        self.shipping.look(self.proposed)

    def refusal(self) -> RequestError:
        """Why the replica does not serve at this moment."""
        if not self.closed and self.machine.status in FOLLOWS:
            return NotPrimary(f"this server is not the primary of partition {self.gpid}")
        return super().refusal()

    @property
    def owes_vanishing(self) -> bool:
        """Whether a row that may vanish is on its way to the engine, so that no sweep finds it."""
        under_way = [self.applying, *(batch.rows for batch in (*self.full, *self.in_flight))]
        if self.open is not None:
            under_way.append(self.open.rows)
        return any(may_vanish(row) for rows in under_way for row in rows.values())

    @property
    def idle(self) -> bool:
        """Whether nothing is open, in the log uncommitted, or waiting for the engine."""
        return (
            self.open is None
            and not self.full
            and not self.in_flight
            and not self._unproposed
            and not self.behind
        )
