"""Replies that do not simply go into one frame: many, large, or such as cannot be packed."""

from collections.abc import Callable, Iterator
from typing import Any

from pegaskv.base.limits import CLIENT_FRAME_BYTES_MAX, FRAME_MESSAGES_MAX, REPLY_FLUSH_BYTES
from pegaskv.codec.frames import HEADER_BYTES, encode_frame

__all__ = ["frames_apart"]

# What is sent in the place of a reply, for a reason; "" = there is no memory for it.
Unsendable = Callable[[Any, str], tuple[Any, ...]]


def frames_apart(replies: list[Any], size: int, unsendable: Unsendable) -> Iterator[bytes]:
    """Yield the frames of `replies`, which have about `size` bytes.

    Of about REPLY_FLUSH_BYTES each, so that small replies do not wait for large ones.

    Raises:
        MemoryError: there is not even memory to say so.

    """
    count = len(replies)
    if size > REPLY_FLUSH_BYTES:
        count = max(1, count * REPLY_FLUSH_BYTES // size)
    step = min(count, FRAME_MESSAGES_MAX)
    for begin in range(0, len(replies), step):
        yield from _frames(replies[begin : begin + step], unsendable)


def _frames(replies: list[Any], unsendable: Unsendable) -> Iterator[bytes]:
    try:
        frame = encode_frame(replies)
    except MemoryError:
        reason = ""
    except (TypeError, ValueError, OverflowError) as error:
        reason = f"the reply cannot be packed: {error}"
    else:
        if len(frame) <= CLIENT_FRAME_BYTES_MAX + HEADER_BYTES:
            yield frame
            return
        reason = f"a reply of {len(frame)} bytes does not fit a frame"
    if len(replies) > 1:
        middle = len(replies) // 2
        yield from _frames(replies[:middle], unsendable)
        yield from _frames(replies[middle:], unsendable)
        return
    yield encode_frame([unsendable(replies[0], reason)])
