"""An asyncio program's calls per second: ours beside redis-py on Redis.

Sets and gets of 100-byte values by 1 and 50 tasks. `os` tables stand beside a Redis
that syncs nothing, `fsync` tables beside `appendfsync always`. Each round runs both
sides, one after the other, on fresh keys of the same shape.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pegaskv
from pegaskv.runtime.tasks import TaskScope
from tools.bench.peers import NO_REDIS, redis_server
from tools.bench.processes import pegaskv_server
from tools.bench.report import OURS, Report

__all__ = ["run"]

VALUE = bytes(100)
KEYS = 20_000
NAMES = [b"user%08d" % key for key in range(KEYS)]

Call = Callable[[int], Awaitable[Any]]


async def _rate(call: Call, tasks: int, seconds: float) -> float:
    """Calls per second of `tasks` tasks that call one after another."""
    done = 0
    stop = False

    async def caller(number: int) -> None:
        nonlocal done
        key = number * 7_919
        while not stop:
            await call(key % KEYS)
            key += 1
            done += 1

    began = time.perf_counter()
    async with TaskScope("bench") as scope:
        for number in range(tasks):
            scope.start("caller", caller(number))
        await asyncio.sleep(seconds)
        stop = True
    return done / (time.perf_counter() - began)


async def _ours(port: int, durability: str) -> tuple[Call, Call, Any]:
    client = await pegaskv.connect(f"127.0.0.1:{port}")
    name = f"bench_{durability}"
    await client.admin.create_table(name, envs={"durability": durability}, if_exists="same")
    table = await client.table(name)

    def set_(key: int) -> Awaitable[Any]:
        return table.set(NAMES[key], b"s", VALUE)

    def get(key: int) -> Awaitable[Any]:
        return table.get(NAMES[key], b"s")

    await table.batch_set([(name, b"s", VALUE) for name in NAMES])
    return set_, get, client


async def _theirs(port: int) -> tuple[Call, Call, Any]:
    import redis.asyncio as redis

    client = redis.Redis(port=port, max_connections=100)

    def set_(key: int) -> Awaitable[Any]:
        return client.set(NAMES[key], VALUE)

    def get(key: int) -> Awaitable[Any]:
        return client.get(NAMES[key])

    async with client.pipeline(transaction=False) as pipeline:
        for name in NAMES:
            pipeline.set(name, VALUE)
        await pipeline.execute()
    return set_, get, client


async def _compare(seconds: float, rounds: int) -> Report:
    report = Report("client", __doc__ or "")
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(pegaskv_server()).port
        for durability, appendfsync in (("os", None), ("fsync", "always")):
            peer = stack.enter_context(redis_server(appendfsync=appendfsync))
            our_set, our_get, ours = await _ours(port, durability)
            sides: dict[str, dict[str, Call]] = {"set": {OURS: our_set}, "get": {OURS: our_get}}
            theirs = None
            if peer is None:
                report.note(NO_REDIS)
            else:
                their_set, their_get, theirs = await _theirs(peer.port)
                sides["set"]["redis-py"] = their_set
                sides["get"]["redis-py"] = their_get
            for name, calls in sides.items():
                if durability == "fsync" and name == "get":
                    continue
                for tasks in (1, 50):
                    comparison = report.start(f"{name}, {durability}, {tasks} tasks", "calls/s")
                    for _ in range(rounds):
                        comparison.add(
                            {
                                side: await _rate(call, tasks, seconds)
                                for side, call in calls.items()
                            }
                        )
            await ours.close()
            if theirs is not None:
                await theirs.aclose()
    return report


def run(seconds: float, rounds: int) -> Report:
    """Measure; `seconds` a side and round."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_compare(seconds, rounds))
