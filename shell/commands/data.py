"""Commands on single rows of the table in use; names and order of arguments are Pegasus's."""

from pegaskv.base.limits import TTL_SECONDS_MAX
from shell.commands.arguments import (
    HASH_KEY,
    SORT_KEY,
    TTL,
    VALUE,
)
from shell.context import Context
from shell.registry import Argument, Kind, Needs, Option, command
from shell.render import Result

__all__: list[str] = []


@command(
    "set",
    help="write one row",
    arguments=(HASH_KEY, SORT_KEY, VALUE, TTL),
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
    arguments=(HASH_KEY, SORT_KEY),
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
    arguments=(HASH_KEY, SORT_KEY),
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
    arguments=(HASH_KEY, SORT_KEY),
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
    arguments=(HASH_KEY, SORT_KEY),
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
        HASH_KEY,
        SORT_KEY,
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
