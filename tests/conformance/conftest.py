"""The conformance suite runs against a real server, or any cluster.

`PEGASKV_CONFORMANCE=HOST:PORT[,...]` names a cluster to test; without it a
standalone server is started. Tests share one table and use hash keys of their own;
tests that look at a whole table make one.
"""

import itertools
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

import pegaskv
from pegaskv.client import ClientOptions
from tests.cluster.process import running_server

_numbers = itertools.count()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the cluster under test."""
    named = os.environ.get("PEGASKV_CONFORMANCE")
    if named:
        yield named
        return
    directory: Path = tmp_path_factory.mktemp("conformance")
    with running_server(directory) as server:
        yield server.address


@pytest.fixture(scope="session")
def run_name() -> str:
    """What sets the tables of this run apart from those of another on the same cluster."""
    return f"conformance_{secrets.token_hex(4)}"


@pytest.fixture
async def client(cluster: str) -> AsyncIterator[pegaskv.Client]:
    # A machine that is busy may take long to accept.
    options = ClientOptions(timeout_ms=10_000, connect_timeout_ms=10_000)
    async with pegaskv.connect(cluster, options=options) as client:
        yield client


@pytest.fixture
async def table(client: pegaskv.Client, run_name: str) -> pegaskv.Table:
    """The table that tests share; each uses a hash key of its own."""
    await client.admin.create_table(run_name, partition_count=8, if_exists="same")
    return await client.table(run_name)


@pytest.fixture
def hk() -> bytes:
    """A hash key that no other test uses."""
    # Of one length, so that the neighbours that a test makes are nobody else's.
    return b"hash-key-%06d." % next(_numbers)


NewTable = Callable[..., Awaitable[pegaskv.Table]]


@pytest.fixture
async def new_table(client: pegaskv.Client, run_name: str) -> AsyncIterator[NewTable]:
    """Make empty tables; they are dropped for good at the end of the test."""
    names: list[str] = []

    async def make(partition_count: int = 4, **envs: str) -> pegaskv.Table:
        names.append(f"{run_name}_{next(_numbers)}")
        await client.admin.create_table(names[-1], partition_count, envs=envs or None)
        return await client.table(names[-1])

    yield make
    for name in names:
        await client.admin.drop_table(name, reserve_seconds=0)
