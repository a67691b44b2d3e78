"""Bytes that are not our protocol: an error or a closed connection, and nobody else notices."""

import struct
import tracemalloc
import zlib
from typing import Any

import msgpack
import pytest
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.errors import InvalidArgument, UnknownOperation
from pegaskv.base.limits import CLIENT_FRAME_BYTES_MAX, FRAME_MESSAGES_MAX
from pegaskv.codec.frames import encode_frame
from tests.net.connection_support import ECHO, LATER, Peer, Server, hello

U32 = 0xFFFFFFFF


def framed(body: bytes) -> bytes:
    return struct.pack(">II", len(body), crc32c(body)) + body


def header(length: int, checksum: int = 0) -> bytes:
    return struct.pack(">II", length, checksum)


GOOD = encode_frame([[7, ECHO, 0, b"key", b"value", 3, "text", [1, 2], {"a": None}]])
BODY = GOOD[8:]

# Each closes the connection: there is no id to answer, or the bytes cannot be trusted.
CLOSING: dict[str, bytes] = {
    "length over the limit": header(CLIENT_FRAME_BYTES_MAX + 1),
    "length 2^32-1": header(U32),
    "length that is negative as a signed number": header(0x80000000),
    "length 0": header(0),
    "checksum wrong": header(len(BODY), crc32c(BODY) ^ 1) + BODY,
    "checksum of another kind": header(len(BODY), zlib.crc32(BODY)) + BODY,
    "body changed": GOOD[:-1] + bytes([GOOD[-1] ^ 0x40]),
    "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "zeros": bytes(4_096),
    "trailing bytes in the body": framed(BODY + b"\x00"),
    "truncated body with a right checksum": framed(BODY[:-3]),
    "empty array": framed(b"\x90"),
    "too many messages": framed(msgpack.packb([[1, 1, 0] for _ in range(FRAME_MESSAGES_MAX + 1)])),
    "a map for the array": framed(b"\x81\xa1a\x01"),
    "a number for the array": framed(b"\x07"),
    "nil for the array": framed(b"\xc0"),
    "0xc1, which is no type": framed(b"\x91\xc1"),
    "a claim of 2^32-1 elements in five bytes": framed(b"\xdd\xff\xff\xff\xff"),
    "a claim of 2^32-1 entries": framed(b"\x91\xdf\xff\xff\xff\xff"),
    "a claim of 2^32-1 bytes": framed(b"\x91\xc6\xff\xff\xff\xff"),
    "nested 1 100 deep": framed(b"\x91" * 1_100 + b"\x00"),
    "invalid utf-8": framed(b"\x91\x94\x01\x5a\x00\xa2\xff\xfe"),
    "extension": framed(b"\x91\x94\x01\x5a\x00\xd4\x05\x00"),
    "timestamp extension": framed(b"\x91\x94\x01\x5a\x00\xd6\xff\x00\x00\x00\x01"),
    "an integer as a map's key": framed(b"\x91\x94\x01\x5a\x00\x81\x01\x02"),
    "an array as a map's key": framed(b"\x91\x94\x01\x5a\x00\x81\x90\x02"),
    "sixteen million empty maps": framed(
        b"\xdc\x04\x00" + (b"\xdc\x3e\x80" + b"\x80" * 16_000) * 1_024
    ),
    "message: number": framed(b"\x91\x07"),
    "message: nil": framed(b"\x91\xc0"),
    "message: text": framed(msgpack.packb(["abc"])),
    "message: bytes that look like a ping": framed(msgpack.packb([b"\x07\x01\x00"])),
    "message: map": framed(msgpack.packb([{"a": 1}])),
    "message: empty": framed(msgpack.packb([[]])),
    "message: id is text": framed(msgpack.packb([["7", ECHO, 0]])),
    "message: id is a bool": framed(msgpack.packb([[True, ECHO, 0]])),
    "message: id is nil": framed(msgpack.packb([[None, ECHO, 0]])),
    "message: id is a list": framed(msgpack.packb([[[7], ECHO, 0]])),
    "message: id is a float": framed(msgpack.packb([[7.0, ECHO, 0]])),
    "message: id is NaN": framed(msgpack.packb([[float("nan"), ECHO, 0]])),
}

# Each is answered by its id, and the connection goes on.
ANSWERED: dict[str, tuple[list[Any], int]] = {
    "only an id": ([7], InvalidArgument.code),
    "no time limit": ([7, 4_000], InvalidArgument.code),
    "unknown operation": ([7, 4_000, 0], UnknownOperation.code),
    "negative operation": ([7, -1, 0], UnknownOperation.code),
    "huge operation": ([7, 2**64 - 1, 0], UnknownOperation.code),
    "operation is text": ([7, "get", 0], InvalidArgument.code),
    "operation is a bool": ([7, True, 0], InvalidArgument.code),
    "operation is a float": ([7, float(ECHO), 0], InvalidArgument.code),
    "operation is nil": ([7, None, 0], InvalidArgument.code),
    "operation is a list": ([7, [ECHO], 0], InvalidArgument.code),
    "operation is a map": ([7, {"a": 1}, 0], InvalidArgument.code),
    "time limit is text": ([7, ECHO, "1"], InvalidArgument.code),
    "time limit is nil": ([7, ECHO, None], InvalidArgument.code),
    "time limit is a bool": ([7, ECHO, True], InvalidArgument.code),
    "ping with fields": ([7, 1, 0, 5], InvalidArgument.code),
    "hello again": ([7, 0, 0], InvalidArgument.code),
}


def still_served(peer: Peer) -> bool:
    peer.send([[99, ECHO, 0, b"still here"]])
    return peer.replies() == [[99, 0, b"still here"]]


@pytest.mark.parametrize("name", CLOSING)
@pytest.mark.parametrize("greeted", [False, True])
async def test_broken_bytes_close_their_connection_and_no_other(name: str, greeted: bool) -> None:
    server = Server()
    other = server.greeted("10.0.0.2")
    other.send([[5, LATER, 0]])
    peer = server.greeted() if greeted else server.connect()
    peer.send_bytes(CLOSING[name])
    assert peer.refused
    assert server.handled == [5]
    assert still_served(other)
    server.answer()
    assert other.replies() == [[5, 0]]
    assert peer.connection.held_bytes == 0
    assert server.acceptor.bytes_in_flight == 0
    broken = {metric.name: metric for metric in server.acceptor.metrics()}
    assert sum(value for _, value in broken["pegaskv_broken_frames_total"].samples) == 1


@pytest.mark.parametrize("name", ANSWERED)
async def test_a_bad_message_is_answered_by_its_id_and_the_rest_of_its_frame_is_served(
    name: str,
) -> None:
    message, code = ANSWERED[name]
    server = Server()
    peer = server.greeted()
    peer.send([[6, ECHO, 0], message, [8, ECHO, 0]])
    assert [reply[:2] for reply in peer.replies()] == [[6, 0], [7, code], [8, 0]]
    assert still_served(peer)


@pytest.mark.parametrize("name", ANSWERED)
async def test_a_bad_message_by_itself_is_answered_by_its_id(name: str) -> None:
    message, code = ANSWERED[name]
    server = Server()
    peer = server.greeted()
    peer.send([message])
    assert [reply[:2] for reply in peer.replies()] == [[7, code]]
    assert server.handled == []
    assert still_served(peer)


@pytest.mark.parametrize("request_id", [-1, 0, U32 + 1, 2**63])
async def test_an_id_out_of_its_range_closes_the_connection(request_id: int) -> None:
    server = Server()
    peer = server.greeted()
    peer.send([[request_id, ECHO, 0]])
    assert peer.refused
    assert server.handled == []


@pytest.mark.parametrize("cut", range(1, 9))
async def test_a_header_in_pieces_is_waited_for(cut: int) -> None:
    peer = Server().greeted()
    peer.send_bytes(GOOD[:cut])
    assert not peer.refused
    peer.send_bytes(GOOD[cut:])
    assert peer.replies()[0][:2] == [7, 0]


async def test_a_broken_frame_is_logged_once_per_kind_and_interval(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()
    for _ in range(50):
        server.greeted().send_bytes(CLOSING["checksum wrong"])
        server.greeted().send_bytes(CLOSING["empty array"])
    assert len(caplog.records) == 2
    server.pass_time(60_000)
    server.greeted().send_bytes(CLOSING["checksum wrong"])
    assert len(caplog.records) == 3
    assert "49 more" in caplog.records[2].getMessage()


async def test_the_peer_is_told_why_before_the_end() -> None:
    peer = Server().greeted()
    peer.send([[7, LATER, 0], [8, ECHO, 0]])
    peer.send_bytes(CLOSING["checksum wrong"])
    replies = peer.replies()
    assert replies[0] == [8, 0]
    assert replies[1][:2] == [0, InvalidArgument.code]
    assert "checksum" in replies[1][2]


async def test_http_is_answered_in_its_own_words() -> None:
    peer = Server().connect()
    peer.send_bytes(CLOSING["http"])
    assert bytes(peer.transport.written).startswith(b"HTTP/1.1 400 ")
    assert peer.transport.closing


async def test_broken_frames_leave_no_memory_behind() -> None:
    server = Server()
    large = encode_frame([[7, ECHO, 0, bytes(200_000)]])

    def storm() -> None:
        for number in range(40):
            peer = server.greeted(f"10.0.1.{number}")
            peer.send_bytes(large[:150_000])
            peer.send_bytes(CLOSING["a claim of 2^32-1 elements in five bytes"] * 10)
            peer.transport.lose()

    storm()
    tracemalloc.start()
    try:
        storm()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            storm()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 100_000
    assert peak - before < 40 * len(large)
    assert server.acceptor.connection_count == 0
    server.acceptor.check()


FRAMES = [
    [[7, ECHO, 0, b"key", b"value", 3, "text", [1, 2], {"a": None}]],
    [[8, LATER, 5_000], [9, ECHO, 0, -1, 2**40, 1.5, None, True]],
    [[number, ECHO, 0, bytes(number)] for number in range(10, 30)],
]
VALID = b"".join(map(encode_frame, FRAMES))

mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "double"]),
        st.integers(0, len(VALID) - 1),
        st.binary(min_size=1, max_size=8),
    ),
    max_size=4,
)


def mutate(data: bytes, changes: list[tuple[str, int, bytes]], *, repair: bool) -> bytes:
    for kind, position, noise in changes:
        position %= len(data) or 1
        match kind:
            case "flip":
                data = data[:position] + noise[:1] + data[position + 1 :]
            case "cut":
                data = data[:position] + data[position + len(noise) :]
            case "insert":
                data = data[:position] + noise + data[position:]
            case "double":
                data = data[:position] + data[position : position + 64] + data[position:]
    return framed(data) if repair else data


async def serve(data: bytes, cut: int, *, greeted: bool) -> list[list[Any]]:
    """Feed `data` to one peer; assert that another is served and that nothing is held after."""
    server = Server()
    other = server.greeted("10.0.0.2")
    peer = server.greeted() if greeted else server.connect()
    for begin in range(0, len(data), cut):
        peer.send_bytes(data[begin : begin + cut])
    server.answer()
    assert still_served(other)
    replies = peer.replies()
    peer.transport.lose()
    server.acceptor.check()
    assert server.acceptor.bytes_in_flight == 0
    assert server.acceptor.handler_failures == 0
    return replies


@given(changes=mutations, cut=st.integers(1, 200), greeted=st.booleans())
async def test_changed_frames_never_escape(
    changes: list[tuple[str, int, bytes]], cut: int, greeted: bool
) -> None:
    await serve(mutate(VALID, changes, repair=False), cut, greeted=greeted)


@given(changes=mutations, cut=st.integers(1, 200))
async def test_changed_bodies_with_a_right_checksum_never_escape(
    changes: list[tuple[str, int, bytes]], cut: int
) -> None:
    await serve(mutate(BODY, changes, repair=True), cut, greeted=True)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=20)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(messages=st.lists(anything, min_size=1, max_size=5), greeted=st.booleans())
async def test_any_message_is_answered_or_ends_the_connection(
    messages: list[Any], greeted: bool
) -> None:
    await serve(framed(msgpack.packb(messages)), 1_000_000, greeted=greeted)


@given(fields=st.lists(anything, max_size=8))
async def test_any_hello_is_answered(fields: list[Any]) -> None:
    replies = await serve(encode_frame([[7, 0, 0, *fields]]), 1_000_000, greeted=False)
    assert [reply[0] for reply in replies] in ([7], [0])


async def test_the_mutations_are_not_all_refused() -> None:
    """The generators above are worth something: both ends of what they make are reached."""
    assert len(await serve(VALID, 50, greeted=True)) == 23
    assert len(await serve(encode_frame([hello()]), 3, greeted=False)) == 1
