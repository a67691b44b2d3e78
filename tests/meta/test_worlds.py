"""The machine in worlds from seeds: any requests, restarts and crashes between any two commits."""

from collections import Counter
from random import Random

import pytest

from pegaskv.base.errors import RequestError
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.meta.cluster import Cluster
from pegaskv.meta.events import (
    ClearEnvs,
    CollectDue,
    DeleteEnvs,
    Event,
    NodeReported,
    PushDue,
    PushEnded,
    RecallTable,
    RenameTable,
    SetEnvs,
)
from pegaskv.meta.options import MetaOptions
from tests.helpers import groups
from tests.meta.harness import UUID, Crash, Meta, Records, ReplicaServer, create, drop

_NAMES = ("a", "b", "c", "not a name")


class World:
    """One meta server and one replica server; both live and die."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.records = Records()
        self.records.crash_random = self.random
        self.server = ReplicaServer()
        self.options = MetaOptions(partitions_max=600, tables_max=12)
        self.now = 1_700_000_000
        self.seen: Counter[str] = Counter()
        self.ids: dict[int, int] = {}
        self.ballots: dict[Gpid, int] = {}
        self.request_id = 0
        # Requests of this life: each is answered, once.
        self.asked: set[int] = set()
        self.meta = self._start()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self._plan_crash()
            try:
                self._step()
            except Crash:
                self.seen["crash"] += 1
                self._restart()
            self._observe()
        self._calm_down()

    def _start(self) -> Meta:
        self.asked = set()
        meta = Meta(self.records, options=self.options, now=self.now)
        self.seen["start"] += 1
        return meta

    def _restart(self) -> None:
        """The process ends, meta and replicas with it, until a start gets through."""
        while True:
            self._plan_crash(0.5)
            self.server.restart()
            try:
                self.meta = self._start()
                self._report()
            except Crash:
                self.seen["crash while starting"] += 1
            else:
                return

    def _plan_crash(self, chance: float = 0.08) -> None:
        """Crash at one of the next commits, now and then."""
        records = self.records
        if records.crash_at is None or records.crash_at < records.commits:
            records.crash_at = None
            if self.random.random() < chance:
                records.crash_at = records.commits + self.random.choice((0, 0, 1, 2))

    def _report(self) -> None:
        self.request_id += 1
        self.asked.add(self.request_id)
        self.meta.feed(NodeReported(self.request_id, self.server.report(), watched=False))

    def _step(self) -> None:
        self.meta.now = self.now
        kind = self.random.random()
        if kind < 0.35:
            self._deliver()
        elif kind < 0.42 and self.meta.later:
            later = self.meta.later.pop(self.random.randrange(len(self.meta.later)))
            self.meta.feed(PushDue(later.node_id, later.table_id))
        elif kind < 0.5:
            # The clock goes on, and is set back now and then.
            self.now += self.random.choice((1, 20, 200, -50))
            self.meta.now = self.now
            self.meta.feed(CollectDue())
        elif kind < 0.53:
            self.server.restart()
            self._report()
        else:
            event = self._request()
            self.seen[type(event).__name__] += 1
            self.meta.feed(event)

    def _deliver(self) -> None:
        if not self.meta.pushes:
            return
        push = self.meta.pushes.pop(self.random.randrange(len(self.meta.pushes)))
        fails = self.random.random() < 0.2
        if not fails:
            self.server.configure(push.push)
            self.seen["delivered"] += 1
        ended = PushEnded(
            push.push_id, push.node_id, push.push.table.table_id, "no luck" if fails else ""
        )
        self.meta.feed(ended)

    def _request(self) -> Event:
        self.request_id += 1
        self.asked.add(self.request_id)
        random, request_id = self.random, self.request_id
        name = random.choice(_NAMES)
        envs = random.choice(({}, {"default_ttl": "5"}, {"durability": "os"}, {"nonsense": "1"}))
        match random.randrange(8):
            case 0 | 1:
                return create(
                    request_id,
                    name,
                    partitions=random.choice((1, 2, 4, 4, 128, 3)),
                    replicas=random.choice((0, 1, 1, 2)),
                    envs=envs,
                    same_is_fine=random.random() < 0.5,
                )
            case 2 | 3:
                return drop(request_id, name, reserve=random.choice((-1, 0, 0, 30, -2)))
            case 4:
                table_id = random.choice([*self.meta.machine.cluster.tables, 99])
                return RecallTable(request_id, table_id, random.choice((None, *_NAMES)))
            case 5:
                return RenameTable(request_id, name, random.choice(_NAMES))
            case 6:
                return SetEnvs(request_id, name, envs)
            case _:
                if random.random() < 0.5:
                    return DeleteEnvs(request_id, name, tuple(envs) or ("durability",))
                return ClearEnvs(request_id, name, random.choice((None, "default_ttl")))

    def _observe(self) -> None:
        """Check what must hold after every step, of this life and of all before it."""
        cluster = self.meta.machine.cluster
        # Every state that is stored can be loaded, and is the same then.
        stored = Cluster.load(self.records.entries)
        stored.check()
        assert not stored.problems
        assert stored.dump() == cluster.dump()
        assert cluster.record is not None
        assert cluster.record.uuid == UUID
        for table in cluster.tables.values():
            created = self.ids.setdefault(table.table_id, table.created_at)
            assert created == table.created_at, "a table id was given twice"
            for one in cluster.partitions[table.table_id].values():
                assert one.ballot >= self.ballots.get(one.gpid, 0), "a ballot went back"
                self.ballots[one.gpid] = one.ballot
        # No partition that may hold data was ever replaced by an empty one, or lost.
        assert not self.server.closed
        for gpid, ballot in self.server.replicas.items():
            table_there = cluster.tables.get(gpid.table_id)
            assert table_there is not None, "rows were left behind, or records went too early"
            assert ballot <= cluster.partitions[gpid.table_id][gpid.partition_index].ballot

    def _calm_down(self) -> None:
        """Without faults, everything comes to its end."""
        self.records.crash_at = None
        self.server.restart()
        self._report()
        for _ in range(5):
            self.meta.deliver(self.server)
            for later in self.meta.later:
                self.meta.feed(PushDue(later.node_id, later.table_id))
            self.meta.later.clear()
            self._observe()
        cluster = self.meta.machine.cluster
        for table in cluster.tables.values():
            assert table.status is not TableStatus.CREATING
            assert not table.purging
            wanted = range(table.partition_count) if table.status is TableStatus.AVAILABLE else ()
            opened = {one.partition_index for one in self.server.open if one[0] == table.table_id}
            assert opened == set(wanted)
            for index in wanted:
                gpid = Gpid(table.table_id, index)
                assert self.server.replicas[gpid] == self.ballots[gpid]
            assert self.server.tables[table.table_id] == table.info()
        assert self.meta.answers.keys() | self.meta.refusals.keys() == self.asked, "not answered"
        self.seen["tables"] += len(cluster.tables)
        self.seen["refused"] += len(self.meta.refusals)
        self.seen["purged"] += len(set(self.server.purged))
        for error in self.meta.refusals.values():
            assert isinstance(error, RequestError)
            assert error.message


@pytest.mark.parametrize("seeds", groups(3, soak=20))
def test_any_requests_crashes_and_restarts_leave_whole_tables(seeds: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(seeds * 10, seeds * 10 + 10):
        world = World(seed)
        try:
            world.run(150)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        seen += world.seen
    for what in ("crash", "crash while starting", "delivered", "tables", "refused", "purged"):
        assert seen[what] > 5, f"the worlds were so calm that they tested no {what}"
    for what in ("CreateTable", "DropTable", "RecallTable", "RenameTable", "SetEnvs", "ClearEnvs"):
        assert seen[what] > 10, f"the worlds tested no {what}"
