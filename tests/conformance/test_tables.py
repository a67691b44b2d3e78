"""Table administration: create, drop, recall, rename, list, envs (pegasus.md 2)."""

import pytest

import pegaskv
from pegaskv.errors import InvalidArgument, RequestError, TableExists, TableNotFound
from tests.conformance.conftest import NewTable


async def test_a_new_table_can_be_written_at_once(client: pegaskv.Client, run_name: str) -> None:
    name = f"{run_name}_at_once"
    info = await client.admin.create_table(name, partition_count=16)
    table = await client.table(name)
    for number in range(64):
        await table.set(b"%d" % number, b"s", b"v")
    assert info.name == name
    assert info.partition_count == 16
    await client.admin.drop_table(name)


async def test_creating_a_table_twice_is_table_exists(
    client: pegaskv.Client, new_table: NewTable
) -> None:
    table = await new_table(4)
    with pytest.raises(TableExists, match=table.name):
        await client.admin.create_table(table.name, partition_count=4)
    same = await client.admin.create_table(table.name, partition_count=4, if_exists="same")
    assert same.name == table.name
    with pytest.raises(TableExists, match="8"):
        await client.admin.create_table(table.name, partition_count=8, if_exists="same")


@pytest.mark.parametrize("count", [0, -1, 3, 7, 100, 1 << 20])
async def test_partition_counts_are_powers_of_two_within_the_limit(
    client: pegaskv.Client, run_name: str, count: int
) -> None:
    with pytest.raises(InvalidArgument):
        await client.admin.create_table(f"{run_name}_bad", partition_count=count)
    with pytest.raises(TableNotFound):
        await client.admin.table_info(f"{run_name}_bad")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "-a", ".a", "a b", "a\n", "ä", "x" * 65, "a\x00"]
)
async def test_names_that_could_not_be_typed_or_stored_are_refused(
    client: pegaskv.Client, name: str
) -> None:
    with pytest.raises(InvalidArgument):
        await client.admin.create_table(name)


async def test_a_dropped_table_is_gone_and_comes_back_with_its_rows(
    client: pegaskv.Client, run_name: str
) -> None:
    name = f"{run_name}_recalled"
    info = await client.admin.create_table(name, partition_count=4)
    table = await client.table(name)
    await table.batch_set([(b"%d" % number, b"s", b"v") for number in range(100)])
    await client.admin.drop_table(name)
    with pytest.raises(TableNotFound):
        await (await client.table(name)).get(b"1", b"s")
    assert name not in [entry.name for entry in await client.admin.list_tables()]
    await client.admin.recall_table(info.table_id)
    again = await client.table(name)
    assert await again.count() == 100
    await again.set(b"new", b"s", b"v")
    await client.admin.drop_table(name, reserve_seconds=0)


async def test_an_open_table_notices_that_it_was_dropped(
    client: pegaskv.Client, run_name: str
) -> None:
    name = f"{run_name}_noticed"
    await client.admin.create_table(name)
    table = await client.table(name)
    await table.set(b"h", b"s", b"v")
    await client.admin.drop_table(name)
    with pytest.raises(TableNotFound):
        await table.get(b"h", b"s")
    with pytest.raises(TableNotFound):
        await table.set(b"h", b"s", b"v")


async def test_a_dropped_name_is_free_and_recall_takes_another(
    client: pegaskv.Client, run_name: str
) -> None:
    name = f"{run_name}_name"
    old = await client.admin.create_table(name)
    await (await client.table(name)).set(b"h", b"s", b"old")
    await client.admin.drop_table(name)
    new = await client.admin.create_table(name)
    assert new.table_id != old.table_id
    assert await (await client.table(name)).get(b"h", b"s") is None
    with pytest.raises(RequestError):
        await client.admin.recall_table(old.table_id)
    await client.admin.recall_table(old.table_id, f"{name}_2")
    assert await (await client.table(f"{name}_2")).get(b"h", b"s") == b"old"
    for left in (name, f"{name}_2"):
        await client.admin.drop_table(left, reserve_seconds=0)


async def test_dropping_and_recalling_what_is_not_there_is_table_not_found(
    client: pegaskv.Client,
) -> None:
    with pytest.raises(TableNotFound):
        await client.admin.drop_table("no_such_table")
    with pytest.raises(TableNotFound):
        await client.admin.recall_table(99_999)
    with pytest.raises(TableNotFound):
        await client.admin.rename_table("no_such_table", "other")


async def test_rename_keeps_the_rows_and_frees_the_old_name(
    client: pegaskv.Client, run_name: str
) -> None:
    old, new = f"{run_name}_old", f"{run_name}_new"
    await client.admin.create_table(old)
    await (await client.table(old)).set(b"h", b"s", b"v")
    await client.admin.rename_table(old, new)
    assert await (await client.table(new)).get(b"h", b"s") == b"v"
    with pytest.raises(TableNotFound):
        await client.admin.table_info(old)
    await client.admin.create_table(old)
    with pytest.raises(RequestError):
        await client.admin.rename_table(old, new)
    for name in (old, new):
        await client.admin.drop_table(name, reserve_seconds=0)


async def test_envs_are_set_listed_deleted_and_cleared(
    client: pegaskv.Client, new_table: NewTable
) -> None:
    table = await new_table()
    await client.admin.set_envs(table.name, {"default_ttl": "10", "durability": "os"})
    assert await client.admin.get_envs(table.name) == {"default_ttl": "10", "durability": "os"}
    await client.admin.delete_envs(table.name, ["default_ttl"])
    assert await client.admin.get_envs(table.name) == {"durability": "os"}
    await client.admin.clear_envs(table.name)
    assert await client.admin.get_envs(table.name) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("default_tll", "10"), ("default_ttl", "-1"), ("default_ttl", "x"), ("durability", "maybe")],
)
async def test_envs_are_checked_by_name_and_value(
    client: pegaskv.Client, new_table: NewTable, name: str, value: str
) -> None:
    table = await new_table()
    with pytest.raises(InvalidArgument, match=name):
        await client.admin.set_envs(table.name, {name: value})
    assert await client.admin.get_envs(table.name) == {}


async def test_durability_can_change_under_load(
    client: pegaskv.Client, new_table: NewTable
) -> None:
    table = await new_table(4)
    for round_number, durability in enumerate(("os", "fsync", "os", "fsync")):
        await client.admin.set_envs(table.name, {"durability": durability})
        await table.batch_set(
            [(b"%d" % number, b"%d" % round_number, b"v") for number in range(50)]
        )
    assert await table.count() == 200


async def test_table_info_shows_every_partition(
    client: pegaskv.Client, new_table: NewTable
) -> None:
    table = await new_table(8)
    detail = await client.admin.table_info(table.name)
    assert [partition.index for partition in detail.partitions] == list(range(8))
    assert all(partition.ballot >= 1 for partition in detail.partitions)


async def test_the_cluster_and_its_nodes_can_be_asked(client: pegaskv.Client) -> None:
    assert await client.admin.cluster_info()
    assert len(await client.admin.nodes()) >= 1
