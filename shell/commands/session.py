"""Commands about the session itself: help, the table in use, limits, leaving."""

from pegaskv.base.hashing import partition_hash, partition_index
from pegaskv.base.version import PROTOCOL_VERSION, VERSION
from shell.context import Context
from shell.parser import find_command
from shell.registry import Argument, Command, Kind, Needs, Source, command, load_commands
from shell.render import Fields, Result

__all__ = ["GROUPS", "help_lines"]

# The groups of commands in the order that `help` and the docs show them.
GROUPS = {
    "session": "the session",
    "cluster": "the cluster",
    "tables": "tables",
    "replicas": "replicas",
    "duplication": "duplication to other clusters",
    "waiting": "waiting and watching",
    "data": "one row of the table in use",
    "multi": "rows of one hash key",
    "scans": "many rows",
    "checks": "checked writes",
}


@command(
    "help",
    help="list the commands, or explain one",
    arguments=(
        Argument(
            "command",
            "the command to explain",
            Kind.TEXT,
            required=False,
            default="",
            completes=Source.COMMANDS,
        ),
    ),
    examples=("help", "help set"),
    json="a list of commands, each with name, group, usage, help, details, examples and json",
    needs=Needs.NOTHING,
    aliases=("?",),
)
async def show_help(context: Context, command: str) -> Result:
    """Show all commands by group, or all about one."""
    commands = load_commands()
    if command:
        found = find_command(command, commands)
        return Result([_as_data(found)], "\n".join(help_lines(found)))
    unique = list(dict.fromkeys(commands.values()))
    width = max(len(each.name) for each in unique)
    lines: list[str] = []
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        lines += [f"  {e.name:{width}}  {e.help}" for e in unique if e.group == group]
    lines += ["", "`help <command>` explains one. Keys and values: word, 'literal', \"a\\x00b\"."]
    return Result([_as_data(each) for each in unique], "\n".join(lines))


def _as_data(found: Command) -> dict[str, object]:
    return {
        "name": found.name,
        "group": found.group,
        "usage": found.usage,
        "help": found.help,
        "details": found.details,
        "examples": list(found.examples),
        "json": found.json,
        "dangerous": bool(found.danger),
    }


def help_lines(found: Command) -> list[str]:
    """Return all that the registry knows about one command, as lines of text."""
    lines = [f"{found.name}: {found.help}", "", f"  {found.usage}"]
    if found.details:
        lines += ["", found.details]
    rows = [
        (each.usage.strip("[]"), each.help)
        for each in (*found.arguments, *found.repeated, *found.all_options)
    ]
    if rows:
        width = max(len(name) for name, _ in rows)
        lines.append("")
    for each in (*found.arguments, *found.repeated, *found.all_options):
        flags = ", ".join(getattr(each, "flags", ()))
        name = flags or each.usage.strip("[]")
        extra = f" ({', '.join(each.choices)})" if each.choices else ""
        lines.append(f"  {name:{width}}  {each.help}{extra}")
    lines += ["", "examples:", *(f"  {line}" for line in found.examples)]
    lines += ["", f"JSON data: {found.json}"]
    return lines


@command(
    "use",
    help="choose the table that the data commands work on, or show it",
    arguments=(
        Argument(
            "table",
            "the table's name",
            Kind.TEXT,
            required=False,
            default="",
            completes=Source.TABLES,
        ),
    ),
    examples=("use users", "use"),
    json="{table}, null when none is in use",
)
async def use_table(context: Context, table: str) -> Result:
    """Check that the table is there, and make it the one in use."""
    if not table:
        name = context.table_name
        return Result({"table": name or None}, name or None, "" if name else "no table is in use")
    context.forget_table(table)
    context.table_name, before = table, context.table_name
    try:
        await context.table()
    except BaseException:
        context.table_name = before
        raise
    return Result({"table": table}, note=f"table {table} is in use")


@command(
    "timeout",
    help="set how long one operation may take, or show it",
    arguments=(
        Argument(
            "limit",
            "milliseconds, or with a unit: 500ms, 5s, 2m",
            Kind.DURATION,
            required=False,
        ),
    ),
    examples=("timeout", "timeout 10000", "timeout 10s"),
    json="{timeout_ms}",
    needs=Needs.NOTHING,
)
async def set_timeout(context: Context, limit: int | None) -> Result:
    """Set the time limit of the session's operations."""
    if limit is None:
        return Result({"timeout_ms": context.timeout_ms}, f"{context.timeout_ms} ms")
    context.timeout_ms = limit
    return Result({"timeout_ms": limit}, note=f"an operation may take {limit} ms")


@command(
    "escape_all",
    help="show every byte of keys and values as \\xHH, or only those that cannot be printed",
    arguments=(Argument("on", "true or false", Kind.BOOLEAN, required=False),),
    examples=("escape_all true", "escape_all"),
    json="{escape_all}",
    needs=Needs.NOTHING,
)
async def set_escape_all(context: Context, on: bool | None) -> Result:
    """Switch the escaping of all bytes on or off."""
    if on is None:
        return Result({"escape_all": context.escape_all}, context.escape_all)
    context.escape_all = on
    return Result({"escape_all": on}, note=f"escape_all is {'true' if on else 'false'}")


@command(
    "hash",
    help="show the hash of a row's key, and its partition in the table in use",
    arguments=(Argument("hash_key", "the hash key"), Argument("sort_key", "the sort key")),
    examples=('hash user_1 ""', "hash user_1 name"),
    json="{hash}; with a table in use also {table_id, partition_index, partition_count}",
    needs=Needs.NOTHING,
)
async def show_hash(context: Context, hash_key: bytes, sort_key: bytes) -> Result:
    """Compute the hash, and the partition when a table is in use."""
    data: dict[str, object] = {"hash": partition_hash(hash_key, sort_key)}
    if context.table_name:
        client = await context.client()
        info = (await client.admin.table_info(context.table_name, timeout=context.timeout_s)).table
        data["table_id"] = info.table_id
        data["partition_index"] = partition_index(hash_key, sort_key, info.partition_count)
        data["partition_count"] = info.partition_count
    return Result(data, Fields(data))


@command(
    "version",
    help="show the version of this shell and of its protocol",
    examples=("version",),
    json="{version, protocol_version}",
    needs=Needs.NOTHING,
)
async def show_version(context: Context) -> Result:
    """Show what this software is; `server_info` shows the server's."""
    data = {"version": VERSION, "protocol_version": PROTOCOL_VERSION}
    return Result(data, f"pegaskv {VERSION}")


@command(
    "exit",
    help="leave the shell; the rest of a script is not run",
    examples=("exit",),
    json="null",
    needs=Needs.NOTHING,
    aliases=("quit",),
)
async def leave(context: Context) -> Result:
    """End the session."""
    return Result(leave=True)
