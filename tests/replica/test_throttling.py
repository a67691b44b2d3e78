"""Tables that are throttled: who waits, who is refused, and that nobody else notices."""

from random import Random
from typing import Any

import pytest

from pegaskv.base.throttling import parse_read_size, parse_throttling
from pegaskv.base.types import Gpid, TableInfo, TableStatus
from pegaskv.codec.keys import encode_key
from pegaskv.codec.mutations import OperationKind, encode_mutation, encode_operation
from pegaskv.codec.operations import Operation
from pegaskv.codec.values import make_timetag, pack_row_header
from pegaskv.replica.guards import Guarded, guard
from pegaskv.replica.options import ReplicaOptions
from pegaskv.replica.throttling import Bucket, Window, bytes_in, operations_in
from tests.replica.duplication_pair import source_order, stream_uuid
from tests.replica.stub_world import Server, play, play_lives
from tests.simulation.world import Life, World

OK, BUSY, NOT_READY = 0, 20, 13
WRITES = "replica.write_throttling"
READS = "replica.read_throttling"


def window(text: str, partition_count: int = 1) -> Window:
    rule = parse_throttling(text)
    return Window("env", text, rule, partition_count=partition_count, by_size=False)


def passes(one: Window, now_ms: int, units: int = 1) -> str:
    if one.rejects(now_ms):
        return "reject"
    return "delay" if one.take(units) else "pass"


# Windows.


def test_what_comes_above_a_limit_in_one_second_waits_or_is_refused() -> None:
    one = window("3*delay*1,5*reject*1")
    assert [passes(one, 1_000 + n) for n in range(7)] == 3 * ["pass"] + 2 * ["delay"] + [
        "reject"
    ] * 2
    assert passes(one, 1_999) == "reject"
    assert [passes(one, 2_000) for _ in range(6)] == 3 * ["pass"] + 2 * ["delay"] + ["reject"]


def test_a_limit_is_shared_out_to_the_partitions_and_never_to_nothing() -> None:
    assert [passes(window("10*reject*1", 4), 0) for _ in range(2)] == ["pass", "pass"]
    one = window("10*reject*1", 4)
    assert [passes(one, 0) for _ in range(4)] == 3 * ["pass"] + ["reject"]
    assert passes(window("1*reject*1", 64), 0) == "pass"


def test_a_request_above_a_whole_second_is_taken_and_paid_by_the_seconds_after() -> None:
    one = window("100*reject*1")
    assert passes(one, 0, 350) == "pass"
    assert [passes(one, second * 1_000) for second in range(4)] == 3 * ["reject"] + ["pass"]
    # The debt has an end, however large the request was.
    assert passes(one, 9_000, 1_000_000) == "pass"
    assert passes(one, 18_000) == "reject"
    assert passes(one, 19_000) == "pass"


@pytest.mark.parametrize("seed", range(20))
def test_in_the_long_run_no_more_is_taken_than_the_limit(seed: int) -> None:
    random = Random(seed)
    limit = random.choice([1, 7, 100])
    one = window(f"{limit}*reject*1")
    now_ms, taken, refused = 0, 0, 0
    while now_ms < 60_000:
        units = random.choice([1, 1, limit // 2 + 1])
        if passes(one, now_ms, units) == "pass":
            taken += units
        else:
            refused += 1
        now_ms += random.randrange(max(2, 2_000 // limit // 2))
    assert taken <= limit * 61
    assert taken > limit * 50
    assert refused


def test_bytes_read_are_charged_afterwards_and_paid_evenly() -> None:
    one = Bucket("env", "1K", parse_read_size("1K"), partition_count=1)
    assert not one.rejects(10_000)
    one.charge(1_500)
    assert one.rejects(10_000)
    assert one.rejects(10_500)
    assert not one.rejects(10_501)
    one.charge(1 << 30)
    assert one.rejects(20_000)
    assert not one.rejects(20_502)


def test_requests_are_counted_by_rows_and_by_bytes() -> None:
    assert operations_in([1, Operation.SET, 1, 1, 0, b"h", b"s", b"v", 0]) == 1
    assert operations_in([1, Operation.MULTI_SET, 1, 1, 0, b"h", [b"a", b"1", b"b", b"2"], 0]) == 1
    assert operations_in([1, Operation.BATCH_SET, 1, 1, 0, [b"h", b"s", b"v"] * 7, 0]) == 7
    assert operations_in([1, Operation.BATCH_DELETE, 1, 1, 0, [b"h", b"s"] * 7]) == 7
    assert operations_in([1, Operation.BATCH_GET, 1, 1, 0, [b"h", b"s"] * 7]) == 7
    assert operations_in([1, Operation.BATCH_GET, 1, 1, 0, None]) == 1
    assert bytes_in([1, 30, 1, 1, 0, b"hh", b"sss", b"vvvv", 0]) == 9
    assert bytes_in([1, 32, 1, 1, 0, b"hh", [b"a", b"1", None, 5], 0]) == 4
    mutations = [[1, b"s", b"vv", 0], [2, b"t"], None, [[b"x"]]]
    assert bytes_in([1, 36, 1, 1, 0, b"h", b"c", 0, b"o", mutations, False]) == 7


def table(**envs: str) -> TableInfo:
    named = {f"replica.{name}": value for name, value in envs.items()}
    return TableInfo(1, "t", TableStatus.AVAILABLE, 4, 1, named, version=0)


def test_a_table_without_these_envs_has_no_gate() -> None:
    replica = Guarded()
    replica.gpid = Gpid(1, 0)
    replica.serving = True
    guard(replica, table())
    assert (replica.unguarded, replica.checks_writes) == (True, False)
    guard(replica, table(write_throttling="1*reject*1"))
    assert (replica.unguarded, replica.checks_writes) == (True, True)
    guard(replica, table(read_throttling="1*reject*1"))
    assert (replica.unguarded, replica.checks_writes) == (False, False)
    # Only refusals are by size, and there are none here.
    guard(replica, table(read_throttling_by_size="1*delay*1"))
    assert (replica.unguarded, replica.checks_writes) == (True, False)
    replica.follower = True
    assert (replica.unguarded, replica.checks_writes) == (True, True)


def test_an_env_of_newer_software_is_left_aside(caplog: pytest.LogCaptureFixture) -> None:
    replica = Guarded()
    replica.gpid = Gpid(1, 0)
    replica.serving = True
    newer = {
        "write_throttling": "1*smooth*1",
        "read_throttling_by_size": "",
        "slow_query_threshold": "x",
    }
    guard(replica, table(**newer))
    assert (replica.unguarded, replica.checks_writes, replica.slow_ms) == (True, False, 100)
    assert len([line for line in caplog.messages if "left aside" in line]) == 2


def test_gates_go_on_counting_when_something_else_changes() -> None:
    replica = Guarded()
    replica.gpid = Gpid(1, 0)
    guard(replica, table(write_throttling="1*reject*1"))
    gate = replica.write_gate
    guard(replica, table(write_throttling="1*reject*1", other="5"))
    assert replica.write_gate is gate
    guard(replica, table(write_throttling="2*reject*1"))
    assert replica.write_gate is not gate


# On a server.


async def opened(life: Life, options: ReplicaOptions | None = None, **envs: str) -> Server:
    server = Server(life, options=options)
    await server.start()
    named = {f"replica.{name}": value for name, value in envs.items()}
    await server.serve(first=True, envs=named)
    # A whole second lies ahead.
    await life.clock.sleep_ms(1_000 - life.clock.monotonic_ms() % 1_000)
    return server


def send_sets(server: Server, count: int, **more: Any) -> list[int]:
    return [
        server.send(Operation.SET, b"h", b"%d" % number, b"v", 0, **more) for number in range(count)
    ]


def counts(server: Server) -> dict[str, float]:
    return {
        metric.name.removeprefix("pegaskv_throttling_").removesuffix("_requests_total"): value
        for metric in server.stub.metrics()
        if "throttling" in metric.name
        for _, value in metric.samples
    }


def waiting(server: Server) -> int:
    server.stub._line.check()
    return server.stub._line.waiting


def test_writes_above_a_delay_limit_are_done_later_and_are_under_way_meanwhile() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling="5*delay*300")
        began_ms = life.clock.monotonic_ms()
        sent = send_sets(server, 8)
        for request in sent[:5]:
            assert (await server.answer(request))[0] == OK
        assert life.clock.monotonic_ms() - began_ms < 50
        assert (waiting(server), server.connection.in_flight) == (3, 3)
        assert [await server.get(b"%d" % number) for number in (4, 5)] == [b"v", None]
        for request in sent[5:]:
            assert (await server.answer(request))[0] == OK
        assert 300 <= life.clock.monotonic_ms() - began_ms < 350
        assert await server.get(b"7") == b"v"
        assert (waiting(server), server.connection.in_flight) == (0, 0)
        assert counts(server) == {
            "delayed_write": 3,
            "rejected_write": 0,
            "delayed_read": 0,
            "rejected_read": 0,
        }
        await server.stop()

    play(scenario)


def test_writes_above_a_reject_limit_are_answered_busy_with_the_env_and_not_done() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling="2*delay*50,5*reject*200")
        began_ms = life.clock.monotonic_ms()
        sent = send_sets(server, 7)
        answers = [await server.answer(request) for request in sent]
        assert 200 <= life.clock.monotonic_ms() - began_ms < 250
        assert [answer[0] for answer in answers] == [OK] * 5 + [BUSY] * 2
        _, message, hint, details = answers[-1]
        assert "partition 1.0 of table `t`" in message
        assert "replica.write_throttling=2*delay*50,5*reject*200" in hint
        assert details["throttled_by"] == WRITES
        assert 0 < details["retry_after_ms"] <= 1_000
        assert await server.get(b"6") is None
        assert (counts(server)["delayed_write"], counts(server)["rejected_write"]) == (3, 2)
        # It is a new second soon.
        await life.clock.sleep_ms(details["retry_after_ms"])
        assert (await server.ask(Operation.SET, b"h", b"6", b"v", 0))[0] == OK
        await server.stop()

    play(scenario)


WRITE_REQUESTS = [
    (Operation.SET, (b"h", b"s", b"v", 0)),
    (Operation.DELETE, (b"h", b"s")),
    (Operation.MULTI_SET, (b"h", [b"s", b"v"], 0)),
    (Operation.MULTI_DELETE, (b"h", [b"s"])),
    (Operation.INCR, (b"n", b"s", 1, 0)),
    (Operation.CHECK_AND_SET, (b"h", b"s", 0, b"", None, b"v", 0, False)),
    (Operation.CHECK_AND_MUTATE, (b"h", b"s", 0, b"", [[1, b"s", b"v", 0]], False)),
    (Operation.BATCH_SET, ([b"h", b"s", b"v"], 0)),
    (Operation.BATCH_DELETE, ([b"h", b"s"],)),
]
READ_REQUESTS = [
    (Operation.GET, (b"h", b"s")),
    (Operation.TTL, (b"h", b"s")),
    (Operation.BATCH_GET, ([b"h", b"s"],)),
    (Operation.MULTI_GET, (b"h", [b"s"], b"", b"", 0, 0, b"", 10, 1_000)),
    (Operation.MULTI_GET, (b"h", None, b"", b"", 0, 0, b"", 10, 1_000)),
    (Operation.SCAN, (b"", b"", 0, 0, b"", 0, b"", 0, b"", 10, 1_000)),
]


@pytest.mark.parametrize(("operation", "fields"), WRITE_REQUESTS, ids=lambda one: str(one)[:20])
def test_every_write_counts_once_and_waits_its_time(operation: Operation, fields: Any) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling="1*delay*100,2*reject*0")
        first, second, third = [server.send(operation, *fields) for _ in range(3)]
        answers = [await server.answer(request) for request in (first, second, third)]
        assert [answer[0] for answer in answers] == [OK, OK, BUSY]
        assert (counts(server)["delayed_write"], counts(server)["rejected_write"]) == (1, 1)
        assert (waiting(server), server.connection.in_flight) == (0, 0)
        # Reads of this table are free.
        for each, asked in READ_REQUESTS:
            assert (await server.ask(each, *asked))[0] == OK
        await server.stop()

    play(scenario)


@pytest.mark.parametrize(("operation", "fields"), READ_REQUESTS, ids=lambda one: str(one)[:20])
def test_every_read_counts_once_and_waits_its_time(operation: Operation, fields: Any) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, read_throttling="1*delay*100,2*reject*0")
        first, second, third = [server.send(operation, *fields) for _ in range(3)]
        answers = [await server.answer(request) for request in (first, second, third)]
        assert [answer[0] for answer in answers] == [OK, OK, BUSY]
        assert READS in answers[2][2]
        assert (counts(server)["delayed_read"], counts(server)["rejected_read"]) == (1, 1)
        assert (waiting(server), server.connection.in_flight) == (0, 0)
        for each, asked in WRITE_REQUESTS:
            assert (await server.ask(each, *asked))[0] == OK
        await server.stop()

    play(scenario)


def test_writes_are_throttled_by_their_bytes() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling_by_size="1K*reject*0")
        sent = [server.send(Operation.SET, b"h", b"s", b"v" * 400, 0) for _ in range(4)]
        assert [(await server.answer(request))[0] for request in sent] == [OK] * 3 + [BUSY]
        await server.stop()

    play(scenario)


WITH_BYTES = [each for each in READ_REQUESTS if each[0] is not Operation.TTL]


@pytest.mark.parametrize(("operation", "fields"), WITH_BYTES, ids=lambda one: str(one)[:20])
def test_reads_are_throttled_by_the_bytes_that_were_read(operation: Operation, fields: Any) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, read_throttling_by_size="1K")
        await server.set(b"s", b"v" * 3_000)
        assert (await server.ask(operation, *fields))[0] == OK
        status, _, hint, _ = await server.ask(operation, *fields)
        assert status == BUSY
        assert "replica.read_throttling_by_size=1K" in hint
        await life.clock.sleep_ms(2_100)
        assert (await server.ask(operation, *fields))[0] == OK
        assert counts(server)["rejected_read"] == 1
        await server.stop()

    play(scenario)


def test_envs_hold_from_the_push_on_and_after_a_restart() -> None:
    limited = {WRITES: "1*reject*0"}

    async def first_life(world: World, life: Life) -> None:
        server = await opened(life)
        assert [(await server.answer(each))[0] for each in send_sets(server, 3)] == [OK] * 3
        await server.stub.configure(server.push(envs=limited, version=1))
        assert [(await server.answer(each))[0] for each in send_sets(server, 2)] == [OK, BUSY]
        await server.stub.configure(server.push(version=2))
        assert [(await server.answer(each))[0] for each in send_sets(server, 3)] == [OK] * 3
        await server.stop()

    async def second_life(world: World, life: Life) -> None:
        server = Server(life)
        await server.start()
        await server.serve(envs=limited, version=3)
        await life.clock.sleep_ms(1_000 - life.clock.monotonic_ms() % 1_000)
        assert [(await server.answer(each))[0] for each in send_sets(server, 2)] == [OK, BUSY]
        await server.stop()

    play_lives(first_life, second_life)


def test_no_pause_takes_more_than_half_of_a_time_limit() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling="1*delay*60000")
        began_ms = life.clock.monotonic_ms()
        sent = send_sets(server, 2, timeout_ms=400)
        assert (await server.answer(sent[1]))[0] == OK
        assert 200 <= life.clock.monotonic_ms() - began_ms < 250
        await server.stop()

    play(scenario)


def test_the_line_is_bounded_and_what_does_not_fit_is_refused_at_once() -> None:
    async def scenario(world: World, life: Life) -> None:
        options = ReplicaOptions(throttled_requests_max=2)
        server = await opened(life, options, write_throttling="1*delay*100")
        sent = send_sets(server, 5)
        assert waiting(server) == 2
        statuses = [(await server.answer(request))[0] for request in sent]
        assert statuses == [OK, OK, OK, BUSY, BUSY]
        assert waiting(server) == 0
        await server.stop()

    play(scenario)


def test_a_thousand_that_wait_are_taken_out_in_several_turns() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling="1*delay*100")
        sent = send_sets(server, 1_000)
        assert waiting(server) == 999
        for request in sent:
            assert (await server.answer(request))[0] == OK
        assert waiting(server) == 0
        await server.stop()

    play(scenario)


def test_nobody_waits_any_longer_when_the_server_stops() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling="1*delay*30000,400*reject*30000")
        began_ms = life.clock.monotonic_ms()
        sent = send_sets(server, 500, timeout_ms=60_000)
        server.stub.begin_to_stop()
        answers = [(await server.answer(request))[0] for request in sent]
        assert (answers.count(OK), answers.count(BUSY)) == (400, 100)
        assert life.clock.monotonic_ms() - began_ms < 1_000
        assert waiting(server) == 0
        # Nothing is left for when the time would have come.
        await life.clock.sleep_ms(31_000)
        await server.stop()

    play(scenario)


def test_who_waits_while_the_table_is_dropped_is_told_so() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling="1*delay*100", read_throttling="1*delay*100")
        sent = send_sets(server, 2)
        reads = [server.send(Operation.GET, b"h", b"s") for _ in range(2)]
        dropped = server.push(
            status=TableStatus.DROPPED,
            version=1,
            envs={WRITES: "1*delay*100", READS: "1*delay*100"},
        )
        await server.stub.configure(dropped)
        for request in (sent[1], reads[1]):
            assert (await server.answer(request))[0] == NOT_READY
        await server.stop()

    play(scenario)


def test_who_is_gone_when_its_time_comes_changes_nothing() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, write_throttling="1*delay*100")
        first, _ = send_sets(server, 2)
        await server.answer(first)
        server.connection.closed = True
        await life.clock.sleep_ms(200)
        assert (waiting(server), server.connection.in_flight) == (0, 0)
        assert await server.get(b"1") is None
        await server.stop()

    play(scenario)


def test_rows_of_other_clusters_are_not_throttled() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = Server(life)
        await server.start()
        envs = {WRITES: "1*reject*0", "replica.write_throttling_by_size": "1*reject*0"}
        await server.serve(first=True, envs=envs, sources=(source_order(2),))
        stream = (stream_uuid(2), 1, 0)
        for number in range(10):
            timestamp = 100 + number
            row = pack_row_header(0, make_timetag(timestamp, 2)) + b"v"
            operation = encode_operation(
                OperationKind.WRITE, 0, [encode_key(b"h", b"%d" % number), row]
            )
            batch = [1 + number, encode_mutation(timestamp, [operation])]
            fields = (*stream, number, 1 + number, 1, batch)
            assert (await server.ask(Operation.DUPLICATE, *fields))[0] == OK
        assert await server.get(b"9") == b"v"
        assert counts(server)["rejected_write"] == 0
        await server.stop()

    play(scenario)
