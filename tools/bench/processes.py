"""Servers under measurement as processes: started on free ports, always ended by their id."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = [
    "Server",
    "calm",
    "cpu_seconds",
    "free_port",
    "pegaskv_server",
    "resident_bytes",
    "running",
]

_READY_S: Final = 120.0
# However much a server has left to compact.
_CALM_S: Final = 120.0
_CALM_LOOK_S: Final = 0.5
_CLOCK_TICKS: Final = 100


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in use (RSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1_024
    raise SystemExit(f"process {pid} has ended")


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS


async def calm(server: "Server") -> None:
    """Wait until a server has nothing to do in the background."""
    before = cpu_seconds(server.pid)
    for _ in range(int(_CALM_S / _CALM_LOOK_S)):
        await asyncio.sleep(_CALM_LOOK_S)
        after = cpu_seconds(server.pid)
        if after - before < 0.05:
            return
        before = after
    raise SystemExit(f"a server still works {_CALM_S:.0f} s after its last request")


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[int]:
    """Run `command` until the end of the block; yield its id once it listens on `port`."""
    # A session of its own: Ctrl-C is for the bench, which then ends the process here.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[0]} does not listen on {port}") from None
                time.sleep(0.02)
        yield process.pid
    finally:
        _end(process)


@dataclass
class Server:
    """A server on a directory; it keeps its ports over a restart."""

    directory: Path
    config: str
    listen: str = "127.0.0.1:0"
    http: str = "none"
    role: str = "standalone"
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> float:
        """Start; return the seconds until the ready line."""
        began = time.perf_counter()
        self.begin()
        self.await_ready()
        return time.perf_counter() - began

    def begin(self) -> None:
        """Start, and do not wait."""
        config = self.directory / "pegaskv.toml"
        config.write_text(self.config)
        with (self.directory / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pegaskv", self.role, "--config", str(config)),
                    *("--data", str(self.directory / "data")),
                    *("--listen", self.listen, "--http", self.http),
                    *self.arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def await_ready(self) -> None:
        """Return when it has said that it is ready."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        if " ready on " not in line:
            raise SystemExit(f"the server did not start:\n{self.log()}")
        words = line.split(" ready on ")[1].split()
        self.listen = words[0]
        self.http = words[2].rstrip(")")

    def kill(self) -> None:
        """SIGKILL: no time to save anything."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        _end(self.process)

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None:
            _end(self.process)

    def log(self) -> str:
        """What it wrote to stderr."""
        return (self.directory / "server.log").read_text()

    @property
    def port(self) -> int:
        """The port for clients."""
        return int(self.listen.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self.process is not None
        return self.process.pid

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by name (with labels as they are written there)."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as reply:
            text = reply.read().decode()
        pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


@contextlib.contextmanager
def pegaskv_server(
    *, cluster: str = "bench", cluster_id: int = 1, http: bool = False, config: str = ""
) -> Iterator[Server]:
    """Yield a standalone server on an empty directory; `config` is more of its configuration."""
    with tempfile.TemporaryDirectory(prefix="bench-pegaskv-") as directory:
        server = Server(
            Path(directory),
            f'[cluster]\nname = "{cluster}"\nid = {cluster_id}\n{config}',
            http="127.0.0.1:0" if http else "none",
        )
        try:
            server.start()
            yield server
        finally:
            server.stop()
