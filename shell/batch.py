"""Scripts: commands from -e, from files and from standard input, one after another.

The first error ends a batch, unless it is told to keep going; either way the exit
status is that of the first command that failed. Errors carry the script and line that
they come from. Standard input is read as it arrives, so a program may keep one shell
at the other end of a pipe and talk to it line by line.
"""

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shell.context import Context
from shell.errors import EXIT_OK, UsageError
from shell.registry import Command
from shell.runner import run_line

__all__ = ["Source", "ask_on_terminal", "expression", "run_batch", "script", "standard_input"]

# The longest line of standard input: a value of 1 MiB with each byte as \xHH, and keys.
LINE_BYTES_MAX: Final = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """Lines with a name; `lines` is None for standard input, which is read as it comes.

    The name, with the number of the line when it is `numbered`, stands before errors.
    """

    name: str
    lines: tuple[str, ...] | None
    numbered: bool = True


def expression(text: str, *, name: str) -> Source:
    """Return the lines of one -e."""
    lines = tuple(text.split("\n"))
    return Source(name, lines, numbered=len(lines) > 1)


def script(path: str) -> Source:
    """Return the lines of a file; `-` is standard input.

    Raises:
        UsageError: the file cannot be read.

    """
    if path == "-":
        return standard_input()
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the script {path}: {error.strerror}") from None
    return Source(path, tuple(_decode(content).removeprefix("\ufeff").split("\n")))


def standard_input() -> Source:
    """Return standard input as a source."""
    return Source("stdin", None)


def _decode(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


async def _located_lines(sources: Sequence[Source]) -> AsyncIterator[tuple[str, str]]:
    """Yield every line with its place, as in `script:12`."""
    for source in sources:
        number = 0
        if source.lines is None:
            async for line in _stdin_lines():
                number += 1
                yield f"{source.name}:{number}", line
            continue
        for line in source.lines:
            number += 1
            yield f"{source.name}:{number}" if source.numbered else source.name, line


async def _stdin_lines() -> AsyncIterator[str]:
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        # A file never blocks for long.
        for line in sys.stdin.buffer:
            yield _decode(line)
        return
    reader = asyncio.StreamReader(limit=LINE_BYTES_MAX)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer
    )
    try:
        while line := await _read_line(reader):
            yield _decode(line)
    finally:
        transport.close()


async def _read_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError:
        raise UsageError(f"a line of stdin is longer than {LINE_BYTES_MAX} bytes") from None


async def run_batch(
    context: Context,
    commands: Mapping[str, Command],
    sources: Sequence[Source],
    *,
    keep_going: bool,
) -> int:
    """Run all lines and return the exit status of the first that failed, or 0.

    Raises:
        UsageError: a line of standard input is too long.

    """
    lines = _located_lines(sources)

    async def more(_prompt: str) -> str | None:
        located = await anext(lines, None)
        return located[1] if located else None

    context.more = more
    first_failure = EXIT_OK
    try:
        async for where, line in lines:
            outcome = await run_line(context, line, commands, where=where)
            first_failure = first_failure or outcome.status
            if outcome.leave or (outcome.status and not keep_going):
                break
    finally:
        await lines.aclose()  # type: ignore[attr-defined]
    return first_failure


async def ask_on_terminal(question: str) -> str | None:
    """Ask on the terminal itself, never on standard input, which may be the script.

    Returns None when there is no terminal or the answer was its end (Ctrl-D).
    """
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return None
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def readable() -> None:
        if not answer.done():
            answer.set_result(os.read(terminal, 1024))

    try:
        os.write(terminal, question.encode())
        loop.add_reader(terminal, readable)
        line = await answer
    finally:
        loop.remove_reader(terminal)
        os.close(terminal)
    return _decode(line) if line else None
