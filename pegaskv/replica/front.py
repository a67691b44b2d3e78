"""The owner of the tick. On the hot path: no task, future or dataclass per request.

Requests fill batches (`writes`); at the end of the loop turn, or at once for a single
caller, the front closes the batches of all partitions, appends them to the log as one
block, and steps each partition's machine synchronously. Tables that wait for the disk
share one sync; while it runs in its thread the next batches fill, and when it ends the
next tick goes to the disk before the last one is answered. There is never a delay to
make a batch larger.

A failed append or sync of the log ends all acknowledgements of this process: the
front stops, `on_fatal` is told, and the process recovers by a restart.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeAlias

from pegaskv.base.limits import FRAME_MESSAGES_MAX, REPLY_FLUSH_BYTES
from pegaskv.codec.frames import encode_frame
from pegaskv.net.connection import ServerConnection
from pegaskv.net.single_caller import SingleCaller
from pegaskv.replica.batch import Batch
from pegaskv.replica.replica import Replica
from pegaskv.storage.mutation_log import LogRecord, MutationLog, RecordFields

__all__ = ["Front"]

_log = logging.getLogger(__name__)

# A tick that finds no memory is made again after so long, so often; then the process ends, since
# who waits for it would wait for ever.
_SHORT_PAUSE_S: Final = 0.05
_SHORT_TRIES: Final = 200
# How long committed rows may wait for others to share a write to the engine: with many partitions
# few of them have a full write after less, and such a write costs as much as ten requests.
_APPLY_AFTER_MS: Final = 500
# About so many are written in one turn of the loop, which takes a millisecond or two; a write
# costs as much as these, and so many bytes as much as one.
_ROWS_PER_TURN: Final = 1_024
_ROWS_OF_A_WRITE: Final = 64
_BYTES_OF_A_ROW: Final = 256
# So that each of many partitions does not come with a timer of its own.
_LOOK_AGAIN_MS: Final = 20
# What one tick takes into the log, so that the loop is not held by many large writes; those of
# a partition that has little never wait for it.
_TICK_BYTES: Final = 1024 * 1024
_LITTLE_BYTES: Final = 64 * 1024
# How long partitions with members wait for each other, so that they share messages and syncs.
_ROUND_MS: Final = 20
_NO_DECREE: Final = 1 << 64


# Records of others' partitions, who is told when they are in the log, and whether synced.
_Accepted: TypeAlias = tuple[list[LogRecord], Callable[[], None], bool]


class Lines(Protocol):
    """The ways to other servers, as `membership` keeps them."""

    def untold(self, replica: Replica) -> None:
        """`replica` has committed what its members have not heard of."""
        ...

    def send_lines(self, records: list[RecordFields]) -> None:
        """These records of own partitions were logged: send what streams have of them."""
        ...


class Front:
    """Batches of all partitions to the log, and their answers to the connections."""

    def __init__(
        self,
        *,
        log: MutationLog,
        now_ms: Callable[[], int],
        call_soon: Callable[[Callable[[], Any]], Any],
        call_later: Callable[[float, Callable[[], Any]], Any],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._log = log
        self._now_ms = now_ms
        # When the first replica of the next tick woke it.
        self._woken_ms = 0
        self.call_soon = call_soon
        self._call_later = call_later
        # Whose engine lacks committed rows, and since when: who waits longest comes first.
        self._lagging: dict[Replica, int] = {}
        # Who is written to its engine in the next turns of the loop.
        self._applicants: dict[Replica, None] = {}
        self._on_fatal = on_fatal
        self._dirty: list[Replica] = []
        self._scheduled = False
        # Writes the replies that wait for the end of this turn of the loop.
        self.write_waiting: Callable[[], None] | None = None
        self._single = SingleCaller()
        # The partitions with members of which a tick is under way, by the decree that ends it, and
        # since when. The next tick takes all of them together: one message to each server.
        self._round: dict[Replica, int] = {}
        self._round_ms = 0
        self._round_timed = False
        # What others' partitions have to log: records, who is told, whether it must be synced.
        self._accepted: list[_Accepted] = []
        # Where what is logged goes beside the log; None = nowhere.
        self.lines: Lines | None = None
        # While memory is short: what has decrees and is not in the log, who waits for it, and how
        # often there was no memory since the last record.
        self._short = False
        self._short_tries = 0
        self._unlogged: list[RecordFields] = []
        self._unanswered: list[tuple[Replica, int]] = []
        self._syncing: list[tuple[Replica, int]] | None = None
        # What goes out when the sync under way has ended, packed while the disk is at work.
        self._answers: list[tuple[ServerConnection, bytes, int]] = []
        self._answering: list[tuple[Batch, int]] = []
        # What `os` tables have committed and a duplication may ship once it is synced: what the
        # sync under way covers, and what the next one will.
        self._covered: list[tuple[Replica, int]] = []
        self._uncovered: list[tuple[Replica, int]] = []
        # Who waits for the sync under way, and who for the next one.
        self._waiting: list[Callable[[], None]] = []
        self._waiting_next: list[Callable[[], None]] = []
        self.stopped = False
        self.ticks = 0
        self.syncs = 0
        log.on_ready = self._schedule

    def wake(self, replica: Replica) -> int:
        """`replica` has something for the next tick; return when the first of them had."""
        if not self._dirty:
            self._woken_ms = self._now_ms()
        self._dirty.append(replica)
        if not self._scheduled:
            self._schedule()
        return self._woken_ms

    def accept(self, records: list[LogRecord], done: Callable[[], None], synced: bool) -> None:
        """Put records of other servers' partitions into the next tick; `done` when they are in.

        With `synced` that is when they are durable; then they wait for the disk as fsync tables do.
        """
        self._accepted.append((records, done, synced))
        if not self._scheduled:
            self._schedule()

    def forget(self, gpid: tuple[int, int]) -> None:
        """Let nothing that was accepted of a partition come to the log any more."""
        for records, _, _ in self._accepted:
            records[:] = [record for record in records if record[:2] != gpid]

    def hurry(self) -> None:
        """Somebody on the list need not wait any more."""
        if not self._scheduled:
            self._schedule()

    def untold(self, replica: Replica) -> None:
        """`replica` has committed what its members have not heard of."""
        if self.lines is not None:
            self.lines.untold(replica)

    def committed(self, replicas: Iterable[Replica]) -> None:
        """Members have acknowledged: answer what that has committed, and take up what waited."""
        self._commit([(replica, replica.machine.committed) for replica in replicas])
        if self._dirty and not self._round and not self._scheduled:
            # Who waited for this; there is never more than one tick of a partition under way.
            # In the turn after the next: the loop looks once more at what has arrived meanwhile,
            # and whoever has just been answered may have sent the next.
            self._scheduled = True
            self.call_soon(self._schedule)

    def lag(self, replica: Replica) -> None:
        """`replica` holds committed rows that its engine has not taken."""
        if not self._lagging:
            self._call_later(_APPLY_AFTER_MS / 1_000, self._catch_up)
        # What it held before has been written.
        self._lagging.pop(replica, None)
        self._lagging[replica] = self._now_ms()

    def apply_soon(self, replica: Replica) -> None:
        """`replica` holds so many of them that its engine should take them."""
        if not self._applicants:
            self.call_soon(self._apply_some)
        self._applicants[replica] = None

    def _catch_up(self) -> None:
        now_ms = self._now_ms()
        while self._lagging:
            replica, since_ms = next(iter(self._lagging.items()))
            left_ms = since_ms + _APPLY_AFTER_MS - now_ms
            if left_ms > 0:
                self._call_later(max(left_ms, _LOOK_AGAIN_MS) / 1_000, self._catch_up)
                return
            del self._lagging[replica]
            if replica.behind:
                self.apply_soon(replica)

    def _apply_some(self) -> None:
        self._write_waiting()
        room = _ROWS_PER_TURN
        while self._applicants and room > 0:
            replica = next(iter(self._applicants))
            room -= len(replica.applying) + _ROWS_OF_A_WRITE
            room -= replica.applying_bytes // _BYTES_OF_A_ROW
            replica.apply_now()
            del self._applicants[replica]
        if self._applicants:
            self.call_soon(self._apply_some)

    def sync_os_tables(self) -> None:
        """Sync what `os` tables wrote, unless a sync is running or nothing is unsynced."""
        if self._syncing is None and self._log.unsynced and not self.stopped:
            self._start_sync([])

    @property
    def syncing(self) -> bool:
        """Whether the disk is at work."""
        return self._syncing is not None

    def after_sync(self, call: Callable[[], None]) -> None:
        """Call back once all that is in the log now is durable; never, if the log fails."""
        self._waiting_next.append(call)
        self._sync_uncovered()

    @property
    def idle(self) -> bool:
        """Whether no tick is open or in flight."""
        return not self._dirty and not self._accepted and not self._short and self._syncing is None

    def attend(self, single: SingleCaller) -> None:
        """Answer who calls one after another in the turn of the loop in which a call came."""
        self._single = single
        single.answer = self._answer_single

    def _answer_single(self) -> None:
        if self._single.count == 1 and len(self._dirty) == 1:
            replica = self._dirty[0]
            if not (replica.fsync or replica.streams):
                self._tick()

    def _schedule(self) -> None:
        self._scheduled = True
        self.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._write_waiting()
        single = self._single
        single.alone = single.count == 1
        single.count = 0
        self._tick()

    def _write_waiting(self) -> None:
        """Nobody waits for what is about to hold the loop."""
        if self.write_waiting is not None:
            self.write_waiting()

    def _tick(self) -> None:
        if self._short:
            self._tick_sparingly()
            return
        # When the log is switching segments it calls `_schedule` once it is ready.
        if not (self._dirty or self._accepted) or self.stopped or not self._log.ready():
            return
        held: list[Replica] = []
        # Those that have more than this tick takes: behind the others in the next one.
        rest: list[Replica] = []
        room = _TICK_BYTES
        records: list[RecordFields] = []
        synced: list[tuple[Replica, int]] = []
        unsynced: list[tuple[Replica, int]] = []
        accepted = self._take_accepted(records) if self._accepted else ()
        others = len(records)
        gathering = bool(self._round) and self._is_gathering()
        try:
            for replica in self._dirty:
                if (replica.fsync and self._syncing is not None) or (
                    replica.streams and replica.waits_for_members(gathering=gathering)
                ):
                    held.append(replica)
                    continue
                batch = replica.open
                # `pending_bytes`, written out for those with one batch.
                size = batch.size if batch and not replica.full else replica.pending_bytes
                if size <= _LITTLE_BYTES:
                    replica.close_batches(records)
                    replica.dirty = False
                elif room <= 0:
                    held.append(replica)
                    continue
                else:
                    room -= _close_some(replica, records, room)
                    if replica.dirty:
                        rest.append(replica)
                logged = replica, replica.machine.prepared.last_prepared
                if replica.streams:
                    self._join_round(*logged)
                (synced if replica.fsync else unsynced).append(logged)
            self._dirty = held + rest
            if room <= 0 and not self._scheduled:
                self._schedule()
            if records:
                self.ticks += 1
                self._log.append(records)
        except OSError as error:
            self._fail(error)
            return
        except MemoryError as error:
            self._dirty = [replica for replica in self._dirty if replica.dirty]
            self._unlogged, self._unanswered = records[others:], synced + unsynced
            self._accepted = [*accepted, *self._accepted]
            self._wait_for_memory(error)
            return
        if self.lines is not None and len(records) > others:
            self.lines.send_lines(records[others:])
        told: list[Callable[[], None]] = []
        for _, done, must_sync in accepted:
            (self._waiting_next if must_sync else told).append(done)
        if synced or (accepted and self._waiting_next and self._syncing is None):
            self._start_sync(synced)
        for call in told:
            call()
        if unsynced:
            self._commit(unsynced)

    def _join_round(self, replica: Replica, decree: int) -> None:
        if not self._round:
            self._round_ms = self._now_ms()
        self._round[replica] = decree

    def _is_gathering(self) -> bool:
        """Whether partitions with members wait for the round under way, to go on together."""
        late_ms = self._now_ms() - self._round_ms
        if late_ms >= _ROUND_MS:
            # Somebody is slow: the others need not be.
            self._round.clear()
            return False
        if not self._round_timed:
            self._round_timed = True
            self._call_later((_ROUND_MS - late_ms) / 1_000, self._end_round)
        return True

    def _end_round(self) -> None:
        self._round_timed = False
        if self._dirty:
            self.hurry()

    def _look_at_round(self, replicas: Iterable[Replica]) -> None:
        """These may have been committed."""
        for replica in replicas:
            if replica.machine.committed >= self._round.get(replica, _NO_DECREE):
                del self._round[replica]

    def _take_accepted(self, records: list[RecordFields]) -> list[_Accepted]:
        """Take what others' partitions have to log, as far as the disk is free for it."""
        accepted, self._accepted = self._accepted, []
        if self._syncing is not None:
            self._accepted = [entry for entry in accepted if entry[2]]
            accepted = [entry for entry in accepted if not entry[2]]
        for more, _, _ in accepted:
            records += more
        return accepted

    # When memory is short: decrees that were given must reach the log before any later one.

    def _wait_for_memory(self, error: MemoryError) -> None:
        if not self._short:
            _log.warning("memory is short: writes go into the log one by one")
        self._short = True
        self._short_tries += 1
        if self._short_tries > _SHORT_TRIES:
            self._fail(error)
        else:
            self._call_later(_SHORT_PAUSE_S, self._tick)

    def _tick_sparingly(self) -> None:
        """Log one record at a time, so that what is answered frees memory for the next."""
        # Each of these calls `_tick` again at its end.
        if self.stopped or self._syncing is not None or not self._log.ready():
            return
        records, unanswered = self._unlogged, self._unanswered
        try:
            if not records and self._dirty:
                replica = self._dirty[0]
                replica.close_batches(records, 1)
                unanswered.append((replica, replica.machine.prepared.last_prepared))
                if not replica.full:
                    replica.dirty = False
                    del self._dirty[0]
            while records and self._log.ready():
                count = _of_one_partition(records)
                self._log.append(records[:count])
                del records[:count]
                self._short_tries = 0
        except OSError as error:
            self._fail(error)
            return
        except MemoryError as error:
            self._wait_for_memory(error)
            return
        if records:
            return
        self._short = bool(self._dirty)
        if not self._short:
            _log.warning("memory is enough again: no write was lost")
        self._unanswered = []
        if self.lines is not None:
            self.lines.send_lines([])
        if any(replica.fsync for replica, _ in unanswered):
            self._start_sync(unanswered)
        else:
            self._commit(unanswered)
            if self._dirty or self._accepted:
                self._schedule()

    def _start_sync(self, replicas: list[tuple[Replica, int]]) -> None:
        self._syncing = replicas
        self._covered, self._uncovered = self._uncovered, []
        self._waiting, self._waiting_next = self._waiting_next, []
        self.syncs += 1
        self._log.sync(self._on_synced)
        if replicas:
            self.call_soon(self._prepare_answers)

    def _prepare_answers(self) -> None:
        """Pack the answers of the tick that is being synced: the loop would only wait."""
        if self._syncing is None or self._answering or self._short:
            return
        if any(replica.streams for replica, _ in self._syncing):
            # Others have to acknowledge as well.
            return
        answers: dict[ServerConnection, list[Any]] = {}
        counts: list[tuple[Batch, int]] = []
        try:
            for replica, decree in self._syncing:
                replica.prepare_answers(decree, answers, counts)
            packed = [
                (connection, encode_frame(replies), len(replies))
                for connection, replies in answers.items()
            ]
        except (TypeError, ValueError, OverflowError, MemoryError):
            return
        if all(
            count <= FRAME_MESSAGES_MAX and len(frame) <= REPLY_FLUSH_BYTES
            for _, frame, count in packed
        ):
            # Others are cut into frames when they are written.
            self._answers, self._answering = packed, counts

    def _send_answers(self, synced: list[tuple[Replica, int]]) -> None:
        """Commit, and send what was packed for it, before anything else is done."""
        answers, self._answers = self._answers, []
        counts, self._answering = self._answering, []
        if not counts:
            return
        for replica, decree in synced:
            machine = replica.machine
            prepared = machine.prepared
            if prepared.committed >= decree:
                # A table that became `os` meanwhile has been answered with its next tick.
                return
            machine.logged(decree)
            if prepared.committed < decree:
                # It is no primary any more: its writers are not told that they were heard.
                return
        for batch, count in counts:
            batch.answered = count
        for connection, frame, count in answers:
            try:
                connection.answer(frame, count)
            except MemoryError:
                connection.abort()

    def _on_synced(self, error: BaseException | None) -> None:
        synced, self._syncing = self._syncing, None
        if self.stopped:
            return
        if error is not None:
            self._fail(error)
            return
        assert synced is not None
        covered, self._covered = self._covered, []
        waiting, self._waiting = self._waiting, []
        for replica, decree in synced + covered if covered else synced:
            shipping = replica.shipping
            if shipping.synced < decree:
                shipping.synced = decree
        if (self._dirty or self._accepted) and not self._short:
            # The disk gets the next tick before the clients get their answers.
            self._tick()
        if synced:
            self._send_answers(synced)
            self._commit(synced)
        for replica, _ in covered:
            replica.shipping.advance(replica.machine.committed)
        for call in waiting:
            call()
        if self._dirty and self._syncing is None and not self._scheduled:
            # Whose members had been quicker than the disk.
            self._tick()
        self._sync_uncovered()
        if self._short:
            self._schedule()

    def _commit(self, logged: list[tuple[Replica, int]]) -> None:
        if self.stopped:
            return
        # A dictionary, since the order of a set of objects differs from run to run.
        touched: dict[ServerConnection, list[int] | None] = {}
        now_ms = self._now_ms()
        moved: list[Replica] = []
        pinned: list[tuple[Replica, int]] = []
        for replica, decree in logged:
            machine = replica.machine
            prepared = machine.prepared
            if prepared.committed < decree:
                machine.logged(decree)
            if replica.take_committed(touched, now_ms):
                moved.append(replica)
            shipping = replica.shipping
            if shipping.pinned:
                pinned.append((replica, decree))
            else:
                # `advance`, written out where nobody listens.
                committed, synced = prepared.committed, shipping.synced
                shipping.shippable = committed if committed < synced else synced
        for connection, reply in touched.items():
            try:
                if reply is None:
                    connection.flush()
                else:
                    connection.answer_write(reply)
            except MemoryError:
                # Nobody else waits for that.
                connection.abort()
        if self._round:
            self._look_at_round(moved)
        for replica, decree in pinned:
            shipping = replica.shipping
            if shipping.synced < decree:
                self._uncovered.append((replica, decree))
            shipping.advance(replica.machine.committed)
        self._sync_uncovered()

    def _sync_uncovered(self) -> None:
        """Sync at once what only that keeps from being shipped, or what somebody waits for."""
        wanted = self._uncovered or self._waiting_next
        if wanted and self._syncing is None and not self.stopped:
            self._start_sync([])

    def _fail(self, error: BaseException) -> None:
        self.stopped = True
        self._on_fatal(error)


def _close_some(replica: Replica, records: list[RecordFields], room: int) -> int:
    """Give decrees to the batches of a replica that has many; return how many bytes of them."""
    pending = replica.pending_bytes
    replica.close_batches(records, bytes_max=room)
    replica.dirty = bool(replica.full)
    return pending - replica.pending_bytes


def _of_one_partition(records: list[RecordFields]) -> int:
    """How many records from the first on are of its partition.

    A tail that is proposed again goes into the log in one block, or not at all: half of it
    would end the history of what is committed behind it.
    """
    first = records[0][:2]
    return next(
        (count for count, record in enumerate(records) if record[:2] != first), len(records)
    )
