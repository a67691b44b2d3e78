"""Two judges of what clients saw: one needs no server's word, one replays the servers' own order.

`check_zones` is the black box (Gibbons and Korach, "Testing Shared Memories", 1997): rows of
which each written value is unique are linearizable if and only if no two of the values' zones
contradict each other. `Witness` takes the decrees in which the cluster committed everything, and
looks whether that order explains every answer: deletes, checks and counters included, and it
names the decree at which it does not. It trusts the order that it is given, so both are asked.

A write whose outcome nobody knows has no end: it may take effect at any time, or never. One that
was refused must never have any.
"""

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Final, NamedTuple

__all__ = ["NEVER", "Act", "Key", "Op", "Outcome", "Row", "Witness", "check_zones"]

# (table, hash key, sort key)
Key = tuple[str, bytes, bytes]

# Later than all that happens.
NEVER: Final = 1 << 62


class Outcome(Enum):
    """What a client knows of an operation."""

    DONE = "done"
    UNKNOWN = "unknown"
    REFUSED = "refused"


class Act(Enum):
    """What an operation does to its row."""

    # `value` None deletes it.
    WRITE = "write"
    READ = "read"
    # Writes `value` if the row is `expected`; what was found there instead is `seen`.
    EXCHANGE = "exchange"
    # Adds one; `value` is the new number.
    COUNT = "count"


@dataclass(slots=True)
class Op:
    """One operation on one row, as its client saw it; times are of the world, in microseconds."""

    act: Act
    key: Key
    value: bytes | None
    began: int
    ended: int = NEVER
    outcome: Outcome = Outcome.UNKNOWN
    # Of the mutation that holds it; 0 = not told.
    decree: int = 0
    expected: bytes | None = None
    passed: bool = True
    seen: bytes | None = None

    def __str__(self) -> str:
        ended = "never" if self.ended == NEVER else f"{self.ended / 1e6:.6f}"
        decree = f" at decree {self.decree}" if self.decree else ""
        return (
            f"{self.act.value} of {self.key} {self.value!r} {self.outcome.value}{decree} "
            f"({self.began / 1e6:.6f} to {ended})"
        )


# --- Zones -----------------------------------------------------------------------------------


class _Zone(NamedTuple):
    """Of one value: when the first of its operations had ended, and when the last began."""

    ended: int
    began: int
    value: bytes | None


def check_zones(ops: Iterable[Op]) -> list[str]:
    """Return why reads and writes of unique values are not linearizable; empty when they are.

    Every row is absent at the beginning, and is never deleted.
    """
    by_key: dict[Key, list[Op]] = {}
    for op in ops:
        by_key.setdefault(op.key, []).append(op)
    return [text for key, found in by_key.items() for text in _check_row(key, found)]


def _check_row(key: Key, ops: list[Op]) -> list[str]:
    wrong: list[str] = []
    writes: dict[bytes | None, Op] = {
        None: Op(Act.WRITE, key, None, -1, -1, Outcome.DONE),
    }
    reads: dict[bytes | None, list[Op]] = {}
    for op in ops:
        if op.act is Act.WRITE:
            assert op.value not in writes, f"{op}: values must be unique"
            writes[op.value] = op
        elif op.outcome is Outcome.DONE:
            reads.setdefault(op.value, []).append(op)
    zones: list[_Zone] = []
    for value, write in writes.items():
        found = reads.pop(value, [])
        if write.outcome is Outcome.REFUSED:
            wrong += [f"{op}: read, and its write was refused" for op in found]
            continue
        if write.outcome is Outcome.UNKNOWN and not found:
            continue
        wrong += [f"{op}: read before {write}" for op in found if op.ended < write.began]
        cluster = [write, *found]
        zones.append(_Zone(min(op.ended for op in cluster), max(op.began for op in cluster), value))
    wrong += [f"{op}: nobody wrote that" for found in reads.values() for op in found]
    return wrong + _contradictions(key, zones)


def _contradictions(key: Key, zones: list[_Zone]) -> list[str]:
    """Two values contradict each other if each has something that came before the other."""
    wrong: list[str] = []
    forward = sorted(zone for zone in zones if zone.ended < zone.began)
    for first, second in pairwise(forward):
        if second.ended < first.began:
            wrong.append(_contradiction(key, first, second))
    starts = [zone.ended for zone in forward]
    for zone in zones:
        if zone.ended < zone.began:
            continue
        place = bisect_left(starts, zone.began) - 1
        if place >= 0 and zone.ended < forward[place].began:
            wrong.append(_contradiction(key, forward[place], zone))
    return wrong


def _contradiction(key: Key, first: _Zone, second: _Zone) -> str:
    return f"{key}: {first} and {second} are each before the other"


# --- The witness -----------------------------------------------------------------------------


class Row(NamedTuple):
    """What one write of a mutation left in a row."""

    decree: int
    value: bytes | None


class Witness:
    """Looks whether an order of writes explains what clients saw.

    `rows` has every write of each row, in the order in which the cluster committed them; what
    stands in one decree is seen as a whole by reads.
    """

    def __init__(self, rows: Mapping[Key, Sequence[Row]]) -> None:
        self._rows = rows
        self.checked = 0

    def check(self, ops: Iterable[Op]) -> list[str]:
        """Return what the order does not explain; empty when it explains everything."""
        by_key: dict[Key, list[Op]] = {}
        for op in ops:
            by_key.setdefault(op.key, []).append(op)
        wrong: list[str] = []
        for key, found in by_key.items():
            wrong += _RowWitness(self._rows.get(key, ())).check(found)
            self.checked += len(found)
        return wrong


class _RowWitness:
    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._places: dict[bytes | None, list[int]] = {None: []}
        for place, row in enumerate(rows):
            self._places.setdefault(row.value, []).append(place)
        # Of each decree that wrote the row the last write: what reads see.
        self._seen: dict[bytes | None, list[int]] = {None: [-1]}
        for place, row in enumerate(rows):
            if place + 1 == len(rows) or rows[place + 1].decree != row.decree:
                self._seen.setdefault(row.value, []).append(place)
        self._taken: set[int] = set()

    def check(self, ops: list[Op]) -> list[str]:
        wrong: list[str] = []
        # What had ended before an operation began lies before it.
        ended: list[tuple[int, int]] = []
        least = -1
        for op in sorted(ops, key=lambda op: (op.began, op.ended)):
            while ended and ended[0][0] < op.began:
                least = max(least, heapq.heappop(ended)[1])
            place = self._place(op, least, wrong)
            if place is not None and op.outcome is Outcome.DONE:
                heapq.heappush(ended, (op.ended, place))
        return wrong

    def _place(self, op: Op, least: int, wrong: list[str]) -> int | None:
        if op.act is Act.READ:
            return self._place_of_read(op, self._seen, op.value, least, wrong)
        if op.act is Act.EXCHANGE and not op.passed:
            return self._place_of_read(op, {**self._places, None: [-1, *self._places[None]]},
                                       op.seen, least, wrong)  # fmt: skip
        return self._place_of_write(op, least, wrong)

    def _place_of_read(
        self,
        op: Op,
        places: Mapping[bytes | None, list[int]],
        value: bytes | None,
        least: int,
        wrong: list[str],
    ) -> int | None:
        if op.outcome is not Outcome.DONE:
            return None
        found = places.get(value, [])
        position = bisect_left(found, least)
        if position == len(found):
            before = self._rows[least] if least >= 0 else "nothing"
            wrong.append(f"{op}: it found {value!r}, and {before} had been seen or written before")
            return None
        return found[position]

    def _place_of_write(self, op: Op, least: int, wrong: list[str]) -> int | None:
        if op.value is None:
            return self._place_of_delete(op, least, wrong)
        found = self._places.get(op.value, [])
        if op.act is Act.COUNT and op.outcome is not Outcome.DONE:
            return None
        most = 0 if op.outcome is Outcome.REFUSED else 1
        if len(found) > most:
            wrong.append(f"{op}: it is in decrees {[self._rows[each].decree for each in found]}")
            return None
        if op.outcome is not Outcome.DONE:
            return found[0] if found else None
        if not found:
            wrong.append(f"{op}: it is lost")
            return None
        [place] = found
        row = self._rows[place]
        if op.decree and op.decree != row.decree:
            wrong.append(f"{op}: it is in decree {row.decree}")
        if place <= least:
            wrong.append(f"{op}: it lies before {self._rows[least]}, which had ended before")
        if op.act is Act.EXCHANGE:
            before = self._rows[place - 1].value if place else None
            if before != op.expected:
                wrong.append(f"{op}: the row was {before!r} and not {op.expected!r}")
        return place

    def _place_of_delete(self, op: Op, least: int, wrong: list[str]) -> int | None:
        """Deletes look alike: the first in its decree that nobody has claimed."""
        if op.outcome is not Outcome.DONE:
            return None
        for place in self._places[None]:
            if self._rows[place].decree == op.decree and place not in self._taken:
                self._taken.add(place)
                if place <= least:
                    wrong.append(f"{op}: it lies before {self._rows[least]}, which had ended")
                return place
        wrong.append(f"{op}: it is lost")
        return None
