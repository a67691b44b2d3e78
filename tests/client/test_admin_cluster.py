"""Administration of servers: wire forms, names of nodes, and how well partitions are served."""

from typing import Any

import pytest

from pegaskv.base.errors import InvalidArgument, Unavailable
from pegaskv.base.types import Gpid
from pegaskv.client import Client, Health, PartitionInfo, health_of, sum_health
from pegaskv.client.admin_cluster import LEVELS
from pegaskv.codec.operations import Operation
from tests.client.fake_server import FakeServer, Fault
from tests.helpers import free_port

NODES = [
    ["aaaa-1111", "10.0.0.1:34801", "alive", {"primaries": 2}],
    ["aaaa-2222", "10.0.0.2:34801", "alive", {}],
    ["bbbb-3333", "10.0.0.3:34801", "unalive", {}],
    ["cccc-4444", "10.0.0.3:34801", "alive", {}],
]


@pytest.fixture
def admin(server: FakeServer, client: Client) -> Any:
    server.store.nodes = NODES
    return client.admin


async def test_a_node_that_was_never_seen_is_not_where_the_meta_server_is(
    server: FakeServer, admin: Any
) -> None:
    server.store.nodes = [["here", "", "alive", {}], ["gone", "", "not seen", {}]]
    assert [each.address for each in await admin.nodes()] == [server.address, ""]


async def test_levels_are_read_and_set(server: FakeServer, admin: Any) -> None:
    assert await admin.get_meta_level() == ("lively", "everything")
    assert await admin.set_meta_level("steady") == ("lively", "steady")
    assert (await admin.get_meta_level()).level == "steady"
    for level in LEVELS:
        assert (await admin.set_meta_level(level)).now == level
    with pytest.raises(InvalidArgument, match="level must be one of stopped, blind"):
        await admin.set_meta_level("lazy")


async def test_replica_counts_are_read_and_set(server: FakeServer, admin: Any) -> None:
    assert await admin.get_replica_count("t") == 1
    changed = await admin.set_replica_count("t", 3)
    assert (changed.replica_count, changed.warnings) == (3, ("few nodes",))
    assert server.seen(Operation.SET_REPLICA_COUNT) == [["t", 3]]
    with pytest.raises(InvalidArgument):
        await admin.set_replica_count("t", 0)


@pytest.mark.parametrize(
    ("name", "node_id"),
    [
        ("aaaa-1111", "aaaa-1111"),
        ("10.0.0.2:34801", "aaaa-2222"),
        ("bbbb", "bbbb-3333"),
        # Two have had this address; one of them is there now.
        ("10.0.0.3:34801", "cccc-4444"),
    ],
)
async def test_a_node_is_named_by_id_or_address(
    server: FakeServer, admin: Any, name: str, node_id: str
) -> None:
    assert await admin.propose("1.3", "assign_primary", name, accept_loss=True)
    assert server.seen(Operation.PROPOSE_CHANGE) == [[1, 3, "assign_primary", node_id, True]]
    assert await admin.balance(Gpid(1, 2), "move_pri", name, "aaaa-2222") == "the move was begun"
    assert server.seen(Operation.BALANCE) == [[1, 2, "move_pri", node_id, "aaaa-2222"]]


@pytest.mark.parametrize("name", ["aaaa", "aa", "10.0.0.9:1", "", "dddd-4444", 5])
async def test_what_names_no_single_node_is_refused(admin: Any, name: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"node|may be each of"):
        await admin.propose("1.3", "remove", name)


@pytest.mark.parametrize(
    "gpid", ["1", "1.", ".1", "a.b", "1.2.3", "-1.2", "\uff11.\uff12", 5, None]
)
async def test_what_names_no_partition_is_refused(admin: Any, gpid: Any) -> None:
    with pytest.raises(InvalidArgument, match="a partition is"):
        await admin.balance(gpid, "move_pri", "aaaa-1111", "aaaa-2222")


async def test_kinds_are_checked_before_anything_is_sent(server: FakeServer, admin: Any) -> None:
    with pytest.raises(InvalidArgument, match="one of move_pri, copy_pri, copy_sec"):
        await admin.balance("1.2", "move", "aaaa-1111", "aaaa-2222")
    with pytest.raises(InvalidArgument, match="one of assign_primary"):
        await admin.propose("1.2", "ASSIGN", "aaaa-1111")
    assert not server.requests


async def test_dead_partitions_are_told(server: FakeServer, admin: Any) -> None:
    (dead,) = await admin.diagnose("t")
    assert (dead.gpid, dead.detail) == (Gpid(1, 2), {"reason": "all are dead"})
    assert await admin.diagnose()
    assert server.seen(Operation.DIAGNOSE) == [["t"], [None]]


async def test_a_change_of_servers_is_never_made_twice(server: FakeServer, admin: Any) -> None:
    calls = {
        Operation.SET_META_LEVEL: lambda: admin.set_meta_level("steady"),
        Operation.SET_REPLICA_COUNT: lambda: admin.set_replica_count("t", 2),
        Operation.BALANCE: lambda: admin.balance("1.2", "copy_sec", "aaaa-1111", "aaaa-2222"),
        Operation.PROPOSE_CHANGE: lambda: admin.propose("1.2", "remove", "aaaa-1111"),
    }
    for operation, call in calls.items():
        server.faults.append(Fault(operation, "close_after"))
        with pytest.raises(Unavailable) as caught:
            await call()
        assert caught.value.maybe_applied
        assert len(server.seen(operation)) == 1
    # To look is repeated.
    for operation in (Operation.GET_META_LEVEL, Operation.DIAGNOSE, Operation.LIST_NODES):
        server.faults.append(Fault(operation, "close_after"))
    await admin.get_meta_level()
    await admin.diagnose()
    await admin.nodes()


@pytest.mark.parametrize("reply", [[], [5], [None], [[]], [[[1]]], ["x", 5]])
async def test_a_malformed_answer_is_no_crash(server: FakeServer, admin: Any, reply: Any) -> None:
    calls = {
        Operation.SET_META_LEVEL: lambda: admin.set_meta_level("steady"),
        Operation.DIAGNOSE: lambda: admin.diagnose(),
        Operation.LIST_NODES: lambda: admin.nodes(),
        Operation.TABLE_INFO: lambda: admin.get_replica_count("t"),
    }
    refused = 0
    for operation, call in calls.items():
        answer: Any = lambda request_id: [request_id, 0, *reply]  # noqa: E731
        server.faults.append(Fault(operation, answer))
        try:
            await call()
        except Unavailable as error:
            refused += "malformed" in error.message
    # An empty list is a list.
    assert refused >= 2


async def test_the_reports_of_all_replicas_are_in_a_tables_details(
    server: FakeServer, admin: Any
) -> None:
    table = server.store.tables["t"].to_wire()
    rows = [[0, 7, "a", ["b"], {"serving": True}, {"a": {"status": "primary"}, "b": {}}]]
    server.faults.append(Fault(Operation.TABLE_INFO, lambda i: [i, 0, table, rows]))
    details = await admin.table_info("t")
    (partition,) = details.partitions
    assert partition.members == ("a", "b")
    assert partition.replicas == {"a": {"status": "primary"}, "b": {}}
    assert details.health({"a": "alive", "b": "unalive"}) == Health(1, 1, 1, 1)


def partition(primary: str | None, *secondaries: str, **state: Any) -> PartitionInfo:
    return PartitionInfo(0, 1, primary, secondaries, {"follower": False, **state})


@pytest.mark.parametrize(
    ("members", "unalive", "count", "health", "word"),
    [
        ("abc", "", 3, (1, 1, 1, 1), "healthy"),
        ("abc", "c", 3, (1, 0, 1, 1), "degraded"),
        ("ab", "", 3, (1, 0, 1, 1), "degraded"),
        ("abc", "bc", 3, (1, 0, 1, 0), "read only"),
        ("a", "", 3, (1, 0, 1, 0), "read only"),
        ("a", "", 2, (1, 0, 1, 1), "degraded"),
        ("a", "", 1, (1, 1, 1, 1), "healthy"),
        ("abc", "a", 3, (1, 0, 0, 0), "unavailable"),
    ],
)
def test_health_follows_from_who_is_alive(
    members: str, unalive: str, count: int, health: tuple[int, ...], word: str
) -> None:
    found = health_of(partition(*members), count, dict.fromkeys(unalive, "unalive"))
    assert found == health
    assert found.word == word


def test_health_follows_from_what_the_primary_says() -> None:
    assert health_of(partition(None, "a"), 1).word == "unavailable"
    assert health_of(partition("a", closed="its log is damaged"), 1).word == "unavailable"
    assert health_of(partition("a", serving=False), 1).word == "unavailable"
    assert health_of(partition("a"), 1, {"a": "leaving"}).word == "healthy"
    assert sum_health([]) == (0, 0, 0, 0)
    whole = sum_health([Health(1, 1, 1, 1), Health(1, 0, 1, 0)])
    assert (whole, whole.word) == ((2, 1, 2, 1), "read only")


def test_a_member_that_says_nothing_of_its_replica_counts_as_gone() -> None:
    assert health_of(PartitionInfo(0, 1, "a", ("b",), {}), 2).word == "unavailable"
    told = {"b": {"status": "secondary"}, "c": {"status": "secondary"}}
    assert health_of(PartitionInfo(0, 1, "a", ("b", "c"), {}, told), 3).word == "unavailable"
    told = {"a": {"serving": True}, "b": {"status": "secondary"}}
    found = PartitionInfo(0, 1, "a", ("b", "c"), {}, told)
    assert (found.mute, health_of(found, 3).word) == (("c",), "degraded")


async def test_a_server_that_is_not_there_is_asked_once(admin: Any) -> None:
    address = f"127.0.0.1:{free_port()}"
    clock = admin._pool.clock
    began_ms = clock.monotonic_ms()
    with pytest.raises(Unavailable, match=r"refused.*is the server at 127.*running"):
        await admin.server_info(address)
    assert clock.monotonic_ms() - began_ms < 4_000
