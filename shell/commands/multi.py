"""Commands on several rows of one hash key, each of them atomic but the range delete."""

from typing import TYPE_CHECKING, Any

from shell.commands.arguments import (
    FROM,
    HASH_KEY,
    INCLUSIVE,
    MAX_COUNT,
    NO_VALUE,
    SORT_KEY,
    SORT_KEY_FILTER,
    START,
    STOP,
    TO,
    TTL_OPTION,
    VALUE,
    make_range,
)
from shell.context import Context
from shell.errors import UsageError
from shell.parser import quote
from shell.registry import Kind, Needs, Option, command
from shell.render import Result

if TYPE_CHECKING:
    from pegaskv.client import MultiGetResult

__all__: list[str] = []


@command(
    "multi_set",
    help="write several rows of one hash key, all or none",
    arguments=(HASH_KEY,),
    repeated=(SORT_KEY, VALUE),
    repeated_name="pairs",
    repeated_minimum=1,
    options=(TTL_OPTION,),
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
    arguments=(HASH_KEY,),
    repeated=(SORT_KEY,),
    repeated_name="sort_keys",
    options=(MAX_COUNT,),
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
    arguments=(HASH_KEY, FROM, TO),
    options=(
        *INCLUSIVE,
        *SORT_KEY_FILTER,
        MAX_COUNT,
        NO_VALUE,
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
    wanted = make_range(no_value=no_value, **options)
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
    arguments=(HASH_KEY,),
    options=(MAX_COUNT,),
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
    arguments=(HASH_KEY,),
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
    arguments=(HASH_KEY,),
    repeated=(SORT_KEY,),
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
    arguments=(HASH_KEY, START, STOP),
    options=(*INCLUSIVE, *SORT_KEY_FILTER),
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
    wanted = make_range(**options)
    table = await context.table()
    number = await table.delete_range(
        hash_key, start=start, stop=stop, options=wanted, timeout=context.timeout_s
    )
    return Result(number, number)
