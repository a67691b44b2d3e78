"""Packing: nothing but a value or a `WireError`, in bounded time and memory."""

import contextlib
import math
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaskv.base.errors import WireError
from pegaskv.base.limits import (
    BATCH_ROWS_MAX,
    FRAME_MESSAGES_MAX,
    FRAME_SHARED_BYTES_MAX,
    FRAME_UNCOUNTED_BYTES_MAX,
    FRAME_VALUES_MAX,
    OPERATION_ROWS_MAX,
    REQUEST_VALUES_MAX,
)
from pegaskv.codec.packing import pack, unpack

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=30,
)

# Name, bytes: the malformed classes of a body. Each must be a WireError.
MALFORMED = {
    "empty": b"",
    "one byte that is never used": b"\xc1",
    "cut fixed array": b"\x92\x01",
    "cut array header": b"\xdc\x00",
    "cut int": b"\xce\x00\x00",
    "cut bin": b"\xc4\x05abc",
    "cut text": b"\xa5abc",
    "trailing byte": b"\x91\x01\x00",
    "two values": b"\x91\x01\x91\x01",
    "array claims 2^32-1 elements": b"\xdd\xff\xff\xff\xff",
    "map claims 2^32-1 pairs": b"\xdf\xff\xff\xff\xff",
    "bin claims 2^32-1 bytes": b"\xc6\xff\xff\xff\xff",
    "text claims 2^32-1 bytes": b"\xdb\xff\xff\xff\xff",
    "ext claims 2^32-1 bytes": b"\xc9\xff\xff\xff\xff\x05",
    "array claims 65535 elements": b"\xdc\xff\xff" + b"\xc0" * 100,
    "array longer than the limit": msgpack.packb([None] * 30_000),
    "map longer than the limit": msgpack.packb({str(key): None for key in range(5_000)}),
    "depth 1 025": b"\x91" * 1025 + b"\xc0",
    "depth 100 000": b"\x91" * 100_000 + b"\xc0",
    "deep maps": b"\x81\xa0" * 2_000 + b"\xc0",
    "int as a key": b"\x81\x01\x01",
    "float as a key": b"\x81\xcb" + b"\x00" * 8 + b"\x01",
    "nan as a key": msgpack.packb({math.nan: 1}),
    "nil as a key": b"\x81\xc0\x01",
    "array as a key": b"\x81\x91\x01\x01",
    "map as a key": b"\x81\x80\x01",
    "bad utf-8": b"\xa2\xff\xfe",
    "utf-8 surrogate": b"\xa3\xed\xa0\x80",
    "utf-8 overlong": b"\xa2\xc0\xaf",
    "cut utf-8": b"\xa1\xe2",
    "ext of one byte": b"\xd4\x05\x00",
    "ext of sixteen bytes": b"\xd8\x05" + b"\x00" * 16,
    "timestamp 32": b"\xd6\xff\x00\x00\x00\x01",
    "timestamp 64": b"\xd7\xff" + b"\xff" * 8,
    "timestamp 96": b"\xc7\x0c\xff" + b"\xff" * 12,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_every_malformed_class_is_a_wire_error(body: bytes) -> None:
    with pytest.raises(WireError):
        unpack(body)


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_every_malformed_class_inside_a_message_is_a_wire_error(body: bytes) -> None:
    with pytest.raises(WireError):
        unpack(b"\x92\x01" + body + (b"\x00" if body.startswith(b"\x91\x01") else b""))


@given(VALUES)
def test_what_was_packed_is_unpacked_again(value: Any) -> None:
    assert unpack(pack(value)) == value


@given(VALUES)
def test_packing_agrees_with_the_plain_library(value: Any) -> None:
    assert pack(value) == msgpack.packb(value, use_bin_type=True)


@given(st.binary(max_size=300))
def test_of_any_bytes_only_a_value_or_a_wire_error_comes_out(body: bytes) -> None:
    try:
        value = unpack(body)
    except WireError:
        return
    assert pack(value) is not None or isinstance(value, msgpack.ExtType)


@given(VALUES, st.data())
def test_a_flipped_bit_gives_a_value_or_a_wire_error(value: Any, data: st.DataObject) -> None:
    body = bytearray(pack(value))
    position = data.draw(st.integers(0, len(body) - 1))
    body[position] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(WireError):
        unpack(bytes(body))


@given(VALUES, st.integers(1, 50))
def test_a_cut_value_is_a_wire_error(value: Any, cut: int) -> None:
    body = pack([value])
    with pytest.raises(WireError):
        unpack(body[: max(len(body) - cut, 0)])


def test_an_extension_of_length_zero_is_no_type_that_a_schema_accepts() -> None:
    # The library lets it through; every schema check is `type(x) is bytes` and the like.
    value = unpack(b"\xc7\x00\x05")
    assert type(value) is msgpack.ExtType
    assert type(value) not in (bytes, str, int, list, dict, bool, type(None))


def test_bytes_and_text_stay_apart() -> None:
    assert unpack(pack([b"a", "a"])) == [b"a", "a"]
    assert pack(b"a") != pack("a")


def test_containers_arrive_as_lists() -> None:
    assert unpack(pack([(1, 2), [3]])) == [[1, 2], [3]]


def test_a_repeated_key_is_one_entry() -> None:
    assert unpack(b"\x82\xa1a\x01\xa1a\x02") == {"a": 2}


@pytest.mark.parametrize(
    "length", [FRAME_MESSAGES_MAX, 4 * BATCH_ROWS_MAX, 2 * OPERATION_ROWS_MAX], ids=str
)
def test_the_longest_arrays_that_we_send_pass(length: int) -> None:
    assert unpack(pack([None] * length)) == [None] * length


def test_a_tighter_array_limit_is_obeyed() -> None:
    assert unpack(pack([1] * 1_000), array_length_max=1_000) == [1] * 1_000
    with pytest.raises(WireError, match="max_array_len"):
        unpack(pack([1] * 1_001), array_length_max=1_000)


def test_a_map_is_bounded_too() -> None:
    longest = {str(key): 0 for key in range(4_096)}
    assert unpack(pack(longest)) == longest
    with pytest.raises(WireError, match="max_map_len"):
        unpack(pack(longest | {"one more": 0}))


@pytest.mark.parametrize("size", [700, 768, 769, 900])
def test_what_a_container_claims_is_bounded_by_its_body(size: int) -> None:
    for claim in (b"\xdd\x7f\xff\xff\xff", b"\xdf\x7f\xff\xff\xff"):
        with pytest.raises(WireError, match="max_"):
            unpack(claim + b"\xc0" * (size - len(claim)))


@pytest.mark.parametrize("empty", [b"\x80", b"\x90", b"\x81\xa0\xc0", b"\xa2ab"], ids=repr)
def test_a_long_frame_of_little_values_is_refused_before_it_takes_memory(empty: bytes) -> None:
    row = b"\xdc\x0f\xa0" + empty * 4_000
    body = b"\xdc\x0f\xa0" + row * 4_000
    body = body[: 16 * 1024 * 1024]
    start = time.process_time()
    with pytest.raises(WireError, match=r"values in one frame|msgpack"):
        unpack(body)
    # 1 ms for a KiB, the bound for hostile bodies, and this is far below.
    assert time.process_time() - start < len(body) / 1024 * 0.001


def test_a_bomb_of_empty_maps_takes_a_few_times_its_size() -> None:
    # Unbounded, 4 MiB of empty maps take 300 MB.
    row = b"\xdc\x0f\xa0" + b"\x80" * 4_000
    body = b"\xdc\x04\x00" + row * 1_024
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="1048576 values"):
            unpack(body)
        _held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 128 * 1024 * 1024


def test_as_many_values_as_the_limit_allows_pass() -> None:
    rows = [[b"k" * 8] * 2_000 for _ in range(500)]
    assert len(rows) * 2_001 < FRAME_VALUES_MAX
    body = pack(rows)
    assert len(body) > FRAME_UNCOUNTED_BYTES_MAX
    assert unpack(body) == rows


@pytest.mark.parametrize(
    # The most values that the bytes can hold, and the most arrays that anybody would send.
    "message",
    [[None] * 150, [[2, b""]] * 38],
    ids=["values", "arrays"],
)
def test_no_frame_up_to_the_shared_size_meets_the_limit_of_values(message: list[object]) -> None:
    messages = [message] * FRAME_MESSAGES_MAX
    body = pack(messages)
    assert FRAME_UNCOUNTED_BYTES_MAX < len(body) <= FRAME_SHARED_BYTES_MAX
    assert unpack(body, values_max=REQUEST_VALUES_MAX) == messages


@pytest.mark.parametrize("count", [250, 300, 700, 1_020, 5_000, 20_000])
@pytest.mark.parametrize("header", [b"\xdc", b"\xdd\x00\x00"], ids=["array16", "array32"])
def test_nested_claims_cost_time_by_their_bytes_and_not_by_their_claims(
    count: int, header: bytes
) -> None:
    size = (len(header) + 2) * count
    claim = min(size - 1, 2 * OPERATION_ROWS_MAX)
    body = (header + claim.to_bytes(2, "big")) * count
    best = 10.0
    for _ in range(3):
        start = time.process_time()
        with pytest.raises(WireError):
            unpack(body)
        best = min(best, time.process_time() - start)
    # The bound is 1 ms for a KiB; debug mode and a busy machine have room. Without the
    # defence it is 20.
    assert best < 0.008 * max(len(body) / 1024, 1)


def test_values_full_of_array_headers_are_ordinary_values() -> None:
    rows = [[number, b"\xdc" * 500, b"\xdd" * 500, "text", {"a": [None]}] for number in range(40)]
    body = pack(rows)
    assert body.count(b"\xdc") > 256 + len(body) // 64
    assert unpack(body) == rows


@given(st.lists(st.binary(max_size=30) | st.integers() | st.text(max_size=9), max_size=30))
def test_a_suspicious_body_is_decoded_alike(values: list[Any]) -> None:
    values = [value for value in values if type(value) is not int or abs(value) < 2**63]
    message = [values, b"\xdc" * 2_000]
    assert unpack(pack(message)) == message
    with pytest.raises(WireError):
        unpack(pack(message)[:-1])
    with pytest.raises(WireError):
        unpack(pack(message) + b"\x00")
    with pytest.raises(WireError):
        unpack(b"\x92\xd4\x05\x00" + pack(b"\xdc" * 2_000))


WITHOUT_MEMORY = """
import os, resource
from pegaskv.codec.frames import encode_frame
from pegaskv.codec.packing import pack
value = [bytes(30_000_000)]
pack(value)
held = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (held + 20_000_000, resource.RLIM_INFINITY))
try:
    %s(value)
except MemoryError:
    print("no memory")
print(pack([1, 2]) == bytes([0x92, 1, 2]))
"""


@pytest.mark.parametrize("function", ["pack", "encode_frame"])
def test_what_found_no_memory_is_not_put_before_the_next_value(function: str) -> None:
    """The library keeps what it has packed when only the result found no room."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY % function],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split("\n")[:2] == ["no memory", "True"], done.stderr
