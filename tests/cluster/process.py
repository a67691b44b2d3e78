"""A real server as a child process: start, kill, start again."""

import contextlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ServerProcess", "running_server"]

READY_S = 40.0


class ServerProcess:
    """`pegaskv ROLE` on a directory; it keeps its ports over a restart."""

    def __init__(
        self,
        directory: Path,
        *,
        arguments: tuple[str, ...] = (),
        http: bool = False,
        config: str = "",
        prefix: tuple[str, ...] = (),
        role: str = "standalone",
        address: str = "127.0.0.1:0",
    ) -> None:
        self.role = role
        self.directory = directory
        self.address = address
        self.http = "127.0.0.1:0" if http else "none"
        self.arguments = arguments
        self.prefix = prefix
        self.log_path = directory / "server.log"
        self.process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        if config:
            (directory / "pegaskv.toml").write_text(config)
            self.arguments += ("--config", str(directory / "pegaskv.toml"))

    def command(self) -> list[str]:
        return [
            *self.prefix,
            sys.executable,
            *("-m", "pegaskv", self.role),
            *("--data", str(self.directory / "data")),
            *("--listen", self.address, "--http", self.http),
            *self.arguments,
        ]

    def start(self) -> float:
        """Start; return the seconds until the ready line."""
        began = time.monotonic()
        self.begin()
        self.await_ready()
        return time.monotonic() - began

    def begin(self) -> None:
        """Start, and do not wait."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log)

    def await_ready(self) -> None:
        """Wait for the ready line."""
        line = self._first_line()
        assert line.startswith(f"pegaskv {self.role} ready on "), f"{line!r}\n{self.log()}"
        words = line.split()
        self.address = words[4]
        self.http = words[6].rstrip(")")

    def _first_line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], READY_S)
        assert readable, f"no ready line within {READY_S} s\n{self.log()}"
        return self.process.stdout.readline().decode()

    def kill(self) -> None:
        """SIGKILL, and wait."""
        self.signal(signal.SIGKILL)
        self.ended()

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        self.signal(signal.SIGTERM)
        return self.ended()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self) -> int:
        """Wait for the end; return the exit status."""
        assert self.process is not None
        status = self.process.wait(timeout=30)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""


@contextlib.contextmanager
def running_server(directory: Path, **options: object) -> Iterator[ServerProcess]:
    """A server that is started here and ended here, whatever happens."""
    server = ServerProcess(directory, **options)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        if server.running:
            server.kill()
