"""Two clusters from seeds: any requests, lost replies, crashes between any two commits.

The two meta servers duplicate to one another through a coordinator whose messages are
lost, repeated and late. Whatever happened, when all is calm every duplication ships or
says why not, and what was removed has left nothing behind on either side.
"""

from collections import Counter
from random import Random
from typing import Any

import pytest

from pegaskv.base.errors import RequestError
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.messages_duplication import (
    EnsureAnswer,
    EnsureOutcome,
    PartitionProgress,
    ProgressReport,
    RemoteWork,
)
from pegaskv.codec.operations import Operation
from pegaskv.meta.cluster import Cluster
from pegaskv.meta.duplications import PHASES, Entry
from pegaskv.meta.events import (
    CollectDue,
    Ensured,
    Forgotten,
    ModifyDuplication,
    OpenTable,
    PushDue,
    PushEnded,
    RecallTable,
    ReportProgress,
)
from pegaskv.meta.requests import read_request
from tests.helpers import groups
from tests.meta.harness import Crash, create, drop
from tests.meta.sides import Side

_TABLES = ("a", "b")
_REMOTES = (None, None, "a", "x")


class World:
    """Two sides, and the messages between them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.seen: Counter[str] = Counter()
        self.sides = [Side(1, [2]), Side(2, [1])]
        for side in self.sides:
            side.records.crash_random = self.random
            side.restart()
        # Requests on their way: who asked, for what.
        self.messages: list[tuple[Side, RemoteWork]] = []
        self.answers: list[tuple[Side, RemoteWork, EnsureAnswer | bool]] = []
        self.stored: dict[tuple[int, bytes, int], PartitionProgress] = {}

    def run(self, steps: int) -> None:
        for _ in range(steps):
            side = self.random.choice(self.sides)
            self._plan_crash(side)
            try:
                self._step(side)
            except Crash:
                self.seen["crash"] += 1
                self._restart()
            self._observe()
        self._calm_down()

    def _plan_crash(self, side: Side) -> None:
        side.records.crash_at = None
        if self.random.random() < 0.06:
            side.records.crash_at = side.records.commits + self.random.choice((0, 0, 1, 2))

    def _restart(self) -> None:
        """Whoever may have died begins again; the other only loses what it waited for."""
        for side in self.sides:
            side.records.crash_at = None
            side.restart()

    def _step(self, side: Side) -> None:
        side.meta.now = side.now
        random = self.random
        match random.randrange(12):
            case 0 | 1 | 2:
                self._deliver(side)
            case 3 | 4:
                for work in side.work():
                    self.messages.append((side, work))
            case 5:
                self._carry()
            case 6:
                self._hear()
            case 7:
                side.now += random.choice((1, 10, 10, 100_000, -30))
                side.meta.now = side.now
                side.meta.feed(CollectDue())
            case 8 | 9:
                self._report(side)
            case _:
                event = self._request(side)
                self.seen[type(event).__name__] += 1
                side.meta.feed(event)

    def _deliver(self, side: Side) -> None:
        meta = side.meta
        if meta.later and self.random.random() < 0.3:
            later = meta.later.pop()
            meta.feed(PushDue(later.node_id, later.table_id))
        if not meta.pushes:
            return
        push = meta.pushes.pop(self.random.randrange(len(meta.pushes)))
        fails = self.random.random() < 0.15
        if not fails:
            side.server.configure(push.push)
        table_id = push.push.table.table_id
        meta.feed(PushEnded(push.push_id, push.node_id, table_id, "no luck" if fails else ""))

    def _carry(self) -> None:
        """A message arrives: perhaps again, perhaps late; its answer may be lost."""
        if not self.messages:
            return
        place = self.random.randrange(len(self.messages))
        side, work = self.messages[place]
        if self.random.random() < 0.8:
            del self.messages[place]
        other = self.sides[0] if side is self.sides[1] else self.sides[1]
        try:
            answer = other.take(work)
        except RequestError as error:
            self.seen[type(error).__name__] += 1
            return
        self.seen[answer.outcome if isinstance(answer, EnsureAnswer) else "forgotten"] += 1
        if self.random.random() < 0.7:
            self.answers.append((side, work, answer))

    def _hear(self) -> None:
        if self.answers:
            side, work, answer = self.answers.pop(self.random.randrange(len(self.answers)))
            side.meta.now = side.now
            if not isinstance(answer, EnsureAnswer):
                side.meta.feed(Forgotten(side.next_id(), work.dupid, work.uuid))
            elif answer.outcome != EnsureOutcome.EXISTS_FOREIGN:
                side.meta.feed(Ensured(side.next_id(), work.dupid, work.uuid, answer))

    def _report(self, side: Side) -> None:
        entries = [one for one in side.entries() if one.ensured]
        if not entries:
            return
        entry = self.random.choice(entries)
        if self.random.random() < 0.2:
            entry = entry.changed(
                uuid=self.random.choice([*[u for u, _ in entry.earlier], b"x" * 16])
            )
        failure = "the target lost data" if self.random.random() < 0.15 else ""
        reports = tuple(
            ProgressReport(
                Gpid(entry.table_id, index), entry.dupid, entry.uuid, self._progress(index), failure
            )
            for index in range(self.random.choice((1, 2, 4)))
        )
        self.seen["failure" if failure else "progress"] += 1
        side.meta.feed(ReportProgress(side.next_id(), reports))

    def _progress(self, index: int) -> PartitionProgress:
        random = self.random
        decree = random.randrange(100)
        status = random.choice(PHASES[1:])
        return PartitionProgress(index, status, 3, decree, decree * 10, b"k" * random.randrange(3))

    def _request(self, side: Side) -> Any:
        random, request_id = self.random, side.next_id()
        name = random.choice(_TABLES)
        other = "beta" if side.number == 1 else "alpha"
        entries = [one for one in side.entries() if one.live]
        if entries and random.random() < 0.4:
            entry = random.choice(entries)
            table = side.meta.machine.cluster.tables.get(entry.table_id)
            action = random.choice(("pause", "start", "start", "copy", "remove", "fail_mode"))
            argument = random.choice(("slow", "skip")) if action == "fail_mode" else None
            whose = name if table is None else table.name
            return ModifyDuplication(
                request_id, whose, entry.dupid, action, argument, side.new_uuid(), stalled=True
            )
        match random.randrange(8):
            case 0 | 1:
                return create(request_id, name, partitions=random.choice((1, 2, 4)))
            case 2:
                reserve = random.choice((0, 30))
                return drop(request_id, name, reserve=reserve, force=random.random() < 0.7)
            case 3:
                ids = [*side.meta.machine.cluster.tables, 99]
                return RecallTable(request_id, random.choice(ids), None)
            case 4:
                return OpenTable(request_id, name)
        options = {"merge": random.random() < 0.5, "mesh": random.random() < 0.5}
        fields = [name, other, random.choice(_REMOTES), random.random() < 0.7, 0, options]
        return read_request(Operation.ADD_DUPLICATION, request_id, fields, new_uuid=side.new_uuid())

    # What must hold.

    def _observe(self) -> None:
        for side in self.sides:
            cluster = side.meta.machine.cluster
            loaded = Cluster.load(side.records.entries)
            loaded.check()
            assert loaded.dump() == cluster.dump()
            for entry in cluster.book.all():
                for index, one in cluster.book.progress(entry).items():
                    key = (side.number, entry.uuid, index)
                    before = self.stored.get(key)
                    now = one.partition
                    assert before is None or now.confirmed_decree >= before.confirmed_decree
                    assert before is None or PHASES.index(now.status) >= PHASES.index(before.status)
                    self.stored[key] = now
                if entry.ensured and entry.live and not entry.failure:
                    self.seen["ensured"] += 1

    def _calm_down(self) -> None:
        for side in self.sides:
            side.records.crash_at = None
        self.messages.clear()
        self.answers.clear()
        self._restart()
        for _ in range(6):
            for side, other in (self.sides, self.sides[::-1]):
                side.coordinate(other)
                for entry in side.entries():
                    if self._goes_on(side, entry):
                        side.ship(entry)
                side.meta.deliver(side.server)
        for side, other in (self.sides, self.sides[::-1]):
            self._check_source(side)
            self._check_target(side, other)
        for side in self.sides:
            assert side.meta.machine.cluster.book.orphans() == []

    def _goes_on(self, side: Side, entry: Entry) -> bool:
        table = side.meta.machine.cluster.tables.get(entry.table_id)
        here = table is not None and table.status is TableStatus.AVAILABLE
        return here and entry.live and entry.ensured and not entry.failure

    def _check_source(self, side: Side) -> None:
        cluster = side.meta.machine.cluster
        wanted: dict[int, dict[bytes, bool]] = {}
        for entry in cluster.book.all():
            table = cluster.tables.get(entry.table_id)
            if not entry.live:
                # Only a table that cannot obey, since it is dropped, holds a removed one.
                assert table is not None
                assert table.status is TableStatus.DROPPED
                continue
            if self._goes_on(side, entry):
                assert side.phase(entry) in ("DS_LOG", "DS_PAUSE")
                assert entry.earlier == ()
                self.seen["ships"] += 1
            pins = wanted.setdefault(entry.table_id, {})
            pins |= {uuid: False for uuid, _ in entry.earlier}
            pins[entry.uuid] = not entry.failure
        for gpid in side.server.open:
            pins = wanted.get(gpid.table_id, {})
            assert side.server.pins[gpid] == pins, "a pin is missing, or was left behind"

    def _check_target(self, side: Side, source: Side) -> None:
        cluster = side.meta.machine.cluster
        live = {one.uuid: one for one in source.entries() if one.live}
        for gpid in side.server.open:
            listed = {one.order.uuid for one in cluster.tables[gpid.table_id].live_sources}
            assert set(side.server.listed[gpid]) == listed
        tables = [
            (one.order.cluster_uuid, one.order.table_id, table.table_id)
            for table in cluster.tables.values()
            for one in table.live_sources
        ]
        assert len(tables) == len(set(tables))
        for uuid, entry in live.items():
            if not self._goes_on(source, entry) or entry.remote_table_id not in cluster.tables:
                # What was purged there is gone; the shipping finds that out.
                continue
            homes = [
                table.table_id
                for table in cluster.tables.values()
                if any(one.order.uuid == uuid for one in table.live_sources)
            ]
            assert homes == [entry.remote_table_id]
            self.seen["listed"] += 1


@pytest.mark.parametrize("seeds", groups(2, soak=16))
def test_any_requests_crashes_and_lost_messages_end_in_order(seeds: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(seeds * 10, seeds * 10 + 10):
        world = World(seed)
        try:
            world.run(400)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        seen += world.seen
    for what in (
        "crash",
        "CREATED",
        "ALREADY_YOURS",
        "EXISTS_FOREIGN",
        "forgotten",
        "ships",
        "failure",
        "listed",
    ):
        assert seen[what] > 3, f"the worlds were so calm that they tested no {what}: {seen}"
    assert seen["AddDuplication"] > 50
    assert seen["ensured"] > 100
