"""The command `pegaskv` as a process: its lines, its files, its exit statuses."""

import json
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import pegaskv
from pegaskv.base.version import VERSION
from tests.helpers import free_port, wait_until

pytestmark = pytest.mark.process

READY = re.compile(r"pegaskv standalone ready on (\S+:\d+) \(http (\S+)\)\n")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pegaskv", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """Warnings as errors and debug mode are the tests' own business."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | changes


def run(*arguments: str, status: int, **changes: str) -> tuple[str, str]:
    """Run to the end; return stdout and stderr."""
    done = subprocess.run(
        command(*arguments), capture_output=True, timeout=30, text=True, env=environment(**changes)
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


class Running:
    """A server that has said that it is ready."""

    def __init__(self, *arguments: str, **changes: str) -> None:
        self.process = subprocess.Popen(
            command("standalone", *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**changes),
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        match = READY.fullmatch(self.ready)
        if match is None:
            self.process.kill()
            raise AssertionError(f"{self.ready!r}\n{self.process.communicate()[1]}")
        self.address, self.http = match.groups()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Signal; return the exit status and what was written after the ready line."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tmp_path / "data")


@pytest.fixture
def server(data: str) -> Iterator[Running]:
    running = Running("--data", data, "--listen", "127.0.0.1:0", "--http", "none")
    yield running
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate()


def one_line(stderr: str) -> str:
    """The line that says why; above it there may be a log."""
    lines = [line for line in stderr.splitlines() if line.startswith("pegaskv: ")]
    assert len(lines) == 1, stderr
    assert stderr.endswith(lines[0] + "\n")
    return lines[0]


# Usage.


def test_version_names_the_software_and_its_formats() -> None:
    out, _ = run("--version", status=0)
    assert out.startswith(f"pegaskv {VERSION} (protocol 1, data format 1, Python 3.")


def test_help_lists_what_exists() -> None:
    out, _ = run("--help", status=0)
    flags = ("--config", "--data", "--listen", "--http", "--log-format")
    for name, more in (("standalone", ("--accept-loss",)), ("meta", ()), ("replica", ("--meta",))):
        assert name in out
        text, _ = run(name, "--help", status=0)
        for flag in (*flags, *more):
            assert flag in text
    text, _ = run("onebox", "--help", status=0)
    for action in ("start", "stop", "list", "kill", "restart", "clear"):
        assert action in text


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("standalon",),
        ("standalone", "--lisen", "127.0.0.1:0"),
        ("standalone", "extra"),
        ("standalone", "--log-format", "xml"),
        ("standalone", "--listen"),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    out, err = run(*arguments, status=2)
    assert out == ""
    assert "usage: pegaskv" in err


# The life of a server.


def test_a_server_says_ready_serves_http_and_stops_cleanly(data: str) -> None:
    running = Running("--data", data, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    try:
        assert running.ready == (
            f"pegaskv standalone ready on {running.address} (http {running.http})\n"
        )
        with urllib.request.urlopen(f"http://{running.http}/health", timeout=5) as response:
            assert json.load(response)["status"] == "ok"
        with urllib.request.urlopen(f"http://{running.http}/metrics", timeout=5) as response:
            text = response.read().decode()
        for name in (
            "pegaskv_connections ",
            'pegaskv_option{name="connections_max",section="server"} 10000.0',
            'pegaskv_limit{name="value_bytes_max"} 1.048576e+06',
            "pegaskv_requests_total",
            "pegaskv_replicas ",
            "pegaskv_disk_free_bytes",
            "pegaskv_loop_lag_seconds",
            "pegaskv_uptime_seconds",
            "pegaskv_build_info",
            "pegaskv_meta_store_usable",
            "process_resident_memory_bytes",
        ):
            assert name in text, name
        families = set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))
        bounds = [name for name in families if name.endswith("_max")]
        # What is sent before hello is there for a moment only.
        alone = {name for name in bounds if name.removesuffix("_max") not in families}
        assert alone == {"pegaskv_hello_bytes_max"}
        assert len(bounds) >= 20
    finally:
        status, out, err = running.stop()
    assert status == 0
    assert out == ""
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_stop_cleanly(server: Running, number: int) -> None:
    assert server.ready.endswith("(http none)\n")
    assert server.stop(number)[0] == 0


def test_a_stopped_server_starts_again_on_its_data(server: Running, data: str) -> None:
    assert server.stop()[0] == 0
    again = Running("--data", data, "--listen", server.address, "--http", "none")
    assert again.address == server.address
    assert again.stop()[0] == 0


def test_what_the_server_makes_is_for_its_user_alone(server: Running, data: str) -> None:
    seen = 0
    for path in [Path(data), *Path(data).rglob("*")]:
        seen += 1
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert seen > 5


def test_without_a_directory_the_data_go_to_the_users_own(tmp_path: Path) -> None:
    running = Running(
        *("--listen", "127.0.0.1:0", "--http", "none"), XDG_DATA_HOME=str(tmp_path / "xdg")
    )
    assert running.stop()[0] == 0
    assert (tmp_path / "xdg" / "pegaskv" / "standalone" / "FORMAT").exists()


def test_without_a_home_the_server_asks_for_a_directory() -> None:
    _, err = run("standalone", status=2, HOME="", XDG_DATA_HOME="")
    assert "--data" in one_line(err)


def test_flags_win_over_the_file(tmp_path: Path, data: str) -> None:
    taken = free_port()
    config = tmp_path / "pegaskv.toml"
    config.write_text(
        f'[server]\nlisten = "127.0.0.1:{taken}"\nhttp = "none"\n[log]\nformat = "json"\n'
    )
    running = Running("--config", str(config), "--data", data, "--listen", "127.0.0.1:0")
    assert not running.address.endswith(f":{taken}")
    status, _, err = running.stop()
    assert status == 0
    events = [json.loads(line) for line in err.splitlines()]
    assert {"time", "level", "logger", "message"} <= set(events[0])


def test_a_closed_stdout_does_not_stop_the_server(data: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    port = free_port()
    with subprocess.Popen(
        command(*("standalone", "--data", data, "--listen", f"127.0.0.1:{port}", "--http", "none")),
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        os.close(writing)

        def listening() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listening)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 0


# Failures to start.


def test_a_taken_port_is_status_3(server: Running, tmp_path: Path) -> None:
    _, err = run(
        *("standalone", "--data", str(tmp_path / "other")),
        *("--listen", server.address, "--http", "none"),
        status=3,
    )
    line = one_line(err)
    assert server.address in line
    assert "in use" in line
    assert "--listen" in line


def test_a_taken_http_port_is_status_3(server: Running, tmp_path: Path) -> None:
    _, err = run(
        *("standalone", "--data", str(tmp_path / "other")),
        *("--listen", "127.0.0.1:0", "--http", server.address),
        status=3,
    )
    assert "--http" in one_line(err)


def test_a_port_that_was_taken_leaves_the_data_usable(server: Running, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    run("standalone", "--data", other, "--listen", server.address, "--http", "none", status=3)
    running = Running("--data", other, "--listen", "127.0.0.1:0", "--http", "none")
    assert running.stop()[0] == 0


def test_a_locked_directory_is_status_4(server: Running, data: str) -> None:
    _, err = run(
        "standalone", "--data", data, "--listen", "127.0.0.1:0", "--http", "none", status=4
    )
    line = one_line(err)
    assert data in line
    assert str(server.process.pid) in line


def test_a_directory_of_another_format_is_status_4_and_is_not_touched(
    server: Running, data: str
) -> None:
    server.stop()
    path = Path(data) / "FORMAT"
    text = path.read_text()
    path.write_text(text.replace("format 1", "format 99"))
    before = {each: each.stat().st_mtime_ns for each in Path(data).rglob("*")}
    _, err = run("standalone", "--data", data, "--listen", "127.0.0.1:0", status=4)
    assert "format 99" in one_line(err)
    assert {each: each.stat().st_mtime_ns for each in Path(data).rglob("*")} == before


def test_a_directory_that_is_not_ours_is_status_4_and_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear")
    _, err = run("standalone", "--data", str(tmp_path), "--listen", "127.0.0.1:0", status=4)
    assert str(tmp_path) in one_line(err)
    assert [each.name for each in tmp_path.iterdir()] == ["letters"]


def test_a_file_in_the_place_of_the_directory_is_status_4(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    _, err = run("standalone", "--data", str(tmp_path / "data"), status=4)
    one_line(err)
    _, err = run("standalone", "--data", str(tmp_path / "data" / "below"), status=4)
    one_line(err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "nowhere"), ("--listen", "HOST:PORT")),
        (("--listen", "127.0.0.1:99999"), ("--listen", "HOST:PORT")),
        (("--http", "off"), ("--http", "HOST:PORT")),
        (("--listen", "192.0.2.1:34601"), ("192.0.2.1", "--listen")),
        (("--listen", "no-such-host.invalid:34601"), ("no-such-host.invalid", "--listen")),
        (("--data", ""), ("--data", "empty")),
        (("--config", "no-such.toml"), ("no-such.toml", "No such file")),
    ],
)
def test_flags_that_cannot_be_are_status_2(
    arguments: tuple[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    given = ("--data", str(tmp_path / "data"), "--http", "none", *arguments)
    _, err = run("standalone", *given, status=2)
    line = one_line(err)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[server]\nlisten_at = 'x:1'", ("`listen_at`", "[server]", "did you mean `listen`")),
        ("[serve]\n", ("[serve]", "[server]")),
        ("[replica]\nmin_free_percent = 'five'", ("[replica] min_free_percent", "whole number")),
        ("[server", ("TOML",)),
    ],
)
def test_a_wrong_file_is_status_2_with_its_name(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    config = tmp_path / "my.toml"
    config.write_text(text)
    _, err = run("standalone", "--config", str(config), status=2)
    line = one_line(err)
    assert str(config) in line
    for word in words:
        assert word in line


def test_a_failure_is_one_object_when_logs_are_json(tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("dear")
    _, err = run("standalone", "--data", str(tmp_path), "--log-format", "json", status=4)
    last = json.loads(err.splitlines()[-1])
    assert last["level"] == "error"
    assert str(tmp_path) in last["message"]


def test_control_characters_in_a_name_are_escaped(tmp_path: Path) -> None:
    _, err = run("standalone", "--data", str(tmp_path / "\x1b[31mred"), "--listen", "x", status=2)
    assert "\x1b" not in err
    (tmp_path / "a\x1bb").write_text("")
    _, err = run("standalone", "--data", str(tmp_path / "a\x1bb"), status=4)
    assert "\x1b" not in err


# Few files.


def test_a_server_with_few_files_warns_and_refuses_politely(data: str) -> None:
    arguments = command("standalone", "--data", data, "--listen", "127.0.0.1:0", "--http", "none")
    with subprocess.Popen(
        ["/bin/sh", "-c", 'ulimit -n 128 && exec "$@"', "sh", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    ) as process:
        assert process.stdout is not None
        match = READY.fullmatch(process.stdout.readline())
        assert match is not None
        host, port = match[1].split(":")
        peers = [socket.create_connection((host, int(port)), timeout=10) for _ in range(100)]
        # The last is over the share of files that connections have: it is told so.
        told = peers[-1].recv(1_000)
        assert b"server has its 44 connections" in told
        for peer in peers:
            peer.close()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "only 128 files" in err


def test_a_server_with_hardly_any_file_says_so_and_does_not_start(data: str) -> None:
    arguments = command("standalone", "--data", data, "--listen", "127.0.0.1:0")
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -n 32 && exec "$@"', "sh", *arguments],
        capture_output=True,
        timeout=30,
        text=True,
        env=environment(),
    )
    assert done.returncode == 1
    assert (
        one_line(done.stderr)
        == (
            "pegaskv: the process may have only 32 files open, and needs 48 at least "
            "(raise it by ulimit -n)\n"
        ).rstrip()
    )


# A disk that does not take what is written.


def test_a_disk_that_refuses_the_first_files_is_status_4(data: str) -> None:
    """RLIMIT_FSIZE stands in for a full disk: no file may grow beyond it."""
    arguments = command("standalone", "--data", data, "--listen", "127.0.0.1:0", "--http", "none")
    done = subprocess.run(
        ["/bin/sh", "-c", 'ulimit -f 64 && exec "$@"', "sh", *arguments],
        capture_output=True,
        timeout=30,
        text=True,
        # Not half of the compiled modules, which every later start would trip over.
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
    )
    assert done.returncode == 4, done.stderr
    assert "Traceback" not in done.stderr
    assert data in one_line(done.stderr)
    running = Running("--data", data, "--listen", "127.0.0.1:0", "--http", "none")
    assert running.stop()[0] == 0


def test_a_log_that_cannot_be_written_ends_the_server_and_nothing_acknowledged_is_lost(
    server: Running, data: str
) -> None:
    with pegaskv.blocking.connect(server.address, timeout=5.0) as client:
        client.admin.create_table("t", partition_count=2)
        client.table("t").set(b"before", b"", b"1")
        # A scan has every engine take what is committed: the log alone has writing to do.
        assert client.table("t").count() == 1
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (1, 1))
        with pytest.raises(pegaskv.errors.PegasKVError):
            client.table("t").set(b"after", b"", b"2", timeout=1.0)
    _, err = server.process.communicate(timeout=20)
    assert server.process.returncode == 1
    assert "Traceback" not in err
    assert "nothing that was acknowledged is lost" in one_line(err)
    again = Running("--data", data, "--listen", "127.0.0.1:0", "--http", "none")
    with pegaskv.blocking.connect(again.address) as client:
        assert client.table("t").get(b"before", b"") == b"1"
    assert again.stop()[0] == 0
