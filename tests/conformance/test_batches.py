"""batch_get, batch_set, batch_delete: rows of any hash keys."""

import pytest

import pegaskv
from pegaskv.errors import InvalidArgument


async def test_batch_get_answers_in_order_with_none_for_absent(
    table: pegaskv.Table, hk: bytes
) -> None:
    rows = [(hk + b"-%d" % number, b"s", b"%d" % number) for number in range(100)]
    await table.batch_set(rows)
    keys = [(hash_key, sort_key) for hash_key, sort_key, _ in reversed(rows)]
    keys.insert(3, (hk, b"absent"))
    values = await table.batch_get(keys)
    assert values[3] is None
    del values[3]
    assert values == [value for _, _, value in reversed(rows)]


async def test_batch_get_of_one_row_twice_answers_twice(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk, b"s", b"v")
    assert await table.batch_get([(hk, b"s"), (hk, b"x"), (hk, b"s")]) == [b"v", None, b"v"]


async def test_of_a_row_named_twice_in_a_batch_the_last_stays(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.batch_set([(hk, b"s", b"1"), (hk, b"s", b"2")])
    assert await table.get(hk, b"s") == b"2"


async def test_batch_delete_deletes_and_forgives_absent_rows(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.batch_set([(hk, b"a", b"1"), (hk, b"b", b"2"), (b"", hk, b"3")])
    await table.batch_delete([(hk, b"a"), (hk, b"nope"), (b"", hk)])
    assert await table.batch_get([(hk, b"a"), (hk, b"b"), (b"", hk)]) == [None, b"2", None]


async def test_batches_larger_than_a_message_are_cut(table: pegaskv.Table, hk: bytes) -> None:
    rows = [(hk, b"%06d" % number, b"v" * 50) for number in range(5_000)]
    await table.batch_set(rows)
    assert await table.sort_key_count(hk) == 5_000
    values = await table.batch_get([(hash_key, sort_key) for hash_key, sort_key, _ in rows])
    assert values == [b"v" * 50] * 5_000
    await table.batch_delete([(hash_key, sort_key) for hash_key, sort_key, _ in rows])
    assert await table.sort_key_count(hk) == 0


async def test_batches_of_large_values_are_cut_by_bytes(table: pegaskv.Table, hk: bytes) -> None:
    rows = [(hk + b"%d" % number, b"s", bytes((number,)) * 900_000) for number in range(20)]
    await table.batch_set(rows)
    values = await table.batch_get([(hash_key, sort_key) for hash_key, sort_key, _ in rows])
    assert values == [value for _, _, value in rows]


async def test_empty_batches_are_refused_as_in_pegasus(table: pegaskv.Table) -> None:
    for begin in (table.batch_get, table.batch_set, table.batch_delete):
        with pytest.raises(InvalidArgument, match="empty"):
            await begin([])
