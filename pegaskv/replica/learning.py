"""A learner's side: from nothing, or from what is old, to all that the primary has committed.

```
copy        have -> LEARN_BEGIN -> [checkpoint page by page, installed] -> a new incarnation
catch_up    log page by page, appended and durable -> join
```

Two rules keep what was from what will be. Every copy begins a new incarnation, so that no
record that the log has of an earlier one is ever read again, however long its tail was. And
the old replica stays as it is until the new one is whole and durable beside it; then one
rename puts it in its place.

A step that fails is tried again after a pause; a checkpoint that was copied in part is gone on
with as long as the same primary keeps it. Cancelling leaves a state that is true: either side of
a change on disk is told by the `RecoveredReplica` that the caller holds.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, Final, TypeVar

from pegaskv.base.errors import (
    Busy,
    CorruptionError,
    NotPrimary,
    NotReady,
    NotServing,
    PegasKVError,
    Timeout,
    Unavailable,
)
from pegaskv.base.types import Gpid
from pegaskv.codec.operations import Operation
from pegaskv.replica.lessons import (
    PAGE_TIMEOUT_MS,
    Adoption,
    LearnerHost,
    LearnPeer,
    LogReader,
    Plan,
    Progress,
    read_plan,
)
from pegaskv.replica.participation import Participation
from pegaskv.replica.recovery import RecoveredReplica, read_participation
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.runtime.worker import Worker
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import Engine, EngineFactory, ReplicaState
from pegaskv.storage.learned import CopiedCheckpoint, remove_unfinished
from pegaskv.storage.mutation_log import MutationLog

__all__ = ["Adoption", "LearnPeer", "Learner", "LearnerHost", "have_decree"]

_log = logging.getLogger(__name__)

# Pages are small and few are under way: behind them wait the acknowledgements of other
# partitions, on the same connection.
_PAGE_BYTES: Final = 512 * 1024
_PAGES_UNDER_WAY: Final = 6
_BEGIN_TIMEOUT_MS: Final = 60_000
_PAUSE_MS: Final = 100
_PAUSE_MS_MAX: Final = 5_000
# Without a step forward for so long the caller decides what next.
_PATIENCE_MS: Final = 60_000

# What may pass by itself, with the same primary.
_PASSING: Final = (Busy, NotReady, Timeout, Unavailable)

T = TypeVar("T")


class _Copy:
    """A checkpoint that was begun, and whose it is."""

    def __init__(self, primary: str, files: CopiedCheckpoint) -> None:
        self.primary = primary
        self.files = files


def have_decree(replica: RecoveredReplica, *, amnesiac: bool = False) -> int:
    """Up to where a replica has everything for sure; -1 if that is not known.

    Whoever may lack what it acknowledged, or has lost rows, takes the whole of another.
    """
    if (
        replica.engine is None
        or replica.closed
        or replica.damage
        or replica.salvaged
        or replica.lost_from
        or amnesiac
    ):
        return -1
    return replica.decree


class Learner:
    """All partitions that this server learns; at most `copies_max` are copied at a time.

    `old_damage` are the parts of the log that were damaged before this process began: nothing
    that is learned now was in them.
    """

    def __init__(
        self,
        host: LearnerHost,
        *,
        node_id: str,
        directory: DataDirectory,
        disk: Disk,
        factory: EngineFactory,
        log: MutationLog,
        clock: Clock,
        worker: Worker,
        random: Random,
        old_damage: frozenset[str] = frozenset(),
        copies_max: int = 5,
        page_bytes: int = _PAGE_BYTES,
        patience_ms: int = _PATIENCE_MS,
    ) -> None:
        self._host = host
        self._node_id = node_id
        self._directory = directory
        self._disk = disk
        self._factory = factory
        self._log = log
        self._clock = clock
        self._worker = worker
        self._random = random
        self._old_damage = old_damage
        self._page_bytes = page_bytes
        self._patience_ms = patience_ms
        self._slots = asyncio.Semaphore(copies_max)
        self._copies: dict[Gpid, _Copy] = {}
        self._progress: dict[Gpid, Progress] = {}

    @property
    def progress(self) -> tuple[tuple[Gpid, int, int], ...]:
        """Of each copy under way: the partition, copied bytes, all bytes (0 while unknown)."""
        return tuple((gpid, each.copied, each.total) for gpid, each in self._progress.items())

    async def copy(self, adoption: Adoption, replica: RecoveredReplica) -> int:
        """Make `replica` what the primary has at some decree; return where its log goes on.

        `replica` is what is here by now: its engine is used, or closed and exchanged, and
        nobody else may write to it meanwhile. When this ends it tells what is on disk, also
        after an error or a cancellation. `catch_up` goes on from the decree that is returned.

        Raises:
            PegasKVError, OSError: it did not come forward for a minute, for this reason.

        """
        gpid = adoption.gpid
        progress = self._progress[gpid] = Progress(self._clock.monotonic_ms())

        async def attempt() -> int:
            before_ms = self._clock.monotonic_ms()
            async with self._slots:
                # While others have their turn nobody loses patience.
                progress.step_ms += self._clock.monotonic_ms() - before_ms
                return await self._copy(adoption, replica, progress)

        try:
            return await self._insist(gpid, progress, attempt, always=True)
        finally:
            self._progress.pop(gpid, None)

    async def catch_up(self, adoption: Adoption, incarnation: int, first_decree: int) -> None:
        """Copy log from `first_decree` on until the primary streams the rest.

        Raises:
            RequestError: the primary does not have it any more, or leads no more: begin anew.
            PegasKVError, OSError: it did not come forward for a minute, for this reason.

        """
        gpid = adoption.gpid
        progress = self._progress[gpid] = Progress(self._clock.monotonic_ms())
        reader = LogReader(self._host, self._node_id, adoption, incarnation, first_decree)

        async def attempt() -> None:
            await reader.run(self._clock, progress)

        try:
            await self._insist(gpid, progress, attempt, always=False)
        finally:
            self._progress.pop(gpid, None)

    async def forget(self, gpid: Gpid) -> None:
        """Remove what was copied of a partition that is not to be learned any more."""
        copy = self._copies.pop(gpid, None)
        if copy is not None:
            path = self._directory.learned_path(gpid)

            def remove() -> None:
                copy.files.close()
                remove_unfinished(self._disk, path)

            try:
                await self._worker.run(remove)
            except OSError as error:
                _log.warning("what was copied of partition %s stays for now: %s", gpid, error)

    async def _insist(
        self,
        gpid: Gpid,
        progress: Progress,
        attempt: Callable[[], Awaitable[T]],
        *,
        always: bool,
    ) -> T:
        """Try until it succeeds; whatever fails, with `always`, else what may pass by itself."""
        tries = 0
        while True:
            before_ms = progress.step_ms
            try:
                return await attempt()
            except (PegasKVError, OSError) as error:
                # Whoever is no primary, or wants no learner, will not be asked for nothing again.
                over = isinstance(error, NotPrimary | NotServing)
                passing = not over and (always or isinstance(error, _PASSING))
                now_ms = self._clock.monotonic_ms()
                if not passing or now_ms - progress.step_ms > self._patience_ms:
                    raise
                tries = 0 if progress.step_ms > before_ms else tries + 1
                pause_ms = min(_PAUSE_MS << min(tries, 10), _PAUSE_MS_MAX)
                level = logging.DEBUG if isinstance(error, _PASSING) else logging.WARNING
                _log.log(level, "partition %s is learned on in %d ms: %s", gpid, pause_ms, error)
            await self._clock.sleep_ms(round(pause_ms * self._random.uniform(0.5, 1.0)))

    # --- From what is here to a new incarnation ------------------------------------------

    async def _copy(self, adoption: Adoption, replica: RecoveredReplica, progress: Progress) -> int:
        gpid = adoption.gpid
        have = await self._secured(gpid, replica, progress)
        begun = self._copies.get(gpid)
        if begun is not None and begun.primary != adoption.primary:
            await self.forget(gpid)
            begun = None
        reply = await adoption.peer.request(
            Operation.LEARN_BEGIN,
            _BEGIN_TIMEOUT_MS,
            *gpid,
            adoption.ballot,
            self._node_id,
            None if have is None else have.encode(),
            None if begun is None else begun.files.name,
        )
        plan = read_plan(reply)
        base = have if plan.checkpoint is None else plan.checkpoint[1]
        if base is None or min([base.decree, *plan.pins.values()]) + 1 < plan.first_decree:
            raise CorruptionError(f"partition {gpid}: the log that is offered leaves a hole")
        if plan.checkpoint is None:
            assert have is not None
            await self.forget(gpid)
            await self._go_on(gpid, replica, have, plan)
            return plan.first_decree
        copy = await self._begun(adoption, plan)
        await self._copy_files(adoption, copy.files, progress)
        # What was damaged or unsure is kept for whoever wants to look at it.
        await self._install(gpid, replica, copy.files, plan, keep_old=have is None)
        return plan.first_decree

    async def _secured(
        self, gpid: Gpid, replica: RecoveredReplica, progress: Progress
    ) -> ReplicaState | None:
        """Make durable what the replica has, and say what that is."""
        amnesiac = any(one.amnesiac for one in self._directory.list_replicas() if one.gpid == gpid)
        engine = replica.engine
        if engine is None or have_decree(replica, amnesiac=amnesiac) < 0:
            return None
        if progress.secured is not None and progress.secured[0] is engine:
            return progress.secured[1]

        def secure() -> ReplicaState:
            self._directory.publish_checkpoint(gpid, engine)
            return self._directory.files(gpid).checkpoint_state()

        try:
            state = await self._worker.run(secure)
        except (OSError, PegasKVError) as error:
            _log.warning("partition %s takes the whole of another: %s", gpid, error)
            return None
        if state != engine.state():
            # Somebody writes to it: what would be gone on with is not known.
            return None
        progress.secured = (engine, state)
        return state

    async def _go_on(
        self, gpid: Gpid, replica: RecoveredReplica, have: ReplicaState, plan: Plan
    ) -> None:
        """Keep the tables, and take a new incarnation: the old log is never read again."""
        engine = replica.engine
        assert engine is not None
        incarnation = self._host.next_incarnation()

        def begin() -> Participation:
            found = read_participation(engine)
            self._directory.begin_incarnation(gpid, incarnation, have, accepted=self._old_damage)
            return found

        def begun(participation: Participation) -> None:
            self._take(gpid, replica, engine, incarnation, have, participation, plan)

        await self._through(begin, begun)

    async def _begun(self, adoption: Adoption, plan: Plan) -> _Copy:
        """Return the copy that is gone on with, or a new one."""
        assert plan.checkpoint is not None
        name, state, files = plan.checkpoint
        gpid = adoption.gpid
        copy = self._copies.get(gpid)
        if copy is not None:
            there = copy.files.name == name and copy.files.files == files
            if there and await self._worker.run(copy.files.is_there):
                return copy
            await self.forget(gpid)
        path = self._directory.learned_path(gpid)
        copy = _Copy(adoption.primary, CopiedCheckpoint(self._disk, path, name, state, files))
        await self._worker.run(copy.files.begin)
        self._copies[gpid] = copy
        return copy

    async def _copy_files(
        self, adoption: Adoption, files: CopiedCheckpoint, progress: Progress
    ) -> None:
        """Copy what is not whole yet, several pages at a time, each file in order."""
        page_bytes = self._page_bytes
        progress.total = files.bytes
        progress.copied = sum(size for name, size in files.files if name in files.whole)
        pages = [
            (name, offset, min(page_bytes, size - offset) or 1, offset + page_bytes >= size)
            for name, size in files.missing
            for offset in range(0, size or 1, page_bytes)
        ]
        under_way: deque[tuple[str, int, bool, asyncio.Task[list[Any]]]] = deque()
        async with TaskScope(f"copy {adoption.gpid}") as scope:
            ahead = iter(pages)
            for _ in pages:
                while len(under_way) < _PAGES_UNDER_WAY and (page := next(ahead, None)):
                    name, offset, length, ends = page
                    request = adoption.peer.request(
                        Operation.LEARN_READ,
                        PAGE_TIMEOUT_MS,
                        *adoption.gpid,
                        files.name,
                        name,
                        offset,
                        length,
                    )
                    task = scope.start(f"{name} {offset}", request)
                    under_way.append((name, offset, ends, task))
                name, offset, ends, task = under_way.popleft()
                await self._take_page(files, name, offset, ends, await task)
                progress.copied = files.copied
                progress.step_ms = self._clock.monotonic_ms()

    async def _take_page(
        self, files: CopiedCheckpoint, name: str, offset: int, ends: bool, reply: list[Any]
    ) -> None:
        match reply:
            case [bytes(data), bytes(digest)]:
                pass
            case _:
                raise CorruptionError(f"a page of {name} is not what was asked for")

        def write() -> None:
            files.write(name, offset, data, digest)
            if ends:
                files.finish(name)

        await self._worker.run(write)

    async def _install(
        self,
        gpid: Gpid,
        replica: RecoveredReplica,
        files: CopiedCheckpoint,
        plan: Plan,
        *,
        keep_old: bool,
    ) -> None:
        """Put the copy in the replica's place, under a new incarnation."""
        old = replica.engine
        incarnation = self._host.next_incarnation()
        now_us = self._clock.wall_us()
        directory, factory = self._directory, self._factory

        def prove() -> None:
            files.publish()
            files.prove(factory)

        def install() -> tuple[Engine, Participation]:
            if old is not None:
                _close(gpid, old)
            directory.install_learned(
                gpid,
                incarnation,
                files.state,
                at_us=now_us,
                accepted=self._old_damage,
                keep_old=keep_old,
            )
            engine = factory.open(directory.engine_path(gpid))
            try:
                return engine, read_participation(engine)
            except BaseException:
                _close(gpid, engine)
                raise

        def installed(result: tuple[Engine, Participation]) -> None:
            engine, participation = result
            self._take(gpid, replica, engine, incarnation, files.state, participation, plan)

        try:
            await self._worker.run(prove)
        except CorruptionError:
            # Nothing of it is believed.
            await self.forget(gpid)
            raise
        self._copies.pop(gpid, None)
        replica.engine = None
        replica.closed = replica.closed or "another server's replica takes its place"
        await self._through(install, installed)

    def _take(
        self,
        gpid: Gpid,
        replica: RecoveredReplica,
        engine: Engine,
        incarnation: int,
        state: ReplicaState,
        participation: Participation,
        plan: Plan,
    ) -> None:
        """The disk has the new incarnation: from here on the log and the caller have it too."""
        self._log.set_incarnation(gpid, incarnation, state.decree, pins=plan.pins)
        replica.take(
            RecoveredReplica(
                engine=engine,
                incarnation=incarnation,
                decree=state.decree,
                ballot=state.ballot,
                last_timestamp_us=state.last_timestamp_us,
                participation=participation,
            )
        )
        _log.info(
            "partition %s goes on as incarnation %d from decree %d", gpid, incarnation, state.decree
        )

    async def _through(self, work: Callable[[], T], then: Callable[[T], None]) -> None:
        """Run `work` and then `then` to their end, though the caller be cancelled once."""
        ended = asyncio.Event()
        failure: list[BaseException] = []

        def done(result: Any, error: BaseException | None) -> None:
            if error is None:
                then(result)
            else:
                failure.append(error)
            ended.set()

        self._worker.submit(work, done)
        try:
            await ended.wait()
        except asyncio.CancelledError:
            await ended.wait()
            raise
        if failure:
            raise failure[0]


def _close(gpid: Gpid, engine: Engine) -> None:
    try:
        engine.close()
    except (OSError, PegasKVError) as error:
        # What it lacks is of no use any more, but its directory must be let go.
        raise OSError(f"the storage of partition {gpid} does not close: {error}") from error
