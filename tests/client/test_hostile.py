"""Servers that are none, are broken, or mean harm: an error that can be read, never a hang."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from pegaskv.base.errors import PegasKVError, Unavailable
from pegaskv.client import Table, connect
from pegaskv.codec.frames import encode_frame
from pegaskv.codec.operations import Operation
from pegaskv.net.asyncio_network import AsyncioNetwork
from tests.client.fake_server import FakeServer, Fault
from tests.client.test_calls import ALL, WRITES
from tests.helpers import free_port

# What a reply behind its id may be instead of what it should be.
NONSENSE: list[Callable[[int], Any]] = [
    lambda i: [i, 0],
    lambda i: [i, 0, 5],
    lambda i: [i, 0, "text", "text", "text", "text", "text"],
    lambda i: [i, 0, {}, {}, {}, {}, {}],
    lambda i: [i, 0, [[]], [[]], [[]], [[]]],
    lambda i: [i, 0, -9, -9, -9, -9],
    lambda i: [i, 0, False, [b"b", b"", b"a", b""], b"b"],
    lambda i: [i, 0, False, [], b""],
    lambda i: [i, 0, b"", 1, [b"\xff\xff", b"v"]],
    lambda i: [i, 0, None, 1, [b"a"]],
    lambda i: [i, 0, True, True, True, True],
]
BROKEN: list[Callable[[int], Any]] = [
    lambda i: i,
    lambda i: [],
    lambda i: [i],
    lambda i: [[i], 0],
    lambda i: {"id": i},
    lambda i: [i, "0"],
    lambda i: [i, None, None],
    lambda i: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    lambda i: b"\x00\x00\x00\x05\x00\x00\x00\x00hello",
    lambda i: b"\xff" * 64,
    lambda i: encode_frame([[i, 0]])[:-1] + b"\xff",
    lambda i: None,
]


@pytest.mark.parametrize("operation", ALL)
async def test_a_reply_that_is_nonsense_is_an_error_or_a_value_and_never_a_foreign_exception(
    server: FakeServer, table: Table, operation: Operation
) -> None:
    await table.set("h", "n", "1")
    refused = 0
    for reply in NONSENSE:
        server.faults = [Fault(operation, reply)]
        error: PegasKVError | None = None
        try:
            await asyncio.wait_for(ALL[operation](table), 5)
        except PegasKVError as raised:
            error = raised
        if error is not None:
            assert isinstance(error, Unavailable), repr(error)
            assert "malformed" in str(error)
            assert error.maybe_applied is (operation in WRITES)
            refused += 1
        assert not server.faults
    # These four have nothing in their reply that anybody looks at.
    blind = (Operation.SET, Operation.DELETE, Operation.MULTI_SET)
    blind += (Operation.BATCH_SET, Operation.BATCH_DELETE)
    assert refused >= (0 if operation in blind else 5)
    server.faults = []
    assert await table.get("h", "n") is not None


@pytest.mark.parametrize(
    "keys",
    [
        [b"\xff\xff" + bytes(65_600), b"\xff\xff" + b"\x01" * 65_600],
        [b"\x00\x02a", b"\x00\x02b"],
        [b"\x00\x02aa", b"\x00\x02b"],
        [b"\x00\x01a", b"\x00\x02b"],
        [b"\x00"],
        [b""],
        [b"", b"\x00\x01a"],
    ],
    ids=lambda keys: repr([key[:8] for key in keys]),
)
async def test_a_page_of_what_is_no_stored_key_is_refused(
    server: FakeServer, table: Table, keys: list[bytes]
) -> None:
    flat = [part for key in keys for part in (key, b"v")]
    server.faults = [Fault(Operation.SCAN, lambda i: [i, 0, None, len(keys), flat])]
    with pytest.raises(Unavailable, match="malformed"):
        async for _ in table.full_scan():
            pass
    assert not server.faults


@pytest.mark.parametrize("reply", BROKEN)
@pytest.mark.parametrize("operation", [Operation.GET, Operation.SET, Operation.SCAN])
async def test_a_broken_message_costs_its_connection_and_nothing_else(
    server: FakeServer, table: Table, operation: Operation, reply: Callable[[int], Any]
) -> None:
    server.faults = [Fault(operation, reply)]
    if operation in WRITES:
        with pytest.raises(Unavailable) as caught:
            await asyncio.wait_for(ALL[operation](table), 5)
        assert caught.value.maybe_applied
    else:
        await asyncio.wait_for(ALL[operation](table), 5)
    await table.set("h", "s", "v")
    assert server.accepted == 2


@pytest.mark.parametrize("code", [99, 1_000_000, -5, 4])
async def test_an_error_of_a_newer_server_names_its_number(
    server: FakeServer, table: Table, code: int
) -> None:
    server.faults = [Fault(Operation.GET, lambda i: [i, code, "new trouble"])]
    with pytest.raises(PegasKVError, match="new trouble"):
        await table.get("h", "s")
    server.faults = [Fault(Operation.GET, lambda i: [i, code, 5, 6, 7])]
    with pytest.raises(PegasKVError):
        await table.get("h", "s")


@pytest.mark.parametrize(
    "reply",
    [
        lambda i: [i, 0],
        lambda i: [i, 0, 1, 2, 3],
        lambda i: [i, 0, 7, "x", "x", 1, "u", "n", [], [], {}],
        lambda i: [i, 0, "1", "x", "x", 1, "u", "n", [], [], {}],
        lambda i: [i, 0, 1, "x", "x", 1, "u", "n", [], [], None],
        lambda i: [i, 1, "go away"],
        lambda i: [i + 1, 0, 1],
        lambda i: 5,
        lambda i: None,
        lambda i: b"HTTP/1.1 400 Bad Request\r\n\r\n",
        lambda i: b"\x00\x00\x00\x00\x00\x00\x00\x00",
    ],
)
async def test_a_wrong_answer_to_hello_is_an_error_that_names_the_address(
    server: FakeServer, reply: Callable[[int], Any]
) -> None:
    server.hello = reply
    with pytest.raises(PegasKVError, match=server.address):
        await connect(server.address, timeout=0.2)
    await asyncio.sleep(0)


async def test_nonsense_limits_of_a_server_are_not_believed(server: FakeServer) -> None:
    limits = {"requests_in_flight_max": 0, "bytes_in_flight_max": "x", "frame": [1]}
    server.hello = lambda i: [i, 0, 1, "x", "x", 1, "u", "n", [], [], limits]
    async with connect(server.address) as client:
        table = await client.table("t")
        await table.set("h", "s", b"v" * 10_000)


async def test_wrong_addresses_are_named_with_their_cause() -> None:
    port = free_port()
    with pytest.raises(Unavailable, match=f"127.0.0.1:{port}: the connection was refused"):
        await connect(f"127.0.0.1:{port}")
    with pytest.raises(Unavailable, match=r"no-such-host\.invalid:1: the host's name is not known"):
        await connect("no-such-host.invalid:1")
    other = free_port()
    with pytest.raises(Unavailable, match="no meta server answers") as caught:
        await connect([f"127.0.0.1:{port}", f"127.0.0.1:{other}"])
    assert str(port) in str(caught.value)
    assert str(other) in str(caught.value)


async def test_a_server_that_never_speaks_is_given_up_in_time() -> None:
    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            transports.append(cast(asyncio.Transport, transport))

    transports: list[asyncio.Transport] = []
    listener = await AsyncioNetwork().listen(Silent, "127.0.0.1", 0)
    with pytest.raises(Unavailable, match="hello was not answered within"):
        await connect("{}:{}".format(*listener.address), timeout=0.5)
    await listener.close()
    for transport in transports:
        transport.abort()


async def test_a_web_server_is_told_from_ours() -> None:
    class Web(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            self.transport.close()

    listener = await AsyncioNetwork().listen(Web, "127.0.0.1", 0)
    with pytest.raises(Unavailable, match="not the protocol of pegaskv"):
        await connect("{}:{}".format(*listener.address))
    await listener.close()


@pytest.mark.parametrize("primary", ["nonsense", "a:b", "127.0.0.1:0", "::::1"])
async def test_an_address_from_the_server_that_is_none_is_an_error_in_time(
    server: FakeServer, table: Table, primary: str
) -> None:
    server.store.tables["t"].primaries = dict.fromkeys(range(4), primary)
    async with connect(server.address, timeout=0.3) as client:
        table = await client.table("t")
        with pytest.raises(Unavailable, match="named the address"):
            await table.get("h", "s")
