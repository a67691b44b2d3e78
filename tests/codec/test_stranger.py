"""A client that was written from the document alone, against a real server."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.process import ServerProcess, running_server
from tests.codec.stranger import (
    Stranger,
    stranger_encode,
    stranger_end,
    stranger_key,
    stranger_partition,
)

pytestmark = pytest.mark.process

VECTORS: dict[str, list[dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "protocol_vectors.json").read_text()
)
BROKEN = VECTORS["Frames that close the connection"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running_server(tmp_path_factory.mktemp("stranger")) as process:
        yield process


@pytest.fixture
def stranger(server: ServerProcess) -> Iterator[Stranger]:
    client = Stranger(server.address)
    status, version, *_ = client.call(0, 1, 1, "stranger 1", 0, [], [])
    assert (status, version) == (0, 1)
    yield client
    client.close()


@pytest.fixture
def table(stranger: Stranger) -> tuple[int, int]:
    """(table id, partition count) of a table that is there."""
    status, made, *_ = stranger.call(61, "strange", 4, 0, {}, "same")
    assert status == 0
    status, table_id, count, _version, partitions, *_ = stranger.call(60, "strange")
    assert (status, table_id, count) == (0, made["table_id"], 4)
    assert [partition[0] for partition in partitions] == [0, 1, 2, 3]
    assert all(type(partition[2]) is str for partition in partitions)
    return table_id, count


def test_hello_tells_who_the_server_is_and_its_limits(server: ServerProcess) -> None:
    client = Stranger(server.address)
    status, version, software, name, cluster, uuid, node, features, mechanisms, limits = (
        client.call(0, 1, 9, "stranger 1", 0, [], [])
    )
    client.close()
    assert (status, version, cluster, features, mechanisms) == (0, 1, 1, [], [])
    assert all(type(text) is str and text for text in (software, name, uuid, node))
    assert limits["frame_bytes_max"] == 16 * 1024 * 1024


def test_hello_for_another_version_or_cluster_is_refused(server: ServerProcess) -> None:
    refused = [(7, 9, "stranger 1", 0, [], []), (1, 1, "stranger 1", 99, [], [])]
    clients = [Stranger(server.address) for _ in refused]
    for client, fields in zip(clients, refused, strict=True):
        assert client.call(0, *fields)[0] == 1
    for client in clients:
        with pytest.raises(EOFError):
            client.receive()
        client.close()


def test_a_ping_tells_the_time_in_microseconds(stranger: Stranger) -> None:
    status, wall_us = stranger.call(1)
    assert status == 0
    assert abs(wall_us / 1_000_000 - datetime.now(UTC).timestamp()) < 60


def test_rows_are_set_read_and_deleted_where_the_hash_says(
    stranger: Stranger, table: tuple[int, int]
) -> None:
    table_id, count = table
    seen = set()
    for number in range(20):
        key = b"row %d" % number
        place = (table_id, stranger_partition(key, b"", count))
        seen.add(place)
        assert stranger.call(30, *place, key, b"sort", b"value", 0)[0] == 0
        assert stranger.call(10, *place, key, b"sort") == [0, b"value"]
        assert stranger.call(11, *place, key, b"sort") == [0, -1]
        assert stranger.call(31, *place, key, b"sort")[0] == 0
        assert stranger.call(10, *place, key, b"sort") == [0, None]
        assert stranger.call(11, *place, key, b"sort") == [0, -2]
    assert len(seen) == count


def test_a_row_at_the_wrong_partition_is_answered_with_refresh(
    stranger: Stranger, table: tuple[int, int]
) -> None:
    table_id, count = table
    wrong = (stranger_partition(b"hash", b"", count) + 1) % count
    assert stranger.call(10, table_id, wrong, b"hash", b"sort")[0] == 12
    assert stranger.call(10, table_id, count, b"hash", b"sort")[0] == 10
    assert stranger.call(10, table_id + 999, 0, b"hash", b"sort")[0] in (10, 40)


def test_an_empty_hash_key_is_placed_by_the_sort_key(
    stranger: Stranger, table: tuple[int, int]
) -> None:
    table_id, count = table
    place = (table_id, stranger_partition(b"", b"alone", count))
    assert stranger.call(30, *place, b"", b"alone", b"value", 0)[0] == 0
    assert stranger.call(10, *place, b"", b"alone") == [0, b"value"]


def test_one_hash_key_is_read_and_scanned_in_order(
    stranger: Stranger, table: tuple[int, int]
) -> None:
    table_id, count = table
    place = (table_id, stranger_partition(b"list", b"", count))
    rows = [b"c", b"3", b"a", b"1", b"b", b""]
    assert stranger.call(32, *place, b"list", rows, 0)[0] == 0
    fields = (b"list", None, b"", b"", 1, 0, b"")
    expected = [b"a", b"1", b"b", b"", b"c", b"3"]
    assert stranger.call(12, *place, *fields, 0, 0) == [0, True, expected, None]
    assert stranger.call(12, *place, *fields, 2, 0) == [0, False, expected[:4], b"b"]
    start = stranger_key(b"list", b"")
    stop = stranger_key(b"list", b"\xff")
    scan = (start, stop, 2, 0, b"", 0, b"", 0, b"", 0, 0)
    status, going_on, number, flat = stranger.call(14, *place, *scan)
    assert (status, going_on, number) == (0, None, 3)
    assert flat[:3] == [stranger_key(b"list", b"a"), b"1", 0]
    status, going_on, number, flat = stranger.call(14, *place, *scan[:-2], 1, 0)
    assert (status, going_on, number) == (0, stranger_key(b"list", b"b"), 1)


def test_atomic_operations_answer_as_the_document_says(
    stranger: Stranger, table: tuple[int, int]
) -> None:
    table_id, count = table
    place = (table_id, stranger_partition(b"atom", b"", count))
    assert stranger.call(33, *place, b"atom", [b"n", b"lock"])[2:] == [2]
    assert stranger.call(34, *place, b"atom", b"n", 5, 0)[2:] == [5]
    assert stranger.call(34, *place, b"atom", b"n", -7, 0)[2:] == [-2]
    lock = (b"atom", b"lock", 1, b"", None, b"me", 30, True)
    assert stranger.call(35, *place, *lock)[2:] == [True, False, None]
    assert stranger.call(35, *place, *lock)[2:] == [False, True, b"me"]
    mutations = [[1, b"n", b"9", 0], [2, b"lock"]]
    both = (b"atom", b"lock", 10, b"me", mutations, False)
    assert stranger.call(36, *place, *both)[2:] == [True, None, None]
    assert stranger.call(13, *place, [b"atom", b"n", b"atom", b"lock"]) == [0, [b"9", None]]


def test_many_messages_in_one_frame_are_all_answered(
    stranger: Stranger, table: tuple[int, int]
) -> None:
    table_id, count = table
    place = (table_id, stranger_partition(b"many", b"", count))
    messages = [
        [1_000 + number, 30, 5000, *place, b"many", b"%d" % number, b"", 0] for number in range(300)
    ]
    stranger.send(stranger_encode(messages))
    answered: set[int] = set()
    while len(answered) < 300:
        for reply in stranger.receive():
            assert reply[1] == 0
            answered.add(reply[0])
    assert answered == {message[0] for message in messages}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ([5, 99, 5000], 3),
        ([5, 10, 5000], 1),
        ([5, 30, 5000, 1, 0, b"h", b"s", b"v"], 1),
        ([5, 60, 5000, b"bytes"], 1),
        ([5, 60, 5000, "no such table"], 40),
        ([5], 1),
    ],
    ids=str,
)
def test_a_wrong_message_is_answered_by_its_id(
    stranger: Stranger, message: list[Any], code: int
) -> None:
    stranger.send(stranger_encode([message]))
    (reply,) = stranger.receive()
    assert reply[:2] == [5, code]
    assert len(reply) == 5
    assert stranger.call(1)[0] == 0


def test_types_are_exact_and_unknown_flags_are_refused(
    stranger: Stranger, table: tuple[int, int]
) -> None:
    table_id, count = table
    # A partition with index 1, since True equals 1.
    key = next(b"%d" % i for i in range(99) if stranger_partition(b"%d" % i, b"", count) == 1)
    assert stranger.call(30, table_id, 1, key, b"s", b"v", 0)[0] == 0
    start = stranger_key(key, b"")
    reads: dict[int, list[Any]] = {
        10: [key, b"s"],
        11: [key, b"s"],
        12: [key, None, b"", b"", 1, 0, b"", 0, 0],
        13: [[key, b"s"]],
        14: [start, stranger_end(start), 0, 0, b"", 0, b"", 0, b"", 0, 0],
    }
    for operation, fields in reads.items():
        assert stranger.call(operation, table_id, 1, *fields)[0] == 0
        for target in ((table_id, True), (table_id, 1.0), (float(table_id), 1)):
            assert stranger.call(operation, *target, *fields)[0] == 1, (operation, target)
    writes: dict[int, list[Any]] = {
        30: [key, b"s", b"w", 0],
        31: [key, b"s"],
        32: [key, [b"s", b"w"], 0],
        33: [key, [b"s"]],
        34: [key, b"n", 1, 0],
        35: [key, b"s", 0, b"", None, b"w", 0, False],
        36: [key, b"s", 0, b"", [[1, b"s", b"w", 0]], False],
        37: [[key, b"s", b"w"], 0],
        38: [[key, b"s"]],
    }
    for operation, fields in writes.items():
        for target in ((table_id, True), (table_id, 1.0), (float(table_id), 1)):
            assert stranger.call(operation, *target, *fields)[0] == 1, (operation, target)
    for mutation in ([True, b"s", b"w", 0], [1.0, b"s", b"w", 0], [2.0, b"s"]):
        assert stranger.call(36, table_id, 1, key, b"s", 0, b"", [mutation], False)[0] == 1
    assert stranger.call(10, table_id, 1, key, b"s") == [0, b"v"]
    for operation, at, known in ((12, 4, 15), (14, 2, 7)):
        for flags, code in ((known, 0), (known + 1, 1), (1 << 40, 1), (-1, 1), (True, 1)):
            fields = list(reads[operation])
            fields[at] = flags
            assert stranger.call(operation, table_id, 1, *fields)[0] == code, (operation, flags)


def test_broken_frames_close_their_connections_and_no_others(
    server: ServerProcess, stranger: Stranger
) -> None:
    # Side by side, since a server lingers for a moment before it closes.
    others = [Stranger(server.address) for _ in BROKEN]
    for other, case in zip(others, BROKEN, strict=True):
        assert other.call(0, 1, 1, "other", 0, [], [])[0] == 0
        other.send(bytes.fromhex(case["hex"]))
    assert stranger.call(1)[0] == 0
    for other in others:
        (farewell,) = other.receive()
        assert farewell[:2] == [0, 1]
        with pytest.raises(EOFError):
            other.receive()
        other.close()
    assert stranger.call(1)[0] == 0
