"""Slow requests: all counted, few logged, with what an operator needs to find them."""

import itertools
import logging
from typing import Any

import pytest

from pegaskv.codec.operations import Operation
from pegaskv.replica.options import ReplicaOptions
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World

ENV = "replica.slow_query_threshold"
OK = 0
SCAN = (b"", b"", 0, 0, b"", 0, b"", 0, b"", 10, 1_000)


async def opened(life: Life, options: ReplicaOptions | None = None, **envs: str) -> Server:
    server = Server(life, options=options)
    await server.start()
    await server.serve(first=True, envs=envs)
    return server


def counted(server: Server) -> tuple[float, float]:
    found = {metric.name: value for metric in server.stub.metrics() for _, value in metric.samples}
    reads, writes = "pegaskv_slow_read_requests_total", "pegaskv_slow_write_requests_total"
    return found[reads], found[writes]


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("slow request")]


def test_a_slow_range_read_is_logged_with_what_it_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        await server.set(b"s", b"v")
        assert (await server.ask(Operation.SCAN, *SCAN))[0] == OK
        assert counted(server) == (0, 0)
        server.slow("scan", 150_000)
        assert (await server.ask(Operation.SCAN, *SCAN))[0] == OK
        fields = (b"h\x00\xff\n", None, b"", b"", 0, 0, b"", 10, 1_000)
        assert (await server.ask(Operation.MULTI_GET, *fields))[0] == OK
        assert counted(server) == (2, 0)
        await server.stop()

    play(scenario)
    scan, multi_get = lines(caplog)
    assert scan.startswith(
        "slow request: table=t partition=1.0 operation=scan client=10.0.0.1 took"
    )
    assert "threshold 100 ms" in scan
    assert "waited" in scan
    assert 'operation=multi_get client=10.0.0.1 hash_key="h\\x00\\xff\\x0a" took' in multi_get


def test_a_slow_batch_of_writes_is_one_line_and_all_its_requests_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, **{ENV: "200"})
        server.slow("log", 90_000)
        assert (await server.ask(Operation.SET, b"h", b"s", b"v", 0))[0] == OK
        assert counted(server) == (0, 0)
        server.slow("log", 250_000)
        sent = [server.send(Operation.SET, b"k" * 70, b"%d" % n, b"v", 0) for n in range(5)]
        for request in sent:
            assert (await server.answer(request))[0] == OK
        assert counted(server) == (0, 5)
        await server.stop()

    play(scenario)
    (line,) = lines(caplog)
    assert "operation=write client=10.0.0.1" in line
    assert f'hash_key="{"k" * 64}"+6 bytes took' in line
    assert "with 5 requests and 5 rows in its batch, threshold 200 ms" in line


SINGLE: list[tuple[Operation, tuple[Any, ...]]] = [
    (Operation.GET, (b"h", b"s")),
    (Operation.TTL, (b"h", b"s")),
    (Operation.BATCH_GET, ([b"h", b"s"],)),
    (Operation.MULTI_GET, (b"h", [b"s"], b"", b"", 0, 0, b"", 10, 1_000)),
]


@pytest.mark.parametrize(("operation", "fields"), SINGLE, ids=lambda one: str(one)[:20])
def test_single_reads_are_timed_on_a_table_that_asks_for_it(
    operation: Operation, fields: tuple[Any, ...], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, **{ENV: "20"})
        await server.set(b"s", b"v")
        assert (await server.ask(operation, *fields))[0] == OK
        assert counted(server) == (0, 0)
        # A clock that goes 25 ms whenever it is looked at.
        server.stub._slow.now_ms = itertools.count(0, 25).__next__
        assert (await server.ask(operation, *fields))[0] == OK
        assert counted(server) == (1, 0)
        await server.stub.configure(server.push(version=1))
        assert (await server.ask(operation, *fields))[0] == OK
        assert counted(server) == (1, 0)
        await server.stop()

    play(scenario)
    (line,) = lines(caplog)
    assert f'operation={operation.name.lower()} client=10.0.0.1 hash_key="h" took' in line


def test_a_flood_of_slow_requests_is_counted_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, ReplicaOptions(slow_request_lines_max=3))
        server.slow("scan", 110_000)
        for count in (10, 1):
            await life.clock.sleep_ms(10_000 - life.clock.monotonic_ms() % 10_000)
            for _ in range(count):
                await server.ask(Operation.SCAN, *SCAN)
        assert counted(server) == (11, 0)
        await server.stop()

    caplog.set_level(logging.WARNING)
    play(scenario)
    found = lines(caplog)
    assert len(found) == 4
    assert "not logged" not in "".join(found[:3])
    assert "(and 7 lines more that were not logged)" in found[3]
