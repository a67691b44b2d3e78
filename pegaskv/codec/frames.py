"""Bytes to frames and back: length, checksum, limit. On the hot path.

A frame is a header of eight bytes (body length u32, CRC-32C of the body u32,
big-endian) and a body: one msgpack array of 1 to 1 024 messages. Many messages
in one frame pay one header, one checksum, one pack and one socket write.

The splitter is fed whatever arrived and returns the frames that are complete;
where the bytes were cut never matters. A length is checked before a single
byte of the body is kept.
"""

from struct import Struct
from typing import Any, Final

from google_crc32c import value as crc32c

from pegaskv.base.errors import WireError
from pegaskv.base.limits import CLIENT_FRAME_BYTES_MAX, FRAME_MESSAGES_MAX, FRAME_VALUES_MAX
from pegaskv.codec.packing import (
    HARMLESS_BYTES_MAX,
    forget_packed,
    pack_unguarded,
    unpack,
    unpack_harmless,
)

__all__ = [
    "HEADER_BYTES",
    "WHOLE_BYTES_MAX",
    "FrameSplitter",
    "encode_frame",
    "encode_write_reply",
    "whole_frame",
]

_HEADER: Final = Struct(">II")
HEADER_BYTES: Final = _HEADER.size
# What `whole_frame` may be given.
WHOLE_BYTES_MAX: Final = HEADER_BYTES + HARMLESS_BYTES_MAX

# An array of one array of three, a u32, 0, a u64.
_WRITE_REPLY: Final = Struct(">BBBIBBQ")
_WRITE_REPLY_BYTES: Final = _WRITE_REPLY.size

_unpack_header = _HEADER.unpack_from
_pack_header = _HEADER.pack
_pack_write_reply = _WRITE_REPLY.pack


def encode_frame(messages: list[Any]) -> bytes:
    """Return the frame that carries `messages` (1 to 1 024 of them)."""
    try:
        body = pack_unguarded(messages)
    except BaseException:
        forget_packed()
        raise
    return _pack_header(len(body), crc32c(body)) + body


def encode_write_reply(request_id: int, decree: int) -> bytes:
    """Return the frame whose one message is [request id u32, 0, decree u64].

    What most writes are answered, without the packer: numbers have one length each.
    """
    body = _pack_write_reply(0x91, 0x93, 0xCE, request_id, 0, 0xCF, decree)
    return _pack_header(_WRITE_REPLY_BYTES, crc32c(body)) + body


def whole_frame(data: bytes) -> list[Any] | None:
    """Return the messages if `data`, of at most `WHOLE_BYTES_MAX`, is one good frame.

    No limit of a frame can concern so little. None says nothing but that a splitter should
    look at it, and raise what is to be raised.
    """
    try:
        length, checksum = _unpack_header(data)
        body = data[HEADER_BYTES:]
        if length != len(body) or crc32c(body) != checksum:
            return None
        messages = unpack_harmless(body, max_ext_len=0)
    except Exception:  # noqa: BLE001 - msgpack raises half a dozen unrelated classes
        return None
    return messages if type(messages) is list and messages else None


class FrameSplitter:
    """Cuts one connection's incoming bytes into lists of messages.

    `frame_bytes_max` and `values_max` may be raised at any time, as they are when hello has
    been accepted; they hold for every header that is read afterwards. What is kept never
    exceeds one frame of that size and the last chunk, and each byte is copied a
    fixed number of times however small the chunks are.

    One call decodes no more frames once it has decoded `call_bytes_max`; then `more` is
    true, and a call with no bytes goes on.
    """

    __slots__ = ("_call_bytes_max", "_needed", "frame_bytes_max", "held", "more", "values_max")

    def __init__(
        self,
        frame_bytes_max: int = CLIENT_FRAME_BYTES_MAX,
        *,
        call_bytes_max: int = 1 << 62,
        values_max: int = FRAME_VALUES_MAX,
    ) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.values_max = values_max
        self.more = False
        self._call_bytes_max = call_bytes_max
        # The beginning of a frame that waits for the rest, which only `feed` changes; and how long
        # it must grow before it is worth a look.
        self.held = bytearray()
        self._needed = HEADER_BYTES

    def feed(self, data: bytes) -> list[list[Any]]:
        """Return the bodies of all frames that `data` completes, in order.

        Raises:
            WireError: the bytes are not a frame; the connection must be closed. Frames
                of this call before the broken one are lost with it.

        """
        frames: list[list[Any]] = []
        # Also when what is held turns out to be the beginning of a header only.
        self.more = False
        if self.held:
            self.held += data
            if len(self.held) < self._needed:
                return frames
            data = bytes(self.held)
            self.held.clear()
        position = 0
        end = len(data)
        needed = HEADER_BYTES
        while end - position >= HEADER_BYTES:
            length, checksum = _unpack_header(data, position)
            if length > self.frame_bytes_max:
                raise WireError(f"frame of {length} bytes; the limit is {self.frame_bytes_max}")
            body_end = position + HEADER_BYTES + length
            if body_end > end:
                needed += length
                break
            body = data[position + HEADER_BYTES : body_end]
            if crc32c(body) != checksum:
                raise WireError("the frame's checksum does not match its body")
            messages = unpack(body, values_max=self.values_max)
            if type(messages) is not list or not 0 < len(messages) <= FRAME_MESSAGES_MAX:
                raise WireError(f"a frame is an array of 1 to {FRAME_MESSAGES_MAX} messages")
            frames.append(messages)
            position = body_end
            if position >= self._call_bytes_max and position < end:
                self.more = True
                break
        if position < end:
            self.held += data[position:]
            self._needed = needed
        return frames
