"""Puts together what gives a server's replicas their roles: hosting, members, studies, lessons."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from pegaskv.base.types import Gpid, TableInfo
from pegaskv.net.connection import Handler
from pegaskv.replica.control import on_pins_told
from pegaskv.replica.durability import DurabilityChanges
from pegaskv.replica.following import Following
from pegaskv.replica.front import Front
from pegaskv.replica.group import Group
from pegaskv.replica.hosting import Hosting
from pegaskv.replica.learning import Learner
from pegaskv.replica.membership import Membership
from pegaskv.replica.recovery import RecoveredReplica, RecoveredServer
from pegaskv.replica.replica import Replica
from pegaskv.replica.studies import Studies
from pegaskv.replica.teaching import Teaching
from pegaskv.replica.workers import Workers
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import Engine, EngineFactory

__all__ = ["Roles"]


class Roles:
    """The parts of one server that open replicas and give them their roles.

    The dictionaries are the server's own: its open replicas, what its start recovered of the
    others, why configured ones are closed, and its tables.
    """

    def __init__(
        self,
        group: Group,
        recovered: RecoveredServer,
        *,
        replicas: dict[tuple[int, int], Replica],
        closed: dict[tuple[int, int], str],
        tables: dict[int, TableInfo],
        front: Front,
        directory: DataDirectory,
        disk: Disk,
        factory: EngineFactory,
        clock: Clock,
        workers: Workers,
        scope: TaskScope,
        durability: DurabilityChanges,
        make: Callable[[TableInfo, Gpid, RecoveredReplica, Engine], Replica],
        close_engine: Callable[[Engine | None], Awaitable[None]],
        forget: Callable[[Gpid], None],
        is_stopping: Callable[[], bool],
        on_released: Callable[[], None],
    ) -> None:
        log, node_id, peers = recovered.log, directory.node_id, group.peers
        hosting = self.hosting = Hosting(
            replicas=replicas,
            recovered=recovered.replicas,
            closed=closed,
            tables=tables,
            directory=directory,
            disk=disk,
            factory=factory,
            log=log,
            clock=clock,
            worker=workers.upkeep,
            peers=peers,
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
            node_id=node_id,
            replicas=replicas,
            tables=tables,
            clock=clock,
            scope=scope,
            call_later=asyncio.get_running_loop().call_later,
            on_configured=hosting.on_configured,
            on_committed=front.committed,
        )
        front.lines = membership
        studies = self.studies = hosting.studies = Studies(
            node_id=node_id,
            replicas=replicas,
            recovered=recovered.replicas,
            closed=closed,
            front=front,
            peers=peers,
            clock=clock,
            scope=scope,
            make=make,
            forget=forget,
            take_incarnation=hosting.take_incarnation,
        )
        studies.learner = Learner(
            studies,
            node_id=node_id,
            directory=directory,
            disk=disk,
            factory=factory,
            log=log,
            clock=clock,
            worker=workers.upkeep,
            random=group.random,
            old_damage=recovered.damage,
        )
        self.teaching = Teaching(
            replicas,
            log=log,
            directory=directory,
            disk=disk,
            clock=clock,
            workers=workers,
            scope=scope,
            random=group.random,
            admits=membership.teaches,
            on_released=on_released,
        )
        self.following = Following(
            replicas,
            clock=clock,
            adopting=hosting,
            into_log=front.accept,
            on_pins=partial(on_pins_told, log),
        )

    def handlers(self) -> dict[int, Handler]:
        """Return the handlers of what other replica servers ask."""
        return {**self.following.handlers(), **self.teaching.handlers()}
