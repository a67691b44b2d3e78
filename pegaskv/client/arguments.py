"""pure: what a caller gave, turned into what the wire carries, or refused by name.

Keys and values are bytes; text is encoded as UTF-8, and bytearray and
memoryview are taken as bytes. A refusal names the argument, what it was and
the limit, since it is read far from the line that made the value.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pegaskv.base.errors import InvalidArgument
from pegaskv.base.limits import (
    HASH_KEY_BYTES_MAX,
    MUTATION_BYTES_MAX,
    OPERATION_ROWS_MAX,
    SORT_KEY_BYTES_MAX,
    TIMEOUT_MS_MAX,
    TTL_SECONDS_MAX,
    VALUE_BYTES_MAX,
)

__all__ = [
    "BytesLike",
    "as_bool",
    "as_bytes",
    "as_hash_key",
    "as_int64",
    "as_sort_key",
    "as_sort_keys",
    "as_timeout_ms",
    "as_ttl",
    "as_value",
    "as_values",
    "check_operation",
    "parse_address",
    "parse_metas",
    "weight_of",
]

BytesLike = bytes | str | bytearray | memoryview

DEFAULT_META_PORT: Final = 34_601


def as_bytes(name: str, value: object, bytes_max: int) -> bytes:
    """Return `value` as bytes of at most `bytes_max`.

    Raises:
        InvalidArgument: it is neither bytes nor text, or longer.

    """
    if type(value) is bytes:
        data = value
    elif isinstance(value, str):
        try:
            data = value.encode()
        except UnicodeEncodeError:
            raise InvalidArgument(f"{name} is text that UTF-8 cannot encode") from None
    elif isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    else:
        kind = "None" if value is None else type(value).__name__
        raise InvalidArgument(f"{name} must be bytes or str, not {kind}")
    if len(data) > bytes_max:
        raise InvalidArgument(f"{name} has {len(data)} bytes; the limit is {bytes_max}")
    return data


def as_hash_key(value: object, *, empty_allowed: bool = True) -> bytes:
    """Return a hash key; the empty one is refused where one hash key must be named."""
    hash_key = as_bytes("hash_key", value, HASH_KEY_BYTES_MAX)
    if not hash_key and not empty_allowed:
        raise InvalidArgument(
            "hash_key is empty",
            hint="rows with an empty hash key are read and written one by one or in batches",
        )
    return hash_key


def as_sort_key(value: object, name: str = "sort_key") -> bytes:
    """Return a sort key."""
    return as_bytes(name, value, SORT_KEY_BYTES_MAX)


def as_value(value: object, name: str = "value") -> bytes:
    """Return a value."""
    return as_bytes(name, value, VALUE_BYTES_MAX)


def as_sort_keys(values: object) -> list[bytes]:
    """Return the sort keys that a call names, in the order given and as often."""
    if isinstance(values, str | bytes | bytearray | memoryview | Mapping) or not hasattr(
        values, "__iter__"
    ):
        raise InvalidArgument(
            f"sort_keys must be a list of sort keys, not {type(values).__name__}",
            hint="one key is given as [key]",
        )
    keys = [as_sort_key(key, f"sort_keys[{i}]") for i, key in enumerate(values)]
    if not keys:
        raise InvalidArgument("sort_keys is empty", hint="name at least one")
    return keys


def as_values(values: object) -> list[bytes]:
    """Return [sort key, value, sort key, value, ...] of a mapping."""
    if not isinstance(values, Mapping):
        raise InvalidArgument(
            f"values must be a mapping of sort key to value, not {type(values).__name__}"
        )
    rows: dict[bytes, bytes] = {}
    for key, value in values.items():
        sort_key = as_sort_key(key)
        if sort_key in rows:
            raise InvalidArgument(f"the sort key {sort_key[:64]!r} is there as text and as bytes")
        rows[sort_key] = as_value(value, f"the value of {sort_key[:64]!r}")
    if not rows:
        raise InvalidArgument("values is empty", hint="name at least one row")
    flat = [part for row in rows.items() for part in row]
    check_operation("values", rows=len(rows), byte_count=sum(map(len, flat)))
    return flat


def check_operation(name: str, *, rows: int, byte_count: int) -> None:
    """Refuse a multi-operation that the server could not keep atomic: too many rows or bytes.

    One row alone may have any size that its key and value may have.
    """
    if rows > OPERATION_ROWS_MAX:
        what, limit = f"{rows} rows", f"{OPERATION_ROWS_MAX}"
    elif rows > 1 and byte_count > MUTATION_BYTES_MAX:
        what, limit = f"{byte_count} bytes of keys and values", f"{MUTATION_BYTES_MAX}"
    else:
        return
    raise InvalidArgument(
        f"{name} has {what}; the limit of an atomic operation is {limit}",
        hint="send several; batch_set and batch_delete have no such limit and are not atomic",
    )


def as_ttl(value: object, *, least: int = 0) -> int:
    """Return a time to live in whole seconds."""
    if type(value) is not int or not least <= value <= TTL_SECONDS_MAX:
        raise InvalidArgument(
            f"ttl must be whole seconds from {least} to {TTL_SECONDS_MAX}, not {value!r}"
        )
    return value


def as_int64(name: str, value: object) -> int:
    """Return a signed 64-bit number."""
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise InvalidArgument(f"{name} must be a whole number of 64 bits, not {value!r}")
    return value


def as_bool(name: str, value: object) -> bool:
    """Return a truth value; 0 and 1 are none."""
    if type(value) is not bool:
        raise InvalidArgument(f"{name} must be True or False, not {value!r}")
    return value


def weight_of(fields: Iterable[Any]) -> int:
    """Return the bytes of all keys and values in a request's fields."""
    return sum(
        len(field) if type(field) is bytes else weight_of(field)
        for field in fields
        if type(field) is bytes or type(field) is list
    )


def as_timeout_ms(value: object) -> int:
    """Return a time limit given in seconds as whole milliseconds, at least one."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 < value <= TIMEOUT_MS_MAX / 1_000
    ):
        raise InvalidArgument(
            f"timeout must be seconds above 0 and at most {TIMEOUT_MS_MAX // 1_000}, not {value!r}"
        )
    return max(1, int(value * 1_000))


def parse_address(text: str, *, default_port: int | None = None) -> tuple[str, int]:
    """Return (host, port) of `HOST:PORT` or `[HOST]:PORT`.

    Raises:
        InvalidArgument: it is neither.

    """
    host, colon, port = text.strip().rpartition(":")
    if default_port is not None and (not colon or (text.endswith("]") and text.startswith("["))):
        host, port = text.strip(), str(default_port)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65_536:
        raise InvalidArgument(f"{text!r} is not an address", hint="write HOST:PORT")
    return host, int(port)


def parse_metas(metas: str | Sequence[str]) -> list[str]:
    """Return the meta servers' addresses, each `HOST:PORT` and once."""
    if isinstance(metas, bytes | bytearray) or not hasattr(metas, "__iter__"):
        raise InvalidArgument(
            f"the meta servers must be text or a list of it, not {type(metas).__name__}",
            hint="write HOST:PORT[,HOST:PORT...]",
        )
    parts: list[Any] = metas.split(",") if isinstance(metas, str) else list(metas)
    addresses: list[str] = []
    for part in parts:
        if not isinstance(part, str):
            raise InvalidArgument(f"an address must be text, not {part!r}")
        if not part.strip():
            continue
        host, port = parse_address(part, default_port=DEFAULT_META_PORT)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if address not in addresses:
            addresses.append(address)
    if not addresses:
        raise InvalidArgument("no meta server is named", hint="write HOST:PORT[,HOST:PORT...]")
    return addresses
