"""What can happen to the model, one step at a time.

`steps` names all that may happen next, `take` lets it happen. A step is small: one message
arrives, one compare-and-set is decided, one process ends. Who asks for what, and who obeys whom,
is decided here; what a record, a commit and a lease are stands in `model.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tests.model.model import (
    EMPTY,
    IDLE,
    LEARNER,
    PRIMARY,
    SECONDARY,
    STARTED,
    Bounds,
    Configuration,
    Lead,
    Log,
    Node,
    Proposal,
    Rules,
    State,
    Vector,
    become_primary,
    commit,
    go_on_as_primary,
    last_write,
    observe,
    put,
    with_node,
)

__all__ = ["Step", "steps", "take"]

Step = tuple[str, int, int]  # what happens, to whom, and with whom


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
    return observe(rules, _TAKE[step[0]](rules, bounds, state, step[1], step[2]))


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
