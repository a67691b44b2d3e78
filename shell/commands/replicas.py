"""Commands about replicas: how many, where, and what to do when nobody can serve.

What may lose acknowledged writes says so, asks first, and is refused by the meta server
unless it is told that the loss is accepted.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.errors import InvalidArgument, RequestError, TableNotFound
from pegaskv.base.limits import REPLICA_COUNT_MAX
from pegaskv.base.types import TableStatus
from shell.commands.tables import table_data
from shell.context import Context
from shell.duplications import utc
from shell.errors import UsageError
from shell.nodes import NodeNames, known_nodes
from shell.registry import Argument, Kind, Option, Source, command
from shell.render import Result, Table

if TYPE_CHECKING:
    from pegaskv.client import DeadPartition

__all__: list[str] = []

_TABLE: Final = Argument("table", "the table's name", Kind.TEXT, completes=Source.TABLES)
_LEVELS: Final = ("stopped", "blind", "freezed", "steady", "lively")
_GPID: Final = Option(
    "gpid",
    "the partition: <table id>.<index>",
    Kind.TEXT,
    required=True,
    short="-g",
    completes=Source.PARTITIONS,
)
# What waits until whoever led has surely stopped takes longer than other requests.
_FORCED_SECONDS_MIN: Final = 60.0
# Of how many partitions the advice is shown; it is mostly the same for all.
_ADVICE_MAX: Final = 5


def _node(name: str, text: str, short: str) -> Option:
    return Option(
        name,
        f"{text}: its address, or its id",
        Kind.TEXT,
        required=True,
        short=short,
        completes=Source.NODES,
    )


@command(
    "get_meta_level",
    help="show how much the meta server does",
    examples=("get_meta_level",),
    json="{level, meaning}",
)
async def get_meta_level(context: Context) -> Result:
    """Show the level."""
    found = await (await context.client()).admin.get_meta_level(timeout=context.timeout_s)
    data = {"level": found.level, "meaning": found.meaning}
    return Result(data, found.level, found.meaning)


@command(
    "set_meta_level",
    help="say how much the meta server does: from nothing to moving replicas for balance",
    arguments=(Argument("level", "how much", Kind.CHOICE, choices=_LEVELS),),
    details="stopped, blind: no configuration is changed, so a primary that dies has no heir\n"
    "freezed: members that are gone are taken out, and a secondary may lead\n"
    "steady: replicas are repaired too, and tables may be changed\n"
    "lively: replicas are moved for balance too, and what nobody needs is thrown away",
    examples=("set_meta_level steady", "set_meta_level lively"),
    json="{before, level}",
)
async def set_meta_level(context: Context, level: Any) -> Result:
    """Set the level."""
    admin = (await context.client()).admin
    changed = await admin.set_meta_level(level, timeout=context.timeout_s)
    data = {"before": changed.before, "level": changed.now}
    if changed.before == changed.now:
        return Result(data, note=f"the level is {changed.now} already")
    warnings: tuple[str, ...] = ()
    if changed.now in ("stopped", "blind"):
        warnings = (
            f"at level {changed.now} a primary that dies has no heir: say `set_meta_level steady` "
            "or `lively` as soon as you can",
        )
    note = f"the level was {changed.before} and is {changed.now} now"
    return Result(data, note=note, warnings=warnings)


@command(
    "get_replica_count",
    help="show how many replicas each partition of a table is to have",
    arguments=(_TABLE,),
    examples=("get_replica_count users",),
    json="{table, replica_count}",
)
async def get_replica_count(context: Context, table: str) -> Result:
    """Show the replica count."""
    admin = (await context.client()).admin
    count = await admin.get_replica_count(table, timeout=context.timeout_s)
    return Result({"table": table, "replica_count": count}, count)


@command(
    "set_replica_count",
    help="change how many replicas each partition of a table is to have",
    arguments=(
        _TABLE,
        Argument("replica_count", "how many", Kind.INTEGER, minimum=1, maximum=REPLICA_COUNT_MAX),
    ),
    details="It is stored at once; replicas are then made or given up one after another, which "
    "`app -d` shows.",
    examples=("set_replica_count users 3",),
    json="the table as in `ls`",
)
async def set_replica_count(context: Context, table: str, replica_count: int) -> Result:
    """Change the replica count."""
    admin = (await context.client()).admin
    made = await admin.set_replica_count(table, replica_count, timeout=context.timeout_s)
    note = (
        f"table {made.name} is to have {made.replica_count} replicas of each partition; "
        f"`app {made.name} -d` shows how far that is"
    )
    return Result(table_data(made.table), note=note, warnings=made.warnings)


@command(
    "balance",
    help="move one replica, or the lead of one partition, to another node",
    options=(
        _GPID,
        Option(
            "type",
            "what moves: the lead to a secondary (move_pri), the primary with a new copy "
            "(copy_pri), or a secondary with a new copy (copy_sec)",
            Kind.CHOICE,
            choices=("move_pri", "copy_pri", "copy_sec"),
            required=True,
            short="-p",
        ),
        _node("from_node", "the node that has it", "-f"),
        _node("to_node", "the node that gets it", "-t"),
    ),
    details="No call fails by it: a primary hands over when the other has all. At level lively "
    "the meta server\nbalances by itself, and may undo what leaves the nodes uneven.",
    examples=("balance -g 1.0 -p move_pri -f 127.0.0.1:34801 -t 127.0.0.1:34802",),
    json="{gpid, type, from, to, message}",
)
async def balance(
    context: Context,
    gpid: str,
    type: Any,  # noqa: A002 - the option is called so
    from_node: str,
    to_node: str,
) -> Result:
    """Move a replica by hand."""
    admin = (await context.client()).admin
    names = await known_nodes(context)
    with _Readable(names):
        text = await admin.balance(gpid, type, from_node, to_node, timeout=context.timeout_s)
    data = {"gpid": gpid, "type": type, "from": from_node, "to": to_node, "message": text}
    return Result(data, note=names.rewrite(text))


@command(
    "propose",
    help="change the configuration of one partition by hand",
    options=(
        _GPID,
        Option(
            "type",
            "the change: let the node lead (assign_primary), let it learn (add_secondary), take "
            "it out (remove), or let another one lead instead of it (downgrade)",
            Kind.CHOICE,
            choices=("assign_primary", "add_secondary", "remove", "downgrade"),
            required=True,
            short="-p",
        ),
        _node("node", "the node that it is about", "-n"),
        Option(
            "target",
            "accepted and not needed: the meta server knows who leads",
            Kind.TEXT,
            short="-t",
            completes=Source.NODES,
        ),
        Option(
            "accept_loss",
            "let the node lead although it may lack acknowledged writes, which are lost then",
            Kind.SWITCH,
            default=False,
            short="-f",
        ),
    ),
    details="With --accept-loss it takes some seconds: whoever led before must have stopped for "
    "sure.\n`ddd_diagnose` lists the partitions that need it, with what their replicas have.",
    examples=(
        "propose -g 1.0 -p downgrade -n 127.0.0.1:34801",
        "propose -g 1.0 -p assign_primary -n 127.0.0.1:34802 --accept-loss --yes",
    ),
    json="{gpid, type, node, message}",
    danger="with --accept-loss gives up acknowledged writes that the node does not have",
    danger_when="accept_loss",
)
async def propose(
    context: Context,
    gpid: str,
    type: Any,  # noqa: A002 - the option is called so
    node: str,
    target: str | None,
    accept_loss: bool,
) -> Result:
    """Change a configuration."""
    names = await known_nodes(context)
    text = await _propose(context, names, gpid, type, node, accept_loss=accept_loss)
    data = {"gpid": gpid, "type": type, "node": node, "message": text}
    warnings = ("-t is not needed: the meta server knows who leads",) if target else ()
    return Result(data, note=names.rewrite(text), warnings=warnings)


async def _propose(
    context: Context, names: NodeNames, gpid: str, kind: Any, node: str, *, accept_loss: bool
) -> str:
    admin = (await context.client()).admin
    limit = max(context.timeout_s, _FORCED_SECONDS_MIN) if accept_loss else context.timeout_s
    with _Readable(names):
        text: str = await admin.propose(gpid, kind, node, accept_loss=accept_loss, timeout=limit)
    return text


class _Readable:
    """Puts addresses in the place of ids in what the meta server refuses with."""

    def __init__(self, names: NodeNames) -> None:
        self._names = names

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, RequestError):
            error.message = self._names.rewrite(error.message)
            error.hint = self._names.rewrite(error.hint)


@command(
    "ddd_diagnose",
    help="list the partitions that nobody can serve, why, and what can be done",
    options=(
        Option(
            "gpid",
            "only this partition, or only those of this table",
            Kind.TEXT,
            short="-g",
            completes=Source.PARTITIONS_AND_TABLES,
        ),
        Option(
            "detailed",
            "also what each replica has",
            Kind.SWITCH,
            default=False,
            short="-d",
        ),
        Option(
            "auto",
            "let the node lead that is recommended for each, after a question",
            Kind.SWITCH,
            default=False,
            short="-a",
        ),
        Option("skip_prompt", "with -a: without a question", Kind.SWITCH, short="-s"),
    ),
    details="A partition is here when the members of its last configuration are gone, or may lack "
    "what they\nacknowledged. It comes back by itself with its last member. Whoever cannot wait "
    "lets another\nnode lead; what only the missing ones have is lost then. Exit status 1 says "
    "that something failed,\nnot that partitions are listed.",
    examples=("ddd_diagnose", "ddd_diagnose -g users -d", "ddd_diagnose -a -s"),
    json="a list of {gpid, table, reason, since, ballot, members, dropped, advice}; members and "
    "dropped are lists of {node, address, status, has_replica, ballot, last_decree, closed, "
    "amnesiac}; with -a also done: what was begun, or null",
)
async def diagnose(
    context: Context,
    gpid: str | None,
    detailed: bool,
    auto: bool,
    skip_prompt: bool | None,
) -> Result:
    """List dead partitions, and with -a bring them back."""
    if auto and not skip_prompt and not context.yes and context.ask is None:
        raise UsageError(
            "ddd_diagnose -a asks about each partition, and here is nobody to ask",
            hint="-s goes by every recommendation without a question",
        )
    client = await context.client()
    tables = await client.admin.list_tables(with_dropped=True, timeout=context.timeout_s)
    serving = {info.table_id: info for info in tables if info.status is not TableStatus.DROPPED}
    table, one = _place(gpid, {info.name: key for key, info in serving.items()})
    if one is not None:
        table_id = one.partition(".")[0]
        table = next((info.name for key, info in serving.items() if str(key) == table_id), None)
        if table is None:
            raise TableNotFound(f"no table has the id {table_id}", hint="`ls` lists the tables")
    names = await known_nodes(context)
    dead = await client.admin.diagnose(table, timeout=context.timeout_s)
    dead = [each for each in dead if one is None or str(each.gpid) == one]
    rows = []
    data: list[dict[str, Any]] = []
    lines: list[str] = []
    for each in dead:
        info = serving.get(each.gpid.table_id)
        known = {"gpid": str(each.gpid), "table": info.name if info else None, **each.detail}
        data.append(known)
        rows.append(_row(known, names))
        lines += _detail_lines(known, names) if detailed else []
    if not dead:
        where = "" if gpid is None else f" of {gpid}"
        return Result(data, note=f"no partition{where} is without a server")
    if auto:
        for each, known in zip(dead, data, strict=True):
            known["done"] = await _bring_back(
                context, names, each, skip=bool(skip_prompt or context.yes)
            )
    show = Table(("gpid", "table", "since", "reason", "recommended"), rows)
    advice = [names.rewrite(str(known["advice"])) for known in data if known.get("advice")]
    lines += dict.fromkeys(advice[:_ADVICE_MAX])
    if len(advice) > _ADVICE_MAX:
        lines.append(f"and {len(advice) - _ADVICE_MAX} more: `ddd_diagnose -g <gpid>` for each")
    return Result(data, show, "\n".join(lines))


def _place(gpid: str | None, tables: dict[str, int]) -> tuple[str | None, str | None]:
    """Return what is looked at: a table's name and a partition, each None for all."""
    if gpid is None or gpid in tables:
        return gpid, None
    from pegaskv.client import as_gpid

    try:
        return None, str(as_gpid(gpid))
    except InvalidArgument:
        raise TableNotFound(
            f"{gpid} is neither a table nor a partition", hint="`ls` lists the tables"
        ) from None


def _members(detail: Mapping[str, Any], name: str = "members") -> list[dict[str, Any]]:
    found = detail.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _recommended(detail: Mapping[str, Any]) -> str | None:
    """Return the node that may lead although it lacks something: of those there, what has most.

    None: nobody has anything, or somebody has all and takes over by itself.
    """
    there = [
        each
        for each in _members(detail)
        if each.get("status") == "alive" and each.get("has_replica")
    ]
    if any(not (each.get("closed") or each.get("amnesiac")) for each in there):
        return None
    best = max(
        there, key=lambda each: (each.get("ballot", 0), each.get("last_decree", 0)), default=None
    )
    return None if best is None else str(best.get("node"))


def _row(known: dict[str, Any], names: NodeNames) -> list[Any]:
    since = known.get("since")
    return [
        known["gpid"],
        known["table"],
        utc(since) if isinstance(since, int | float) else since,
        names.rewrite(str(known.get("reason", ""))),
        names.marked(_recommended(known)),
    ]


def _detail_lines(known: dict[str, Any], names: NodeNames) -> list[str]:
    """Return what each replica of a partition has, a line each."""
    lines = []
    for kind in ("members", "dropped"):
        for each in _members(known, kind):
            node = names.name(str(each.get("node", "")))
            facts = [
                str(each.get("status", "")),
                *(["a former member"] if kind == "dropped" else []),
            ]
            if not each.get("has_replica"):
                facts.append("no replica")
            facts += [
                f"{name.replace('_', ' ')} {each[name]}"
                for name in ("ballot", "last_decree", "closed")
                if each.get(name)
            ]
            facts += ["may lack what it acknowledged"] if each.get("amnesiac") else []
            lines.append(f"{known['gpid']} at {node}: {', '.join(facts)}")
    return lines


async def _bring_back(
    context: Context, names: NodeNames, dead: "DeadPartition", *, skip: bool
) -> str | None:
    """Let the recommended node lead, if there is one and nobody objects; return what was done."""
    node = _recommended(dead.detail)
    gpid = str(dead.gpid)
    if node is None:
        context.output.note(f"{gpid}: no node can be recommended: {dead.detail.get('advice', '')}")
        return None
    if not skip:
        assert context.ask is not None
        question = (
            f"let {names.marked(node)} lead partition {gpid}? What it lacks is lost "
            "[y: yes / N: not this one] "
        )
        answer = await context.ask(question)
        if answer is None or answer.strip().lower() not in ("y", "yes"):
            return None
    text = await _propose(context, names, gpid, "assign_primary", node, accept_loss=True)
    context.output.note(names.rewrite(text))
    return text
