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
  go all leases that have not been renewed since, and the grace of whoever was not spoken to. A
  lease is worth the most if its acknowledgement comes at once, so it is taken to.
- Nodes with the same past are one another's twins: see `search.canonical`.

Not modelled: bytes, checkpoints that are cut short, damaged logs, drift of clocks (it is inside
the difference of grace and lease), first assignment, `--accept-loss`, several meta servers,
duplication, more than one partition, what only delays (nothing here must ever come to pass: the
simulator's liveness phase is for that).

Searched, nothing found (`wide.py` has the bounds): 127 673 states of 3 nodes, all that there are,
in 7 s of each test run. Wider and still all: two writes, two ballots, a restart, changes of every
kind 159 019; two writes, three ballots 423 244; a write, three ballots, a restart 561 804; a wiped
disk, three ballots 298 228. Not all: two writes, three ballots, a restart and changes of every
kind, 1 149 366 of them; claims of four nodes, 379 456. Beside that 1.5 million random steps, up
to 9 ballots, 5 writes and 4 nodes.
"""

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
    "Log",
    "Node",
    "Proposal",
    "Rules",
    "State",
    "Vector",
    "become_primary",
    "check",
    "commit",
    "first_state",
    "go_on_as_primary",
    "last_write",
    "observe",
    "put",
    "serves",
    "with_node",
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


class Rules(NamedTuple):
    """The rules as they are. Each entry, changed, is a mistake: `plants.py` says which."""

    lease: int = 1
    grace: int = 1
    empty_mutation: bool = True
    tail_reproposed: bool = True
    # Half of a tail is worse than none: a record of the new ballot voids those of the old one
    # above it, which may be committed. So it is one message, and one block whenever it is written.
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


def observe(rules: Rules, state: State) -> State:
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


def with_node(state: State, me: int, node: Node) -> State:
    """Return the state with one node changed."""
    nodes = state.nodes
    return state._replace(nodes=(*nodes[:me], node, *nodes[me + 1 :]))
