"""incr, check_and_set, check_and_mutate, compare_exchange (pegasus.md 1.6, 1.7)."""

import pytest

import pegaskv
from pegaskv import Check, Delete, Put
from pegaskv.errors import InvalidArgument
from pegaskv.runtime.tasks import TaskScope
from tests.helpers import poll_until

INT64_MAX = (1 << 63) - 1


async def test_incr_begins_at_zero_and_adds(table: pegaskv.Table, hk: bytes) -> None:
    assert await table.incr(hk, b"s") == 1
    assert await table.incr(hk, b"s", 100) == 101
    assert await table.incr(hk, b"s", -50) == 51
    assert await table.incr(hk, b"s", 0) == 51
    assert await table.get(hk, b"s") == b"51"


async def test_incr_by_zero_makes_an_absent_row_zero(table: pegaskv.Table, hk: bytes) -> None:
    assert await table.incr(hk, b"s", 0) == 0
    assert await table.get(hk, b"s") == b"0"


async def test_incr_takes_an_empty_value_as_zero(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk, b"s", b"")
    assert await table.incr(hk, b"s", 7) == 7


async def test_incr_reaches_the_edges_of_an_int64(table: pegaskv.Table, hk: bytes) -> None:
    assert await table.incr(hk, b"s", INT64_MAX) == INT64_MAX
    assert await table.incr(hk, b"t", -INT64_MAX - 1) == -INT64_MAX - 1


@pytest.mark.parametrize(("value", "by"), [(INT64_MAX, 1), (-INT64_MAX - 1, -1)])
async def test_incr_past_an_int64_is_refused_and_changes_nothing(
    table: pegaskv.Table, hk: bytes, value: int, by: int
) -> None:
    await table.set(hk, b"s", str(value))
    with pytest.raises(InvalidArgument):
        await table.incr(hk, b"s", by)
    assert await table.get(hk, b"s") == b"%d" % value


@pytest.mark.parametrize("value", [b"x", b"1.5", b"12a", b" 1", b"9223372036854775808"])
async def test_incr_of_what_is_no_int64_is_refused(
    table: pegaskv.Table, hk: bytes, value: bytes
) -> None:
    await table.set(hk, b"s", value)
    with pytest.raises(InvalidArgument):
        await table.incr(hk, b"s")
    assert await table.get(hk, b"s") == value


@pytest.mark.parametrize("by", [1 << 63, -(1 << 63) - 1, 1.5, "1", None, True])
async def test_an_increment_that_is_no_int64_is_refused(
    table: pegaskv.Table, hk: bytes, by: object
) -> None:
    with pytest.raises(InvalidArgument):
        await table.incr(hk, b"s", by)  # type: ignore[arg-type]


async def test_incr_keeps_sets_and_clears_the_time_to_live(table: pegaskv.Table, hk: bytes) -> None:
    await table.set(hk, b"s", b"1", ttl=1000)
    await table.incr(hk, b"s")
    assert 990 <= await table.ttl(hk, b"s") <= 1000
    await table.incr(hk, b"s", ttl=50)
    assert 45 <= await table.ttl(hk, b"s") <= 50
    await table.incr(hk, b"s", ttl=-1)
    assert await table.ttl(hk, b"s") == -1
    with pytest.raises(InvalidArgument):
        await table.incr(hk, b"s", ttl=-2)
    assert await table.get(hk, b"s") == b"4"


async def test_incr_of_an_expired_row_begins_anew_without_its_ttl(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.set(hk, b"s", b"41", ttl=1)

    async def expired() -> bool:
        return await table.get(hk, b"s") is None

    await poll_until(expired)
    assert await table.incr(hk, b"s") == 1
    assert await table.ttl(hk, b"s") == -1


async def test_concurrent_increments_are_all_counted(table: pegaskv.Table, hk: bytes) -> None:
    async def add() -> None:
        for _ in range(40):
            await table.incr(hk, b"s")

    async with TaskScope("adders") as scope:
        for _ in range(25):
            scope.start("adder", add())
    assert await table.get(hk, b"s") == b"1000"


CASES = [
    # check type, stored value (None = absent), operand, passes
    (Check.NO_CHECK, None, b"", True),
    (Check.NO_CHECK, b"x", b"", True),
    (Check.NOT_EXIST, None, b"", True),
    (Check.NOT_EXIST, b"", b"", False),
    (Check.NOT_EXIST, b"v", b"", False),
    (Check.NOT_EXIST_OR_EMPTY, None, b"", True),
    (Check.NOT_EXIST_OR_EMPTY, b"", b"", True),
    (Check.NOT_EXIST_OR_EMPTY, b"v", b"", False),
    (Check.EXIST, None, b"", False),
    (Check.EXIST, b"", b"", True),
    (Check.EXIST, b"v", b"", True),
    (Check.NOT_EMPTY, None, b"", False),
    (Check.NOT_EMPTY, b"", b"", False),
    (Check.NOT_EMPTY, b"v", b"", True),
    (Check.MATCH_ANYWHERE, None, b"", False),
    (Check.MATCH_ANYWHERE, b"", b"", True),
    (Check.MATCH_ANYWHERE, b"abcdef", b"cd", True),
    (Check.MATCH_ANYWHERE, b"abcdef", b"dc", False),
    (Check.MATCH_PREFIX, b"abcdef", b"abc", True),
    (Check.MATCH_PREFIX, b"abcdef", b"bc", False),
    (Check.MATCH_PREFIX, b"abcdef", b"", True),
    (Check.MATCH_POSTFIX, b"abcdef", b"def", True),
    (Check.MATCH_POSTFIX, b"abcdef", b"de", False),
    (Check.MATCH_POSTFIX, None, b"", False),
    (Check.BYTES_LESS, b"a", b"b", True),
    (Check.BYTES_LESS, b"b", b"b", False),
    (Check.BYTES_LESS, None, b"b", False),
    (Check.BYTES_LESS_OR_EQUAL, b"b", b"b", True),
    (Check.BYTES_LESS_OR_EQUAL, b"c", b"b", False),
    (Check.BYTES_EQUAL, b"b", b"b", True),
    (Check.BYTES_EQUAL, b"", b"", True),
    (Check.BYTES_EQUAL, None, b"", False),
    (Check.BYTES_GREATER_OR_EQUAL, b"b", b"b", True),
    (Check.BYTES_GREATER_OR_EQUAL, b"a", b"b", False),
    (Check.BYTES_GREATER, b"\xff", b"\x7f", True),
    (Check.BYTES_GREATER, b"b", b"b", False),
    (Check.INT_LESS, b"9", b"10", True),
    (Check.INT_LESS, b"10", b"10", False),
    (Check.INT_LESS_OR_EQUAL, b"10", b"10", True),
    (Check.INT_EQUAL, b"10", b"010", True),
    (Check.INT_EQUAL, b"-1", b"1", False),
    (Check.INT_EQUAL, None, b"1", False),
    (Check.INT_GREATER_OR_EQUAL, b"10", b"9", True),
    (Check.INT_GREATER, b"10", b"9", True),
    (Check.INT_GREATER, b"-10", b"9", False),
]


@pytest.mark.parametrize(("check", "stored", "operand", "passes"), CASES)
async def test_check_and_set_sets_if_and_only_if_the_check_passes(
    table: pegaskv.Table,
    hk: bytes,
    check: Check,
    stored: bytes | None,
    operand: bytes,
    passes: bool,
) -> None:
    if stored is not None:
        await table.set(hk, b"check", stored)
    result = await table.check_and_set(
        hk, b"check", check, operand, set_sort_key=b"set", value=b"new", return_check_value=True
    )
    assert result.passed is passes
    assert result.exists is (stored is not None)
    assert result.value == stored
    assert await table.get(hk, b"set") == (b"new" if passes else None)
    assert await table.get(hk, b"check") == stored


async def test_check_and_set_sets_the_checked_row_by_default(
    table: pegaskv.Table, hk: bytes
) -> None:
    first = await table.check_and_set(hk, b"s", Check.NOT_EXIST, value=b"1")
    second = await table.check_and_set(hk, b"s", Check.NOT_EXIST, value=b"2")
    assert (first.passed, second.passed) == (True, False)
    assert await table.get(hk, b"s") == b"1"


async def test_the_check_value_is_returned_only_if_asked_for(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.set(hk, b"s", b"v")
    result = await table.check_and_set(hk, b"s", Check.NOT_EXIST, value=b"1")
    assert (result.exists, result.value) == (None, None)


@pytest.mark.parametrize(("stored", "operand"), [(b"x", b"1"), (b"1", b"x"), (b"", b"1")])
async def test_an_integer_check_of_what_is_none_is_refused(
    table: pegaskv.Table, hk: bytes, stored: bytes, operand: bytes
) -> None:
    await table.set(hk, b"s", stored)
    with pytest.raises(InvalidArgument):
        await table.check_and_set(hk, b"s", Check.INT_EQUAL, operand, value=b"new")
    assert await table.get(hk, b"s") == stored


async def test_an_integer_check_of_an_absent_row_is_simply_false(
    table: pegaskv.Table, hk: bytes
) -> None:
    for operand in (b"1", b"no number", b""):
        result = await table.check_and_set(
            hk, b"s", Check.INT_EQUAL, operand, value=b"new", return_check_value=True
        )
        assert result == (False, False, None)
    assert await table.get(hk, b"s") is None


@pytest.mark.parametrize("check", [-1, 18, 99, "EXIST", None])
async def test_an_unknown_check_type_is_refused(
    table: pegaskv.Table, hk: bytes, check: object
) -> None:
    with pytest.raises(InvalidArgument):
        await table.check_and_set(hk, b"s", check, value=b"1")  # type: ignore[arg-type]


async def test_check_and_mutate_puts_and_deletes_as_one(table: pegaskv.Table, hk: bytes) -> None:
    await table.multi_set(hk, {b"a": b"1", b"b": b"2"})
    result = await table.check_and_mutate(
        hk, b"a", Check.BYTES_EQUAL, b"1", [Put(b"c", b"3"), Delete(b"b"), Put(b"a", b"9", 100)]
    )
    assert result.passed
    assert dict(await table.multi_get(hk)) == {b"a": b"9", b"c": b"3"}
    assert 95 <= await table.ttl(hk, b"a") <= 100
    assert await table.ttl(hk, b"c") == -1


async def test_check_and_mutate_does_nothing_if_the_check_fails(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.set(hk, b"a", b"1")
    result = await table.check_and_mutate(
        hk, b"a", Check.BYTES_EQUAL, b"2", [Put(b"b", b"2"), Delete(b"a")], return_check_value=True
    )
    assert (result.passed, result.exists, result.value) == (False, True, b"1")
    assert dict(await table.multi_get(hk)) == {b"a": b"1"}


async def test_of_several_mutations_of_one_key_the_last_stays(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.check_and_mutate(
        hk, b"x", Check.NO_CHECK, b"", [Put(b"a", b"1"), Delete(b"a"), Put(b"a", b"2")]
    )
    assert await table.get(hk, b"a") == b"2"
    await table.check_and_mutate(hk, b"x", Check.NO_CHECK, b"", [Put(b"a", b"3"), Delete(b"a")])
    assert await table.get(hk, b"a") is None


async def test_check_and_mutate_without_mutations_is_refused(
    table: pegaskv.Table, hk: bytes
) -> None:
    with pytest.raises(InvalidArgument):
        await table.check_and_mutate(hk, b"a", Check.NO_CHECK, b"", [])


async def test_compare_exchange_needs_the_expected_value(table: pegaskv.Table, hk: bytes) -> None:
    assert (await table.compare_exchange(hk, b"s", None, b"1")).passed
    lost = await table.compare_exchange(hk, b"s", None, b"2")
    assert (lost.passed, lost.value) == (False, b"1")
    lost = await table.compare_exchange(hk, b"s", b"0", b"2")
    assert (lost.passed, lost.value) == (False, b"1")
    assert (await table.compare_exchange(hk, b"s", b"1", b"2")).passed
    assert await table.get(hk, b"s") == b"2"
    lost = await table.compare_exchange(hk, b"absent", b"1", b"2")
    assert (lost.passed, lost.exists) == (False, False)


async def test_of_many_who_compare_and_exchange_each_value_is_taken_once(
    table: pegaskv.Table, hk: bytes
) -> None:
    await table.set(hk, b"s", b"0")
    wins: list[int] = []

    async def climb() -> None:
        for _ in range(20):
            now = int(await table.get(hk, b"s") or b"0")
            if (await table.compare_exchange(hk, b"s", b"%d" % now, b"%d" % (now + 1))).passed:
                wins.append(now)

    async with TaskScope("climbers") as scope:
        for _ in range(10):
            scope.start("climber", climb())
    assert sorted(wins) == list(range(len(wins)))
    assert await table.get(hk, b"s") == b"%d" % len(wins)
    assert len(wins) >= 20


async def test_no_reader_sees_half_of_a_multi_set(table: pegaskv.Table, hk: bytes) -> None:
    keys = [b"%d" % number for number in range(10)]
    await table.multi_set(hk, dict.fromkeys(keys, b"0"))
    seen: set[bytes] = set()
    done = False

    async def write() -> None:
        nonlocal done
        for number in range(150):
            await table.multi_set(hk, dict.fromkeys(keys, b"%d" % number))
        done = True

    async def read(named: bool) -> None:
        while not done:
            got = await table.multi_get(hk, keys if named else None)
            assert len(got) == 10
            assert len(set(got.values())) == 1, got
            seen.update(got.values())

    async with TaskScope("readers") as scope:
        scope.start("writer", write())
        scope.start("reader", read(True))
        scope.start("reader", read(False))
    assert len(seen) > 3


async def test_atomic_operations_refuse_an_empty_hash_key(table: pegaskv.Table) -> None:
    with pytest.raises(InvalidArgument):
        await table.check_and_set(b"", b"s", Check.NO_CHECK, value=b"1")
    with pytest.raises(InvalidArgument):
        await table.check_and_mutate(b"", b"s", Check.NO_CHECK, b"", [Put(b"a", b"1")])
