"""msgpack with our fixed options; the only file that imports msgpack. On the hot path.

One reused `Packer` costs half of `packb`. Whole bodies are unpacked at once,
never by a streaming `Unpacker`: a body has a known length and its own limits.
All containers arrive as lists; text is `str`, keys and values are `bytes`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgpack
from msgpack import fallback

from pegaskv.base.errors import WireError
from pegaskv.base.limits import (
    BATCH_ROWS_MAX,
    CONTAINER_VALUES,
    FRAME_MESSAGES_MAX,
    FRAME_UNCOUNTED_BYTES_MAX,
    FRAME_VALUES_MAX,
    OPERATION_ROWS_MAX,
)

__all__ = [
    "HARMLESS_BYTES_MAX",
    "forget_packed",
    "pack",
    "pack_unguarded",
    "unpack",
    "unpack_harmless",
]

# The longest array that we ever send: a batch or a multi-operation as a flat list.
_ARRAY_LENGTH_MAX = max(FRAME_MESSAGES_MAX, 4 * BATCH_ROWS_MAX, 2 * OPERATION_ROWS_MAX) + 16
_MAP_LENGTH_MAX = 4_096

# Shorter than 256 array headers with their lengths: time and memory are bounded by that alone, as
# the library bounds containers by the length of the body.
HARMLESS_BYTES_MAX: Final = 768

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
_unpackb = msgpack.unpackb

# For bodies of up to `HARMLESS_BYTES_MAX`, with `max_ext_len=0`, by who cannot afford the call of
# `unpack`. It raises half a dozen unrelated classes.
unpack_harmless: Final[Callable[..., Any]] = _unpackb

# The same for `pack`. Whoever calls it calls `forget_packed` when it raises whatever: out of memory
# at the very end, it keeps what it has packed, and would put it before the next value, into
# another connection's reply or into the log.
pack_unguarded: Final[Callable[[Any], bytes]] = _packer.pack
forget_packed: Final[Callable[[], None]] = _packer.reset


def pack(value: Any) -> bytes:
    """Return `value` as msgpack."""
    try:
        return pack_unguarded(value)
    except BaseException:
        forget_packed()
        raise


def unpack(
    body: bytes,
    *,
    array_length_max: int = _ARRAY_LENGTH_MAX,
    values_max: int = FRAME_VALUES_MAX,
) -> Any:
    """Return the value in `body`; time and memory are bounded by its length and the limits.

    A body of less than a kilobyte is bounded by its length alone.

    Raises:
        WireError: `body` is not one msgpack value, or passes a limit.

    """
    size = len(body)
    try:
        if size <= HARMLESS_BYTES_MAX:
            return _unpackb(body, max_ext_len=0)
        decode = _unpackb
        hook = None
        if size > FRAME_UNCOUNTED_BYTES_MAX:
            # The library bounds each container and not their number: we count.
            hook = _counting_hook(values_max)
        elif _claims_much(body):
            decode = fallback.unpackb
        return decode(
            body,
            raw=False,
            use_list=True,
            strict_map_key=True,
            list_hook=hook,
            object_hook=hook,
            # Each element takes a byte at least.
            max_array_len=array_length_max if array_length_max < size else size,
            max_map_len=_MAP_LENGTH_MAX,
            # An extension of length 0 still decodes; the schema checks refuse it.
            max_ext_len=0,
        )
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - msgpack raises half a dozen unrelated classes
        raise WireError(f"not a msgpack value: {type(error).__name__}: {error}") from None


def _claims_much(body: bytes) -> bool:
    # The C decoder makes room for the elements that an array claims before it has seen
    # them: a thousand nested claims in three kilobytes cost it 60 ms and 160 MB. Keys and
    # values may hold these bytes too, so many of them are no error: such a body goes to the
    # library's slower decoder, which makes no room ahead.
    if body.find(b"\xdc", 3) < 0 and b"\xdd" not in body:
        return False
    return body.count(b"\xdc") + body.count(b"\xdd") > 256 + len(body) // 64


def _counting_hook(values_max: int) -> Callable[[Any], Any]:
    # Called with every list and map when it is complete, from C.
    left = values_max

    def count(container: Any) -> Any:
        nonlocal left
        left -= len(container) + CONTAINER_VALUES
        if left < 0:
            raise WireError(f"more than {values_max} values in one frame")
        return container

    return count
