"""The shell as a process: what it costs to start, pipes, signals, and a real terminal."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

from tests.helpers import free_port, wait_until

ROOT = Path(__file__).parents[2]
SHELL = [sys.executable, "-m", "shell"]
FAKE = [sys.executable, "-m", "tests.shell.fake_shell"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    return {
        **kept,
        "HOME": str(tmp_path),
        "TERM": "xterm-256color",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error",
        # The shell must not depend on the terminal's locale.
        "LC_ALL": "C",
    }


def run(
    command: list[str], environment: dict[str, str], *arguments: str, stdin: bytes = b""
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [*command, *arguments], input=stdin, capture_output=True, env=environment, timeout=50
    )


@contextlib.contextmanager
def started(
    command: list[str], environment: dict[str, str], *arguments: str
) -> Iterator["subprocess.Popen[bytes]"]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [*command, *arguments], stdin=pipe, stdout=pipe, stderr=pipe, env=environment
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_a_one_shot_command_imports_nothing_heavy(environment: dict[str, str]) -> None:
    code = (
        "import sys; from shell.app import main; status = main(sys.argv[1:]);"
        "heavy = {'prompt_toolkit', 'aiohttp', 'rich', 'uvloop', 'plyvel', 'pegaskv.client'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); sys.exit(status)"
    )
    done = run([sys.executable, "-c", code], environment, "-e", "version", "-e", "help set")
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_one_shot_add_dup_needs_no_prompt(environment: dict[str, str]) -> None:
    code = (
        "import sys; from shell.app import main; from tests.shell.fake_client import FakeCluster;"
        "cluster = FakeCluster(); cluster.create('users');"
        "lines = ['add_dup users beta', 'watch query_dup users --count 1'];"
        "statuses = [main(['-e', line], connect=cluster.connect) for line in lines];"
        "statuses.append(main(['-e', lines[0]], connect=cluster.connect));"
        "heavy = {'prompt_toolkit', 'aiohttp', 'rich', 'uvloop', 'plyvel'} & set(sys.modules);"
        "assert not heavy, heavy; assert statuses == [0, 0, 4], statuses"
    )
    done = run([sys.executable, "-c", code], environment)
    assert done.returncode == 0, done.stderr
    assert b"users => beta:users, id 7" in done.stdout


def test_a_cluster_that_is_not_there_is_status_3(environment: dict[str, str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = run(SHELL, environment, "--cluster", address, "--timeout", "2s", "-e", "ls")
    assert done.returncode == 3
    assert f"does a server run at {address}?" in done.stderr.decode()
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_a_wrong_address_is_a_wrong_use(environment: dict[str, str]) -> None:
    done = run(SHELL, environment, "--cluster", "a:b:c", "-e", "ls")
    assert done.returncode == 2
    assert "--cluster takes HOST:PORT" in done.stderr.decode()


def test_lines_of_a_pipe_are_answered_one_by_one(environment: dict[str, str]) -> None:
    with started(FAKE, environment, "--json", "--table", "users") as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        for number in range(3):
            shell.stdin.write(f'set h "\\xff" {number}\nget h "\\xff"\n'.encode())
            shell.stdin.flush()
            assert json.loads(shell.stdout.readline())["command"] == "set"
            assert json.loads(shell.stdout.readline())["data"] == str(number)
        shell.stdin.close()
        assert shell.wait(20) == 0


def test_raw_bytes_in_a_script_are_kept(environment: dict[str, str]) -> None:
    lines = (
        b"use users\nset h a \xfe\xff\nset \xc3\xb1 b c\nget h a\nfull_scan -h exact -x \xc3\xb1\n"
    )
    done = run(FAKE, environment, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b'"\\xfe\\xff"\n"\xc3\xb1" : "b" => "c"\n'


@pytest.mark.parametrize("line", ["get hang x\n", ""])
def test_an_interrupt_is_status_130_without_a_traceback(
    environment: dict[str, str], line: str
) -> None:
    with started(FAKE, environment, "--table", "users") as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        assert shell.stderr is not None
        shell.stdin.write(f"version\n{line}".encode())
        shell.stdin.flush()
        assert shell.stdout.readline().startswith(b"pegaskv ")
        shell.send_signal(signal.SIGINT)
        assert shell.wait(20) == 130
        said = shell.stderr.read()
        assert b"Traceback" not in said
        assert said.removeprefix(b"hanging\r\n") in (b"", b"stdin:2: error: interrupted\n")


def test_a_reader_that_leaves_early_ends_it_quietly(environment: dict[str, str]) -> None:
    lines = "".join(f"set h {number:06} v\n" for number in range(20_000))
    with started(FAKE, environment, "--table", "users") as shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        assert shell.stderr is not None
        shell.stdin.write(f"version\nhelp\n{'help' + chr(10)}".encode())
        shell.stdin.flush()
        assert shell.stdout.readline()
        shell.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            shell.stdin.write(("help\n" * len(lines[:2_000])).encode())
            shell.stdin.close()
        assert shell.wait(30) == 1
        assert shell.stderr.read().replace(b"OK\n", b"") == b""


class AnsweringScreen(pyte.Screen):
    """A screen that tells where its cursor is when it is asked, as terminals do."""

    def __init__(self, answer: Callable[[str], object]) -> None:
        super().__init__(80, 24)
        self._answer = answer

    def write_process_input(self, data: str) -> None:
        self._answer(data)


class Screen:
    """A shell at a real terminal, seen as its user sees it."""

    def __init__(self, command: list[str], environment: dict[str, str], *arguments: str) -> None:
        self.child = pexpect.spawn(
            command[0], [*command[1:], *arguments], env=environment, dimensions=(24, 80), timeout=20
        )
        self.received = b""
        self._screen = AnsweringScreen(self.child.send)
        self._stream = pyte.ByteStream(self._screen)

    def wait_for(self, text: str) -> None:
        try:
            wait_until(lambda: self._shows(text))
        except AssertionError:
            pytest.fail(f"{text!r} is not on the screen:\n{self.text}")

    def _shows(self, text: str) -> bool:
        self._read(0.05)
        return text in self.text

    def _read(self, seconds: float) -> bool:
        try:
            data = self.child.read_nonblocking(65536, timeout=seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.received += data
        self._stream.feed(data)
        return True

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    def end(self) -> int | None:
        wait_until(lambda: not self._read(0.05))
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def screen(environment: dict[str, str]) -> Iterator[Screen]:
    made = Screen(FAKE, environment | {"PAGER": "cat"}, "--table", "users")
    yield made
    made.child.close(force=True)


def test_at_a_terminal_there_is_a_prompt(screen: Screen) -> None:
    screen.wait_for("pegaskv:users>")
    screen.wait_for("1/1 nodes alive")
    screen.child.send("set h a 'x y'\r")
    screen.wait_for("OK")
    screen.child.send("get h ")
    screen.wait_for("<sort_key>: the sort key")
    screen.child.send("a\r")
    screen.wait_for('"x y"')
    screen.child.send("get hang x\r")
    screen.wait_for("hanging")
    screen.child.sendintr()
    screen.wait_for("interrupted")
    screen.child.send("drop users\r")
    screen.wait_for("Go on? [y/N]")
    screen.child.send("y\r")
    screen.wait_for("table users dropped")
    screen.child.send("\x04")
    assert screen.end() == 0


def test_watching_at_the_prompt_ends_with_ctrl_c(screen: Screen) -> None:
    screen.wait_for("pegaskv:users>")
    screen.child.send("watch -n 100ms ls\r")
    screen.wait_for("every 0.1 s: ls; Ctrl-C ends it")
    screen.child.sendintr()
    screen.wait_for("pegaskv:users>")
    screen.child.send("version\r")
    screen.wait_for("pegaskv 0")
    assert "interrupted" not in screen.text
    assert b"\x1b[?1049l" in screen.received
    screen.child.send("\x04")
    assert screen.end() == 0


def test_watching_from_the_command_line_ends_with_ctrl_c(environment: dict[str, str]) -> None:
    screen = Screen(FAKE, environment, "-e", "watch ls")
    screen.wait_for("every 1 s: ls; Ctrl-C ends it")
    screen.child.sendintr()
    assert screen.end() == 130
    assert b"\x1b[?1049l" in screen.received
    assert b"Traceback" not in screen.received
    assert b"error" not in screen.received


def test_no_color_is_respected(environment: dict[str, str]) -> None:
    for extra, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        screen = Screen(FAKE, environment | extra)
        screen.wait_for("pegaskv>")
        screen.child.send("gte x")
        screen.wait_for("did you mean `get`?")
        screen.child.send("\x03\x04")
        assert screen.end() == 0
        assert (re.search(rb"\x1b\[[0-9;]*31mgte", screen.received) is not None) is coloured


def test_a_question_of_a_batch_is_asked_at_the_terminal(
    environment: dict[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("drop users\nls\n")
    screen = Screen(FAKE, environment, "-f", str(script))
    screen.wait_for("Go on? [y/N]")
    screen.child.send("y\r")
    screen.wait_for("no tables")
    assert screen.end() == 0
    screen = Screen(FAKE, environment, "-f", str(script))
    screen.wait_for("Go on? [y/N]")
    screen.child.sendintr()
    assert screen.end() == 130
    assert "Traceback" not in screen.text
