"""A server that stops under load: every request is answered, and none is of unknown outcome."""

import asyncio
from random import Random
from typing import Any

from pegaskv.base.errors import Unavailable
from pegaskv.client import connect
from pegaskv.codec.operations import Operation
from pegaskv.net.acceptor import Acceptor
from pegaskv.net.asyncio_network import AsyncioNetwork
from pegaskv.net.hello import SERVER_FEATURE
from pegaskv.runtime.clock import SystemClock
from pegaskv.runtime.tasks import TaskScope
from tests.helpers import poll_until
from tests.net.connection_support import IDENTITY, hello
from tests.net.test_connection_sockets import Client, serving


async def test_writes_under_way_when_a_server_stops_are_all_answered() -> None:
    done = 0

    def on_set(connection: Any, message: list[Any]) -> None:
        nonlocal done
        done += 1
        connection.defer()

        def answer() -> None:
            connection.finish((message[0], 0, done))
            connection.flush()

        asyncio.get_running_loop().call_later(0.001 * (done % 5), answer)

    def on_config(connection: Any, message: list[Any]) -> None:
        connection.out.append((message[0], 0, 1, 1, 1, [[0, 1, "", []]]))

    acceptor = Acceptor(
        {Operation.SET: on_set, Operation.QUERY_CONFIG: on_config},
        identity=IDENTITY,
        clock=SystemClock(),
    )
    listener = await AsyncioNetwork().listen(acceptor, "127.0.0.1", 0)
    address = "{}:{}".format(*listener.address)
    counts = {"acknowledged": 0, "refused": 0, "unknown": 0}
    async with TaskScope("writers") as scope:
        clients = [await connect(address, random=Random(n)) for n in range(4)]

        async def write(number: int) -> None:
            table = await clients[number % 4].table("t")
            while True:
                try:
                    await table.set("h", "s", "v", timeout=3.0)
                except Unavailable as error:
                    counts["unknown" if error.maybe_applied else "refused"] += 1
                    return
                counts["acknowledged"] += 1

        tasks = [scope.start(f"writer {number}", write(number)) for number in range(40)]
        await poll_until(lambda: counts["acknowledged"] > 500)
        await listener.close()
        began_ms = SystemClock().monotonic_ms()
        await acceptor.say_goodbye(20_000)
        assert SystemClock().monotonic_ms() - began_ms < 15_000
        assert not acceptor.connection_count
        await acceptor.drain(100)
        for task in tasks:
            await task
        for client in clients:
            await client.close()
    assert (counts["refused"], counts["unknown"]) == (40, 0)
    assert counts["acknowledged"] == done


async def test_who_does_not_close_is_waited_for_no_longer_than_that() -> None:
    async with serving() as (acceptor, port):
        client = await Client.greeted(port)
        await acceptor.say_goodbye(50)
        farewell = await client.receive()
        assert farewell[:3] == [0, 13, "the server is stopping"]
        # What it sends all the same is handled.
        client.send([[7, Operation.PING, 0]])
        assert (await client.receive())[:2] == [7, 0]
        late = await Client.connect(port)
        assert (await late.receive())[1] == 20
        await late.close()
        await acceptor.drain(50)
        assert await client.closed()
        await client.close()


async def test_other_servers_are_not_waited_for() -> None:
    async with serving() as (acceptor, port):
        peer = await Client.connect(port)
        greeting = hello()
        greeting[7] = [SERVER_FEATURE]
        peer.send([greeting])
        assert (await peer.receive())[:2] == [1, 0]
        began_ms = SystemClock().monotonic_ms()
        await acceptor.say_goodbye(20_000)
        assert SystemClock().monotonic_ms() - began_ms < 15_000
        await peer.close()
