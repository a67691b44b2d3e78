"""What a caller hands to the client and gets back: options, filters, checks, results.

Everything here is a plain value. Options are checked when they are made, so a
mistake is reported where it stands and not at the first page of a scan.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from pegaskv.base.errors import ConfigurationError, InvalidArgument
from pegaskv.base.limits import (
    CLIENT_FRAME_BYTES_MAX,
    CONNECTION_BYTES_IN_FLIGHT_MAX,
    CONNECTION_REQUESTS_IN_FLIGHT_MAX,
    PAGE_ROWS_MAX,
    SORT_KEY_BYTES_MAX,
    SPIN_US_MAX,
    TIMEOUT_MS_MAX,
)
from pegaskv.base.types import CheckType, FilterType
from pegaskv.client.arguments import BytesLike, as_bytes

__all__ = [
    "Check",
    "CheckResult",
    "ClientOptions",
    "Delete",
    "Filter",
    "MultiGetResult",
    "Put",
    "RangeOptions",
    "Row",
    "ScanOptions",
    "SortKeys",
]

# What `check_and_set` and `check_and_mutate` ask of the checked row.
Check = CheckType


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How a client behaves as a whole; times are milliseconds."""

    # The deadline of a call that names none. A little less than a dead primary's succession
    # takes (6 s at most): with 10 000 calls wait it out, apart from writes on their way.
    timeout_ms: int = 5_000
    # Name, connection and hello of one node; a call's own deadline may be shorter.
    connect_timeout_ms: int = 2_000
    # What one connection may have under way. A call above it waits its turn.
    requests_in_flight_max: int = CONNECTION_REQUESTS_IN_FLIGHT_MAX
    bytes_in_flight_max: int = CONNECTION_BYTES_IN_FLIGHT_MAX
    # For so many microseconds after a request the loop looks for the reply instead of sleeping.
    # Calls one after another become quicker, and the loop's processor is busy meanwhile.
    spin_us: int = 0

    def validate(self) -> None:
        """Raise `ConfigurationError` for a value that cannot be."""
        for name, limit in (
            ("timeout_ms", TIMEOUT_MS_MAX),
            ("connect_timeout_ms", TIMEOUT_MS_MAX),
            ("requests_in_flight_max", CONNECTION_REQUESTS_IN_FLIGHT_MAX),
            ("bytes_in_flight_max", CLIENT_FRAME_BYTES_MAX),
        ):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ConfigurationError(f"{name} must be 1 to {limit}, not {value!r}")
        if type(self.spin_us) is not int or not 0 <= self.spin_us <= SPIN_US_MAX:
            raise ConfigurationError(f"spin_us must be 0 to {SPIN_US_MAX}, not {self.spin_us!r}")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which keys or values are wanted; an empty pattern matches all of them."""

    type: FilterType
    pattern: bytes

    @classmethod
    def prefix(cls, pattern: BytesLike) -> "Filter":
        """Match what begins with `pattern`."""
        return cls(FilterType.MATCH_PREFIX, as_bytes("pattern", pattern, SORT_KEY_BYTES_MAX))

    @classmethod
    def postfix(cls, pattern: BytesLike) -> "Filter":
        """Match what ends with `pattern`."""
        return cls(FilterType.MATCH_POSTFIX, as_bytes("pattern", pattern, SORT_KEY_BYTES_MAX))

    @classmethod
    def anywhere(cls, pattern: BytesLike) -> "Filter":
        """Match what contains `pattern`."""
        return cls(FilterType.MATCH_ANYWHERE, as_bytes("pattern", pattern, SORT_KEY_BYTES_MAX))

    @classmethod
    def exact(cls, pattern: BytesLike) -> "Filter":
        """Match what equals `pattern`."""
        return cls(FilterType.MATCH_EXACT, as_bytes("pattern", pattern, SORT_KEY_BYTES_MAX))


@dataclass(frozen=True)
class RangeOptions:
    """How a range of one hash key's rows is read.

    An empty `stop` means the end of the hash key, inclusive or not. With `reverse` a
    limited read takes the largest keys; what is returned is ascending all the same.
    """

    start_inclusive: bool = True
    stop_inclusive: bool = False
    sort_key_filter: Filter | None = None
    reverse: bool = False
    no_value: bool = False

    def __post_init__(self) -> None:
        for name in ("start_inclusive", "stop_inclusive", "reverse", "no_value"):
            _check_bool(name, getattr(self, name))
        _check_filter("sort_key_filter", self.sort_key_filter)


@dataclass(frozen=True)
class ScanOptions(RangeOptions):
    """How a scan reads; it goes forward only.

    `batch_size` is the number of rows a page may have (at most 1 000 are sent at once);
    with `return_expire` each row says when it expires.
    """

    hash_key_filter: Filter | None = None
    value_filter: Filter | None = None
    batch_size: int = PAGE_ROWS_MAX
    return_expire: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_filter("hash_key_filter", self.hash_key_filter)
        _check_filter("value_filter", self.value_filter)
        _check_bool("return_expire", self.return_expire)
        if type(self.batch_size) is not int or self.batch_size <= 0:
            raise InvalidArgument(f"batch_size must be 1 or more, not {self.batch_size!r}")
        if self.reverse:
            raise InvalidArgument(
                "a scan goes forward only", hint="multi_get reads a range in reverse"
            )


@dataclass(frozen=True, slots=True)
class Put:
    """A mutation of `check_and_mutate`: write a row that lives `ttl` seconds (0 = for ever)."""

    sort_key: BytesLike
    value: BytesLike
    ttl: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """A mutation of `check_and_mutate`: delete a row."""

    sort_key: BytesLike


class MultiGetResult(dict[bytes, bytes]):
    """Values by sort key, in sort-key order.

    `complete` is False if and only if the caller's own limit ended the read.
    """

    __slots__ = ("complete",)

    def __init__(self, rows: Iterable[tuple[bytes, bytes]] = (), *, complete: bool = True) -> None:
        super().__init__(rows)
        self.complete = complete


class SortKeys(list[bytes]):
    """Sort keys in order; `complete` as in `MultiGetResult`."""

    __slots__ = ("complete",)

    def __init__(self, keys: Iterable[bytes] = (), *, complete: bool = True) -> None:
        super().__init__(keys)
        self.complete = complete


class CheckResult(NamedTuple):
    """The outcome of a checked write.

    `exists` and `value` tell the checked row as it was before; both are None unless they
    were asked for.
    """

    passed: bool
    exists: bool | None = None
    value: bytes | None = None


class Row(NamedTuple):
    """A row of a scan; `value` is empty with `no_value`.

    `expires_at` is in Unix seconds; None when the row lives for ever or `return_expire`
    was not given.
    """

    hash_key: bytes
    sort_key: bytes
    value: bytes
    expires_at: int | None = None


def _check_bool(name: str, value: object) -> None:
    if type(value) is not bool:
        raise InvalidArgument(f"{name} must be True or False, not {value!r}")


def _check_filter(name: str, value: object) -> None:
    if value is not None and not isinstance(value, Filter):
        raise InvalidArgument(
            f"{name} must be a Filter or None, not {value!r}", hint='say Filter.prefix(b"...")'
        )
