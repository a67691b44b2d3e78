"""Requests a second of the server alone, without a client library.

An equal raw driver sends requests that were packed beforehand, by 50 connections and by one,
each with 1, 16 or 64 under way (`depth 16 x 50`). Values have 100 bytes, keys 12, and nothing
is synced. Peers: a bare loop (uvloop, msgpack, one LevelDB; nothing else) that gets each
message as a frame of its own, the same loop on a dictionary that gets exactly our frames,
and Redis.
"""

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pegaskv
from pegaskv.base.hashing import partition_index
from pegaskv.base.version import PROTOCOL_VERSION
from pegaskv.codec.frames import FrameSplitter, encode_frame
from pegaskv.codec.operations import Operation
from tools.bench.peers import NO_REDIS, redis_server
from tools.bench.processes import Server, free_port, pegaskv_server, running
from tools.bench.raw import Count, FixedReplies, FrameReplies, Lane, Lanes
from tools.bench.report import OURS, Report, alternate

__all__ = ["BARE", "BARE_DICT", "REDIS", "run"]

BARE: Final = "bare loop"
BARE_DICT: Final = "bare loop, dict"
REDIS: Final = "Redis, raw"

VALUE = bytes(100)
SORT_KEY = b"s"
KEYS = 20_000
NAMES = [b"user%08d" % key for key in range(KEYS)]
PARTITIONS = 8
DEPTHS = (1, 16, 64)
CONNECTIONS = (50, 1)
# A round is measured in parts, the sides in turn.
_PARTS_MAX: Final = 10
_PART_S: Final = 0.05
# Ids that all take two bytes, so that replies of one kind have one length.
FIRST_ID = 1_000

# Keys of one chunk to its bytes; the second is made for each connection.
Encode = Callable[[list[int]], bytes]


@dataclass(frozen=True)
class _Wire:
    """How one side is spoken to."""

    port: int
    encode: dict[str, Encode]
    count: dict[str, Callable[[], Count]]
    greeting: bytes = b""

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.greeting:
            connection.sendall(self.greeting)
            splitter = FrameSplitter()
            while not (frames := splitter.feed(connection.recv(1 << 16))):
                pass
            if frames[0][0][1] != 0:
                raise SystemExit(f"the server answered {frames[0][0]} to hello")
        return connection

    @contextlib.contextmanager
    def lanes(self, kind: str, connections: int, depth: int) -> Iterator[Lanes]:
        lanes = Lanes(
            [
                Lane(self.connect(), self._chunks(kind, number, connections, depth), depth, count)
                for number, count in enumerate(self.count[kind]() for _ in range(connections))
            ]
        )
        try:
            yield lanes
        finally:
            lanes.close()

    def _chunks(self, kind: str, number: int, connections: int, depth: int) -> list[bytes]:
        """What one connection sends: its share of the keys, or four chunks at least."""
        chunks = max(4, KEYS // connections // depth)
        first = number * chunks * depth
        return [
            self.encode[kind]([(first + chunk * depth + at) * 7_919 % KEYS for at in range(depth)])
            for chunk in range(chunks)
        ]

    def load(self) -> None:
        """Write every key."""
        with self.lanes("set", 1, 16) as lanes:
            lanes.once()


def _ours(server: Server) -> _Wire:
    table_id = asyncio.run(_make_table(server.port))

    def messages(operation: Operation, keys: list[int], *fields: Any) -> list[Any]:
        return [
            (
                *(FIRST_ID + at, int(operation), 5_000, table_id),
                partition_index(NAMES[key], SORT_KEY, PARTITIONS),
                *(NAMES[key], SORT_KEY, *fields),
            )
            for at, key in enumerate(keys)
        ]

    hello: tuple[Any, ...] = (
        1,
        int(Operation.HELLO),
        5_000,
        PROTOCOL_VERSION,
        PROTOCOL_VERSION,
        "bench",
        0,
        [],
        [],
    )
    return _Wire(
        server.port,
        {
            "set": lambda keys: encode_frame(messages(Operation.SET, keys, VALUE, 0)),
            "get": lambda keys: encode_frame(messages(Operation.GET, keys)),
        },
        {"set": FrameReplies, "get": FrameReplies},
        encode_frame([hello]),
    )


async def _make_table(port: int) -> int:
    async with pegaskv.connect(f"127.0.0.1:{port}") as client:
        made = await client.admin.create_table("bench", PARTITIONS, envs={"durability": "os"})
        return made.table.table_id


def _bare(port: int, *, one_frame: bool) -> _Wire:
    def encode(messages: Iterable[tuple[Any, ...]]) -> bytes:
        if one_frame:
            return encode_frame(list(messages))
        return b"".join(encode_frame([message]) for message in messages)

    def sets(keys: list[int]) -> bytes:
        return encode(
            (FIRST_ID + at, int(Operation.SET), 5_000, 1, 0, NAMES[key], SORT_KEY, VALUE, 0)
            for at, key in enumerate(keys)
        )

    def gets(keys: list[int]) -> bytes:
        return encode(
            (FIRST_ID + at, int(Operation.GET), 5_000, 1, 0, NAMES[key], SORT_KEY)
            for at, key in enumerate(keys)
        )

    count: dict[str, Callable[[], Count]] = {"set": FrameReplies, "get": FrameReplies}
    if not one_frame:
        # A frame of one reply: header, array of one, array of three, id, 0, and 1 or the value.
        head = 8 + 1 + 1 + 3 + 1
        count = {
            "set": lambda: FixedReplies(head + 1),
            "get": lambda: FixedReplies(head + 2 + len(VALUE)),
        }
    return _Wire(port, {"set": sets, "get": gets}, count)


def _redis(port: int) -> _Wire:
    def sets(keys: list[int]) -> bytes:
        return b"".join(
            b"*3\r\n$3\r\nSET\r\n$12\r\n%b\r\n$%d\r\n%b\r\n" % (NAMES[key], len(VALUE), VALUE)
            for key in keys
        )

    def gets(keys: list[int]) -> bytes:
        return b"".join(b"*2\r\n$3\r\nGET\r\n$12\r\n%b\r\n" % NAMES[key] for key in keys)

    return _Wire(
        port,
        {"set": sets, "get": gets},
        {
            "set": lambda: FixedReplies(len(b"+OK\r\n")),
            "get": lambda: FixedReplies(len(b"$100\r\n\r\n") + len(VALUE)),
        },
    )


def _sides(stack: contextlib.ExitStack, report: Report) -> dict[str, _Wire]:
    sides = {OURS: _ours(stack.enter_context(pegaskv_server()))}
    for name, store, one_frame in ((BARE, "leveldb", False), (BARE_DICT, "dict", True)):
        port = free_port()
        command = [sys.executable, "-m", "tools.bench.bare_loop"]
        stack.enter_context(running([*command, "--port", str(port), "--store", store], port))
        sides[name] = _bare(port, one_frame=one_frame)
    redis = stack.enter_context(redis_server())
    if redis is None:
        report.note(NO_REDIS)
    else:
        sides[REDIS] = _redis(redis.port)
    return sides


def run(seconds: float, rounds: int) -> Report:
    """Measure; `seconds` a side and round."""
    report = Report("server", __doc__ or "")
    parts = max(1, min(_PARTS_MAX, int(seconds / _PART_S)))
    with contextlib.ExitStack() as stack:
        sides = _sides(stack, report)
        for wire in sides.values():
            wire.load()
        # Reads first: what writes leave to be compacted is no part of reading.
        for kind in ("get", "set"):
            for connections in CONNECTIONS:
                for depth in DEPTHS:
                    name = f"{kind}, depth {depth} x {connections}"
                    comparison = report.start(name, "requests/s")
                    with contextlib.ExitStack() as opened:
                        lanes = {
                            side: opened.enter_context(wire.lanes(kind, connections, depth))
                            for side, wire in sides.items()
                        }
                        rates = {side: _rate(one, seconds / parts) for side, one in lanes.items()}
                        alternate(comparison, rates, rounds, parts=parts)
    return report


def _rate(lanes: Lanes, seconds: float) -> Callable[[], float]:
    return lambda: lanes.rate(seconds)
