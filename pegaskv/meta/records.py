"""pure: what the bytes of every meta record have in common.

A record is a map with its format. A field that this software does not know is kept when
the record is written again (G5); a record of a newer format is refused by name.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from pegaskv.base.errors import UnsupportedFormat
from pegaskv.base.version import META_RECORD_FORMAT
from pegaskv.codec.packing import pack, unpack

__all__ = [
    "as_bytes",
    "as_count",
    "as_known",
    "as_list",
    "as_map",
    "as_text",
    "pack_record",
    "unpack_record",
]

_KnownT = TypeVar("_KnownT")


def pack_record(unknown: Mapping[str, Any], fields: Mapping[str, Any]) -> bytes:
    """Return the bytes of a record with these fields."""
    return pack({**unknown, "format": META_RECORD_FORMAT, **fields})


def unpack_record(key: str, value: bytes) -> dict[str, Any]:
    """Return the fields of the record at `key`.

    Raises:
        WireError, KeyError, ValueError: it is none.
        UnsupportedFormat: newer software wrote it.

    """
    fields = unpack(value)
    if type(fields) is not dict:
        raise ValueError("it is not a map")
    version = fields.pop("format")
    if version != META_RECORD_FORMAT:
        raise UnsupportedFormat(
            f"the meta record `{key}` has format {version}; "
            f"this software reads {META_RECORD_FORMAT}",
            hint="start the version of pegaskv that wrote it",
        )
    return fields


def as_known(what: str, value: Any, known: type[_KnownT]) -> _KnownT:
    """Return the member of the enumeration. Raises UnsupportedFormat: there is none such."""
    try:
        return known(value)  # type: ignore[call-arg]
    except ValueError:
        raise UnsupportedFormat(
            f"{what} has {value!r}, which this software does not know",
            hint="start the version of pegaskv that wrote it",
        ) from None


def as_text(value: Any) -> str:
    """Return text, or raise ValueError."""
    if type(value) is not str:
        raise ValueError(f"{value!r} is not text")
    return value


def as_count(value: Any) -> int:
    """Return a number from 0 on, or raise ValueError."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def as_bytes(value: Any) -> bytes:
    """Return bytes, or raise ValueError."""
    if type(value) is not bytes:
        raise ValueError(f"{value!r} are not bytes")
    return value


def as_list(value: Any) -> list[Any]:
    """Return a list, or raise ValueError."""
    if type(value) is not list:
        raise ValueError(f"{value!r} is not a list")
    return value


def as_map(value: Any) -> dict[str, Any]:
    """Return a copy of a map, or raise ValueError."""
    if type(value) is not dict:
        raise ValueError(f"{value!r} is not a map")
    return dict(value)
