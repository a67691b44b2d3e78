"""`pegaskv onebox`: real processes that outlive the command, and only its own."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pegaskv
from pegaskv.server.arguments import make_parser
from pegaskv.server.child_processes import ChildProcesses, Identity
from pegaskv.server.onebox import Onebox, OneboxError, Server, run_onebox
from pegaskv.storage.local_disk import LocalDisk
from tests.helpers import poll_until, wait_until
from tests.server.test_main import command, environment, run

pytestmark = pytest.mark.process

SERVERS = ["meta1", "replica1", "replica2", "replica3"]


Command = Callable[..., tuple[str, str]]


@pytest.fixture
def onebox(directory: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command, in the process of the test: its servers are processes of their own."""

    def command(*arguments: str, status: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        line = ["onebox", *arguments, "--dir", str(directory)]
        try:
            ended = run_onebox(make_parser("x").parse_args(line))
        except SystemExit as usage:
            ended = int(str(usage.code))
        out, err = capsys.readouterr()
        assert ended == status, err
        return out, err

    return command


def state_of(directory: Path) -> dict[str, dict[str, Any]]:
    servers = json.loads((directory / "onebox.json").read_text())["servers"]
    return {server["name"]: server for server in servers}


def listed(onebox: Command) -> dict[str, list[str]]:
    """The cells of each server's line."""
    out, _ = onebox("list")
    head, *lines = out.splitlines()
    assert head.split() == ["NAME", "PID", "ADDRESS", "HTTP", "STATE", "UPTIME"]
    return {line.split()[0]: re.split(r"  +", line) for line in lines}


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Where a onebox may be; whatever runs of it afterwards is ended."""
    path = tmp_path / "box"
    yield path
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for server in state_of(path).values():
            if server["process"] is not None:
                ChildProcesses().kill(Identity(**server["process"]))


async def test_the_whole_life_of_a_cluster(
    directory: Path, onebox: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever starts another one on this machine meanwhile takes the usual ports.
    monkeypatch.setattr("pegaskv.server.onebox._PORTS", {"meta": (0, 0), "replica": (0, 0)})
    out, _ = onebox("start", "--replica", "3", "--meta", "1")
    address = str(state_of(directory)["meta1"]["listen"])
    assert out.endswith(f"Connect by: pegaskv-shell --cluster {address}\n")
    assert [f"{name} is ready on " in out for name in SERVERS] == [True] * 4
    rows = listed(onebox)
    assert list(rows) == SERVERS
    assert [row[4] for row in rows.values()] == ["ready"] * 4

    # Another primary writes only when the lease of a killed one is surely over: more than 5 s.
    async with pegaskv.connect(address, timeout=20) as client:
        await client.admin.create_table("t", partition_count=2, replica_count=3)
        table = await client.table("t")
        await table.set(b"k", b"", b"1")

        out, _ = onebox("kill", "replica2")
        assert "replica2 was killed" in out
        assert listed(onebox)["replica2"][1:] == ["-", *rows["replica2"][2:4], "stopped", "-"]
        # The client has not looked since, and may send it to the one that is gone.
        await table.set(b"k", b"", b"2", retry_unknown=True)
        _, err = onebox("kill", "replica2", status=1)
        assert "replica2 does not run" in err

        out, _ = onebox("restart", "replica2")
        assert "replica2 is ready on" in out
        again = listed(onebox)["replica2"]
        assert again[4] == "ready"
        assert again[1] != rows["replica2"][1]

        async def is_whole() -> bool:
            found = await client.admin.table_info("t")
            return all(len(one.secondaries) == 2 for one in found.partitions)

        await poll_until(is_whole, deadline_s=20)
        assert await table.get(b"k", b"") == b"2"

    _, err = onebox("clear", "--yes", status=1)
    assert "meta1, replica1, replica2, replica3 run: nothing was removed" in err
    out, _ = onebox("stop")
    assert [f"{name} has stopped" in out for name in SERVERS] == [True] * 4
    assert [row[4] for row in listed(onebox).values()] == ["stopped"] * 4
    for name in SERVERS:
        assert "Traceback" not in (directory / name / "log").read_text()
    _, err = onebox("clear", status=2)
    assert "say --yes" in err
    assert (directory / "replica1" / "data").is_dir()
    out, _ = onebox("clear", "--yes")
    assert "is gone" in out
    assert not directory.exists()


def test_a_cluster_that_cannot_begin_leaves_no_traces(directory: Path, onebox: Command) -> None:
    config = directory.parent / "odd.toml"
    config.write_text("[server]\nconnections_max = 5\n")
    (directory / "meta1").mkdir(parents=True)
    box = Onebox(directory, lambda line: None)
    try:
        with pytest.raises(OneboxError, match="is not empty"):
            box.start(replicas=1, metas=1, config=config)
    finally:
        box.close()
    (directory / "meta1").rmdir()
    config.write_text("[server]\nconnections_max = 0\n")
    _, err = onebox("start", "--config", str(config), status=2)
    assert "connections_max: must be at least 1" in err
    assert not (directory / "onebox.json").exists()


def test_a_server_that_ends_at_once_is_shown_by_its_last_words(
    directory: Path, onebox: Command
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        named(directory, Server("meta1", "meta", address, "none"))
        _, err = onebox("restart", "meta1", status=1)
    assert f"meta1 ended with status 3: {address} is in use by another process" in err
    assert f"its log is {directory / 'meta1' / 'log'}" in err


def test_ports_that_are_taken_are_passed_over() -> None:
    processes = ChildProcesses()
    first = processes.free_ports([0, 0, 0])
    assert len(set(first)) == 3
    assert all(20_000 <= port < 30_000 for port in first)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first[0]))
        taken.listen()
        found = processes.free_ports(first)
    assert found[1:] == first[1:]
    assert found[0] not in first


# Usage.


@pytest.mark.parametrize("action", ["stop", "list", "clear"])
def test_where_nothing_is_there_is_nothing_to_do(
    action: str, directory: Path, onebox: Command
) -> None:
    _, err = onebox(action, status=1)
    assert err.startswith(f"pegaskv: there is no onebox in {directory} (")
    assert not directory.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--replica", "0"), "--replica: must be from 1 to 32"),
        (("--meta", "2"), "one meta server in this version"),
        (("--replica", "two"), "invalid int value"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(
    arguments: tuple[str, ...], said: str, directory: Path, onebox: Command
) -> None:
    _, err = onebox("start", *arguments, status=2)
    assert said in err
    assert not directory.exists()


def test_a_cluster_is_kept_in_the_state_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, place in (
        ({"XDG_STATE_HOME": str(tmp_path)}, "pegaskv/onebox"),
        ({"XDG_STATE_HOME": "", "HOME": str(tmp_path)}, ".local/state/pegaskv/onebox"),
        ({"XDG_STATE_HOME": "", "HOME": ""}, "there is no home directory"),
    ):
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        run_onebox(make_parser("x").parse_args(["onebox", "list"]))
        assert place in capsys.readouterr().err


# Other people's processes.


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's server."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    yield process
    process.kill()
    process.wait()


def named(box: Path, server: Server) -> None:
    """A onebox whose state says that `server` is its only one."""
    box.mkdir()
    fields = {"format": 1, "config": "", "servers": []}
    process = server.process
    fields["servers"] = [
        {
            **{name: getattr(server, name) for name in ("name", "role", "listen", "http")},
            "process": process
            and {"pid": process.pid, "started": process.started, "boot": process.boot},
            "stopped": False,
        }
    ]
    (box / "onebox.json").write_text(json.dumps(fields))


def identity_of(process: "subprocess.Popen[bytes]") -> Identity:
    stat = Path(f"/proc/{process.pid}/stat").read_text()
    started = int(stat.rpartition(")")[2].split()[19])
    return Identity(process.pid, started, LocalDisk().boot_id())


def test_a_process_that_got_the_number_of_a_server_is_left_alone(
    directory: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    real = identity_of(sleeper)
    processes = ChildProcesses()
    assert processes.lives(real)
    for other in (replace(real, started=real.started - 1), replace(real, boot="another")):
        assert not processes.lives(other)
        server = Server("replica1", "replica", "127.0.0.1:1", "none", other)
        named(directory, server)
        for action in (["kill", "replica1"], ["stop"]):
            box = Onebox(directory, lambda line: None)
            try:
                if action[0] == "kill":
                    with pytest.raises(OneboxError, match="does not run"):
                        box.kill("replica1")
                else:
                    box.stop()
            finally:
                box.close()
        assert sleeper.poll() is None
        for name in ("onebox.json", "lock"):
            (directory / name).unlink()
        directory.rmdir()


def test_a_killed_child_is_gone_and_one_that_ended_by_itself_is_named(
    directory: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    lines: list[str] = []
    named(directory, Server("meta1", "meta", "127.0.0.1:1", "127.0.0.1:1", identity_of(sleeper)))
    sleeper.kill()
    wait_until(lambda: not ChildProcesses().lives(identity_of(sleeper)))
    box = Onebox(directory, lines.append)
    try:
        box.show()
    finally:
        box.close()
    assert "has ended, see" in lines[1]


def test_two_commands_at_a_time_are_one_too_many(directory: Path, onebox: Command) -> None:
    named(directory, Server("meta1", "meta", "127.0.0.1:1", "none"))
    first = Onebox(directory, lambda line: None)
    first.show()
    try:
        _, err = onebox("stop", status=1)
        assert "another command is at work" in err
    finally:
        first.close()
    _, err = onebox("kill", "replica7", status=2)
    assert "there is no server 'replica7' (there are meta1)" in err


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 2, "config": "", "servers": []}'])
def test_a_state_that_cannot_be_read_is_named(text: str, directory: Path, onebox: Command) -> None:
    directory.mkdir()
    (directory / "onebox.json").write_text(text)
    _, err = onebox("list", status=1)
    assert "onebox.json cannot be read" in err


# The commands of servers.


def test_a_replica_server_that_waits_for_its_meta_server_can_be_stopped(tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(
            *("replica", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0"),
            *("--http", "none", "--meta", "127.0.0.1:1"),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "no meta server answers" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert out == ""
    assert "nothing listens there" in said


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("replica", "--meta", "nowhere"), 2, "--meta: 'nowhere' is not HOST:PORT"),
        (("replica", "--meta", ""), 2, "--meta: '' is not HOST:PORT"),
        (("meta", "--listen", "here"), 2, "--listen: 'here' is not HOST:PORT"),
        (("meta", "--accept-loss"), 2, "unrecognized arguments: --accept-loss"),
    ],
)
def test_wrong_flags_are_refused(arguments: tuple[str, ...], status: int, said: str) -> None:
    _, err = run(*arguments, status=status)
    assert said in err


def test_a_wrong_file_is_refused_with_the_file_that_is_right(tmp_path: Path) -> None:
    _, err = run("meta", "--config", str(tmp_path / "none.toml"), status=2)
    assert "conf/meta.toml" in err
