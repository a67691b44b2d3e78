"""How soon a server is back after `kill -9`: 100 000 and 1 000 000 rows of 100 bytes.

Seconds are counted from the start of the process, to its ready line and to the first row that
a new client has read. What is replayed is bounded by `flush_total_bytes` of the configuration
(64 MiB by default), not by the size of the tables. The peer is Redis with an append-only file
(`appendfsync everysec`) of the same rows, from its start to its first read.
"""

import asyncio
import contextlib
import re
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import pegaskv
from tools.bench.loading import VALUE, load, names
from tools.bench.peers import NO_REDIS, RestartableRedis, redis_version
from tools.bench.processes import Server, pegaskv_server
from tools.bench.report import OURS, Report

__all__ = ["run"]

SIZES: Final = (100_000, 1_000_000)
REDIS: Final = "Redis, AOF"


async def _fill(server: Server, hash_keys: list[bytes]) -> None:
    async with pegaskv.connect(server.listen, timeout=60) as client:
        await client.admin.create_table("bench", 8, envs={"durability": "os"}, if_exists="same")
        await load(await client.table("bench"), hash_keys)


async def _first_read(server: Server, hash_key: bytes) -> None:
    async with pegaskv.connect(server.listen, timeout=60) as client:
        if await (await client.table("bench")).get(hash_key, b"s") != VALUE:
            raise SystemExit("a row is lost")


def _replayed_bytes(server: Server, log_before: int) -> float:
    found = re.search(r"(\d+) bytes of log in \d+ mutations to replay", server.log()[log_before:])
    return float(found[1]) if found else 0.0


def _measure_ours(rows: int, rounds: int) -> list[tuple[float, float, float]]:
    """Seconds to the ready line, to the first read, and bytes of log, of each round."""
    hash_keys = names(b"user", rows)
    taken = []
    with pegaskv_server() as server:
        asyncio.run(_fill(server, hash_keys))
        for _ in range(rounds):
            # As a running server: something was written since the last start.
            asyncio.run(_fill(server, hash_keys[: rows // 10]))
            server.kill()
            log_before = len(server.log())
            began = time.perf_counter()
            ready = server.start()
            asyncio.run(_first_read(server, hash_keys[0]))
            first = time.perf_counter() - began
            taken.append((ready, first, _replayed_bytes(server, log_before) / 1e6))
    return taken


def _measure_redis(rows: int, rounds: int) -> list[float]:
    """Seconds to the first read, of each round."""
    import redis

    taken = []
    hash_keys = names(b"user", rows)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-redis-"))
        server = RestartableRedis(Path(directory))
        stack.callback(server.kill)
        server.start()
        client: Any = redis.Redis(port=server.port)
        stack.callback(client.close)
        for begin in range(0, rows, 10_000):
            with client.pipeline(transaction=False) as pipeline:
                for name in hash_keys[begin : begin + 10_000]:
                    pipeline.set(name, VALUE)
                pipeline.execute()
        for _ in range(rounds):
            server.kill()
            began = time.perf_counter()
            server.start()
            while True:
                try:
                    if client.get(hash_keys[0]) == VALUE:
                        break
                except redis.exceptions.BusyLoadingError:
                    time.sleep(0.01)
            taken.append(time.perf_counter() - began)
    return taken


def run(seconds: float, rounds: int) -> Report:
    """Measure; with `seconds` below 1 that share of the rows."""
    report = Report("recovery", __doc__ or "")
    there = redis_version() is not None
    if not there:
        report.note(NO_REDIS)
    for size in SIZES:
        rows = max(1_000, int(size * min(1.0, seconds)))
        ours = _measure_ours(rows, rounds)
        theirs: list[float | None] = [None] * rounds
        if there:
            theirs = [*_measure_redis(rows, rounds)]
        ready = report.start(f"kill -9 to the ready line, {rows:,} rows", "s")
        first = report.start(f"kill -9 to the first read, {rows:,} rows", "s")
        replayed = report.start(f"log replayed, {rows:,} rows", "MB")
        for (to_ready, to_first, megabytes), redis_first in zip(ours, theirs, strict=True):
            ready.add({OURS: to_ready})
            first.add({OURS: to_first, REDIS: redis_first})
            replayed.add({OURS: megabytes})
    return report
