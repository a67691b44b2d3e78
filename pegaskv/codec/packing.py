"""msgpack with our fixed options; the only file that imports msgpack.

One reused `Packer` costs half of `packb`. Whole bodies are unpacked at once,
never by a streaming `Unpacker`: a body has a known length and its own limits.
All containers arrive as lists; text is `str`, keys and values are `bytes`.
"""

from collections.abc import Callable
from typing import Any

import msgpack

from pegaskv.base.errors import WireError
from pegaskv.base.limits import BATCH_ROWS_MAX, FRAME_MESSAGES_MAX, OPERATION_ROWS_MAX

__all__ = ["pack", "unpack"]

# The longest array that we ever send: a batch or a multi-operation as a flat list.
_ARRAY_LENGTH_MAX = max(FRAME_MESSAGES_MAX, 4 * BATCH_ROWS_MAX, 2 * OPERATION_ROWS_MAX) + 16
_MAP_LENGTH_MAX = 4_096

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
_unpackb = msgpack.unpackb

pack: Callable[[Any], bytes] = _packer.pack


def unpack(
    body: bytes, *, array_length_max: int = _ARRAY_LENGTH_MAX, map_length_max: int = _MAP_LENGTH_MAX
) -> Any:
    """Return the value in `body`.

    Raises:
        WireError: `body` is not one msgpack value, or passes a limit.

    """
    try:
        return _unpackb(
            body,
            raw=False,
            use_list=True,
            strict_map_key=True,
            max_array_len=array_length_max,
            max_map_len=map_length_max,
            # An extension of length 0 still decodes; the schema checks refuse it.
            max_ext_len=0,
        )
    except Exception as error:  # noqa: BLE001 - msgpack raises half a dozen unrelated classes
        raise WireError(f"not a msgpack value: {type(error).__name__}: {error}") from None
