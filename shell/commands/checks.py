"""Commands that write only if a row is as expected, atomically."""

from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.types import CheckType
from shell.commands.arguments import (
    HASH_KEY,
    SORT_KEY,
    TTL,
    TTL_OPTION,
    VALUE,
)
from shell.context import Context
from shell.errors import UsageError
from shell.parser import parse, quote
from shell.registry import Command, Kind, Needs, Option, command
from shell.render import Result

if TYPE_CHECKING:
    from pegaskv.client import CheckResult, Delete, Put

__all__ = ["MUTATION_COMMANDS"]


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
    arguments=(HASH_KEY,),
    options=(
        *_CHECK_OPTIONS,
        Option(
            "set_sort_key", "the sort key to write; the checked one, when not given", short="-s"
        ),
        Option("value", "the value to write", required=True, short="-v"),
        TTL_OPTION,
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
            arguments=(SORT_KEY, VALUE, TTL),
        ),
        Command(
            "del",
            "mutations",
            "delete one row",
            _run_only_inside,
            "",
            ("del name",),
            arguments=(SORT_KEY,),
        ),
        Command("ok", "mutations", "send them", _run_only_inside, "", ("ok",)),
        Command("abort", "mutations", "send nothing", _run_only_inside, "", ("abort",)),
    )
}


@command(
    "check_and_mutate",
    help="write and delete several rows if a row of the same hash key is as expected, atomically",
    arguments=(HASH_KEY,),
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
