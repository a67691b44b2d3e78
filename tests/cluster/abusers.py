"""Clients that abuse a server without end, one function each; also as a process of their own.

`python -m tests.cluster.abusers PORT TABLE_ID NAME ...` runs them until it is killed. The table
has 8 partitions, and a row `large0` to `large15` of 900 000 bytes each.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from struct import pack as pack_struct
from typing import Any, Final

from google_crc32c import value as crc32c

from pegaskv.base.hashing import partition_index
from pegaskv.codec.frames import encode_frame
from pegaskv.codec.operations import Operation
from pegaskv.codec.packing import pack
from pegaskv.runtime.tasks import TaskScope
from tests.helpers import pause
from tests.net.test_connection_sockets import Client

__all__ = ["ABUSERS", "LARGE_BYTES", "LARGE_ROWS", "PARTITIONS"]

PARTITIONS: Final = 8
LARGE_ROWS: Final = 16
LARGE_BYTES: Final = 900_000

Abuser = Callable[[int, int], Coroutine[Any, Any, None]]


def index_of(hash_key: bytes) -> int:
    return partition_index(hash_key, b"", PARTITIONS)


def same_partition(count: int) -> list[bytes]:
    """Hash keys of partition 3."""
    found: list[bytes] = []
    number = 0
    while len(found) < count:
        key = b"k%d" % number
        number += 1
        if index_of(key) == 3:
            found.append(key)
    return found


def frame_of(body: bytes) -> bytes:
    return pack_struct(">II", len(body), crc32c(body)) + body


async def many(count: int, one: Callable[[int], Coroutine[Any, Any, None]]) -> None:
    """Run so many of them; one that the server has thrown out comes again."""

    async def again(number: int) -> None:
        while True:
            with suppress(OSError, AssertionError):
                await one(number)
            await pause(0.1)

    async with TaskScope("abusers") as scope:
        for number in range(count):
            scope.start("abuser", again(number))


async def throw_away(client: Client) -> None:
    with suppress(ConnectionError):
        while await client.reader.read(1 << 20):
            pass


async def ask_without_end(
    port: int, make: Callable[[int], list[Any]], *, connections: int, depth: int
) -> None:
    """Keep `depth` requests under way on each connection."""

    async def one(number: int) -> None:
        client = await Client.greeted(port)
        request_id = under_way = 0
        while True:
            while under_way < depth:
                request_id += 1
                under_way += 1
                client.send([[request_id, *make(number)]])
            if (await client.receive())[1]:
                # Busy, for one.
                await pause(0.005)
            under_way -= 1

    await many(connections, one)


async def never_reads(port: int, table_id: int) -> None:
    """Asks for 180 MB on each of 20 connections and reads nothing."""

    async def one(number: int) -> None:
        client = await Client.greeted(port)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        key = b"large%d" % (number % LARGE_ROWS)
        for request_id in range(1, 200):
            client.send([[request_id, Operation.GET, 5_000, table_id, index_of(key), key, b""]])
        await asyncio.Event().wait()

    await many(20, one)


async def half_frames(port: int, table_id: int) -> None:
    """Sends nearly all of a 14 MB frame, on 30 connections."""
    row = [1, Operation.SET, 5_000, table_id, 3, b"k", b"s", bytes(1 << 20), 0]
    most = encode_frame([row] * 14)[:-1]

    async def one(_: int) -> None:
        client = await Client.greeted(port)
        client.writer.write(most)
        await client.writer.drain()
        await throw_away(client)

    await many(30, one)


async def slow_senders(port: int, table_id: int) -> None:
    """A byte a second on 300 connections, half of them before hello."""
    ping = encode_frame([[1, Operation.PING, 5_000]])

    async def one(number: int) -> None:
        client = await (Client.connect if number % 2 else Client.greeted)(port)
        for byte in ping * 4:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
            await pause(1)

    await many(300, one)


async def tiny_requests(port: int, table_id: int) -> None:
    """Reads as fast as it can, 1 024 in a frame."""
    await _flood(
        port, [[n, Operation.GET, 5_000, table_id, 3, b"k1", b""] for n in range(1, 1_025)]
    )


async def tiny_writes(port: int, table_id: int) -> None:
    """The same with writes."""
    [key] = same_partition(1)
    await _flood(
        port,
        [[n, Operation.SET, 5_000, table_id, 3, key, b"%d" % n, b"v", 0] for n in range(1, 1_025)],
    )


async def _flood(port: int, messages: list[list[Any]]) -> None:
    frame = encode_frame(messages)

    async def one(_: int) -> None:
        client = await Client.greeted(port)
        async with TaskScope("replies") as scope:
            scope.start("replies", throw_away(client))
            while True:
                client.writer.write(frame)
                await client.writer.drain()

    await many(4, one)


async def giant_batches(port: int, table_id: int) -> None:
    """Batches of 1 000 tiny rows, 16 under way."""
    flat = [part for key in same_partition(1_000) for part in (key, b"", b"")]
    await ask_without_end(
        port,
        lambda _: [Operation.BATCH_SET, 5_000, table_id, 3, flat, 0],
        connections=2,
        depth=16,
    )


async def giant_operations(port: int, table_id: int) -> None:
    """Multi-operations of 10 000 rows, and reads of as many."""
    names = [b"s%05d" % number for number in range(10_000)]
    flat = [part for name in names for part in (name, b"value")]
    [key] = same_partition(1)

    def make(number: int) -> list[Any]:
        if number % 2:
            return [Operation.MULTI_SET, 5_000, table_id, 3, key, flat, 0]
        limits = (b"", b"", 1, 0, b"", 0, 0)
        return [Operation.MULTI_GET, 5_000, table_id, 3, key, names, *limits]

    await ask_without_end(port, make, connections=4, depth=4)


async def bombs(port: int, table_id: int) -> None:
    """Frames that claim much, or are a million empty maps."""
    claims = [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
    maps = (
        b"\x91\x95\x01\x05\xcd\x13\x88\x01\xdc\x4e\x20" + (b"\xdc\x00\x32" + b"\x80" * 50) * 20_000
    )
    bodies = [b"\x91" + claim for claim in claims] + [b"\x91" * 4_000, maps, pack([[1] * 3] * 900)]
    frames = [frame_of(body) for body in bodies] + [pack_struct(">II", 0xFFFFFFFF, 0)]

    async def one(number: int) -> None:
        for frame in frames[number % 3 :: 3]:
            client = await Client.greeted(port)
            client.writer.write(frame)
            await client.writer.drain()
            await throw_away(client)

    await many(20, one)


async def connections(port: int, table_id: int) -> None:
    """Connects as fast as it can, and keeps 1 200 open."""
    kept: list[Client] = []

    async def one(_: int) -> None:
        while True:
            kept.append(await Client.connect(port))
            if len(kept) > 1_200:
                kept.pop(0).writer.transport.abort()

    await many(8, one)


async def scans(port: int, table_id: int) -> None:
    """Scans of all partitions from their beginnings, 256 under way."""
    await ask_without_end(
        port,
        lambda number: [
            *(Operation.SCAN, 5_000, table_id, number % PARTITIONS),
            *(b"", b"", 0, 0, b"", 0, b"", 0, b"", 1_000, 0),
        ],
        connections=16,
        depth=16,
    )


ABUSERS: Final[dict[str, Abuser]] = {
    each.__name__: each
    for each in (
        never_reads,
        half_frames,
        slow_senders,
        tiny_requests,
        tiny_writes,
        giant_batches,
        giant_operations,
        bombs,
        connections,
        scans,
    )
}


async def main(port: int, table_id: int, names: list[str]) -> None:
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    async with TaskScope("abusers") as scope:
        for name in names:
            scope.start(name, ABUSERS[name](port, table_id))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
