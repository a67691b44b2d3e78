"""What is stored of duplications is read again, whole, by this software and the next."""

from typing import Any

import pytest

from pegaskv.base.errors import CorruptionError, UnsupportedFormat
from pegaskv.base.types import DuplicationStatus, FailMode, TableStatus
from pegaskv.codec.messages_duplication import PartitionProgress, SourceOrder
from pegaskv.codec.packing import pack, unpack
from pegaskv.meta.cluster import Change, Cluster, ClusterRecord, TableRecord
from pegaskv.meta.duplications import Entry, Progress, Source, merged_progress
from pegaskv.meta.remotes import RemoteClusterInfo, RemoteRecord

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
APP, LOG = DuplicationStatus.DS_APP, DuplicationStatus.DS_LOG

SOURCE = Source(SourceOrder(C, 9, "uuid", "omega", 5), 3, 4)
TABLE = TableRecord(
    7,
    "t",
    TableStatus.AVAILABLE,
    2,
    1,
    follower=True,
    sources=(SOURCE,),
    source_clusters={9: "uuid"},
)
ENTRY = Entry(
    7,
    100,
    A,
    "beta",
    2,
    "t",
    "create",
    fail_mode=FailMode.SKIP,
    created_at=5,
    earlier=((B, True),),
    remote_table_id=6,
)
REMOVED = ENTRY.changed(dupid=101, uuid=C, removed_at=9, untold=(C, B))
PROGRESS = Progress(7, 100, A, PartitionProgress(1, APP, 3, 4, 5, b"key", 6, 2))
REMOTE = RemoteRecord(RemoteClusterInfo("beta", "h:1", 2, "me", "/file"))
WHOLE = Change(ClusterRecord("u", 8, 101), (TABLE,), book=(ENTRY, REMOVED, PROGRESS, REMOTE))


def stored(change: Change) -> dict[str, tuple[bytes, int]]:
    return {key: (value, 1) for key, value in change.puts().items()}


def test_everything_is_read_as_it_was_written() -> None:
    cluster = Cluster.load(stored(WHOLE))
    assert cluster.tables[7] == TABLE
    assert list(cluster.book.records()) == [ENTRY, REMOVED, PROGRESS, REMOTE]
    assert cluster.record == ClusterRecord("u", 8, 101)
    assert cluster.dump() == WHOLE.puts()
    assert set(WHOLE.puts()) == {
        "cluster",
        "tables/7",
        "duplications/7/100",
        "duplications/7/101",
        "progress/7/100/1",
        "clusters/beta",
    }


def test_fields_of_newer_software_are_kept() -> None:
    records = {}
    for key, (value, revision) in stored(WHOLE).items():
        fields = {**unpack(value), "of_tomorrow": key}
        for source in fields.get("sources", []):
            source["of_tomorrow"] = True
        records[key] = (pack(fields), revision)
    dumped = Cluster.load(records).dump()
    assert {key: unpack(value)["of_tomorrow"] for key, value in dumped.items()} == {
        key: key for key in WHOLE.puts()
    }
    assert unpack(dumped["tables/7"])["sources"][0]["of_tomorrow"] is True
    assert unpack(SOURCE.ended().to_map() and pack(SOURCE.ended().to_map()))["ended"] is True


def test_a_table_of_before_duplications_has_none() -> None:
    fields = unpack(TABLE.pack())
    for name in ("follower", "sources", "source_clusters"):
        del fields[name]
    table = Cluster.load({"tables/7": (pack(fields), 1)}).tables[7]
    assert (table.follower, table.sources, table.source_clusters) == (False, (), {})


@pytest.mark.parametrize("key", [one for one in WHOLE.puts() if one != "cluster"])
def test_a_record_of_a_newer_format_is_refused_by_name(key: str) -> None:
    fields = {**unpack(WHOLE.puts()[key]), "format": 99}
    with pytest.raises(UnsupportedFormat, match=f"`{key}` has format 99"):
        Cluster.load({key: (pack(fields), 1)})


@pytest.mark.parametrize(
    ("key", "field", "word"),
    [
        ("duplications/7/100", "status", "DS_NEW"),
        ("duplications/7/100", "fail_mode", "ask"),
        ("progress/7/100/1", "status", "DS_NEW"),
    ],
)
def test_a_word_of_newer_software_is_refused_by_name(key: str, field: str, word: str) -> None:
    fields = {**unpack(WHOLE.puts()[key]), field: word}
    with pytest.raises(UnsupportedFormat, match=f"'{word}'"):
        Cluster.load({key: (pack(fields), 1)})


WRONG: list[Any] = [None, -1, 1.5, b"x", "x" * 3, [1], {}]


@pytest.mark.parametrize(
    "key", [one for one in WHOLE.puts() if not one.startswith(("tab", "cluster"))]
)
def test_bytes_that_are_no_record_are_refused_with_their_key(key: str) -> None:
    good = unpack(WHOLE.puts()[key])
    tried = refused = 0
    for name in good:
        for wrong in WRONG:
            if type(wrong) is type(good[name]) or (name == "format"):
                continue
            tried += 1
            try:
                Cluster.load({key: (pack({**good, name: wrong}), 1)})
            except CorruptionError as error:
                refused += f"`{key}`" in str(error)
            except UnsupportedFormat:
                refused += 1
    assert tried > 20
    assert refused == tried
    for wrong_key in (key + "/x", key + "/"):
        if not wrong_key.startswith("clusters/"):
            with pytest.raises(CorruptionError):
                Cluster.load({wrong_key: (pack(good), 1)})


def test_any_part_of_the_records_can_be_loaded() -> None:
    """What a restored store may lack is no reason not to start."""
    whole = stored(WHOLE)
    for left_out in whole:
        cluster = Cluster.load({key: one for key, one in whole.items() if key != left_out})
        cluster.orders(7) if 7 in cluster.tables else None
        assert cluster.dump().keys() == whole.keys() - {left_out}
    assert [
        one.key
        for one in Cluster.load({"progress/7/100/1": whole["progress/7/100/1"]}).book.orphans()
    ] == ["progress/7/100/1"]


def test_progress_only_grows() -> None:
    low = PartitionProgress(1, APP, 3, 4, 5, b"b")
    assert merged_progress(low, PartitionProgress(1, APP, 9, 2, 9, b"a")) == PartitionProgress(
        1, APP, 3, 4, 9, b"b"
    )
    assert merged_progress(low, PartitionProgress(1, LOG, 3, 6, 1)) == PartitionProgress(
        1, LOG, 3, 6, 5, b""
    )
    new = PartitionProgress(1, LOG, 3, 6, 6)
    assert merged_progress(PartitionProgress(1), new) == new


def test_orders_say_what_is_stored() -> None:
    cluster = Cluster.load(stored(WHOLE))
    old, now, removed_old, removed = cluster.orders(7)
    assert (old.uuid, old.ended, old.broken) == (B, True, True)
    assert (now.uuid, now.metas, now.user, now.password_file) == (A, "h:1", "me", "/file")
    assert (now.remote_table_id, now.ended) == (0, False), "known, and not ensured yet"
    assert now.progress == (PROGRESS.partition,)
    assert (removed_old.uuid, removed_old.ended, removed_old.broken) == (B, True, False)
    assert (removed.uuid, removed.ended, removed.broken) == (C, True, False)
