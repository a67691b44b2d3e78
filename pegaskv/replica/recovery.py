"""From what is on disk after any stop to replicas that may be opened.

Runs in a thread, before anything is served: engines are opened (each without its
own log), the mutation log is scanned, and the committed part of each replica's
history is applied. What was prepared only is kept as the tail that the next ballot
proposes again.

What does not open is brought back from its checkpoint and the log, or from the log alone
while that is whole. A replica that may have lost acknowledged writes stays closed until an
operator accepts that; what was accepted is noted for each replica. An engine that the disk
refused to open closes its own replica only, and is tried again by `open_late`.
"""

import errno
import logging
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields
from typing import Final

from pegaskv.base.errors import CorruptionError, PegasKVError, UnsupportedFormat
from pegaskv.base.types import Gpid
from pegaskv.codec.mutations import mutation_timestamps
from pegaskv.replica.participation import RESERVED_RANGES, Participation
from pegaskv.replica.prepare_list import Mutation
from pegaskv.replica.replay import mutation_rows, split_history, whole_history
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import Engine, EngineFactory, ReplicaState
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.log_recovery import valid_history
from pegaskv.storage.mutation_log import Damage, LogGone, LogRecord, MutationLog
from pegaskv.storage.replica_files import Accepted

__all__ = [
    "DamagedTables",
    "RecoveredReplica",
    "RecoveredServer",
    "apply_records",
    "bring_up_from_log",
    "open_late",
    "read_participation",
    "recover_replicas",
]

_log = logging.getLogger(__name__)

_APPLY_BYTES: Final = 1024 * 1024
_ACCEPT: Final = "if no other server has it, start with --accept-loss to go on without"
# If every engine meets one of these it is no matter of a single replica.
_OF_THE_WHOLE: Final = frozenset(
    {errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE}
)
# More than any decree.
_UNKNOWN: Final = 1 << 63
# A pin that keeps the whole log of a replica whose own pins nobody has read yet.
_UNREAD: Final = "not opened"


class DamagedTables(CorruptionError):
    """An engine takes no rows, since a compaction met a damaged table."""


@dataclass(slots=True)
class RecoveredReplica:
    """A replica as a start found it; `closed` says why it cannot be opened, or is empty.

    `waiting`: the disk refused, which may pass, and it is to be tried again. `damage`: why its
    tables are known to be damaged, though they open. Of what was accepted: `salvaged` says that
    rows are gone, `lost_from` from where on decrees are (0 = none). One that is `amnesiac` may
    lead only if no other member can.
    """

    engine: Engine | None = None
    incarnation: int = 0
    decree: int = 0
    ballot: int = 0
    last_timestamp_us: int = 0
    tail: list[Mutation] = field(default_factory=list)
    # As the committed part of the log left it.
    participation: Participation = field(default_factory=Participation)
    closed: str = ""
    waiting: bool = False
    damage: str = ""
    salvaged: bool = False
    lost_from: int = 0
    # It may lack what it acknowledged: without a sync before the machine went down, or since its
    # loss was accepted.
    amnesiac: bool = False

    def take(self, other: "RecoveredReplica") -> None:
        """Become what another try has found."""
        for each in fields(self):
            setattr(self, each.name, getattr(other, each.name))

    @property
    def last_decree(self) -> int:
        """The last decree that was prepared here."""
        return self.decree + len(self.tail)


@dataclass(slots=True)
class RecoveredServer:
    """All replicas of a data directory, and the log open for appending."""

    log: MutationLog
    replicas: dict[Gpid, RecoveredReplica]
    next_incarnation: int
    # Which damage of the log is not settled: it is nothing to replicas that are made later.
    damage: frozenset[str]


def recover_replicas(
    *,
    directory: DataDirectory,
    disk: Disk,
    engine_factory: EngineFactory,
    clock: Clock,
    log_worker: Worker,
    background_worker: Worker,
    log_options: LogOptions,
    accept_loss: bool,
) -> RecoveredServer:
    """Open engines and log, and bring each replica up to its commit point. Blocks.

    Raises:
        UnsupportedFormat: a file was written by a newer version.
        OSError: a file cannot be read or written.

    """
    directory.empty_trash(before_us=clock.wall_us())
    replicas = _open_engines(directory, engine_factory, accept_loss=accept_loss)

    def wanted(gpid: Gpid, incarnation: int, decree: int) -> bool:
        if gpid in directory.damaged:
            # Nobody knows what it lacks: no loss of its records is forgotten.
            return True
        replica = replicas.get(gpid)
        return (
            replica is not None and replica.incarnation == incarnation and decree > replica.decree
        )

    log, recovered = MutationLog.recover(
        disk,
        directory.log_path,
        options=log_options,
        clock=clock,
        worker=log_worker,
        background=background_worker,
        wanted=wanted,
    )
    payloads = [len(record.payload) for found in recovered.records.values() for record in found]
    if payloads:
        _log.info("%d bytes of log in %d mutations to replay", sum(payloads), len(payloads))
    for gpid in log.partitions():
        if gpid not in replicas:
            # A table that was purged: nobody will ever read these records.
            log.forget(gpid)
    for gpid, replica in replicas.items():
        if gpid in directory.damaged:
            # Nobody knows its incarnation: all its records stay for whoever mends the manifest.
            continue
        # If its tables break, the log must have all that the checkpoint lacks.
        log.set_incarnation(gpid, replica.incarnation, _least_decree(directory, gpid))
        recovery = _Recovery(directory, engine_factory, gpid, replica, accept_loss=accept_loss)
        if recovery.may_use(recovered.damage) and not replica.waiting:
            recovery.bring_up(recovered.records.pop(gpid, []))
            recovery.tell_of_losses()
        _set_pins(log, gpid, replica)
    damage = recovered.damage
    if damage is not None and not any(replica.closed for replica in replicas.values()):
        # Whoever lost something has noted that it was accepted. What is closed has not.
        with suppress(OSError):
            log.settle_damage()
            damage = None
    highest = max((replica.incarnation for replica in replicas.values()), default=0)
    return RecoveredServer(
        log,
        replicas,
        max(highest, recovered.highest_incarnation) + 1,
        frozenset() if damage is None else damage.names,
    )


def open_late(
    directory: DataDirectory,
    factory: EngineFactory,
    log: MutationLog,
    gpid: Gpid,
    replica: RecoveredReplica,
) -> None:
    """Try to open a replica that was `waiting`, and bring it up from the log. Blocks.

    Fills `replica`, of which only the incarnation is known.
    """
    incarnation, lost_from = replica.incarnation, replica.lost_from
    replica.take(_open_engine(directory, gpid, factory))
    replica.incarnation, replica.lost_from = incarnation, lost_from
    if replica.waiting:
        return
    recovery = _Recovery(directory, factory, gpid, replica, accept_loss=False)
    try:
        records = log.read(gpid, replica.decree + 1, 1 << 40, ballot=replica.ballot)
    except (OSError, CorruptionError) as error:
        recovery.close(f"{replica.closed}; {error}" if replica.closed else str(error))
        return
    recovery.bring_up(records)
    recovery.tell_of_losses()
    _set_pins(log, gpid, replica)


def _open_engines(
    directory: DataDirectory, factory: EngineFactory, *, accept_loss: bool
) -> dict[Gpid, RecoveredReplica]:
    replicas: dict[Gpid, RecoveredReplica] = {}
    refused: list[OSError] = []
    for manifest in directory.list_replicas():
        replica = _open_engine(
            directory, manifest.gpid, factory, accept_loss=accept_loss, refused=refused
        )
        replica.incarnation = manifest.incarnation
        replica.amnesiac = manifest.amnesiac
        replicas[manifest.gpid] = replica
    whole = refused and len(refused) == len(replicas)
    if whole and all(error.errno in _OF_THE_WHOLE for error in refused):
        raise refused[0]
    for gpid, damage in directory.damaged.items():
        replicas[gpid] = RecoveredReplica(closed=damage.message)
        _log.error("partition %s stays closed: %s", gpid, damage)
    return replicas


def _open_engine(
    directory: DataDirectory,
    gpid: Gpid,
    factory: EngineFactory,
    *,
    accept_loss: bool = False,
    refused: list[OSError] | None = None,
) -> RecoveredReplica:
    """Open an engine, from its checkpoint if need be; OSErrors are added to `refused`."""
    files = directory.files(gpid)
    damage = ""
    salvaged = False
    try:
        damage = files.damage()
        if damage and accept_loss:
            _salvage(directory, gpid, factory)
            damage, salvaged = "", True
        try:
            engine = factory.open(files.engine_path)
        except CorruptionError as error:
            _log.error("the tables of partition %s do not open: %s", gpid, error)
            engine = _from_checkpoint(directory, gpid, factory, error)
        state = engine.state()
    except (CorruptionError, UnsupportedFormat) as error:
        return RecoveredReplica(closed=str(error), damage=damage)
    except OSError as error:
        if refused is not None:
            refused.append(error)
            _log.error("partition %s is closed, its storage does not open yet: %s", gpid, error)
        reason = f"its storage does not open, it is tried again: {error}"
        # What it lacks is not known, but no more than its checkpoint does.
        return RecoveredReplica(decree=_least_decree(directory, gpid), closed=reason, waiting=True)
    return RecoveredReplica(
        engine=engine,
        decree=state.decree,
        ballot=state.ballot,
        last_timestamp_us=state.last_timestamp_us,
        damage=damage,
        salvaged=salvaged,
    )


def _least_decree(directory: DataDirectory, gpid: Gpid) -> int:
    try:
        return directory.checkpoint_decree(gpid)
    except (OSError, PegasKVError):
        return 0


def _from_checkpoint(
    directory: DataDirectory, gpid: Gpid, factory: EngineFactory, error: CorruptionError
) -> Engine:
    """Open the checkpoint in the place of tables that do not open because of `error`."""
    try:
        engine = directory.restore_checkpoint(gpid, factory)
    except CorruptionError as second:
        raise CorruptionError(
            f"its tables do not open ({error}), nor does a checkpoint ({second})"
        ) from None
    _log.warning("partition %s goes on from its last checkpoint and the log", gpid)
    return engine


def _salvage(
    directory: DataDirectory,
    gpid: Gpid,
    factory: EngineFactory,
    known: ReplicaState | None = None,
) -> None:
    """Go on with what can be read of damaged tables, as the operator has accepted."""
    files = directory.files(gpid)
    for first, last in files.salvage(factory, known):
        _log.error(
            "partition %s: the operator accepts the loss of rows with stored keys from %r to %r",
            gpid,
            first,
            last,
        )
    files.forget_damage()
    _log.warning(
        "partition %s goes on without the rows that cannot be read; its damaged tables are kept "
        "beside the new ones",
        gpid,
    )


def _set_pins(log: MutationLog, gpid: Gpid, replica: RecoveredReplica) -> None:
    """Let the log keep what duplications have not confirmed, before anything is collected."""
    log.clear_pin(gpid, _UNREAD)
    pins: dict[str, int] = {}
    if replica.engine is None or replica.closed:
        # Unknown means keep.
        pins[_UNREAD] = 0
    else:
        state = replica.participation.copy()
        found = dict(state.pins)
        for mutation in replica.tail:
            mutation_rows(mutation.payload, mutation.decree, state)
            # Who is unpinned by what is only prepared stays pinned until that is committed.
            found = state.pins | found
        # A broken one has let the log go.
        pins = {uuid.hex(): decree for uuid, decree in found.items() if decree}
    for name, decree in pins.items():
        try:
            log.set_pin(gpid, name, decree)
        except LogGone as error:
            # What a target has confirmed was given up; how far that is, is heard again soon.
            log.set_pin(gpid, name, error.lowest)


class _Recovery:
    """What becomes of one replica, once its engine was opened or not."""

    def __init__(
        self,
        directory: DataDirectory,
        factory: EngineFactory,
        gpid: Gpid,
        replica: RecoveredReplica,
        *,
        accept_loss: bool,
    ) -> None:
        self._directory = directory
        self._factory = factory
        self._gpid = gpid
        self._replica = replica
        self._accept_loss = accept_loss
        self._files = directory.files(gpid)

    def close(self, reason: str) -> None:
        """Keep the replica from being opened until somebody acts."""
        self._replica.closed = reason
        self._replica.waiting = False
        _log.error("partition %s stays closed: %s", self._gpid, reason)

    def _accepted(self) -> Accepted:
        """What was accepted of this incarnation before."""
        accepted = self._files.accepted()
        incarnation = self._replica.incarnation
        return accepted if accepted.incarnation == incarnation else Accepted(incarnation)

    def may_use(self, damage: Damage | None) -> bool:
        """Whether the log has what the replica needs, or its loss is accepted; else close it."""
        if damage is None:
            return True
        replica, accepted = self._replica, self._accepted()
        damage = damage.without(accepted.files)
        lost = damage.describe(self._gpid, replica.incarnation)
        if not lost:
            return True
        if self._accept_loss:
            _log.error("partition %s: the operator accepts the loss: %s", self._gpid, lost)
            files = accepted.files | damage.files_of(self._gpid, replica.incarnation)
            if self._accept(Accepted(accepted.incarnation, files, accepted.gap)):
                replica.lost_from = _UNKNOWN
                return True
        # What does not open either says so first.
        before = f"{replica.closed}; " if replica.closed and not replica.waiting else ""
        self.close(f"{before}the log is damaged: {lost}; {_ACCEPT}")
        return False

    def _accept(self, accepted: Accepted) -> bool:
        """Note what was accepted, before anything is built on it; False if the disk refuses."""
        try:
            self._files.accept(accepted)
        except OSError as error:
            _log.error("partition %s: accepting it could not be noted: %s", self._gpid, error)
            return False
        return True

    def bring_up(self, records: Sequence[LogRecord]) -> None:
        """Make of tables and log what they are together."""
        if self._replica.engine is None:
            self.rebuild(records)
        elif not self._replica.closed:
            self.replay(records)

    def rebuild(self, records: Sequence[LogRecord]) -> None:
        """Make the replica anew from the log, if that has every record since it was created."""
        replica = self._replica
        why = replica.closed
        if self._directory.manifest(self._gpid).base_decree:
            self.close(f"{why}; it began as a copy, so the log alone cannot bring it back")
            return
        missing = whole_history(records)
        if missing:
            if self._accept_loss and self._salvaged():
                replica.closed = ""
                self.replay(records)
                return
            last = "drop its table" if self._accept_loss else f"{_ACCEPT} what cannot be read"
            self.close(f"{why}; {missing}; put its directory back from a backup, or {last}")
            return
        try:
            replica.engine = self._files.start_over(self._factory)
        except (OSError, PegasKVError) as error:
            self.close(f"{why}; it cannot be made anew: {error}")
            return
        _log.warning(
            "partition %s is made anew from the log, which has all its records", self._gpid
        )
        replica.closed = ""
        replica.decree = replica.ballot = replica.last_timestamp_us = 0
        self.replay(records)

    def replay(self, records: Sequence[LogRecord]) -> None:
        """Apply what is committed, keep what is prepared."""
        replica = self._replica
        assert replica.engine is not None
        # Records of a lower ballot than the tables have lie behind a loss that was accepted.
        history = split_history(valid_history(records, ballot=replica.ballot), replica.decree)
        if history.gap and not self._may_skip(history.gap_at, history.gap):
            self.close(f"{history.gap}; {_ACCEPT}")
            return
        try:
            replica.participation = apply_records(replica.engine, history.committed)
            after = replica.participation.copy()
            for mutation in history.tail:
                # It is decoded when it is proposed again: too late to find that it cannot be.
                mutation_rows(mutation.payload, mutation.decree, after)
        except DamagedTables as error:
            if self._accept_loss and self._salvaged():
                self.replay(records)
                return
            with suppress(OSError):
                self._files.note_damage(str(error))
            self.close(f"its tables are damaged: {error}; {_ACCEPT} the rows in them")
            return
        except (PegasKVError, OSError) as error:
            self.close(f"replaying its log failed: {error}")
            return
        state = replica.engine.state()
        replica.decree = state.decree
        replica.ballot = max([state.ballot, *(record.ballot for record in records)])
        replica.tail = history.tail
        replica.last_timestamp_us = state.last_timestamp_us
        for mutation in history.tail:
            replica.last_timestamp_us = max(
                replica.last_timestamp_us, mutation_timestamps(mutation.payload)[1]
            )

    def tell_of_losses(self) -> None:
        """Let those who may have what is lost here find that out: other members, other clusters."""
        replica = self._replica
        if self._accept_loss and (replica.salvaged or replica.lost_from):
            # It must not lead while another member has what it lost just now.
            replica.amnesiac = True
        if replica.engine is None or replica.closed:
            return
        lost_from = _UNKNOWN if replica.salvaged else replica.lost_from
        rows = replica.participation.lose(lost_from, rows=replica.salvaged)
        if not rows:
            return
        try:
            replica.engine.write(rows, replica.engine.state())
            # The log still has what set them.
            replica.engine.flush()
        except (PegasKVError, OSError) as error:
            self.close(f"what its duplications lost could not be written: {error}")

    def _salvaged(self) -> bool:
        """Exchange the engine for what can be read of it; False if that is nothing."""
        replica = self._replica
        known = None
        if replica.engine is not None:
            # Its tables have reached that, whichever of their rows are lost.
            known = replica.engine.state()
            replica.engine.close()
            replica.engine = None
        try:
            _salvage(self._directory, self._gpid, self._factory, known)
            replica.engine = self._factory.open(self._files.engine_path)
            state = replica.engine.state()
        except (OSError, PegasKVError) as error:
            _log.error("partition %s: nothing can be saved of it: %s", self._gpid, error)
            return False
        replica.decree, replica.ballot = state.decree, state.ballot
        replica.last_timestamp_us = state.last_timestamp_us
        replica.salvaged = True
        return True

    def _may_skip(self, gap_at: int, gap: str) -> bool:
        """Whether the records behind a gap that begins at this decree are given up."""
        accepted = self._accepted()
        self._replica.lost_from = gap_at
        if accepted.gap == gap_at:
            return True
        if not self._accept_loss:
            return False
        _log.error("partition %s: the operator accepts the loss: %s", self._gpid, gap)
        return self._accept(Accepted(accepted.incarnation, accepted.files, gap_at))


def read_participation(engine: Engine) -> Participation:
    """Return what the engine's rows say of duplications. Blocks.

    Raises:
        DamagedTables: they cannot be read, or make no sense.
        OSError: the disk refused.

    """
    try:
        with closing(engine.snapshot()) as snapshot:
            return Participation.read(
                row for start, stop in RESERVED_RANGES for row in snapshot.iterate(start, stop)
            )
    except CorruptionError as error:
        raise DamagedTables(f"what it takes part in cannot be read: {error}") from error


def apply_records(engine: Engine, records: Sequence[LogRecord]) -> Participation:
    """Apply committed records in decree order, many in one batch; return what came of it.

    Raises:
        UnsupportedFormat, CorruptionError: a mutation cannot be read.
        DamagedTables: the engine cannot take the rows, since a table is damaged.
        OSError: the engine refused the write.

    """
    participation = read_participation(engine)
    rows: list[bytes | None] = []
    size = 0
    state = engine.state()
    for record in records:
        rows += mutation_rows(record.payload, record.decree, participation)
        size += len(record.payload)
        state = ReplicaState(
            record.decree,
            record.ballot,
            max(state.last_timestamp_us, mutation_timestamps(record.payload)[1]),
        )
        if size >= _APPLY_BYTES:
            _write(engine, rows, state)
            rows, size = [], 0
    if size:
        _write(engine, rows, state)
    return participation


def bring_up_from_log(engine: Engine, log: MutationLog, gpid: Gpid, committed: int) -> None:
    """Apply what the log has above the engine's decree, up to `committed`. Blocks.

    Raises:
        DamagedTables: the engine cannot take the rows, since a table is damaged.
        CorruptionError: the log lacks some of them, or is damaged.
        OSError: the engine refused the write, or the log cannot be read.

    """
    state = engine.state()
    records = log.read(gpid, state.decree + 1, 1 << 40, ballot=state.ballot, through=committed)
    apply_records(engine, records)
    reached = engine.state().decree
    if reached < committed:
        raise CorruptionError(
            f"its tables end at decree {reached} and the log lacks those up to {committed}"
        )


def _write(engine: Engine, rows: list[bytes | None], state: ReplicaState) -> None:
    try:
        engine.write(rows, state)
    except CorruptionError as error:
        raise DamagedTables(str(error)) from error
