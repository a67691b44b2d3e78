"""The memory of a server (RSS), idle and after work, and what an idle connection costs.

A standalone server with one table of 8 empty partitions, with and without its HTTP listener
(the modules for /metrics and /health take what is between the two). Then a million rows of 100
bytes are written, and 50 connections read and write for a while. The peer is a Redis that
keeps the same rows. Only the size of caches and write buffers bounds ours, not the data.
"""

import asyncio
import contextlib
import resource
import time
from collections.abc import Awaitable
from typing import Any, Final

import pegaskv
from pegaskv.base.version import PROTOCOL_VERSION
from pegaskv.codec.frames import FrameSplitter, encode_frame
from pegaskv.codec.operations import Operation
from pegaskv.runtime.tasks import TaskScope
from tools.bench.loading import VALUE, call_rate, load, names
from tools.bench.peers import NO_REDIS, Peer, redis_server
from tools.bench.processes import Server, pegaskv_server, resident_bytes
from tools.bench.report import OURS, Report

__all__ = ["run"]

ROWS: Final = 1_000_000
CLIENTS: Final = 50
# The first ones are not counted: what they take may have been free before.
FIRST_CONNECTIONS: Final = 1_000
IDLE_CONNECTIONS: Final = 3_000
MANY_CONNECTIONS: Final = "[server]\nconnections_per_address_max = 10000\n"
REDIS: Final = "Redis"
SETTLE_S: Final = 1.0


def _megabytes(pid: int) -> float:
    return resident_bytes(pid) / 1e6


async def _make_table(server: Server) -> None:
    async with pegaskv.connect(server.listen) as client:
        await client.admin.create_table("bench", 8, envs={"durability": "os"})


async def _fill(server: Server, hash_keys: list[bytes]) -> None:
    async with pegaskv.connect(server.listen, timeout=60) as client:
        await load(await client.table("bench"), hash_keys)


async def _work(server: Server, hash_keys: list[bytes], seconds: float) -> None:
    """Reads and writes by 50 clients, each with a connection of its own."""
    async with contextlib.AsyncExitStack() as stack:
        tables = []
        for _ in range(CLIENTS):
            client = await stack.enter_async_context(pegaskv.connect(server.listen, timeout=60))
            tables.append(await client.table("bench"))

        def call(number: int) -> Awaitable[Any]:
            table, name = tables[number % CLIENTS], hash_keys[number % len(hash_keys)]
            return table.get(name, b"s") if number % 2 else table.set(name, b"s", VALUE)

        await call_rate(call, CLIENTS, seconds)


async def _bytes_per_connection(server: Server) -> float:
    """What each connection takes that has said hello and nothing more."""
    hello: tuple[Any, ...] = (1, int(Operation.HELLO), 5_000, PROTOCOL_VERSION, PROTOCOL_VERSION)
    frame = encode_frame([(*hello, "bench", 0, [], [])])
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.append(writer)
        writer.write(frame)
        answer = FrameSplitter().feed(await reader.read(1 << 16))
        if not answer or answer[0][0][1] != 0:
            raise SystemExit(f"hello was answered by {answer}")

    # A server gives half of its files to connections, and has the same limit as we have.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    share = min(1.0, (files / 2 - 100) / (FIRST_CONNECTIONS + IDLE_CONNECTIONS))
    first, more = int(FIRST_CONNECTIONS * share), int(IDLE_CONNECTIONS * share)
    before = 0
    try:
        for count in (first, more):
            before = resident_bytes(server.pid)
            async with TaskScope("connect") as scope:
                for _ in range(count):
                    scope.start("connect", connect())
        return (resident_bytes(server.pid) - before) / more
    finally:
        for writer in writers:
            writer.close()


def _redis_sizes(peer: Peer, hash_keys: list[bytes]) -> tuple[float, float]:
    import redis

    idle = _megabytes(peer.pid)
    with redis.Redis(port=peer.port) as client:
        for begin in range(0, len(hash_keys), 10_000):
            with client.pipeline(transaction=False) as pipeline:
                for name in hash_keys[begin : begin + 10_000]:
                    pipeline.set(name, VALUE)
                pipeline.execute()
        return idle, _megabytes(peer.pid)


def run(seconds: float, rounds: int) -> Report:
    """Measure; with `seconds` below 1 that share of the rows."""
    report = Report("memory", __doc__ or "")
    rows = max(1_000, int(ROWS * min(1.0, seconds)))
    hash_keys = names(b"user", rows)
    bare, idle, filled, worked = [
        report.start(name, "MB")
        for name in (
            "idle, 8 empty partitions, no HTTP listener",
            "idle, 8 empty partitions, with HTTP listener",
            f"after {rows:,} rows were written, no HTTP listener",
            f"after {CLIENTS} clients have read and written",
        )
    ]
    connection = report.start("one idle connection", "bytes")
    settle = min(SETTLE_S, seconds)
    for _ in range(rounds):
        theirs: tuple[float | None, float | None] = (None, None)
        with redis_server() as peer:
            if peer is None:
                report.note(NO_REDIS)
            else:
                theirs = _redis_sizes(peer, hash_keys)
        with pegaskv_server(http=True, config=MANY_CONNECTIONS) as server:
            asyncio.run(_make_table(server))
            server.metrics()
            time.sleep(settle)
            idle.add({OURS: _megabytes(server.pid)})
            connection.add({OURS: asyncio.run(_bytes_per_connection(server))})
        with pegaskv_server() as server:
            asyncio.run(_make_table(server))
            time.sleep(settle)
            bare.add({OURS: _megabytes(server.pid), REDIS: theirs[0]})
            asyncio.run(_fill(server, hash_keys))
            filled.add({OURS: _megabytes(server.pid), REDIS: theirs[1]})
            asyncio.run(_work(server, hash_keys, seconds * 5))
            worked.add({OURS: _megabytes(server.pid)})
    return report
