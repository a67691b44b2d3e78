"""Times to live: expiry, ttl(), default_ttl (pegasus.md 1.3)."""

import asyncio

import pytest

import pegaskv
from pegaskv import Check, Put
from pegaskv.errors import InvalidArgument
from tests.conformance.conftest import NewTable
from tests.helpers import poll_until


async def test_ttl_of_a_row_without_one_is_minus_1(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk, b"s", b"v")
    assert await table.ttl(hk, b"s") == -1


async def test_ttl_of_an_absent_row_is_minus_2(table: pegaskv.Table, hk: bytes) -> None:
    assert await table.ttl(hk, b"s") == -2


async def test_ttl_counts_down_from_what_was_given(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk, b"s", b"v", ttl=60)
    assert 58 <= await table.ttl(hk, b"s") <= 60


async def test_a_later_set_without_ttl_makes_the_row_live_for_ever(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.set(hk, b"s", b"v", ttl=60)
    await table.set(hk, b"s", b"v")
    assert await table.ttl(hk, b"s") == -1


async def test_an_expired_row_is_in_no_answer(new_table: NewTable) -> None:
    table = await new_table()
    await table.set(b"h", b"gone", b"v", ttl=1)
    await table.multi_set(b"h", {b"gone2": b"v", b"gone3": b"v"}, ttl=1)
    await table.set(b"h", b"stays", b"v", ttl=100)
    await poll_until(lambda: absent(table, b"h", b"gone3"))
    assert await table.get(b"h", b"gone") is None
    assert await table.exist(b"h", b"gone") is False
    assert await table.ttl(b"h", b"gone") == -2
    assert list(await table.multi_get(b"h")) == [b"stays"]
    assert list(await table.multi_get(b"h", [b"gone", b"gone2", b"stays"])) == [b"stays"]
    assert await table.sort_key_count(b"h") == 1
    assert [row.sort_key async for row in table.scan(b"h")] == [b"stays"]
    assert [row.sort_key async for row in table.full_scan()] == [b"stays"]
    assert await table.batch_get([(b"h", b"gone"), (b"h", b"stays")]) == [None, b"v"]
    assert await table.count() == 1
    assert await table.incr(b"h", b"gone") == 1
    assert (await table.check_and_set(b"h", b"gone2", Check.NOT_EXIST, value=b"new")).passed


async def absent(table: pegaskv.Table, hash_key: bytes, sort_key: bytes) -> bool:
    return await table.get(hash_key, sort_key) is None


async def test_every_write_takes_a_time_to_live(table: pegaskv.Table, hk: bytes) -> None:
    await table.multi_set(hk, {b"a": b"1"}, ttl=50)
    await table.incr(hk, b"b", ttl=50)
    await table.check_and_set(hk, b"c", Check.NO_CHECK, value=b"3", ttl=50)
    await table.check_and_mutate(hk, b"d", Check.NO_CHECK, b"", [Put(b"d", b"4", 50)])
    await table.batch_set([(hk, b"e", b"5")], ttl=50)
    await table.compare_exchange(hk, b"f", None, b"6", ttl=50)
    for sort_key in (b"a", b"b", b"c", b"d", b"e", b"f"):
        assert 48 <= await table.ttl(hk, sort_key) <= 50, sort_key


@pytest.mark.parametrize("ttl", [-1, -2, 1.5, "1", None, True, 1 << 40])
async def test_a_ttl_that_cannot_be_is_refused(
    table: pegaskv.Table, hk: bytes, ttl: object
) -> None:
    with pytest.raises(InvalidArgument):
        await table.set(hk, b"s", b"v", ttl=ttl)  # type: ignore[arg-type]
    assert await table.get(hk, b"s") is None


async def test_default_ttl_is_given_to_writes_that_name_none(new_table: NewTable) -> None:
    table = await new_table(default_ttl="100")
    await table.set(b"h", b"a", b"v")
    await table.set(b"h", b"b", b"v", ttl=20)
    await table.multi_set(b"h", {b"c": b"v"})
    await table.incr(b"h", b"d")
    for sort_key, expected in ((b"a", 100), (b"b", 20), (b"c", 100), (b"d", 100)):
        assert expected - 2 <= await table.ttl(b"h", sort_key) <= expected


async def test_default_ttl_is_given_wherever_no_time_to_live_would_be_left(
    client: pegaskv.Client, new_table: NewTable
) -> None:
    table = await new_table()
    await table.set(b"h", b"kept", b"1")
    await table.set(b"h", b"own", b"1", ttl=500)
    await client.admin.set_envs(table.name, {"default_ttl": "100"})
    await table.incr(b"h", b"kept")
    await table.incr(b"h", b"own")
    await table.incr(b"h", b"cleared", ttl=-1)
    await table.check_and_set(b"h", b"checked", Check.NOT_EXIST, value=b"v")
    puts = [Put(b"put", b"v"), Put(b"put with ttl", b"v", 20)]
    await table.check_and_mutate(b"h", b"checked", Check.EXIST, mutations=puts)
    await table.batch_set([(b"h", b"batch", b"v")])
    expected = dict.fromkeys((b"kept", b"cleared", b"checked", b"put", b"batch"), 100)
    for sort_key, seconds in (expected | {b"own": 500, b"put with ttl": 20}).items():
        assert seconds - 3 <= await table.ttl(b"h", sort_key) <= seconds, sort_key


async def test_a_changed_default_ttl_concerns_later_writes_only(
    client: pegaskv.Client, new_table: NewTable
) -> None:
    table = await new_table()
    await table.set(b"h", b"before", b"v")
    await client.admin.set_envs(table.name, {"default_ttl": "100"})
    await table.set(b"h", b"during", b"v")
    await client.admin.delete_envs(table.name, ["default_ttl"])
    await table.set(b"h", b"after", b"v")
    assert await table.ttl(b"h", b"before") == -1
    assert 98 <= await table.ttl(b"h", b"during") <= 100
    assert await table.ttl(b"h", b"after") == -1


async def test_scans_return_when_a_row_expires_if_asked(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk, b"a", b"v", ttl=1000)
    await table.set(hk, b"b", b"v")
    rows = [row async for row in table.scan(hk, options=pegaskv.ScanOptions(return_expire=True))]
    assert rows[0].expires_at is not None
    assert rows[1].expires_at is None
    loop_rows = [row async for row in table.scan(hk)]
    assert [row.expires_at for row in loop_rows] == [None, None]
    left = await table.ttl(hk, b"a")
    await asyncio.sleep(0)
    assert left <= 1000
