"""Commands about tables: list, create, drop, bring back, rename, and their envs."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.compaction import MANUAL_COMPACT_ONCE
from pegaskv.base.errors import TableNotFound
from pegaskv.base.limits import PARTITION_COUNT_MAX, REPLICA_COUNT_MAX
from pegaskv.base.types import TableInfo, TableStatus
from shell.context import Context
from shell.errors import UsageError
from shell.nodes import (
    PARTITION_COLUMNS,
    health_data,
    health_line,
    known_nodes,
    partition_data,
    partition_row,
    share_lines,
)
from shell.registry import Argument, Kind, Needs, Option, Source, command
from shell.render import Fields, Result, Table

if TYPE_CHECKING:
    from pegaskv.client import Health

__all__ = ["table_data"]

_TABLE: Final = Argument("table", "the table's name", Kind.TEXT, completes=Source.TABLES)
_NEW_TABLE: Final = Argument("table", "the name of the new table", Kind.TEXT)


def table_data(info: TableInfo) -> dict[str, Any]:
    """Return the JSON form of a table; times are Unix seconds, 0 = not so."""
    return {
        "table_id": info.table_id,
        "name": info.name,
        "status": info.status.value,
        "partition_count": info.partition_count,
        "replica_count": info.replica_count,
        "envs": dict(info.envs),
        "created_at": info.created_at,
        "dropped_at": info.dropped_at,
        "expires_at": info.expires_at,
    }


def _time(unix_seconds: int) -> str | None:
    if not unix_seconds:
        return None
    return f"{datetime.fromtimestamp(unix_seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


@command(
    "ls",
    help="list the tables",
    options=(
        Option("all", "dropped tables too", Kind.SWITCH, default=False, short="-a"),
        Option(
            "status",
            "only tables in this state",
            Kind.CHOICE,
            choices=("all", *(status.value for status in TableStatus)),
            default="",
            short="-s",
        ),
        Option("pattern", "only names that hold this text", Kind.TEXT, default="", short="-p"),
        Option(
            "detailed",
            "the envs too, and how many partitions are well",
            Kind.SWITCH,
            default=False,
            short="-d",
        ),
    ),
    examples=("ls", "ls -a", "ls -s dropped", "ls -p user"),
    json="a list of {table_id, name, status, partition_count, replica_count, envs, created_at, "
    "dropped_at, expires_at}; times are Unix seconds, 0 = not so; with -d also "
    "partitions_healthy, partitions_readable and partitions_writable of those that serve",
)
async def list_tables(
    context: Context,
    all: bool,  # noqa: A002 - the option is called so
    status: str,
    pattern: str,
    detailed: bool,
) -> Result:
    """List tables; dropped ones are shown when asked for."""
    with_dropped = all or status in ("all", "dropped")
    client = await context.client()
    tables = await client.admin.list_tables(with_dropped=with_dropped, timeout=context.timeout_s)
    wanted = [
        info
        for info in tables
        if (not status or status in ("all", info.status.value)) and pattern in info.name
    ]
    columns = ["id", "status", "name", "partitions", "replicas", "created"]
    columns += ["dropped", "kept_until"] if with_dropped else []
    health = await _health(context, wanted) if detailed else {}
    columns += ["healthy", "readable", "writable", "envs"] if detailed else []
    rows = []
    for info in wanted:
        row: list[object] = [info.table_id, info.status.value, info.name, info.partition_count]
        row += [info.replica_count, _time(info.created_at)]
        row += [_time(info.dropped_at), _time(info.expires_at)] if with_dropped else []
        if detailed:
            row += [*(health[info.table_id][1:] if info.table_id in health else [None] * 3)]
            row.append(info.envs)
        rows.append(row)
    note = "" if wanted else "no tables"
    if health:
        from pegaskv.client import sum_health

        note = health_line(sum_health(health.values()))
    show = Table(tuple(columns), rows) if wanted else None
    data = []
    for info in wanted:
        known = health.get(info.table_id)
        data.append(table_data(info) | (health_data(known) if known is not None else {}))
    return Result(data, show, note)


async def _health(context: Context, wanted: Sequence[TableInfo]) -> dict[int, "Health"]:
    """Ask how many partitions of each table that serves are well."""
    admin = (await context.client()).admin
    names = await known_nodes(context)
    found = {}
    for info in wanted:
        if info.status is TableStatus.AVAILABLE:
            try:
                details = await admin.table_info(info.name, timeout=context.timeout_s)
            except TableNotFound:
                # It was dropped a moment ago.
                continue
            found[info.table_id] = details.health(names.statuses)
    return found


@command(
    "app",
    help="show one table",
    arguments=(_TABLE,),
    options=(Option("detailed", "every partition too", Kind.SWITCH, default=False, short="-d"),),
    examples=("app users", "app users -d"),
    json="the table as in `ls`, with partitions: a list of {index, ballot, primary, secondaries, "
    "and the replica's state, and all members' under replicas}, partitions_healthy, "
    "partitions_readable and partitions_writable",
)
async def show_table(context: Context, table: str, detailed: bool) -> Result:
    """Show a table's description, with -d its partitions."""
    client = await context.client()
    found = await client.admin.table_info(table, timeout=context.timeout_s)
    names = await known_nodes(context)
    partitions = [partition_data(each) for each in found.partitions]
    health = found.health(names.statuses)
    data = table_data(found.table) | {"partitions": partitions} | health_data(health)
    if detailed:
        rows = [partition_row(found, each, names) for each in found.partitions]
        lines = [health_line(health), *share_lines(found.partitions, names)]
        return Result(data, Table(PARTITION_COLUMNS, rows), "\n".join(lines))
    shown = table_data(found.table) | health_data(health)
    for name in ("created_at", "dropped_at", "expires_at"):
        shown[name] = _time(shown[name])
    shown["partitions_without_primary"] = sum(1 for each in partitions if not each["primary"])
    note = "" if health.healthy == health.partitions else "`app -d` shows every partition"
    return Result(data, Fields(shown), note)


@command(
    "create",
    help="create a table",
    arguments=(_NEW_TABLE,),
    options=(
        Option(
            "partition_count",
            "how many partitions, a power of two",
            Kind.INTEGER,
            default=8,
            minimum=1,
            maximum=PARTITION_COUNT_MAX,
            short="-p",
        ),
        Option(
            "replica_count",
            "how many replicas of each (when not given, the server's default)",
            Kind.INTEGER,
            minimum=1,
            maximum=REPLICA_COUNT_MAX,
            short="-r",
        ),
        Option(
            "envs",
            "envs of the table, k=v,k=v",
            Kind.ENVS,
            short="-e",
            repeated=True,
            completes=Source.ENVS,
        ),
        Option(
            "if_not_exists",
            "fine if it is there already with the same options",
            Kind.SWITCH,
            default=False,
        ),
    ),
    details="Exit status 4 says that a table of that name is there already; with --if-not-exists "
    "that is\nso only when its options differ.",
    examples=(
        "create users",
        "create users -p 16 --if-not-exists",
        "create sessions -e default_ttl=3600,durability=os",
    ),
    json="the table as in `ls`, with created: whether this command made it",
)
async def create_table(
    context: Context,
    table: str,
    partition_count: int,
    replica_count: int | None,
    envs: list[Mapping[str, str]],
    if_not_exists: bool,
) -> Result:
    """Create a table; it serves when this returns."""
    wanted: dict[str, str] = {}
    for each in envs:
        for name in each:
            if name in wanted:
                raise UsageError(f"the env {name} is given twice")
        wanted.update(each)
    wanted = _meant(context, wanted)
    client = await context.client()
    made = await client.admin.create_table(
        table,
        partition_count,
        replica_count,
        wanted,
        if_exists="same" if if_not_exists else "fail",
        timeout=context.timeout_s,
    )
    info = made.table
    what = "created" if made.created else "is there already, with the same options"
    note = f"table {info.name} {what}: id {info.table_id}, {info.partition_count} partitions"
    return Result(table_data(info) | {"created": made.created}, note=note, warnings=made.warnings)


@command(
    "drop",
    help="drop a table; its rows are kept for a while, and `recall` brings it back",
    arguments=(_TABLE,),
    options=(
        Option(
            "reserve_seconds",
            "how long the rows are kept (when not given, the server's default)",
            Kind.INTEGER,
            minimum=0,
            short="-r",
        ),
        Option("if_exists", "fine if there is no such table", Kind.SWITCH, default=False),
        Option(
            "force",
            "also if it takes part in a duplication, which then holds until it is recalled",
            Kind.SWITCH,
            default=False,
        ),
    ),
    examples=("drop users", "drop users -r 3600 --yes", "drop users --if-exists --yes"),
    json="the table as in `ls` (expires_at: until when it can be recalled), null when there "
    "was none",
    danger="takes the table away from its clients, and for good once its reserve time is over",
)
async def drop_table(
    context: Context, table: str, reserve_seconds: int | None, if_exists: bool, force: bool
) -> Result:
    """Drop a table, softly."""
    client = await context.client()
    info = await client.admin.drop_table(
        table,
        reserve_seconds,
        if_not_exists="ok" if if_exists else "fail",
        force=force,
        timeout=context.timeout_s,
    )
    context.forget_table(table)
    if table == context.table_name:
        context.table_name = ""
    if info is None:
        return Result(None, note=f"there was no table {table}")
    note = f"table {table} dropped, and its rows are removed now"
    if info.expires_at > info.dropped_at:
        until = _time(info.expires_at)
        note = f"table {table} dropped; `recall {info.table_id}` brings it back until {until}"
    return Result(table_data(info), note=note)


@command(
    "recall",
    help="bring a dropped table back, with its rows",
    arguments=(
        Argument(
            "table_id",
            "the id of the dropped table, as `ls -a` shows it",
            Kind.INTEGER,
            minimum=1,
            completes=Source.DROPPED_IDS,
        ),
        Argument("new_name", "a new name, when the old one is taken", Kind.TEXT, required=False),
    ),
    examples=("recall 3", "recall 3 users_of_may"),
    json="the table as in `ls`",
)
async def recall_table(context: Context, table_id: int, new_name: str | None) -> Result:
    """Bring a table back within its reserve time."""
    client = await context.client()
    info = await client.admin.recall_table(table_id, new_name, timeout=context.timeout_s)
    return Result(table_data(info), note=f"table {info.name} is back: id {info.table_id}")


@command(
    "rename",
    help="give a table another name",
    arguments=(
        Argument("old_name", "the table's name", Kind.TEXT, completes=Source.TABLES),
        Argument("new_name", "the name that it gets", Kind.TEXT),
    ),
    examples=("rename users customers",),
    json="the table as in `ls`",
)
async def rename_table(context: Context, old_name: str, new_name: str) -> Result:
    """Rename a table; its id, rows and envs stay."""
    client = await context.client()
    info = await client.admin.rename_table(old_name, new_name, timeout=context.timeout_s)
    context.forget_table(old_name)
    context.forget_table(new_name)
    if context.table_name == old_name:
        context.table_name = info.name
    return Result(table_data(info), note=f"table {old_name} is now called {info.name}")


@command(
    "get_app_envs",
    help="show the envs of the table in use",
    examples=("get_app_envs",),
    json="an object of names and values",
    needs=Needs.TABLE,
)
async def get_envs(context: Context) -> Result:
    """Show envs."""
    client = await context.client()
    envs = dict(await client.admin.get_envs(context.table_name, timeout=context.timeout_s))
    return Result(envs, Fields(envs), "" if envs else "no envs")


@command(
    "set_app_envs",
    help="set envs of the table in use",
    repeated=(
        Argument("name", "the env's name", Kind.TEXT, completes=Source.ENVS),
        Argument("value", "its value", Kind.TEXT),
    ),
    repeated_name="pairs",
    repeated_minimum=1,
    examples=(
        "set_app_envs default_ttl 3600",
        "set_app_envs replica.write_throttling 20000*delay*100,30000*reject*200",
        "set_app_envs default_ttl 60 durability os",
        "set_app_envs manual_compact.once.trigger_time now",
    ),
    json="all envs of the table after the change",
    needs=Needs.TABLE,
)
async def set_envs(context: Context, pairs: list[tuple[str, str]]) -> Result:
    """Set some envs and leave the others."""
    envs = dict(pairs)
    if len(envs) < len(pairs):
        raise UsageError("an env is given twice")
    client = await context.client()
    info = await client.admin.set_envs(
        context.table_name, _meant(context, envs), timeout=context.timeout_s
    )
    return Result(dict(info.envs), Fields(info.envs), "OK", info.warnings)


def _meant(context: Context, envs: Mapping[str, str]) -> dict[str, str]:
    """Return what servers are to be told: they know numbers where an operator may say `now`."""
    meant = dict(envs)
    if meant.get(MANUAL_COMPACT_ONCE) == "now":
        meant[MANUAL_COMPACT_ONCE] = str(int(context.wall_s()))
    return meant


@command(
    "del_app_envs",
    help="remove envs of the table in use; their defaults hold again",
    repeated=(Argument("name", "the env's name", Kind.TEXT, completes=Source.TABLE_ENVS),),
    repeated_name="names",
    repeated_minimum=1,
    examples=("del_app_envs default_ttl",),
    json="all envs of the table after the change",
    needs=Needs.TABLE,
)
async def delete_envs(context: Context, names: list[str]) -> Result:
    """Remove the named envs."""
    client = await context.client()
    info = await client.admin.delete_envs(context.table_name, names, timeout=context.timeout_s)
    return Result(dict(info.envs), Fields(info.envs), "OK")


@command(
    "clear_app_envs",
    help="remove all envs of the table in use, or those below a prefix",
    options=(
        Option("all", "all of them", Kind.SWITCH, default=False, short="-a"),
        Option("prefix", "only those named PREFIX.…", Kind.TEXT, short="-p"),
    ),
    examples=("clear_app_envs -a --yes", "clear_app_envs -p replica --yes"),
    json="all envs of the table after the change",
    needs=Needs.TABLE,
    danger="removes envs of the table, whose defaults hold then at once",
)
async def clear_envs(
    context: Context,
    all: bool,  # noqa: A002 - the option is called so
    prefix: str | None,
) -> Result:
    """Remove many envs; says which, so that nothing goes by accident."""
    if all == (prefix is not None):
        raise UsageError("say either -a for all envs or -p <prefix>")
    client = await context.client()
    info = await client.admin.clear_envs(context.table_name, prefix, timeout=context.timeout_s)
    return Result(dict(info.envs), Fields(info.envs), "OK")
