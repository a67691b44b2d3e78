"""From what is on disk after any stop to replicas that may be opened.

Runs in a thread, before anything is served: engines are opened (each without its
own log), the mutation log is scanned, and the committed part of each replica's
history is applied. What was prepared only is kept as the tail that the next ballot
proposes again. A replica that may have lost acknowledged writes stays closed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from pegaskv.base.errors import CorruptionError, PegasKVError
from pegaskv.base.types import Gpid
from pegaskv.codec.mutations import mutation_timestamps
from pegaskv.replica.participation import RESERVED_RANGES, Participation
from pegaskv.replica.prepare_list import Mutation
from pegaskv.replica.replay import mutation_rows, split_history
from pegaskv.runtime.clock import Clock
from pegaskv.runtime.worker import Worker
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.disk import Disk
from pegaskv.storage.engine import Engine, EngineFactory, ReplicaState
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.log_recovery import valid_history
from pegaskv.storage.mutation_log import LogGone, LogRecord, MutationLog, RecoveredLog

__all__ = [
    "RecoveredReplica",
    "RecoveredServer",
    "apply_records",
    "read_participation",
    "recover_replicas",
]

_log = logging.getLogger(__name__)

_APPLY_BYTES: Final = 1024 * 1024


@dataclass(slots=True)
class RecoveredReplica:
    """A replica as a start found it; `closed` says why it cannot be opened, or is empty."""

    engine: Engine | None = None
    incarnation: int = 0
    decree: int = 0
    ballot: int = 0
    last_timestamp_us: int = 0
    tail: list[Mutation] = field(default_factory=list)
    # As the committed part of the log left it.
    participation: Participation = field(default_factory=Participation)
    closed: str = ""

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
    replicas = _open_engines(directory, engine_factory)

    def wanted(gpid: Gpid, incarnation: int, decree: int) -> bool:
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
    for gpid in log.partitions():
        if gpid not in replicas:
            # A table that was purged: nobody will ever read these records.
            log.forget(gpid)
    for gpid, replica in replicas.items():
        if gpid in directory.damaged:
            # Nobody knows its incarnation: all its records stay for whoever mends the manifest.
            continue
        # If its tables break, the log must have all that the checkpoint lacks.
        log.set_incarnation(gpid, replica.incarnation, directory.checkpoint_decree(gpid))
        if not replica.closed:
            _close_if_damaged(gpid, replica, recovered, accept_loss=accept_loss)
        if not replica.closed:
            _replay(gpid, replica, recovered.records.get(gpid, []), accept_loss=accept_loss)
        _pin(log, gpid, replica)
    if (
        accept_loss
        and recovered.damage is not None
        and not any(replica.closed for replica in replicas.values())
    ):
        # What is closed still has not gone on without its loss.
        log.settle_damage()
    highest = max((replica.incarnation for replica in replicas.values()), default=0)
    return RecoveredServer(log, replicas, max(highest, recovered.highest_incarnation) + 1)


def _pin(log: MutationLog, gpid: Gpid, replica: RecoveredReplica) -> None:
    """Hold what duplications need of the log, before anything of it can be given up."""
    if replica.engine is None:
        # Nobody can read its pins: it may have any.
        _pin_at(log, gpid, "closed", 0)
        return
    for uuid, start_decree in replica.participation.pins.items():
        if start_decree:
            _pin_at(log, gpid, uuid.hex(), start_decree)


def _pin_at(log: MutationLog, gpid: Gpid, name: str, decree: int) -> None:
    try:
        log.set_pin(gpid, name, decree)
    except LogGone as gone:
        # What lacks was confirmed by the target and given up; how far, is heard again soon.
        log.set_pin(gpid, name, gone.lowest)


def _open_engines(directory: DataDirectory, factory: EngineFactory) -> dict[Gpid, RecoveredReplica]:
    replicas: dict[Gpid, RecoveredReplica] = {}
    for manifest in directory.list_replicas():
        replica = _open_engine(directory, manifest.gpid, factory)
        replica.incarnation = manifest.incarnation
        if manifest.amnesiac:
            # The only replica goes on with what it has, and says so once.
            _log.warning(
                "partition %s acknowledged writes without syncing them and the machine went "
                "down: its last writes may be lost",
                manifest.gpid,
            )
            directory.clear_amnesia(manifest.gpid)
        replicas[manifest.gpid] = replica
    for gpid, damage in directory.damaged.items():
        replicas[gpid] = RecoveredReplica(closed=damage.message)
        _log.error("partition %s stays closed: %s", gpid, damage)
    return replicas


def _open_engine(directory: DataDirectory, gpid: Gpid, factory: EngineFactory) -> RecoveredReplica:
    try:
        engine, participation = _read(factory.open(directory.engine_path(gpid)))
    except CorruptionError as error:
        _log.error("the tables of partition %s do not open: %s", gpid, error)
        try:
            engine, participation = _read(directory.restore_checkpoint(gpid, factory))
        except (OSError, PegasKVError) as second:
            return RecoveredReplica(
                closed=f"its tables do not open ({error}), nor does a checkpoint ({second})"
            )
        _log.warning("partition %s goes on from its last checkpoint and the log", gpid)
    state = engine.state()
    return RecoveredReplica(
        engine=engine,
        decree=state.decree,
        ballot=state.ballot,
        last_timestamp_us=state.last_timestamp_us,
        participation=participation,
    )


def _read(engine: Engine) -> tuple[Engine, Participation]:
    try:
        return engine, read_participation(engine)
    except BaseException:
        engine.close()
        raise


def _close_if_damaged(
    gpid: Gpid, replica: RecoveredReplica, recovered: RecoveredLog, *, accept_loss: bool
) -> None:
    if recovered.damage is None:
        return
    lost = recovered.damage.describe(gpid, replica.incarnation)
    if not lost:
        return
    if accept_loss:
        _log.error("partition %s: the operator accepts the loss: %s", gpid, lost)
        return
    replica.closed = f"the log is damaged: {lost}; start with --accept-loss to go on without"
    _log.error("partition %s stays closed: %s", gpid, replica.closed)


def _replay(
    gpid: Gpid, replica: RecoveredReplica, records: Sequence[LogRecord], *, accept_loss: bool
) -> None:
    assert replica.engine is not None
    # Records of a lower ballot than the tables have lie behind a loss that was accepted.
    history = split_history(valid_history(records, ballot=replica.ballot), replica.decree)
    if history.gap and not accept_loss:
        replica.closed = f"{history.gap}; start with --accept-loss to go on without"
        _log.error("partition %s stays closed: %s", gpid, replica.closed)
        return
    try:
        replica.participation = apply_records(replica.engine, history.committed)
        after = replica.participation.copy()
        for mutation in history.tail:
            # It is decoded when it is proposed again: too late to find that it cannot be.
            mutation_rows(mutation.payload, mutation.decree, after)
    except (PegasKVError, OSError) as error:
        replica.closed = f"replaying its log failed: {error}"
        _log.error("partition %s stays closed: %s", gpid, replica.closed)
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


def read_participation(engine: Engine) -> Participation:
    """Return what the engine's rows say of duplications. Blocks.

    Raises:
        CorruptionError, OSError: they cannot be read.

    """
    snapshot = engine.snapshot()
    try:
        return Participation.read(
            row for start, stop in RESERVED_RANGES for row in snapshot.iterate(start, stop)
        )
    finally:
        snapshot.close()


def apply_records(engine: Engine, records: Sequence[LogRecord]) -> Participation:
    """Apply committed records in decree order, many in one batch; return what came of it.

    Raises:
        UnsupportedFormat, CorruptionError: a mutation cannot be read.
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
            engine.write(rows, state)
            rows, size = [], 0
    if size:
        engine.write(rows, state)
    return participation
