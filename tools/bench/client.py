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
from tools.bench.peers import pegaskv_server, redis_server
from tools.bench.report import Comparison

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


async def _compare(seconds: float, rounds: int) -> list[Comparison]:
    comparisons = []
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(pegaskv_server())
        for durability, appendfsync in (("os", None), ("fsync", "always")):
            redis_port = stack.enter_context(redis_server(appendfsync=appendfsync))
            our_set, our_get, ours = await _ours(port, durability)
            sides = {"set": [our_set], "get": [our_get]}
            theirs = None
            if redis_port is not None:
                their_set, their_get, theirs = await _theirs(redis_port)
                sides["set"].append(their_set)
                sides["get"].append(their_get)
            for name, calls in sides.items():
                if durability == "fsync" and name == "get":
                    continue
                for tasks in (1, 50):
                    comparison = Comparison(f"{name}, {durability}, {tasks} tasks", "calls/s")
                    for call in calls:
                        await _rate(call, tasks, 0.2)
                    for _ in range(rounds):
                        comparison.add(*[await _rate(call, tasks, seconds) for call in calls])
                    comparisons.append(comparison)
            await ours.close()
            if theirs is not None:
                await theirs.aclose()
    return comparisons


def run(seconds: float, rounds: int) -> list[Comparison]:
    """Measure; `seconds` a side and round."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_compare(seconds, rounds))
