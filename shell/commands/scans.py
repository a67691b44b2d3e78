"""Commands that walk over many rows: scans, shown as they come, and counts."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from shell.commands.arguments import (
    BATCH,
    DETAILED,
    FROM,
    HASH_KEY,
    HASH_KEY_FILTER,
    INCLUSIVE,
    MAX_COUNT,
    NO_VALUE,
    SORT_KEY_FILTER,
    TO,
    VALUE_FILTER,
    make_filter,
    make_range,
    make_scan_options,
)
from shell.context import Context
from shell.parser import quote
from shell.registry import Kind, Needs, Option, command
from shell.render import Result, Stream

if TYPE_CHECKING:
    from pegaskv.client import Row

__all__: list[str] = []


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
    arguments=(HASH_KEY, FROM, TO),
    options=(
        *INCLUSIVE,
        *SORT_KEY_FILTER,
        *VALUE_FILTER,
        MAX_COUNT,
        NO_VALUE,
        DETAILED,
        BATCH,
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
        **vars(make_range(**options)) | {"no_value": no_value},
        value_filter=make_filter(value_filter_type, value_filter_pattern, "-z"),
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
        *HASH_KEY_FILTER,
        *SORT_KEY_FILTER,
        *VALUE_FILTER,
        MAX_COUNT,
        NO_VALUE,
        DETAILED,
        BATCH,
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
    wanted = make_scan_options(
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
        *HASH_KEY_FILTER,
        *SORT_KEY_FILTER,
        *VALUE_FILTER,
    ),
    examples=("count_data", "count_data -h prefix -x user_"),
    json="the number of rows",
    needs=Needs.TABLE,
)
async def count_data(context: Context, precise: bool, **filters: Any) -> Result:
    """Count rows, with filters those that match."""
    wanted = make_scan_options(**filters)
    table = await context.table()
    number = await table.count(options=wanted, timeout=context.timeout_s)
    return Result(number, number)
