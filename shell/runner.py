"""One line to its answer: parse, ask if it is dangerous, run, show.

The same for a prompt and for a script. Whatever goes wrong becomes an answer and an
exit status here; only an interruption of the whole shell passes through.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from pegaskv.base.errors import PegasKVError
from shell.context import Context
from shell.errors import (
    EXIT_CANNOT_CONNECT,
    EXIT_OK,
    Interrupted,
    NotConfirmed,
    UsageError,
    exit_status,
)
from shell.parser import Invocation, parse, scan
from shell.registry import Command, Needs
from shell.render import (
    Result,
    Stream,
    error_fields,
    error_lines,
    json_failure,
    json_success,
    plain,
    printable,
    text_lines,
)

__all__ = ["Outcome", "run_line"]

# Rows of a stream that are written before the reader is waited for.
DRAIN_ROWS: Final = 256


class Outcome(NamedTuple):
    """The exit status of a line, and whether it asked to leave the shell."""

    status: int = EXIT_OK
    leave: bool = False


async def run_line(
    context: Context, line: str, commands: Mapping[str, Command], *, where: str = ""
) -> Outcome:
    """Run one line and show its answer; `where` (`script:12`) stands before its errors."""
    name = _first_word(line)
    streaming = _Streaming()
    invocation = None
    try:
        invocation = parse(line, commands)
        if invocation is None:
            return Outcome()
        name = invocation.command.name
        if invocation.command.needs is Needs.TABLE:
            context.require_table()
        await _confirm(context, invocation)
        result = await invocation.command.run(context, **invocation.values)
        await _show(context, name, result, streaming)
    except asyncio.CancelledError:
        if invocation is None or not invocation.command.endless or context.json:
            _show_error(context, name, Interrupted("interrupted"), where, streaming)
        raise
    except BrokenPipeError:
        raise
    except (PegasKVError, OSError) as error:
        status = exit_status(error, connected=context.connected)
        if status == EXIT_CANNOT_CONNECT and isinstance(error, PegasKVError):
            error.hint = f"does a server run at {context.cluster}? --cluster HOST:PORT names one"
        _show_error(context, name, error, where, streaming)
        await context.output.drain()
        return Outcome(status)
    return Outcome(EXIT_OK, result.leave)


class _Streaming:
    """Whether the JSON object of a stream has been begun."""

    begun = False


def _first_word(line: str) -> str:
    words = scan(line).words
    return words[0].text if words else ""


async def _confirm(context: Context, invocation: Invocation) -> None:
    found = invocation.command
    if not found.danger or context.yes or invocation.confirmed:
        return
    if found.danger_when and not invocation.values[found.danger_when]:
        return
    if context.ask is None:
        raise UsageError(
            f"{found.name} {found.danger}: it needs a yes, and here is nobody to ask",
            hint=f"say --yes: `{found.name} … --yes`, or `pegaskv-shell --yes` for all of a batch",
        )
    answer = await context.ask(f"{found.name} {found.danger}. Go on? [y/N] ")
    if answer is None or answer.strip().lower() not in ("y", "yes"):
        raise NotConfirmed(f"{found.name} was not confirmed; nothing was done")


async def _show(context: Context, name: str, result: Result, streaming: _Streaming) -> None:
    output = context.output
    if result.stream is not None:
        count = await _show_stream(context, name, result.stream, streaming)
        if not context.json:
            output.note(f"{count} {result.stream.noun}{'' if count == 1 else 's'}")
    elif context.json:
        output.data(json_success(name, result.data, every_byte=context.escape_all) + "\n")
    else:
        for line in text_lines(result, every_byte=context.escape_all):
            output.data(line + "\n")
    if result.note and not context.json:
        for line in result.note.split("\n"):
            output.note(printable(line))
    for warning in result.warnings:
        output.note(f"warning: {printable(warning)}")
    await output.drain()


async def _show_stream(context: Context, name: str, stream: Stream, streaming: _Streaming) -> int:
    """Write rows as they come; return how many. The JSON object says at its end how it went."""
    output, every_byte = context.output, context.escape_all
    count = 0
    if context.json:
        streaming.begun = True
        output.data(f'{{"command": {json.dumps(name)}, "data": [')
    try:
        async for row in stream.rows:
            if context.json:
                text = json.dumps(plain(stream.data(row), every_byte=every_byte))
                output.data(f", {text}" if count else text)
            else:
                output.data(stream.text(row, every_byte) + "\n")
            count += 1
            if count % DRAIN_ROWS == 0:
                await output.drain()
    finally:
        close = getattr(stream.rows, "aclose", None)
        if close is not None:
            await close()
    if context.json:
        output.data('], "ok": true}\n')
    return count


def _show_error(
    context: Context, name: str, error: BaseException, where: str, streaming: _Streaming
) -> None:
    if context.json:
        if streaming.begun:
            fields = json.dumps(error_fields(error))
            context.output.data(f'], "ok": false, "error": {fields}}}\n')
        else:
            context.output.data(json_failure(name, error) + "\n")
    for line in error_lines(error, where=where):
        context.output.note(line)
