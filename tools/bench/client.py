"""Calls a second of an asyncio program: our client beside redis-py on Redis, and etcd.

1, 50 or 200 tasks of one process call one after another: sets, gets, and 95 reads to 5 writes of
zipfian keys. Tables of durability `os` stand beside a Redis without an append-only file, those
of `fsync` beside `appendfsync always` and beside etcd, which syncs every put. Batches are of
100 rows by one task; their peers are a redis-py pipeline of 100 calls, and MSET and MGET.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from itertools import accumulate
from random import Random
from typing import Any, Final

import pegaskv
from pegaskv.client import ClientOptions
from pegaskv.runtime.tasks import TaskScope
from pegaskv.server.config import config_from_text
from tools.bench.etcd import EtcdClient
from tools.bench.loading import call_rate, load, names
from tools.bench.peers import NO_ETCD, NO_REDIS, etcd_server, redis_server
from tools.bench.processes import pegaskv_server
from tools.bench.report import OURS, Report, turns

__all__ = ["ETCD", "REDIS", "run"]

REDIS: Final = "redis-py"
PIPELINE: Final = "redis-py pipeline"
MULTI: Final = "redis-py MSET/MGET"
ETCD: Final = "etcd"

KEYS: Final = 20_000
NAMES: Final = names(b"user", KEYS)
BATCH: Final = 100
SPIN_US: Final = 100
# Bytes of a value to how many tasks call.
CASES: Final = {100: (1, 50, 200), 1_000: (50,)}
# YCSB's skew: the most frequent key is asked for in one of eleven calls.
_ZIPF: Final = Random(1).choices(
    range(KEYS),
    cum_weights=list(accumulate(1 / rank**0.99 for rank in range(1, KEYS + 1))),
    k=100_000,
)

Call = Callable[[int], Awaitable[Any]]
# Key, and key and value, to a call.
Get = Callable[[bytes], Awaitable[Any]]
Set = Callable[[bytes, bytes], Awaitable[Any]]
# Writes all of `NAMES` with one value.
Fill = Callable[[bytes], Awaitable[None]]


@dataclasses.dataclass(frozen=True)
class _Side:
    """How one side reads and writes one row; `batches` those of 100, by the side's name."""

    get: Get
    set: Set
    fill: Fill
    batches: dict[str, tuple[Callable[[list[bytes]], Awaitable[Any]], ...]] = dataclasses.field(
        default_factory=dict
    )

    def call(self, kind: str, value_bytes: int) -> Call:
        get, set_, value = self.get, self.set, bytes(value_bytes)
        if kind == "set":
            return lambda number: set_(NAMES[number % KEYS], value)
        if kind == "get":
            return lambda number: get(NAMES[number % KEYS])

        def mixed(number: int) -> Awaitable[Any]:
            name = NAMES[_ZIPF[number % len(_ZIPF)]]
            return set_(name, value) if number % 20 == 0 else get(name)

        return mixed


@dataclasses.dataclass
class _Bench:
    report: Report
    seconds: float
    rounds: int
    stack: contextlib.AsyncExitStack

    async def compare(
        self, name: str, sides: dict[str, Call], tasks: int, *, rows: int = 1, unit: str = "calls/s"
    ) -> None:
        comparison = self.report.start(name, unit)
        for number in range(self.rounds):
            taken = {
                side: rows * await call_rate(call, tasks, self.seconds)
                for side, call in turns(sides, number)
            }
            comparison.add({side: taken[side] for side in sides})

    async def ours(self, durability: str, *, spin: bool = False) -> _Side:
        """A table of a server of its own."""
        config = _spin_config() if spin else ""
        server = self.stack.enter_context(pegaskv_server(config=config))
        options = {"timeout_ms": 60_000}
        if spin:
            options["spin_us"] = SPIN_US
        client = await self.stack.enter_async_context(
            pegaskv.connect(f"127.0.0.1:{server.port}", options=ClientOptions(**options))
        )
        await client.admin.create_table("bench", envs={"durability": durability})
        table = await client.table("bench")
        return _Side(
            lambda name: table.get(name, b"s"),
            lambda name, value: table.set(name, b"s", value),
            lambda value: load(table, NAMES, value),
            {
                OURS: (
                    lambda batch: table.batch_get([(name, b"s") for name in batch]),
                    lambda batch: table.batch_set([(name, b"s", bytes(100)) for name in batch]),
                )
            },
        )

    async def redis(self, appendfsync: str | None) -> _Side | None:
        """redis-py on a Redis of its own, if there is one."""
        import redis.asyncio as redis

        peer = self.stack.enter_context(redis_server(appendfsync=appendfsync))
        if peer is None:
            self.report.note(NO_REDIS)
            return None
        self.report.note(f"redis-py {version('redis')} with hiredis {version('hiredis')}, uvloop.")
        client = redis.Redis(port=peer.port, max_connections=256)
        self.stack.push_async_callback(client.aclose)

        async def pipeline(batch: list[bytes], *value: bytes) -> None:
            async with client.pipeline(transaction=False) as calls:
                for name in batch:
                    if value:
                        calls.set(name, value[0])
                    else:
                        calls.get(name)
                await calls.execute()

        async def fill(value: bytes) -> None:
            for begin in range(0, KEYS, 1_000):
                await pipeline(NAMES[begin : begin + 1_000], value)

        return _Side(
            client.get,
            client.set,
            fill,
            {
                PIPELINE: (pipeline, lambda batch: pipeline(batch, bytes(100))),
                MULTI: (
                    client.mget,
                    lambda batch: client.mset(dict.fromkeys(batch, bytes(100))),
                ),
            },
        )

    async def etcd(self) -> _Side | None:
        """The JSON gateway of an etcd, if there is one."""
        peer = self.stack.enter_context(etcd_server())
        if peer is None:
            self.report.note(NO_ETCD)
            return None
        self.report.note(
            "etcd is asked through its JSON gateway by a raw asyncio client, a connection for "
            "each task, since a gRPC client would be one more dependency; it would be faster."
        )
        client = EtcdClient(peer.port)
        self.stack.callback(client.close)

        async def fill(value: bytes) -> None:
            todo = iter(NAMES)

            async def put() -> None:
                for name in todo:
                    await client.put(name, value)

            async with TaskScope("fill") as scope:
                for _ in range(200):
                    scope.start("put", put())

        return _Side(client.get, client.put, fill)


def _spin_config() -> str:
    """The server's option to spin, in whichever section it stands; nothing if there is none."""
    config = config_from_text("")
    for section in dataclasses.fields(config):
        if hasattr(getattr(config, section.name), "spin_us"):
            return f"[{section.name}]\nspin_us = {SPIN_US}\n"
    return ""


def _there(sides: dict[str, _Side | None]) -> dict[str, _Side]:
    return {name: side for name, side in sides.items() if side is not None}


def _title(kind: str, durability: str, tasks: int, value_bytes: int) -> str:
    size = "" if value_bytes == 100 else ", 1-KB values"
    return f"{kind}, {durability}, {tasks} {'task' if tasks == 1 else 'tasks'}{size}"


async def _compare_all(
    bench: _Bench, durability: str, sides: dict[str, _Side], kinds: tuple[str, ...]
) -> None:
    for value_bytes, task_counts in CASES.items():
        for side in sides.values():
            await side.fill(bytes(value_bytes))
        for kind in kinds:
            for tasks in task_counts:
                calls = {name: side.call(kind, value_bytes) for name, side in sides.items()}
                await bench.compare(_title(kind, durability, tasks, value_bytes), calls, tasks)


async def _unsynced(bench: _Bench) -> None:
    sides = _there({OURS: await bench.ours("os"), REDIS: await bench.redis(None)})
    await _compare_all(bench, "os", sides, ("get", "set", "mixed"))
    for side in sides.values():
        await side.fill(bytes(100))
    batches = {name: way for side in sides.values() for name, way in side.batches.items()}
    for at, what in enumerate(("batch_get", "batch_set")):
        calls = {name: _batch_call(way[at]) for name, way in batches.items()}
        name = f"{what} of {BATCH}, os, 1 task"
        await bench.compare(name, calls, 1, rows=BATCH, unit="rows/s")
    if "spin_us" in {field.name for field in dataclasses.fields(ClientOptions)}:
        sides[OURS] = await bench.ours("os", spin=True)
        await sides[OURS].fill(bytes(100))
        for kind in ("get", "set"):
            calls = {name: side.call(kind, 100) for name, side in sides.items()}
            await bench.compare(f"{kind}, os, 1 task, spin", calls, 1)
        bench.report.note(f"`spin`: spin_us = {SPIN_US} at the client and at the server.")


def _batch_call(way: Callable[[list[bytes]], Awaitable[Any]]) -> Call:
    def call(number: int) -> Awaitable[Any]:
        begin = number * BATCH % (KEYS - BATCH)
        return way(NAMES[begin : begin + BATCH])

    return call


async def _synced(bench: _Bench) -> None:
    sides = _there(
        {
            OURS: await bench.ours("fsync"),
            REDIS: await bench.redis("always"),
            ETCD: await bench.etcd(),
        }
    )
    await _compare_all(bench, "fsync", sides, ("set", "mixed"))


async def _measure(report: Report, seconds: float, rounds: int) -> None:
    for part in (_unsynced, _synced):
        async with contextlib.AsyncExitStack() as stack:
            await part(_Bench(report, seconds, rounds, stack))


def run(seconds: float, rounds: int) -> Report:
    """Measure; `seconds` a side and round."""
    import uvloop

    report = Report("client", __doc__ or "")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(report, seconds, rounds))
    return report
