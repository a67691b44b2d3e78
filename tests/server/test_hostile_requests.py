"""Requests that are well framed and wrong inside, to every operation of a real server.

Whatever the fields are, each request is answered by its id; no handler is surprised, no
connection is lost, and a polite client is served before, between and after.
"""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import pegaskv
from pegaskv.base.errors import InternalError
from pegaskv.base.limits import HASH_KEY_BYTES_MAX, VALUE_BYTES_MAX
from pegaskv.codec.operations import Operation
from tests.net.test_connection_sockets import Client
from tests.server.test_standalone import running

NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1,
    0.0, 1.5, float("nan"), float("inf"), "", "x", "t", "../up", "a\x00b", "\x1b[31m", "x" * 300,
    b"", b"k", b"\xff\xff", b"\xff\xffstate", b"\x00", bytes(HASH_KEY_BYTES_MAX + 1),
    [], [None], [b"k"], [b"k", b"v"], [b"k", b"k"], [b"k", b"v", b"k"], [1, 2, 3], [[[[]]]],
    [[1, b"k", b"v", 0]], [[2, b"k"]], [[3, b"k"]], [[1, b"k"]], [b"k"] * 1_500,
    {}, {"a": "b"}, {"default_ttl": "-1"}, {"default_ttl": 5}, {"a": {"b": []}},
)  # fmt: skip

# A request of each operation that is right, or would be if the table were there.
RIGHT: dict[Operation, list[Any]] = {
    Operation.HELLO: [1, 1, "x", 0, [], []],
    Operation.PING: [],
    Operation.GET: [1, 0, b"k", b"s"],
    Operation.TTL: [1, 0, b"k", b"s"],
    Operation.MULTI_GET: [1, 0, b"k", None, b"", b"", 1, 0, b"", 10, 1_000],
    Operation.BATCH_GET: [1, 0, [b"k", b"s"]],
    Operation.SCAN: [1, 0, b"", b"", 0, 0, b"", 0, b"", 0, b"", 10, 1_000],
    Operation.DUPLICATION_PROGRESS: [1, 0, bytes(16), 1, 0],
    Operation.SET: [1, 0, b"k", b"s", b"v", 0],
    Operation.DELETE: [1, 0, b"k", b"s"],
    Operation.MULTI_SET: [1, 0, b"k", [b"s", b"v"], 0],
    Operation.MULTI_DELETE: [1, 0, b"k", [b"s"]],
    Operation.INCR: [1, 0, b"k", b"s", 1, 0],
    Operation.CHECK_AND_SET: [1, 0, b"k", b"s", 1, b"", None, b"v", 0, True],
    Operation.CHECK_AND_MUTATE: [1, 0, b"k", b"s", 1, b"", [[1, b"s", b"v", 0]], True],
    Operation.BATCH_SET: [1, 0, [b"k", b"s", b"v"], 0],
    Operation.BATCH_DELETE: [1, 0, [b"k", b"s"]],
    Operation.DUPLICATE: [1, 0, bytes(16), 1, 0, 0, 5, 1_000, []],
    Operation.COPY_RANGE: [1, 0, bytes(16), 1, 0, b"", b"", 1_000, False, []],
    Operation.QUERY_CONFIG: ["t"],
    Operation.CREATE_TABLE: ["new", 1, 1, {}, "same"],
    Operation.DROP_TABLE: ["new", -1, "ok"],
    Operation.RECALL_TABLE: [1, None],
    Operation.RENAME_TABLE: ["new", "newer"],
    Operation.LIST_TABLES: [True],
    Operation.TABLE_INFO: ["t"],
    Operation.SET_ENVS: ["new", {"default_ttl": "5"}],
    Operation.DELETE_ENVS: ["new", ["default_ttl"]],
    Operation.CLEAR_ENVS: ["new", None],
    Operation.LIST_NODES: [],
    Operation.CLUSTER_INFO: [],
    Operation.SERVER_INFO: [],
    Operation.ADD_DUPLICATION: ["new", "far", None, True, 0, {}],
    Operation.MODIFY_DUPLICATION: ["new", 1, "pause", None],
    Operation.QUERY_DUPLICATION: ["new"],
    Operation.LIST_DUPLICATIONS: ["", "all"],
    Operation.ADD_CLUSTER: ["far", "127.0.0.1:1", 9, "", ""],
    Operation.REMOVE_CLUSTER: ["far"],
    Operation.LIST_CLUSTERS: [],
    Operation.OPEN_TABLE: ["new"],
    Operation.ENSURE_DUPLICATION: [
        *(bytes(16), "00000000-0000-4000-8000-000000000000", 9, "far", 1, "new"),
        *("create", 1, 1, {}),
    ],
    Operation.FORGET_DUPLICATION: [1, bytes(16)],
    Operation.GET_META_LEVEL: [],
    Operation.SET_META_LEVEL: ["lively"],
    Operation.SET_REPLICA_COUNT: ["new", 1],
    Operation.BALANCE: [9, 0, "move_pri", "a", "b"],
    Operation.PROPOSE_CHANGE: [9, 0, "remove", "a", False],
    Operation.DIAGNOSE: [None],
    # What servers say to each other, of a partition that is not there.
    Operation.PREPARE: [b""],
    Operation.ADOPT: [9, 0, 1, "a", ["b"], False, {}, {}],
    Operation.BEACON: [[9, 0, 1, 1], 1],
    Operation.LEARN_BEGIN: [9, 0, 1, "a", None, None],
    Operation.LEARN_READ: [9, 0, "a", "b", 0, 1],
    Operation.LEARN_LOG: [9, 0, 1, "a", 1, 1],
    Operation.LEARN_JOIN: [9, 0, 1, "a", 1],
    Operation.LOG_HELD: [9, 0, 1],
    Operation.NODE_REPORT: ["a", "127.0.0.1:1", "p", [[9, 0, 1, 1, 1, "", "inactive", False]]],
    Operation.NODE_BEACON: ["a", "p", 1, False, [[9, 0, 1, 1]]],
    Operation.NODE_LEAVING: ["a", "p"],
    Operation.PROPOSE: ["a", 9, 0, 1, 1, "", False, "p"],
    Operation.REPORT_PROGRESS: [[]],
    Operation.CONFIGURE: [{}],
    Operation.OBEY: [4, 9, 0, 1, "", ""],
    Operation.REPLICA_STATES: [0],
}


def spoiled(chance: random.Random, fields: list[Any]) -> list[Any]:
    """`fields` with one to three faults; the table `t` keeps its name."""
    fields = list(fields)
    for _ in range(chance.randint(1, 3)):
        match chance.randrange(6):
            case 0:
                fields.append(chance.choice(NASTY))
            case 1 if fields:
                fields.pop(chance.randrange(len(fields)))
            case _ if fields:
                fields[chance.randrange(len(fields))] = chance.choice(NASTY)
    return fields


@pytest.mark.parametrize("seed", range(6))
async def test_every_wrong_request_is_answered_and_nobody_else_notices(
    seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)
    assert set(RIGHT) == set(Operation)
    codes: Counter[int] = Counter()
    answered: set[Operation] = set()
    async with running(tmp_path / "data") as server, pegaskv.connect(server.address) as polite:
        await polite.admin.create_table("t", partition_count=1)
        table = await polite.table("t")
        await table.set(b"polite", b"", b"value")
        rude = await Client.greeted(int(server.address.rpartition(":")[2]))
        for _ in range(40):
            sent: dict[int, Operation] = {}
            frame: list[list[Any]] = []
            for request_id in range(1, 41):
                operation = chance.choice(list(Operation))
                # The polite client's table is not to be dropped or renamed by chance.
                fields = [
                    "new" if field == "t" and operation >= Operation.CREATE_TABLE else field
                    for field in spoiled(chance, RIGHT[operation])
                ]
                if operation is Operation.CREATE_TABLE:
                    fields = [1 if type(field) is int else field for field in fields]
                sent[request_id] = operation
                frame.append([request_id, int(operation), 1_000, *fields])
            rude.send(frame)
            while sent:
                reply = await rude.receive()
                answered.add(sent.pop(reply[0]))
                codes[reply[1]] += 1
                if reply[1]:
                    assert len(reply) == 5, reply
            assert await table.get(b"polite", b"") == b"value"
        assert server._acceptor is not None
        assert server._acceptor.handler_failures == 0
        assert server.health() == []
        await rude.close()
    assert codes[InternalError.code] == 0
    assert codes[0] > 20, "hardly anything was right enough to be done"
    assert sum(codes.values()) - codes[0] > 200
    assert answered == set(Operation)


async def test_rows_at_their_limits_are_written_and_above_them_refused(tmp_path: Path) -> None:
    async with running(tmp_path / "data") as server, pegaskv.connect(server.address) as client:
        await client.admin.create_table("t", partition_count=1)
        rude = await Client.greeted(int(server.address.rpartition(":")[2]))
        largest = bytes(HASH_KEY_BYTES_MAX)
        value = bytes(VALUE_BYTES_MAX)
        rude.send([[2, Operation.SET, 1_000, 1, 0, largest, b"", value, 0]])
        assert (await rude.receive())[:2] == [2, 0]
        rude.send([[3, Operation.GET, 1_000, 1, 0, largest, b""]])
        assert await rude.receive() == [3, 0, value]
        for number, (key, data) in enumerate([(largest + b"x", b""), (b"k", value + b"x")], 4):
            rude.send([[number, Operation.SET, 1_000, 1, 0, key, b"", data, 0]])
            reply = await rude.receive()
            assert reply[0] == number
            assert "the limit is" in reply[2]
        await rude.close()
