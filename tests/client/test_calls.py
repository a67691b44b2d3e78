import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from pegaskv.base.errors import (
    Busy,
    DiskFull,
    ForwardToOthers,
    InternalError,
    InvalidArgument,
    NotReady,
    NotServing,
    PartitionClosed,
    RequestError,
    TableNotFound,
    Timeout,
    Unavailable,
)
from pegaskv.client import Check, Client, ClientOptions, Put, Table, connect
from pegaskv.codec.operations import Operation
from pegaskv.net.asyncio_network import AsyncioNetwork
from tests.client.fake_server import FakeServer, Fault, begin
from tests.helpers import free_port, poll_until

Call = Callable[[Table], Awaitable[Any]]
WRITES: dict[Operation, Call] = {
    Operation.SET: lambda t: t.set("h", "s", "v"),
    Operation.DELETE: lambda t: t.delete("h", "s"),
    Operation.INCR: lambda t: t.incr("h", "n"),
    Operation.MULTI_SET: lambda t: t.multi_set("h", {"s": "v"}),
    Operation.MULTI_DELETE: lambda t: t.multi_delete("h", ["s"]),
    Operation.CHECK_AND_SET: lambda t: t.check_and_set("h", "s", Check.NO_CHECK, value="v"),
    Operation.CHECK_AND_MUTATE: lambda t: t.check_and_mutate(
        "h", "s", Check.NO_CHECK, mutations=[Put("s", "v")]
    ),
    Operation.BATCH_SET: lambda t: t.batch_set([("h", "s", "v")]),
    Operation.BATCH_DELETE: lambda t: t.batch_delete([("h", "s")]),
}
READS: dict[Operation, Call] = {
    Operation.GET: lambda t: t.get("h", "s"),
    Operation.TTL: lambda t: t.ttl("h", "s"),
    Operation.MULTI_GET: lambda t: t.multi_get("h"),
    Operation.BATCH_GET: lambda t: t.batch_get([("h", "s")]),
    Operation.SCAN: lambda t: t.scan("h").next_page(),
}
ALL = {**WRITES, **READS}


@pytest.mark.parametrize("operation", ALL)
@pytest.mark.parametrize("error", [NotServing("moved"), NotReady("soon"), Busy("full")])
async def test_a_refused_request_is_sent_again(
    server: FakeServer, table: Table, operation: Operation, error: RequestError
) -> None:
    server.faults.append(Fault(operation, error, times=3))
    await ALL[operation](table)
    assert len(server.seen(operation)) == 4


async def test_the_first_repeat_follows_a_refresh_at_once(server: FakeServer, table: Table) -> None:
    server.faults.append(Fault(Operation.GET, NotServing("moved")))
    refreshes = len(server.seen(Operation.QUERY_CONFIG))
    await table.get("h", "s")
    assert len(server.seen(Operation.QUERY_CONFIG)) == refreshes + 1


async def test_callers_who_fail_together_share_one_refresh(
    server: FakeServer, table: Table
) -> None:
    refreshes = len(server.seen(Operation.QUERY_CONFIG))
    server.faults.append(Fault(Operation.GET, NotServing("moved"), times=50))
    calls = [begin(table.get("h", "s")) for _ in range(50)]
    for call in calls:
        assert await call is None
    assert len(server.seen(Operation.QUERY_CONFIG)) == refreshes + 1


async def test_busy_is_repeated_after_what_the_server_asks_for(
    server: FakeServer, table: Table
) -> None:
    clock = table._calls.clock
    started_ms = clock.monotonic_ms()
    server.faults.append(Fault(Operation.SET, Busy("full", details={"retry_after_ms": 80})))
    await table.set("h", "s", "v")
    assert clock.monotonic_ms() - started_ms >= 80
    # There is no time for such a pause: the caller learns it at once, by its type.
    server.faults.append(Fault(Operation.SET, Busy("full", details={"retry_after_ms": 60_000})))
    with pytest.raises(Busy):
        await table.set("h", "s", "v")
    for nonsense in ([], {"retry_after_ms": "x"}, {"retry_after_ms": -5}, 7):
        server.faults.append(Fault(Operation.SET, Busy("full", details=nonsense)))
        await table.set("h", "s", "v")


@pytest.mark.parametrize(
    "error",
    [InvalidArgument("no"), PartitionClosed("lost"), DiskFull("full"), InternalError("bug")],
)
@pytest.mark.parametrize("operation", ALL)
async def test_other_errors_are_raised_as_they_are(
    server: FakeServer, table: Table, operation: Operation, error: RequestError
) -> None:
    server.faults.append(Fault(operation, error))
    with pytest.raises(type(error), match=error.message):
        await ALL[operation](table)
    assert len(server.seen(operation)) == 1


@pytest.mark.parametrize("operation", WRITES)
@pytest.mark.parametrize("action", ["close_before", "close_after", Timeout("?"), Unavailable("?")])
async def test_a_write_of_unknown_outcome_is_never_repeated(
    server: FakeServer, table: Table, operation: Operation, action: Any
) -> None:
    server.faults.append(Fault(operation, action))
    with pytest.raises((Timeout, Unavailable)) as caught:
        await WRITES[operation](table)
    assert caught.value.maybe_applied
    assert "may have been applied" in str(caught.value)
    assert len(server.seen(operation)) == 1
    await WRITES[operation](table)


@pytest.mark.parametrize("operation", READS)
@pytest.mark.parametrize("action", ["close_before", "close_after", Timeout("?"), Unavailable("?")])
async def test_a_read_is_repeated_whatever_happened(
    server: FakeServer, table: Table, operation: Operation, action: Any
) -> None:
    server.faults.append(Fault(operation, action))
    await READS[operation](table)
    assert len(server.seen(operation)) == 2


async def test_retry_unknown_repeats_a_write(server: FakeServer, table: Table) -> None:
    calls: dict[Operation, Call] = {
        Operation.SET: lambda t: t.set("h", "s", "v", retry_unknown=True),
        Operation.DELETE: lambda t: t.delete("h", "s", retry_unknown=True),
        Operation.MULTI_SET: lambda t: t.multi_set("h", {"s": "v"}, retry_unknown=True),
        Operation.MULTI_DELETE: lambda t: t.multi_delete("h", ["s"], retry_unknown=True),
        Operation.BATCH_SET: lambda t: t.batch_set([("h", "s", "v")], retry_unknown=True),
    }
    for operation, call in calls.items():
        server.faults.append(Fault(operation, "close_after"))
        await call(table)
        assert len(server.seen(operation)) == 2


async def test_a_repeated_write_that_is_refused_later_says_that_it_may_be_there(
    server: FakeServer, table: Table
) -> None:
    server.faults += [Fault(Operation.SET, "close_after"), Fault(Operation.SET, DiskFull("full"))]
    with pytest.raises(Unavailable, match="an earlier attempt may have been applied") as caught:
        await table.set("h", "s", "v", retry_unknown=True)
    assert caught.value.maybe_applied


@pytest.mark.parametrize("operation", ALL)
async def test_a_silent_server_costs_no_more_than_the_deadline(
    server: FakeServer, operation: Operation
) -> None:
    async with connect(server.address, timeout=0.15) as client:
        table = await client.table("t")
        clock = table._calls.clock
        server.faults.append(Fault(operation, "lose"))
        started_ms = clock.monotonic_ms()
        with pytest.raises(Timeout) as caught:
            await ALL[operation](table)
        assert 150 <= clock.monotonic_ms() - started_ms < 4_000
        assert caught.value.maybe_applied is (operation in WRITES)
        text = str(caught.value)
        assert "table t, partition" in text
        assert server.address in text
        assert "within 0.15 s" in text
        await ALL[operation](table)


@pytest.mark.parametrize(
    "operation", [Operation.GET, Operation.SET, Operation.BATCH_GET, Operation.SCAN]
)
async def test_a_server_that_stays_silent_is_a_timeout_every_time(
    server: FakeServer, operation: Operation
) -> None:
    async with connect(server.address, timeout=0.15) as client:
        table = await client.table("t", timeout=5.0)
        lost = (operation, Operation.QUERY_CONFIG)
        server.faults += [Fault(each, "lose", times=9) for each in lost]
        with pytest.raises(Timeout) as first:
            await ALL[operation](table)
        assert first.value.maybe_applied is (operation in WRITES)
        # Nobody says where the table is either, so what is known is gone by.
        with pytest.raises(Timeout, match="table t") as second:
            await ALL[operation](table)
        assert second.value.maybe_applied is (operation in WRITES)
        assert await client.table("t") is table
        with pytest.raises(Timeout, match="table u"):
            await client.table("u")


async def test_a_late_reply_is_dropped(server: FakeServer, table: Table) -> None:
    await table.set("h", "a", "1")
    server.faults.append(Fault(Operation.GET, "hold"))
    with pytest.raises(Timeout):
        await table.get("h", "a", timeout=0.05)
    server.release()
    assert await table.get("h", "b") is None
    assert await table.get("h", "a") == b"1"
    assert server.accepted == 1


async def test_a_primary_that_moved_is_followed(server: FakeServer, table: Table) -> None:
    other = await FakeServer(AsyncioNetwork(), server.store).start()
    await table.set("h", "s", "v")
    server.store.tables["t"].version += 1
    server.store.tables["t"].primaries = dict.fromkeys(range(4), other.address)
    assert await table.get("h", "s") == b"v"
    await table.set("h", "s", "w")
    assert other.seen(Operation.SET)
    assert await table.batch_get([("h", "s"), ("g", "s")]) == [b"w", None]
    await other.stop()


async def test_a_partition_without_a_primary_is_waited_for(
    server: FakeServer, table: Table
) -> None:
    server.store.tables["t"].primaries = dict.fromkeys(range(4), None)
    server.faults.append(Fault(Operation.GET, NotServing("gone")))
    with pytest.raises(Unavailable, match="has no primary") as caught:
        await table.get("h", "s", timeout=0.1)
    assert not caught.value.maybe_applied
    waiting = begin(table.set("h", "s", "v"))
    await asyncio.sleep(0)
    server.store.tables["t"].primaries = {}
    await waiting
    assert await table.get("h", "s") == b"v"


async def test_a_restarted_server_is_connected_to_again(server: FakeServer, table: Table) -> None:
    await table.set("h", "s", "v")
    server.hang_up()
    assert await table.get("h", "s") == b"v"
    port = int(server.address.rpartition(":")[2])
    await server.stop()
    await poll_until(lambda: table._calls.route.nodes[0].connection is None)
    waiting = [begin(table.get("h", "s")) for _ in range(20)]
    writing = begin(table.set("h", "t", "w"))
    await asyncio.sleep(0)
    await server.start(port=port)
    assert {await each for each in waiting} == {b"v"}
    await writing
    assert server.accepted <= 4


async def test_without_a_server_a_call_ends_with_its_deadline_and_says_why(
    server: FakeServer, table: Table
) -> None:
    await server.stop()
    await poll_until(lambda: table._calls.route.nodes[0].connection is None)
    with pytest.raises(Unavailable, match=r"not served within 0\.1 s.*refused") as caught:
        await table.set("h", "s", "v", timeout=0.1)
    assert not caught.value.maybe_applied


async def test_a_batch_says_which_part_failed_after_all_were_tried(
    server: FakeServer, table: Table
) -> None:
    server.faults.append(Fault(Operation.BATCH_SET, DiskFull("full")))
    rows = [(b"%d" % i, b"s", b"v") for i in range(40)]
    with pytest.raises(DiskFull, match=r"batch_set: \d+ of 40 rows were not written") as caught:
        await table.batch_set(rows)
    values = await table.batch_get([row[:2] for row in rows])
    failed = values.count(None)
    assert 0 < failed < 40
    assert f" {failed} of 40" in str(caught.value)
    server.faults += [
        Fault(Operation.BATCH_SET, DiskFull("full")),
        Fault(Operation.BATCH_SET, "close_before"),
    ]
    with pytest.raises(Unavailable, match="batch_set") as unknown:
        await table.batch_set(rows)
    assert unknown.value.maybe_applied


async def test_a_node_that_does_not_know_the_table_is_asked_once_more(
    server: FakeServer, table: Table
) -> None:
    server.faults.append(Fault(Operation.GET, TableNotFound("who?"), times=9))
    with pytest.raises(TableNotFound):
        await table.get("h", "s")
    assert len(server.seen(Operation.GET)) == 1


async def test_scans_go_on_after_any_failure(server: FakeServer, table: Table) -> None:
    await table.batch_set([(b"h", b"%03d" % i, b"v") for i in range(60)])
    server.store.page_rows = 5
    random = Random(7)
    actions: list[Any] = ["close_before", "close_after", NotReady("x"), Busy("y")]
    keys = []
    async for row in table.full_scan():
        keys.append(row.sort_key)
        if random.random() < 0.2:
            server.faults.append(Fault(Operation.SCAN, random.choice(actions)))
    assert keys == [b"%03d" % i for i in range(60)]
    assert server.accepted > 2, "nothing failed"


async def test_a_scan_that_failed_may_be_gone_on_with(server: FakeServer, table: Table) -> None:
    await table.batch_set([(b"h", b"%03d" % i, b"v") for i in range(9)])
    server.store.page_rows = 3
    scanner = table.scan("h")
    assert len(await scanner.next_page()) == 3
    await poll_until(lambda: len(server.seen(Operation.SCAN)) == 2)
    server.faults.append(Fault(Operation.SCAN, DiskFull("?")))
    assert len(await scanner.next_page()) == 3
    with pytest.raises(DiskFull):
        await scanner.next_page()
    assert [row.sort_key async for row in scanner] == [b"006", b"007", b"008"]


async def test_after_close_calls_say_so_and_those_under_way_end(server: FakeServer) -> None:
    client = await connect(server.address)
    table = await client.table("t")
    server.faults.append(Fault(Operation.SET, "hold"))
    writing = begin(table.set("h", "s", "v"))
    while not server.held:
        await asyncio.sleep(0)
    await client.close()
    with pytest.raises(Unavailable, match="closed") as caught:
        await writing
    assert caught.value.maybe_applied
    await client.close()
    assert client.closed
    # At once: the hour that each may take is not waited for.
    for call in (
        lambda: table.get("h", "s", timeout=3_600),
        lambda: table.set("h", "s", "v", timeout=3_600),
        lambda: client.table("t", timeout=3_600),
        lambda: client.admin.nodes(timeout=3_600),
    ):
        with pytest.raises(Unavailable, match="the client is closed") as refused:
            await call()
        assert not refused.value.maybe_applied
        assert "within" not in refused.value.message


async def test_the_first_meta_servers_may_be_dead_or_not_lead(server: FakeServer) -> None:
    dead = f"127.0.0.1:{free_port()}"
    async with connect(f"{dead},{server.address}") as client:
        table = await client.table("t")
        await table.set("h", "s", "v")
    follower = await FakeServer(AsyncioNetwork()).start()
    elsewhere = ForwardToOthers("not me", details=server.address)
    follower.faults.append(Fault(Operation.QUERY_CONFIG, elsewhere, times=9))
    async with connect([follower.address]) as client:
        table = await client.table("t")
        assert await table.get("h", "s") == b"v"
    assert not follower.seen(Operation.GET)
    # A server that does not know who leads, for a while.
    unknown = ForwardToOthers("election", details=None)
    server.faults.append(Fault(Operation.QUERY_CONFIG, unknown, times=2))
    async with connect([dead, server.address]) as client:
        await client.table("t")
    # Two that name each other end with the deadline.
    follower.faults = [Fault(Operation.QUERY_CONFIG, elsewhere, times=10_000)]
    there = ForwardToOthers("not me", details=follower.address)
    server.faults = [Fault(Operation.QUERY_CONFIG, there, times=10_000)]
    async with connect([follower.address], timeout=0.3) as client:
        with pytest.raises(Unavailable):
            await client.table("t")
    assert len(follower.seen(Operation.QUERY_CONFIG)) < 50
    server.faults.clear()
    await follower.stop()


async def test_a_silent_meta_server_takes_its_share_of_the_time_only(server: FakeServer) -> None:
    silent = await FakeServer(AsyncioNetwork()).start()
    silent.faults.append(Fault(Operation.QUERY_CONFIG, "lose", times=99))
    async with connect([silent.address, server.address], timeout=1.0) as client:
        await client.table("t")
    await silent.stop()


async def test_admin_calls_have_their_wire_form(server: FakeServer, client: Client) -> None:
    admin = client.admin
    created = await admin.create_table("a", 2, envs={"k": "v"})
    assert (created.created, created.table.name, created.table.partition_count) == (True, "a", 2)
    assert (await admin.create_table("a", if_exists="same")).created is False
    assert server.seen(Operation.CREATE_TABLE) == [
        ["a", 2, 0, {"k": "v"}, "fail"],
        ["a", 8, 0, {}, "same"],
    ]
    assert [table.name for table in await admin.list_tables()] == ["t", "a"]
    details = await admin.table_info("a")
    assert [part.primary for part in details.partitions] == [server.address] * 2
    await admin.set_envs("a", {"x": "1", "y": "2"})
    assert await admin.get_envs("a") == {"k": "v", "x": "1", "y": "2"}
    await admin.delete_envs("a", ["x"])
    await admin.clear_envs("a", "k")
    assert await admin.get_envs("a") == {"y": "2"}
    await admin.clear_envs("a")
    assert (await admin.rename_table("a", "b")).name == "b"
    dropped = await admin.drop_table("b", 60)
    assert dropped is not None
    assert await admin.drop_table("b", if_not_exists="ok") is None
    assert server.seen(Operation.DROP_TABLE) == [["b", 60, "fail"], ["b", -1, "ok"]]
    assert len(await admin.list_tables(with_dropped=True)) == 2
    assert (await admin.recall_table(dropped.table_id, "c")).name == "c"
    assert (await admin.nodes())[0].address == server.address
    assert await admin.cluster_info() == {"name": "fake"}
    assert (await admin.server_info(server.address))["address"] == server.address
    with pytest.raises(InvalidArgument, match="wrong"):
        await admin.set_envs("c", {"wrong": "1"})
    wrong: Any = 5
    for call in (
        admin.create_table(wrong),
        admin.create_table("x", wrong and "8"),  # type: ignore[arg-type]
        admin.create_table("x", replica_count=0),
        admin.create_table("x", if_exists=wrong),
        admin.create_table("x", envs={"a": wrong}),
        admin.drop_table("x", -1),
        admin.drop_table("x", if_not_exists=wrong),
        admin.set_envs("c", {}),
        admin.delete_envs("c", "name"),
        admin.delete_envs("c", []),
        admin.nodes(timeout=0),
        admin.list_tables(wrong),
    ):
        with pytest.raises(InvalidArgument):
            await call


async def test_a_change_of_unknown_outcome_is_not_made_twice(
    server: FakeServer, client: Client
) -> None:
    server.faults.append(Fault(Operation.CREATE_TABLE, "close_after"))
    with pytest.raises(Unavailable) as caught:
        await client.admin.create_table("x")
    assert caught.value.maybe_applied
    assert len(server.seen(Operation.CREATE_TABLE)) == 1
    server.faults.append(Fault(Operation.DROP_TABLE, "drop"))
    with pytest.raises(Timeout) as timed_out:
        await client.admin.drop_table("x", timeout=0.1)
    assert timed_out.value.maybe_applied
    server.faults.append(Fault(Operation.LIST_TABLES, "close_after"))
    assert [table.name for table in await client.admin.list_tables()] == ["t"]


async def test_options_bound_what_is_under_way(server: FakeServer) -> None:
    options = ClientOptions(requests_in_flight_max=4)
    async with connect(server.address, options=options) as client:
        table = await client.table("t")
        server.faults.append(Fault(Operation.GET, "hold", times=20))
        reading = [begin(table.get("h", b"%d" % i)) for i in range(20)]
        answered = 0
        while answered < 20:
            while not server.held:
                await asyncio.sleep(0)
            assert len(server.held) <= 4
            answered += len(server.held)
            server.release()
        for each in reading:
            assert await each is None
