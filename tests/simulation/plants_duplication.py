"""Old mistakes of duplications, to be put back into production code by tests.

Each is what some system did once, this one included. A plant says by what it is found: by
random worlds of two clusters, with some choices of their story made, or by named scenarios.
`docs/testing.md` has the table.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from pegaskv.codec.messages_duplication import EnsureOutcome
from pegaskv.duplication import coordinator, failures, machine
from pegaskv.duplication.failures import Foreign
from pegaskv.duplication.pacing import CopyPace
from pegaskv.duplication.run import PartitionRun
from pegaskv.duplication.slicing import Content
from pegaskv.meta.sources import Sources
from pegaskv.replica import received, received_rows
from pegaskv.replica.participation import Participation
from pegaskv.replica.received import ReceivedHandlers
from pegaskv.replica.replica import Replica
from pegaskv.replica.source import ReplicaSource
from pegaskv.storage.mutation_log import MutationLog
from tests.simulation import five_failures

__all__ = ["PLANTS", "Plant"]

Patch = pytest.MonkeyPatch


# The five failures.


def _take_the_own_table_for_foreign(patch: Patch) -> None:
    real = coordinator._read_answer

    def read(work: Any, fields: list[Any]) -> Any:
        answer = real(work, fields)
        if answer.outcome == EnsureOutcome.ALREADY_YOURS:
            raise Foreign("the table exists")
        return answer

    patch.setattr(coordinator, "_read_answer", read)


def _look_at_foreign_tables_ever_more_seldom(patch: Patch) -> None:
    patch.setattr(failures, "_SOON_MS_MAX", {})


def _obey_a_second_add(patch: Patch) -> None:
    patch.setattr(Sources, "_check_is_new", lambda *arguments: None)


def _let_two_tables_go_to_one(patch: Patch) -> None:
    patch.setattr(Sources, "_check_target", lambda *arguments: None)


def _forget_the_start_in_a_restart(patch: Patch) -> None:
    begin, start = Replica.__init__, ReplicaSource.start_decree
    recovered: dict[int, tuple[Replica, int]] = {}

    def begun(self: Replica, *arguments: Any, **named: Any) -> None:
        begin(self, *arguments, **named)
        recovered[id(self)] = self, self.machine.prepared.last_prepared

    def forgotten(self: ReplicaSource, uuid: bytes) -> int:
        decree = start(self, uuid)
        return decree if decree > recovered[id(self._replica)][1] else 0

    patch.setattr(Replica, "__init__", begun)
    patch.setattr(ReplicaSource, "start_decree", forgotten)


def _wait_for_the_next_write(patch: Patch) -> None:
    real = ReplicaSource.shippable_decree.fget
    assert real is not None
    patch.setattr(ReplicaSource, "shippable_decree", property(lambda self: real(self) - 1))


def _start_where_there_are_rows_only(patch: Patch) -> None:
    """An empty partition has its first decrees from its barrier and its pin."""
    real = ReplicaSource.start_decree

    def start(self: ReplicaSource, uuid: bytes) -> int:
        return real(self, uuid) if self.committed_decree > 2 else 0

    patch.setattr(ReplicaSource, "start_decree", start)


def _copy_who_comes_first(patch: Patch) -> None:
    real = CopyPace.wait

    async def wait(self: CopyPace, size: int, sent: int) -> None:
        await real(self, max(size, 1), -size)

    patch.setattr(CopyPace, "wait", wait)


# The log of the source.


def _collect_what_is_not_shipped(patch: Patch) -> None:
    patch.setattr(MutationLog, "set_pin", lambda *arguments, **named: None)


def _collect_while_it_is_paused(patch: Patch) -> None:
    real = PartitionRun.update

    def update(self: PartitionRun, order: Any, remote: Any) -> None:
        if order.paused:
            source = self.source
            source.hold(order.uuid, source.shippable_decree, source.clock_us)
        real(self, order, remote)

    patch.setattr(PartitionRun, "update", update)


def _ship_what_is_not_synced(patch: Patch) -> None:
    real = Replica.take_committed

    def at_once(self: Replica, *arguments: Any) -> None:
        real(self, *arguments)
        self.shipping.synced = max(self.shipping.synced, self.machine.committed)
        self.shipping.advance(self.machine.committed)

    patch.setattr(Replica, "take_committed", at_once)


def _ship_from_the_end_of_the_copy(patch: Patch) -> None:
    real = ReplicaSource.start_decree

    def late(self: ReplicaSource, uuid: bytes) -> int:
        return max(real(self, uuid), self.shippable_decree) if real(self, uuid) else 0

    patch.setattr(ReplicaSource, "start_decree", late)


def _confirm_before_the_answer(patch: Patch) -> None:
    real = machine.LogMachine._send

    def hasty(self: machine.LogMachine, batch: machine.Batch, last: int) -> None:
        real(self, batch, last)
        self._streams[batch.target].acked = last

    patch.setattr(machine.LogMachine, "_send", hasty)
    patch.setattr(machine.LogMachine, "acked", lambda self, target, progress: True)


def _go_on_behind_what_was_lost(patch: Patch) -> None:
    """The source goes on behind what it sent, and the target takes it."""
    take, begin = ReceivedHandlers.on_duplicate, PartitionRun._open

    def careless(self: ReceivedHandlers, connection: Any, message: list[Any]) -> None:
        take(self, connection, [*message[:8], 0, *message[9:]])

    async def begin_behind(self: PartitionRun) -> machine.LogMachine:
        before = self._machine
        now = await begin(self)
        if before is not None:
            now.read = max(now.read, before.read)
            for target, stream in now._streams.items():
                stream.acked = stream.sent = max(stream.sent, before._streams[target].sent)
        return now

    patch.setattr(ReceivedHandlers, "on_duplicate", careless)
    patch.setattr(PartitionRun, "_open", begin_behind)


def _ship_back_what_came_from_there(patch: Patch) -> None:
    def content_of(payload: bytes) -> Content:
        return Content(1, True, True)

    patch.setattr(machine, "content_of", content_of)


# Which version stays.


def _forget_deletes(patch: Patch) -> None:
    patch.setattr(Participation, "keeps_tombstones", property(lambda self: False))


def _let_the_last_to_arrive_win(patch: Patch) -> None:
    patch.setattr(received, "current_lookup", lambda replica: lambda key: None)


def _order_by_timestamps_alone(patch: Patch) -> None:
    real = received_rows.Contest.judge

    def judge(self: received_rows.Contest, operations: list[list[bytes]]) -> None:
        current = self.current

        def older_when_equal(key: bytes) -> bytes | None:
            here = current(key)
            arriving = [row for rows in operations for k, row in pairs(rows) if k == key]
            same = any(row[4:11] == here[4:11] for row in arriving) if here else False
            return None if same else here

        self.current = older_when_equal
        real(self, operations)

    def pairs(rows: list[bytes]) -> Any:
        return zip(rows[::2], rows[1::2], strict=True)

    patch.setattr(received_rows.Contest, "judge", judge)


def _leave_the_clock_where_it_was(patch: Patch) -> None:
    real = received.log_received

    def deaf(replica: Any, won: Any, newest_us: int, *rest: Any) -> None:
        before = replica.last_timestamp_us
        real(replica, won, newest_us, *rest)
        replica.last_timestamp_us = before + 1

    patch.setattr(received, "log_received", deaf)


@dataclass(frozen=True)
class Plant:
    """`story` for random worlds; `seed` is one that has found it, tried before all others."""

    put_back: Callable[[Patch], None]
    scenarios: tuple[five_failures.Scenario, ...] = ()
    story: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


_ONE_WAY: Final[dict[str, Any]] = {"two_way": False}
_TWO_WAYS: Final[dict[str, Any]] = {"two_way": True}

PLANTS: Final[dict[str, Plant]] = {
    # Stuck in DS_PREPARE.
    "a table that is ours already counts as foreign": Plant(
        _take_the_own_table_for_foreign,
        (
            five_failures.lost_reply_to_create,
            five_failures.target_killed_between_create_and_reply,
            five_failures.target_to_source_blocked,
        ),
        _ONE_WAY,
        seed=2,
    ),
    "pauses grow to half a minute whatever is wrong": Plant(
        _look_at_foreign_tables_ever_more_seldom, (five_failures.foreign_table_of_that_name,)
    ),
    # Added twice.
    "a second add is obeyed": Plant(
        _obey_a_second_add,
        (five_failures.added_again_in_any_phase, five_failures.added_by_several_at_once),
    ),
    "two tables may go to one": Plant(
        _let_two_tables_go_to_one, (five_failures.two_tables_to_one,)
    ),
    # Restart in DS_PREPARE.
    "a restart forgets where the log begins": Plant(
        _forget_the_start_in_a_restart, (five_failures.restarted_in_prepare,), _ONE_WAY, seed=8
    ),
    # The last write.
    "the last mutation waits for the next one": Plant(
        _wait_for_the_next_write, (five_failures.last_write_before_silence,), _ONE_WAY, seed=2
    ),
    # Empty and tiny tables.
    "an empty partition has no start": Plant(
        _start_where_there_are_rows_only,
        (five_failures.empty_and_tiny_tables, five_failures.many_empty_partitions),
    ),
    "copies go in the order in which they come": Plant(
        _copy_who_comes_first, (five_failures.small_beside_large,)
    ),
    # The log of the source.
    "log that was not shipped is collected": Plant(
        _collect_what_is_not_shipped, (), _ONE_WAY, seed=0
    ),
    "a pause lets the log go": Plant(
        _collect_while_it_is_paused, (), _ONE_WAY | {"operators": True}, seed=4
    ),
    "what is not synced is shipped": Plant(
        _ship_what_is_not_synced, (), _ONE_WAY | {"durability": "os"}, seed=12
    ),
    "the log is shipped from the end of the copy": Plant(
        _ship_from_the_end_of_the_copy, (), _ONE_WAY, seed=7
    ),
    "confirmed before the target answers": Plant(_confirm_before_the_answer, (), _ONE_WAY, seed=0),
    "what was lost on the way is passed over": Plant(
        _go_on_behind_what_was_lost, (), _ONE_WAY, seed=1
    ),
    "what came from a cluster is shipped back to it": Plant(
        _ship_back_what_came_from_there, (five_failures.nothing_is_shipped_back,), _TWO_WAYS, seed=1
    ),
    # Which version stays.
    "a delete leaves no tombstone": Plant(_forget_deletes, (), _TWO_WAYS, seed=4),
    "the last to arrive wins": Plant(_let_the_last_to_arrive_win, (), _TWO_WAYS, seed=4),
    "of equal timestamps the last to arrive wins": Plant(
        _order_by_timestamps_alone, (five_failures.equal_timestamps,)
    ),
    "the clock ignores what arrives": Plant(_leave_the_clock_where_it_was, (), _TWO_WAYS, seed=6),
}
