"""A primary's side of learning: what another server copies of a replica, and what is kept for it.

A learner that has most of it copies log alone; else a checkpoint, and the log from there on.
Both are kept while it copies: the checkpoint as hard links of its own, the log by a pin of
its own. Who falls silent loses them after a while, and begins anew.

Whether the log is enough is decided by more than a number: a decree says nothing of who has
given it out. After an operator went on without the last members, one of them may come back
with decrees that the others never saw; so a learner names the ballot and the clock of its
last decree too, and copies everything when they are not of this history.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Final

from pegaskv.base.errors import (
    Busy,
    CorruptionError,
    InternalError,
    InvalidArgument,
    NotPrimary,
    NotReady,
    NotServing,
    PegasKVError,
    RequestError,
    UnsupportedFormat,
)
from pegaskv.base.limits import PAGE_BYTES_MAX
from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.mutations import mutation_timestamps
from pegaskv.codec.operations import Operation
from pegaskv.net.connection import Handler, ServerConnection
from pegaskv.replica.replica import Replica
from pegaskv.replica.workers import Workers
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.tasks import TaskScope
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import ReplicaState
from pegaskv.storage.learned import KeptCheckpoint, kept_name
from pegaskv.storage.log_format import encode_records
from pegaskv.storage.mutation_log import LogGone, LogRecord, MutationLog

__all__ = ["Lesson", "Teaching"]

_log = logging.getLogger(__name__)

# Names of pins that are no duplication's.
_PIN: Final = "learner "
_NODE_ID_CHARACTERS_MAX: Final = 64
_AGAIN_MS: Final = 500
_AHEAD_BYTES: Final = 8 * 1024 * 1024

_Key = tuple[Gpid, str]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a learner is told to copy: log from `first_decree` on, and a checkpoint if need be.

    `pins` are those of duplications, by uuid in hex: the decree above which each needs the log.
    """

    first_decree: int
    pins: dict[str, int]
    checkpoint: KeptCheckpoint | None


@dataclass(slots=True, eq=False)
class _Learner:
    """Somebody who copies one partition."""

    heard_ms: int
    checkpoint: KeptCheckpoint | None = None
    # Records that were read and not asked for yet; of the thread that reads.
    ahead: list[LogRecord] = field(default_factory=list)


class Teaching:
    """Everybody who learns from this server.

    `admits(gpid, node id)` says whether the node is to learn at all; `on_released` is called when
    log was let go. Call `look` now and then.
    """

    def __init__(
        self,
        replicas: dict[tuple[int, int], Replica],
        *,
        log: MutationLog,
        directory: DataDirectory,
        disk: Disk,
        clock: Clock,
        workers: Workers,
        scope: TaskScope,
        random: Random,
        learners_max: int = 5,
        silence_ms: int = 60_000,
        admits: Callable[[Gpid, str], bool] = lambda gpid, node_id: True,
        on_released: Callable[[], None] = lambda: None,
    ) -> None:
        self._replicas = replicas
        self._log = log
        self._directory = directory
        self._disk = disk
        self._clock = clock
        self._workers = workers
        self._scope = scope
        self._random = random
        self._learners_max = learners_max
        self._silence_ms = silence_ms
        self._admits = admits
        self._on_released = on_released
        self._learners: dict[_Key, _Learner] = {}
        # Whose begin is under way.
        self._beginning: set[_Key] = set()
        # Up to which decree the log of a partition could not be read.
        self._unreadable: dict[Gpid, int] = {}

    def handlers(self) -> dict[int, Handler]:
        """Return the handlers of what learners ask."""
        return {
            Operation.LEARN_BEGIN: self._on_begin,
            Operation.LEARN_READ: self._on_read,
            Operation.LEARN_LOG: self._on_log,
        }

    # --- Begin ---------------------------------------------------------------------------

    async def begin(
        self, replica: Replica, ballot: int, learner: str, have: ReplicaState | None, resume: str
    ) -> Lesson:
        """Say what a learner that has `have` (None: nothing) must copy, and keep that for it.

        `resume` names a checkpoint that it has begun to copy; it is kept if it is there.

        Raises:
            RequestError: not now, or not here.

        """
        gpid = replica.gpid
        key = (gpid, learner)
        self._check_leads(replica, ballot)
        if not self._admits(gpid, learner):
            raise NotPrimary(f"node {learner} is not to learn partition {gpid} from this server")
        others = self._learners.keys() | self._beginning
        if key in self._beginning or (
            key not in self._learners and len(others) >= self._learners_max
        ):
            raise Busy(
                f"{len(others)} learners copy from this server",
                details={"retry_after_ms": _AGAIN_MS},
            )
        self._beginning.add(key)
        try:
            return await self._begin(replica, learner, have, resume)
        except RequestError:
            raise
        except (OSError, PegasKVError) as error:
            # Its engine may be closed and opened again meanwhile.
            raise NotReady(f"partition {gpid} cannot be copied now: {error}") from error
        finally:
            self._beginning.discard(key)

    async def _begin(
        self, replica: Replica, learner: str, have: ReplicaState | None, resume: str
    ) -> Lesson:
        gpid = replica.gpid
        known = self._learners.get((gpid, learner))
        kept = known.checkpoint if known is not None else None
        entry = _Learner(self._clock.monotonic_ms())
        if kept is not None and kept.name == resume:
            entry.checkpoint = kept
            self._learners[gpid, learner] = entry
        else:
            self.release(gpid, learner)
            self._learners[gpid, learner] = entry
            try:
                enough = have is not None and await self._log_is_enough(replica, learner, have)
                self._check_kept(gpid, learner, entry)
                if have is not None and enough:
                    pins = self._pins(gpid)
                    return Lesson(min([have.decree, *pins.values()]) + 1, pins, None)
                await self._make_checkpoint(replica, learner, entry)
                self._check_kept(gpid, learner, entry)
            except BaseException:
                self.release(gpid, learner)
                raise
        assert entry.checkpoint is not None
        decree = entry.checkpoint.state.decree
        pins = self._pins(gpid)
        if any(pin < self._unreadable.get(gpid, 0) for pin in pins.values()):
            # A duplication that needs what is damaged here finds that out there as well. The
            # rows must have a second place all the same.
            pins = {name: max(pin, decree) for name, pin in pins.items()}
        floor = min([decree, *pins.values()])
        self._log.set_pin(gpid, _PIN + learner, floor)
        return Lesson(floor + 1, pins, entry.checkpoint)

    def _check_kept(self, gpid: Gpid, learner: str, entry: _Learner) -> None:
        if self._learners.get((gpid, learner)) is not entry:
            raise NotPrimary(f"partition {gpid} is not led by this server any more")

    def _pins(self, gpid: Gpid) -> dict[str, int]:
        """The pins of duplications, which are on every replica."""
        pins = self._log.pins(gpid)
        return {name: pin.decree for name, pin in pins.items() if _is_uuid(name)}

    async def _make_checkpoint(self, replica: Replica, learner: str, entry: _Learner) -> None:
        gpid, engine = replica.gpid, replica.engine
        if replica.engine_failed is not None or replica.reopening:
            raise NotReady(f"partition {gpid} is reopening its storage")
        # All that is there stays until it is known where the checkpoint ends.
        try:
            self._log.set_pin(gpid, _PIN + learner, 0)
        except LogGone as error:
            self._log.set_pin(gpid, _PIN + learner, error.lowest)
        replica.apply_now()
        path = self._directory.files(gpid).learners_path / kept_name(self._random)
        kept = KeptCheckpoint(self._disk, path)
        entry.checkpoint = kept
        await self._workers.upkeep.run(partial(kept.make, engine))
        _log.info(
            "partition %s: node %s copies a checkpoint at decree %d with %d bytes",
            gpid,
            learner,
            kept.state.decree,
            sum(size for _, size in kept.files),
        )

    async def _log_is_enough(self, replica: Replica, learner: str, have: ReplicaState) -> bool:
        """Pin what the learner lacks, if all of it is there and of the same history."""
        gpid = replica.gpid
        pins = self._pins(gpid).values()
        if have.decree > replica.machine.committed or min(
            [have.decree, *pins]
        ) < self._unreadable.get(gpid, 0):
            return False
        for floor in (max(have.decree - 1, 0), have.decree):
            try:
                self._log.set_pin(gpid, _PIN + learner, min([floor, *pins]))
            except LogGone:
                continue
            return await self._is_of_this_history(replica, have, logged=floor < have.decree)
        return False

    async def _is_of_this_history(
        self, replica: Replica, have: ReplicaState, *, logged: bool
    ) -> bool:
        """Whether the decree that a learner has is the one that is known here.

        A ballot's primary gives each decree out once, so one that both know by the same ballot
        is the same, with all below. A later primary may have proposed it again: it kept its
        timestamps. `logged`: its record is in the log here.
        """
        gpid = replica.gpid
        if have.decree == 0:
            return True
        if not logged:
            # The record after it may be of the same ballot, and so of the same primary.
            state = replica.engine.state()
            published = await self._workers.upkeep.run(self._directory.files(gpid).checkpoint_state)
            if have in (state, published):
                return True
        wanted = have.decree if logged else have.decree + 1
        try:
            records = await self._read(gpid, wanted, 1, replica.machine.committed)
        except CorruptionError as error:
            self._note_unreadable(gpid, wanted, error)
            return False
        if not records:
            return False
        [record] = records
        if record.ballot == have.ballot:
            return True
        first, last = mutation_timestamps(record.payload)
        return (
            logged and record.ballot > have.ballot and 0 < first <= last == have.last_timestamp_us
        )

    # --- What is copied --------------------------------------------------------------------

    async def _read(self, gpid: Gpid, first: int, most: int, through: int) -> list[LogRecord]:
        return await self._workers.scan.run(
            lambda: self._log.read(gpid, first, most, through=through)
        )

    def _note_unreadable(self, gpid: Gpid, decree: int, error: Exception) -> None:
        _log.error("a learner cannot be given the log: %s", error)
        self._unreadable[gpid] = max(self._unreadable.get(gpid, 0), decree)

    def _log_page(self, entry: _Learner, gpid: Gpid, first: int, most: int, through: int) -> bytes:
        """Return the records of a page as they stand in a block; nothing is above `through`.

        More is read at once than is asked for: of an old segment the log reads all.
        """
        if first > through:
            return b""
        ahead, entry.ahead = entry.ahead, []
        if not ahead or not ahead[0].decree <= first <= ahead[-1].decree:
            ahead = self._log.read(gpid, first, _AHEAD_BYTES, through=through)
            if not ahead:
                raise CorruptionError(
                    f"the log of partition {gpid} lacks decrees {first} to {through}"
                )
        page: list[LogRecord] = []
        size = 0
        for record in ahead[first - ahead[0].decree :]:
            if page and size >= most:
                break
            page.append(record._replace(incarnation=0))
            size += len(record.payload)
        entry.ahead = ahead[page[-1].decree + 1 - ahead[0].decree :]
        return encode_records(page)

    # --- The end -----------------------------------------------------------------------------

    def release(self, gpid: Gpid, learner: str) -> None:
        """Keep nothing more for a learner: it has joined, or is given up."""
        entry = self._learners.pop((gpid, learner), None)
        if entry is None:
            return
        self._log.clear_pin(gpid, _PIN + learner)
        if entry.checkpoint is not None:
            self._workers.upkeep.submit(entry.checkpoint.remove, _ignore)
        self._on_released()

    def release_all(self, gpid: Gpid) -> None:
        """Keep nothing more of a partition: another server leads it, or it is gone."""
        self._unreadable.pop(gpid, None)
        for each, learner in list(self._learners):
            if each == gpid:
                self.release(gpid, learner)

    async def look(self) -> None:
        """Release who was not heard for long, and whose partition is led by another."""
        now_ms = self._clock.monotonic_ms()
        for (gpid, learner), entry in list(self._learners.items()):
            replica = self._replicas.get(gpid)
            leads = replica is not None and replica.machine.status is ReplicaStatus.PRIMARY
            silent = now_ms - entry.heard_ms >= self._silence_ms
            if (silent or not leads) and (gpid, learner) not in self._beginning:
                if leads:
                    _log.warning("partition %s: learner %s fell silent", gpid, learner)
                self.release(gpid, learner)

    @property
    def learners(self) -> list[_Key]:
        """Who copies what."""
        return list(self._learners)

    # --- Requests ------------------------------------------------------------------------------

    def _check_leads(self, replica: Replica, ballot: int) -> None:
        machine = replica.machine
        if machine.status is not ReplicaStatus.PRIMARY or machine.ballot != ballot:
            raise NotPrimary(
                f"partition {replica.gpid} is not led by this server under ballot {ballot}"
            )
        if not replica.serving:
            # What its predecessors have committed is not known to be here before the barrier is.
            raise replica.refusal()

    def _replica_of(self, message: list[Any], fields: int) -> Replica:
        if len(message) != fields + 3:
            raise InvalidArgument(
                f"operation {message[1]} takes {fields} fields, this has {len(message) - 3}"
            )
        if type(message[3]) is not int or type(message[4]) is not int:
            raise InvalidArgument("table id and partition index are integers")
        replica = self._replicas.get((message[3], message[4]))
        if replica is None:
            raise NotServing(f"partition {message[3]}.{message[4]} is not on this server")
        return replica

    def _heard(self, entry: _Learner) -> None:
        entry.heard_ms = self._clock.monotonic_ms()

    def _on_begin(self, connection: ServerConnection, message: list[Any]) -> None:
        replica = self._replica_of(message, 6)
        ballot, learner, have, resume = message[5:]
        if type(ballot) is not int:
            raise InvalidArgument("the ballot is an integer")
        if type(learner) is not str or not 0 < len(learner) <= _NODE_ID_CHARACTERS_MAX:
            raise InvalidArgument("the learner's node id is text")
        if have is not None and type(have) is not bytes:
            raise InvalidArgument("the state that a learner has is bytes or nil")
        if resume is not None and type(resume) is not str:
            raise InvalidArgument("the name of a checkpoint is text or nil")
        try:
            state = None if have is None else ReplicaState.decode(have)
        except (CorruptionError, UnsupportedFormat) as error:
            raise InvalidArgument(f"the state that a learner has: {error}") from None
        self._check_leads(replica, ballot)
        connection.defer()

        async def answer() -> None:
            try:
                lesson = await self.begin(replica, ballot, learner, state, resume or "")
                reply = (message[0], 0, *_lesson_fields(lesson))
            except (PegasKVError, OSError, MemoryError) as error:
                reply = connection.error(message[0], _as_request_error(error))
            connection.finish(reply)
            connection.flush()

        self._scope.start(f"lesson of {learner} in {replica.gpid}", answer())

    def _on_read(self, connection: ServerConnection, message: list[Any]) -> None:
        replica = self._replica_of(message, 6)
        name, file, offset, length = message[5:]
        if type(name) is not str or type(file) is not str:
            raise InvalidArgument("the names of a checkpoint and its file are text")
        if type(offset) is not int or type(length) is not int or offset < 0 or length < 1:
            raise InvalidArgument("offset and bytes are integers, and something is read")
        for (gpid, _), entry in self._learners.items():
            kept = entry.checkpoint
            if gpid == replica.gpid and kept is not None and kept.name == name and kept.knows(file):
                break
        else:
            raise InvalidArgument(f"no checkpoint {name} with a file {file} is kept here")
        self._heard(entry)
        most = min(length, PAGE_BYTES_MAX)
        self._deliver(connection, message[0], partial(kept.read, file, offset, most), tuple)

    def _on_log(self, connection: ServerConnection, message: list[Any]) -> None:
        replica = self._replica_of(message, 6)
        ballot, learner, first, most = message[5:]
        if type(learner) is not str:
            raise InvalidArgument("the learner's node id is text")
        for name, value in (("ballot", ballot), ("first decree", first), ("max bytes", most)):
            if type(value) is not int or value < 1:
                raise InvalidArgument(f"the {name} is an integer above 0")
        self._check_leads(replica, ballot)
        gpid = replica.gpid
        entry = self._learners.get((gpid, learner))
        if entry is None:
            raise InvalidArgument(f"nothing is kept for node {learner} here: it must begin anew")
        self._heard(entry)
        committed = replica.machine.committed
        last = replica.machine.prepared.last_prepared

        def page() -> bytes:
            try:
                return self._log_page(entry, gpid, first, min(most, PAGE_BYTES_MAX), committed)
            except CorruptionError as error:
                self._note_unreadable(gpid, first, error)
                raise

        def fields(body: bytes) -> tuple[Any, ...]:
            return body, committed, last

        self._deliver(connection, message[0], page, fields)

    def _deliver(
        self,
        connection: ServerConnection,
        request_id: int,
        work: Callable[[], Any],
        fields: Callable[[Any], tuple[Any, ...]],
    ) -> None:
        """Run `work` in the thread that reads, in the turns of the connections; then answer."""
        connection.defer()

        def done(result: Any, error: BaseException | None) -> None:
            if error is None:
                found = fields(result)
                connection.finish((request_id, 0, *found))
                connection.out_bytes += len(found[0])
            elif isinstance(error, FileNotFoundError | CorruptionError):
                # It was let go meanwhile, or is damaged: what is left is to begin anew.
                connection.finish(connection.error(request_id, InvalidArgument(str(error))))
            else:
                connection.finish(connection.error(request_id, _as_request_error(error)))
            connection.flush()

        self._workers.reads.submit(connection, work, done)


def _lesson_fields(lesson: Lesson) -> tuple[Any, ...]:
    kept = lesson.checkpoint
    checkpoint = None
    if kept is not None:
        checkpoint = [kept.name, kept.state.encode(), [list(file) for file in kept.files]]
    return kept is None, lesson.first_decree, lesson.pins, checkpoint


def _as_request_error(error: BaseException) -> RequestError:
    if isinstance(error, RequestError):
        return error
    if isinstance(error, OSError | MemoryError):
        return NotReady(f"it cannot be read now: {error or 'no memory'}")
    _log.error("what a learner asked for failed", exc_info=error)
    return InternalError(f"{type(error).__name__}: {error}")


def _is_uuid(name: str) -> bool:
    try:
        bytes.fromhex(name)
    except ValueError:
        return False
    return " " not in name


def _ignore(result: Any, error: BaseException | None) -> None:
    """What is left of it goes with the next start."""
