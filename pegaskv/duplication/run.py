"""One source partition of one duplication: prepare, copy, ship, and say what is wrong.

The phases are what they are because of what is stored: the PIN in the partition's own log,
the progress at the meta server, the progress at the target. So whatever ends the process
or the role, the next run goes on where that leaves it, and a repetition is harmless.

There is no timer on the way of a write: the commit wakes the run, which reads the record
from memory and sends it in the same turn of the loop. Timers exist for storing what is
confirmed, for pauses after a failure, and for a look at the target where nothing is written.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, NoReturn

from pegaskv.base.errors import CorruptionError, InvalidData, NotReady, PegasKVError
from pegaskv.base.types import DuplicationStatus, FailMode, Gpid
from pegaskv.codec.messages_duplication import (
    DuplicationOrder,
    PartitionProgress,
    ProgressReport,
    ShippedRecord,
    lost_pin,
)
from pegaskv.codec.operations import Operation
from pegaskv.duplication.answers import checked_answer
from pegaskv.duplication.context import RunContext
from pegaskv.duplication.copier import Copied, Copier
from pegaskv.duplication.doors import SourcePartition
from pegaskv.duplication.failures import UNREACHABLE, failure_of, why_broken
from pegaskv.duplication.machine import Batch, LogMachine, target_indices
from pegaskv.duplication.remote import RemoteCluster, uuids_in
from pegaskv.duplication.showing import Shown
from pegaskv.duplication.skipping import Skipped, invalid_left_out
from pegaskv.duplication.trouble import Trouble

__all__ = ["PartitionRun"]

_PREPARE: Final = DuplicationStatus.DS_PREPARE
_APP: Final = DuplicationStatus.DS_APP
_LOG: Final = DuplicationStatus.DS_LOG

# After a rewind, so that one that repeats itself does not burn the processor.
_REWIND_MS: Final = 1
_REWINDS_MAX: Final = 10
# Whether too much log is held is looked at so often.
_HELD_CHECK_MS: Final = 1_000
# So far beyond a stream's progress that a batch is checked and answered, and never applied.
_BEYOND: Final = 1 << 40


class _Stop(Exception):
    """The phase at hand must be begun anew: paused, ended, not primary any more."""


class _Rewind(Exception):
    """The target misses something before what it got: its streams are opened again."""


class _Broken(PegasKVError):
    """It can never go on."""


class PartitionRun:
    """Runs until its task is cancelled; `update` gives it the newest order."""

    def __init__(
        self,
        context: RunContext,
        source: SourcePartition,
        order: DuplicationOrder,
        remote: RemoteCluster | None,
        stored: PartitionProgress,
    ) -> None:
        self.gpid: Gpid = source.gpid
        self.order = order
        self.remote = remote
        self.source = source
        self.term = source.term
        self._context = context
        self._clock = context.clock
        self._options = context.options
        self._stored = stored
        self.status = stored.status
        self._copier = Copier(source, context, stored.copied_key, self._submit)
        self._machine: LogMachine | None = None
        # Set by whatever may let the run go on.
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._reporting = False
        # Answers that are waited for.
        self._answers: dict[asyncio.Future[list[Any]], None] = {}
        # Of what the replies belong to: those of an earlier one say nothing any more.
        self._epoch = 0
        self._unsubscribe: Callable[[], None] = source.subscribe(self._wake.set)
        self.trouble = Trouble(context.clock, context.random, context.options)
        # One after the other, and nothing was taken in between.
        self._rewinds = 0
        self.skipped = Skipped(stored)
        self._shown = Shown(context.clock, stored.confirmed_decree)

    def update(self, order: DuplicationOrder, remote: RemoteCluster | None) -> None:
        """The order has changed: take it up, and do not wait for the end of a pause."""
        # How far other partitions are is no reason to begin anew.
        if replace(order, progress=()) == replace(self.order, progress=()):
            return
        again = order.attempt != self.order.attempt
        self.order = order
        self.remote = remote
        if again:
            self.trouble.begin_again()
        self._changed.set()
        self._wake.set()
        for answer in list(self._answers):
            if not answer.done():
                answer.set_exception(_Stop())
                answer.exception()

    def end(self) -> None:
        """The task is about to be cancelled."""
        self._unsubscribe()

    async def run(self) -> None:
        """Go through the phases for ever."""
        while True:
            self._changed.clear()
            try:
                await self._phase()
            except _Stop:
                # Nothing is under way any more that an answer would come to.
                self.trouble.heard()
            except _Rewind:
                self.trouble.retries += 1
                await self._clock.sleep_ms(_REWIND_MS << min(self._rewinds, _REWINDS_MAX))
                self._rewinds += 1
            except _Broken as error:
                await self._break(error)
            except (PegasKVError, OSError, MemoryError) as error:
                await self._stall(error)

    async def _phase(self) -> None:
        self._error = None
        await self._pinned()
        await self._ready()
        if self.status is _PREPARE:
            self.status = _APP if self.order.checkpoint else _LOG
            await self._store_progress()
        if self.status is _APP:
            await self._copy()
            self.status = _LOG
            await self._store_progress()
        await self._ship()

    async def _pinned(self) -> None:
        """Wait for the pin, and see that it is the one that was there before."""
        uuid, stored = self.order.uuid, self._stored
        while not (self.source.serving and self.source.start_decree(uuid)):
            await self._woken(_HELD_CHECK_MS)
        start_decree = self.source.start_decree(uuid)
        if stored.start_decree and stored.start_decree != start_decree:
            raise _Broken(lost_pin(stored.start_decree, start_decree))
        if not stored.start_decree and not self.order.checkpoint:
            # No copy would bring what a pin that is lost and set anew leaves out.
            await self._store_progress()

    async def _ready(self) -> None:
        """Wait until the partition is pinned, the target is known, and nobody paused it."""
        while not (
            self.source.serving
            and self.source.start_decree(self.order.uuid)
            and self.order.remote_table_id
            and self.remote is not None
            and not self.order.paused
        ):
            # Whatever it waits for, its log is kept meanwhile.
            self._look_at_held_log()
            await self._woken(_HELD_CHECK_MS)

    async def _woken(self, at_most_ms: int) -> bool:
        """Wait for anything that may let the run go on; whether it came in time."""
        try:
            async with self._clock.timeout_ms(at_most_ms):
                await self._wake.wait()
        except TimeoutError:
            return False
        self._wake.clear()
        return True

    def _go_on(self) -> None:
        """Raise what the phase at hand must not go on against."""
        if self._changed.is_set() or not self.source.serving:
            raise _Stop
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    # --- Progress ----------------------------------------------------------------------------

    def _progress(self) -> PartitionProgress:
        machine = self._machine
        return PartitionProgress(
            self.gpid.partition_index,
            self.status,
            self.source.start_decree(self.order.uuid),
            max(self._stored.confirmed_decree, machine.stored_decree if machine else 0),
            max(self._stored.confirmed_clock_us, machine.stored_clock_us if machine else 0),
            self._copier.key,
            self.skipped.count,
            self.skipped.decree,
        )

    async def _store_progress(self) -> None:
        """Return when the phase is stored: a restart must not begin before it."""
        while True:
            try:
                return await self._report()
            except PegasKVError:
                await self._clock.sleep_ms(self._options.retry_ms_min)

    def _report(self) -> "asyncio.Future[None]":
        self._reporting = True
        progress = self._progress()
        report = ProgressReport(self.gpid, self.order.dupid, self.order.uuid, progress)
        stored = self._context.report(report)
        stored.add_done_callback(partial(self._on_stored, self.order.uuid, progress))
        return stored

    def _on_stored(
        self, uuid: bytes, progress: PartitionProgress, stored: "asyncio.Future[None]"
    ) -> None:
        self._reporting = False
        self._wake.set()
        if stored.cancelled() or stored.exception() is not None:
            return
        self._stored = progress
        if uuid == self.order.uuid and progress.confirmed_decree and progress.status is _LOG:
            self._let_go(progress)

    def _let_go(self, progress: PartitionProgress) -> None:
        self.source.hold(self.order.uuid, progress.confirmed_decree, progress.confirmed_clock_us)

    # --- The copy ----------------------------------------------------------------------------

    async def _copy(self) -> None:
        """Send every row that is there, in key order, from the last confirmed key on."""
        self._epoch += 1
        reported_ms = self._clock.monotonic_ms()

        def on_copied(found: Copied) -> None:
            nonlocal reported_ms
            self._shown.copied_rows += found.rows
            self._shown.removed_rows += found.removed
            if found.left_out is not None:
                self.skipped.add_row(*found.left_out)
            self._went_on()
            self._look_at_held_log()
            now_ms = self._clock.monotonic_ms()
            if now_ms - reported_ms >= self._options.confirm_interval_ms and found.more:
                reported_ms = now_ms
                self._report()

        await self._copier.run(self.order, self._go_on, on_copied)

    def _targets(self) -> list[int]:
        return target_indices(
            self.gpid.partition_index,
            self.source.partition_count,
            self.order.remote_partition_count,
        )

    # --- The log -----------------------------------------------------------------------------

    async def _ship(self) -> None:
        """Ship what is committed, for ever."""
        machine = await self._open()
        source, interval_ms = self.source, self._options.confirm_interval_ms
        reported_ms = self._clock.monotonic_ms() - interval_ms
        while True:
            self._go_on()
            if await self._ship_some(machine):
                continue
            now_ms = self._clock.monotonic_ms()
            due_ms = reported_ms + interval_ms - now_ms
            behind = (
                machine.stored_decree > self._stored.confirmed_decree
                or machine.stored_clock_us > self._stored.confirmed_clock_us
            )
            wants = machine.wants_empty_batches and source.shippable_decree == machine.read
            if due_ms <= 0 and (behind or wants):
                reported_ms = now_ms
                if wants:
                    for batch in machine.empty_batches():
                        await self._send_batch(batch)
                if behind and not self._reporting:
                    self._report()
                continue
            if self._is_behind(machine):
                # The target answers, and not fast enough.
                self._look_at_held_log()
            elif not machine.batches_in_flight:
                self._went_on()
            if behind or wants:
                await self._woken(max(due_ms, 1))
            else:
                # Answers wake it, and what may be shipped does.
                waits = machine.batches_in_flight or self._is_behind(machine)
                if waits:
                    await self._woken(interval_ms)
                elif not await self._woken(self._idle_ms()):
                    # Nobody tells that the target is gone, or has lost the last write.
                    machine = await self._open()

    def _idle_ms(self) -> int:
        most = self._options.idle_check_interval_ms
        return self._context.random.randint(most // 2, most)

    def _is_behind(self, machine: LogMachine) -> bool:
        return machine.read < self.source.shippable_decree

    async def _open(self) -> LogMachine:
        """Ask every target partition how far its stream is."""
        self._epoch += 1
        source, order = self.source, self.order
        machine = LogMachine(
            self.gpid.partition_index,
            source.partition_count,
            order.remote_partition_count,
            start_decree=source.start_decree(order.uuid),
        )
        fields = (order.uuid, source.partition_count, self.gpid.partition_index)
        futures = {
            target: await self._submit(Operation.DUPLICATION_PROGRESS, target, fields, 0)
            for target in machine.targets
        }
        progress = {}
        for target, future in futures.items():
            answer = await future
            progress[target] = (answer[0], answer[1])
            source.note_back(order.uuid, target, uuids_in(answer, 2))
        # If another server leads by now, it has more than this one has lost.
        self._go_on()
        lost = machine.opened(
            progress,
            # One that was made primary has what its predecessor shipped, if not synced yet.
            committed_decree=source.committed_decree,
            confirmed_decree=self._stored.confirmed_decree,
        )
        if lost is not None:
            raise _Broken(lost.text)
        if self._machine is not None:
            self._shown.shipped += self._machine.shipped
        self._machine = machine
        self.trouble.heard(more=bool(self._answers))
        if self._stored.confirmed_decree:
            # Confirmed when another server led, perhaps; and what may come back is known now.
            self._let_go(self._stored)
        return machine

    async def _ship_some(self, machine: LogMachine) -> bool:
        """Send the next batches if there is something and there is room."""
        source = self.source
        shippable = source.shippable_decree
        in_flight_max = self._options.batches_in_flight_max
        if machine.read >= shippable or machine.batches_in_flight >= in_flight_max:
            self._shown.note_confirmed(machine)
            return False
        if self.skipped.isolating and machine.batches_in_flight:
            return False
        clock_us = source.clock_us
        most = 1 if self.skipped.isolating else self._options.batch_bytes
        try:
            records = await source.read_records(machine.read + 1, most)
        except CorruptionError as error:
            await self._leave_damaged_log(machine.read + 1, error)
        if not records:
            return False
        if self.skipped.isolating:
            records = [await self._without_invalid_rows(records[0])]
        for batch in machine.take(records, shippable_decree=shippable, clock_us=clock_us):
            await self._send_batch(batch)
        return True

    async def _leave_damaged_log(self, decree: int, error: CorruptionError) -> NoReturn:
        """Let a member lead that has what is damaged here; without one it is over."""
        in_vain = await self.source.leave_damaged_log(decree)
        if in_vain:
            raise _Broken(f"local log damaged: {error}; {in_vain}") from error
        raise NotReady(f"local log damaged: {error}; a member that has it shall lead") from error

    async def _send_batch(self, batch: Batch) -> None:
        order = self.order
        fields = (
            order.uuid,
            self.source.partition_count,
            self.gpid.partition_index,
            batch.previous,
            batch.last,
            batch.clock_us,
            batch.mutations,
        )
        future = await self._submit(Operation.DUPLICATE, batch.target, fields, batch.size)
        future.add_done_callback(partial(self._on_acked, self._epoch, batch.target))

    def _on_acked(self, epoch: int, target: int, future: "asyncio.Future[list[Any]]") -> None:
        if future.cancelled():
            return
        error = future.exception()
        if epoch != self._epoch:
            return
        if error is not None:
            self._error = self._error or error
        else:
            assert self._machine is not None
            answer = future.result()
            _decree, progress, lost = answer[:3]
            self.source.note_back(self.order.uuid, target, uuids_in(answer, 3))
            self._shown.conflicts += lost
            if self._machine.acked(target, progress):
                self._rewinds = 0
                self._went_on()
            else:
                self._error = self._error or _Rewind()
            self._shown.note_confirmed(self._machine)
        self._wake.set()

    async def _without_invalid_rows(self, record: ShippedRecord) -> ShippedRecord:
        """Return the mutation without the operations that the target refuses to take."""
        order, count, index = self.order, self.source.partition_count, self.gpid.partition_index
        targets = self._targets()

        async def is_valid(partition_hash: int, mutation: bytes) -> bool:
            target = targets[0]
            if len(targets) > 1:
                target = partition_hash & (order.remote_partition_count - 1)
            # Behind what the target knows: it is checked and not applied.
            previous, last = record.decree + _BEYOND, record.decree + _BEYOND + 1
            fields = (order.uuid, count, index, previous, last, 0, [last, mutation])
            future = await self._submit(Operation.DUPLICATE, target, fields, len(mutation))
            try:
                await future
            except InvalidData:
                return False
            return True

        record, left_out = await invalid_left_out(record, is_valid)
        if not left_out:
            self.skipped.passed()
        elif self.skipped.add(record.decree, left_out):
            await self._store_progress()
        return record

    def _look_at_held_log(self) -> None:
        reason = self._context.log_is_held_too_long(self.order.uuid)
        if reason:
            raise _Broken(reason)

    # --- Requests ------------------------------------------------------------------------------

    async def _submit(
        self, operation: Operation, target: int, fields: tuple[Any, ...], size: int
    ) -> "asyncio.Future[list[Any]]":
        """Send one request; the future has the fields of its answer, or raises."""
        remote = self.remote
        if remote is None:
            raise _Stop
        # Also what finds nobody to send it to is waited for.
        self.trouble.asked()
        table_id = self.order.remote_table_id
        address = ""

        def is_there() -> bool:
            return remote.is_at(table_id, target, address)

        while True:
            address = await remote.address_of(table_id, target)
            # While it waits for one server, another one may become the primary.
            if await remote.take_room(size, address, is_there):
                break
        try:
            # An earlier request may have failed while this one waited.
            self._go_on()
            sent = await remote.submit(operation, address, table_id, target, fields, size)
        except BaseException:
            remote.give_room(size, None, address)
            raise
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._answers[answer] = None

        def done(reply: "asyncio.Future[Any]") -> None:
            found = reply.result()
            remote.give_room(size, found, address)
            self._answers.pop(answer, None)
            if answer.done():
                return
            try:
                fields = remote.read_reply(found, operation.name)
                answer.set_result(checked_answer(operation, fields, self.order.remote_cluster))
            except PegasKVError as error:
                answer.set_exception(error)
                # Whoever waits for an earlier one may never come here.
                answer.exception()

        sent.add_done_callback(done)
        return answer

    # --- Trouble -------------------------------------------------------------------------------

    def _went_on(self) -> None:
        """The target answered: whatever was wrong is over."""
        self.trouble.answered(more=bool(self._answers))

    async def _stall(self, error: BaseException) -> None:
        """Say why it does not go on, and wait for the next attempt."""
        self._epoch += 1
        self._error = None
        reason = why_broken(error, self.order)
        reason = reason or self._context.log_is_held_too_long(self.order.uuid)
        if reason:
            await self._break(_Broken(reason))
        failure = failure_of(error)
        if isinstance(error, InvalidData) and self.order.fail_mode is FailMode.SKIP:
            self.skipped.isolate()
            self._copier.look_closer()
        pause_ms = self.trouble.failed(failure)
        remote = self.remote
        if remote is None:
            await self._pause(pause_ms)
            return
        remote.forget_route(self.order.remote_table_id)
        if failure.error_class != UNREACHABLE:
            await self._pause(pause_ms)
            return
        remote.unreachable()
        forget = remote.when_reachable(self._changed.set)
        try:
            await self._pause(pause_ms)
        finally:
            forget()

    async def _pause(self, pause_ms: int) -> None:
        """Wait so long, or until the order changes."""
        try:
            async with self._clock.timeout_ms(pause_ms):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _break(self, error: PegasKVError) -> None:
        """It can never go on: the meta server stores that, and then ends the order."""
        reason = str(error)
        if "start_dup" not in reason:
            reason += "; `start_dup --copy` copies all rows anew"
        self.trouble.broken(reason)
        # Whoever leads in its place finds out for himself.
        while self.source.serving:
            report = ProgressReport(
                self.gpid,
                self.order.dupid,
                self.order.uuid,
                self._progress(),
                failure=reason,
                ballot=self.source.ballot,
            )
            try:
                await self._context.report(report)
            except PegasKVError:
                await self._clock.sleep_ms(self._options.retry_ms_min)
            else:
                # The order that ends it comes with the next push; unless the members changed.
                await self._clock.sleep_ms(_HELD_CHECK_MS)

    # --- What is shown -------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what `query_dup` shows of this partition."""
        return self._shown.state(
            self.order, self.status, self.source, self._machine, self.skipped, self.trouble
        )
