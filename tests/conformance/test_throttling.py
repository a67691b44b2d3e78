"""Throttled tables as their users see them (pegasus.md 2.2, 6)."""

import asyncio

import pytest

import pegaskv
from pegaskv.errors import Busy, InvalidArgument
from pegaskv.runtime.tasks import TaskScope
from tests.conformance.conftest import NewTable


async def outcomes(table: pegaskv.Table, count: int, *, read: bool = False) -> list[str]:
    """Ask for `count` rows at once; return `ok`, or the hint of each refusal."""
    found = []

    async def one(number: int) -> None:
        try:
            if read:
                await table.get(b"h", b"%d" % number)
            else:
                await table.set(b"h", b"%d" % number, b"v")
        except Busy as error:
            found.append(error.hint)
        else:
            found.append("ok")

    async with TaskScope("askers") as scope:
        for number in range(count):
            scope.start("asker", one(number))
    return found


@pytest.mark.parametrize("read", [False, True], ids=["write", "read"])
async def test_what_is_above_a_reject_limit_is_refused_with_the_env_and_its_rows_untouched(
    client: pegaskv.Client, new_table: NewTable, read: bool
) -> None:
    table = await new_table(1)
    env = "replica.read_throttling" if read else "replica.write_throttling"
    await client.admin.set_envs(table.name, {env: "5*reject*50"})
    found = await outcomes(table, 40, read=read)
    # They may fall into two seconds.
    assert 5 <= found.count("ok") <= 10
    assert len(found) == 40
    refused = {each for each in found if each != "ok"}
    assert all(f"{env}=5*reject*50" in hint for hint in refused)
    if not read:
        assert await table.count() == found.count("ok")
    # At once, too, when it is taken back.
    await client.admin.delete_envs(table.name, [env])
    assert await outcomes(table, 40, read=read) == ["ok"] * 40


async def test_what_is_above_a_delay_limit_comes_later_and_nothing_is_refused(
    client: pegaskv.Client, new_table: NewTable
) -> None:
    table = await new_table(1, **{"replica.write_throttling": "5*delay*300"})
    clock = asyncio.get_running_loop().time
    began = clock()
    assert await outcomes(table, 20) == ["ok"] * 20
    assert clock() - began >= 0.3
    assert await table.count() == 20


async def test_large_values_are_throttled_by_size_both_ways(
    client: pegaskv.Client, new_table: NewTable
) -> None:
    table = await new_table(1, **{"replica.write_throttling_by_size": "10K*reject*0"})
    found = 0
    for number in range(12):
        try:
            await table.set(b"h", b"%d" % number, b"v" * 5_000)
        except Busy:
            found += 1
    assert found >= 4
    await client.admin.set_envs(table.name, {"replica.read_throttling_by_size": "1K"})
    refusals = []
    for _ in range(10):
        try:
            await table.get(b"h", b"0")
        except Busy as error:
            refusals.append(str(error))
    assert refusals
    assert all("`replica.read_throttling_by_size`" in text for text in refusals)


@pytest.mark.parametrize("value", ["500", "500*delay", "500*stop*1", "0*reject*1", "1*reject*1,"])
async def test_a_rule_that_is_none_is_refused_with_an_example(
    client: pegaskv.Client, new_table: NewTable, value: str
) -> None:
    table = await new_table(1)
    with pytest.raises(
        InvalidArgument, match=r"env `replica\.write_throttling` cannot be"
    ) as caught:
        await client.admin.set_envs(table.name, {"replica.write_throttling": value})
    assert "replica.write_throttling=20000*delay*100" in caught.value.hint
    assert await client.admin.get_envs(table.name) == {}
