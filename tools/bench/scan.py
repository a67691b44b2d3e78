"""Rows a second that an asyncio program reads in order, through the client.

`full_scan` walks a table of 100-byte values with 1 and with 8 partitions, row by row; `scan` and
`multi_get` read the rows of one hash key, the latter all at once. The peer of `multi_get` is
HGETALL of redis-py on a hash of the same rows.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import pegaskv
from tools.bench.loading import VALUE, load, names
from tools.bench.peers import NO_REDIS, redis_server
from tools.bench.processes import pegaskv_server
from tools.bench.report import OURS, Report

__all__ = ["run"]

# Rows of a table for each of `seconds`, and of the one hash key at most.
ROWS: Final = 200_000
HASH_ROWS_MAX: Final = 10_000

# Reads everything once; returns how many rows that were.
Read = Callable[[], Awaitable[int]]


async def _rate(read: Read, seconds: float) -> float:
    rows = 0
    began = time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds or rows == 0:
        rows += await read()
    return rows / taken


def _full_scan(table: pegaskv.Table) -> Read:
    async def read() -> int:
        rows = 0
        async for _ in table.full_scan():
            rows += 1
        return rows

    return read


def _hash_scan(table: pegaskv.Table) -> Read:
    async def read() -> int:
        rows = 0
        async for _ in table.scan(b"one"):
            rows += 1
        return rows

    return read


def _multi_get(table: pegaskv.Table) -> Read:
    async def read() -> int:
        return len(await table.multi_get(b"one", max_count=0, max_bytes=0))

    return read


async def _measure(report: Report, seconds: float, rounds: int) -> None:
    import redis.asyncio as redis

    rows = max(1_000, int(ROWS * seconds))
    hash_rows = min(HASH_ROWS_MAX, rows)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(pegaskv_server())
        peer = stack.enter_context(redis_server())
        async with contextlib.AsyncExitStack() as clients:
            client = await clients.enter_async_context(
                pegaskv.connect(f"127.0.0.1:{server.port}", timeout=60)
            )
            for partitions in (1, 8):
                name = f"rows{partitions}"
                await client.admin.create_table(name, partitions, envs={"durability": "os"})
                table = await client.table(name)
                await load(table, names(b"user", rows))
                comparison = report.start(
                    f"full_scan, {rows:,} rows, {partitions} partitions", "rows/s"
                )
                for _ in range(rounds):
                    comparison.add({OURS: await _rate(_full_scan(table), seconds)})
            await client.admin.create_table("one", 8, envs={"durability": "os"})
            table = await client.table("one")
            sort_keys = names(b"row", hash_rows)
            for begin in range(0, hash_rows, 1_000):
                await table.multi_set(
                    b"one", dict.fromkeys(sort_keys[begin : begin + 1_000], VALUE)
                )
            scan = report.start(f"scan of one hash key, {hash_rows:,} rows", "rows/s")
            multi_get = report.start(f"multi_get of one hash key, {hash_rows:,} rows", "rows/s")
            hgetall: Read | None = None
            if peer is None:
                report.note(NO_REDIS)
            else:
                hashes = redis.Redis(port=peer.port)
                clients.push_async_callback(hashes.aclose)
                await hashes.hset("one", mapping=dict.fromkeys(sort_keys, VALUE))

                async def hgetall() -> int:
                    return len(await hashes.hgetall("one"))

            for _ in range(rounds):
                scan.add({OURS: await _rate(_hash_scan(table), seconds)})
                multi_get.add(
                    {
                        OURS: await _rate(_multi_get(table), seconds),
                        "redis-py": await _rate(hgetall, seconds) if hgetall else None,
                    }
                )


def run(seconds: float, rounds: int) -> Report:
    """Measure; `seconds` a side and round, and 200 000 rows for each of them."""
    import uvloop

    report = Report("scan", __doc__ or "")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(report, seconds, rounds))
    return report
