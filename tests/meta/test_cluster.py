from typing import Any

import pytest

from pegaskv.base.errors import CorruptionError, UnsupportedFormat
from pegaskv.base.types import Gpid, TableStatus
from pegaskv.codec.packing import pack, unpack
from pegaskv.meta.cluster import Change, Cluster, ClusterRecord, PartitionRecord, TableRecord

TABLE = TableRecord(
    3,
    "users",
    TableStatus.DROPPED,
    4,
    3,
    {"default_ttl": "60"},
    created_at=10,
    dropped_at=20,
    expires_at=30,
    version=7,
    purging=True,
)
PARTITION = PartitionRecord(Gpid(3, 1), 9, "n1", ("n2", "n3"))


def stored(*changes: Change) -> dict[str, tuple[bytes, int]]:
    return {
        key: (value, revision)
        for revision, change in enumerate(changes, 1)
        for key, value in change.puts().items()
    }


def with_fields(value: bytes, **fields: Any) -> bytes:
    return pack({**unpack(value), **fields})


def test_records_are_read_as_they_were_written() -> None:
    records = stored(Change(ClusterRecord("uuid", 12), (TABLE,), (PARTITION,)))
    assert set(records) == {"cluster", "tables/3", "partitions/3/1"}
    cluster = Cluster.load(records)
    assert cluster.record == ClusterRecord("uuid", 12)
    assert cluster.tables == {3: TABLE}
    assert cluster.partitions == {3: {1: PARTITION}}
    assert cluster.partition_count == 1
    assert cluster.members(3) == ["n1", "n2", "n3"]
    assert cluster.problems == []
    assert cluster.dump() == {key: value for key, (value, _) in records.items()}


def test_fields_of_newer_software_are_kept_when_a_record_is_written_again() -> None:
    records = stored(Change(ClusterRecord("uuid", 12), (TABLE,), (PARTITION,)))
    for key, (value, revision) in list(records.items()):
        records[key] = (with_fields(value, of_tomorrow=[1, {"x": b"y"}]), revision)
    cluster = Cluster.load(records)
    assert cluster.record is not None
    changed = Change(
        ClusterRecord("uuid", 13, unknown=cluster.record.unknown),
        (cluster.tables[3].changed(name="people"),),
        (cluster.partitions[3][1],),
    )
    cluster.apply(changed, 5)
    for value in cluster.dump().values():
        assert unpack(value)["of_tomorrow"] == [1, {"x": b"y"}]
    assert unpack(cluster.dump()["tables/3"])["name"] == "people"


def test_keys_of_newer_software_are_left_alone() -> None:
    records = stored(Change(ClusterRecord("uuid", 12)))
    records["quotas/7"] = (b"\xc1 not even msgpack", 3)
    cluster = Cluster.load(records)
    assert set(cluster.dump()) == {"cluster"}


def test_a_record_of_another_format_is_refused_by_name() -> None:
    records = stored(Change(tables=(TABLE,)))
    value, revision = records["tables/3"]
    records["tables/3"] = (with_fields(value, format=2), revision)
    with pytest.raises(UnsupportedFormat, match=r"`tables/3` has format 2"):
        Cluster.load(records)
    records["tables/3"] = (with_fields(value, status="splitting"), revision)
    with pytest.raises(UnsupportedFormat, match="splitting"):
        Cluster.load(records)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cluster", b""),
        ("cluster", pack([])),
        ("cluster", pack({"format": 1, "uuid": "u"})),
        ("cluster", pack({"format": 1, "uuid": "u", "next_table_id": True})),
        ("tables/x", TABLE.pack()),
        ("tables/1", pack({"format": 1, "name": "a", "status": "dropped"})),
        ("tables/1", with_fields(TABLE.pack(), envs={"a": 1})),
        ("tables/1", with_fields(TABLE.pack(), envs=[])),
        ("tables/1", with_fields(TABLE.pack(), version=-1)),
        ("partitions/1", PARTITION.pack()),
        ("partitions/1/2", with_fields(PARTITION.pack(), secondaries=7)),
        ("partitions/1/2", with_fields(PARTITION.pack(), primary=7)),
    ],
)
def test_bytes_that_are_no_record_are_refused_by_key(key: str, value: bytes) -> None:
    with pytest.raises(CorruptionError, match=f"`{key}`"):
        Cluster.load({key: (value, 1)})


def test_a_field_that_older_software_did_not_write_has_a_default() -> None:
    fields = unpack(TABLE.pack())
    for name in ("purging", "envs", "created_at", "dropped_at", "expires_at"):
        del fields[name]
    cluster = Cluster.load({"tables/3": (pack(fields), 1)})
    assert cluster.tables[3] == TableRecord(3, "users", TableStatus.DROPPED, 4, 3, version=7)


def test_records_that_make_no_sense_together_are_named_and_served_as_far_as_they_go() -> None:
    here = TableRecord(1, "users", TableStatus.AVAILABLE, 2, 1)
    twin = TableRecord(2, "users", TableStatus.AVAILABLE, 1, 1)
    cluster = Cluster.load(
        stored(
            Change(
                ClusterRecord("uuid", 1),
                (twin, here),
                (
                    PartitionRecord(Gpid(1, 0), 1, "n"),
                    PartitionRecord(Gpid(1, 5), 1, "n"),
                    PartitionRecord(Gpid(2, 0), 1, "n"),
                    PartitionRecord(Gpid(9, 0), 1, "n"),
                ),
            )
        )
    )
    assert cluster.named("users") == here
    assert cluster.next_table_id == 3
    assert cluster.missing(here) == [1]
    assert cluster.partition_count == 2
    assert len(cluster.problems) == 4
    # And it can be changed: the twin gets a name of its own.
    cluster.apply(Change(ClusterRecord("uuid", 3), (twin.changed(name="other"),)), 2)
    assert cluster.named("users") == here
    assert cluster.named("other") is not None


def test_a_change_is_guarded_by_all_that_it_touches() -> None:
    cluster = Cluster.load(stored(Change(ClusterRecord("u", 4)), Change(tables=(TABLE,))))
    change = Change(
        ClusterRecord("u", 5), (TABLE,), (PARTITION,), (Gpid(3, 0),), removed_table=None
    )
    assert cluster.guards(change) == (
        ("cluster", 1),
        ("tables/3", 2),
        ("partitions/3/1", 0),
        ("partitions/3/0", 0),
    )
    cluster.apply(Change(partitions=(PARTITION,)), 3)
    assert cluster.guards(Change(removed_partitions=(Gpid(3, 1),))) == (("partitions/3/1", 3),)
    removal = Change(removed_partitions=(Gpid(3, 1),), removed_table=3)
    assert removal.deletes() == ("partitions/3/1", "tables/3")
    cluster.apply(removal, 4)
    assert cluster.tables == {}
    assert cluster.partition_count == 0
    assert cluster.guards(removal) == (("partitions/3/1", 0), ("tables/3", 0))
