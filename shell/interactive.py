"""The prompt: completion, history, suggestions, a toolbar, pages and time taken.

Ctrl-C clears the line or ends the running command, Ctrl-D leaves. A line that ends in
an open quote goes on in the next. Lines are kept in a file of the user's own state
directory; one that begins with a blank is not kept.
"""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.output import ColorDepth, Output, create_output
from prompt_toolkit.styles import Style

from pegaskv.base.version import VERSION
from shell.completer import LiveNames, ShellCompleter
from shell.config import history_path
from shell.context import Context
from shell.hints import hint
from shell.nodes import health_line
from shell.parser import UnfinishedQuote, scan
from shell.registry import Command
from shell.render import printable
from shell.runner import Outcome, run_line

__all__ = ["Interactive", "PagedOutput", "PrivateHistory", "choose_pager", "run_interactive"]

HEALTH_SECONDS: Final = 5.0

_STYLE: Final = Style.from_dict(
    {
        "command": "bold",
        "unknown": "ansired",
        "bottom-toolbar": "noreverse",
        "trouble": "ansired",
        "hint": "italic",
    }
)


async def run_interactive(context: Context, commands: Mapping[str, Command]) -> int:
    """Run the prompt on this terminal until the user leaves; return the exit status."""
    output = PagedOutput(
        sys.stdout,
        sys.stderr,
        height=lambda: shutil.get_terminal_size().lines,
        pager=choose_pager(os.environ) if sys.stdout.isatty() else None,
    )
    context.output = output
    history, trouble = open_history(history_path(os.environ))
    shell = Interactive(
        context,
        commands,
        paged=output,
        history=history,
        colour=not os.environ.get("NO_COLOR"),
        # With stdout sent elsewhere the prompt goes to the terminal all the same.
        terminal_output=create_output(always_prefer_tty=True),
    )
    output.note(f"pegaskv {VERSION}, cluster {printable(context.cluster)}")
    output.note("`help` lists the commands, Tab completes, `exit` or Ctrl-D leaves")
    if trouble:
        output.note(trouble)
    await output.finish()
    try:
        return await shell.run()
    finally:
        await context.close()


class PrivateHistory(FileHistory):
    """A history file that only its owner may read; a full disk costs a line, not the session."""

    def store_string(self, string: str) -> None:
        """Keep one line."""
        if string.startswith(" "):
            return
        with contextlib.suppress(OSError):
            super().store_string(string)


def open_history(path: Path) -> tuple[History, str]:
    """Return the history at `path`, or one in memory and the reason."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600))
    except OSError as error:
        return InMemoryHistory(), f"no history is kept: {path}: {error.strerror}"
    return PrivateHistory(str(path)), ""


def choose_pager(environment: Mapping[str, str]) -> Sequence[str] | None:
    """Return the command that shows long output in pages, or None when there is none."""
    given = environment.get("PAGER")
    if given is not None:
        try:
            words = shlex.split(given)
        except ValueError:
            return None
        return words if words and words != ["cat"] and shutil.which(words[0]) else None
    return ["less", "-FSX"] if shutil.which("less") else None


class PagedOutput:
    """Holds a command's output until it ends, or hands it to a pager when it gets too long."""

    def __init__(
        self,
        stdout: Any,
        stderr: Any,
        *,
        height: Callable[[], int],
        pager: Sequence[str] | None,
    ) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._height = height
        self._pager = pager
        self._held: list[str] = []
        self._lines = 0
        self._notes: list[str] = []
        self._process: asyncio.subprocess.Process | None = None

    def data(self, text: str) -> None:
        """Take a part of the data."""
        self._held.append(text)
        self._lines += text.count("\n")

    def note(self, line: str) -> None:
        """Take a line that is shown behind the data."""
        self._notes.append(line)

    async def drain(self) -> None:
        """Write what is held, unless it may still fit the screen.

        Raises:
            BrokenPipeError: the user has left the pager.

        """
        if self._pager is None:
            self._write_held()
            return
        if self._process is None:
            if self._lines < self._height() - 1:
                return
            self._process = await asyncio.create_subprocess_exec(
                *self._pager, stdin=asyncio.subprocess.PIPE
            )
        pipe = self._process.stdin
        assert pipe is not None
        text = "".join(self._held)
        self._held.clear()
        try:
            pipe.write(text.encode("utf-8", "surrogateescape"))
            await pipe.drain()
        except ConnectionResetError:
            raise BrokenPipeError from None

    def _write_held(self) -> None:
        self._stdout.write("".join(self._held))
        self._stdout.flush()
        self._held.clear()

    async def finish(self) -> None:
        """End the output of one command: wait for the pager to be left, show the notes."""
        process, self._process = self._process, None
        if process is not None:
            pipe = process.stdin
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                pipe.close()
                await pipe.wait_closed()
            await process.wait()
            self._held.clear()
        self._write_held()
        self._lines = 0
        for line in self._notes:
            self._stderr.write(line + "\n")
        self._stderr.flush()
        self._notes.clear()


class _CommandLexer(Lexer):
    """Shows the first word as known or unknown before Enter."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        """Style the command's name in the first line."""

        def line(number: int) -> StyleAndTextTuples:
            text = document.lines[number]
            words = scan(document.text).words if number == 0 else ()
            if not words or words[0].end > len(text):
                return [("", text)]
            end = words[0].end
            known = words[0].text in self._commands
            typing = end == len(text) and any(
                name.startswith(words[0].text) for name in self._commands
            )
            style = "class:command" if known else "" if typing else "class:unknown"
            return [(style, text[:end]), ("", text[end:])]

        return line


class Interactive:
    """A session at a terminal; `input` and `terminal_output` may be a test's."""

    def __init__(
        self,
        context: Context,
        commands: Mapping[str, Command],
        *,
        paged: PagedOutput,
        history: History,
        colour: bool,
        terminal_output: Output | None = None,
        terminal_input: Input | None = None,
    ) -> None:
        self._context = context
        self._commands = commands
        self._paged = paged
        self._last_ms: float | None = None
        self.names = LiveNames(context, now=time.monotonic)
        self._session: PromptSession[str] = PromptSession(
            self._prompt,
            completer=ShellCompleter(commands, self.names),
            history=history,
            auto_suggest=AutoSuggestFromHistory(),
            bottom_toolbar=self.toolbar,
            lexer=_CommandLexer(commands),
            style=_STYLE,
            include_default_pygments_style=False,
            color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
            complete_while_typing=True,
            multiline=Condition(_unfinished),
            prompt_continuation="... ",
            input=terminal_input,
            output=terminal_output,
        )
        # Answers to questions stay out of the history and know no completion.
        self._questions: PromptSession[str] = PromptSession(
            history=InMemoryHistory(),
            input=terminal_input,
            output=terminal_output,
            color_depth=None if colour else ColorDepth.DEPTH_1_BIT,
        )
        context.interactive = True
        context.ask = self._ask
        context.more = self._ask

    async def run(self) -> int:
        """Read and run lines until the user leaves; return the exit status, 0."""
        while True:
            try:
                line = await self._session.prompt_async(pre_run=self._watch_health)
            except KeyboardInterrupt:
                continue
            except EOFError:
                return 0
            if (await self._run(line)).leave:
                return 0

    async def _run(self, line: str) -> Outcome:
        """Run one line; Ctrl-C ends it and not the shell."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        began = time.monotonic()
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        outcome = Outcome()
        try:
            with contextlib.suppress(BrokenPipeError):
                # A broken pipe here is a pager that was left before its end.
                outcome = await run_line(self._context, line, self._commands)
        except asyncio.CancelledError:
            if not task.cancelling():
                raise
            task.uncancel()
        self._last_ms = (time.monotonic() - began) * 1000
        # The pager takes the keyboard, and Ctrl-C with it.
        loop.add_signal_handler(signal.SIGINT, lambda: None)
        try:
            if line.strip() and not outcome.leave and not self._context.json:
                self._paged.note(f"({self._last_ms:.1f} ms)")
            await self._paged.finish()
        finally:
            loop.remove_signal_handler(signal.SIGINT)
        return outcome

    async def _ask(self, question: str) -> str | None:
        await self._paged.finish()
        try:
            return await self._questions.prompt_async(question)
        except (EOFError, KeyboardInterrupt):
            return None

    def _prompt(self) -> str:
        table = printable(self._context.table_name)
        return f"pegaskv:{table}> " if table else "pegaskv> "

    def _watch_health(self) -> None:
        """Keep names and health fresh as long as this prompt is shown; it owns the task."""
        app = get_app()

        async def watch() -> None:
            while True:
                await self.names.refresh()
                app.invalidate()
                await asyncio.sleep(HEALTH_SECONDS)

        app.create_background_task(watch())

    def toolbar(self) -> StyleAndTextTuples:
        """Return cluster, table, health and time taken, and what may be typed next."""
        live = self.names.live
        parts = [printable(self._context.cluster)]
        parts.append(f"table {printable(self._context.table_name) or '-'}")
        if self._last_ms is not None:
            parts.append(f"{self._last_ms:.1f} ms")
        if live.trouble:
            health = ("class:trouble", printable(live.trouble))
        else:
            well = live.nodes_alive == live.nodes
            text = f"{live.nodes_alive}/{live.nodes} nodes alive"
            if live.health is not None and live.health.partitions:
                well = well and live.health.healthy == live.health.partitions
                text += f", {health_line(live.health)}"
            health = ("" if well else "class:trouble", text)
        typed = get_app().current_buffer.document.text_before_cursor
        return [
            ("", " | ".join(parts) + " | "),
            health,
            ("", "\n"),
            ("class:hint", printable(hint(typed, self._commands))),
        ]


def _unfinished() -> bool:
    return isinstance(scan(get_app().current_buffer.text).error, UnfinishedQuote)
