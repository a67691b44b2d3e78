"""What people meet at a real server and shell: a sentence, a status, never a traceback."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.process import ServerProcess, running_server
from tests.helpers import wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with running_server(tmp_path / "node") as running:
        yield running


def pegaskv(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pegaskv", "standalone", "--http", "none", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def shell(
    server: ServerProcess, home: Path, *arguments: str, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "shell", "--cluster", server.address, *arguments],
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, "HOME": str(home), "NO_COLOR": "1"},
    )
    assert "Traceback" not in done.stderr + done.stdout
    return done


def test_a_start_that_fails_says_one_thing_and_nothing_of_stopping(
    server: ServerProcess, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for arguments, status, words in (
        (("--data", str(server.directory / "data")), 4, "in use by another process"),
        (("--data", str(file)), 4, "is not a directory"),
        (("--data", str(file / "below")), 4, "Not a directory"),
        (("--data", str(tmp_path / "a"), "--listen", server.address), 3, "in use by another"),
        (("--data", str(tmp_path / "b"), "--listen", "no.invalid:0"), 2, "cannot be resolved"),
    ):
        ports = () if "--listen" in arguments else ("--listen", "127.0.0.1:0")
        code, err = pegaskv(*arguments, *ports)
        assert code == status, err
        assert words in err
        assert "stopped" not in err
        assert len(err.splitlines()) == 1, err


def test_a_hangup_is_noted_and_ends_nothing_and_two_sigterms_are_one(
    server: ServerProcess, tmp_path: Path
) -> None:
    server.signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP" in server.log(), what="the line about SIGHUP")
    assert server.running
    assert shell(server, tmp_path, "-e", "ls").returncode == 0
    server.signal(signal.SIGTERM)
    assert server.stop() == 0


def test_every_line_of_a_json_log_parses(tmp_path: Path) -> None:
    with running_server(tmp_path, arguments=("--log-format", "json")) as server:
        server.signal(signal.SIGHUP)
        assert server.stop() == 0
        events = [json.loads(line) for line in server.log().splitlines()]
    assert len(events) >= 3
    assert all(set(event) >= {"time", "level", "logger", "message"} for event in events)


def test_a_shell_batch_answers_every_mistake_with_its_status_and_a_way_on(
    server: ServerProcess, tmp_path: Path
) -> None:
    for arguments, status, words in (
        (("-e", "create t -p 2"), 0, "table t created"),
        (("-e", "create t -p 2"), 4, "is there already"),
        (("-e", "use nope"), 1, "`ls` lists the tables"),
        (("-e", "gett a b"), 2, "did you mean `get`?"),
        (("-e", 'set "a b'), 2, "never closed"),
        (("-e", "use t", "-e", "set a"), 2, "usage: set"),
        (("-e", "drop t"), 2, "--yes"),
        (("-f", "none.txt"), 2, "No such file"),
    ):
        done = shell(server, tmp_path, *arguments)
        assert done.returncode == status, (arguments, done.stderr)
        assert words in done.stdout + done.stderr, arguments
    done = shell(server, tmp_path, "--json", "--keep-going", text="use t\nset k s v\nget\nls\n")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["ok"] for line in lines] == [True, True, False, True]
    assert done.returncode == 2


def test_a_reader_that_leaves_a_long_scan_sees_no_traceback(
    server: ServerProcess, tmp_path: Path
) -> None:
    rows = "".join(f"multi_set h{n} " + " ".join(f"k{i} {'v' * 90}" for i in range(50)) + "\n"
                   for n in range(60))  # fmt: skip
    shell(server, tmp_path, text="create t -p 2\nuse t\n" + rows)
    with subprocess.Popen(
        [
            *(sys.executable, "-m", "shell", "--cluster", server.address),
            *("-e", "use t", "-e", "full_scan"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    ) as scan:
        assert scan.stdout is not None
        assert scan.stderr is not None
        assert scan.stdout.readline().startswith('"h')
        scan.stdout.close()
        err = scan.stderr.read()
        assert scan.wait(20) in (0, 1)
    assert "Traceback" not in err
    assert "Broken pipe" not in err
