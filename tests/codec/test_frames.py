"""Frames: where the bytes are cut never matters, and a liar gains nothing."""

import random
import struct
import time
import tracemalloc
from typing import Any

import pytest
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.errors import WireError
from pegaskv.base.limits import (
    BEFORE_HELLO_BYTES_MAX,
    CLIENT_FRAME_BYTES_MAX,
    FRAME_MESSAGES_MAX,
)
from pegaskv.codec.frames import (
    HEADER_BYTES,
    WHOLE_BYTES_MAX,
    FrameSplitter,
    encode_frame,
    encode_write_reply,
    whole_frame,
)
from pegaskv.codec.packing import pack
from pegaskv.net.flow_control import LITTLE_BYTES

MESSAGES: list[list[Any]] = [
    [1, 10, 1000, 3, 2, b"hash", b"sort"],
    [2, 30, 1000, 3, 2, b"", b"\x00\xff", b"value" * 40, 0],
    [3, 60, 0, "t\u00e4ble"],
]


def frame_of(body: bytes) -> bytes:
    """A well-formed header in front of any body."""
    return struct.pack(">II", len(body), crc32c(body)) + body


def feed_in_chunks(splitter: FrameSplitter, data: bytes, size: int) -> list[list[Any]]:
    frames = []
    for start in range(0, len(data), size):
        frames += splitter.feed(data[start : start + size])
    return frames


def test_a_frame_in_one_chunk_is_returned_at_once() -> None:
    splitter = FrameSplitter()
    assert splitter.feed(encode_frame(MESSAGES)) == [MESSAGES]
    assert not splitter.held


@pytest.mark.parametrize("cut", range(1, 60))
def test_the_cut_of_the_bytes_never_matters(cut: int) -> None:
    data = encode_frame(MESSAGES) + encode_frame(MESSAGES[:1]) + encode_frame(MESSAGES[1:])
    splitter = FrameSplitter()
    frames = splitter.feed(data[:cut]) + splitter.feed(data[cut:])
    assert frames == [MESSAGES, MESSAGES[:1], MESSAGES[1:]]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, 1000])
def test_chunks_of_any_size_give_the_same_frames(size: int) -> None:
    splitter = FrameSplitter()
    data = b"".join(encode_frame([message]) for message in MESSAGES * 20)
    assert feed_in_chunks(splitter, data, size) == [[message] for message in MESSAGES * 20]
    assert not splitter.held


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), max_size=9), st.randoms())
def test_random_frames_in_random_chunks_come_out_as_they_went_in(
    frames: list[list[int]], rng: random.Random
) -> None:
    data = b"".join(encode_frame(frame) for frame in frames)
    splitter = FrameSplitter()
    received: list[list[Any]] = []
    while data:
        cut = rng.randint(1, 40)
        received += splitter.feed(data[:cut])
        data = data[cut:]
    assert received == frames
    assert not splitter.held


def test_many_frames_in_one_chunk_keep_their_order() -> None:
    data = b"".join(encode_frame([[number]]) for number in range(500))
    assert FrameSplitter().feed(data) == [[[number]] for number in range(500)]


def test_the_rest_of_a_chunk_waits_for_its_own_frame_alone() -> None:
    splitter = FrameSplitter()
    first, second = encode_frame(MESSAGES), encode_frame(MESSAGES[:1])
    assert splitter.feed(first + second[:5]) == [MESSAGES]
    assert len(splitter.held) == 5
    assert splitter.feed(second[5:]) == [MESSAGES[:1]]


def test_an_empty_chunk_changes_nothing() -> None:
    splitter = FrameSplitter()
    data = encode_frame(MESSAGES)
    assert splitter.feed(data[:10]) == []
    assert splitter.feed(b"") == []
    assert splitter.feed(data[10:]) == [MESSAGES]


def test_a_large_frame_in_small_chunks_costs_linear_time() -> None:
    # Quadratic copying would make the large frame 16 times dearer per byte.
    def seconds(size: int) -> float:
        data = encode_frame([b"x" * size])
        best = 10.0
        for _ in range(3):
            splitter = FrameSplitter()
            start = time.process_time()
            assert len(feed_in_chunks(splitter, data, 512)) == 1
            best = min(best, time.process_time() - start)
        return best

    small, large = seconds(512 * 1024), seconds(8 * 1024 * 1024)
    assert large < small * 16 * 5, f"{small:.4f} s for 512 KiB, {large:.4f} s for 8 MiB"


def test_memory_of_an_unfinished_frame_is_bounded_by_what_arrived() -> None:
    size = 1024 * 1024
    data = encode_frame([b"x" * size])[:-1]
    splitter = FrameSplitter()
    tracemalloc.start()
    try:
        assert feed_in_chunks(splitter, data, 16) == []
        held, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(splitter.held) == len(data)
    assert held < 2 * size


def test_a_length_above_the_limit_is_refused_on_the_header_alone() -> None:
    splitter = FrameSplitter(1000)
    with pytest.raises(WireError, match="frame of 1001 bytes; the limit is 1000"):
        splitter.feed(struct.pack(">II", 1001, 0))
    assert not splitter.held


@pytest.mark.parametrize("length", [CLIENT_FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1])
def test_huge_and_negative_looking_lengths_are_refused(length: int) -> None:
    with pytest.raises(WireError, match="the limit is"):
        FrameSplitter().feed(struct.pack(">II", length, 0) + b"x")


def test_a_frame_of_exactly_the_limit_passes() -> None:
    body = pack([b"x" * 990])
    splitter = FrameSplitter(len(body))
    assert splitter.feed(frame_of(body)) == [[b"x" * 990]]
    with pytest.raises(WireError, match="the limit is"):
        FrameSplitter(len(body) - 1).feed(frame_of(body))


def test_the_limit_may_be_raised_after_hello() -> None:
    splitter = FrameSplitter(BEFORE_HELLO_BYTES_MAX)
    large = encode_frame([b"x" * BEFORE_HELLO_BYTES_MAX])
    hello = encode_frame([[0, 0, 0]])
    # The header of the large frame is cut, so that it is judged by the limit of then.
    assert splitter.feed(hello + large[:6]) == [[[0, 0, 0]]]
    splitter.frame_bytes_max = CLIENT_FRAME_BYTES_MAX
    assert splitter.feed(large[6:]) == [[b"x" * BEFORE_HELLO_BYTES_MAX]]


def test_before_hello_a_larger_frame_is_refused() -> None:
    splitter = FrameSplitter(BEFORE_HELLO_BYTES_MAX)
    with pytest.raises(WireError, match="the limit is 4096"):
        splitter.feed(encode_frame([b"x" * BEFORE_HELLO_BYTES_MAX]))


@pytest.mark.parametrize("position", range(4, 40))
def test_any_flipped_byte_of_checksum_or_body_is_found(position: int) -> None:
    data = bytearray(encode_frame(MESSAGES))
    data[position] ^= 0x10
    with pytest.raises(WireError, match="checksum"):
        FrameSplitter().feed(bytes(data))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        pack([]),
        pack(1),
        pack(None),
        pack("text"),
        pack(b"bytes"),
        pack({}),
        pack({"a": 1}),
        pack([1] * (FRAME_MESSAGES_MAX + 1)),
        pack([1]) + b"\x00",
        pack([1])[:-1],
        b"\xc1",
    ],
    ids=repr,
)
def test_a_body_that_is_not_an_array_of_messages_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        FrameSplitter().feed(frame_of(body))


def test_a_frame_of_the_most_messages_passes() -> None:
    messages = [[number] for number in range(FRAME_MESSAGES_MAX)]
    assert FrameSplitter().feed(encode_frame(messages)) == [messages]


@pytest.mark.parametrize("bad", [object(), 1 << 70, {1: object()}])
def test_a_message_that_cannot_be_packed_leaves_nothing_in_the_next_frame(bad: Any) -> None:
    with pytest.raises((TypeError, OverflowError)):
        encode_frame([b"left over", bad])
    assert FrameSplitter().feed(encode_frame(MESSAGES)) == [MESSAGES]


@given(st.binary(max_size=200))
def test_of_any_bytes_only_frames_or_a_wire_error_come_out(data: bytes) -> None:
    splitter = FrameSplitter(100)
    try:
        frames = feed_in_chunks(splitter, data, 7)
    except WireError:
        return
    assert all(type(frame) is list for frame in frames)
    assert len(splitter.held) <= 100 + HEADER_BYTES + 7


@given(st.binary(max_size=200))
def test_of_any_body_only_messages_or_a_wire_error_come_out(body: bytes) -> None:
    try:
        frames = FrameSplitter().feed(frame_of(body))
    except WireError:
        return
    assert len(frames) == 1
    assert 0 < len(frames[0]) <= FRAME_MESSAGES_MAX


@pytest.mark.parametrize("rest", range(30))
def test_more_is_said_only_while_there_is_more(rest: int) -> None:
    frames = [encode_frame([[number, bytes(90)]]) for number in range(6)]
    splitter = FrameSplitter(call_bytes_max=250)
    data = b"".join(frames)
    found = splitter.feed(data + frames[0][:rest])
    calls = 0
    while splitter.more:
        found += splitter.feed(b"")
        calls += 1
        assert calls < 10, "nothing comes of it"
    assert calls
    assert len(splitter.held) == rest
    found += splitter.feed(frames[0][rest:])
    assert [messages[0][0] for messages in found] == [0, 1, 2, 3, 4, 5, 0]


def test_the_layout_of_a_frame_never_changes() -> None:
    assert encode_frame([[7, 1, 0]]).hex() == "00000005" + "2257a033" + "9193070100"


@pytest.mark.parametrize("request_id", [1, 127, 128, 65_536, (1 << 32) - 1])
@pytest.mark.parametrize("decree", [0, 1, 255, 1 << 32, (1 << 63) + 1, (1 << 64) - 1])
def test_the_reply_to_a_write_is_what_the_packer_would_say(request_id: int, decree: int) -> None:
    frame = encode_write_reply(request_id, decree)
    assert FrameSplitter().feed(frame) == [[[request_id, 0, decree]]]


@given(
    st.one_of(
        st.binary(max_size=60),
        st.builds(frame_of, st.binary(max_size=40)),
        st.builds(
            lambda frames, cut: b"".join(map(encode_frame, frames))[cut:],
            st.lists(st.lists(st.sampled_from(MESSAGES), max_size=3), max_size=2),
            st.sampled_from([0, 0, 0, 1]),
        ),
    )
)
def test_a_whole_frame_is_what_a_splitter_finds_in_the_same_bytes(data: bytes) -> None:
    splitter = FrameSplitter()
    try:
        frames = splitter.feed(data)
    except WireError:
        frames = []
    whole = len(frames) == 1 and not splitter.held
    assert whole_frame(data) == (frames[0] if whole else None)


def test_what_connections_take_for_whole_frames_needs_no_other_limit() -> None:
    assert LITTLE_BYTES <= WHOLE_BYTES_MAX
    assert WHOLE_BYTES_MAX <= BEFORE_HELLO_BYTES_MAX


def test_a_changed_bit_is_no_whole_frame() -> None:
    data = encode_frame(MESSAGES[:1])
    assert whole_frame(data) == MESSAGES[:1]
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 4
        assert whole_frame(bytes(changed)) is None
