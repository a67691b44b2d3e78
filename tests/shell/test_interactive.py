"""The prompt, typed into a pipe: results are looked at, not the bytes on the terminal."""

import asyncio
import io
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from shell.interactive import Interactive, PagedOutput, PrivateHistory, choose_pager, open_history
from tests.helpers import poll_until
from tests.shell.harness import COMMANDS, Session

CTRL_C, CTRL_D, ENTER, TAB = "\x03", "\x04", "\r", "\t"


class Terminal:
    """A shell at a terminal that a test types at."""

    def __init__(self, pipe: PipeInput, history: History, session: Session) -> None:
        self.stdout, self.stderr = io.StringIO(), io.StringIO()
        self.session = session
        self.paged = PagedOutput(self.stdout, self.stderr, height=lambda: 24, pager=None)
        session.context.output = self.paged
        self.shell = Interactive(
            session.context,
            COMMANDS,
            paged=self.paged,
            history=history,
            colour=False,
            terminal_input=pipe,
            terminal_output=DummyOutput(),
        )
        self.pipe = pipe

    def type(self, text: str) -> None:
        self.pipe.send_text(text)

    @property
    def buffer(self) -> Buffer:
        """What stands at the prompt."""
        return self.shell._session.default_buffer


@asynccontextmanager
async def made(history: History | None = None) -> AsyncIterator[Terminal]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        at = Terminal(pipe, history or InMemoryHistory(), Session())
        yield at
        await at.session.context.close()


@asynccontextmanager
async def terminal(*, history: History | None = None) -> AsyncIterator[Terminal]:
    """Yield a terminal; what was typed in the body is run behind it, up to Ctrl-D."""
    async with made(history) as at:
        yield at
        at.type(CTRL_D)
        assert await asyncio.wait_for(at.shell.run(), 20) == 0


@asynccontextmanager
async def running() -> AsyncIterator[Terminal]:
    """Yield a terminal whose shell runs beside the body, and is left behind it."""
    async with made() as at:
        shell = asyncio.get_running_loop().create_task(at.shell.run())
        try:
            yield at
            at.type(CTRL_D)
            assert await asyncio.wait_for(shell, 20) == 0
        finally:
            shell.cancel()


async def test_lines_are_run_and_timed() -> None:
    async with terminal() as at:
        at.type(f"set h a 1{ENTER}get h a{ENTER}")
    assert at.stdout.getvalue() == '"1"\n'
    assert at.stderr.getvalue().startswith("OK\n(")
    assert at.stderr.getvalue().endswith(" ms)\n")


async def test_a_mistake_does_not_end_the_session() -> None:
    async with terminal() as at:
        at.type(f"gte{ENTER}version{ENTER}")
    assert "did you mean `get`?" in at.stderr.getvalue()
    assert at.stdout.getvalue().startswith("pegaskv ")


async def test_exit_leaves_at_once() -> None:
    async with terminal() as at:
        at.type(f"exit{ENTER}set h a 1{ENTER}")
    assert at.session.cluster.rows[1] == {}


async def test_ctrl_c_clears_the_line() -> None:
    async with terminal() as at:
        at.type(f"set h a 1{CTRL_C}set h b 2{ENTER}")
    assert list(at.session.cluster.rows[1]) == [(b"h", b"b")]


async def test_an_open_quote_goes_on_in_the_next_line() -> None:
    async with terminal() as at:
        at.type(f"set h a 'one{ENTER}two'{ENTER}")
    assert at.session.cluster.rows[1][b"h", b"a"].value == b"one\ntwo"


async def test_tab_completes_a_table_of_the_cluster() -> None:
    async with running() as at:
        at.type("use us")
        await poll_until(lambda: at.buffer.complete_state is not None)
        at.type(TAB)
        await poll_until(lambda: at.buffer.text == "use users")
        at.type(ENTER)


async def test_a_dangerous_command_asks_at_the_prompt() -> None:
    async with terminal() as at:
        at.type(f"drop users{ENTER}n{ENTER}drop users{ENTER}{CTRL_C}")
    assert at.stderr.getvalue().count("not confirmed") == 2
    async with terminal() as at:
        at.type(f"drop users{ENTER}y{ENTER}")
    assert "table users dropped" in at.stderr.getvalue()


async def test_mutations_are_asked_for_line_by_line() -> None:
    async with terminal() as at:
        at.type(f"check_and_mutate h -c a -t not_exist{ENTER}set a 1{ENTER}set b 2{ENTER}ok{ENTER}")
    assert at.stdout.getvalue() == "passed\n"
    assert len(at.session.cluster.rows[1]) == 2


async def test_ctrl_c_ends_the_running_command_and_not_the_shell() -> None:
    async with running() as at:
        at.type(f"get hang x{ENTER}")
        await poll_until(lambda: "get" in [name for name, _ in at.session.cluster.log])
        os.kill(os.getpid(), signal.SIGINT)
        await poll_until(lambda: "interrupted" in at.stderr.getvalue())
        at.type(f"set h a 1{ENTER}")
    assert "error: interrupted" in at.stderr.getvalue()
    assert at.session.cluster.rows[1]


async def test_the_toolbar_shows_cluster_table_health_and_hint() -> None:
    async with terminal() as at:
        at.type(f"get h a{ENTER}")
    await at.shell.names.refresh()
    text = "".join(part[1] for part in at.shell.toolbar())
    assert text.startswith("fake:1 | table users | ")
    assert "1/1 nodes alive" in text
    assert text.endswith("\nhelp lists the commands, Tab completes")
    at.shell.names.live.trouble = "cannot reach \x1b[31m"
    assert r"cannot reach \x1b[31m" in "".join(part[1] for part in at.shell.toolbar())


async def test_lines_are_kept_in_a_file_of_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pegaskv" / "shell_history"
    history, trouble = open_history(path)
    assert trouble == ""
    async with terminal(history=history) as at:
        at.type(f"set h a 1{ENTER} set h secret 2{ENTER}")
    assert len(at.session.cluster.rows[1]) == 2
    kept = path.read_text()
    assert "+set h a 1\n" in kept
    assert "secret" not in kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again, _ = open_history(path)
    assert list(again.load_history_strings()) == ["set h a 1"]


def test_a_directory_that_cannot_be_made_costs_only_the_history(tmp_path: Path) -> None:
    tmp_path.joinpath("state").write_text("a file")
    history, trouble = open_history(tmp_path / "state" / "shell_history")
    assert isinstance(history, InMemoryHistory)
    assert "no history is kept" in trouble
    PrivateHistory(str(tmp_path / "nowhere" / "file")).store_string("set h a 1")


async def test_long_output_goes_through_the_pager(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    code = f"import sys; open({str(shown)!r}, 'w').write(sys.stdin.read())"
    out, notes = io.StringIO(), io.StringIO()
    paged = PagedOutput(out, notes, height=lambda: 5, pager=[sys.executable, "-c", code])
    for number in range(3):
        paged.data(f"{number}\n")
    await paged.drain()
    await paged.finish()
    assert out.getvalue() == "0\n1\n2\n"
    for number in range(10):
        paged.data(f"{number}\n")
        await paged.drain()
    paged.note("10 rows")
    await paged.finish()
    assert shown.read_text() == "".join(f"{number}\n" for number in range(10))
    assert (out.getvalue(), notes.getvalue()) == ("0\n1\n2\n", "10 rows\n")


async def test_a_pager_that_is_left_ends_the_output() -> None:
    paged = PagedOutput(
        io.StringIO(), io.StringIO(), height=lambda: 2, pager=[sys.executable, "-c", ""]
    )

    async def write_for_ever() -> None:
        while True:
            paged.data("x" * 1000 + "\n")
            await paged.drain()

    with pytest.raises(BrokenPipeError):
        await asyncio.wait_for(write_for_ever(), 20)
    await paged.finish()


@pytest.mark.parametrize(
    ("environment", "check"),
    [
        ({"PAGER": "cat"}, lambda pager: pager is None),
        ({"PAGER": ""}, lambda pager: pager is None),
        ({"PAGER": "/nowhere/pager"}, lambda pager: pager is None),
        ({"PAGER": "'"}, lambda pager: pager is None),
        ({"PAGER": f"{sys.executable} -c 1"}, lambda pager: pager[1:] == ["-c", "1"]),
    ],
)
def test_the_pager_is_the_one_of_the_environment(
    environment: dict[str, str], check: Callable[[object], bool]
) -> None:
    assert check(choose_pager(environment))
