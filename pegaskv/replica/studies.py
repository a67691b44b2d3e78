"""What this server learns: each partition's way from whatever is here to a stream of its primary.

A replica that learns is taken out of service, made what its primary has (`learning`), opened
again as a potential secondary, and brought up by log until the primary streams the rest.
It becomes a secondary when the primary says so. What fails ends here, and begins anew when
the primary asks again, which it does for as long as it wants the learner.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from pegaskv.base.errors import NotReady, PegasKVError
from pegaskv.base.types import Gpid, PartitionConfiguration, ReplicaStatus, TableInfo
from pegaskv.codec.operations import Operation
from pegaskv.replica.doors import Peers
from pegaskv.replica.events import Deactivated, Taught
from pegaskv.replica.ground import Ground, Partitions
from pegaskv.replica.learning import Adoption, Learner
from pegaskv.replica.recovery import RecoveredReplica
from pegaskv.replica.replica import Replica
from pegaskv.replica.settings import take_settings
from pegaskv.storage.engine import Engine
from pegaskv.storage.mutation_log import LogRecord

__all__ = ["Studies"]

_log = logging.getLogger(__name__)

_JOIN_TIMEOUT_MS: Final = 5_000
_WAIT_MS: Final = 5


@dataclass(eq=False, slots=True)
class _Study:
    """One partition's way. From its beginning until it is `prepared` the replica is its own.

    `behind` are those that it waits for: what they have under way on the disk is not broken off.
    """

    adoption: Adoption
    behind: list[asyncio.Task[None]]
    task: asyncio.Task[None] = field(init=False)
    prepared: bool = False

    @property
    def unfinished(self) -> list[asyncio.Task[None]]:
        """All that works at the partition still."""
        return [task for task in (*self.behind, self.task) if not task.done()]


class Studies:
    """The partitions that this server learns; the host of its `learner`, which is set first."""

    learner: Learner

    def __init__(
        self,
        partitions: Partitions,
        ground: Ground,
        *,
        peers: Peers,
        make: Callable[[TableInfo, Gpid, RecoveredReplica, Engine], Replica],
        forget: Callable[[Gpid], None],
        take_incarnation: Callable[[], int],
    ) -> None:
        self._node_id = ground.node_id
        self._replicas = partitions.replicas
        self._recovered = partitions.recovered
        self._closed = partitions.closed
        self._front = ground.front
        self._peers = peers
        self._clock = ground.clock
        self._scope = ground.scope
        self._make = make
        self._forget = forget
        self._take_incarnation = take_incarnation
        # The newest of each partition; it may have ended.
        self._studies: dict[Gpid, _Study] = {}
        # Of what is learned: under which ballot, and up to where it was acknowledged under that.
        self._owed: dict[Gpid, tuple[int, int]] = {}

    @property
    def progress(self) -> tuple[tuple[Gpid, int, int], ...]:
        """Of each study under way: the partition, copied bytes, all bytes (0 while unknown)."""
        return self.learner.progress

    def is_preparing(self, gpid: Gpid) -> bool:
        """Whether a replica is being made anew, or is about to be: nobody else may open it."""
        study = self._studies.get(gpid)
        return study is not None and not study.prepared and not study.task.done()

    def lacks(self, replica: Replica) -> bool:
        """Whether a replica that was begun anew has not yet again what it had acknowledged.

        If its primary has asked for it as a secondary meanwhile, it must not be one.
        """
        return self._owed.get(replica.gpid, (0, 0))[1] > replica.machine.prepared.last_prepared

    def begin(self, table: TableInfo, configuration: PartitionConfiguration) -> bool:
        """Learn from the primary of a configuration, unless that is under way."""
        gpid, ballot = configuration.gpid, configuration.ballot
        before = self._studies.get(gpid)
        if before is not None and not before.task.done():
            if before.adoption.ballot >= ballot:
                return before.adoption.ballot == ballot
            before.task.cancel()
        self._begin_anew(gpid, ballot)
        assert configuration.primary is not None
        peer: Any = self._peers.peer(configuration.primary)
        study = _Study(
            Adoption(gpid, ballot, configuration.primary, peer),
            [] if before is None else before.unfinished,
        )
        study.task = self._scope.start(f"learn {gpid}", self._run(study, table))
        self._studies[gpid] = study
        return True

    def _begin_anew(self, gpid: Gpid, ballot: int) -> None:
        """Acknowledge nothing more of what was learned under this very ballot.

        The primary has asked again before it heard that the study before has joined. Whatever it
        is told now it takes for that study's, and would make a member of one that begins anew.
        """
        replica = self._replicas.get(gpid)
        if replica is None:
            return
        machine = replica.machine
        if machine.status is ReplicaStatus.POTENTIAL_SECONDARY and machine.ballot == ballot:
            self._note_owed(gpid, ballot, replica)
            replica.step_down(Deactivated())

    def end(self, gpid: Gpid) -> None:
        """The replica has another role now."""
        if gpid in self._studies and not self.is_preparing(gpid):
            self._studies.pop(gpid).task.cancel()

    async def cancel(self, gpid: Gpid) -> None:
        """The partition goes: return when nobody works at it any more."""
        while study := self._studies.get(gpid):
            study.task.cancel()
            if study.unfinished:
                await asyncio.wait(study.unfinished)
            # Another may have begun meanwhile.
            if self._studies.get(gpid) is study:
                del self._studies[gpid]
        self._owed.pop(gpid, None)
        await self.learner.forget(gpid)

    async def _run(self, study: _Study, table: TableInfo) -> None:
        adoption = study.adoption
        gpid = adoption.gpid
        if study.behind:
            await asyncio.wait(study.behind)
        try:
            recovered = await self._taken_out(gpid, adoption.ballot)
            if recovered is None:
                return
            first_decree = await self.learner.copy(adoption, recovered)
            replica = self._prepared(adoption, table, recovered)
            study.prepared = True
            await self.learner.catch_up(adoption, replica.incarnation, first_decree)
        except (PegasKVError, OSError) as error:
            _log.warning("partition %s is not learned for now: %s", gpid, error)
            failed = self._replicas.get(gpid)
            if failed is not None and failed.machine.ballot == adoption.ballot:
                failed.step_down(Deactivated())

    def _note_owed(self, gpid: Gpid, ballot: int, replica: Replica | None) -> None:
        """What was acknowledged to this very primary counts, though it is begun anew."""
        known_ballot, owed = self._owed.get(gpid, (0, 0))
        if known_ballot != ballot:
            owed = 0
        if replica is not None:
            machine = replica.machine
            if machine.status is ReplicaStatus.POTENTIAL_SECONDARY and machine.ballot == ballot:
                owed = max(owed, machine.prepared.last_prepared)
        elif gpid in self._recovered and self._recovered[gpid].ballot >= ballot:
            owed = max(owed, self._recovered[gpid].last_decree)
        self._owed[gpid] = ballot, owed

    async def _taken_out(self, gpid: Gpid, ballot: int) -> RecoveredReplica | None:
        """Take what is here out of service; None when it cannot be at the moment."""
        replica = self._replicas.get(gpid)
        self._note_owed(gpid, ballot, replica)
        if replica is None:
            return self._recovered.setdefault(gpid, RecoveredReplica(closed="it is being copied"))
        replica.step_down(Deactivated())
        # What it has accepted must not come to the log behind those of a new incarnation.
        await self.logged()
        if replica.engine_gone:
            # Its storage failed for good: begin with nothing.
            found = RecoveredReplica(incarnation=replica.incarnation, damage=replica.closed)
            return self._set_aside(gpid, replica, found)
        if replica.reopening:
            return None
        while replica.unapplied is not None and replica.engine_failed is None:
            # What is committed here need not be copied.
            replica.apply_now()
            await self._clock.sleep_ms(_WAIT_MS)
        if replica.reopening:
            return None
        engine = replica.engine
        state = engine.state()
        found = RecoveredReplica(
            engine=engine,
            incarnation=replica.incarnation,
            decree=state.decree,
            ballot=state.ballot,
            last_timestamp_us=state.last_timestamp_us,
            participation=replica.participation,
            damage=str(replica.engine_failed or replica.closed or ""),
        )
        return self._set_aside(gpid, replica, found)

    def forget_accepted(self, gpid: Gpid) -> None:
        """Its table was purged: nothing of it may come to the log any more."""
        self._front.forget(gpid)

    async def logged(self) -> None:
        """Return when all that was accepted from primaries before is in the log."""
        logged = asyncio.Event()
        self._front.accept([], logged.set, True)
        await logged.wait()

    def _set_aside(self, gpid: Gpid, replica: Replica, found: RecoveredReplica) -> RecoveredReplica:
        """The replica is here no more, but what was found of it."""
        replica.deactivate()
        del self._replicas[gpid]
        self._forget(gpid)
        self._recovered[gpid] = found
        return found

    def _prepared(
        self, adoption: Adoption, table: TableInfo, recovered: RecoveredReplica
    ) -> Replica:
        """Open the replica that was made what the primary has at some decree."""
        gpid = adoption.gpid
        if recovered.engine is None:
            raise NotReady(f"partition {gpid} was not copied")
        recovered.closed = ""
        replica = self._make(table, gpid, recovered, recovered.engine)
        del self._recovered[gpid]
        self._closed.pop(gpid, None)
        take_settings(replica, table)
        replica.step_down(Taught(adoption.ballot))
        return replica

    # --- What the learner asks of its host ---------------------------------------------

    def next_incarnation(self) -> int:
        """Return a number that no replica of this server ever had."""
        return self._take_incarnation()

    async def append(self, gpid: Gpid, records: list[LogRecord]) -> None:
        """Put committed records of the new incarnation into the log; return when durable."""
        replica = self._replicas.get(gpid)
        if replica is None:
            raise NotReady(f"partition {gpid} is here no more")
        taken: list[LogRecord] = []
        for record in records:
            if record.decree <= replica.base_decree:
                # For duplications alone.
                taken.append(record)
            elif not replica.accept(record, taken, copied=True):
                raise NotReady(f"partition {gpid} learns no more from this primary")
        durable = asyncio.Event()
        self._front.accept(taken, durable.set, True)
        await durable.wait()

    async def join(self, gpid: Gpid, next_decree: int) -> bool:
        """Ask the primary for everything from `next_decree` on; False: copy more log first."""
        adoption = self._studies[gpid].adoption
        reply = await adoption.peer.request(
            Operation.LEARN_JOIN,
            _JOIN_TIMEOUT_MS,
            *gpid,
            adoption.ballot,
            self._node_id,
            next_decree,
        )
        return reply[0] is True
