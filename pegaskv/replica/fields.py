"""What a request's fields must be, with messages that name the field.

Messages come from strangers. The hot handlers test types in one expression and
come here only to say what was wrong.
"""

from typing import Any, Final, NoReturn

from pegaskv.base.errors import (
    InvalidArgument,
    InvalidData,
    NotServing,
    PartitionClosed,
    RequestError,
)
from pegaskv.base.limits import (
    HASH_KEY_BYTES_MAX,
    MUTATION_BYTES_MAX,
    OPERATION_ROWS_MAX,
    SORT_KEY_BYTES_MAX,
    TTL_SECONDS_MAX,
    VALUE_BYTES_MAX,
)
from pegaskv.base.types import FilterType

__all__ = [
    "HASH_KEY_COPIES_BYTES_MAX",
    "check_filter",
    "check_flags",
    "check_integer",
    "check_multi_size",
    "check_row",
    "check_ttl",
    "explain_target",
    "require_hash_key",
]

# The hash keys of all rows that one multi-operation stores.
HASH_KEY_COPIES_BYTES_MAX: Final = 4 * MUTATION_BYTES_MAX


def explain_target(
    message: list[Any], length: int, closed: dict[tuple[int, int], str]
) -> RequestError:
    """Return the error for a data request whose shape or partition could not be used."""
    if len(message) != length:
        return InvalidArgument(
            f"operation {message[1]} takes {length - 3} fields, this has {len(message) - 3}"
        )
    if type(message[3]) is not int or type(message[4]) is not int:
        return InvalidArgument("table id and partition index are integers")
    reason = closed.get((message[3], message[4]))
    if reason is not None:
        return PartitionClosed(f"partition {message[3]}.{message[4]} is closed: {reason}")
    return NotServing(f"partition {message[3]}.{message[4]} is not on this server")


def check_row(hash_key: Any, sort_key: Any, value: Any = b"") -> None:
    """Check the types and sizes of one row.

    Raises:
        InvalidArgument: a type is wrong.
        InvalidData: a size is over its limit.

    """
    _check_bytes("hash key", hash_key, HASH_KEY_BYTES_MAX)
    _check_bytes("sort key", sort_key, SORT_KEY_BYTES_MAX)
    _check_bytes("value", value, VALUE_BYTES_MAX)


def _check_bytes(name: str, data: Any, limit: int) -> None:
    if type(data) is not bytes:
        raise InvalidArgument(f"the {name} must be bytes, not {type(data).__name__}")
    if len(data) > limit:
        raise InvalidData(f"the {name} has {len(data)} bytes; the limit is {limit}")


def require_hash_key(hash_key: Any) -> None:
    """Check the hash key of a multi-operation, which must not be empty.

    Raises:
        InvalidArgument: it is empty or not bytes.
        InvalidData: it is too long.

    """
    _check_bytes("hash key", hash_key, HASH_KEY_BYTES_MAX)
    if not hash_key:
        raise InvalidArgument("the hash key of a multi-operation must not be empty")


def check_ttl(ttl: Any, *, least: int = 0) -> None:
    """Check a time to live in seconds.

    Raises:
        InvalidArgument: it is no integer from `least` to the limit.

    """
    if type(ttl) is not int or not least <= ttl <= TTL_SECONDS_MAX:
        raise InvalidArgument(
            f"the time to live must be {least} to {TTL_SECONDS_MAX} whole seconds, not {ttl!r}"
        )


def check_integer(name: str, value: Any) -> None:
    """Check that a field is an integer (a bool is not).

    Raises:
        InvalidArgument: it is not.

    """
    if type(value) is not int:
        raise InvalidArgument(f"{name} must be an integer, not {type(value).__name__}")


def check_flags(flags: Any, known: int) -> None:
    """Check that `flags` holds none but the known ones: a newer client's could change the answer.

    Raises:
        InvalidArgument: it does, or is no integer.

    """
    check_integer("flags", flags)
    if flags & ~known:
        raise InvalidArgument(
            f"flags has {flags}; the sum of all that are known is {known}",
            hint="the client may be newer than the server",
        )


def check_filter(name: str, kind: Any, pattern: Any) -> None:
    """Check a filter's type and pattern.

    Raises:
        InvalidArgument: the type is unknown or the pattern is not bytes.

    """
    check_integer(f"the {name} filter's type", kind)
    if not 0 <= kind <= max(FilterType):
        raise InvalidArgument(f"the {name} filter's type {kind} is unknown")
    if type(pattern) is not bytes:
        raise InvalidArgument(f"the {name} filter's pattern must be bytes")


def check_multi_size(hash_key: bytes, rows: int, size: int) -> None:
    """Check a multi-operation: how many rows, and the bytes of its sort keys and values.

    The hash key stands once in the request and in front of every stored row.

    Raises:
        InvalidArgument: it has no rows.
        InvalidData: it is too large.

    """
    if rows == 0:
        raise InvalidArgument("a multi-operation needs at least one row")
    if rows > OPERATION_ROWS_MAX:
        _too_large(f"{rows} rows", f"{OPERATION_ROWS_MAX} rows")
    if rows > 1 and size > MUTATION_BYTES_MAX:
        _too_large(f"{size} bytes", f"{MUTATION_BYTES_MAX} bytes")
    if rows > 1 and rows * len(hash_key) > HASH_KEY_COPIES_BYTES_MAX:
        _too_large(
            f"{rows} rows, each stored with the hash key of {len(hash_key)} bytes",
            f"{HASH_KEY_COPIES_BYTES_MAX} bytes of hash keys",
        )


def _too_large(what: str, limit: str) -> NoReturn:
    raise InvalidData(
        f"a multi-operation of {what}; the limit is {limit}", hint="send it in several parts"
    )
