import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from pegaskv import blocking
from pegaskv.base.errors import InvalidArgument, TableNotFound, Timeout, Unavailable
from pegaskv.client import Check, Put, ScanOptions, admin, table
from pegaskv.codec.operations import Operation
from pegaskv.net.asyncio_network import AsyncioNetwork
from tests.client.fake_server import FakeServer, Fault
from tests.helpers import free_port, wait_until


@pytest.fixture
def running() -> Iterator[FakeServer]:
    """A server on a loop in another thread."""
    server = FakeServer(AsyncioNetwork())
    ready, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        await server.start()
        ready.set()
        await asyncio.get_running_loop().run_in_executor(None, stop.wait)
        await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    yield server
    stop.set()
    thread.join()


def client_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "pegaskv-client"]


def test_every_method_has_its_twin() -> None:
    for ours, theirs in ((blocking.Table, table.Table), (blocking.AdminClient, admin.AdminClient)):
        names = {name for name in dir(theirs) if not name.startswith("_")}
        assert len(names) > 10
        assert names <= {name for name in dir(ours) if not name.startswith("_")}


def test_the_same_calls_without_await(running: FakeServer) -> None:
    with blocking.connect(running.address) as client:
        users = client.table("t")
        users.set("h", "s", "v", ttl=5)
        assert users.get("h", "s") == b"v"
        assert users.ttl("h", "s") == 5
        assert users.incr("h", "n", 3) == 3
        assert users.check_and_set("h", "s", Check.EXIST, value="w").passed
        assert users.check_and_mutate("h", "s", Check.EXIST, mutations=[Put("a", "b")]).passed
        users.batch_set([(b"%d" % i, "s", "v") for i in range(500)])
        running.store.page_rows = 40
        rows = list(users.full_scan())
        assert len(rows) == len(set(rows)) == users.count() == 503
        assert [row.sort_key for row in users.scan("h", options=ScanOptions(no_value=True))] == [
            b"a",
            b"n",
            b"s",
        ]
        shares = [list(scanner) for scanner in users.unordered_scanners(2)]
        assert sorted(row for share in shares for row in share) == sorted(rows)
        with users.full_scan() as scanner:
            next(scanner)
        assert list(scanner) == []
        assert client.admin.create_table("x").created
        assert [each.name for each in client.admin.list_tables()] == ["t", "x"]
        with pytest.raises(TableNotFound):
            client.table("nope")
        with pytest.raises(InvalidArgument):
            users.get(None, "s")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument):
            users.scan("")
    assert client.closed
    assert not client_threads()
    client.close()
    with pytest.raises(Unavailable, match="closed"):
        users.get("h", "s")


def test_threads_share_one_client(running: FakeServer) -> None:
    with blocking.connect(running.address) as client:
        users = client.table("t")
        wrong: list[object] = []

        def work(number: int) -> None:
            for step in range(50):
                key = b"%d.%d" % (number, step)
                users.set(key, b"s", key)
                if users.get(key, b"s") != key:
                    wrong.append(key)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert users.count() == 400
        assert running.accepted == 1


def test_closing_ends_the_calls_of_other_threads(running: FakeServer) -> None:
    client = blocking.connect(running.address)
    users = client.table("t")
    running.faults.append(Fault(Operation.SET, "lose"))
    seen: list[BaseException] = []

    def work() -> None:
        try:
            users.set("h", "s", "v")
        except Unavailable as error:
            seen.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    wait_until(lambda: len(running.seen(Operation.SET)) == 1)
    client.close()
    thread.join()
    assert "closed" in str(seen[0])
    assert not client_threads()


def test_deadlines_and_failures_are_those_of_the_asyncio_client(running: FakeServer) -> None:
    with blocking.connect(running.address) as client:
        users = client.table("t")
        running.faults.append(Fault(Operation.SET, "lose"))
        with pytest.raises(Timeout) as caught:
            users.set("h", "s", "v", timeout=0.1)
        assert caught.value.maybe_applied
    with pytest.raises(Unavailable, match="refused"):
        blocking.connect(f"127.0.0.1:{free_port()}")
    with pytest.raises(InvalidArgument):
        blocking.connect("")
    assert not client_threads()


def test_a_forgotten_client_takes_its_thread_with_it(running: FakeServer) -> None:
    users = blocking.connect(running.address).table("t")
    gc.collect()
    # The table is in use, so its client is not forgotten.
    users.set("h", "s", "v")
    del users
    gc.collect()
    assert not client_threads()


@pytest.mark.parametrize("module", ["pegaskv.client", "pegaskv.blocking", "pegaskv"])
def test_the_client_is_light(module: str) -> None:
    heavy = ("aiohttp", "rich", "uvloop", "prompt_toolkit", "plyvel", "prometheus_client")
    code = (
        f"import sys, {module}; import pegaskv; pegaskv.connect\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.strip() == "[]"
