from collections.abc import AsyncIterator
from random import Random

import pytest

from pegaskv.client.client import Client, connect
from pegaskv.client.table import Table
from pegaskv.net.asyncio_network import AsyncioNetwork
from tests.client.fake_server import FakeServer


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    server = await FakeServer(AsyncioNetwork()).start()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[Client]:
    async with connect(server.address, timeout=5.0, random=Random(1)) as client:
        yield client


@pytest.fixture
async def table(client: Client) -> Table:
    return await client.table("t")
