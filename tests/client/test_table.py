from typing import Any

import pytest

from pegaskv.base.errors import InvalidArgument, InvalidData, TableNotFound
from pegaskv.base.hashing import partition_index
from pegaskv.client import (
    Check,
    CheckResult,
    Client,
    Delete,
    Filter,
    Put,
    RangeOptions,
    ScanOptions,
    Table,
)
from pegaskv.codec.operations import Operation
from tests.client.fake_server import FakeServer, Fault


def part(hash_key: bytes, sort_key: bytes = b"") -> list[int]:
    return [1, partition_index(hash_key, sort_key, 4)]


async def test_each_method_of_one_row_has_its_wire_form(server: FakeServer, table: Table) -> None:
    place = part(b"h")
    await table.set("h", "s", "v")
    await table.set(b"h", b"s", b"v", 60)
    await table.set(bytearray(b"h"), memoryview(b"s"), b"v", ttl=7, timeout=1.5)
    assert server.seen(Operation.SET) == [
        [*place, b"h", b"s", b"v", 0],
        [*place, b"h", b"s", b"v", 60],
        [*place, b"h", b"s", b"v", 7],
    ]
    assert server.requests[-1][2] in range(1_400, 1_501)
    assert await table.get("h", "s") == b"v"
    assert await table.get(b"h", b"s") == b"v"
    assert await table.get(b"h", b"absent") is None
    assert server.seen(Operation.GET)[0] == [*place, b"h", b"s"]
    assert await table.ttl("h", "s") == 7
    assert await table.exist("h", "s") is True
    assert await table.exist("h", "x") is False
    assert server.seen(Operation.TTL)[2] == [*place, b"h", b"x"]
    assert await table.incr("h", "n", 5, ttl=-1) == 5
    assert await table.incr("h", "n") == 6
    assert server.seen(Operation.INCR) == [[*place, b"h", b"n", 5, -1], [*place, b"h", b"n", 1, 0]]
    await table.delete("h", "s")
    assert server.seen(Operation.DELETE) == [[*place, b"h", b"s"]]


async def test_each_method_of_one_hash_key_has_its_wire_form(
    server: FakeServer, table: Table
) -> None:
    place = [*part(b"h"), b"h"]
    await table.multi_set("h", {"a": "1", b"b": b"2"}, ttl=5)
    assert server.seen(Operation.MULTI_SET) == [[*place, [b"a", b"1", b"b", b"2"], 5]]
    assert await table.multi_get("h", ["b", "a", "x", "b"]) == {b"a": b"1", b"b": b"2"}
    await table.multi_get(
        "h",
        start="a",
        stop="c",
        options=RangeOptions(
            start_inclusive=False,
            stop_inclusive=True,
            reverse=True,
            no_value=True,
            sort_key_filter=Filter.postfix("b"),
        ),
        max_count=3,
        max_bytes=0,
    )
    assert await table.multi_get_sort_keys("h") == [b"a", b"b"]
    assert server.seen(Operation.MULTI_GET) == [
        [*place, [b"a", b"b", b"x"], b"", b"", 1, 0, b"", 100, 1_000_000],
        [*place, None, b"a", b"c", 2 | 4 | 8, 3, b"b", 3, 0],
        [*place, None, b"", b"", 1 | 8, 0, b"", 100, 1_000_000],
    ]
    assert await table.multi_delete("h", ["a", "zz"]) == 2
    assert server.seen(Operation.MULTI_DELETE) == [[*place, [b"a", b"zz"]]]
    assert await table.sort_key_count("h") == 1
    assert server.seen(Operation.SCAN)[0][2:5] == [b"\x00\x01h", b"\x00\x01i", 4]


async def test_checked_writes_have_their_wire_form(server: FakeServer, table: Table) -> None:
    place = [*part(b"h"), b"h"]
    result = await table.check_and_set("h", "c", Check.NOT_EXIST, value="v", ttl=3)
    assert result == CheckResult(True, None, None)
    result = await table.check_and_set(
        "h", "c", Check.NOT_EXIST, "o", set_sort_key="s", value="v", return_check_value=True
    )
    assert result == CheckResult(False, True, b"v")
    assert server.seen(Operation.CHECK_AND_SET) == [
        [*place, b"c", 1, b"", None, b"v", 3, False],
        [*place, b"c", 1, b"o", b"s", b"v", 0, True],
    ]
    result = await table.check_and_mutate(
        "h", "c", 3, "", [Put("p", "v", 9), Delete("c")], return_check_value=True
    )
    assert result == CheckResult(True, True, b"v")
    assert server.seen(Operation.CHECK_AND_MUTATE) == [
        [*place, b"c", 3, b"", [[1, b"p", b"v", 9], [2, b"c"]], True]
    ]
    assert await table.multi_get("h") == {b"p": b"v"}


async def test_compare_exchange_tells_what_the_row_was(table: Table) -> None:
    assert await table.compare_exchange("h", "s", None, "1") == CheckResult(True, False, None)
    assert await table.compare_exchange("h", "s", None, "2") == CheckResult(False, True, b"1")
    assert await table.compare_exchange("h", "s", "9", "2") == CheckResult(False, True, b"1")
    assert await table.compare_exchange("h", "s", "1", "2") == CheckResult(True, True, b"1")
    assert await table.get("h", "s") == b"2"


async def test_what_cannot_be_is_refused_before_anything_is_sent(
    server: FakeServer, table: Table
) -> None:
    before = len(server.requests)
    wrong: Any = None
    calls = [
        table.get(wrong, "s"),
        table.get("h", wrong),
        table.set("h", "s", wrong),
        table.set("h", "s", b"x" * (1024 * 1024 + 1)),
        table.set(b"h" * 65_535, "s", "v"),
        table.set("h", b"s" * (1024 * 1024 + 1), "v"),
        table.set("h", "s", "v", ttl=-1),
        table.set("h", "s", "v", ttl=True),
        table.set("h", "s", "v", timeout=0),
        table.incr("h", "s", 1 << 63),
        table.incr("h", "s", 1, -2),
        table.multi_set("h", {}),
        table.multi_set("", {"a": "b"}),
        table.multi_get("h", []),
        table.multi_get("", ["a"]),
        table.multi_get("h", "abc"),
        table.multi_get("h", max_count=wrong),
        table.multi_get_sort_keys(""),
        table.multi_delete("h", []),
        table.batch_get([]),
        table.batch_set([]),
        table.batch_delete([]),
        table.multi_delete("", ["a"]),
        table.sort_key_count(""),
        table.delete_range(""),
        table.delete_range("h", options=RangeOptions(reverse=True)),
        table.check_and_set("", "s", Check.EXIST, value="v"),
        table.check_and_set("h", "s", 18, value="v"),
        table.check_and_set("h", "s", True, value="v"),
        table.check_and_set("h", "s", Check.EXIST, value=wrong),
        table.check_and_set("h", "s", Check.EXIST, value="v", return_check_value=wrong),
        table.check_and_mutate("h", "s", Check.EXIST),
        table.check_and_mutate("h", "s", Check.EXIST, mutations=[wrong]),
        table.compare_exchange("h", "s", None, wrong),
        table.batch_get(wrong),
        table.batch_get(b"ab"),
        table.batch_get([("h",)]),
        table.batch_set([("h", "s", None)]),
        table.batch_set([("h", "s")]),
        table.batch_delete(["hs"]),
        table.unordered_scanners(0),
        table.unordered_scanners(wrong),
        table.count(wrong),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument):
            await call
    for scan in (
        lambda: table.scan(""),
        lambda: table.scan("h", start=wrong),
        lambda: table.scan("h", options=wrong),
        lambda: table.full_scan(timeout=-1),
    ):
        with pytest.raises(InvalidArgument):
            scan()
    assert len(server.requests) == before


async def test_the_empty_hash_key_is_fine_for_single_rows_and_batches(table: Table) -> None:
    await table.set("", "s", "v")
    await table.batch_set([("", "t", "w")])
    assert await table.get("", "s") == b"v"
    assert await table.batch_get([("", "s"), ("", "t"), ("", "u")]) == [b"v", b"w", None]
    assert await table.incr("", "n") == 1
    await table.batch_delete([("", "s")])
    assert not await table.exist("", "s")


@pytest.mark.parametrize("page_rows", [1, 3, 1_000])
@pytest.mark.parametrize("reverse", [False, True])
async def test_multi_get_follows_pages_up_to_the_callers_limit(
    server: FakeServer, table: Table, page_rows: int, reverse: bool
) -> None:
    rows = {b"%02d" % i: b"v%02d" % i for i in range(10)}
    await table.multi_set("h", {b"": b"empty", **rows})
    rows = {b"": b"empty", **rows}
    keys = list(rows)
    server.store.page_rows = page_rows
    options = RangeOptions(reverse=reverse)
    everything = await table.multi_get("h", options=options, max_count=0, max_bytes=-1)
    assert list(everything.items()) == list(rows.items())
    assert everything.complete
    for count in (1, 4, 10):
        some = await table.multi_get("h", options=options, max_count=count)
        assert list(some) == (keys[-count:] if reverse else keys[:count])
        assert not some.complete
    exact = await table.multi_get("h", options=options, max_count=11)
    assert (len(exact), exact.complete) == (11, True)
    few = await table.multi_get("h", options=options, max_bytes=6)
    assert len(few) == 2
    assert not few.complete
    part_of = await table.multi_get("h", ["09", "", "05", "nope"], max_count=2)
    assert (list(part_of), part_of.complete) == ([b"", b"05"], False)
    named = await table.multi_get("h", ["09", "", "05", "nope"], max_count=0)
    assert (list(named), named.complete) == ([b"", b"05", b"09"], True)
    filtered = await table.multi_get(
        "h", options=RangeOptions(reverse=reverse, sort_key_filter=Filter.postfix("7"))
    )
    assert (list(filtered), filtered.complete) == ([b"07"], True)


async def test_an_empty_range_is_empty_without_asking(server: FakeServer, table: Table) -> None:
    before = len(server.requests)
    result = await table.multi_get("h", start="b", stop="a")
    assert (result, result.complete) == ({}, True)
    assert [row async for row in table.scan("h", "b", "b")] == []
    assert len(server.requests) == before


async def test_delete_range_deletes_what_the_range_and_filter_hold(
    server: FakeServer, table: Table
) -> None:
    await table.multi_set("h", {b"%03d" % i: b"v" for i in range(250)})
    options = RangeOptions(sort_key_filter=Filter.postfix("5"))
    assert await table.delete_range("h", "010", "100", options) == 9
    assert await table.sort_key_count("h") == 241
    assert await table.delete_range("h") == 241
    sizes = [len(fields[3]) for fields in server.seen(Operation.MULTI_DELETE)]
    assert max(sizes) == 100
    assert await table.sort_key_count("h") == 0


async def test_batches_are_cut_by_partition_rows_and_bytes(
    server: FakeServer, table: Table
) -> None:
    rows = [(b"%05d" % i, b"s", b"v%d" % i) for i in range(9_000)]
    await table.batch_set(rows, ttl=9)
    parts = server.seen(Operation.BATCH_SET)
    assert {fields[1] for fields in parts} == {0, 1, 2, 3}
    assert all(len(fields[2]) <= 3_000 and fields[3] == 9 for fields in parts)
    assert sum(len(fields[2]) for fields in parts) == 27_000
    wanted = [(h, s) for h, s, _ in reversed(rows)]
    wanted[17] = (b"absent", b"")
    values = await table.batch_get(wanted)
    expected: list[bytes | None] = [v for _, _, v in reversed(rows)]
    expected[17] = None
    assert values == expected
    await table.batch_delete(wanted)
    assert await table.batch_get([wanted[0], wanted[1]]) == [None, None]
    large = [(b"%d" % i, b"s", b"x" * 700_000) for i in range(6)]
    await table.batch_set(large)
    sizes = [sum(map(len, fields[2])) for fields in server.seen(Operation.BATCH_SET)[-6:]]
    assert sizes == [700_002] * 6


async def test_a_batch_whose_values_are_too_large_for_one_reply_is_halved(
    server: FakeServer, table: Table
) -> None:
    keys = [(b"h", b"%d" % i) for i in range(5)]
    await table.batch_set([(*key, b"v" + key[1]) for key in keys])
    server.faults += [Fault(Operation.BATCH_GET, InvalidData("too large")) for _ in range(2)]
    assert await table.batch_get(keys) == [b"v0", b"v1", b"v2", b"v3", b"v4"]
    assert len(server.seen(Operation.BATCH_GET)) > 2
    server.faults.append(Fault(Operation.BATCH_GET, InvalidData("one row"), times=99))
    with pytest.raises(InvalidData):
        await table.batch_get(keys)


@pytest.mark.parametrize("page_rows", [1, 7, 1_000])
async def test_scans_return_each_row_once_in_order(
    server: FakeServer, table: Table, page_rows: int
) -> None:
    await table.batch_set([(b"h%d" % h, b"%02d" % s, b"v") for h in range(6) for s in range(9)])
    server.store.page_rows = page_rows
    keys = [row.sort_key async for row in table.scan("h3")]
    assert keys == [b"%02d" % s for s in range(9)]
    some = table.scan("h3", "02", "05", ScanOptions(start_inclusive=False, stop_inclusive=True))
    assert [row.sort_key async for row in some] == [b"03", b"04", b"05"]
    rows = [row async for row in table.full_scan()]
    assert len(rows) == len(set(rows)) == 54
    by_hash: dict[bytes, list[bytes]] = {}
    for row in rows:
        by_hash.setdefault(row.hash_key, []).append(row.sort_key)
    assert all(found == sorted(found) for found in by_hash.values())
    assert await table.count() == 54
    assert await table.sort_key_count("h3") == 9
    only = table.full_scan(
        ScanOptions(hash_key_filter=Filter.exact("h4"), sort_key_filter=Filter.prefix("0"))
    )
    assert {row.hash_key async for row in only} == {b"h4"}
    assert await table.count(ScanOptions(sort_key_filter=Filter.postfix("7"))) == 6
    scanners = await table.unordered_scanners(3)
    shares = [[row async for row in scanner] for scanner in scanners]
    assert len(scanners) == 3
    assert sorted(row for share in shares for row in share) == sorted(rows)
    assert len(await table.unordered_scanners(99)) == 4


async def test_a_scan_tells_expiry_and_leaves_values_out_when_asked(
    server: FakeServer, table: Table
) -> None:
    await table.set("h", "a", "v", ttl=100)
    await table.set("h", "b", "w")
    rows = [row async for row in table.scan("h", options=ScanOptions(return_expire=True))]
    assert [row.expires_at for row in rows] == [1_451_606_500, None]
    rows = [row async for row in table.scan("h", options=ScanOptions(no_value=True, batch_size=5))]
    assert [(row.value, row.expires_at) for row in rows] == [(b"", None)] * 2
    assert server.seen(Operation.SCAN)[-1][-2:] == [5, 1024 * 1024]


async def test_a_scanner_may_be_closed_early_and_serves_several_tasks(
    server: FakeServer, table: Table
) -> None:
    await table.multi_set("h", {b"%02d" % i: b"v" for i in range(20)})
    server.store.page_rows = 4
    async with table.scan("h") as scanner:
        async for _row in scanner:
            break
    assert [row async for row in scanner] == []
    await scanner.aclose()
    pages = table.scan("h")
    sizes = []
    while page := await pages.next_page():
        sizes.append(len(page))
    assert sizes == [4] * 5


async def test_tables_are_known_by_name_and_asked_for_each_time(
    server: FakeServer, client: Client
) -> None:
    table = await client.table("t")
    assert await client.table("t") is table
    assert (table.name, table.partition_count) == ("t", 4)
    assert table.partition_of("h") == partition_index(b"h", b"", 4)
    del server.store.tables["t"]
    with pytest.raises(TableNotFound):
        await client.table("t")
    with pytest.raises(TableNotFound):
        await table.get("h", "s")
    with pytest.raises(InvalidArgument):
        await client.table(b"t")  # type: ignore[arg-type]


async def test_a_table_that_was_dropped_and_made_again_is_found_by_its_name(
    server: FakeServer, table: Table
) -> None:
    await table.multi_set("h", {b"%02d" % i: b"old" for i in range(9)})
    server.store.page_rows = 2
    scanner = table.scan("h")
    assert len(await scanner.next_page()) == 2
    del server.store.tables["t"]
    server.store.add("t", 8)
    assert await table.get("h", "00") is None
    await table.set("h", "00", "new")
    assert table.partition_count == 8
    assert await table.get("h", "00") == b"new"
    # A scan that began in the old table does not go on in the new one.
    with pytest.raises(TableNotFound):
        [row async for row in scanner]
