"""The rules of a partition's replication, as a model small enough to be searched whole.

What a state is, what may happen to it, and what must never be seen in one. Each rule is a
function or an entry of `Rules`; an entry set otherwise is a mistake that somebody could make.

Modelled: the configuration and its compare-and-set, with proposals that arrive late or never and
replies that get lost; prepares, acknowledgements, commit points and beacons, late or lost; leases
and grace; kills that keep or lose what was not synced; wiped disks; removal, claim, hand-over,
learning, upgrade; ballots with their barriers; and clients who write, and who look wherever
somebody serves.

What makes it small, and takes nothing away:

- A node that takes no step is a paused one, or one whose messages are slow. Nothing has a "loss"
  of its own: what is lost is what never arrives.
- Clients look whenever they are let. To look changes nothing but what must be found later, so
  whoever serves is taken to have answered at once with all that it has applied.
- A primary commits as soon as it has heard of the last acknowledgement that it needs, and has
  its own log synced then. To be slower is to have heard later.
- Messages of a primary are not kept: a stream is the primary's log and how far each has it. What
  arrives after the primary died or went on could as well have arrived before.
- Time is counted in leases. Within one, all that happens is without order of its own; with it
  go all leases that have not been renewed since, and the grace of whoever was not spoken to.
- Nodes with the same past are one another's twins: see `search.canonical`.

Not modelled: bytes, checkpoints that are cut short, damaged logs, drift of clocks (it is inside
the difference of grace and lease), `--accept-loss`, duplication, more than one partition, what
only delays (nothing here must ever come to pass: the simulator's liveness phase is for that).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

__all__ = [
    "EMPTY",
    "IDLE",
    "LEARNER",
    "PRIMARY",
    "SECONDARY",
    "STARTED",
    "Bounds",
    "Broken",
    "Configuration",
    "Lead",
    "Node",
    "Proposal",
    "Rules",
    "State",
    "Step",
    "check",
    "first_state",
    "serves",
    "steps",
    "take",
]

# What a node is to the partition.
EMPTY: Final = 0  # its disk was wiped: it has no such replica, whatever a configuration says
STARTED: Final = 1  # a new process, of which the store knows nothing yet
IDLE: Final = 2  # it has asked the store, and is not yet told what it is
LEARNER: Final = 3
SECONDARY: Final = 4
PRIMARY: Final = 5

Record = tuple[int, int]  # (ballot, value); value 0 is the empty mutation
Log = tuple[Record, ...]  # the record of decree d is at d - 1
Vector = tuple[int, ...]  # one number for each node
Step = tuple[str, int, int]  # what happens, to whom, and with whom


class Rules(NamedTuple):
    """The rules as they are. Each entry, changed, is a mistake: `plants.py` says which."""

    lease: int = 1
    grace: int = 1
    empty_mutation: bool = True
    tail_reproposed: bool = True
    tail_in_one_piece: bool = True
    served_after_barrier: bool = True
    history_cut: bool = True
    lower_ballots_refused: bool = True
    commit_by_all: bool = True
    synced_before_commit: bool = True
    synced_before_acknowledged: bool = True
    lease_needed: bool = True
    lease_from_sending: bool = True
    claimer_is_silent: bool = True
    claims_end_with_process: bool = True
    ballot_after_restart: bool = True
    told_by_store_after_restart: bool = True
    stored_before_acted_on: bool = True
    compared_before_set: bool = True
    both_configurations_commit: bool = True
    both_configurations_lease: bool = True
    learner_has_all: bool = True
    learner_begins_anew: bool = True
    learning_is_fenced: bool = True
    stopped_before_hand_over: bool = True
    drained_before_hand_over: bool = True
    wiped_is_gone: bool = True
    answers_wait_for_commit: bool = True
    logged_is_never_retryable: bool = True


class Bounds(NamedTuple):
    """How far a search goes, and what may happen in it."""

    nodes: int = 3
    writes: int = 2
    ballots: int = 3
    kills: int = 1
    wipes: int = 0
    commit_point_forgotten: bool = False
    removal: bool = True
    learning: bool = True
    hand_over: bool = True


class Configuration(NamedTuple):
    """What the store holds for one ballot. `secondaries` is a set of bits."""

    primary: int
    secondaries: int

    @property
    def members(self) -> int:
        """All nodes that it names, as bits."""
        return self.secondaries | 1 << self.primary


class Lead(NamedTuple):
    """What only a primary has; it is gone with the process or the ballot."""

    barrier: int  # nothing is served before this decree is committed
    stopped: bool
    reach: Vector  # how far each other node has this ballot's stream, on its disk
    acknowledged: Vector  # how far the primary knows that
    lease: Vector  # time left of what each other node has granted
    grant: Vector  # what is under way: only where a lease counts from its arrival


class Node(NamedTuple):
    """One replica."""

    role: int
    ballot: int
    log: Log
    disk: Log  # what a power cut leaves of the log
    committed: int
    silence: int  # of a secondary: since it last heard its primary
    open: Configuration | None  # what it proposed, while the outcome is unknown
    lead: Lead | None


class Proposal(NamedTuple):
    """A compare-and-set: from this ballot to the next, with another configuration."""

    ballot: int
    proposer: int
    wanted: Configuration


class State(NamedTuple):
    """The whole world, and what must be remembered of its past."""

    configurations: tuple[Configuration, ...]  # of ballot b at b - 1; the last is in force
    proposals: tuple[Proposal, ...]  # on the way to the store
    nodes: tuple[Node, ...]
    basis: Vector  # of each write, the write that it was evaluated upon
    ledger: Vector  # what was ever committed, by decree
    seen: Record  # the last (decree, write) that a client knows
    kills: int
    wipes: int


class Broken(Exception):
    """A promise is broken in this step."""


def first_state(rules: Rules, bounds: Bounds) -> State:
    """All nodes are members at ballot 1, its barrier done, nothing written, no lease granted."""
    n = bounds.nodes
    zeros = (0,) * n
    lead = Lead(0, False, zeros, zeros, zeros, zeros)
    everybody = (1 << n) - 1
    return State(
        (Configuration(0, everybody & ~1),),
        (),
        (
            Node(PRIMARY, 1, (), (), 0, 0, None, lead),
            *(Node(SECONDARY, 1, (), (), 0, 0, None, None) for _ in range(1, n)),
        ),
        (),
        (),
        (0, 0),
        0,
        0,
    )


# The rules.


def put(rules: Rules, log: Log, decree: int, record: Record) -> Log:
    """Append a record: of each decree the highest ballot counts; a lower one above ends it."""
    assert decree <= len(log) + 1
    if decree > len(log):
        return (*log, record)
    ballot = record[0]
    if log[decree - 1][0] >= ballot:
        return log  # a duplicate, or void
    above = log[decree:]
    if rules.history_cut and above and above[0][0] < ballot:
        above = ()
    return (*log[: decree - 1], record, *above)


def secondaries_to_obey(
    rules: Rules, state: State, node: Node, *, both: bool, me: int
) -> list[int]:
    """Whom a primary needs: those of its configuration, and of the one that it proposed."""
    secondaries = state.configurations[node.ballot - 1].secondaries
    if node.open is not None:
        if not rules.stored_before_acted_on:
            secondaries = node.open.members
        elif both:
            secondaries |= node.open.members
    return [other for other in range(len(state.nodes)) if secondaries >> other & 1 and other != me]


def serves(rules: Rules, state: State, me: int) -> bool:
    """Whether this node answers reads and acknowledges writes."""
    node = state.nodes[me]
    lead = node.lead
    if lead is None or lead.stopped:
        return False
    if rules.served_after_barrier and node.committed < lead.barrier:
        return False
    if not rules.lease_needed:
        return True
    both = rules.both_configurations_lease
    lease = lead.lease
    return all(lease[other] for other in secondaries_to_obey(rules, state, node, both=both, me=me))


def last_write(log: Log, end: int) -> int:
    """Return the decree of the last client's write at or below `end`, or 0."""
    while end and not log[end - 1][1]:
        end -= 1
    return end


def become_primary(rules: Rules, state: State, me: int, ballot: int) -> State:
    """Begin a ballot: the prepared tail again, an empty mutation, and then only serve."""
    node = state.nodes[me]
    n = len(state.nodes)
    log = node.log
    if rules.tail_reproposed:
        tail = [(ballot, value) for _, value in log[node.committed :]]
        log = (*log[: node.committed], *tail)
    if rules.empty_mutation:
        log = (*log, (ballot, 0))
    base = (node.committed,) * n
    zeros = (0,) * n
    # Leases that were granted to the same primary under its last ballot still hold.
    lease, grant = (node.lead.lease, node.lead.grant) if node.lead is not None else (zeros, zeros)
    lead = Lead(len(log), False, base, base, lease, grant)
    node = Node(PRIMARY, ballot, log, node.disk, node.committed, 0, None, lead)
    return commit(rules, with_node(state, me, node), me)


def go_on_as_primary(rules: Rules, state: State, me: int, ballot: int) -> State:
    """Take up the old role after a restart: the mistake that `ballot_after_restart` forbids."""
    node = state.nodes[me]
    zeros = (0,) * len(state.nodes)
    reach = tuple(
        len(other.log) if other.ballot == ballot else node.committed for other in state.nodes
    )
    lead = Lead(node.committed, False, reach, reach, zeros, zeros)
    node = node._replace(role=PRIMARY, ballot=ballot, open=None, lead=lead)
    return commit(rules, with_node(state, me, node), me)


def commit(rules: Rules, state: State, me: int) -> State:
    """Commit what all have whom the primary obeys, in order."""
    node = state.nodes[me]
    assert node.lead is not None
    both = rules.both_configurations_commit
    others = secondaries_to_obey(rules, state, node, both=both, me=me)
    have = sorted(min(node.lead.acknowledged[other], len(node.log)) for other in others)
    end = have[0] if have else len(node.log)
    if have and not rules.commit_by_all:
        end = have[-((len(have) + 1) // 2)]
    if end <= node.committed:
        return state
    ledger = state.ledger
    for decree in range(node.committed + 1, end + 1):
        value = node.log[decree - 1][1]
        if decree <= len(ledger):
            if ledger[decree - 1] != value:
                raise Broken("two contents were committed at one decree")
            continue
        if value in ledger and value:
            raise Broken("a write was committed twice")
        if value and state.basis[value - 1] != next((v for v in reversed(ledger) if v), 0):
            raise Broken("a write was committed behind one that it knew nothing of")
        ledger = (*ledger, value)
    disk = node.disk
    if rules.synced_before_commit:
        synced = max(end, node.lead.barrier) if rules.tail_in_one_piece else end
        for decree in range(1, synced + 1):
            disk = put(rules, disk, decree, node.log[decree - 1])
    node = node._replace(committed=end, disk=disk)
    return with_node(state, me, node)._replace(ledger=ledger)


# What happens.


def steps(rules: Rules, bounds: Bounds, state: State) -> Iterator[Step]:
    """Yield all that can happen next."""
    for number in range(len(state.proposals)):
        yield "store", number, 0
    if any(_ages(rules, node) for node in state.nodes):
        yield "time", 0, 0
    for me, node in enumerate(state.nodes):
        yield from _steps_of_anybody(rules, bounds, state, me, node)
        if node.role == PRIMARY:
            yield from _steps_of_primary(rules, bounds, state, me, node)
        elif node.role == SECONDARY and _may_claim(rules, bounds, state, node):
            yield "claim", me, 0


def _may_claim(rules: Rules, bounds: Bounds, state: State, node: Node) -> bool:
    return node.silence >= rules.grace and _may_propose(bounds, state, node)


def _may_propose(bounds: Bounds, state: State, node: Node) -> bool:
    # What cannot win at the store any more has no effect but on who proposed it: it waits.
    ballot = node.ballot
    return node.open is None and ballot < bounds.ballots and ballot == len(state.configurations)


def _steps_of_anybody(
    rules: Rules, bounds: Bounds, state: State, me: int, node: Node
) -> Iterator[Step]:
    bit = 1 << me
    if node.role == STARTED or (node.role == EMPTY and not node.ballot):
        yield "asks", me, 0
    if node.role > STARTED:
        for ballot in range(node.ballot + 1, len(state.configurations) + 1):
            configuration = state.configurations[ballot - 1]
            if not configuration.members & bit:
                continue
            if configuration.primary != me or node.role != IDLE or rules.ballot_after_restart:
                yield "told", me, ballot
            else:
                yield "goes on", me, ballot
    if node.role < LEARNER or not (state.configurations[-1].members & bit or node.role == LEARNER):
        return
    if state.kills < bounds.kills:
        yield "killed", me, 0
        if node.disk != node.log:
            yield "power cut", me, 0
    if state.wipes < bounds.wipes:
        yield "wiped", me, 0


def _steps_of_primary(
    rules: Rules, bounds: Bounds, state: State, me: int, node: Node
) -> Iterator[Step]:
    lead = node.lead
    assert lead is not None
    ready = not lead.stopped and (node.committed >= lead.barrier or not rules.served_after_barrier)
    if ready and len(state.basis) < bounds.writes:
        yield "write", me, 0
    if ready and not rules.logged_is_never_retryable:
        for value in range(1, len(state.basis) + 1):
            if all(record[1] != value for record in node.log):
                yield "write again", me, value
    configuration = state.configurations[node.ballot - 1]
    proposes = _may_propose(bounds, state, node) and not lead.stopped
    for other, its in enumerate(state.nodes):
        if other == me:
            continue
        named = configuration.members >> other & 1
        if _hears(rules, node, its, named=bool(named)):
            yield "beacon", me, other
            if lead.reach[other] < len(node.log) and lead.reach[other] <= len(its.log):
                yield "prepare", me, other
        if lead.grant[other] or lead.reach[other] > lead.acknowledged[other]:
            yield "acknowledged", me, other
        if named:
            if proposes and bounds.removal:
                yield "remove", me, other
            if proposes and bounds.hand_over:
                drained = node.committed == len(node.log) or not rules.drained_before_hand_over
                if drained and node.committed >= lead.barrier:
                    yield "hand over", me, other
                    yield "hand over and leave", me, other
        elif bounds.learning and node.committed >= lead.barrier and not lead.stopped:
            learns = its.role == LEARNER and its.ballot == node.ballot
            wanted = node.open is not None and node.open.members >> other & 1
            if not learns and not wanted and _obeys_order_to_learn(rules, node, its):
                yield "learn", me, other
            has_all = lead.acknowledged[other] >= node.committed or not rules.learner_has_all
            if learns and proposes and has_all:
                yield "upgrade", me, other


def _obeys_order_to_learn(rules: Rules, primary: Node, its: Node) -> bool:
    """Whether a node gives up what it has: not for a primary of the past, nor before it asked."""
    if not rules.learning_is_fenced:
        return True
    return primary.ballot > its.ballot and (its.ballot > 0 or its.role > STARTED)


def _hears(rules: Rules, primary: Node, its: Node, *, named: bool) -> bool:
    """Whether a node takes what this primary sends: its own primary, and no other."""
    if its.role == LEARNER:
        return its.ballot == primary.ballot
    if its.role == SECONDARY and its.ballot == primary.ballot:
        return its.open is None or not rules.claimer_is_silent
    late = named and its.ballot > primary.ballot and its.role in (SECONDARY, PRIMARY)
    return late and not rules.lower_ballots_refused


def take(rules: Rules, bounds: Bounds, state: State, step: Step) -> State:
    """Return the state behind one of `steps`. Raises Broken."""
    return _observed(rules, _TAKE[step[0]](rules, bounds, state, step[1], step[2]))


def _observed(rules: Rules, state: State) -> State:
    """Let clients look wherever somebody serves."""
    serving = [me for me in range(len(state.nodes)) if serves(rules, state, me)]
    if len(serving) > 1:
        raise Broken("two primaries serve")
    for me in serving:
        node = state.nodes[me]
        end = node.committed if rules.answers_wait_for_commit else len(node.log)
        decree, value = state.seen
        if decree > end or (decree and node.log[decree - 1][1] != value):
            raise Broken("a client knows what the serving primary does not: stale, or lost")
        decree = last_write(node.log, end)
        if decree > state.seen[0]:
            state = state._replace(seen=(decree, node.log[decree - 1][1]))
    return state


def check(state: State) -> None:
    """Assert the invariants that no client can see. Raises Broken."""
    ledger = state.ledger
    for node in state.nodes:
        if node.role == EMPTY:
            continue
        if tuple([record[1] for record in node.log[: node.committed]]) != ledger[: node.committed]:
            raise Broken("I-P3: a node has committed something else")
        if node.lead is not None and node.committed >= node.lead.barrier:
            for other in state.nodes:
                follows = other.role == SECONDARY and other.ballot == node.ballot
                if follows and other.committed > node.committed:
                    raise Broken("I-P2: a secondary has committed more than its primary")
    members = state.configurations[-1].members
    for me, node in enumerate(state.nodes):
        if not members >> me & 1 or node.role == EMPTY:
            continue
        if tuple([record[1] for record in node.disk[: len(ledger)]]) != ledger:
            raise Broken("I-P2: a member has not prepared all that was committed")
        if any(low[0] > high[0] for low, high in zip(node.log, node.log[1:], strict=False)):
            raise Broken("I-P4: ballots go down in a log")


def _store(rules: Rules, bounds: Bounds, state: State, number: int, _: int) -> State:
    """One compare-and-set: the first of a ballot wins."""
    proposal = state.proposals[number]
    assert proposal.ballot == len(state.configurations) or not rules.compared_before_set
    rest = state.proposals[:number] + state.proposals[number + 1 :]
    return _stored(rules, bounds, state._replace(proposals=rest), proposal.wanted)


def _stored(rules: Rules, bounds: Bounds, state: State, wanted: Configuration) -> State:
    configurations = (*state.configurations, wanted)
    proposals = state.proposals
    if rules.compared_before_set or len(configurations) >= bounds.ballots:
        proposals = ()  # they are all of the same ballot, and lose
    return state._replace(configurations=configurations, proposals=proposals)


def _ages(rules: Rules, node: Node) -> bool:
    if node.lead is not None and any(node.lead.lease):
        return True
    return node.role == SECONDARY and node.silence < rules.grace


def _time(rules: Rules, _: Bounds, state: State, __: int, ___: int) -> State:
    nodes = []
    for node in state.nodes:
        lead = node.lead
        if lead is not None:
            lead = lead._replace(lease=tuple([max(0, left - 1) for left in lead.lease]))
        silence = min(rules.grace, node.silence + 1) if node.role == SECONDARY else 0
        nodes.append(node._replace(silence=silence, lead=lead))
    return state._replace(nodes=tuple(nodes))


def _told(rules: Rules, _: Bounds, state: State, me: int, ballot: int) -> State:
    """Learn of a configuration: by the answer, by a push, or from its primary."""
    if state.configurations[ballot - 1].primary == me:
        return become_primary(rules, state, me, ballot)
    node = state.nodes[me]
    node = node._replace(
        role=SECONDARY, ballot=ballot, disk=node.log, silence=0, open=None, lead=None
    )
    return with_node(state, me, node)


def _goes_on(rules: Rules, _: Bounds, state: State, me: int, ballot: int) -> State:
    return go_on_as_primary(rules, state, me, ballot)


def _killed(rules: Rules, bounds: Bounds, state: State, me: int, _: int) -> State:
    return _restarted(rules, bounds, state, me, state.nodes[me].log)


def _power_cut(rules: Rules, bounds: Bounds, state: State, me: int, _: int) -> State:
    return _restarted(rules, bounds, state, me, state.nodes[me].disk)


def _restarted(rules: Rules, bounds: Bounds, state: State, me: int, log: Log) -> State:
    """A process ends and another begins, which knows what the log says and no more."""
    committed = 0 if bounds.commit_point_forgotten else min(state.nodes[me].committed, len(log))
    role = STARTED if rules.told_by_store_after_restart else IDLE
    node = Node(role, 0, log, log, committed, 0, None, None)
    return with_node(state, me, node)._replace(kills=state.kills + 1)


def _asks(rules: Rules, bounds: Bounds, state: State, me: int, _: int) -> State:
    """A new process asks the store what it is. From then on its predecessors count no more.

    The answer may come late: it tells what the store held then, or later. Who is named as
    primary gets a ballot of its own; who has no such replica must first be removed.
    """
    node, ballot = state.nodes[me], len(state.configurations)
    if rules.claims_end_with_process:
        state = state._replace(proposals=tuple([p for p in state.proposals if p.proposer != me]))
    named = state.configurations[-1]
    if node.role == EMPTY:
        known = ballot if named.members >> me & 1 else ballot - 1
        return with_node(state, me, node._replace(ballot=known))
    if named.primary == me and rules.ballot_after_restart:
        if ballot < bounds.ballots:
            state = _stored(rules, bounds, state, named)
        return with_node(state, me, node._replace(role=IDLE, ballot=ballot))
    return with_node(state, me, node._replace(role=IDLE, ballot=ballot - 1))


def _wiped(rules: Rules, _: Bounds, state: State, me: int, __: int) -> State:
    role = EMPTY if rules.wiped_is_gone else STARTED
    node = Node(role, 0, (), (), 0, 0, None, None)
    return with_node(state, me, node)._replace(wipes=state.wipes + 1)


def _write(rules: Rules, _: Bounds, state: State, me: int, __: int) -> State:
    """A client's write: evaluated against all that is prepared, and logged as its result."""
    log = state.nodes[me].log
    decree = last_write(log, len(log))
    state = state._replace(basis=(*state.basis, log[decree - 1][1] if decree else 0))
    return _write_again(rules, _, state, me, len(state.basis))


def _write_again(rules: Rules, _: Bounds, state: State, me: int, value: int) -> State:
    node = state.nodes[me]
    node = node._replace(log=(*node.log, (node.ballot, value)))
    return commit(rules, with_node(state, me, node), me)


def _beacon(rules: Rules, _: Bounds, state: State, me: int, other: int) -> State:
    """A beacon arrives, with the commit point; its acknowledgement is under way."""
    return _contact(rules, state, me, other, state.nodes[other], state.nodes[me].lead)


def _prepare(rules: Rules, _: Bounds, state: State, me: int, other: int) -> State:
    """What is next of the stream arrives, and is synced."""
    node, its = state.nodes[me], state.nodes[other]
    lead = node.lead
    assert lead is not None
    first = lead.reach[other] + 1
    end = max(first, lead.barrier) if rules.tail_in_one_piece else first
    log = its.log
    for decree in range(first, end + 1):
        log = put(rules, log, decree, node.log[decree - 1])
    its = its._replace(log=log, disk=log if rules.synced_before_acknowledged else its.log)
    lead = lead._replace(reach=_with(lead.reach, other, end))
    return _contact(rules, state, me, other, its, lead)


def _contact(
    rules: Rules, state: State, me: int, other: int, its: Node, lead: Lead | None
) -> State:
    assert lead is not None
    node = state.nodes[me]
    reach = lead.reach[other]
    if its.ballot == node.ballot and reach <= len(its.log):
        its = its._replace(committed=max(its.committed, min(reach, node.committed)))
    if rules.lease_from_sending:
        # What comes late is worth less: taken to come at once, it is worth the most.
        lead = lead._replace(lease=_with(lead.lease, other, rules.lease))
    else:
        lead = lead._replace(grant=_with(lead.grant, other, rules.lease))
    state = with_node(state, me, node._replace(lead=lead))
    return with_node(state, other, its._replace(silence=0))


def _acknowledged(rules: Rules, _: Bounds, state: State, me: int, other: int) -> State:
    """How far a secondary has the stream becomes known to its primary."""
    node = state.nodes[me]
    lead = node.lead
    assert lead is not None
    lease = max(lead.lease[other], lead.grant[other])
    lead = lead._replace(
        acknowledged=_with(lead.acknowledged, other, lead.reach[other]),
        lease=_with(lead.lease, other, lease),
        grant=_with(lead.grant, other, 0),
    )
    return commit(rules, with_node(state, me, node._replace(lead=lead)), me)


def _propose(state: State, me: int, node: Node, wanted: Configuration) -> State:
    """Ask the store. The answer may come late or never."""
    state = with_node(state, me, node._replace(open=wanted))
    proposal = Proposal(node.ballot, me, wanted)
    return state._replace(proposals=tuple(sorted({*state.proposals, proposal})))


def _claim(_: Rules, __: Bounds, state: State, me: int, ___: int) -> State:
    """A secondary that heard nothing for the grace proposes itself, without the primary."""
    node = state.nodes[me]
    rest = state.configurations[node.ballot - 1].secondaries & ~(1 << me)
    return _propose(state, me, node, Configuration(me, rest))


def _remove(rules: Rules, _: Bounds, state: State, me: int, other: int) -> State:
    """A primary proposes to go on without a secondary that does not answer."""
    node = state.nodes[me]
    rest = state.configurations[node.ballot - 1].secondaries & ~(1 << other)
    state = _propose(state, me, node, Configuration(me, rest))
    return commit(rules, state, me)


def _learn(rules: Rules, _: Bounds, state: State, me: int, other: int) -> State:
    """A learner takes the primary's checkpoint, in a new incarnation; prepares follow."""
    node = state.nodes[me]
    lead = node.lead
    assert lead is not None
    end = node.committed
    log = node.log[:end]
    if not rules.learner_begins_anew:
        log += state.nodes[other].log[end:]
    its = Node(LEARNER, node.ballot, log, log, end, 0, None, None)
    lead = lead._replace(
        reach=_with(lead.reach, other, end),
        acknowledged=_with(lead.acknowledged, other, end),
        lease=_with(lead.lease, other, 0),
        grant=_with(lead.grant, other, 0),
    )
    return with_node(with_node(state, me, node._replace(lead=lead)), other, its)


def _upgrade(_: Rules, __: Bounds, state: State, me: int, other: int) -> State:
    """A primary proposes a learner that has all that is committed; the rest needs it then."""
    node = state.nodes[me]
    wanted = state.configurations[node.ballot - 1].secondaries | 1 << other
    return _propose(state, me, node, Configuration(me, wanted))


def _hand_over(rules: Rules, _: Bounds, state: State, me: int, other: int) -> State:
    """A primary that has stopped and drained proposes another in its place."""
    node = state.nodes[me]
    assert node.lead is not None
    if rules.stopped_before_hand_over:
        node = node._replace(lead=node.lead._replace(stopped=True))
    rest = state.configurations[node.ballot - 1].members & ~(1 << other)
    return _propose(state, me, node, Configuration(other, rest))


def _hand_over_and_leave(rules: Rules, _: Bounds, state: State, me: int, other: int) -> State:
    """The same, of a primary that will be no member afterwards."""
    node = state.nodes[me]
    assert node.lead is not None
    if rules.stopped_before_hand_over:
        node = node._replace(lead=node.lead._replace(stopped=True))
    rest = state.configurations[node.ballot - 1].secondaries & ~(1 << other)
    return _propose(state, me, node, Configuration(other, rest))


def with_node(state: State, me: int, node: Node) -> State:
    """Return the state with one node changed."""
    nodes = state.nodes
    return state._replace(nodes=(*nodes[:me], node, *nodes[me + 1 :]))


def _with(vector: Vector, index: int, value: int) -> Vector:
    return (*vector[:index], value, *vector[index + 1 :])


_TAKE: Final[Mapping[str, Callable[[Rules, Bounds, State, int, int], State]]] = {
    "store": _store,
    "time": _time,
    "told": _told,
    "goes on": _goes_on,
    "asks": _asks,
    "killed": _killed,
    "power cut": _power_cut,
    "wiped": _wiped,
    "write": _write,
    "write again": _write_again,
    "beacon": _beacon,
    "prepare": _prepare,
    "acknowledged": _acknowledged,
    "claim": _claim,
    "remove": _remove,
    "learn": _learn,
    "upgrade": _upgrade,
    "hand over": _hand_over,
    "hand over and leave": _hand_over_and_leave,
}
