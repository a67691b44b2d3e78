"""Mistakes of duplication between replicated clusters, to be put back into production code.

Each is what is easily forgotten when a partition has several replicas; random worlds of two
clusters find them, with some choices of their story made.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from pegaskv.base.types import ReplicaStatus
from pegaskv.duplication.machine import LogMachine
from pegaskv.duplication.run import PartitionRun
from pegaskv.replica import control, received, roles, stub
from pegaskv.replica.received import ReceivedHandlers
from pegaskv.replica.replica import Replica
from pegaskv.replica.source import ReplicaSource
from pegaskv.replica.teaching import Teaching

__all__ = ["PLANTS", "Plant"]

Patch = pytest.MonkeyPatch


def _pin_on_the_primary_alone(patch: Patch) -> None:
    def changed(log: Any, replica: Replica, uuid: bytes) -> None:
        if replica.machine.status is ReplicaStatus.PRIMARY:
            control.on_pin_changed(log, replica, uuid)

    patch.setattr(stub, "on_pin_changed", changed)


def _let_log_go_that_is_not_confirmed(patch: Patch) -> None:
    real = control.on_pins_told

    def told(log: Any, replica: Replica, uuid: bytes, decree: int, clock_us: int) -> None:
        real(log, replica, uuid, replica.machine.committed, clock_us)

    patch.setattr(roles, "on_pins_told", told)


def _keep_the_log_on_secondaries(patch: Patch) -> None:
    patch.setattr(roles, "on_pins_told", lambda *arguments: None)


def _teach_without_the_pinned_log(patch: Patch) -> None:
    patch.setattr(Teaching, "_pins", lambda self, gpid: {})


def _ship_from_the_own_commit(patch: Patch) -> None:
    real = PartitionRun._open

    async def opened(self: PartitionRun) -> LogMachine:
        begins = self._machine is None
        machine = await real(self)
        if begins:
            machine.read = max(machine.read, self.source.committed_decree)
        return machine

    patch.setattr(PartitionRun, "_open", opened)


def _believe_only_what_is_synced_here(patch: Patch) -> None:
    """A primary that was made one takes for lost what it has not synced yet."""
    real = LogMachine.opened

    def opened(self: LogMachine, progress: Any, *, committed_decree: int, **more: Any) -> Any:
        return real(self, progress, committed_decree=shippable[-1], **more)

    def committed(self: ReplicaSource) -> int:
        shippable.append(self.shippable_decree)
        return self._replica.machine.committed

    shippable: list[int] = []
    patch.setattr(LogMachine, "opened", opened)
    patch.setattr(ReplicaSource, "committed_decree", property(committed))


def _keep_progress_beside_the_rows(patch: Patch) -> None:
    real = received.log_received

    def logged(
        replica: Any, won: Any, newest_us: int, stream: bytes = b"", progress: Any = (0, 0)
    ) -> None:
        real(replica, won, newest_us)
        if stream:
            replica.proposed.progress[stream] = progress

    def asked(self: ReceivedHandlers, connection: Any, message: list[Any]) -> None:
        replica, stream, _, facts, _ = self._stream(message, 8)
        decree, clock_us = replica.proposed.progress.get(stream, (0, 0))
        pinned = received._pinned_for(replica, facts.cluster_id)
        connection.out.append((message[0], 0, decree, clock_us, pinned))

    patch.setattr(received, "log_received", logged)
    patch.setattr(ReceivedHandlers, "on_progress", asked)


def _answer_before_the_members_have_it(patch: Patch) -> None:
    def answered(self: Replica, connection: Any, reply: Any) -> None:
        connection.out.append(reply)
        connection.flush()

    patch.setattr(Replica, "answer_after_pending", answered)


@dataclass(frozen=True)
class Plant:
    """`story`: what of it is chosen; `seed` is one that has found it, tried before all others."""

    put_back: Callable[[Patch], None]
    story: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


_MOVES: Final = ("kill", "operate", "pause", "stop", "storm")
# Small, so that many can be tried.
_ONE_WAY: Final[dict[str, Any]] = {
    "two_way": False,
    "faults": True,
    "kinds": _MOVES,
    "rounds": 2,
    "source_partitions": 1,
    "target_partitions": 0,
    "rows_before": 2,
    "checkpoint": True,
    "absent_s": 0,
    "operators": False,
    "slow_copy": False,
    "servers": 3,
}

PLANTS: Final[dict[str, Plant]] = {
    "the log is pinned on the primary alone": Plant(_pin_on_the_primary_alone, _ONE_WAY, 7),
    "secondaries let go what is not confirmed": Plant(
        # While the target is away for long, tables are flushed and the log is collected.
        _let_log_go_that_is_not_confirmed,
        _ONE_WAY | {"absent_s": 70, "rounds": 1},
        8,
    ),
    "secondaries keep the log for ever": Plant(_keep_the_log_on_secondaries, _ONE_WAY),
    "a learner gets no log for duplications": Plant(
        _teach_without_the_pinned_log, _ONE_WAY | {"kinds": ("wipe", "operate", "stop")}, 10
    ),
    "a new primary ships from its own commit": Plant(_ship_from_the_own_commit, _ONE_WAY),
    "what is not synced yet counts as lost": Plant(
        _believe_only_what_is_synced_here,
        _ONE_WAY | {"durability": "os", "kinds": ("operate", "slow disk")},
    ),
    "progress is kept beside the rows": Plant(_keep_progress_beside_the_rows, _ONE_WAY),
    "a batch is answered before the members have it": Plant(
        _answer_before_the_members_have_it, _ONE_WAY | {"kinds": ("isolate",)}, 2
    ),
}
