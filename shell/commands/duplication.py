"""Commands about duplication: add, look, pause, start, remove; the clusters to ship to.

A duplication is named by its id or by its remote cluster. `add_dup` never changes one that
is there: it shows the stored entry beside the request and ends with status 4.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.errors import DuplicationExists, DuplicationNotFound
from pegaskv.base.limits import REPLICA_COUNT_MAX
from pegaskv.base.types import DuplicationStatus
from shell.commands.tables import table_data
from shell.context import Context
from shell.duplications import (
    cause_of,
    cluster_data,
    comparison,
    describe,
    duplication_data,
    is_unfinished,
    short_state,
    utc,
    what_helps,
)
from shell.errors import AlreadyDuplicated
from shell.parser import quote
from shell.registry import Argument, Kind, Option, Source, command
from shell.render import Result, Table

if TYPE_CHECKING:
    from pegaskv.client import Duplication

__all__: list[str] = []

_TABLE: Final = Argument("table", "the table's name", Kind.TEXT, completes=Source.TABLES)
_CLUSTER: Final = Argument(
    "remote_cluster", "the other cluster, as `clusters` shows it", Kind.TEXT,
    completes=Source.CLUSTERS,
)  # fmt: skip
_DUPLICATION: Final = Argument(
    "duplication", "its id or its remote cluster", Kind.TEXT, completes=Source.DUPLICATIONS
)
_CLUSTER_NAME: Final = Argument(
    "name", "the name of the cluster here", Kind.TEXT, completes=Source.CLUSTERS
)

_ENTRY: Final = (
    "{dupid, uuid, table, table_id, status, remote_cluster, remote_table, checkpoint, paused, "
    "fail_mode, created_at, failure, last_error, error_class, stalled_since, attempts, "
    "next_attempt_at, gap, lag_ms, bytes_held, …, partitions: a list of {index, status, "
    "start_decree, confirmed_decree, last_committed_decree, gap, …}}; times are Unix seconds, "
    "0 = not so"
)


@command(
    "add_dup",
    help="ship a table to another cluster from now on, with its existing rows",
    arguments=(_TABLE, _CLUSTER),
    options=(
        Option(
            "remote_table",
            "the table there (when not given, the same name)",
            Kind.TEXT,
            short="-a",
            completes=Source.TABLES,
        ),
        Option(
            "remote_replica_count",
            "how many replicas the table there gets (when not given, as many as here)",
            Kind.INTEGER,
            minimum=1,
            maximum=REPLICA_COUNT_MAX,
            short="-r",
        ),
        Option("no_checkpoint", "do not copy existing rows", Kind.SWITCH, default=False),
        Option(
            "merge",
            "write into the table there if it exists already",
            Kind.SWITCH,
            default=False,
        ),
        Option(
            "mesh",
            "every two of three and more clusters are connected",
            Kind.SWITCH,
            default=False,
        ),
        Option("sst", "copy existing rows, which is the default", Kind.SWITCH, short="-s"),
    ),
    details="The table there takes no client writes until `open_table`, or until it is duplicated "
    "back. With\ntwo ways every row ends with its newest version on both sides; incr and check_* "
    "are exact within\none cluster only. Exit status 4 says that the table is duplicated there "
    "already: nothing was changed,\nand the stored entry is shown beside the request.",
    examples=(
        "add_dup users beta",
        "add_dup users beta -a users_copy -r 3",
        "add_dup users beta --no-checkpoint --merge",
    ),
    json=f"the duplication: {_ENTRY}",
)
async def add_duplication(
    context: Context,
    table: str,
    remote_cluster: str,
    remote_table: str | None,
    remote_replica_count: int | None,
    no_checkpoint: bool,
    merge: bool,
    mesh: bool,
    sst: bool | None,
) -> Result:
    """Add a duplication, or show the one that is there."""
    client = await context.client()
    try:
        made = await client.admin.add_duplication(
            table,
            remote_cluster,
            remote_table,
            not no_checkpoint,
            remote_replica_count,
            mesh=mesh,
            merge=merge,
            timeout=context.timeout_s,
        )
    except DuplicationExists as error:
        requested = {
            "remote_cluster": remote_cluster,
            "remote_table": table if remote_table is None else remote_table,
            "checkpoint": not no_checkpoint,
            "remote_replica_count": remote_replica_count,
        }
        raise _already(error, table, requested) from None
    word = _word(table)
    note = f"duplication {made.dupid} of {table} to {remote_cluster}:{made.remote_table} added"
    if no_checkpoint:
        note += "; what is written from now on is shipped, existing rows are not"
    else:
        note += "; existing rows are copied first"
    note += f"\n`watch query_dup {word}` shows how it goes, "
    note += f"`wait_for dup {word} DS_LOG` waits until it ships writes"
    if sst:
        note += "\n-s is not needed: copying existing rows is the default"
    return Result(duplication_data(made), note=note, warnings=made.warnings)


def _already(error: DuplicationExists, table: str, requested: dict[str, Any]) -> AlreadyDuplicated:
    existing: Duplication | None = error.existing
    word = _word(table)
    if existing is None:
        return AlreadyDuplicated(error.message, hint=f"`query_dup {word}` shows it")
    named = (error.details or {}).get("differences")
    names = [each for each in named if isinstance(each, str)] if isinstance(named, list) else []
    lines, different = comparison(existing, requested, names)
    cluster = _word(existing.remote_cluster)
    if existing.failure:
        hint = what_helps(existing)
    elif different:
        hint = f"to have it as requested: `remove_dup {word} {cluster}`, then add it again"
    elif existing.paused or existing.status is DuplicationStatus.DS_PAUSE:
        hint = f"it is there as requested, and paused: `start_dup {word} {cluster}` ends the pause"
    elif not existing.checkpoint and (error.details or {}).get("in_force") is False:
        hint = "not every partition has marked its log for it yet: ask again before you write"
    else:
        hint = f"it is there as requested: `query_dup {word}` shows how far it is"
    return AlreadyDuplicated(
        f"table {table} is duplicated to {existing.remote_cluster} already; nothing was changed",
        hint=hint,
        lines=lines,
        data={
            "existing": duplication_data(existing),
            "requested": requested,
            "differences": different,
        },
    )


def _word(text: str) -> str:
    return quote(text.encode("utf-8", "surrogateescape"), bare=True)


@command(
    "query_dup",
    help="show where the duplications of a table are, what holds them up, and what helps",
    arguments=(
        _TABLE,
        Argument(
            "duplication",
            "only this one: its id or its remote cluster",
            Kind.TEXT,
            required=False,
            default="",
            completes=Source.DUPLICATIONS,
        ),
    ),
    options=(Option("detailed", "every partition too", Kind.SWITCH, default=False, short="-d"),),
    details="`watch query_dup users` shows it again and again.",
    examples=("query_dup users", "query_dup users beta -d"),
    json=f"a list of {_ENTRY}",
)
async def query_duplication(
    context: Context, table: str, duplication: str, detailed: bool
) -> Result:
    """Show the duplications of one table."""
    client = await context.client()
    found = await client.admin.query_duplication(table, timeout=context.timeout_s)
    wanted = found
    if duplication:
        wanted = [each for each in found if each.remote_cluster == duplication]
        wanted = wanted or [each for each in found if str(each.dupid) == duplication]
        if not wanted:
            raise DuplicationNotFound(
                f"table {table} has no duplication by the name or id {duplication}",
                hint=f"`query_dup {_word(table)}` shows those that it has",
            )
    lines: list[str] = []
    for each in wanted:
        lines += [""] if lines else []
        lines += describe(each, detailed=detailed)
    note = "" if wanted else f"table {table} is not duplicated; `add_dup` does it"
    return Result([duplication_data(each) for each in wanted], lines or None, note)


@command(
    "dups",
    help="list the duplications of all tables",
    arguments=(
        Argument(
            "pattern",
            "only tables whose names match",
            Kind.TEXT,
            required=False,
            default="",
            completes=Source.TABLES,
        ),
    ),
    options=(
        Option(
            "app_name_pattern",
            "the same, as Pegasus writes it",
            Kind.TEXT,
            default="",
            short="-a",
            completes=Source.TABLES,
        ),
        Option(
            "match_type",
            "how names match; anywhere, when not given",
            Kind.CHOICE,
            choices=("all", "exact", "anywhere", "prefix", "postfix"),
            short="-m",
        ),
        Option("unfinished", "only those that are behind", Kind.SWITCH, default=False, short="-u"),
        Option(
            "gap",
            "so many decrees behind still count as finished",
            Kind.INTEGER,
            default=0,
            minimum=0,
            short="-g",
        ),
        Option("partitions", "a line for each partition", Kind.SWITCH, default=False, short="-p"),
    ),
    examples=("dups", "dups user -m prefix", "dups -u -g 100", "dups -p -u"),
    json=f"a list of {_ENTRY}; with -u only unfinished partitions of unfinished ones",
)
async def list_duplications(
    context: Context,
    pattern: str,
    app_name_pattern: str,
    match_type: str | None,
    unfinished: bool,
    gap: int,
    partitions: bool,
) -> Result:
    """List duplications, or their partitions, all or only what is behind."""
    wanted = pattern or app_name_pattern
    client = await context.client()
    found = await client.admin.list_duplications(
        wanted,
        match_type or ("anywhere" if wanted else "all"),  # type: ignore[arg-type]
        timeout=context.timeout_s,
    )
    found = sorted(found, key=lambda each: (each.table, each.remote_cluster))
    behind = {id(each) for each in found if _is_behind(each, gap)}
    shown = [each for each in found if id(each) in behind] if unfinished else found
    data = [duplication_data(each) for each in shown]
    if unfinished:
        for entry, each in zip(data, shown, strict=True):
            late = {part.index for part in each.partitions if is_unfinished(part, gap)}
            entry["partitions"] = [part for part in entry["partitions"] if part["index"] in late]
    table = _partitions_table(shown, unfinished, gap) if partitions else _list_table(shown)
    counts = Counter(short_state(each) for each in found)
    note = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    many = "duplication" if len(found) == 1 else "duplications"
    note = f"{len(found)} {many}: {note}; {len(behind)} unfinished" if found else "no duplications"
    return Result(data, table if shown else None, note)


def _is_behind(duplication: "Duplication", gap: int) -> bool:
    it = duplication
    stopped = bool(it.failure) or it.status is not DuplicationStatus.DS_LOG
    return stopped or any(is_unfinished(each, gap) for each in it.partitions)


def _list_table(found: list["Duplication"]) -> Table:
    columns = ("table", "id", "status", "remote_cluster", "remote_table", "gap", "lag_ms")
    rows = [
        (
            each.table,
            each.dupid,
            short_state(each),
            each.remote_cluster,
            each.remote_table,
            each.gap,
            each.lag_ms,
            utc(each.created_at),
            cause_of(each),
        )
        for each in found
    ]
    return Table((*columns, "added", "held_up_by"), rows)


def _partitions_table(found: list["Duplication"], unfinished: bool, gap: int) -> Table:
    columns = ("table", "id", "remote_cluster", "partition", "status", "confirmed", "committed")
    rows = [
        (
            each.table,
            each.dupid,
            each.remote_cluster,
            part.index,
            part.status.value,
            part.confirmed_decree,
            part.last_committed_decree,
            part.gap if part.known else None,
            part.error,
        )
        for each in found
        for part in each.partitions
        if not unfinished or is_unfinished(part, gap)
    ]
    return Table((*columns, "gap", "error"), rows)


@command(
    "pause_dup",
    help="ship nothing until `start_dup`; the log is kept meanwhile",
    arguments=(_TABLE, _DUPLICATION),
    examples=("pause_dup users beta", "pause_dup users 1800000000"),
    json=f"the duplication: {_ENTRY}",
)
async def pause_duplication(context: Context, table: str, duplication: str) -> Result:
    """Pause a duplication."""
    admin = (await context.client()).admin
    made = await admin.pause_duplication(table, duplication, timeout=context.timeout_s)
    note = f"duplication {made.dupid} is paused; the log grows until `start_dup {_word(table)} "
    return _changed(made, f"{note}{_word(duplication)}`")


@command(
    "start_dup",
    help="end a pause, or try again at once what is held up",
    arguments=(_TABLE, _DUPLICATION),
    options=(
        Option(
            "copy",
            "copy all rows anew; a broken duplication needs it",
            Kind.SWITCH,
            default=False,
        ),
    ),
    examples=("start_dup users beta", "start_dup users beta --copy"),
    json=f"the duplication: {_ENTRY}",
)
async def start_duplication(context: Context, table: str, duplication: str, copy: bool) -> Result:
    """Start a duplication."""
    admin = (await context.client()).admin
    made = await admin.start_duplication(table, duplication, copy=copy, timeout=context.timeout_s)
    what = "copies all rows anew" if copy else "goes on"
    watch = f"`watch query_dup {_word(table)}` shows how"
    return _changed(made, f"duplication {made.dupid} {what}; {watch}")


@command(
    "remove_dup",
    help="end a duplication; the table there stays as it is",
    arguments=(_TABLE, _DUPLICATION),
    examples=("remove_dup users beta --yes", "remove_dup users 1800000000 --yes"),
    json=f"the duplication: {_ENTRY}",
    danger="ends the duplication for good: what was not shipped yet never will be",
)
async def remove_duplication(context: Context, table: str, duplication: str) -> Result:
    """Remove a duplication."""
    admin = (await context.client()).admin
    made = await admin.remove_duplication(table, duplication, timeout=context.timeout_s)
    there = f"{made.remote_cluster}:{made.remote_table}"
    return _changed(
        made,
        f"duplication {made.dupid} removed; {there} keeps its rows and takes no client writes "
        f"until `open_table {_word(made.remote_table)}` there",
    )


@command(
    "set_dup_fail_mode",
    help="say what happens to rows that the other cluster finds invalid",
    arguments=(
        _TABLE,
        _DUPLICATION,
        Argument(
            "fail_mode",
            "slow tries again for ever, skip leaves such rows out and counts them",
            Kind.CHOICE,
            choices=("slow", "skip"),
        ),
    ),
    examples=("set_dup_fail_mode users beta skip", "set_dup_fail_mode users 1800000000 slow"),
    json=f"the duplication: {_ENTRY}",
)
async def set_fail_mode(context: Context, table: str, duplication: str, fail_mode: str) -> Result:
    """Set the fail mode of a duplication."""
    admin = (await context.client()).admin
    made = await admin.set_duplication_fail_mode(
        table,
        duplication,
        fail_mode,  # type: ignore[arg-type]
        timeout=context.timeout_s,
    )
    return _changed(made, f"the fail mode of duplication {made.dupid} is {made.fail_mode.value}")


def _changed(made: "Duplication", note: str) -> Result:
    return Result(duplication_data(made), note=note, warnings=made.warnings)


@command(
    "clusters",
    help="list the clusters that tables can be duplicated to",
    examples=("clusters",),
    json="a list of {name, metas, cluster_id, cluster_uuid, user, …}",
)
async def list_clusters(context: Context) -> Result:
    """List the clusters of the configuration and those that were added."""
    admin = (await context.client()).admin
    found = await admin.list_clusters(timeout=context.timeout_s)
    rows = [(each.name, each.metas, each.cluster_id, each.user, each.detail) for each in found]
    show = Table(("name", "metas", "id", "user", "detail"), rows) if rows else None
    note = "" if rows else "no other clusters; `add_cluster` makes one known"
    return Result([cluster_data(each) for each in found], show, note)


@command(
    "add_cluster",
    help="make another cluster known, to duplicate tables to it",
    arguments=(
        Argument("cluster", "its name here", Kind.TEXT),
        Argument("metas", "its meta servers, HOST:PORT[,HOST:PORT…]", Kind.TEXT),
        Argument(
            "cluster_id",
            "its id, as its `cluster_info` shows it",
            Kind.INTEGER,
            minimum=1,
            maximum=127,
        ),
    ),
    options=(
        Option("user", "the user that ships rows there", Kind.TEXT, short="-u"),
        Option("password_file", "a file on this cluster's servers", Kind.TEXT),
    ),
    examples=("add_cluster beta 10.0.0.1:34601,10.0.0.2:34601 2",),
    json="the cluster as in `clusters`",
)
async def add_cluster(
    context: Context,
    cluster: str,
    metas: str,
    cluster_id: int,
    user: str | None,
    password_file: str | None,
) -> Result:
    """Add a cluster at run time."""
    admin = (await context.client()).admin
    made = await admin.add_cluster(
        cluster,
        metas,
        cluster_id,
        user=user,
        password_file=password_file,
        timeout=context.timeout_s,
    )
    note = f"cluster {made.name} is known; `add_dup <table> {_word(made.name)}` ships a table to it"
    return Result(cluster_data(made), note=note)


@command(
    "remove_cluster",
    help="forget a cluster that no table is duplicated to",
    arguments=(_CLUSTER_NAME,),
    examples=("remove_cluster beta",),
    json="the cluster as in `clusters`",
)
async def remove_cluster(context: Context, name: str) -> Result:
    """Remove a cluster that was added at run time."""
    admin = (await context.client()).admin
    gone = await admin.remove_cluster(name, timeout=context.timeout_s)
    return Result(cluster_data(gone), note=f"cluster {gone.name} is forgotten")


@command(
    "open_table",
    help="let clients write to a table that a duplication made",
    arguments=(_TABLE,),
    details="What is written here is not shipped back, unless the table is duplicated back; a row "
    "that both\nclusters write keeps the newest version.",
    examples=("open_table users",),
    json="the table as in `ls`",
)
async def open_table(context: Context, table: str) -> Result:
    """Open a follower."""
    admin = (await context.client()).admin
    opened = await admin.open_table(table, timeout=context.timeout_s)
    note = f"table {opened.name} takes client writes"
    return Result(table_data(opened.table), note=note, warnings=opened.warnings)
