"""scan, full_scan, unordered_scanners, count (pegasus.md 1.8)."""

import itertools

import pytest

import pegaskv
from pegaskv import Filter, Row, ScanOptions
from pegaskv.errors import InvalidArgument
from pegaskv.runtime.tasks import TaskScope
from tests.conformance.conftest import NewTable

SORT_KEYS = [b"%03d" % number for number in range(40)]


@pytest.fixture
async def ordered(table: pegaskv.Table, hk: bytes) -> list[bytes]:
    await table.multi_set(hk, {sort_key: b"v" + sort_key for sort_key in SORT_KEYS})
    return SORT_KEYS


@pytest.fixture
async def wide(new_table: NewTable) -> pegaskv.Table:
    """A table of 20 hash keys with 50 rows each, and some with an empty hash key."""
    table = await new_table(8)
    await table.batch_set(
        [
            (b"hash-%d" % hash_number, b"%02d" % number, b"%d" % (hash_number * number))
            for hash_number in range(20)
            for number in range(50)
        ]
        + [(b"", b"sort-%d" % number, b"empty") for number in range(10)]
    )
    return table


async def sort_keys(scan: object) -> list[bytes]:
    return [row.sort_key async for row in scan]  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch_size", [1, 3, 39, 40, 41, 1000, 5000])
async def test_a_scan_returns_each_row_once_and_in_order(
    table: pegaskv.Table, hk: bytes, ordered: list[bytes], batch_size: int
) -> None:
    rows = [row async for row in table.scan(hk, options=ScanOptions(batch_size=batch_size))]
    assert rows == [Row(hk, sort_key, b"v" + sort_key, None) for sort_key in ordered]


async def test_a_scan_of_an_unknown_hash_key_is_empty(table: pegaskv.Table, hk: bytes) -> None:
    assert [row async for row in table.scan(hk)] == []


@pytest.mark.parametrize(
    ("start_inclusive", "stop_inclusive"), list(itertools.product([True, False], repeat=2))
)
async def test_scan_flags_decide_about_the_ends(
    table: pegaskv.Table,
    hk: bytes,
    ordered: list[bytes],
    start_inclusive: bool,
    stop_inclusive: bool,
) -> None:
    options = ScanOptions(start_inclusive=start_inclusive, stop_inclusive=stop_inclusive)
    got = await sort_keys(table.scan(hk, b"010", b"020", options))
    assert got == ordered[10 if start_inclusive else 11 : 21 if stop_inclusive else 20]


@pytest.mark.parametrize(
    ("start", "stop", "flags", "expected"),
    [
        (b"010", b"010", (True, True), [b"010"]),
        (b"010", b"010", (True, False), []),
        (b"010", b"010", (False, True), []),
        (b"020", b"010", (True, True), []),
        (b"038", b"", (True, False), [b"038", b"039"]),
        (b"zzz", b"", (True, False), []),
    ],
)
async def test_one_point_and_void_spans_are_fine(
    table: pegaskv.Table,
    hk: bytes,
    ordered: list[bytes],
    start: bytes,
    stop: bytes,
    flags: tuple[bool, bool],
    expected: list[bytes],
) -> None:
    options = ScanOptions(start_inclusive=flags[0], stop_inclusive=flags[1])
    assert await sort_keys(table.scan(hk, start, stop, options)) == expected


@pytest.mark.parametrize(
    ("sort_key_filter", "expected"),
    [
        (Filter.prefix(b"01"), SORT_KEYS[10:20]),
        (Filter.postfix(b"5"), SORT_KEYS[5::10]),
        (Filter.anywhere(b"1"), [key for key in SORT_KEYS if b"1" in key]),
        (Filter.exact(b"007"), [b"007"]),
        (Filter.prefix(b""), SORT_KEYS),
        (Filter.prefix(b"\xff"), []),
    ],
)
@pytest.mark.parametrize("batch_size", [2, 1000])
async def test_scans_filter_sort_keys_even_when_pages_come_empty(
    table: pegaskv.Table,
    hk: bytes,
    ordered: list[bytes],
    sort_key_filter: Filter,
    expected: list[bytes],
    batch_size: int,
) -> None:
    options = ScanOptions(sort_key_filter=sort_key_filter, batch_size=batch_size)
    assert await sort_keys(table.scan(hk, options=options)) == expected


async def test_scans_filter_values(table: pegaskv.Table, hk: bytes, ordered: list[bytes]) -> None:
    options = ScanOptions(value_filter=Filter.postfix(b"9"))
    assert await sort_keys(table.scan(hk, options=options)) == ordered[9::10]


async def test_no_value_scans_leave_values_out(
    table: pegaskv.Table, hk: bytes, ordered: list[bytes]
) -> None:
    rows = [row async for row in table.scan(hk, options=ScanOptions(no_value=True))]
    assert {row.value for row in rows} == {b""}
    assert len(rows) == len(ordered)


async def test_a_scan_stays_inside_its_hash_key(table: pegaskv.Table, hk: bytes) -> None:
    for neighbour in (hk[:-1], hk + b"\x00", hk + b"\xff", hk[:-1] + b"\xff"):
        if neighbour:
            await table.set(neighbour, b"s", b"neighbour")
    await table.set(hk, b"\xff\xff\xff", b"mine")
    await table.set(hk, b"", b"mine")
    assert await sort_keys(table.scan(hk)) == [b"", b"\xff\xff\xff"]


async def test_a_full_scan_returns_every_row_once(wide: pegaskv.Table) -> None:
    rows = [row async for row in wide.full_scan(ScanOptions(batch_size=7))]
    assert len(rows) == len(set(rows)) == 20 * 50 + 10
    for hash_key, group in itertools.groupby(rows, key=lambda row: row.hash_key):
        keys = [row.sort_key for row in group]
        assert keys == sorted(keys)
        assert not hash_key or len(keys) == 50, "rows of one hash key are together"


async def test_a_full_scan_of_an_empty_table_is_empty(new_table: NewTable) -> None:
    table = await new_table()
    assert [row async for row in table.full_scan()] == []
    assert await table.count() == 0


async def test_full_scans_filter_hash_keys_sort_keys_and_values(wide: pegaskv.Table) -> None:
    async def found(**filters: Filter) -> set[tuple[bytes, bytes]]:
        options = ScanOptions(batch_size=13, **filters)  # type: ignore[arg-type]
        return {(row.hash_key, row.sort_key) async for row in wide.full_scan(options)}

    assert await found(hash_key_filter=Filter.exact(b"hash-3")) == {
        (b"hash-3", b"%02d" % number) for number in range(50)
    }
    assert len(await found(hash_key_filter=Filter.prefix(b"hash-1"))) == 11 * 50
    assert len(await found(hash_key_filter=Filter.postfix(b"7"))) == 2 * 50
    assert len(await found(hash_key_filter=Filter.anywhere(b"sh-"))) == 20 * 50
    assert len(await found(sort_key_filter=Filter.prefix(b"0"))) == 20 * 10
    assert len(await found(value_filter=Filter.exact(b"empty"))) == 10
    assert await found(
        hash_key_filter=Filter.exact(b"hash-2"), sort_key_filter=Filter.exact(b"05")
    ) == {(b"hash-2", b"05")}


@pytest.mark.parametrize(("split", "scanners"), [(1, 1), (3, 3), (8, 8), (100, 8)])
async def test_unordered_scanners_share_the_table_without_overlap(
    wide: pegaskv.Table, split: int, scanners: int
) -> None:
    parts = await wide.unordered_scanners(split)
    assert len(parts) == scanners
    seen: list[Row] = []

    async def read(part: object) -> None:
        seen.extend([row async for row in part])  # type: ignore[attr-defined]

    async with TaskScope("readers") as scope:
        for part in parts:
            scope.start("reader", read(part))
    assert len(seen) == len(set(seen)) == 1010


@pytest.mark.parametrize("split", [0, -1])
async def test_a_split_of_nothing_is_refused(wide: pegaskv.Table, split: int) -> None:
    with pytest.raises(InvalidArgument):
        await wide.unordered_scanners(split)


async def test_count_counts_at_the_servers(wide: pegaskv.Table) -> None:
    assert await wide.count() == 1010
    assert await wide.count(ScanOptions(hash_key_filter=Filter.exact(b"hash-3"))) == 50
    assert await wide.count(ScanOptions(sort_key_filter=Filter.exact(b"03"))) == 20


async def test_an_early_end_of_a_scan_is_clean(wide: pegaskv.Table) -> None:
    scan = wide.full_scan(ScanOptions(batch_size=5))
    async for _ in scan:
        break
    await scan.aclose()
    assert await wide.count() == 1010


async def test_rows_that_stay_are_seen_once_while_others_come_and_go(
    new_table: NewTable,
) -> None:
    table = await new_table(4)
    stays = [(b"h%d" % (number % 10), b"stay-%03d" % number, b"v") for number in range(300)]
    await table.batch_set(stays)
    done = False

    async def churn() -> None:
        number = 0
        while not done:
            number += 1
            await table.set(b"h%d" % (number % 10), b"churn-%d" % (number % 50), b"x")
            await table.delete(b"h%d" % (number % 7), b"churn-%d" % (number % 30))

    async with TaskScope("churn") as scope:
        scope.start("churn", churn())
        for _ in range(5):
            options = ScanOptions(batch_size=11)
            rows = [row async for row in table.full_scan(options)]
            kept = [row.sort_key for row in rows if row.sort_key.startswith(b"stay")]
            assert sorted(kept) == sorted(sort_key for _, sort_key, _ in stays)
        done = True


async def test_large_values_scan_in_bounded_pages(new_table: NewTable) -> None:
    table = await new_table(2)
    for number in range(8):
        await table.set(b"h", b"%d" % number, bytes(700_000))
    rows = [row async for row in table.full_scan()]
    assert [len(row.value) for row in rows] == [700_000] * 8
