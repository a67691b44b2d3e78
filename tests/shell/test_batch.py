"""Scripts: order, places of errors, exit statuses, and input that comes bit by bit."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shell.app import main
from shell.config import Settings, ShellOptions, choose_options, history_path, read_settings
from shell.errors import UsageError
from tests.shell.fake_client import FakeCluster
from tests.shell.harness import Session


async def test_a_batch_stops_at_the_first_error() -> None:
    session = Session()
    assert await session.script("set h a 1\ngte h a\nset h b 2", name="load") == 2
    assert len(session.cluster.rows[1]) == 1
    assert session.output.notes[-2:] == [
        'load:2: error: unknown command "gte"',
        "load:2: hint: did you mean `get`?",
    ]


async def test_a_batch_that_keeps_going_ends_with_its_first_failure() -> None:
    session = Session()
    script = "create users\ngte h a\nuse nowhere\nset h b 2"
    assert await session.script(script, keep_going=True) == 4
    assert len(session.cluster.rows[1]) == 1


async def test_blank_lines_and_comments_count_as_lines() -> None:
    session = Session()
    assert await session.script("# one\n\n  # three\ngte", name="s") == 2
    assert session.output.notes[0].startswith("s:4: ")


async def test_exit_ends_a_batch_with_the_status_so_far() -> None:
    session = Session()
    assert await session.script("set h a 1\nexit\nset h b 2") == 0
    assert len(session.cluster.rows[1]) == 1
    assert await session.script("gte\nexit\nset h b 2", keep_going=True) == 2


@pytest.fixture
def cluster() -> FakeCluster:
    cluster = FakeCluster()
    cluster.create("users")
    return cluster


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the user's settings nor his history are read or written."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PEGASKV_CLUSTER", raising=False)


@pytest.fixture
def stdin_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """Make a file with some content the standard input."""
    path = tmp_path / "stdin"
    path.touch()
    with path.open("rb") as file, io.TextIOWrapper(file) as text:
        monkeypatch.setattr(sys, "stdin", text)
        yield path.write_bytes


def test_commands_run_in_the_order_of_the_command_line(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "load.txt"
    script.write_bytes(b"\xef\xbb\xbfset h a \xff\r\n# comment\nget h a\n")
    arguments = ["-e", "use users", "-f", str(script), "--execute", "exist h a"]
    assert main(arguments, connect=cluster.connect) == 0
    assert capsys.readouterr().out == '"\\xff"\ntrue\n'
    assert (cluster.opened, cluster.closed) == (1, 1)


def test_an_error_in_a_file_names_the_line(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = tmp_path / "load.txt"
    script.write_text('use users\nget "a\n')
    assert main(["-f", str(script)], connect=cluster.connect) == 2
    assert capsys.readouterr().err.splitlines()[1].startswith(f"{script}:2: error: the quote")


def test_standard_input_is_a_script(
    cluster: FakeCluster,
    capsys: pytest.CaptureFixture[str],
    stdin_of: Callable[[bytes], int],
) -> None:
    stdin_of(b"use users\nset h a 1\nget h a\ngte\n")
    assert main([], connect=cluster.connect) == 2
    printed = capsys.readouterr()
    assert printed.out == '"1"\n'
    assert "stdin:4: error" in printed.err


def test_json_answers_are_lines_on_stdout(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--json", "--keep-going", "-e", "use users", "-e", "gte", "-e", "get h a"]
    assert main(arguments, connect=cluster.connect) == 2
    printed = capsys.readouterr()
    answers = [json.loads(line) for line in printed.out.splitlines()]
    assert [each["ok"] for each in answers] == [True, False, True]
    assert answers[2] == {"ok": True, "command": "get", "data": None}
    assert printed.err.startswith("-e 2: error")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-e", "version", "--clutser", "x"], 2, "did you mean `--cluster`?"),
        (["-e"], 2, "expected one argument"),
        (["-f", "/nowhere/script"], 2, "cannot read the script /nowhere/script: No such file"),
        (["--config", "/nowhere/x.toml", "-e", "version"], 2, "cannot read /nowhere/x.toml"),
        (["--profile", "x", "-e", "version"], 2, "no profile is called x"),
        (["--profile", "x", "--cluster", "y", "-e", "version"], 2, "not allowed with"),
        (["--timeout", "soon", "-e", "version"], 2, "<timeout> is 1 to 3600000"),
        (["-e", "drop users"], 2, "here is nobody to ask"),
        (["--table", "nowhere", "-e", "get a b"], 1, "no table is called nowhere"),
        (["-e", "create users"], 4, "there already"),
    ],
)
def test_every_mistake_has_its_status_and_message(
    arguments: list[str],
    status: int,
    said: str,
    cluster: FakeCluster,
    capsys: pytest.CaptureFixture[str],
    stdin_of: Callable[[bytes], int],
) -> None:
    stdin_of(b"")
    try:
        ended = main(arguments, connect=cluster.connect)
    except SystemExit as left:
        ended = int(left.code or 0)
    assert ended == status
    assert said in capsys.readouterr().err


def test_yes_answers_for_a_whole_batch(cluster: FakeCluster) -> None:
    assert main(["--yes", "-e", "drop users"], connect=cluster.connect) == 0
    assert main(["-e", "recall 1", "-e", "drop users --yes"], connect=cluster.connect) == 0


def test_an_unreachable_cluster_is_status_3(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.unreachable = True
    assert main(["-e", "ls"], connect=cluster.connect) == 3
    assert "does a server run at 127.0.0.1:34601?" in capsys.readouterr().err


def test_the_nearest_setting_wins(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config" / "pegaskv"
    config.mkdir(parents=True)
    config.joinpath("shell.toml").write_text(
        '[shell]\ncluster = "file:1"\ntimeout_ms = 700\n'
        '[profiles.prod]\ncluster = "prod:1"\ntable = "users"\n'
    )

    def used(*arguments: str) -> tuple[str, Any]:
        assert main([*arguments, "-e", "ls"], connect=cluster.connect) == 0
        return cluster.addresses[-1], cluster.log[-1][1]

    assert used() == ("file:1", 0.7)
    assert used("--profile", "prod") == ("prod:1", 0.7)
    assert used("--cluster", "flag:1", "--timeout", "3s") == ("flag:1", 3.0)
    assert main(["--profile", "prod", "-e", "get a b"], connect=cluster.connect) == 0
    monkeypatch.setenv("PEGASKV_CLUSTER", "environment:1")
    assert used() == ("environment:1", 0.7)
    assert used("--profile", "prod") == ("prod:1", 0.7)
    assert used("--cluster", "flag:1") == ("flag:1", 0.7)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[shell]\ncluser = 'x'", "unknown option `cluser`"),
        ("[shell]\ntimeout_ms = '5'", "expected a whole number"),
        ("[shell]\ntimeout_ms = 0", "timeout_ms must be 1 to"),
        ("[shel]", "unknown section [shel]"),
        ("shell = 3", "must be a section"),
        ("[profiles]\nx = 3", "must be a section"),
        ("[profiles.x]\ncluster = ''", "cluster is empty"),
        ("[", "shell.toml: "),
    ],
)
def test_a_wrong_configuration_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "shell.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_settings(path, required=True)
    assert said in caught.value.message
    assert str(path) in caught.value.message


def test_an_unknown_profile_is_answered_with_the_nearest() -> None:
    settings = Settings(profiles={"production": ShellOptions()})
    with pytest.raises(UsageError) as caught:
        choose_options(settings, profile="prodution", cluster=None, environment={})
    assert caught.value.hint == "did you mean `production`?"


def test_the_file_of_the_repository_says_the_defaults() -> None:
    path = Path(__file__).parents[2] / "conf" / "shell.toml"
    settings = read_settings(path, required=True)
    assert settings.shell == ShellOptions()
    assert settings.given == frozenset(ShellOptions.__slots__)
    assert settings.profiles == {"local": ShellOptions()}


def test_relative_xdg_directories_are_ignored() -> None:
    environment = {"HOME": "/home/ada", "XDG_STATE_HOME": "state"}
    expected = Path("/home/ada/.local/state/pegaskv/shell_history")
    assert history_path(environment) == expected
    environment["XDG_STATE_HOME"] = "/state"
    assert history_path(environment) == Path("/state/pegaskv/shell_history")


def test_a_bug_is_said_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_cluster: str, _timeout_s: float) -> Any:
        raise RuntimeError("no such thing\nat all")

    if sys.flags.dev_mode:
        with pytest.raises(RuntimeError):
            main(["-e", "ls"], connect=broken)
        return
    assert main(["-e", "ls"], connect=broken) == 1
    said = capsys.readouterr().err
    assert said.splitlines()[0] == ("pegaskv-shell: internal error: 'RuntimeError: no such thing'")
    assert "python -X dev -m shell" in said


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["-e", "gte"], ""),
        (["-e", "version", "-e", "gte"], "-e 2: "),
        (["-e", "version\ngte"], "-e:2: "),
        (["-e", "version", "-e", "version\ngte"], "-e 2:2: "),
    ],
)
def test_an_error_of_the_command_line_names_its_place_when_there_are_several(
    arguments: list[str], place: str, cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments, connect=cluster.connect) == 2
    assert capsys.readouterr().err.startswith(f"{place}error: unknown command")
