"""Arguments and options that several commands on rows share, and what they become."""

from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.limits import TTL_SECONDS_MAX
from shell.errors import UsageError
from shell.registry import Argument, Kind, Option

if TYPE_CHECKING:
    from pegaskv.client import Filter, RangeOptions, ScanOptions

__all__ = [
    "BATCH",
    "DETAILED",
    "FROM",
    "HASH_KEY",
    "HASH_KEY_FILTER",
    "INCLUSIVE",
    "MAX_COUNT",
    "NO_VALUE",
    "SORT_KEY",
    "SORT_KEY_FILTER",
    "START",
    "STOP",
    "TO",
    "TTL",
    "TTL_OPTION",
    "VALUE",
    "VALUE_FILTER",
    "make_filter",
    "make_range",
    "make_scan_options",
]

HASH_KEY: Final = Argument("hash_key", "the hash key")
SORT_KEY: Final = Argument("sort_key", "the sort key")
VALUE: Final = Argument("value", "the value")
START: Final = Argument("start", 'the first sort key, "" = from the beginning')
STOP: Final = Argument("stop", 'the sort key to stop before, "" = to the end')
FROM: Final = Argument("start", START.help, required=False, default=b"")
TO: Final = Argument("stop", STOP.help, required=False, default=b"")
TTL: Final = Argument(
    "ttl",
    "time to live in seconds; 0 = no limit of its own",
    Kind.INTEGER,
    required=False,
    default=0,
    minimum=0,
    maximum=TTL_SECONDS_MAX,
)
TTL_OPTION: Final = Option(
    "ttl", TTL.help, Kind.INTEGER, default=0, minimum=0, maximum=TTL_SECONDS_MAX, short="-l"
)

FILTERS: Final = ("anywhere", "prefix", "postfix", "exact")


def _filter_options(what: str, name: str, type_flag: str, pattern_flag: str) -> tuple[Option, ...]:
    return (
        Option(
            f"{name}_filter_type",
            f"how {what} must match the pattern; anywhere, when not given",
            Kind.CHOICE,
            choices=FILTERS,
            short=type_flag,
        ),
        Option(f"{name}_filter_pattern", f"only {what}s that match this", short=pattern_flag),
    )


SORT_KEY_FILTER: Final = _filter_options("sort key", "sort_key", "-s", "-y")
HASH_KEY_FILTER: Final = _filter_options("hash key", "hash_key", "-h", "-x")
VALUE_FILTER: Final = _filter_options("value", "value", "-v", "-z")
INCLUSIVE: Final = (
    Option("start_inclusive", "take <start> itself", Kind.BOOLEAN, default=True, short="-a"),
    Option("stop_inclusive", "take <stop> itself", Kind.BOOLEAN, default=False, short="-b"),
)
MAX_COUNT: Final = Option(
    "max_count", "stop after this many rows", Kind.INTEGER, default=0, minimum=1, short="-n"
)
NO_VALUE: Final = Option("no_value", "keys only", Kind.SWITCH, default=False, short="-i")
DETAILED: Final = Option(
    "detailed", "also when each row expires", Kind.SWITCH, default=False, short="-d"
)
BATCH: Final = Option(
    "batch_size", "rows in one request", Kind.INTEGER, default=1000, minimum=1, short="-o"
)


def make_filter(kind: str | None, pattern: bytes | None, flag: str) -> "Filter | None":
    """Return the filter that a pair of options asks for."""
    from pegaskv.client import Filter

    if pattern is None:
        if kind is not None:
            raise UsageError(f"a filter type needs a pattern: {flag} <pattern>")
        return None
    make = {
        "anywhere": Filter.anywhere,
        "prefix": Filter.prefix,
        "postfix": Filter.postfix,
        "exact": Filter.exact,
    }[kind or "anywhere"]
    return make(pattern)


def make_range(
    start_inclusive: bool,
    stop_inclusive: bool,
    sort_key_filter_type: str | None,
    sort_key_filter_pattern: bytes | None,
    **more: Any,
) -> "RangeOptions":
    """Return the range that the options of a command ask for."""
    from pegaskv.client import RangeOptions

    return RangeOptions(
        start_inclusive=start_inclusive,
        stop_inclusive=stop_inclusive,
        sort_key_filter=make_filter(sort_key_filter_type, sort_key_filter_pattern, "-y"),
        **more,
    )


def make_scan_options(
    hash_key_filter_type: str | None,
    hash_key_filter_pattern: bytes | None,
    sort_key_filter_type: str | None,
    sort_key_filter_pattern: bytes | None,
    value_filter_type: str | None,
    value_filter_pattern: bytes | None,
    **more: Any,
) -> "ScanOptions":
    """Return the filters of a command as options of a scan."""
    from pegaskv.client import ScanOptions

    return ScanOptions(
        hash_key_filter=make_filter(hash_key_filter_type, hash_key_filter_pattern, "-x"),
        sort_key_filter=make_filter(sort_key_filter_type, sort_key_filter_pattern, "-y"),
        value_filter=make_filter(value_filter_type, value_filter_pattern, "-z"),
        **more,
    )
