"""The worlds of two clusters find the mistakes that duplications are known for.

Each plant is an old mistake put back into production code; it must be found within a
number of seeds, by rows that differ, by a duplication that gets stuck, or by a server
that falls over.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any, Final

import pytest

from pegaskv.base.errors import PegasKVError
from pegaskv.codec.messages_duplication import EnsureOutcome
from pegaskv.duplication import coordinator, machine
from pegaskv.duplication.failures import Foreign
from pegaskv.replica import received
from pegaskv.replica.participation import Participation
from pegaskv.replica.replica import Replica
from pegaskv.replica.source import ReplicaSource
from pegaskv.storage.mutation_log import MutationLog
from tests.simulation.duplication_world import Story, simulate_duplication

SEEDS: Final = 200

Plant = Callable[[pytest.MonkeyPatch], None]


def _collect_what_is_not_shipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MutationLog, "set_pin", lambda *arguments, **named: None)


def _wait_for_the_next_write(patch: pytest.MonkeyPatch) -> None:
    real = ReplicaSource.shippable_decree.fget
    assert real is not None
    patch.setattr(ReplicaSource, "shippable_decree", property(lambda self: real(self) - 1))


def _ship_what_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    real = Replica.on_logged

    def at_once(self: Replica, *arguments: Any) -> None:
        real(self, *arguments)
        self.shipping.synced = max(self.shipping.synced, self.machine.committed)
        self.shipping.advance(self.machine.committed)

    patch.setattr(Replica, "on_logged", at_once)


def _ship_from_the_end_of_the_copy(patch: pytest.MonkeyPatch) -> None:
    real = ReplicaSource.start_decree

    def late(self: ReplicaSource, uuid: bytes) -> int:
        return max(real(self, uuid), self.shippable_decree) if real(self, uuid) else 0

    patch.setattr(ReplicaSource, "start_decree", late)


def _forget_deletes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Participation, "keeps_tombstones", property(lambda self: False))


def _let_the_last_to_arrive_win(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(received, "current_lookup", lambda replica: lambda key: None)


def _leave_the_clock_where_it_was(patch: pytest.MonkeyPatch) -> None:
    real = received.log_received

    def deaf(replica: Any, won: Any, newest_us: int, *rest: Any) -> None:
        before = replica.last_timestamp_us
        real(replica, won, newest_us, *rest)
        replica.last_timestamp_us = before + 1

    patch.setattr(received, "log_received", deaf)


def _confirm_before_the_answer(patch: pytest.MonkeyPatch) -> None:
    real = machine.LogMachine._send

    def hasty(self: machine.LogMachine, batch: machine.Batch, last: int) -> None:
        real(self, batch, last)
        self._streams[batch.target].acked = last

    patch.setattr(machine.LogMachine, "_send", hasty)
    patch.setattr(machine.LogMachine, "acked", lambda self, target, progress: True)


def _take_the_own_table_for_foreign(patch: pytest.MonkeyPatch) -> None:
    real = coordinator._read_answer

    def read(work: Any, fields: list[Any]) -> Any:
        answer = real(work, fields)
        if answer.outcome == EnsureOutcome.ALREADY_YOURS:
            raise Foreign("the table exists")
        return answer

    patch.setattr(coordinator, "_read_answer", read)


_ONE_WAY: Final[dict[str, Any]] = {"two_way": False}
_TWO_WAYS: Final[dict[str, Any]] = {"two_way": True}

PLANTS: Final[dict[str, tuple[Plant, dict[str, Any]]]] = {
    "log that was not shipped is collected": (_collect_what_is_not_shipped, _ONE_WAY),
    "the last mutation waits for the next one": (_wait_for_the_next_write, _ONE_WAY),
    "what is not synced is shipped": (_ship_what_is_not_synced, _ONE_WAY | {"durability": "os"}),
    "the log is shipped from the end of the copy": (_ship_from_the_end_of_the_copy, _ONE_WAY),
    "a delete leaves no tombstone": (_forget_deletes, _TWO_WAYS),
    "the last to arrive wins": (_let_the_last_to_arrive_win, _TWO_WAYS),
    "the clock ignores what arrives": (_leave_the_clock_where_it_was, _TWO_WAYS),
    "confirmed before the target answers": (_confirm_before_the_answer, _ONE_WAY),
    "a table that is ours already counts as foreign": (_take_the_own_table_for_foreign, _ONE_WAY),
}


@pytest.mark.parametrize("plant", list(PLANTS))
def test_a_planted_mistake_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_back, choices = PLANTS[plant]
    put_back(monkeypatch)
    for seed in range(SEEDS):
        story = replace(Story.draw(Random(f"{plant} {seed}")), **choices)
        if _verdict(seed, story):
            return
    pytest.fail(f"{plant}: not found in {SEEDS} seeds")


def _verdict(seed: int, story: Story) -> str:
    try:
        return "; ".join(simulate_duplication(seed, story).wrong)
    except (PegasKVError, AssertionError, TimeoutError) as error:
        return repr(error)
