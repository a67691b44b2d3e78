import pytest

from pegaskv.base.errors import InvalidArgument, NotReady, TableExists, TableNotFound
from pegaskv.base.types import TableStatus
from pegaskv.meta import tables
from pegaskv.meta.cluster import Change, Cluster, ClusterRecord, TableRecord
from pegaskv.meta.options import RESERVE_SECONDS_MAX, MetaOptions


def cluster_of(*records: TableRecord) -> Cluster:
    cluster = Cluster()
    cluster.apply(Change(ClusterRecord("u", 100), tables=records), 1)
    return cluster


def table(table_id: int, name: str, **fields: object) -> TableRecord:
    record = TableRecord(table_id, name, TableStatus.AVAILABLE, 8, 1)
    return record.changed(**fields)


@pytest.mark.parametrize("name", ["a", "7", "users", "db.table", "A-b_c.d", "x" * 64])
def test_a_name_of_letters_digits_and_few_signs_is_taken(name: str) -> None:
    assert tables.check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".a", "-a", "_a", "a b", "a/b", "ä", "a\n", "x" * 65, "a\x00", "٣"]
)
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        tables.check_name(name)


@pytest.mark.parametrize("count", [1, 2, 64, 1024])
def test_powers_of_two_are_partition_counts(count: int) -> None:
    assert tables.check_partition_count(count) == count


@pytest.mark.parametrize("count", [0, 3, 6, 1023, 2048, 1 << 31])
def test_no_other_number_is_a_partition_count(count: int) -> None:
    with pytest.raises(InvalidArgument, match=f"{count} partitions") as caught:
        tables.check_partition_count(count)
    assert "power of two" in caught.value.hint


def test_replicas_need_as_many_nodes() -> None:
    assert tables.check_replica_count(3, 3) == 3
    with pytest.raises(InvalidArgument, match="1 replica server is alive"):
        tables.check_replica_count(2, 1)
    with pytest.raises(InvalidArgument, match="2 replica servers are alive"):
        tables.check_replica_count(3, 2)
    for count in (0, 6):
        with pytest.raises(InvalidArgument, match=f"{count} replicas"):
            tables.check_replica_count(count, 9)
    with pytest.raises(NotReady):
        tables.check_replica_count(1, 0)


def test_a_missing_table_is_named_with_the_nearest_one() -> None:
    cluster = cluster_of(table(1, "users"), table(2, "orders"))
    with pytest.raises(TableNotFound, match="`usres`") as caught:
        tables.find(cluster, "usres")
    assert caught.value.hint == "did you mean `users`?"
    with pytest.raises(TableNotFound) as caught:
        tables.find(cluster, "zzz")
    assert "`ls`" in caught.value.hint
    with pytest.raises(TableNotFound) as caught:
        tables.find(Cluster(), "users")
    assert "create" in caught.value.hint


def test_a_dropped_table_is_named_with_how_to_bring_it_back() -> None:
    gone = {"status": TableStatus.DROPPED, "expires_at": 1_700_000_000}
    cluster = cluster_of(table(4, "users", **gone), table(5, "users", **gone))
    with pytest.raises(TableNotFound) as caught:
        tables.find(cluster, "users")
    assert "`recall 5`" in caught.value.hint
    assert "2023-11-14 22:13:20 UTC" in caught.value.hint


def test_only_a_dropped_table_in_its_time_can_return() -> None:
    gone = {"status": TableStatus.DROPPED, "expires_at": 100}
    cluster = cluster_of(
        table(1, "here"), table(2, "gone", **gone), table(3, "going", purging=True, **gone)
    )
    assert tables.recallable(cluster, 2, 99).name == "gone"
    with pytest.raises(TableNotFound, match="cannot be recalled"):
        tables.recallable(cluster, 2, 100)
    with pytest.raises(TableNotFound, match="cannot be recalled"):
        tables.recallable(cluster, 3, 1)
    with pytest.raises(TableExists, match="`here`"):
        tables.recallable(cluster, 1, 1)
    with pytest.raises(TableNotFound) as caught:
        tables.recallable(cluster, 9, 1)
    assert caught.value.hint == "dropped and kept: 2 (`gone`)"


def test_differences_are_said_in_words() -> None:
    record = table(1, "users", envs={"default_ttl": "60"})
    assert tables.differences(record, 8, 1, {"default_ttl": "60"}) == []
    assert tables.differences(record, 16, 3, {"durability": "os"}) == [
        "its partition count is 8, not 16",
        "its replica count is 1, not 3",
        "env default_ttl is 60, not unset",
        "env durability is not set, not os",
    ]


def test_a_reserve_time_has_a_default_and_bounds() -> None:
    options = MetaOptions(drop_reserve_seconds=60)
    assert tables.reserve_seconds(-1, options) == 60
    assert tables.reserve_seconds(0, options) == 0
    assert tables.reserve_seconds(RESERVE_SECONDS_MAX, options) == RESERVE_SECONDS_MAX
    for wanted in (-2, RESERVE_SECONDS_MAX + 1):
        with pytest.raises(InvalidArgument):
            tables.reserve_seconds(wanted, options)


def test_a_cluster_has_room_for_so_many_tables_and_partitions() -> None:
    cluster = cluster_of(table(1, "a"), table(2, "b"))
    with pytest.raises(InvalidArgument, match="2 tables"):
        tables.check_room(cluster, 1, MetaOptions(tables_max=2))
    with pytest.raises(InvalidArgument, match="limit of 8"):
        tables.check_room(cluster, 16, MetaOptions(partitions_max=8))
    tables.check_room(cluster, 8, MetaOptions(tables_max=3, partitions_max=8))
