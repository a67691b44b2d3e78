"""Commands on the rows of the table in use; names and order of arguments are Pegasus's."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.limits import TTL_SECONDS_MAX
from pegaskv.base.types import CheckType
from shell.context import Context
from shell.errors import UsageError
from shell.parser import parse, quote
from shell.registry import Argument, Command, Kind, Needs, Option, command
from shell.render import Result, Stream

if TYPE_CHECKING:
    from pegaskv.client import (
        CheckResult,
        Delete,
        Filter,
        MultiGetResult,
        Put,
        RangeOptions,
        Row,
        ScanOptions,
    )

__all__ = ["MUTATION_COMMANDS"]

_HASH_KEY: Final = Argument("hash_key", "the hash key")
_SORT_KEY: Final = Argument("sort_key", "the sort key")
_VALUE: Final = Argument("value", "the value")
_START: Final = Argument("start", 'the first sort key, "" = from the beginning')
_STOP: Final = Argument("stop", 'the sort key to stop before, "" = to the end')
_FROM: Final = Argument("start", _START.help, required=False, default=b"")
_TO: Final = Argument("stop", _STOP.help, required=False, default=b"")
_TTL: Final = Argument(
    "ttl",
    "time to live in seconds; 0 = no limit of its own",
    Kind.INTEGER,
    required=False,
    default=0,
    minimum=0,
    maximum=TTL_SECONDS_MAX,
)
_TTL_OPTION: Final = Option(
    "ttl", _TTL.help, Kind.INTEGER, default=0, minimum=0, maximum=TTL_SECONDS_MAX, short="-l"
)

_FILTERS: Final = ("anywhere", "prefix", "postfix", "exact")


def _filter_options(what: str, name: str, type_flag: str, pattern_flag: str) -> tuple[Option, ...]:
    return (
        Option(
            f"{name}_filter_type",
            f"how {what} must match the pattern; anywhere, when not given",
            Kind.CHOICE,
            choices=_FILTERS,
            short=type_flag,
        ),
        Option(f"{name}_filter_pattern", f"only {what}s that match this", short=pattern_flag),
    )


_SORT_KEY_FILTER: Final = _filter_options("sort key", "sort_key", "-s", "-y")
_HASH_KEY_FILTER: Final = _filter_options("hash key", "hash_key", "-h", "-x")
_VALUE_FILTER: Final = _filter_options("value", "value", "-v", "-z")
_INCLUSIVE: Final = (
    Option("start_inclusive", "take <start> itself", Kind.BOOLEAN, default=True, short="-a"),
    Option("stop_inclusive", "take <stop> itself", Kind.BOOLEAN, default=False, short="-b"),
)
_MAX_COUNT: Final = Option(
    "max_count", "stop after this many rows", Kind.INTEGER, default=0, minimum=1, short="-n"
)
_NO_VALUE: Final = Option("no_value", "keys only", Kind.SWITCH, default=False, short="-i")
_DETAILED: Final = Option(
    "detailed", "also when each row expires", Kind.SWITCH, default=False, short="-d"
)
_BATCH: Final = Option(
    "batch_size", "rows in one request", Kind.INTEGER, default=1000, minimum=1, short="-o"
)


def _filter(kind: str | None, pattern: bytes | None, flag: str) -> "Filter | None":
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


def _range(
    start_inclusive: bool,
    stop_inclusive: bool,
    sort_key_filter_type: str | None,
    sort_key_filter_pattern: bytes | None,
    **more: Any,
) -> "RangeOptions":
    from pegaskv.client import RangeOptions

    return RangeOptions(
        start_inclusive=start_inclusive,
        stop_inclusive=stop_inclusive,
        sort_key_filter=_filter(sort_key_filter_type, sort_key_filter_pattern, "-y"),
        **more,
    )


@command(
    "set",
    help="write one row",
    arguments=(_HASH_KEY, _SORT_KEY, _VALUE, _TTL),
    examples=("set user_1 name Ada", r'set user_1 "\x00\x01" "two words" 3600'),
    json="null",
    needs=Needs.TABLE,
)
async def set_row(
    context: Context, hash_key: bytes, sort_key: bytes, value: bytes, ttl: int
) -> Result:
    """Write a row."""
    table = await context.table()
    await table.set(hash_key, sort_key, value, ttl=ttl, timeout=context.timeout_s)
    return Result(note="OK")


@command(
    "get",
    help="read one row",
    arguments=(_HASH_KEY, _SORT_KEY),
    details='A row that is not there is no error: exit status 0, JSON null, and "not found" on\n'
    "stderr. `exist` answers true or false.",
    examples=("get user_1 name",),
    json="the value, null when the row is absent or expired",
    needs=Needs.TABLE,
)
async def get_row(context: Context, hash_key: bytes, sort_key: bytes) -> Result:
    """Read a row."""
    table = await context.table()
    value = await table.get(hash_key, sort_key, timeout=context.timeout_s)
    return Result(value, value, "Not found" if value is None else "")


@command(
    "del",
    help="delete one row; that it is not there is fine",
    arguments=(_HASH_KEY, _SORT_KEY),
    examples=("del user_1 name",),
    json="null",
    needs=Needs.TABLE,
)
async def delete_row(context: Context, hash_key: bytes, sort_key: bytes) -> Result:
    """Delete a row."""
    table = await context.table()
    await table.delete(hash_key, sort_key, timeout=context.timeout_s)
    return Result(note="OK")


@command(
    "exist",
    help="say whether a row is there",
    arguments=(_HASH_KEY, _SORT_KEY),
    examples=("exist user_1 name",),
    json="true or false",
    needs=Needs.TABLE,
)
async def exist_row(context: Context, hash_key: bytes, sort_key: bytes) -> Result:
    """Say whether a row is there."""
    table = await context.table()
    there = await table.exist(hash_key, sort_key, timeout=context.timeout_s)
    return Result(there, there)


@command(
    "ttl",
    help="show how long a row still lives",
    arguments=(_HASH_KEY, _SORT_KEY),
    examples=("ttl user_1 session",),
    json="seconds; -1 = for ever, -2 = the row is not there",
    needs=Needs.TABLE,
)
async def show_ttl(context: Context, hash_key: bytes, sort_key: bytes) -> Result:
    """Show the seconds that a row has left."""
    table = await context.table()
    seconds = await table.ttl(hash_key, sort_key, timeout=context.timeout_s)
    if seconds == -2:
        return Result(seconds, note="Not found")
    return Result(seconds, "infinite" if seconds == -1 else seconds)


@command(
    "incr",
    help="add to the number in a row; a row that is not there counts as 0",
    arguments=(
        _HASH_KEY,
        _SORT_KEY,
        Argument("by", "what to add, may be negative", Kind.INTEGER, required=False, default=1),
    ),
    options=(
        Option(
            "ttl",
            "time to live in seconds from now; -1 = for ever; when not given, it stays",
            Kind.INTEGER,
            default=0,
            minimum=-1,
            maximum=TTL_SECONDS_MAX,
            short="-l",
        ),
    ),
    examples=("incr counters visits", "incr counters visits -5", "incr counters today 1 -l 86400"),
    json="the new number",
    needs=Needs.TABLE,
)
async def increment(
    context: Context, hash_key: bytes, sort_key: bytes, by: int, ttl: int
) -> Result:
    """Add to a number, atomically."""
    table = await context.table()
    number = await table.incr(hash_key, sort_key, by, ttl=ttl, timeout=context.timeout_s)
    return Result(number, number)


@command(
    "multi_set",
    help="write several rows of one hash key, all or none",
    arguments=(_HASH_KEY,),
    repeated=(_SORT_KEY, _VALUE),
    repeated_name="pairs",
    repeated_minimum=1,
    options=(_TTL_OPTION,),
    examples=("multi_set user_1 name Ada born 1815", "multi_set cache a 1 b 2 -l 60"),
    json="{count}",
    needs=Needs.TABLE,
)
async def multi_set(
    context: Context, hash_key: bytes, pairs: list[tuple[bytes, bytes]], ttl: int
) -> Result:
    """Write rows atomically."""
    rows: dict[bytes, bytes] = {}
    for sort_key, value in pairs:
        if sort_key in rows:
            raise UsageError(f"the sort key {quote(sort_key)} is given twice")
        rows[sort_key] = value
    table = await context.table()
    await table.multi_set(hash_key, rows, ttl=ttl, timeout=context.timeout_s)
    return Result({"count": len(rows)}, note="OK")


def _pairs_result(context: Context, rows: "MultiGetResult", *, no_value: bool = False) -> Result:
    """Return the answer of a command that read rows of one hash key."""
    data: list[dict[str, bytes]] = []
    lines: list[str] = []
    for sort_key, value in rows.items():
        key = quote(sort_key, every_byte=context.escape_all)
        if no_value:
            data.append({"sort_key": sort_key})
            lines.append(key)
        else:
            data.append({"sort_key": sort_key, "value": value})
            lines.append(f"{key} => {quote(value, every_byte=context.escape_all)}")
    note = _count_note(len(data), rows.complete)
    return Result({"rows": data, "complete": rows.complete}, lines, note)


def _count_note(count: int, complete: bool) -> str:
    more = "" if complete else "; there are more"
    return f"{count} row{'' if count == 1 else 's'}{more}"


@command(
    "multi_get",
    help="read rows of one hash key: those named, or all",
    arguments=(_HASH_KEY,),
    repeated=(_SORT_KEY,),
    repeated_name="sort_keys",
    options=(_MAX_COUNT,),
    examples=("multi_get user_1", "multi_get user_1 name born", "multi_get user_1 -n 10"),
    json="{rows: a list of {sort_key, value}, complete}; sort keys that are not there are left out",
    needs=Needs.TABLE,
)
async def multi_get(
    context: Context, hash_key: bytes, sort_keys: list[bytes], max_count: int
) -> Result:
    """Read rows in the order of their sort keys."""
    table = await context.table()
    rows = await table.multi_get(
        hash_key,
        sort_keys or None,
        max_count=max_count,
        max_bytes=0,
        timeout=context.timeout_s,
    )
    return _pairs_result(context, rows)


@command(
    "multi_get_range",
    help="read a range of the rows of one hash key",
    arguments=(_HASH_KEY, _FROM, _TO),
    options=(
        *_INCLUSIVE,
        *_SORT_KEY_FILTER,
        _MAX_COUNT,
        _NO_VALUE,
        Option(
            "reverse",
            "with -n: take the last rows of the range; shown in ascending order all the same",
            Kind.SWITCH,
            default=False,
            short="-r",
        ),
    ),
    examples=(
        "multi_get_range user_1 a f",
        'multi_get_range log_7 "" "" -n 10 -r',
        'multi_get_range user_1 "" "" -s prefix -y address.',
    ),
    json="{rows: a list of {sort_key, value} (without value with -i), complete}",
    needs=Needs.TABLE,
)
async def multi_get_range(
    context: Context,
    hash_key: bytes,
    start: bytes,
    stop: bytes,
    max_count: int,
    no_value: bool,
    **options: Any,
) -> Result:
    """Read a range in the order of the sort keys."""
    wanted = _range(no_value=no_value, **options)
    table = await context.table()
    rows = await table.multi_get(
        hash_key,
        start=start,
        stop=stop,
        options=wanted,
        max_count=max_count,
        max_bytes=0,
        timeout=context.timeout_s,
    )
    return _pairs_result(context, rows, no_value=no_value)


@command(
    "multi_get_sortkeys",
    help="list the sort keys of one hash key",
    arguments=(_HASH_KEY,),
    options=(_MAX_COUNT,),
    examples=("multi_get_sortkeys user_1",),
    json="{sort_keys: a list, complete}",
    needs=Needs.TABLE,
)
async def multi_get_sort_keys(context: Context, hash_key: bytes, max_count: int) -> Result:
    """List sort keys in order."""
    table = await context.table()
    keys = await table.multi_get_sort_keys(
        hash_key, max_count=max_count, max_bytes=0, timeout=context.timeout_s
    )
    lines = [quote(key, every_byte=context.escape_all) for key in keys]
    note = _count_note(len(lines), keys.complete)
    return Result({"sort_keys": list(keys), "complete": keys.complete}, lines, note)


@command(
    "count",
    help="count the rows of one hash key",
    arguments=(_HASH_KEY,),
    examples=("count user_1",),
    json="the number of rows",
    needs=Needs.TABLE,
    aliases=("sortkey_count",),
)
async def count_sort_keys(context: Context, hash_key: bytes) -> Result:
    """Count the sort keys of a hash key."""
    table = await context.table()
    number = await table.sort_key_count(hash_key, timeout=context.timeout_s)
    return Result(number, number)


@command(
    "multi_del",
    help="delete several rows of one hash key, all or none",
    arguments=(_HASH_KEY,),
    repeated=(_SORT_KEY,),
    repeated_name="sort_keys",
    repeated_minimum=1,
    examples=("multi_del user_1 name born",),
    json="the number of sort keys that were named, whether their rows were there or not",
    needs=Needs.TABLE,
)
async def multi_delete(context: Context, hash_key: bytes, sort_keys: list[bytes]) -> Result:
    """Delete rows atomically."""
    table = await context.table()
    number = await table.multi_delete(hash_key, sort_keys, timeout=context.timeout_s)
    return Result(number, number)


@command(
    "multi_del_range",
    help="delete a range of the rows of one hash key, in parts (not atomic)",
    arguments=(_HASH_KEY, _START, _STOP),
    options=(*_INCLUSIVE, *_SORT_KEY_FILTER),
    examples=(
        "multi_del_range user_1 a f --yes",
        'multi_del_range user_1 "" "" -s prefix -y address. --yes',
    ),
    json="the number of rows deleted",
    needs=Needs.TABLE,
    danger="deletes every row of the range, and nothing brings them back",
)
async def delete_range(
    context: Context, hash_key: bytes, start: bytes, stop: bytes, **options: Any
) -> Result:
    """Delete a range."""
    wanted = _range(**options)
    table = await context.table()
    number = await table.delete_range(
        hash_key, start=start, stop=stop, options=wanted, timeout=context.timeout_s
    )
    return Result(number, number)


async def _first(rows: "AsyncIterator[Row]", max_count: int) -> "AsyncIterator[Row]":
    """Pass on the first `max_count` rows (0 = all), and close the scan early and late."""
    count = 0
    try:
        async for row in rows:
            yield row
            count += 1
            if count == max_count:
                return
    finally:
        close = getattr(rows, "aclose", None)
        if close is not None:
            await close()


def _scan_stream(
    rows: "AsyncIterator[Row]", *, max_count: int, no_value: bool, detailed: bool
) -> Stream:
    def text(row: "Row", every_byte: bool) -> str:
        hash_key, sort_key, value = (quote(each, every_byte=every_byte) for each in row[:3])
        line = f"{hash_key} : {sort_key}"
        if not no_value:
            line += f" => {value}"
        if detailed:
            line += f" expires_at {row.expires_at or 'never'}"
        return line

    def data(row: "Row") -> dict[str, object]:
        fields: dict[str, object] = {"hash_key": row.hash_key, "sort_key": row.sort_key}
        if not no_value:
            fields["value"] = row.value
        if detailed:
            fields["expires_at"] = row.expires_at
        return fields

    return Stream(_first(rows, max_count), text, data)


@command(
    "hash_scan",
    help="read the rows of one hash key, as many as there are",
    arguments=(_HASH_KEY, _FROM, _TO),
    options=(
        *_INCLUSIVE,
        *_SORT_KEY_FILTER,
        *_VALUE_FILTER,
        _MAX_COUNT,
        _NO_VALUE,
        _DETAILED,
        _BATCH,
    ),
    examples=(
        "hash_scan user_1",
        "hash_scan log_7 2026-01 2026-02 -n 100",
        'hash_scan user_1 "" "" -s postfix -y .city -i',
    ),
    json="a list of {hash_key, sort_key, value (not with -i), expires_at (with -d; Unix seconds, "
    "null = never)}; `ok` comes last in the object, since rows are written as they are read",
    needs=Needs.TABLE,
)
async def hash_scan(
    context: Context,
    hash_key: bytes,
    start: bytes,
    stop: bytes,
    value_filter_type: str | None,
    value_filter_pattern: bytes | None,
    max_count: int,
    no_value: bool,
    detailed: bool,
    batch_size: int,
    **options: Any,
) -> Result:
    """Scan one hash key in the order of its sort keys."""
    from pegaskv.client import ScanOptions

    wanted = ScanOptions(
        **vars(_range(**options)) | {"no_value": no_value},
        value_filter=_filter(value_filter_type, value_filter_pattern, "-z"),
        batch_size=min(batch_size, max_count) if max_count else batch_size,
        return_expire=detailed,
    )
    table = await context.table()
    rows = table.scan(hash_key, start=start, stop=stop, options=wanted, timeout=context.timeout_s)
    return Result(
        stream=_scan_stream(rows, max_count=max_count, no_value=no_value, detailed=detailed)
    )


@command(
    "full_scan",
    help="read the rows of the whole table, in no particular order of hash keys",
    options=(
        *_HASH_KEY_FILTER,
        *_SORT_KEY_FILTER,
        *_VALUE_FILTER,
        _MAX_COUNT,
        _NO_VALUE,
        _DETAILED,
        _BATCH,
    ),
    examples=("full_scan -n 10", "full_scan -h prefix -x user_ -i", "full_scan -d"),
    json="a list as of `hash_scan`",
    needs=Needs.TABLE,
)
async def full_scan(
    context: Context,
    max_count: int,
    no_value: bool,
    detailed: bool,
    batch_size: int,
    **filters: Any,
) -> Result:
    """Scan the table."""
    wanted = _scan_options(
        no_value=no_value,
        return_expire=detailed,
        batch_size=min(batch_size, max_count) if max_count else batch_size,
        **filters,
    )
    table = await context.table()
    rows = table.full_scan(options=wanted, timeout=context.timeout_s)
    return Result(
        stream=_scan_stream(rows, max_count=max_count, no_value=no_value, detailed=detailed)
    )


def _scan_options(
    hash_key_filter_type: str | None,
    hash_key_filter_pattern: bytes | None,
    sort_key_filter_type: str | None,
    sort_key_filter_pattern: bytes | None,
    value_filter_type: str | None,
    value_filter_pattern: bytes | None,
    **more: Any,
) -> "ScanOptions":
    from pegaskv.client import ScanOptions

    return ScanOptions(
        hash_key_filter=_filter(hash_key_filter_type, hash_key_filter_pattern, "-x"),
        sort_key_filter=_filter(sort_key_filter_type, sort_key_filter_pattern, "-y"),
        value_filter=_filter(value_filter_type, value_filter_pattern, "-z"),
        **more,
    )


@command(
    "count_data",
    help="count the rows of the whole table, at the servers",
    options=(
        Option(
            "precise",
            "accepted as in Pegasus; the count is always exact",
            Kind.SWITCH,
            default=False,
            short="-c",
        ),
        *_HASH_KEY_FILTER,
        *_SORT_KEY_FILTER,
        *_VALUE_FILTER,
    ),
    examples=("count_data", "count_data -h prefix -x user_"),
    json="the number of rows",
    needs=Needs.TABLE,
)
async def count_data(context: Context, precise: bool, **filters: Any) -> Result:
    """Count rows, with filters those that match."""
    wanted = _scan_options(**filters)
    table = await context.table()
    number = await table.count(options=wanted, timeout=context.timeout_s)
    return Result(number, number)


_CHECKS: Final = tuple(check.name.lower() for check in CheckType)
_CHECK_OPTIONS: Final = (
    Option("check_sort_key", "the sort key of the row to check", required=True, short="-c"),
    Option(
        "check_type",
        "what must hold of that row",
        Kind.CHOICE,
        required=True,
        choices=_CHECKS,
        short="-t",
    ),
    Option("check_operand", "what it is compared with", default=b"", short="-o"),
)
_RETURN_CHECK_VALUE: Final = Option(
    "return_check_value",
    "show the checked row as it was before",
    Kind.SWITCH,
    default=False,
    short="-r",
)


def _check_result(
    context: Context, result: "CheckResult", *, return_check_value: bool, done: str
) -> Result:
    data: dict[str, object] = {"passed": result.passed}
    lines = ["passed" if result.passed else "not passed"]
    if return_check_value:
        data |= {"exists": result.exists, "value": result.value}
        shown = quote(result.value or b"", every_byte=context.escape_all)
        lines.append(f"check value: {shown if result.exists else 'not found'}")
    note = done if result.passed else "the check did not hold, so nothing was written"
    return Result(data, lines, note)


@command(
    "check_and_set",
    help="write one row if a row of the same hash key is as expected, atomically",
    arguments=(_HASH_KEY,),
    options=(
        *_CHECK_OPTIONS,
        Option(
            "set_sort_key", "the sort key to write; the checked one, when not given", short="-s"
        ),
        Option("value", "the value to write", required=True, short="-v"),
        _TTL_OPTION,
        _RETURN_CHECK_VALUE,
    ),
    details="That the check does not hold is no error: the exit status is 0 and `passed` false.",
    examples=(
        "check_and_set lock_1 -c owner -t not_exist -v me -l 30",
        "check_and_set user_1 -c version -t int_less -o 7 -s name -v Ada -r",
    ),
    json="{passed}, with -r also {exists, value}",
    needs=Needs.TABLE,
)
async def check_and_set(
    context: Context,
    hash_key: bytes,
    check_sort_key: bytes,
    check_type: str,
    check_operand: bytes,
    set_sort_key: bytes | None,
    value: bytes,
    ttl: int,
    return_check_value: bool,
) -> Result:
    """Check and set."""
    table = await context.table()
    result = await table.check_and_set(
        hash_key,
        check_sort_key,
        CheckType[check_type.upper()],
        check_operand,
        set_sort_key=set_sort_key,
        value=value,
        ttl=ttl,
        return_check_value=return_check_value,
        timeout=context.timeout_s,
    )
    return _check_result(
        context, result, return_check_value=return_check_value, done="Set succeed."
    )


async def _run_only_inside(context: Context, **_: Any) -> Result:
    raise AssertionError("a mutation is a part of check_and_mutate and never runs alone")


# What may be written in `-m`, or line by line between `check_and_mutate` and `ok`.
MUTATION_COMMANDS: Final = {
    each.name: each
    for each in (
        Command(
            "set",
            "mutations",
            "write one row",
            _run_only_inside,
            "",
            ("set name Ada",),
            arguments=(_SORT_KEY, _VALUE, _TTL),
        ),
        Command(
            "del",
            "mutations",
            "delete one row",
            _run_only_inside,
            "",
            ("del name",),
            arguments=(_SORT_KEY,),
        ),
        Command("ok", "mutations", "send them", _run_only_inside, "", ("ok",)),
        Command("abort", "mutations", "send nothing", _run_only_inside, "", ("abort",)),
    )
}


@command(
    "check_and_mutate",
    help="write and delete several rows if a row of the same hash key is as expected, atomically",
    arguments=(_HASH_KEY,),
    options=(
        *_CHECK_OPTIONS,
        Option(
            "mutation",
            "`set <sort_key> <value> [ttl]` or `del <sort_key>`",
            Kind.TEXT,
            short="-m",
            repeated=True,
        ),
        _RETURN_CHECK_VALUE,
    ),
    details="Without -m the next lines are the mutations, one each, up to a line `ok` (or "
    "`abort`).\nThat the check does not hold is no error: the exit status is 0 and `passed` false.",
    examples=(
        "check_and_mutate user_1 -c version -t int_equal -o 7 -m 'set version 8' -m 'del draft'",
    ),
    json="{passed}, with -r also {exists, value}; null when it was aborted",
    needs=Needs.TABLE,
)
async def check_and_mutate(
    context: Context,
    hash_key: bytes,
    check_sort_key: bytes,
    check_type: str,
    check_operand: bytes,
    mutation: list[str],
    return_check_value: bool,
) -> Result:
    """Check and mutate; the mutations come from -m or from the lines that follow."""
    lines = mutation or await _read_mutations(context)
    if lines is None:
        return Result(note="aborted; nothing was sent")
    mutations = [_mutation(line) for line in lines]
    if not mutations:
        raise UsageError("check_and_mutate needs at least one mutation")
    table = await context.table()
    result = await table.check_and_mutate(
        hash_key,
        check_sort_key,
        CheckType[check_type.upper()],
        check_operand,
        mutations=mutations,
        return_check_value=return_check_value,
        timeout=context.timeout_s,
    )
    return _check_result(
        context, result, return_check_value=return_check_value, done="Mutate succeed."
    )


async def _read_mutations(context: Context) -> list[str] | None:
    """Read lines up to `ok`; None after `abort`.

    All lines up to the end are taken before any is judged: a wrong one must not leave the
    others behind to be run as commands.
    """
    lines: list[str] = []
    while True:
        line = await context.more("mutation> ") if context.more else None
        if line is None:
            raise UsageError(
                "check_and_mutate was not ended by `ok` or `abort`; nothing was sent",
                hint="write the mutations on the next lines, or give each by -m",
            )
        if line.strip() == "ok":
            return lines
        if line.strip() == "abort":
            return None
        if line.strip():
            lines.append(line)


def _mutation(line: str) -> "Put | Delete":
    from pegaskv.client import Delete, Put

    invocation = parse(line, MUTATION_COMMANDS)
    if invocation is None or invocation.command.name in ("ok", "abort"):
        raise UsageError(f"{quote(line.encode())} is no mutation")
    values = invocation.values
    if invocation.command.name == "set":
        return Put(values["sort_key"], values["value"], values["ttl"])
    return Delete(values["sort_key"])
