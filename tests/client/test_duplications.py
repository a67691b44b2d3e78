"""Duplications as the admin client sees them, on a meta server that follows a script."""

from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest

from pegaskv.base.errors import (
    DuplicationExists,
    DuplicationNotFound,
    InvalidArgument,
    OperationDisabled,
    Timeout,
    Unavailable,
    WireError,
)
from pegaskv.base.types import DuplicationStatus, FailMode
from pegaskv.client import AdminClient, Client, RemoteCluster, connect
from pegaskv.client.duplications import cluster_from_wire, duplication_from_wire
from pegaskv.codec.operations import Operation
from pegaskv.net.asyncio_network import AsyncioNetwork
from tests.client.fake_server import FakeServer, Fault, begin
from tests.helpers import poll_until

Wire = dict[str, Any]


def partition(index: int, confirmed: int = 5, last: int = 5, **more: Any) -> Wire:
    return {
        "index": index,
        "status": "DS_LOG",
        "start_decree": 1,
        "confirmed_decree": confirmed,
        "last_committed_decree": last,
        **more,
    }


def entry(**more: Any) -> Wire:
    return {
        "dupid": 7,
        "status": "DS_LOG",
        "remote_cluster": "beta",
        "remote_table": "t",
        "fail_mode": "slow",
        "created_at": 1_800_000_000,
        "partitions": [partition(0), partition(1)],
        **more,
    }


class MetaServer(FakeServer):
    """Keeps entries as maps; what a request does to them is the test's business."""

    def __init__(self) -> None:
        super().__init__(AsyncioNetwork())
        self.entries: list[Any] = []
        self.clusters: dict[str, Wire] = {}
        # Called before each QUERY_DUPLICATION is answered, with its number.
        self.on_look: Callable[[int], None] = lambda number: None
        self.looks = 0

    def on_add_duplication(
        self, table: str, cluster: str, remote: str | None, copy: bool, count: int, options: Wire
    ) -> Any:
        if self.entries:
            details = {
                "existing": self.entries[0],
                "requested": {"remote_table": remote or table},
                "differences": ["remote_table"],
            }
            raise DuplicationExists("there is one", details=details)
        made = entry(remote_cluster=cluster, remote_table=remote or table, checkpoint=copy)
        self.entries.append(made)
        return made, ["two clusters write", 5]

    def on_modify_duplication(
        self, table: str, dupid: int, action: str, argument: str | None
    ) -> Any:
        for each in self.entries:
            if each["dupid"] == dupid:
                return {**each, "table": f"{table} {action} {argument}"}, []
        raise DuplicationNotFound(f"no duplication {dupid}")

    def on_query_duplication(self, table: str) -> Any:
        self._named(table)
        self.looks += 1
        self.on_look(self.looks)
        return (self.entries,)

    def on_list_duplications(self, pattern: str, match: str) -> Any:
        return (self.entries,)

    def on_add_cluster(self, name: str, metas: str, number: int, user: str, file: str) -> Any:
        self.clusters[name] = {"name": name, "metas": metas, "cluster_id": number, "user": user}
        return ({**self.clusters[name], "password_file": file},)

    def on_remove_cluster(self, name: str) -> Any:
        return (self.clusters.pop(name),)

    def on_list_clusters(self) -> Any:
        return (list(self.clusters.values()),)

    def on_open_table(self, name: str) -> Any:
        return self._named(name).to_wire(), ["its rows are not shipped back"]


@pytest.fixture
async def server() -> AsyncIterator[MetaServer]:
    server = MetaServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: MetaServer) -> AsyncIterator[Client]:
    async with connect(server.address, timeout=5.0, random=Random(1)) as client:
        yield client


@pytest.fixture
def admin(client: Client) -> AdminClient:
    return client.admin


# What is read.


def test_all_fields_of_an_entry_are_read_and_unknown_ones_ignored() -> None:
    read = duplication_from_wire(
        entry(
            status="DS_APP",
            table="t",
            fail_mode="skip",
            last_error="no answer",
            error_class="unreachable",
            stalled_since=1_800_000_010.5,
            attempts=3,
            next_attempt_at=1_800_000_022,
            gap=9,
            from_the_future={"x": 1},
            partitions=[
                partition(1, status="DS_APP", copied_rows=4, news=True),
                partition(0, 3, 7, copied_rows=2),
            ],
        ),
        now_us=1_800_000_020_000_000,
        warnings=("w",),
    )
    assert read.status is DuplicationStatus.DS_APP
    assert read.fail_mode is FailMode.SKIP
    assert (read.stalled_seconds, read.next_attempt_seconds) == (9.5, 2.0)
    assert (read.copied_rows, read.gap, read.warnings) == (6, 9, ("w",))
    assert [(each.index, each.gap) for each in read.partitions] == [(0, 4), (1, 0)]


def test_what_an_older_server_does_not_tell_has_a_default() -> None:
    read = duplication_from_wire(
        {"dupid": 1, "status": "DS_PREPARE", "remote_cluster": "b", "remote_table": "t"},
        now_us=5_000_000,
    )
    assert (read.partitions, read.gap, read.stalled_seconds) == ((), 0, 0.0)
    assert read.asked_at == 5.0
    # A server that tells its own time is believed, so that ages are right.
    assert duplication_from_wire(entry(now=77.5), now_us=5).asked_at == 77.5
    # Gaps are added when the server has not done it.
    assert duplication_from_wire(entry(partitions=[partition(0, 1, 4)]), now_us=1).gap == 3


@pytest.mark.parametrize("name", ["dupid", "status", "remote_cluster", "remote_table"])
@pytest.mark.parametrize("value", [None, [], 1.5])
def test_an_entry_without_what_makes_it_one_is_refused(name: str, value: object) -> None:
    with pytest.raises(WireError, match=name):
        duplication_from_wire(entry() | {name: value}, now_us=1)


@pytest.mark.parametrize(
    "wrong",
    [
        5,
        entry(status="DS_SWITCH"),
        entry(fail_mode="fast"),
        entry(gap=True),
        entry(gap="1"),
        entry(paused=1),
        entry(stalled_since="now"),
        entry(stalled_since=float("nan")),
        entry(partitions={}),
        entry(partitions=[5]),
        entry(partitions=[partition(0, status=None)]),
    ],
)
def test_a_field_of_a_wrong_type_is_refused(wrong: Any) -> None:
    with pytest.raises(WireError):
        duplication_from_wire(wrong, now_us=1)


def test_a_cluster_keeps_what_else_the_server_says_of_it() -> None:
    read = cluster_from_wire({"name": "b", "metas": ["h:1", "h:2"], "id": 3, "from": "file"})
    assert read == RemoteCluster("b", "h:1,h:2", 3, detail={"from": "file"})
    with pytest.raises(WireError):
        cluster_from_wire({"metas": "h:1"})


# Requests.


async def test_requests_have_their_wire_form(server: MetaServer, admin: AdminClient) -> None:
    made = await admin.add_duplication("t", "beta")
    assert (made.dupid, made.remote_table, made.warnings) == (7, "t", ("two clusters write",))
    server.entries.clear()
    await admin.add_duplication("t", "beta", "u", False, 2, mesh=True, merge=True)
    options = {"mesh": True, "merge": True}
    assert server.seen(Operation.ADD_DUPLICATION) == [
        ["t", "beta", None, True, 0, {}],
        ["t", "beta", "u", False, 2, options],
    ]
    changed = [
        await admin.pause_duplication("t", 7),
        await admin.start_duplication("t", "beta"),
        await admin.start_duplication("t", "7", copy=True),
        await admin.set_duplication_fail_mode("t", 7, "skip"),
        await admin.set_duplication_fail_mode("t", 7, FailMode.SLOW),
        await admin.remove_duplication("t", 7),
    ]
    assert [each.table for each in changed] == [
        "t pause None",
        "t start None",
        "t copy None",
        "t fail_mode skip",
        "t fail_mode slow",
        "t remove None",
    ]
    assert [each.dupid for each in await admin.list_duplications("t", "prefix")] == [7]
    assert server.seen(Operation.LIST_DUPLICATIONS) == [["t", "prefix"]]
    opened = await admin.open_table("t")
    assert (opened.name, opened.warnings) == ("t", ("its rows are not shipped back",))


async def test_clusters_are_added_listed_and_removed(
    server: MetaServer, admin: AdminClient
) -> None:
    added = await admin.add_cluster("beta", ["h:1", "i:2"], 2, user="u", password_file="f")
    assert added == RemoteCluster("beta", "h:1,i:2", 2, user="u", detail={"password_file": "f"})
    await admin.add_cluster("gamma", "h:3", 3)
    assert server.seen(Operation.ADD_CLUSTER)[1] == ["gamma", "h:3", 3, "", ""]
    assert [each.name for each in await admin.list_clusters()] == ["beta", "gamma"]
    assert (await admin.remove_cluster("beta")).name == "beta"


async def test_a_second_add_carries_the_stored_entry(
    server: MetaServer, admin: AdminClient
) -> None:
    server.entries.append(entry(remote_table="t_copy", status="DS_PAUSE"))
    with pytest.raises(DuplicationExists) as caught:
        await admin.add_duplication("t", "beta")
    existing = caught.value.existing
    assert (existing.dupid, existing.remote_table) == (7, "t_copy")
    assert existing.status is DuplicationStatus.DS_PAUSE
    assert caught.value.details["differences"] == ["remote_table"]
    for details in (None, {}, {"existing": 5}):
        server.faults.append(
            Fault(Operation.ADD_DUPLICATION, DuplicationExists("there", details=details))
        )
        with pytest.raises(DuplicationExists) as caught:
            await admin.add_duplication("t", "beta")
        assert caught.value.existing is None


async def test_a_duplication_of_another_name_is_not_found(
    server: MetaServer, admin: AdminClient
) -> None:
    with pytest.raises(DuplicationNotFound, match="add_duplication makes one"):
        await admin.pause_duplication("t", "beta")
    server.entries.append(entry())
    with pytest.raises(DuplicationNotFound, match="it has 7 to beta"):
        await admin.remove_duplication("t", "gamma")
    assert not server.seen(Operation.MODIFY_DUPLICATION)
    # A cluster may be called by a number: its name counts before an id.
    server.entries.append(entry(dupid=8, remote_cluster="7"))
    assert (await admin.pause_duplication("t", "7")).dupid == 8


async def test_wrong_arguments_are_refused_before_they_travel(
    server: MetaServer, admin: AdminClient
) -> None:
    wrong: Any = object()
    for call in (
        admin.add_duplication(wrong, "beta"),
        admin.add_duplication("t", wrong),
        admin.add_duplication("t", "beta", wrong),
        admin.add_duplication("t", "beta", checkpoint=wrong),
        admin.add_duplication("t", "beta", remote_replica_count=0),
        admin.add_duplication("t", "beta", mesh=wrong),
        admin.add_duplication("t", "beta", merge=wrong),
        admin.list_duplications("t", wrong),
        admin.pause_duplication("t", wrong),
        admin.remove_duplication("t", True),
        admin.start_duplication("t", 7, copy=wrong),
        admin.set_duplication_fail_mode("t", 7, wrong),
        admin.wait_duplicated(wrong),
        admin.wait_duplicated("t", remote_cluster=wrong),
        admin.add_cluster("beta", "not an address:x", 2),
        admin.add_cluster("beta", "h:1", 0),
        admin.open_table(wrong),
    ):
        with pytest.raises(InvalidArgument):
            await call
    assert server.requests == []


@pytest.mark.parametrize("reply", [[], [5], [[5]], [[{"dupid": 1}]]])
async def test_a_malformed_reply_is_named_and_not_believed(
    server: MetaServer, admin: AdminClient, reply: list[Any]
) -> None:
    for operation, call in (
        (Operation.QUERY_DUPLICATION, lambda: admin.query_duplication("t", timeout=0.3)),
        (Operation.LIST_CLUSTERS, lambda: admin.list_clusters(timeout=0.3)),
        (Operation.ADD_DUPLICATION, lambda: admin.add_duplication("t", "b", timeout=0.3)),
        (Operation.ADD_CLUSTER, lambda: admin.add_cluster("b", "h:1", 2, timeout=0.3)),
    ):
        server.faults.append(Fault(operation, lambda number: [number, 0, *reply]))
        with pytest.raises(Unavailable, match="malformed"):
            await call()


async def test_an_add_of_unknown_outcome_is_not_repeated(
    server: MetaServer, admin: AdminClient
) -> None:
    server.faults.append(Fault(Operation.ADD_DUPLICATION, "close_after"))
    with pytest.raises(Unavailable) as caught:
        await admin.add_duplication("t", "beta")
    assert caught.value.maybe_applied
    assert len(server.seen(Operation.ADD_DUPLICATION)) == 1


# Waiting.


async def test_waiting_ends_when_every_target_has_what_was_there_before(
    server: MetaServer, admin: AdminClient
) -> None:
    one = partition(1, 2, 4)
    other = entry(dupid=8, remote_cluster="gamma", partitions=[partition(0, 8, 9)])
    server.entries += [entry(partitions=[partition(0), one]), other]
    seen: list[int] = []

    def later(number: int) -> None:
        seen.append(number)
        # Writes go on meanwhile, and what comes later is not waited for.
        one["last_committed_decree"] += 100
        if number == 3:
            one["confirmed_decree"] = 104
        if number == 5:
            other["partitions"][0]["confirmed_decree"] = 9

    server.on_look = later
    await admin.wait_duplicated("t")
    assert seen == [1, 2, 3, 4, 5]


async def test_one_target_may_be_waited_for(server: MetaServer, admin: AdminClient) -> None:
    behind = entry(dupid=8, remote_cluster="gamma", partitions=[partition(0, 1, 9)])
    server.entries += [entry(), behind]
    await admin.wait_duplicated("t", remote_cluster="beta")
    with pytest.raises(Timeout):
        await admin.wait_duplicated("t", remote_cluster="gamma", timeout=0.1)


@pytest.mark.parametrize(
    "late",
    [
        partition(1, 5, 5, status="DS_APP"),
        partition(1, 0, 0),
        partition(1, 0, 0, start_decree=0, status="DS_PREPARE"),
        partition(1, 4, 5, gap=1),
    ],
)
async def test_a_partition_that_is_not_there_yet_is_not_taken_for_equal(
    server: MetaServer, admin: AdminClient, late: Wire
) -> None:
    server.entries.append(entry(partitions=[partition(0), late], caught_up=True))
    with pytest.raises(Timeout, match=r"partition 1 \("):
        await admin.wait_duplicated("t", timeout=0.1)
    assert server.looks > 1
    late |= partition(1)
    await admin.wait_duplicated("t")


async def test_decrees_with_nothing_to_ship_are_not_waited_for(
    server: MetaServer, admin: AdminClient
) -> None:
    quiet = [partition(0, 3, 9, gap=0), partition(1, 3, 9, gap=2, caught_up=True)]
    server.entries.append(entry(partitions=quiet))
    await admin.wait_duplicated("t")
    assert server.looks == 1


async def test_a_timeout_says_which_partitions_are_behind_and_why(
    server: MetaServer, admin: AdminClient
) -> None:
    late = [partition(n, 1, 4 + n, error="busy" if n == 1 else "") for n in range(7)]
    server.entries.append(entry(partitions=late, last_error="beta does not answer"))
    with pytest.raises(Timeout) as caught:
        await admin.wait_duplicated("t", timeout=0.1)
    assert str(caught.value) == (
        "t: not everything is on the target after 0.1 s: beta (DS_LOG): "
        "partition 0 (confirmed 1 of 4), partition 1 (confirmed 1 of 5, busy), "
        "partition 2 (confirmed 1 of 6), partition 3 (confirmed 1 of 7), "
        "partition 4 (confirmed 1 of 8) and 2 more; beta does not answer "
        "(it goes on by itself once the cause is gone)"
    )
    assert not caught.value.maybe_applied


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"status": "DS_PAUSE", "paused": True}, "7 of t to beta is paused"),
        ({"status": "DS_APP", "paused": True}, "7 of t to beta is paused"),
        ({"failure": "needs_copy"}, "7 of t to beta is broken: needs_copy"),
    ],
)
async def test_what_would_never_come_is_told_at_once(
    server: MetaServer, admin: AdminClient, fields: Wire, said: str
) -> None:
    server.entries.append(entry(partitions=[partition(0, 1, 2)]))
    server.on_look = lambda number: server.entries[0].update(fields) if number == 2 else None
    with pytest.raises(OperationDisabled, match=said):
        await admin.wait_duplicated("t", timeout=30)
    assert server.looks == 2


async def test_a_table_that_is_duplicated_nowhere_is_told_at_once(
    server: MetaServer, admin: AdminClient
) -> None:
    with pytest.raises(DuplicationNotFound):
        await admin.wait_duplicated("t")
    server.entries.append(entry())
    with pytest.raises(DuplicationNotFound, match="it has 7 to beta"):
        await admin.wait_duplicated("t", remote_cluster="gamma")
    server.entries[0]["status"] = "DS_REMOVED"
    with pytest.raises(DuplicationNotFound, match="was removed"):
        await admin.wait_duplicated("t")


async def test_a_meta_server_that_is_away_for_a_moment_is_asked_again(server: MetaServer) -> None:
    server.entries.append(entry())
    server.faults.append(Fault(Operation.QUERY_DUPLICATION, "lose"))
    server.faults.append(Fault(Operation.QUERY_DUPLICATION, "close_before", times=2))
    async with connect(server.address, timeout=0.2, random=Random(1)) as client:
        await client.admin.wait_duplicated("t", timeout=20)
        assert len(server.seen(Operation.QUERY_DUPLICATION)) == 4
        server.faults.append(Fault(Operation.QUERY_DUPLICATION, "lose", times=100))
        with pytest.raises(Timeout, match="the last question was not answered"):
            await client.admin.wait_duplicated("t", timeout=0.5)


async def test_a_closed_client_ends_the_waiting(server: MetaServer, client: Client) -> None:
    server.entries.append(entry(partitions=[partition(0, 1, 2)]))
    waiting = begin(client.admin.wait_duplicated("t", timeout=60))
    await poll_until(lambda: server.looks > 1)
    await client.close()
    with pytest.raises(Unavailable, match="closed"):
        await waiting
