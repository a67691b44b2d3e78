"""Looks into every replica of a simulated cluster while it runs: what must hold at each moment.

A `Watch` stands around production code for the time of a run: it is told of every commit,
every new role, every answer that leaves a server and every start. It keeps one ledger for each
partition, of what was committed at each decree, which all replicas must agree with for ever.
What does not hold is written to `wrong`, in words; a run with anything there has failed.

The numbers in the messages are those of the invariants: a primary per ballot (P1), commits
that all members have (P2), one content per decree (P3), ballots that never fall (P4), leases
that never overlap (P9), and starts that lack nothing (W1).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import xxhash

from pegaskv.base.types import Gpid, ReplicaStatus
from pegaskv.codec.messages_meta import ProposalKind
from pegaskv.codec.mutations import OperationKind, decode_mutation
from pegaskv.replica import machine as machines
from pegaskv.replica import recovery, stub
from pegaskv.replica.events import Assigned, Taught
from pegaskv.replica.hosting import Hosting
from pegaskv.replica.learning import Learner
from pegaskv.replica.machine import ReplicaMachine
from pegaskv.replica.membership import Membership
from pegaskv.replica.prepare_list import PrepareList
from pegaskv.replica.replica import Replica
from pegaskv.storage.log_format import LogRecord, RecordFields
from pegaskv.storage.mutation_log import MutationLog
from tests.simulation.loop import OWNER
from tests.simulation.world import Life

__all__ = ["Entry", "Ledger", "Watch"]

_WRONG_MAX: Final = 12
_PRIMARY: Final = ReplicaStatus.PRIMARY


@dataclass(slots=True)
class Entry:
    """What was committed at one decree, first by whom and under which ballot."""

    digest: int
    ballot: int
    node: str
    payload: bytes


@dataclass(slots=True)
class Ledger:
    """All that one partition has ever committed."""

    entries: dict[int, Entry] = field(default_factory=dict)
    last: int = 0


@dataclass(slots=True)
class Reached:
    """What a run has come by: a checker that never saw a thing proves nothing of it."""

    primaries: int = 0
    proposals: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    followed: int = 0
    learned: int = 0
    reproposed: int = 0
    recovered: int = 0
    answers: int = 0
    silenced: int = 0


class Watch:
    """White-box invariants of one world. `installed()` puts it around the production code."""

    def __init__(self, nodes: Callable[[], Iterable[tuple[Life, Any]]]) -> None:
        # Each living server's life, with its `ReplicaStub`.
        self._nodes = nodes
        self.wrong: list[str] = []
        self.on_proposed: Callable[[ProposalKind, str, str], None] = lambda kind, proposer, of: None
        self.reached = Reached()
        self.ledgers: dict[Gpid, Ledger] = {}
        self._primaries: dict[tuple[Gpid, int], str] = {}
        self._configurations: dict[tuple[Gpid, int], tuple[str | None, tuple[str, ...]]] = {}
        # What each node must find again after a stop: the last decree it acknowledged.
        self._owed: dict[tuple[str, Gpid], int] = {}
        self._logged: dict[tuple[int, Gpid, int], tuple[int, int]] = {}
        # Partitions that may have lost what was acknowledged, as their durability allows.
        self.excused: dict[Gpid, str] = {}
        self.node_ids: dict[str, str] = {}
        # Of each table how many members a write needs.
        self.least_members: dict[int, int] = {}

    def ledger(self, gpid: Gpid) -> Ledger:
        """Return what a partition has committed."""
        return self.ledgers.setdefault(gpid, Ledger())

    def blame(self, text: str) -> None:
        """Write down what does not hold."""
        if len(self.wrong) < _WRONG_MAX:
            self.wrong.append(text)

    def excuse(self, gpid: Gpid, reason: str) -> None:
        """From here on this partition may lack what it has acknowledged."""
        self.excused.setdefault(gpid, reason)

    def forget_disk(self, node: str) -> None:
        """A node's disk was emptied: nothing can be found there again."""
        for key in [each for each in self._owed if each[0] == node]:
            del self._owed[key]

    # --- What is looked at at every step -----------------------------------------------------

    def _commit(self, machine: ReplicaMachine, mutations: list[Any], *, leads: bool) -> None:
        life = _life()
        gpid = Gpid(*machine.gpid)
        ledger = self.ledger(gpid)
        for mutation in mutations:
            digest = xxhash.xxh3_64_intdigest(mutation.payload)
            known = ledger.entries.get(mutation.decree)
            if known is None:
                if not leads:
                    self.blame(
                        f"P2 {gpid}: {life.name} commits decree {mutation.decree}, which no "
                        "primary has committed"
                    )
                ledger.entries[mutation.decree] = Entry(
                    digest, mutation.ballot, life.name, mutation.payload
                )
                ledger.last = max(ledger.last, mutation.decree)
            elif known.digest != digest and gpid not in self.excused:
                self.blame(
                    f"P3 {gpid}: {life.name} commits at decree {mutation.decree}, ballot "
                    f"{mutation.ballot}, another content than {known.node} did by ballot "
                    f"{known.ballot}"
                )
        if leads:
            self.reached.commits += len(mutations)
            self._owe(life, machine, gpid, mutations[-1].decree)
        else:
            self.reached.followed += len(mutations)

    def _owe(self, life: Life, machine: ReplicaMachine, gpid: Gpid, decree: int) -> None:
        """A primary commits: it and all its followers must have that from now on."""
        by_id = {other.directory.node_id: (owner, other) for owner, other in self._servers()}
        self._owed[life.node.name, gpid] = decree
        for node_id in machine.followers:
            name = self.node_ids.get(node_id)
            if name is not None:
                key = (name, gpid)
                self._owed[key] = max(decree, self._owed.get(key, 0))
            if node_id not in by_id:
                continue
            owner, other = by_id[node_id]
            replica = other.replicas.get(tuple(gpid))
            if replica is None or replica.machine.ballot != machine.ballot:
                continue
            has = replica.machine.prepared.last_prepared
            if has < decree:
                self.blame(
                    f"P2 {gpid}: {life.name} commits decree {decree} under ballot "
                    f"{machine.ballot}, and {owner.name} has {has}"
                )

    def _assigned(self, machine: ReplicaMachine, ballot: int) -> None:
        gpid, name = Gpid(*machine.gpid), _life().name
        self.reached.primaries += 1
        self.reached.reproposed += len(machine.prepared) > 1
        before = self._primaries.setdefault((gpid, ballot), name)
        if before != name:
            self.blame(f"P1 {gpid}: {name} leads under ballot {ballot}, and so did {before}")

        by_id = {other.directory.node_id: (owner, other) for owner, other in self._servers()}
        for node_id in machine.secondaries:
            if node_id not in by_id:
                continue
            owner, other = by_id[node_id]
            replica = other.replicas.get(tuple(gpid))
            if (
                replica is not None
                and replica.machine.status is not ReplicaStatus.INACTIVE
                and not replica.closed
                and replica.machine.prepared.last_prepared < machine.committed
            ):
                self.blame(
                    f"P8 {gpid}: {name} leads under ballot {ballot} and has committed "
                    f"{machine.committed}, and {owner.name}, a member, has "
                    f"{replica.machine.prepared.last_prepared}"
                )

    def _opened(self, replica: Replica) -> None:
        """A client's write was admitted."""
        gpid = Gpid(*replica.gpid)
        members = 1 + len(replica.machine.secondaries)
        least = self.least_members.get(gpid.table_id, 1)
        if members < least:
            self.blame(f"{gpid}: {_life().name} takes a write with {members} of {least} members")

    def _configured(self, configuration: Any) -> None:
        gpid = Gpid(*configuration.gpid)
        found = (configuration.primary, tuple(sorted(configuration.secondaries)))
        before = self._configurations.setdefault((gpid, configuration.ballot), found)
        if before != found and configuration.ballot:
            self.blame(f"M2 {gpid}: ballot {configuration.ballot} is {before} and {found}")

    def _answered(self, membership: Membership) -> None:
        """An answer leaves a server: nobody else may lead anything that this one serves."""
        life = _life()
        self.reached.answers += 1
        mine = [
            (gpid, replica)
            for gpid, replica in membership._replicas.items()
            if replica.serving and replica.machine.status is _PRIMARY
        ]
        if not mine:
            return
        for owner, other in self._servers():
            if owner is life:
                continue
            for gpid, replica in mine:
                rival = other.replicas.get(gpid)
                if (
                    rival is not None
                    and rival.machine.serving
                    and rival.machine.ballot > replica.machine.ballot
                ):
                    self.blame(
                        f"P9 {Gpid(*gpid)}: {life.name} answers under ballot "
                        f"{replica.machine.ballot}, and {owner.name} serves under ballot "
                        f"{rival.machine.ballot}"
                    )

    def _appended(self, log: MutationLog, records: Iterable[LogRecord]) -> None:
        for record in records:
            gpid = Gpid(record.gpid_table, record.gpid_index)
            key = (id(log), gpid, record.incarnation)
            decree, ballot = self._logged.get(key, (0, 0))
            if record.ballot < ballot and record.decree >= decree:
                self.blame(
                    f"P4 {gpid}: {_life().name} logs decree {record.decree} by ballot "
                    f"{record.ballot} behind decree {decree} by ballot {ballot}"
                )
            self._logged[key] = (record.decree, record.ballot)

    def _replayed(self, records: Iterable[LogRecord]) -> None:
        """A start, or a repair, applies what it takes for committed."""
        for record in records:
            gpid = Gpid(record.gpid_table, record.gpid_index)
            known = self.ledger(gpid).entries.get(record.decree)
            if gpid in self.excused:
                continue
            if known is None:
                self.blame(
                    f"P3 {gpid}: {_life().name} replays decree {record.decree} as committed, "
                    "and nobody has committed it"
                )
            elif known.digest != xxhash.xxh3_64_intdigest(record.payload):
                self.blame(
                    f"P3 {gpid}: {_life().name} replays at decree {record.decree}, ballot "
                    f"{record.ballot}, another content than {known.node} committed by ballot "
                    f"{known.ballot}"
                )

    def _recovered(self, life: Life, replicas: dict[Gpid, Any]) -> None:
        self.reached.recovered += len(replicas)
        for gpid, replica in replicas.items():
            owed = self._owed.get((life.node.name, Gpid(*gpid)), 0)
            if replica.amnesiac or replica.closed or replica.damage or gpid in self.excused:
                continue
            if replica.last_decree < owed:
                self.blame(
                    f"W1 {Gpid(*gpid)}: {life.name} starts with decrees to {replica.last_decree} "
                    f"and has acknowledged {owed}"
                )

    # --- What is looked at now and then ------------------------------------------------------

    def look(self) -> None:
        """Check every machine that is there, and each against the others."""
        for life, server in self._servers():
            for gpid, replica in server.replicas.items():
                machine = replica.machine
                try:
                    machine.check()
                except AssertionError as error:
                    self.blame(f"{Gpid(*gpid)}: {life.name} contradicts itself: {error}")
                ledger = self.ledgers.get(Gpid(*gpid))
                last = ledger.last if ledger is not None else 0
                if machine.committed > last and gpid not in self.excused:
                    self.blame(
                        f"P2 {Gpid(*gpid)}: {life.name} is at decree {machine.committed}, and "
                        f"{last} is the last that was committed"
                    )
                if machine.status is _PRIMARY:
                    self._look_at_members(life, gpid, machine)
        self._look_at_leases()

    def _look_at_leases(self) -> None:
        """At no moment may two servers serve a partition, whether somebody asks them or not."""
        serving: dict[Any, tuple[Life, Replica]] = {}
        for life, server in self._servers():
            now_ms = life.clock.monotonic_ms()
            for gpid, replica in server.replicas.items():
                # One that stands still, or has not looked yet, knows when it goes on.
                if not replica.serving or not replica.lease.valid(now_ms):
                    continue
                owner, rival = serving.setdefault(gpid, (life, replica))
                if rival is not replica:
                    self.blame(
                        f"P9 {Gpid(*gpid)}: {owner.name} has leases for ballot "
                        f"{rival.machine.ballot}, and {life.name} for ballot "
                        f"{replica.machine.ballot}"
                    )

    def _look_at_members(self, life: Life, gpid: Any, machine: ReplicaMachine) -> None:
        for owner, other in self._servers():
            replica = other.replicas.get(gpid)
            if (
                replica is not None
                and other.directory.node_id in machine.secondaries
                and replica.machine.status is ReplicaStatus.SECONDARY
                and replica.machine.ballot == machine.ballot
                and replica.machine.prepared.last_prepared < machine.committed
            ):
                self.blame(
                    f"P2 {Gpid(*gpid)}: {life.name} has committed {machine.committed} under "
                    f"ballot {machine.ballot}, and {owner.name}, its secondary, has "
                    f"{replica.machine.prepared.last_prepared}"
                )

    def _servers(self) -> "Iterator[tuple[Life, _Server]]":
        for life, found in self._nodes():
            yield life, _Server(found)

    # --- Around the production code ------------------------------------------------------------

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Watch, until this ends."""
        with pytest.MonkeyPatch.context() as patch:
            self._watch_machines(patch)
            self._watch_servers(patch)
            yield

    def _watch_machines(self, patch: pytest.MonkeyPatch) -> None:
        begin, step = ReplicaMachine.__init__, ReplicaMachine.step
        watch = self

        class WatchedList(PrepareList):
            """Tells of what it commits."""

            machine: ReplicaMachine

            def commit(self, decree: int) -> None:
                count = decree - self.committed
                if count > 0:
                    watch._commit(self.machine, list(self)[:count], leads=True)
                super().commit(decree)

            def take(self, decree: int) -> Any:
                taken = super().take(decree)
                if taken:
                    watch._commit(self.machine, taken, leads=False)
                return taken

        def begun(machine: ReplicaMachine, *arguments: Any, **named: Any) -> None:
            begin(machine, *arguments, **named)
            prepared: Any = machine.prepared
            prepared.machine = machine

        def stepped(machine: ReplicaMachine, event: Any) -> Any:
            ballot = machine.ballot
            effects = step(machine, event)
            machine.check()
            if machine.ballot < ballot:
                self.blame(f"P4 {machine.gpid}: {_life().name} goes back to {machine.ballot}")
            if (
                isinstance(event, Assigned)
                and machine.status is _PRIMARY
                and (machine.ballot == event.ballot > ballot)
            ):
                self._assigned(machine, event.ballot)
            if isinstance(event, Taught) and machine.ballot == event.ballot:
                self.reached.learned += 1
                self._owed.pop((_life().node.name, Gpid(*machine.gpid)), None)
            return effects

        patch.setattr(machines, "PrepareList", WatchedList)
        patch.setattr(ReplicaMachine, "__init__", begun)
        patch.setattr(ReplicaMachine, "step", stepped)

    def _watch_servers(self, patch: pytest.MonkeyPatch) -> None:
        answer, append = Membership.may_answer, MutationLog.append
        apply, recover = recovery.apply_records, stub.recover_replicas
        take, configured, copy = Hosting._take, Hosting.on_configured, Learner.copy
        propose, open_batch = Membership._propose, Replica.open_batch

        def may_answer(membership: Membership) -> bool:
            allowed = answer(membership)
            if allowed:
                self._answered(membership)
            else:
                self.reached.silenced += 1
            return allowed

        def appending(log: MutationLog, records: list[RecordFields]) -> Any:
            self._appended(log, [LogRecord(*fields) for fields in records])
            return append(log, records)

        def applying(engine: Any, records: Any) -> Any:
            self._replayed(records)
            return apply(engine, records)

        def recovering(**named: Any) -> Any:
            found = recover(**named)
            life = _life()
            self.node_ids[named["directory"].node_id] = life.node.name
            self._recovered(life, found.replicas)
            return found

        async def taking(hosting: Hosting, table: Any, configuration: Any, push: Any) -> Any:
            self._configured(configuration)
            return await take(hosting, table, configuration, push)

        def told(hosting: Hosting, configuration: Any) -> None:
            self._configured(configuration)
            configured(hosting, configuration)

        async def copying(learner: Learner, adoption: Any, replica: Any) -> int:
            # From here on it may lack, for a while, what it had.
            self._owed.pop((_life().node.name, Gpid(*adoption.gpid)), None)
            return await copy(learner, adoption, replica)

        def proposing(
            membership: Membership, replica: Replica, kind: Any, *rest: Any, **named: Any
        ) -> bool:
            proposed = propose(membership, replica, kind, *rest, **named)
            if proposed:
                self.reached.proposals[kind.name.lower()] += 1
                self.on_proposed(kind, membership._node_id, rest[0])
            return proposed

        def opening(replica: Replica, size: int = 0) -> Any:
            batch = open_batch(replica, size)
            self._opened(replica)
            return batch

        patch.setattr(Replica, "open_batch", opening)
        patch.setattr(Membership, "may_answer", may_answer)
        patch.setattr(Membership, "_propose", proposing)
        patch.setattr(MutationLog, "append", appending)
        patch.setattr(recovery, "apply_records", applying)
        patch.setattr(stub, "recover_replicas", recovering)
        patch.setattr(Hosting, "_take", taking)
        patch.setattr(Hosting, "on_configured", told)
        patch.setattr(Learner, "copy", copying)

    # --- At the end -------------------------------------------------------------------------

    def rows(self, tables: dict[int, str]) -> dict[Any, list[tuple[int, bytes | None]]]:
        """Return all writes of each row, in the order in which they were committed."""
        found: dict[Any, list[tuple[int, bytes | None]]] = {}
        for gpid, ledger in sorted(self.ledgers.items()):
            name = tables.get(gpid.table_id)
            if name is None:
                continue
            for decree in sorted(ledger.entries):
                for kind, _hash, fields in decode_mutation(ledger.entries[decree].payload):
                    if kind is not OperationKind.WRITE:
                        continue
                    for key, row in zip(fields[::2], fields[1::2], strict=True):
                        length = int.from_bytes(key[:2])
                        place = (name, key[2 : 2 + length], key[2 + length :])
                        value = None if row[11] & 1 else row[12:]
                        found.setdefault(place, []).append((decree, value))
        return found


class _Server:
    """What of a `ReplicaStub` is looked at."""

    def __init__(self, found: Any) -> None:
        self.replicas: dict[Any, Replica] = found._replicas
        self.directory = found._directory


def _life() -> Life:
    life = OWNER.get()
    assert isinstance(life, Life)
    return life
