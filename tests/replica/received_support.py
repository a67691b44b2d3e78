"""What tests of received rows send: rows, mutations, batches and ranges of cluster 2."""

from typing import Any

from pegaskv.codec.keys import encode_key
from pegaskv.codec.mutations import (
    OperationKind,
    encode_mutation,
    encode_operation,
)
from pegaskv.codec.operations import Operation
from pegaskv.codec.values import make_timetag, pack_row_header
from tests.replica.duplication_pair import source_order, stream_uuid
from tests.replica.stub_world import Server
from tests.simulation.world import Life

UUID = stream_uuid(2)
STREAM = (UUID, 1, 0)
OK, INVALID_ARGUMENT, INVALID_DATA, UNKNOWN_OPERATION = 0, 1, 2, 3
NOT_LISTED, CLOCK_SKEW, FOLLOWER = 52, 53, 23


def row(timestamp_us: int, value: bytes = b"", *, cluster: int = 2, **more: Any) -> bytes:
    expiry = more.pop("expiry", 0)
    return pack_row_header(expiry, make_timetag(timestamp_us, cluster, **more)) + value


def key(sort_key: bytes) -> bytes:
    return encode_key(b"h", sort_key)


def mutation(timestamp_us: int, *operations: list[bytes]) -> bytes:
    return encode_mutation(
        timestamp_us, [encode_operation(OperationKind.WRITE, 0, list(each)) for each in operations]
    )


async def opened(life: Life, *, first: bool = True, **more: Any) -> Server:
    server = Server(life, **{k: more.pop(k) for k in ("log_options", "options") if k in more})
    await server.start()
    await server.serve(first=first, sources=(source_order(2),), **more)
    return server


async def duplicate(
    server: Server, previous: int, last: int, *flat: Any, clock_us: int = 1
) -> list[Any]:
    reply: list[Any] = await server.ask(
        Operation.DUPLICATE, *STREAM, previous, last, clock_us, list(flat)
    )
    return reply


async def copy(server: Server, *flat: bytes, clock_us: int, **more: Any) -> list[Any]:
    start, stop = more.get("start", b""), more.get("stop", b"")
    reply: list[Any] = await server.ask(
        Operation.COPY_RANGE, *STREAM, start, stop, clock_us, more.get("equal", False), list(flat)
    )
    return reply


async def progress(server: Server) -> tuple[int, int]:
    reply = await server.ask(Operation.DUPLICATION_PROGRESS, *STREAM)
    assert reply[0] == OK, reply
    return reply[1], reply[2]
