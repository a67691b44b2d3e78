"""Processes of this machine, for `pegaskv onebox`: start one, know it again, signal it.

A process is known by its number, the time of its start and the boot of the machine: a number
alone is given to others again, and whoever ends a process that it did not start does harm.
Nothing here is used by a server, and nothing of it is simulated.
"""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pegaskv.storage.disk import Disk
from pegaskv.storage.local_disk import LocalDisk

__all__ = ["Child", "ChildProcesses", "Identity"]

_POLL_S: Final = 0.02
_HEALTH_S: Final = 1.0
# In /proc/PID/stat, counted behind the name in brackets.
_STATE: Final = 0
_STARTED: Final = 19
_GONE: Final = ("Z", "X")
# Below what systems pick from for the near ends of connections.
_OTHER_PORTS: Final = range(20_000, 30_000)


@dataclass(frozen=True, slots=True)
class Identity:
    """Which process it is; `started` counts the kernel's ticks since the boot `boot`."""

    pid: int
    started: int
    boot: str


@dataclass(slots=True)
class Child:
    """A process that was just started. `status` is its exit status once it has ended."""

    identity: Identity
    process: "subprocess.Popen[bytes]"

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self.process.poll()

    def let_go(self) -> None:
        """It goes on without us: nobody waits for its end."""
        if self.process.returncode is None:
            self.process.returncode = 0


class ChildProcesses:
    """The doors to the machine."""

    def __init__(self, disk: Disk | None = None) -> None:
        self._disk = disk or LocalDisk()

    def start(self, command: Sequence[str], *, out: Path, log: Path) -> Child:
        """Start a process that outlives this one; `log` grows, `out` begins anew.

        Raises:
            OSError: it cannot be started.

        """
        with open(out, "wb") as out_file, open(log, "ab") as log_file:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=log_file,
                # Ctrl-C at this terminal is not meant for it.
                start_new_session=True,
            )
        found = self._look(process.pid)
        started = found[1] if found is not None else 0
        return Child(Identity(process.pid, started, self._disk.boot_id()), process)

    def lives(self, identity: Identity) -> bool:
        """Whether this very process runs."""
        if identity.boot != self._disk.boot_id():
            return False
        found = self._look(identity.pid)
        return found is not None and found[0] not in _GONE and found[1] == identity.started

    def age_s(self, identity: Identity) -> float:
        """How long ago it was started."""
        ticks = os.sysconf("SC_CLK_TCK")
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - identity.started / ticks)

    def interrupt(self, identity: Identity) -> None:
        """Ask for a clean stop in which nobody has to take over."""
        self._signal(identity, signal.SIGINT)

    def terminate(self, identity: Identity) -> None:
        """Ask for a clean stop."""
        self._signal(identity, signal.SIGTERM)

    def kill(self, identity: Identity) -> None:
        """End it at once."""
        self._signal(identity, signal.SIGKILL)

    def _signal(self, identity: Identity, number: signal.Signals) -> None:
        if self.lives(identity):
            with suppress(ProcessLookupError):
                os.kill(identity.pid, number)

    def wait_until(self, condition: Callable[[], bool], *, limit_s: float) -> bool:
        """Return when `condition()` holds, or when the time is over; whether it holds."""
        end = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() >= end:
                return False
            time.sleep(_POLL_S)
        return True

    def _look(self, pid: int) -> tuple[str, int] | None:
        """Return the state and the start of a process; None if there is none."""
        try:
            stat = self._disk.read_bytes(Path(f"/proc/{pid}/stat"))
        except OSError:
            return None
        # Its name stands in brackets, and may hold spaces and brackets itself.
        fields = stat.rpartition(b")")[2].split()
        return fields[_STATE].decode("ascii"), int(fields[_STARTED])

    def free_ports(self, wanted: Sequence[int]) -> list[int]:
        """Return these ports of 127.0.0.1; for each that is taken, another one that is free.

        Raises:
            OSError: there is none.

        """
        probes: list[socket.socket] = []
        # Not one that the system would pick: while its server is away, it might be given to the
        # near end of somebody's connection. Others look at the same time, so begin far from them.
        begin = _OTHER_PORTS.start + os.getpid() * 101 % len(_OTHER_PORTS)
        others = iter([*range(begin, _OTHER_PORTS.stop), *range(_OTHER_PORTS.start, begin)])
        # As long as nobody listens, one port may be bound twice.
        chosen = set(wanted)
        try:
            for port in wanted:
                probe = _bound(port) if port else None
                while probe is None:
                    other = next(others, None)
                    if other is None:
                        raise OSError("there is no free port on 127.0.0.1")
                    probe = None if other in chosen else _bound(other)
                probes.append(probe)
            return [int(probe.getsockname()[1]) for probe in probes]
        finally:
            for probe in probes:
                probe.close()

    def health(self, http: str) -> list[str] | None:
        """Return why a server is not well, by its /health; None when it does not say."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _AnyStatus())
        try:
            with opener.open(f"http://{http}/health", timeout=_HEALTH_S) as answer:
                said = json.load(answer)
        except (OSError, ValueError):
            return None
        reasons = said.get("reasons") if isinstance(said, dict) else None
        return [str(each) for each in reasons] if isinstance(reasons, list) else None


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """A server that is not well answers 503, and says why."""

    def http_response(self, request: object, response: object) -> object:
        return response


def _bound(port: int) -> socket.socket | None:
    probe = socket.socket()
    try:
        # As the servers do, so that a port that was in use a moment ago is none that is taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    except OSError:
        probe.close()
        return None
    return probe
