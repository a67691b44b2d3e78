"""What one partition may have under way is an option, and is seen beside what it has."""

from typing import Any

import pytest

from pegaskv.base.errors import (
    DiskFull,
    FollowerTable,
    NotEnoughMembers,
    NotReady,
    PartitionClosed,
)
from pegaskv.base.hashing import partition_index
from pegaskv.codec.messages_duplication import DuplicationOrder
from pegaskv.codec.operations import Operation
from pegaskv.replica.options import ReplicaOptions
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World

OK, BUSY = 0, 20


def values(server: Server) -> dict[str, float]:
    return {
        metric.name.removeprefix("pegaskv_"): metric.samples[0][1]
        for metric in server.stub.metrics()
        if metric.samples and not metric.samples[0][0]
    }


async def opened(life: Life, **options: int) -> Server:
    server = Server(life, options=ReplicaOptions(**options))
    await server.start()
    await server.serve(first=True)
    return server


@pytest.mark.parametrize(
    ("name", "bar", "code"),
    [
        ("serving", False, NotReady.code),
        ("follower", True, FollowerTable.code),
        ("too_few_members", "partition 1.0 has 1 of the 2", NotEnoughMembers.code),
        ("disk_full", True, DiskFull.code),
        ("read_only", "its tables are damaged", PartitionClosed.code),
        ("engine_failed", OSError("planned"), BUSY),
    ],
)
def test_whatever_bars_writes_bars_them_until_it_is_gone(name: str, bar: Any, code: int) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        free = getattr(replica, name)
        assert replica.admits
        for value, expected in ((bar, code), (free, OK), (bar, code), (free, OK)):
            setattr(replica, name, value)
            assert (await server.ask(Operation.SET, b"h", b"s", b"1", 0))[0] == expected
            assert (await server.ask(Operation.INCR, b"h", b"s", 1, 0))[0] == expected
            assert replica.admits is (expected == OK)
        await server.stop()

    play(scenario)


def test_a_partition_takes_no_more_bytes_than_are_set() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, partition_uncommitted_bytes_max=3_000)
        server.slow("log", 100_000)
        first = server.send(Operation.SET, b"h", b"1", bytes(2_000), 0)
        await life.clock.sleep_ms(10)
        assert (await server.ask(Operation.SET, b"h", b"2", bytes(2_000), 0))[0] == BUSY
        found = values(server)
        assert 2_000 < found["partition_uncommitted_bytes"] < 3_000
        assert found["partition_uncommitted_bytes_max"] == 3_000
        assert found["partition_uncommitted_mutations"] == 1
        assert (await server.answer(first))[0] == OK
        assert (await server.ask(Operation.SET, b"h", b"2", bytes(2_000), 0))[0] == OK
        assert values(server)["partition_uncommitted_bytes"] == 0
        await server.stop()

    play(scenario)


def test_a_partition_takes_no_more_mutations_than_are_set() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, partition_uncommitted_mutations_max=1)
        server.slow("log", 100_000)
        first = server.send(Operation.SET, b"h", b"1", b"", 0)
        await life.clock.sleep_ms(10)
        assert (await server.ask(Operation.SET, b"h", b"2", b"", 0))[0] == BUSY
        assert values(server)["partition_uncommitted_mutations_max"] == 1
        assert (await server.answer(first))[0] == OK
        await server.stop()

    play(scenario)


def test_what_a_stalled_engine_has_not_taken_is_bounded_as_set() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, partition_unapplied_bytes_max=5_000)
        server.engine().is_calm = False
        server.slow("apply", 500_000)
        statuses = []
        for number in range(8):
            status, *_ = await server.ask(Operation.SET, b"h", b"%d" % number, bytes(1_000), 0)
            statuses.append(status)
        assert statuses == [OK] * 5 + [BUSY] * 3
        # Their rows wait; the mutation that they came in is not kept beside them.
        unapplied = server.replica().unapplied
        assert unapplied is not None
        assert (unapplied.payload, unapplied.operations, unapplied.replies) == (b"", [], [])
        found = values(server)
        assert found["partition_unapplied_bytes"] > found["partition_unapplied_bytes_max"] == 5_000
        server.slow("apply", 0)
        server.engine().is_calm = True
        await life.clock.sleep_ms(2_000)
        assert values(server)["partition_unapplied_bytes"] == 0
        assert (await server.ask(Operation.SET, b"h", b"9", b"", 0))[0] == OK
        await server.stop()

    play(scenario)


def test_scans_and_throttled_requests_are_seen_beside_their_bounds() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, scans_waiting_max=2, throttled_requests_max=3)
        envs = {"replica.write_throttling": "1*delay*400"}
        await server.stub.configure(server.push(envs=envs, version=1))
        server.slow("scan", 100_000)
        fields = (b"", b"", 0, 0, b"", 0, b"", 0, b"", 10, 1_000)
        scans = [server.send(Operation.SCAN, *fields) for _ in range(3)]
        sets = [server.send(Operation.SET, b"h", b"%d" % number, b"", 0) for number in range(6)]
        found = values(server)
        assert (found["scans_waiting"], found["scans_waiting_max"]) == (2, 2)
        assert (found["throttled_requests"], found["throttled_requests_max"]) == (3, 3)
        assert [(await server.answer(each))[0] for each in scans] == [OK, OK, BUSY]
        answers = [(await server.answer(each))[0] for each in sets]
        assert answers.count(BUSY) == 2
        found = values(server)
        assert (found["scans_waiting"], found["throttled_requests"]) == (0, 0)
        await server.stop()

    play(scenario)


def test_what_is_kept_to_be_duplicated_is_bounded_and_the_rest_comes_from_the_log() -> None:
    async def scenario(world: World, life: Life) -> None:
        orders = (DuplicationOrder(1, b"u" * 16, "other"),)
        server = Server(life, partitions=8, options=ReplicaOptions(shipping_bytes_max=1024 * 1024))
        await server.start()
        await server.serve(first=True, duplications=orders)
        for number in range(30):
            hash_key = b"%d" % number
            index = partition_index(hash_key, b"", 8)
            value = bytes(200_000)
            status, *_ = await server.ask(Operation.SET, hash_key, b"s", value, 0, index=index)
            assert status == OK
            found = values(server)
            assert 200_000 < found["shipping_bytes"] <= found["shipping_bytes_max"] == 1024 * 1024
        shipped = 0
        for index in range(8):
            source = server.source(index)
            decree = source.start_decree(b"u" * 16)
            while decree < source.shippable_decree:
                records = await source.read_records(decree + 1, 1)
                decree = records[-1].decree
                shipped += len(records)
        assert shipped == 30
        await server.stub.configure(server.push(version=9, purged=True))
        assert values(server)["shipping_bytes"] == 0
        await server.stop()

    play(scenario)
