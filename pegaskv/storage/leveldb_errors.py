"""What plyvel raises, in our words: damage is a `CorruptionError`, all else an `OSError`."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import plyvel

from pegaskv.base.errors import CorruptionError

__all__ = ["translate", "translated"]

# A damaged pointer leads behind the end of a mapped table; LevelDB calls that an I/O error.
_OUTSIDE_OF_TABLE: Final = ".ldb: Invalid argument"


def translate(error: Exception) -> Exception:
    """Return the error to raise instead of one of plyvel."""
    told = error.args[0] if error.args else ""
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    if not isinstance(error, plyvel.IOError):
        # Besides damage, LevelDB refuses only a directory that is not what it made.
        return CorruptionError(text)
    if text.endswith(_OUTSIDE_OF_TABLE):
        return CorruptionError(text)
    # The number is lost on the way, and only its words are left.
    for number in errno.errorcode:
        if text.endswith(os.strerror(number)):
            return OSError(number, text)
    return OSError(errno.EIO, text)


@contextmanager
def translated() -> Iterator[None]:
    """Raise `translate(error)` instead of what plyvel raises in this block."""
    try:
        yield
    except plyvel.Error as error:
        raise translate(error) from None
