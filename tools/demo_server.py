"""A standalone server as a child process of the demonstration."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Server"]


@dataclass
class Server:
    """A standalone server as a process; it keeps its ports and its directory over a restart."""

    directory: Path
    name: str = "alpha"
    cluster_id: int = 1
    listen: str = "127.0.0.1:0"
    process: subprocess.Popen[str] | None = None
    log: list[str] = field(default_factory=list)

    def start(self) -> float:
        """Start and return the seconds until the ready line."""
        began = time.perf_counter()
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "pegaskv.toml"
        config.write_text(f'[cluster]\nname = "{self.name}"\nid = {self.cluster_id}\n')
        with (self.directory / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "pegaskv",
                    "standalone",
                    "--config",
                    str(config),
                    "--data",
                    str(self.directory / "data"),
                    "--listen",
                    self.listen,
                    "--http",
                    "none",
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if " ready on " not in line:
            raise SystemExit(
                f"the server did not start: {(self.directory / 'server.log').read_text()}"
            )
        self.listen = line.split(" ready on ")[1].split()[0]
        return time.perf_counter() - began

    def kill(self) -> None:
        """SIGKILL: no time to save anything."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._close_pipe()

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        if self.process is None or self.process.poll() is not None:
            return 0
        self.process.terminate()
        status = self.process.wait(timeout=20)
        self._close_pipe()
        return status

    def _close_pipe(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
