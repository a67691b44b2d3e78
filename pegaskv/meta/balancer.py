"""pure: which replicas should move so that nodes have equally much to do.

First members are spread, since a copy is needed for that, then primaries among the members,
which costs nothing but a moment. Both go the same way: as long as some table has two more on
one node than on another, one goes over; then what tables have left over is spread, by moves
that leave every table as even as it is. Such a move is there whenever the nodes' totals
differ by two: the fuller node has more of some table.

A primary that has to go where it has no replica goes by way of others: the nodes that lie
between give on as much as they get.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

from pegaskv.base.types import Gpid
from pegaskv.meta.placement import Layout

__all__ = ["Shift", "plan_shifts", "spread_primaries"]


@dataclass(frozen=True, slots=True)
class Shift:
    """A replica goes from one node to another: the lead alone, or (`copies`) all of it."""

    gpid: Gpid
    source: str
    target: str
    copies: bool


# A plan is made of few steps at a time; more of them than replicas would be a mistake.
_STEPS_MAX: Final = 1 << 20


def plan_shifts(layout: Layout, limit: int) -> list[Shift]:
    """Return what should move next, at most `limit`; the layout is left as it will be then.

    Nothing is moved twice in a plan, so that all of it can be done at once.
    """
    if len(layout.nodes) < 2:
        return []
    found: list[Shift] = []
    busy: set[Gpid] = set()
    while len(found) < limit and (shift := _next_copy(layout, busy)) is not None:
        layout.move_member(shift.gpid, shift.source, shift.target)
        busy.add(shift.gpid)
        found.append(shift)
    if not found:
        # Primaries are spread over the members that stay.
        while len(found) < limit and (steps := _next_primaries(layout, busy)):
            for shift in steps:
                layout.move_primary(shift.gpid, shift.target)
                busy.add(shift.gpid)
            found += steps
    return found


def spread_primaries(layout: Layout, table_id: int) -> None:
    """Spread the primaries of a table that nobody serves yet over its members."""
    for _ in range(_STEPS_MAX):
        steps = _primaries_of(layout, table_id, set())
        if not steps:
            return
        for shift in steps:
            layout.move_primary(shift.gpid, shift.target)
    raise AssertionError("primaries are moved without end")


# Members.


def _next_copy(layout: Layout, busy: set[Gpid]) -> Shift | None:
    for table_id in sorted(layout.by_table):
        counts = layout.replicas[table_id]
        if layout.spread(counts) >= 2:
            ranked = sorted(layout.nodes, key=lambda one: (counts[one], one))
            for source in reversed(ranked):
                for target in ranked:
                    apart = counts[source] - counts[target] >= 2
                    if apart and (shift := _copy(layout, table_id, source, target, busy)):
                        return shift
    totals = layout.members_all
    if layout.spread(totals) >= 2:
        ranked = sorted(layout.nodes, key=lambda one: (totals[one], one))
        for source in reversed(ranked):
            for target in ranked:
                if totals[source] - totals[target] >= 2:
                    for table_id in sorted(layout.by_table):
                        counts = layout.replicas[table_id]
                        more = counts[source] > counts[target]
                        if more and (shift := _copy(layout, table_id, source, target, busy)):
                            return shift
    return None


def _copy(layout: Layout, table_id: int, source: str, target: str, busy: set[Gpid]) -> Shift | None:
    """Return a copy of one partition; rather one that `source` does not lead."""
    found = [
        gpid
        for gpid in layout.by_table[table_id]
        if source in (members := layout.members[gpid]) and target not in members
        if gpid not in busy
    ]
    if not found:
        return None
    # A node that leads too much may as well give that away.
    primaries = layout.primaries[table_id]
    gives = primaries[source] > primaries[target]
    gpid = min(found, key=lambda one: ((layout.primary[one] == source) != gives, one))
    return Shift(gpid, source, target, copies=True)


# Primaries.


def _next_primaries(layout: Layout, busy: set[Gpid]) -> list[Shift]:
    for table_id in sorted(layout.by_table):
        if steps := _primaries_of(layout, table_id, busy):
            return steps
    totals = layout.primaries_all
    if layout.spread(totals) < 2:
        return []
    edges: dict[str, dict[str, Gpid]] = {}
    for gpid in sorted(layout.primary):
        source, counts = layout.primary[gpid], layout.primaries[gpid.table_id]
        if gpid not in busy:
            for target in layout.members[gpid]:
                if target in layout.nodes and counts.get(source, 0) > counts.get(target, 0):
                    edges.setdefault(source, {}).setdefault(target, gpid)
    return _shortest(layout, edges, totals)


def _primaries_of(layout: Layout, table_id: int, busy: set[Gpid]) -> list[Shift]:
    counts = layout.primaries[table_id]
    if layout.spread(counts) < 2:
        return []
    edges: dict[str, dict[str, Gpid]] = {}
    for gpid in layout.by_table[table_id]:
        source = layout.primary[gpid]
        if gpid not in busy:
            for target in layout.members[gpid]:
                if target != source and target in layout.nodes:
                    edges.setdefault(source, {}).setdefault(target, gpid)
    return _shortest(layout, edges, counts)


def _shortest(
    layout: Layout, edges: dict[str, dict[str, Gpid]], counts: dict[str, int]
) -> list[Shift]:
    """Return the steps of the shortest way from a node with much to one with two less."""
    for start in sorted(layout.nodes, key=lambda one: (-counts[one], one)):
        came_by: dict[str, Shift | None] = {start: None}
        waiting = deque([start])
        while waiting:
            here = waiting.popleft()
            if counts.get(here, 0) <= counts[start] - 2:
                return _way(came_by, here)
            for there, gpid in sorted(edges.get(here, {}).items()):
                if there not in came_by:
                    came_by[there] = Shift(gpid, here, there, copies=False)
                    waiting.append(there)
    return []


def _way(came_by: dict[str, Shift | None], end: str) -> list[Shift]:
    steps: list[Shift] = []
    while (shift := came_by[end]) is not None:
        steps.append(shift)
        end = shift.source
    return steps
