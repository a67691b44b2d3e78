"""Old mistakes of replicated systems, to be put back into production code by tests.

Each is a rule of the replication that somebody once left out. A plant says which faults bring
it to light, in which world, and which seed was the first to find it: `make soak` tries them
from seed 0 on. The rows of them in `docs/testing.md` are what `table` returns.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest

from pegaskv.base.types import ReplicaStatus
from pegaskv.codec.messages_meta import NodeReport, Proposal
from pegaskv.lease.lease import Grace, PrimaryLease
from pegaskv.meta import proposals
from pegaskv.replica import recovery
from pegaskv.replica.effects import Append
from pegaskv.replica.events import Assigned, ProposalOpened
from pegaskv.replica.following import Following
from pegaskv.replica.front import Front
from pegaskv.replica.hosting import Hosting
from pegaskv.replica.machine import ReplicaMachine
from pegaskv.replica.membership import Membership
from pegaskv.replica.replica import Replica
from pegaskv.replica.streams import Line
from pegaskv.replica.stub import ReplicaStub
from pegaskv.replica.teaching import Teaching
from pegaskv.storage.directories import DataDirectory
from pegaskv.storage.log_format import LogRecord
from pegaskv.storage.mutation_log import MutationLog
from tests.simulation import cluster_meta, plants_standalone
from tests.simulation.cluster_world import TableStory

__all__ = ["PLANTS", "Plant", "table"]

Patch = pytest.MonkeyPatch


# --- Commits ---------------------------------------------------------------------------------


def _advance_to(machine: ReplicaMachine, decree: int) -> bool:
    prepared = machine.prepared
    if decree <= prepared.committed:
        return False
    prepared.commit(decree)
    if machine.serving or decree < machine._barrier:
        return False
    machine.serving = True
    return True


def _commit_by_most(patch: Patch) -> None:
    def advance(self: ReplicaMachine) -> bool:
        have = sorted([self._logged, *self._acknowledged.values()], reverse=True)
        return _advance_to(self, have[len(have) // 2])

    patch.setattr(ReplicaMachine, "_advance", advance)


def _leave_one_secondary_out(patch: Patch) -> None:
    def advance(self: ReplicaMachine) -> bool:
        have = [self._logged, *list(self._acknowledged.values())[:-1]]
        return _advance_to(self, min(have))

    patch.setattr(ReplicaMachine, "_advance", advance)


def _count_the_own_log_before_its_sync(patch: Patch) -> None:
    real = Front._start_sync

    def start(self: Front, replicas: list[tuple[Replica, int]]) -> None:
        real(self, replicas)
        for replica, decree in replicas:
            replica.machine.logged(decree)

    patch.setattr(Front, "_start_sync", start)


def _acknowledge_records_before_the_sync(patch: Patch) -> None:
    real = Front.accept

    def accept(self: Front, records: Any, done: Any, synced: bool) -> None:
        real(self, records, done, False)

    patch.setattr(Front, "accept", accept)


def _take_records_of_any_ballot(patch: Patch) -> None:
    real = Replica.accept

    def accept(self: Replica, record: LogRecord, taken: list[LogRecord], **named: Any) -> bool:
        return record.ballot < self.machine.ballot or real(self, record, taken, **named)

    patch.setattr(Replica, "accept", accept)


def _forget_to_tell_the_commit_point(patch: Patch) -> None:
    real = Replica.follow

    def follow(self: Replica, committed: int) -> None:
        # Only what a later record has behind it.
        real(self, min(committed, self.machine.prepared.last_prepared - 1))

    patch.setattr(Replica, "follow", follow)


def _call_unknown_what_may_be_tried_again(patch: Patch) -> None:
    """The other way round: what was put into a mutation is refused as if it were not."""
    real = Replica._give_up_pending

    def give_up(self: Replica) -> None:
        for batch in self.in_flight:
            for connection, reply in batch.replies:
                connection.finish(connection.error(reply[0], self.refusal()))
                connection.flush()
            batch.replies = []
        real(self)

    patch.setattr(Replica, "_give_up_pending", give_up)


def _take_writes_with_any_number(patch: Patch) -> None:
    patch.setattr(Replica, "too_few_members", property(lambda self: "", lambda self, text: None))


# --- Roles and ballots -------------------------------------------------------------------------


def _go_on_in_the_old_role(patch: Patch) -> None:
    """A restarted primary says that it leads still, and takes the ballot that it had."""
    begin, report = ReplicaMachine.__init__, ReplicaStub.node_report

    def begun(self: ReplicaMachine, gpid: Any, *, ballot: int = 0, **named: Any) -> None:
        begin(self, gpid, ballot=ballot, **named)
        if ballot:
            self.ballot = ballot - 1
            for mutation in self.prepared:
                mutation.ballot = min(mutation.ballot, self.ballot)

    def reported(self: ReplicaStub, address: str) -> NodeReport:
        found = report(self, address)
        leads = tuple(replace(each, status=ReplicaStatus.PRIMARY) for each in found.replicas)
        return replace(found, replicas=leads)

    patch.setattr(ReplicaMachine, "__init__", begun)
    patch.setattr(ReplicaStub, "node_report", reported)


def _serve_before_the_barrier(patch: Patch) -> None:
    step = ReplicaMachine.step

    def stepped(self: ReplicaMachine, event: Any) -> Any:
        effects = step(self, event)
        if isinstance(event, Assigned) and effects and isinstance(effects[0], Append):
            self._barrier = 0
        return effects

    def advance(self: Replica, *arguments: Any, **named: Any) -> bool:
        assigned = assign(self, *arguments, **named)
        if assigned:
            self.machine.serving = True
            self._look_whether_to_serve()
        return assigned

    assign = Replica.assign
    patch.setattr(ReplicaMachine, "step", stepped)
    patch.setattr(Replica, "assign", advance)


def _propose_nothing_again(patch: Patch) -> None:
    """A new primary takes its tail for committed."""
    real = ReplicaMachine._on_assigned

    def assigned(self: ReplicaMachine, ballot: int, secondaries: tuple[str, ...]) -> Any:
        if ballot > self.ballot:
            self.prepared.cut()
        return real(self, ballot, secondaries)

    patch.setattr(ReplicaMachine, "_on_assigned", assigned)


def _store_whatever_is_proposed(patch: Patch) -> None:
    real = proposals.Proposals._following
    group = cluster_meta.next_configuration

    def following(self: Any, record: Any, proposal: Proposal) -> Any:
        return real(self, record, replace(proposal, ballot=record.ballot))

    def next_one(stored: Any, proposal: Proposal) -> Any:
        return group(stored, replace(proposal, ballot=stored.ballot))

    patch.setattr(proposals.Proposals, "_following", following)
    patch.setattr(cluster_meta, "next_configuration", next_one)


def _give_the_same_ballot(patch: Patch) -> None:
    group = cluster_meta.next_configuration

    def next_one(stored: Any, proposal: Proposal) -> Any:
        found = group(stored, proposal)
        return None if found is None else replace(found, ballot=stored.ballot)

    def store(self: Any, configuration: Any) -> None:
        self.configurations[configuration.gpid] = configuration
        self.stored += 1

    patch.setattr(cluster_meta, "next_configuration", next_one)
    patch.setattr(cluster_meta.GroupStore, "store", store)


def _obey_an_earlier_process(patch: Patch) -> None:
    real = proposals.Proposals._following

    def following(self: Any, record: Any, proposal: Proposal) -> Any:
        node = self._host.nodes.get(proposal.proposer)
        process = proposal.process if node is None else node.process
        return real(self, record, replace(proposal, process=process))

    patch.setattr(proposals.Proposals, "_following", following)


def _believe_a_primary_before_the_meta_server(patch: Patch) -> None:
    real = Hosting.adopt

    def adopt(self: Hosting, table: Any, configuration: Any, *rest: Any, **named: Any) -> bool:
        self._named.setdefault(configuration.gpid, 0)
        return real(self, table, configuration, *rest, **named)

    patch.setattr(Hosting, "adopt", adopt)


# --- Leases ------------------------------------------------------------------------------------


def _look_at_no_lease(patch: Patch) -> None:
    patch.setattr(PrimaryLease, "valid", lambda self, now_ms: True)
    patch.setattr(Membership, "may_answer", lambda self: True)


def _look_at_the_lease_before_the_read_only(patch: Patch) -> None:
    patch.setattr(Membership, "may_answer", lambda self: True)


def _count_the_lease_from_the_answer(patch: Patch) -> None:
    real = Membership._on_acknowledged

    def acknowledged(self: Membership, line: Line, found: Iterable[tuple[Any, int]]) -> None:
        now_ms = self._clock.monotonic_ms()
        real(self, line, [(stream, now_ms) for stream, _ in found])

    patch.setattr(Membership, "_on_acknowledged", acknowledged)


def _claim_before_the_lease_ends(patch: Patch) -> None:
    patch.setattr(Grace, "over", lambda self, now_ms: now_ms >= self._heard_ms + 2_500)


def _acknowledge_while_claiming(patch: Patch) -> None:
    patch.setattr(Replica, "claiming", property(lambda self: False, lambda self, value: None))


def _serve_while_handing_over(patch: Patch) -> None:
    # A task that is dropped with its process never ends: nothing may depend on that it does.
    handing: set[Replica] = set()
    patch.setattr(
        Replica, "draining", property(lambda self: self in handing, lambda self, value: None)
    )
    real = Membership._hand_over

    async def hand_over(self: Membership, replica: Replica, node_id: str, *, keep: bool) -> None:
        handing.add(replica)
        try:
            await real(self, replica, node_id, keep=keep)
        finally:
            handing.discard(replica)

    patch.setattr(Membership, "_hand_over", hand_over)


# --- Learning ----------------------------------------------------------------------------------


def _promote_early(patch: Patch) -> None:
    step = ReplicaMachine.step

    def stepped(self: ReplicaMachine, event: Any) -> Any:
        if isinstance(event, ProposalOpened):
            event = ProposalOpened("")
        return step(self, event)

    def promote(self: Membership, replica: Replica, node_id: str, next_decree: int) -> bool:
        joined = join(self, replica, node_id, next_decree - 1)
        stream = replica.streams.get(node_id)
        if stream is not None and stream.learner and replica.machine.serving:
            stream.acknowledged = replica.machine.committed
            stream.leased_ms = self._clock.monotonic_ms()
            self._consider_upgrade(stream)
        return joined

    join = Membership.join
    patch.setattr(ReplicaMachine, "step", stepped)
    patch.setattr(ReplicaMachine, "has_all_committed", lambda self, acknowledged: True)
    patch.setattr(Membership, "join", promote)


def _obey_the_old_configuration_only(patch: Patch) -> None:
    step = ReplicaMachine.step

    def stepped(self: ReplicaMachine, event: Any) -> Any:
        if isinstance(event, ProposalOpened):
            event = ProposalOpened("")
        return step(self, event)

    patch.setattr(ReplicaMachine, "step", stepped)


def _teach_what_is_not_committed(patch: Patch) -> None:
    real = Teaching._log_page

    def page(self: Teaching, gpid: Any, first: int, most: int, through: int) -> bytes:
        replica = self._replicas[tuple(gpid)]
        return real(self, gpid, first, most, replica.machine.prepared.last_prepared)

    patch.setattr(Teaching, "_log_page", page)


# --- Restarts ----------------------------------------------------------------------------------


def _take_records_in_the_order_of_decrees(patch: Patch) -> None:
    """The first record of each decree, whatever came later."""

    def history(records: Iterable[LogRecord], *, ballot: int = 0) -> list[LogRecord]:
        first: dict[int, LogRecord] = {}
        for record in records:
            first.setdefault(record.decree, record)
        return [first[decree] for decree in sorted(first)]

    patch.setattr(recovery, "valid_history", history)


def _replay_old_incarnations(patch: Patch) -> None:
    """What an earlier incarnation has of a decree holds.

    To read such records alone does no harm: a learner becomes a member behind a barrier whose
    ballot is above all that it had, and by their ballots they are void then. So that rule is left
    out too, from one incarnation to the next; within each it holds.
    """
    real = MutationLog.recover.__func__  # type: ignore[attr-defined]
    valid_history = recovery.valid_history

    def recover(cls: Any, *arguments: Any, wanted: Any, **named: Any) -> Any:
        def any_of_them(gpid: Any, incarnation: int, decree: int) -> bool:
            return any(wanted(gpid, number, decree) for number in range(1, 60))

        return real(cls, *arguments, wanted=any_of_them, **named)

    def history(records: Iterable[LogRecord], *, ballot: int = 0) -> list[LogRecord]:
        of_incarnations: dict[int, list[LogRecord]] = {}
        for record in records:
            of_incarnations.setdefault(record.incarnation, []).append(record)
        found: dict[int, LogRecord] = {}
        for incarnation in sorted(of_incarnations):
            last = incarnation == max(of_incarnations)
            for record in valid_history(of_incarnations[incarnation], ballot=ballot if last else 0):
                found.setdefault(record.decree, record)
        return [found[decree] for decree in sorted(found)]

    patch.setattr(MutationLog, "recover", classmethod(recover))
    patch.setattr(recovery, "valid_history", history)


def _forget_that_memory_was_lost(patch: Patch) -> None:
    real = DataDirectory.list_replicas

    def listed(self: DataDirectory) -> Sequence[Any]:
        return [replace(each, amnesiac=False) for each in real(self)]

    patch.setattr(DataDirectory, "list_replicas", listed)


# --- The canary --------------------------------------------------------------------------------


def _acknowledge_what_is_dropped(patch: Patch) -> None:
    real = Following.on_prepare

    def prepare(self: Following, connection: Any, message: list[Any]) -> None:
        if len(message[3]) % 5 == 0:
            connection.out.append((message[0], 0, []))
        else:
            real(self, connection, message)

    patch.setattr(Following, "on_prepare", prepare)


@dataclass(frozen=True)
class Plant:
    """`story` for random worlds of the kind `world`; `seed` was the first to find it."""

    put_back: Callable[[Patch], None]
    kinds: tuple[str, ...] = ()
    story: dict[str, Any] = field(default_factory=dict)
    world: str = "group"
    seed: int = 0

    @property
    def overrides(self) -> dict[str, Any]:
        """What of the story is not drawn."""
        return ({"kinds": tuple(sorted(self.kinds))} if self.kinds else {}) | self.story


_THREE: Final[dict[str, Any]] = {"tables": (TableStory(3, 2, "fsync"),), "pace_ms": 20}
_TWO: Final[dict[str, Any]] = {"tables": (TableStory(2, 2, "fsync"),), "pace_ms": 20}
_THREE_OS: Final[dict[str, Any]] = {"tables": (TableStory(3, 2, "os"),), "pace_ms": 20}
_BUSY: Final[dict[str, Any]] = {"between_ms": 300, "at_once": 3, "seconds": 40}

PLANTS: Final[dict[str, Plant]] = {
    # Commits.
    "a write is committed when most members have it": Plant(
        _commit_by_most, ("kill", "cut"), _THREE, seed=0
    ),
    "one secondary need not acknowledge": Plant(
        _leave_one_secondary_out, ("kill", "cut"), _THREE, seed=0
    ),
    "the primary's own log counts before its sync": Plant(
        _count_the_own_log_before_its_sync, ("power", "slow disk"), _THREE | _BUSY, seed=2
    ),
    "a secondary acknowledges before its sync": Plant(
        _acknowledge_records_before_the_sync, ("power",), _THREE, seed=3
    ),
    "records of a lower ballot are acknowledged": Plant(
        _take_records_of_any_ballot, ("isolate", "cut", "pause"), _TWO | _BUSY, seed=3
    ),
    "who is idle does not learn the commit point": Plant(_forget_to_tell_the_commit_point, seed=0),
    "a primary that was deposed asks to try again": Plant(
        _call_unknown_what_may_be_tried_again,
        ("isolate", "pause"),
        _TWO | _BUSY | {"call_s": 20.0},
        seed=14,
    ),
    "too few members take writes": Plant(
        _take_writes_with_any_number, ("kill", "isolate"), _THREE | _BUSY, seed=0
    ),
    # Roles and ballots.
    "a restarted primary goes on in its role": Plant(
        _go_on_in_the_old_role, ("kill",), _THREE, seed=0
    ),
    "a new primary serves before its barrier": Plant(
        _serve_before_the_barrier,
        ("kill", "slow disk", "two histories"),
        _THREE | _BUSY,
        seed=3,
    ),
    "a new primary drops its tail": Plant(
        _propose_nothing_again, ("kill", "isolate", "storm"), _THREE | _BUSY, seed=0
    ),
    "the meta server does not compare ballots": Plant(
        _store_whatever_is_proposed, ("late claim",), _THREE | _BUSY, seed=0
    ),
    "a ballot is given twice": Plant(
        _give_the_same_ballot, ("kill", "isolate"), _THREE | _BUSY, seed=0
    ),
    "a process that has ended proposes": Plant(
        _obey_an_earlier_process,
        ("claim of the ended",),
        _THREE | _BUSY,
        world="cluster",
        seed=0,
    ),
    "a primary is believed before the meta server": Plant(
        _believe_a_primary_before_the_meta_server, ("ended claimer",), _THREE | _BUSY, seed=0
    ),
    # Leases.
    "no lease is looked at": Plant(_look_at_no_lease, ("isolate", "pause"), _THREE | _BUSY, seed=1),
    "the lease is not looked at after the read": Plant(
        _look_at_the_lease_before_the_read_only, ("pause",), _THREE | _BUSY, seed=0
    ),
    "the lease counts from the acknowledgement": Plant(
        _count_the_lease_from_the_answer, ("isolate", "pause", "cut"), _TWO | _BUSY, seed=4
    ),
    "the grace is shorter than the lease": Plant(
        _claim_before_the_lease_ends, ("isolate", "cut"), _THREE | _BUSY, seed=1
    ),
    "a claim that is open still acknowledges": Plant(
        _acknowledge_while_claiming, ("late answer",), _TWO | _BUSY, seed=0
    ),
    "a primary serves while it hands over": Plant(
        _serve_while_handing_over, ("ambush", "stop"), _THREE | _BUSY, seed=10
    ),
    # Learning.
    "a learner is promoted early": Plant(
        _promote_early, ("kill", "cut", "wipe"), _THREE | _BUSY, seed=0
    ),
    "an upgrade obeys the old configuration only": Plant(
        _obey_the_old_configuration_only, ("silent newcomer",), _THREE | _BUSY, seed=1
    ),
    "what is not committed is taught": Plant(
        _teach_what_is_not_committed, ("kill", "cut", "wipe"), _THREE | _BUSY, seed=0
    ),
    # Restarts.
    "the replay stops one short": Plant(
        plants_standalone.PLANTS["the replay stops one short"].put_back, ("kill",), _THREE, seed=0
    ),
    "a torn tail is taken for data": Plant(
        plants_standalone.PLANTS["a torn tail is taken for data"].put_back,
        ("power",),
        _THREE_OS,
        seed=34,
    ),
    "the history ignores ballots": Plant(
        _take_records_in_the_order_of_decrees, ("two histories",), _THREE | _BUSY, seed=0
    ),
    "records of an old incarnation are replayed": Plant(
        _replay_old_incarnations, ("two histories",), _THREE | _BUSY, seed=0
    ),
    "a power cut is forgotten": Plant(
        _forget_that_memory_was_lost, ("power",), _THREE_OS | _BUSY, seed=0
    ),
    # The canary.
    "records are acknowledged and dropped": Plant(_acknowledge_what_is_dropped, seed=0),
}


def table() -> list[str]:
    """Return the rows of the page on testing: each mistake, and after how many seeds it shows."""
    worlds = {"group": "groups of replicas", "cluster": "replicated clusters"}
    return [
        f"| {name} | {worlds[plant.world]}"
        f"{': ' + ', '.join(plant.kinds) if plant.kinds else ''}; seed {plant.seed + 1} |"
        for name, plant in PLANTS.items()
    ]
