"""Clusters of one meta server and one replica server each, which duplicate to one another."""

from random import Random
from typing import Any

from pegaskv.base.errors import RequestError
from pegaskv.base.types import DuplicationStatus, Gpid
from pegaskv.codec.messages_duplication import (
    EnsureAnswer,
    EnsureOutcome,
    PartitionProgress,
    ProgressReport,
    RemoteWork,
)
from pegaskv.codec.operations import Operation
from pegaskv.meta.duplication_views import remote_work
from pegaskv.meta.duplications import Entry
from pegaskv.meta.effects import Answer
from pegaskv.meta.events import (
    AddDuplication,
    Ensured,
    Forgotten,
    ModifyDuplication,
    ReportProgress,
)
from pegaskv.meta.host import Identity
from pegaskv.meta.remotes import RemoteClusterInfo
from pegaskv.meta.requests import read_request
from tests.meta.harness import Meta, Records, ReplicaServer

__all__ = ["LOG", "Side", "connected", "progress"]

APP, LOG = DuplicationStatus.DS_APP, DuplicationStatus.DS_LOG

_NAMES = {1: "alpha", 2: "beta", 3: "gamma"}


def progress(index: int, status: DuplicationStatus = LOG, **fields: Any) -> PartitionProgress:
    return PartitionProgress(index, status, **{"start_decree": 3, **fields})


class Side:
    """One cluster. `now` and the store outlive its meta server."""

    def __init__(self, number: int, others: list[int]) -> None:
        self.number = number
        self.name = _NAMES[number]
        self.records = Records()
        self.server = ReplicaServer(f"node-{number}")
        self.configured = {
            _NAMES[one]: RemoteClusterInfo(_NAMES[one], f"10.0.0.{one}:34601", one)
            for one in others
        }
        self.now = 1_700_000_000
        self.uuids = Random(number)
        self.last_id = 0
        self.meta = self.start()

    def start(self) -> Meta:
        """A meta server without a node."""
        return Meta(
            self.records,
            now=self.now,
            uuid=f"{self.number}1111111-2222-4333-8444-555555555555",
            identity=Identity(self.name, self.number),
            configured=self.configured,
        )

    def restart(self) -> None:
        """The next process, and its node."""
        self.meta = self.start()
        self.meta.join(self.server, self.next_id())

    def next_id(self) -> int:
        self.last_id += 1
        return self.last_id

    def new_uuid(self) -> bytes:
        return self.uuids.randbytes(16)

    def ask(self, event: Any) -> Answer:
        """Have a request done, its pushes delivered; raise its refusal."""
        self.meta.now = self.now
        return self.meta.request(event, self.server)

    def send(self, operation: Operation, *fields: Any) -> Answer:
        """As `ask`, with the fields of the wire."""
        uuid = self.new_uuid()
        return self.ask(read_request(operation, self.next_id(), list(fields), new_uuid=uuid))

    def create(self, name: str, partitions: int = 4) -> int:
        table = self.send(Operation.CREATE_TABLE, name, partitions, 0, {}, "fail").table
        assert table is not None
        return table.table_id

    def adding(self, table: str, remote: str = "beta", **options: Any) -> AddDuplication:
        fields: dict[str, Any] = {
            "remote_table": None,
            "checkpoint": True,
            "remote_replica_count": 0,
            "mesh": False,
            "merge": False,
            "new_uuid": self.new_uuid(),
        }
        return AddDuplication(self.next_id(), table, remote, **{**fields, **options})

    def add(self, table: str, remote: str = "beta", **options: Any) -> Entry:
        """Add a duplication; return its entry."""
        answer = self.ask(self.adding(table, remote, **options))
        return self.entry(*answer.more[0])

    def modify(self, entry: Entry, action: str, argument: str | None = None, **more: Any) -> Entry:
        name = self.meta.machine.cluster.tables[entry.table_id].name
        event = ModifyDuplication(
            self.next_id(), name, entry.dupid, action, argument, self.new_uuid(), **more
        )
        return self.entry(*self.ask(event).more[0])

    def entry(self, table_id: int, dupid: int) -> Entry:
        found = self.meta.machine.cluster.book.get(table_id, dupid)
        assert found is not None
        return found

    def entries(self) -> list[Entry]:
        """All that are stored, removed ones too."""
        return list(self.meta.machine.cluster.book.all())

    def phase(self, entry: Entry) -> str:
        cluster = self.meta.machine.cluster
        count = cluster.tables[entry.table_id].partition_count
        return cluster.book.phase(
            self.entry(entry.table_id, entry.dupid), count, paused=False
        ).value

    def report(self, entry: Entry, *found: PartitionProgress, **more: Any) -> list[Any]:
        """Report the progress of an entry's partitions; return what is stored."""
        reports = tuple(
            ProgressReport(Gpid(entry.table_id, one.index), entry.dupid, entry.uuid, one, **more)
            for one in found
        )
        answer = self.ask(ReportProgress(self.next_id(), reports))
        stored: list[Any] = answer.more[0]
        return stored

    def ship(self, entry: Entry) -> Entry:
        """Every partition reports that it ships."""
        count = self.meta.machine.cluster.tables[entry.table_id].partition_count
        self.report(entry, *(progress(index) for index in range(count)))
        return self.entry(entry.table_id, entry.dupid)

    # Other clusters.

    def work(self) -> list[RemoteWork]:
        return remote_work(self.meta.machine.cluster, self.meta.identity)

    def take(self, work: RemoteWork) -> EnsureAnswer | bool:
        """Do what another cluster asks of this one; raises the refusal."""
        if work.kind == "forget":
            return bool(self.send(Operation.FORGET_DUPLICATION, *work.fields).more[0])
        answer = self.send(Operation.ENSURE_DUPLICATION, *work.fields)
        outcome, text = answer.more
        assert answer.table is not None
        return EnsureAnswer(
            outcome,
            answer.table.table_id,
            answer.table.partition_count,
            self.number,
            self.meta.uuid,
            text,
        )

    def hear(self, work: RemoteWork, answer: EnsureAnswer | bool) -> None:
        """Take the answer to what this cluster asked for."""
        if isinstance(answer, EnsureAnswer):
            if answer.outcome != EnsureOutcome.EXISTS_FOREIGN:
                self.ask(Ensured(self.next_id(), work.dupid, work.uuid, answer))
        else:
            self.ask(Forgotten(self.next_id(), work.dupid, work.uuid))

    def coordinate(self, *others: "Side") -> list[EnsureAnswer | bool | RequestError]:
        """Do all remote work once; return what came of it."""
        by_name = {one.name: one for one in others}
        found: list[EnsureAnswer | bool | RequestError] = []
        for work in self.work():
            if work.remote_cluster in by_name:
                try:
                    answer = by_name[work.remote_cluster].take(work)
                except RequestError as error:
                    found.append(error)
                else:
                    self.hear(work, answer)
                    found.append(answer)
        return found


def connected(count: int = 2) -> list[Side]:
    """Clusters that know one another, with their nodes."""
    numbers = range(1, count + 1)
    sides = [Side(one, [other for other in numbers if other != one]) for one in numbers]
    for side in sides:
        side.meta.join(side.server, side.next_id())
    return sides
