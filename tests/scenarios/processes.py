"""A replicated cluster of real processes: one meta server and some replica servers.

Each keeps its directory and its ports, so that it can be killed and started again, alone or
with all others.
"""

import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.process import ServerProcess

__all__ = ["META", "ClusterProcess", "Member"]

META = "meta"
_READY_S = 40.0
_FAST = """
[meta]
replica_assign_delay_ms = 1000
balance_settle_ms = 60000
"""


class Member(ServerProcess):
    """One process of a cluster; `metas` is where a replica server finds its meta server."""

    def __init__(self, directory: Path, role: str, *, metas: str = "", config: str = "") -> None:
        super().__init__(directory, config=config)
        self.role = role
        self.metas = metas

    def command(self) -> list[str]:
        metas = ("--meta", self.metas) if self.metas else ()
        return [
            *(sys.executable, "-m", "pegaskv", self.role),
            *("--data", str(self.directory / "data")),
            *("--listen", self.address, "--http", self.http),
            *metas,
            *self.arguments,
        ]

    def launch(self) -> None:
        """Start the process, and do not wait until it is ready."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log)

    def await_ready(self) -> None:
        """Wait for the ready line."""
        assert self.process is not None
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], _READY_S)
        assert readable, f"no ready line within {_READY_S} s\n{self.log()}"
        line = self.process.stdout.readline().decode()
        assert line.startswith(f"pegaskv {self.role} ready on "), f"{line!r}\n{self.log()}"
        self.address = line.split()[4]

    def start(self) -> float:
        began = time.monotonic()
        self.launch()
        self.await_ready()
        return time.monotonic() - began


class ClusterProcess:
    """All processes of a cluster, by name: `meta`, `replica1`, ..."""

    def __init__(self, directory: Path, replicas: int, *, config: str = "") -> None:
        self._directory = directory
        self._config = config + _FAST
        self.members: dict[str, Member] = {
            META: Member(directory / META, META, config=self._config)
        }
        for number in range(1, replicas + 1):
            self.add(f"replica{number}")

    def add(self, name: str) -> Member:
        """One more replica server, which is not started."""
        member = Member(self._directory / name, "replica", config=self._config)
        self.members[name] = member
        return member

    @property
    def meta(self) -> Member:
        """The meta server."""
        return self.members[META]

    @property
    def replicas(self) -> list[str]:
        """The names of the replica servers."""
        return [name for name in self.members if name != META]

    @property
    def address(self) -> str:
        """Where clients come."""
        return self.meta.address

    @property
    def running(self) -> bool:
        """Whether any process runs."""
        return any(member.running for member in self.members.values())

    def start(self, names: Sequence[str] = ()) -> float:
        """Start those that do not run (or the named ones); return the seconds until all serve."""
        began = time.monotonic()
        wanted = [name for name in names or self.members if not self.members[name].running]
        if META in wanted:
            self.meta.start()
        others = [self.members[name] for name in wanted if name != META]
        for member in others:
            member.metas = self.address
            member.launch()
        for member in others:
            member.await_ready()
        return time.monotonic() - began

    def kill(self, *names: str) -> None:
        """SIGKILL for all processes, or for the named ones."""
        for name in names or self.members:
            if self.members[name].running:
                self.members[name].kill()

    def signal(self, number: int, *names: str) -> None:
        """Send a signal to all processes, or to the named ones."""
        for name in names or self.members:
            self.members[name].signal(number)

    def log(self) -> str:
        """What all of them logged."""
        return "\n".join(f"{name}:\n{one.log()}" for name, one in self.members.items())
