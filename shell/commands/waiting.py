"""Commands that look again and again: `wait_for` a condition, `watch` a command.

Both go on while the cluster does not answer for a moment, since that is often what one
wants to see the end of. At a terminal `watch` draws over its last picture; in a script it
writes what is new, and needs an end.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pegaskv.base.errors import PegasKVError, Timeout, Unavailable
from shell.conditions import DuplicationCondition, Seen, TableCondition, parse_condition
from shell.context import Context
from shell.errors import NotReached, ShellError, UsageError
from shell.registry import Argument, Command, Kind, Needs, Option, Source, command
from shell.render import Result, Stream, error_fields, error_lines, plain, printable, text_lines

if TYPE_CHECKING:
    from pegaskv.client import AdminClient
    from shell.parser import Invocation

__all__: list[str] = []

PAUSE_SECONDS_FIRST: Final = 0.05
PAUSE_SECONDS_MAX: Final = 0.5


@command(
    "wait_for",
    help="wait until a duplication or a table is as it should be",
    repeated=(
        Argument(
            "condition",
            "dup <table> [cluster] <phase>, … gap <n>, … shipped; table <table> <state>",
            Kind.TEXT,
            completes=Source.CONDITIONS,
        ),
    ),
    repeated_name="condition",
    repeated_minimum=1,
    options=(
        Option(
            "timeout",
            "how long, in seconds or as 500ms, 5s, 2m",
            Kind.SECONDS,
            default=60_000,
            short="-t",
        ),
    ),
    details="`dup users DS_LOG` waits for a phase (DS_REMOVED: until it is gone), `dup users gap "
    "0` until nothing\nis behind, `dup users shipped` until all that is committed now is on the "
    "target, `table users\navailable` (dropped, absent, open, follower) for a table. With a "
    "cluster behind the table only that\nduplication counts, else all of the table. Exit status 1 "
    "says that it did not come in time, with the\nlast state and what holds it up.",
    examples=(
        "wait_for dup users DS_LOG",
        "wait_for dup users beta gap 0 --timeout 5m",
        "wait_for table users available -t 10",
    ),
    json="{condition, seconds, state}, with state as of the last look",
)
async def wait_for(context: Context, condition: list[str], timeout: int) -> Result:  # noqa: ASYNC109
    """Look until the condition holds; a broken duplication ends it at once."""
    wanted = parse_condition(condition)
    text = " ".join(condition)
    client = await context.client()
    began = context.now()
    ends = began + timeout / 1_000
    pause = PAUSE_SECONDS_FIRST
    last = Seen(False, "no answer yet")
    trouble = ""
    while True:
        left = max(0.001, ends - context.now())
        try:
            last = await _look(client.admin, wanted, min(left, context.timeout_s), left)
            trouble = ""
        except (Timeout, Unavailable) as error:
            trouble = error.message
            if wanted.is_shipped and isinstance(error, Timeout):
                # It says which partitions are behind, and why.
                last, trouble = Seen(False, error.message), ""
        seconds = round(context.now() - began, 3)
        if last.reached and not trouble:
            data = {"condition": text, "seconds": seconds, "state": last.data}
            return Result(data, note=f"{last.state} (after {seconds:.1f} s)")
        if last.never:
            raise NotReached(last.never, hint=last.hint, data={"state": last.data})
        if ends - context.now() <= pause:
            raise _not_reached(text, timeout, last, trouble)
        await context.sleep(pause)
        pause = min(2 * pause, PAUSE_SECONDS_MAX)


async def _look(
    admin: "AdminClient",
    wanted: TableCondition | DuplicationCondition,
    timeout_s: float,
    left_s: float,
) -> Seen:
    """Look once; for all that is committed now, wait as long as there is time."""
    if isinstance(wanted, TableCondition):
        return wanted.judge(await admin.list_tables(with_dropped=True, timeout=timeout_s))
    found = await admin.query_duplication(wanted.table, timeout=timeout_s)
    if not wanted.is_shipped:
        return wanted.judge(found)
    remote = None
    if wanted.name is not None:
        named = [each for each in found if str(each.dupid) == wanted.name]
        names = [each.remote_cluster for each in found]
        remote = wanted.name if wanted.name in names or not named else named[0].remote_cluster
    await admin.wait_duplicated(wanted.table, remote_cluster=remote, timeout=left_s)
    where = f" to {remote}" if remote else ""
    return Seen(True, f"all that was committed in {wanted.table} is shipped{where}")


def _not_reached(text: str, timeout_ms: int, last: Seen, trouble: str) -> NotReached:
    state = last.state
    if trouble:
        state += f"; the last question was not answered: {trouble}"
    return NotReached(
        f"`{text}` did not come within {timeout_ms / 1_000:g} s: {state}",
        lines=last.lines,
        hint="" if last.lines else "give it more time with --timeout",
        data={"state": last.data},
    )


@dataclass(frozen=True, slots=True)
class _Picture:
    """What a command answered at one moment."""

    lines: list[str]
    data: Any
    error: PegasKVError | OSError | None = None


@command(
    "watch",
    help="run a command again and again; Ctrl-C ends it",
    arguments=(
        Argument(
            "command",
            "the command to repeat, with its arguments",
            Kind.COMMAND,
            completes=Source.COMMANDS,
        ),
    ),
    options=(
        Option(
            "seconds",
            "the pause between two runs, in seconds or as 500ms, 5s, 2m",
            Kind.SECONDS,
            default=1_000,
            short="-n",
        ),
        Option("count", "end after so many runs", Kind.INTEGER, minimum=1),
        Option("until", "end when the answer holds this text", Kind.TEXT),
    ),
    details="At a terminal the answer is drawn over the last one. In a script it is written when "
    "it has changed,\nand --count or --until must say when to end. Options of watch stand before "
    "the command, or behind it\nwhen the command has none of that name.",
    examples=(
        "watch query_dup users",
        "watch -n 5 dups -u",
        "watch query_dup users --until DS_LOG",
    ),
    json="a list of what the command answers, one for each change; {error} where it failed",
    endless=True,
    needs=Needs.NOTHING,
)
async def watch(
    context: Context, command: "Invocation", seconds: int, count: int | None, until: str | None
) -> Result:
    """Repeat a command."""
    inner = command.command
    _check(context, inner)
    if context.screen is not None and not context.json:
        return await _watch_screen(context, command, seconds, count, until)
    if count is None and until is None:
        raise UsageError(
            "watch needs an end where nobody sits at a terminal",
            hint="--count <n> or --until <text>; `wait_for` waits for a state",
        )
    return Result(
        stream=Stream(
            _changes(context, command, seconds, count, until),
            lambda picture, _: _text(picture.lines),
            _picture_data,
            "change",
        )
    )


def _check(context: Context, inner: Command) -> None:
    if inner.danger or inner.endless or inner.needs is Needs.NOTHING:
        raise UsageError(
            f"watch does not repeat {inner.name}", hint="it is for commands that look at a cluster"
        )
    if inner.needs is Needs.TABLE:
        context.require_table()


def _text(lines: list[str]) -> str:
    # A line between two pictures, unless each is a line itself.
    return "\n".join([*lines, ""] if len(lines) > 1 else lines)


def _picture_data(picture: _Picture) -> Any:
    return {"error": error_fields(picture.error)} if picture.error else picture.data


async def _picture(context: Context, invocation: "Invocation") -> _Picture:
    """Run the command once. What the cluster cannot answer now is an answer too."""
    # A command that asks for more input would eat the script that it is in.
    more, context.more = context.more, None
    try:
        result = await invocation.command.run(context, **invocation.values)
    except ShellError:
        raise
    except (PegasKVError, OSError) as error:
        if not context.connected:
            raise
        return _Picture(error_lines(error), None, error)
    finally:
        context.more = more
    if result.stream is not None:
        raise UsageError(
            f"watch does not repeat {invocation.command.name}",
            hint="its rows need not fit a screen; `count_data` can be watched",
        )
    lines = text_lines(result, every_byte=context.escape_all)
    lines += [printable(line) for line in result.note.split("\n")] if result.note else []
    lines += [f"warning: {printable(text)}" for text in result.warnings]
    return _Picture(lines, plain(result.data, every_byte=context.escape_all))


async def _pictures(
    context: Context, invocation: "Invocation", pause_ms: int, count: int | None, until: str | None
) -> AsyncGenerator[_Picture, None]:
    """Yield one picture after another until the end that was asked for."""
    number = 0
    while True:
        picture = await _picture(context, invocation)
        number += 1
        yield picture
        text = "\n".join(picture.lines)
        if until is not None and picture.error is None and until in text:
            return
        if count is not None and number >= count:
            if picture.error is not None:
                raise picture.error
            if until is not None:
                raise NotReached(f"the answer did not hold {until!r} within {count} runs")
            return
        await context.sleep(pause_ms / 1_000)


async def _changes(
    context: Context, invocation: "Invocation", pause_ms: int, count: int | None, until: str | None
) -> AsyncGenerator[_Picture, None]:
    before: Any = _changes
    async with aclosing(_pictures(context, invocation, pause_ms, count, until)) as pictures:
        async for picture in pictures:
            # Lines tell how long ago something was; that time passes is no change.
            news = _picture_data(picture)
            if news != before:
                before = news
                yield picture
                await context.output.drain()


async def _watch_screen(
    context: Context,
    invocation: "Invocation",
    pause_ms: int,
    count: int | None,
    until: str | None,
) -> Result:
    screen = context.screen
    assert screen is not None
    head = f"every {pause_ms / 1_000:g} s: {invocation.command.name}; Ctrl-C ends it"
    picture = None
    opened = False
    try:
        async with aclosing(_pictures(context, invocation, pause_ms, count, until)) as pictures:
            async for picture in pictures:
                if not opened:
                    # Not before the first answer: a mistake needs no other screen.
                    opened = True
                    screen.open()
                screen.draw([head, "", *picture.lines])
    finally:
        if opened:
            screen.close()
        if picture is not None:
            # What was seen last stays when the terminal is given back.
            for line in picture.lines:
                context.output.data(line + "\n")
    return Result()
