"""Puts together what gives a server's replicas their roles: hosting, members, studies, lessons."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

from pegaskv.base.metrics import Metric
from pegaskv.base.types import Gpid, TableInfo
from pegaskv.net.connection import Handler
from pegaskv.replica.control import on_pins_told
from pegaskv.replica.damaged_log import DamagedLogs
from pegaskv.replica.durability import DurabilityChanges
from pegaskv.replica.following import Following
from pegaskv.replica.ground import Ground, Partitions
from pegaskv.replica.group import Group
from pegaskv.replica.hosting import Hosting
from pegaskv.replica.learning import Learner
from pegaskv.replica.membership import Membership
from pegaskv.replica.metrics import role_metrics
from pegaskv.replica.recovery import RecoveredReplica, RecoveredServer
from pegaskv.replica.replica import Replica
from pegaskv.replica.studies import Studies
from pegaskv.replica.teaching import Teaching
from pegaskv.storage.engine import Engine

__all__ = ["Roles"]


class Roles:
    """The parts of one server that open replicas and give them their roles."""

    def __init__(
        self,
        group: Group,
        partitions: Partitions,
        ground: Ground,
        recovered: RecoveredServer,
        *,
        durability: DurabilityChanges,
        make: Callable[[TableInfo, Gpid, RecoveredReplica, Engine], Replica],
        close_engine: Callable[[Engine | None], Awaitable[None]],
        forget: Callable[[Gpid], None],
        is_stopping: Callable[[], bool],
        on_released: Callable[[], None],
    ) -> None:
        self._replicas: Mapping[tuple[int, int], Replica] = partitions.replicas
        hosting = self.hosting = Hosting(
            partitions,
            ground,
            peers=group.peers,
            process=group.process,
            durability=durability,
            next_incarnation=recovered.next_incarnation,
            old_damage=recovered.damage,
            make=make,
            close_engine=close_engine,
            forget=forget,
            is_stopping=is_stopping,
        )
        membership = self.membership = hosting.membership = Membership(
            group,
            partitions,
            ground,
            call_later=asyncio.get_running_loop().call_later,
            on_configured=hosting.on_configured,
        )
        ground.front.lines = membership
        self.studies = hosting.studies = Studies(
            partitions,
            ground,
            peers=group.peers,
            make=make,
            forget=forget,
            take_incarnation=hosting.take_incarnation,
        )
        self.studies.learner = _learner(self.studies, group, ground, recovered.damage)
        self.teaching = hosting.teaching = Teaching(
            partitions.replicas,
            log=ground.log,
            directory=ground.directory,
            disk=ground.disk,
            clock=ground.clock,
            workers=ground.workers,
            scope=ground.scope,
            random=group.random,
            admits=membership.teaches,
            on_released=on_released,
        )
        self.damaged_logs = DamagedLogs(
            partitions.replicas,
            log=ground.log,
            reader=ground.workers.scan,
            hand_over=partial(membership.hand_over, keep=False),
        )
        self.following = Following(
            partitions.replicas,
            clock=ground.clock,
            adopting=hosting,
            into_log=ground.front.accept,
            on_pins=partial(on_pins_told, ground.log),
        )

    def handlers(self) -> dict[int, Handler]:
        """Return the handlers of what other replica servers ask."""
        return {
            **self.following.handlers(),
            **self.teaching.handlers(),
            **self.damaged_logs.handlers(),
        }

    def metrics(self) -> Iterable[Metric]:
        """Return what is led, followed, learned and taught here."""
        return role_metrics(
            self._replicas.values(),
            learning=len(self.studies.progress),
            teaching=len(self.teaching.learners),
            proposals=self.membership.proposals,
            stalls=self.membership.stalls,
            followed=self.following.records,
            refused=self.following.refused,
        )


def _learner(studies: Studies, group: Group, ground: Ground, damage: frozenset[str]) -> Learner:
    return Learner(
        studies,
        node_id=ground.node_id,
        directory=ground.directory,
        disk=ground.disk,
        factory=ground.factory,
        log=ground.log,
        clock=ground.clock,
        worker=ground.workers.upkeep,
        random=group.random,
        old_damage=damage,
    )
