"""Rows and callers that several benches need."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import pegaskv
from pegaskv.runtime.tasks import TaskScope

__all__ = ["VALUE", "call_rate", "load", "names"]

VALUE: Final = bytes(100)
_BATCH: Final = 500
_LOADERS: Final = 8


def names(prefix: bytes, count: int) -> list[bytes]:
    """Return `count` different hash keys."""
    return [b"%s%08d" % (prefix, number) for number in range(count)]


async def load(table: pegaskv.Table, hash_keys: Sequence[bytes], value: bytes = VALUE) -> None:
    """Write one row with sort key `s` for each hash key, a few batches at a time."""
    batches: Iterator[Sequence[bytes]] = (
        hash_keys[begin : begin + _BATCH] for begin in range(0, len(hash_keys), _BATCH)
    )

    async def write() -> None:
        for batch in batches:
            await table.batch_set([(name, b"s", value) for name in batch])

    async with TaskScope("load") as scope:
        for _ in range(_LOADERS):
            scope.start("load", write())


async def call_rate(
    call: Callable[[int], Awaitable[Any]], tasks: int, seconds: float, *, warm_up: float = 0.1
) -> float:
    """Calls a second of `tasks` tasks that call one after another; `call` gets a number.

    The first `warm_up` of the time, as a share of `seconds`, is not counted.
    """
    done = 0
    stop = False

    async def caller(number: int) -> None:
        nonlocal done
        number *= 7_919
        while not stop:
            await call(number)
            number += 1
            done += 1

    async with TaskScope("bench") as scope:
        for number in range(tasks):
            scope.start("caller", caller(number))
        await asyncio.sleep(seconds * warm_up)
        before, began = done, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (done - before) / (time.perf_counter() - began)
        stop = True
    return rate
