"""Searches of the model: all states within bounds, shortest way first, and long random walks.

A found mistake is told as the steps that lead to it, with the nodes' own numbers although
the search takes states for one that differ in nothing but who is who.
"""

from collections import deque
from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

from tests.model.happenings import Step, steps, take
from tests.model.model import (
    Bounds,
    Broken,
    Configuration,
    Node,
    Proposal,
    Rules,
    State,
    check,
    first_state,
)

__all__ = ["Found", "canonical", "say", "search", "walk"]

Order = tuple[int, ...]
# How a state was reached: the step, the order given to the nodes behind it, and what was before.
Way = tuple[Step, Order, "Way"] | None

_OF_NODES: Final = frozenset({"beacon", "prepare", "acknowledged"}) | {
    "remove",
    "learn",
    "upgrade",
    "hand over",
    "hand over and leave",
}


class Found(NamedTuple):
    """What a search found, and how much it looked at."""

    broken: str  # empty when nothing is broken
    way: tuple[str, ...]
    states: int
    steps: int
    complete: bool  # all states within the bounds were seen


def search(
    rules: Rules, bounds: Bounds, *, stop: Callable[[], bool] | None = None, inside: bool = True
) -> Found:
    """Look at every state within `bounds`, nearest first, until something is broken.

    `stop` is asked before each state; then the search is not complete.
    Without `inside` only what clients can see counts. States are remembered by a hash of
    64 bits: at 10^7 of them, one is taken for another with a chance of 3 in a million.
    """
    first, order = canonical(first_state(rules, bounds))
    seen = {hash(first)}
    waiting: deque[tuple[State, Way]] = deque([(first, (("time", 0, 0), order, None))])
    taken = 0
    while waiting:
        state, way = waiting.popleft()
        if stop is not None and stop():
            return Found("", (), len(seen), taken, False)
        for step in steps(rules, bounds, state):
            taken += 1
            try:
                after = take(rules, bounds, state, step)
                after, order = canonical(after)
                known = hash(after)
                if known in seen:
                    continue
                if inside:
                    check(after)
            except Broken as broken:
                way = (step, tuple(range(bounds.nodes)), way)
                return Found(str(broken), _tell(way), len(seen), taken, False)
            seen.add(known)
            waiting.append((after, (step, order, way)))
    return Found("", (), len(seen), taken, True)


def walk(
    rules: Rules,
    bounds: Bounds,
    random: Random,
    *,
    steps_max: int,
    walks: int,
    inside: bool = True,
) -> Found:
    """Take up to `steps_max` random steps from the first state, `walks` times."""
    taken = 0
    for _ in range(walks):
        state = first_state(rules, bounds)
        told: list[Step] = []
        for _ in range(steps_max):
            possible = list(steps(rules, bounds, state))
            if not possible:
                break
            # What happens often in one state is no likelier: first the kind, then the step.
            kind = random.choice(sorted({step[0] for step in possible}))
            step = random.choice([step for step in possible if step[0] == kind])
            told.append(step)
            taken += 1
            try:
                state = take(rules, bounds, state, step)
                if inside:
                    check(state)
            except Broken as broken:
                return Found(str(broken), tuple(map(say, told)), taken, taken, False)
    return Found("", (), taken, taken, False)


def canonical(state: State) -> tuple[State, Order]:
    """Return the state with its nodes in an order of their own, and that order.

    Nodes are sorted by what they are, whoever they are. Twins that only others tell apart
    stay as they stand: then two states are searched where one would do, and none is missed.
    """
    nodes = state.nodes
    alone = [node[:6] for node in nodes]
    if len(set(alone)) == len(nodes):
        order = tuple(sorted(range(len(nodes)), key=alone.__getitem__))
    else:
        keys = [(alone[me], _by_others(state, me), me) for me in range(len(nodes))]
        order = tuple([key[2] for key in sorted(keys)])
    if all(place == me for place, me in enumerate(order)):
        return state, order
    place = {old: new for new, old in enumerate(order)}
    moved = state._replace(
        configurations=tuple([_renamed(c, place) for c in state.configurations]),
        proposals=tuple(
            sorted([Proposal(b, place[p], _renamed(c, place)) for b, p, c in state.proposals])
        ),
        nodes=tuple([_moved(nodes[old], order, place) for old in order]),
    )
    return moved, order


def _by_others(state: State, me: int) -> tuple[object, ...]:
    """What tells a node from its twin: who names it, and what its primaries know of it."""
    named = [c.members >> me & 1 | (c.primary == me) << 1 for c in state.configurations]
    leads = sorted(
        (lead.reach[me], lead.acknowledged[me], lead.lease[me], lead.grant[me])
        for lead in (node.lead for node in state.nodes)
        if lead is not None
    )
    return named, state.nodes[me].open is not None, leads


def _moved(node: Node, order: Order, place: dict[int, int]) -> Node:
    lead = node.lead
    if lead is not None:
        vectors = [tuple([vector[old] for old in order]) for vector in lead[2:]]
        lead = lead._replace(
            reach=vectors[0], acknowledged=vectors[1], lease=vectors[2], grant=vectors[3]
        )
    elif node.open is None:
        return node
    return node._replace(open=None if node.open is None else _renamed(node.open, place), lead=lead)


def _renamed(configuration: Configuration, place: dict[int, int]) -> Configuration:
    primary, secondaries = configuration
    bits = sum(1 << new for old, new in place.items() if secondaries >> old & 1)
    return Configuration(place[primary], bits)


def _tell(way: Way) -> tuple[str, ...]:
    links: list[tuple[Step, Order]] = []
    while way is not None:
        links.append((way[0], way[1]))
        way = way[2]
    links.reverse()
    # The number that a node had at first, by its place now.
    names = links[0][1]
    told: list[str] = []
    for (what, one, two), order in links[1:]:
        if what == "store" or what == "time":
            told.append(say((what, one, two)))
        else:
            told.append(say((what, names[one], names[two] if what in _OF_NODES else two)))
        names = tuple(names[old] for old in order)
    return tuple(told)


def say(step: Step) -> str:
    """Write a step as it stands in the way to something broken."""
    what, one, two = step
    if what in ("store", "time"):
        return what
    if what in _OF_NODES:
        return f"{what} {one}-{two}"
    return f"{what} {one}" + (f" ({two})" if what in ("told", "goes on", "write again") else "")
