"""pure: the arithmetic of atomic operations: does a check hold, what does incr give.

Pegasus's rules: an absent value fails every comparison; an integer comparison
of something that is not an int64 is the caller's mistake; an empty operand
matches whatever exists.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.types import CheckType, FilterType

__all__ = ["INT64_MAX", "INT64_MIN", "check_passes", "incremented", "matches"]

INT64_MAX: Final = (1 << 63) - 1
INT64_MIN: Final = -(1 << 63)

_INTEGER: Final = re.compile(rb"[+-]?[0-9]{1,20}\Z")

_BYTES: Final[Mapping[int, Callable[[bytes, bytes], bool]]] = {
    CheckType.MATCH_ANYWHERE: lambda value, operand: operand in value,
    CheckType.MATCH_PREFIX: lambda value, operand: value.startswith(operand),
    CheckType.MATCH_POSTFIX: lambda value, operand: value.endswith(operand),
    CheckType.BYTES_LESS: lambda value, operand: value < operand,
    CheckType.BYTES_LESS_OR_EQUAL: lambda value, operand: value <= operand,
    CheckType.BYTES_EQUAL: lambda value, operand: value == operand,
    CheckType.BYTES_GREATER_OR_EQUAL: lambda value, operand: value >= operand,
    CheckType.BYTES_GREATER: lambda value, operand: value > operand,
}
_INT: Final[Mapping[int, Callable[[int, int], bool]]] = {
    CheckType.INT_LESS: lambda value, operand: value < operand,
    CheckType.INT_LESS_OR_EQUAL: lambda value, operand: value <= operand,
    CheckType.INT_EQUAL: lambda value, operand: value == operand,
    CheckType.INT_GREATER_OR_EQUAL: lambda value, operand: value >= operand,
    CheckType.INT_GREATER: lambda value, operand: value > operand,
}


def check_passes(check: int, value: bytes | None, operand: bytes) -> bool:
    """Whether `value` (None = absent) passes the check against `operand`.

    Raises:
        InvalidArgument: the check's number is unknown, or an integer is asked of bytes
            that are not one.

    """
    match check:
        case CheckType.NO_CHECK:
            return True
        case CheckType.NOT_EXIST:
            return value is None
        case CheckType.NOT_EXIST_OR_EMPTY:
            return not value
        case CheckType.EXIST:
            return value is not None
        case CheckType.NOT_EMPTY:
            return bool(value)
    if check in _BYTES:
        return value is not None and _BYTES[check](value, operand)
    if check in _INT:
        if value is None:
            return False
        return _INT[check](
            _integer(value, "the stored value"), _integer(operand, "the check's operand")
        )
    raise InvalidArgument(f"check type {check} is unknown; 0 to {max(CheckType)} are known")


def incremented(value: bytes | None, by: int) -> int:
    """Return `value` + `by`; absent and empty values count as 0.

    Raises:
        InvalidArgument: the value is not an integer, or the sum is no int64;
            `details` is what Pegasus would answer as the new value.

    """
    if not value:
        old = 0
    else:
        try:
            old = _integer(value, "the stored value")
        except InvalidArgument as error:
            error.details = 0
            raise
    new = old + by
    if not INT64_MIN <= new <= INT64_MAX:
        raise InvalidArgument(
            f"{old} + {by} is outside of a signed 64-bit integer; the row was not changed",
            details=old,
        )
    return new


def matches(kind: int, pattern: bytes, data: bytes) -> bool:
    """Whether a key or value passes a filter; an empty pattern passes all."""
    if kind == FilterType.NO_FILTER or not pattern:
        return True
    if kind == FilterType.MATCH_PREFIX:
        return data.startswith(pattern)
    if kind == FilterType.MATCH_POSTFIX:
        return data.endswith(pattern)
    if kind == FilterType.MATCH_ANYWHERE:
        return pattern in data
    return data == pattern


def _integer(data: bytes, what: str) -> int:
    if _INTEGER.match(data):
        number = int(data)
        if INT64_MIN <= number <= INT64_MAX:
            return number
    raise InvalidArgument(f"{what} is not a signed 64-bit integer in decimal: {data[:32]!r}")
