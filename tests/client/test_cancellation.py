"""Every call is cancelled at every step that it takes; nothing may be broken or left behind."""

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from random import Random
from typing import Any

import pytest

from pegaskv.client import Check, Client, Put, Table, connect
from pegaskv.client.connection import Connection
from pegaskv.net.asyncio_network import AsyncioNetwork
from tests.client.fake_server import FakeServer
from tests.helpers import poll_until

Call = Callable[[Client, Table], Coroutine[Any, Any, Any]]


def none_pending(connections: Iterable[Connection]) -> bool:
    return not any(each.pending for each in connections)


async def scan_all(client: Client, table: Table) -> list[Any]:
    async with table.full_scan() as scanner:
        return [row async for row in scanner]


CALLS: dict[str, Call] = {
    "get": lambda c, t: t.get("h", "s"),
    "set": lambda c, t: t.set("h", "s", "v"),
    "large set": lambda c, t: t.set("h", "s", b"v" * 100_000),
    "incr": lambda c, t: t.incr("n", "n"),
    "multi_set": lambda c, t: t.multi_set("h", {"a": "1", "b": "2"}),
    "multi_get": lambda c, t: t.multi_get("h"),
    "multi_delete": lambda c, t: t.multi_delete("h", ["zz"]),
    "check_and_set": lambda c, t: t.check_and_set("h", "s", Check.EXIST, value="v"),
    "check_and_mutate": lambda c, t: t.check_and_mutate(
        "h", "s", Check.EXIST, mutations=[Put("s", "v")]
    ),
    "batch_get": lambda c, t: t.batch_get([(b"%d" % i, "s") for i in range(20)]),
    "batch_set": lambda c, t: t.batch_set([(b"%d" % i, "s", "v") for i in range(20)]),
    "delete_range": lambda c, t: t.delete_range("r"),
    "count": lambda c, t: t.count(),
    "full_scan": scan_all,
    "table": lambda c, t: c.table("t"),
    "list_tables": lambda c, t: c.admin.list_tables(),
}


async def cancel_at_step(coroutine: Coroutine[Any, Any, Any], step: int) -> bool:
    """Cancel a call when it waits for the `step`-th time; whether it waited so often."""
    waits = 0
    cancelled = False

    class Counting:
        def __await__(self) -> Any:
            nonlocal waits, cancelled
            inner = coroutine.__await__()
            value: Any = None
            failure: BaseException | None = None
            while True:
                try:
                    future = inner.send(value) if failure is None else inner.throw(failure)
                except StopIteration as stop:
                    return stop.value
                value, failure = None, None
                waits += 1
                if waits == step:
                    cancelled = True
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                try:
                    value = yield future
                except BaseException as error:  # noqa: BLE001 - handed on to the call
                    failure = error

    async def run(counting: Awaitable[Any]) -> None:
        await counting

    task = asyncio.get_running_loop().create_task(run(Counting()))
    try:
        await task
    except asyncio.CancelledError:
        assert cancelled
    return cancelled


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "connected"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_may_be_cancelled_at_every_step(
    server: FakeServer, name: str, fresh: bool
) -> None:
    server.store.page_rows = 3
    cancelled = 0
    client = await connect(server.address, random=Random(1))
    table = await client.table("t")
    await table.multi_set("r", {b"%d" % i: "v" for i in range(5)})
    for step in range(1, 200):
        if fresh:
            await client.close()
            client = await connect(server.address, random=Random(1))
            table = await client.table("t")
            # Neither routing nor a connection: the call has to get both.
            table._calls.route = None
            for connection in list(client._pool.connections):
                connection.close("test")
        reached = await cancel_at_step(CALLS[name](client, table), step)
        # What the cancelled call had under way is answered, and the answer dropped.
        await asyncio.wait_for(table.set("after", "s", b"%d" % step), 5)
        assert await asyncio.wait_for(table.get("after", "s"), 5) == b"%d" % step
        connections = client._pool.connections
        await poll_until(partial(none_pending, connections), what="the end of all requests")
        live = [each for each in connections if not each.closed]
        assert len(live) == 1
        if not reached:
            break
        cancelled += 1
    else:
        pytest.fail("the call never ended")
    assert cancelled >= (2 if fresh else 1), "nothing was cancelled"
    await client.close()
    assert len(asyncio.all_tasks()) == 1
    await poll_until(lambda: not server.connections, what="the end of all connections")


async def test_connecting_may_be_cancelled_at_every_step(server: FakeServer) -> None:
    cancelled = 0
    for step in range(1, 50):

        async def open_and_close() -> None:
            async with connect(server.address) as client:
                await client.table("t")

        if not await cancel_at_step(open_and_close(), step):
            break
        cancelled += 1
        await poll_until(lambda: not server.connections, what="the end of all connections")
    assert cancelled > 2
    gc.collect()
    assert len(asyncio.all_tasks()) == 1


async def test_one_caller_who_is_cancelled_stops_no_other(server: FakeServer) -> None:
    client = await connect(server.address)
    table = await client.table("t")
    for number in range(1, 12):
        table._calls.route = None
        for connection in list(client._pool.connections):
            connection.close("test")
        loop = asyncio.get_running_loop()
        calls = [loop.create_task(table.get("h", b"%d" % i)) for i in range(6)]
        for _ in range(number):
            await asyncio.sleep(0)
        for call in calls[:3]:
            call.cancel()
        for call in calls[3:]:
            assert await asyncio.wait_for(call, 5) is None
    await client.close()


@pytest.mark.parametrize("seed", range(5))
async def test_callers_at_random_are_cancelled_and_all_others_get_their_own_reply(
    seed: int,
) -> None:
    random = Random(seed)
    server = await FakeServer(AsyncioNetwork()).start()
    done = {"cancelled": 0, "answered": 0}
    async with connect(server.address) as client:
        table = await client.table("t")
        await table.batch_set([(b"%d" % i, b"s", b"value %d" % i) for i in range(100)])

        async def read(number: int) -> None:
            value = await table.get(b"%d" % number, b"s")
            assert value == b"value %d" % number
            done["answered"] += 1

        loop = asyncio.get_running_loop()
        for _ in range(10):
            tasks = [loop.create_task(read(random.randrange(100))) for _ in range(40)]
            for _ in range(random.randrange(4)):
                await asyncio.sleep(0)
            for task in random.sample(tasks, 20):
                if task.cancel():
                    done["cancelled"] += 1
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
    await server.stop()
    assert done["cancelled"] > 20
    assert done["answered"] > 20
