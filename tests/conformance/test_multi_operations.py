"""multi_set, multi_get, multi_delete, sort keys, ranges (pegasus.md 1.4, 1.5)."""

import itertools

import pytest

import pegaskv
from pegaskv import Filter, RangeOptions
from pegaskv.errors import InvalidArgument, InvalidData

SORT_KEYS = [b"", b"1", b"1-abcdefg", b"2", b"2-abcdefg", b"3", b"3-efghijk", b"4", b"5", b"6"]


@pytest.fixture
async def filled(table: pegaskv.Table, hk: bytes) -> dict[bytes, bytes]:
    rows = {sort_key: b"value-" + sort_key for sort_key in SORT_KEYS}
    await table.multi_set(hk, rows)
    # Neighbours that no range of `hk` may reach.
    await table.multi_set(hk + b"x", {b"": b"no", b"1": b"no"})
    await table.multi_set(hk[:-1] + b"\x00", {b"1": b"no"})
    return rows


async def test_multi_set_writes_all_and_multi_get_returns_them_in_order(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    got = await table.multi_get(hk)
    assert list(got.items()) == sorted(filled.items())
    assert got.complete


async def test_multi_get_of_named_keys_leaves_absent_ones_out(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    got = await table.multi_get(hk, [b"5", b"nope", b"1", b""])
    assert list(got) == [b"", b"1", b"5"]
    assert got.complete


async def test_multi_get_of_an_unknown_hash_key_is_empty_and_complete(
    table: pegaskv.Table, hk: bytes
) -> None:
    got = await table.multi_get(hk)
    assert dict(got) == {}
    assert got.complete


@pytest.mark.parametrize(("count", "complete"), [(1, False), (9, False), (10, True), (11, True)])
async def test_a_count_limit_says_whether_anything_is_left(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes], count: int, complete: bool
) -> None:
    got = await table.multi_get(hk, max_count=count)
    assert list(got) == SORT_KEYS[:count]
    assert got.complete is complete


async def test_a_count_limit_holds_for_named_keys_too(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    got = await table.multi_get(hk, [b"1", b"2", b"3"], max_count=2)
    assert list(got) == [b"1", b"2"]
    assert not got.complete
    # It ends the read before the next row is added, and here there is none.
    got = await table.multi_get(hk, [b"1", b"2", b"not there"], max_count=2)
    assert list(got) == [b"1", b"2"]
    assert got.complete


@pytest.mark.parametrize("limit", [0, -1])
async def test_limits_of_zero_and_less_mean_none(
    table: pegaskv.Table, hk: bytes, limit: int
) -> None:
    rows = {b"%05d" % number: b"v" * 10 for number in range(2_500)}
    for begin in range(0, 2_500, 500):
        keys = sorted(rows)[begin : begin + 500]
        await table.multi_set(hk, {key: rows[key] for key in keys})
    got = await table.multi_get(hk, max_count=limit, max_bytes=limit)
    assert list(got.items()) == sorted(rows.items())
    assert got.complete


async def test_the_default_count_limit_is_100(table: pegaskv.Table, hk: bytes) -> None:
    await table.multi_set(hk, {b"%04d" % number: b"" for number in range(101)})
    got = await table.multi_get(hk)
    assert len(got) == 100
    assert not got.complete


async def test_a_byte_limit_ends_the_read(table: pegaskv.Table, hk: bytes) -> None:
    await table.multi_set(hk, {b"%d" % number: b"v" * 99 for number in range(5)})
    got = await table.multi_get(hk, max_bytes=200)
    assert list(got) == [b"0", b"1"]
    assert not got.complete
    assert len(await table.multi_get(hk, max_bytes=1)) == 1


async def test_one_by_one_reading_reaches_every_row(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    seen: list[bytes] = []
    options = RangeOptions()
    start = b""
    while True:
        got = await table.multi_get(hk, start=start, max_count=1, options=options)
        seen += list(got)
        if got.complete:
            break
        start, options = seen[-1], RangeOptions(start_inclusive=False)
    assert seen == SORT_KEYS


@pytest.mark.parametrize(
    ("start_inclusive", "stop_inclusive"), list(itertools.product([True, False], repeat=2))
)
@pytest.mark.parametrize("reverse", [False, True])
async def test_range_flags_decide_about_the_ends(
    table: pegaskv.Table,
    hk: bytes,
    filled: dict[bytes, bytes],
    start_inclusive: bool,
    stop_inclusive: bool,
    reverse: bool,
) -> None:
    options = RangeOptions(
        start_inclusive=start_inclusive, stop_inclusive=stop_inclusive, reverse=reverse
    )
    got = await table.multi_get(hk, start=b"1", stop=b"4", options=options)
    expected = [b"1-abcdefg", b"2", b"2-abcdefg", b"3", b"3-efghijk"]
    expected = [b"1"] * start_inclusive + expected + [b"4"] * stop_inclusive
    assert list(got) == expected
    assert got.complete


@pytest.mark.parametrize("inclusive", [True, False])
async def test_an_empty_stop_means_the_end_of_the_hash_key(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes], inclusive: bool
) -> None:
    options = RangeOptions(stop_inclusive=inclusive)
    assert list(await table.multi_get(hk, start=b"5", options=options)) == [b"5", b"6"]


@pytest.mark.parametrize(
    ("start", "stop", "options", "expected"),
    [
        (b"3", b"1", RangeOptions(), []),
        (b"3", b"3", RangeOptions(), []),
        (b"3", b"3", RangeOptions(stop_inclusive=True), [b"3"]),
        (b"3", b"3", RangeOptions(start_inclusive=False, stop_inclusive=True), []),
        (b"", b"", RangeOptions(start_inclusive=False), SORT_KEYS[1:]),
        (b"9", b"", RangeOptions(), []),
        (b"", b"1", RangeOptions(), [b""]),
    ],
)
async def test_void_and_one_point_ranges_are_fine(
    table: pegaskv.Table,
    hk: bytes,
    filled: dict[bytes, bytes],
    start: bytes,
    stop: bytes,
    options: RangeOptions,
    expected: list[bytes],
) -> None:
    got = await table.multi_get(hk, start=start, stop=stop, options=options)
    assert list(got) == expected
    assert got.complete


@pytest.mark.parametrize(
    ("sort_key_filter", "expected"),
    [
        (Filter.prefix(b"1"), [b"1", b"1-abcdefg"]),
        (Filter.prefix(b""), SORT_KEYS),
        (Filter.prefix(b"x"), []),
        (Filter.postfix(b"efg"), [b"1-abcdefg", b"2-abcdefg"]),
        (Filter.postfix(b""), SORT_KEYS),
        (Filter.anywhere(b"-"), [b"1-abcdefg", b"2-abcdefg", b"3-efghijk"]),
        (Filter.anywhere(b""), SORT_KEYS),
        (Filter.anywhere(b"nope"), []),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
async def test_filters_choose_the_sort_keys(
    table: pegaskv.Table,
    hk: bytes,
    filled: dict[bytes, bytes],
    sort_key_filter: Filter,
    expected: list[bytes],
    reverse: bool,
) -> None:
    options = RangeOptions(sort_key_filter=sort_key_filter, reverse=reverse)
    got = await table.multi_get(hk, options=options)
    assert list(got) == expected
    assert got.complete


async def test_a_filter_and_a_range_hold_together(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    options = RangeOptions(sort_key_filter=Filter.prefix(b"2"), stop_inclusive=True)
    assert list(await table.multi_get(hk, start=b"2-", stop=b"3", options=options)) == [
        b"2-abcdefg"
    ]


async def test_reverse_takes_the_largest_and_returns_them_ascending(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    got = await table.multi_get(hk, max_count=3, options=RangeOptions(reverse=True))
    assert list(got) == [b"4", b"5", b"6"]
    assert not got.complete
    got = await table.multi_get(
        hk, stop=b"4", max_count=20, options=RangeOptions(reverse=True, stop_inclusive=False)
    )
    assert list(got) == SORT_KEYS[:7]
    assert got.complete


async def test_no_value_returns_keys_with_empty_values(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    got = await table.multi_get(hk, options=RangeOptions(no_value=True))
    assert dict(got) == dict.fromkeys(SORT_KEYS, b"")


async def test_sort_keys_come_in_order_and_with_complete(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    keys = await table.multi_get_sort_keys(hk)
    assert keys == SORT_KEYS
    assert keys.complete
    some = await table.multi_get_sort_keys(hk, max_count=3)
    assert some == SORT_KEYS[:3]
    assert not some.complete
    assert await table.multi_get_sort_keys(hk + b"-unknown") == []


async def test_sort_key_count_counts_live_rows(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    assert await table.sort_key_count(hk) == len(SORT_KEYS)
    await table.multi_delete(hk, [b"1", b"2"])
    assert await table.sort_key_count(hk) == len(SORT_KEYS) - 2
    assert await table.sort_key_count(hk + b"-unknown") == 0


async def test_multi_delete_answers_the_number_requested(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    assert await table.multi_delete(hk, [b"1", b"2", b"not there"]) == 3
    assert b"1" not in await table.multi_get(hk)
    assert await table.multi_delete(hk, [b"1"]) == 1
    # Requested, not existing and not different: one that is named twice counts twice.
    assert await table.multi_delete(hk, [b"2", b"3", b"2"]) == 3
    assert await table.multi_delete(hk, (key for key in [b"3"])) == 1


async def test_delete_range_deletes_what_the_range_and_the_filter_name(
    table: pegaskv.Table, hk: bytes, filled: dict[bytes, bytes]
) -> None:
    options = RangeOptions(sort_key_filter=Filter.postfix(b"efg"))
    assert await table.delete_range(hk, b"1", b"2", options) == 1
    assert await table.delete_range(hk, b"3", b"5") == 3
    assert list(await table.multi_get(hk)) == [b"", b"1", b"2", b"2-abcdefg", b"5", b"6"]
    assert await table.delete_range(hk) == 6
    assert await table.delete_range(hk) == 0
    assert await table.sort_key_count(hk) == 0


async def test_delete_range_goes_on_past_one_chunk(table: pegaskv.Table, hk: bytes) -> None:
    await table.multi_set(hk, {b"%04d" % number: b"" for number in range(450)})
    assert await table.delete_range(hk, b"0010", b"0440") == 430
    assert await table.sort_key_count(hk) == 20


async def test_empty_multi_operations_are_refused(table: pegaskv.Table, hk: bytes) -> None:
    with pytest.raises(InvalidArgument):
        await table.multi_set(hk, {})
    with pytest.raises(InvalidArgument):
        await table.multi_delete(hk, [])


async def test_an_empty_hash_key_is_refused_by_multi_operations(table: pegaskv.Table) -> None:
    with pytest.raises(InvalidArgument, match=r"hash.key"):
        await table.multi_set(b"", {b"a": b"1"})
    with pytest.raises(InvalidArgument, match=r"hash.key"):
        await table.multi_get(b"")
    with pytest.raises(InvalidArgument, match=r"hash.key"):
        await table.multi_delete(b"", [b"a"])
    with pytest.raises(InvalidArgument, match=r"hash.key"):
        await table.sort_key_count(b"")
    with pytest.raises(InvalidArgument, match=r"hash.key"):
        table.scan(b"")


async def test_a_multi_set_over_the_limit_is_refused_as_a_whole(
    table: pegaskv.Table, hk: bytes
) -> None:
    with pytest.raises((InvalidData, InvalidArgument)):
        await table.multi_set(hk, {b"%d" % number: bytes(300_000) for number in range(5)})
    assert await table.sort_key_count(hk) == 0


async def test_large_rows_come_in_pages_without_a_seam(table: pegaskv.Table, hk: bytes) -> None:
    rows = {b"%02d" % number: bytes((number,)) * 300_000 for number in range(12)}
    for sort_key, value in rows.items():
        await table.set(hk, sort_key, value)
    got = await table.multi_get(hk, max_bytes=0)
    assert dict(got) == rows
    assert got.complete
    reverse = await table.multi_get(hk, max_bytes=0, options=RangeOptions(reverse=True))
    assert list(reverse.items()) == sorted(rows.items())
    assert dict(await table.multi_get(hk, list(rows), max_bytes=0)) == rows
