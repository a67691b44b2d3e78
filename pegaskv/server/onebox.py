"""`pegaskv onebox`: a whole cluster on this machine, to develop and test against.

Its servers are real processes that outlive the command; what they are, where they listen and
which process each is stands in `onebox.json` of the cluster's directory, beside a directory
for each server:

```
onebox.json        the servers: names, addresses, processes
replica2/data/     the data directory of one
replica2/log       what it logs, over all its starts
replica2/out       its ready line
```

Only processes that were started from this directory are ever signalled. Every failure ends
in a sentence that says what to do, and the servers that run go on.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pegaskv.base.errors import ConfigurationError, PegasKVError
from pegaskv.server.child_processes import Child, ChildProcesses, Identity
from pegaskv.server.config import read_config
from pegaskv.storage.disk import DiskLock
from pegaskv.storage.local_disk import LocalDisk

__all__ = ["Onebox", "OneboxError", "Server", "run_onebox"]

_STATE_FILE: Final = "onebox.json"
_FORMAT: Final = 1
_REPLICAS: Final = 3
_REPLICAS_MAX: Final = 32
# Where the servers of a kind listen: the first port for clients, and for metrics and health.
_PORTS: Final = {"meta": (34_601, 34_101), "replica": (34_801, 34_201)}
_READY_S: Final = 60.0
# A stop hands over, answers and flushes first.
_STOP_S: Final = 40.0
_KILL_S: Final = 10.0
_REASON_CHARACTERS_MAX: Final = 60


class OneboxError(PegasKVError):
    """It cannot be done, for this reason; `status` is the exit status."""

    def __init__(self, message: str, *, hint: str = "", status: int = 1) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """One server; `process` is the last that was started. `stopped`: it was told to end."""

    name: str
    role: str
    listen: str
    http: str
    process: Identity | None = None
    stopped: bool = False


@dataclass(slots=True)
class _State:
    servers: dict[str, Server] = field(default_factory=dict)
    config: str = ""

    def encode(self) -> bytes:
        servers = [asdict(server) for server in self.servers.values()]
        text = json.dumps({"format": _FORMAT, "config": self.config, "servers": servers}, indent=1)
        return text.encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> "_State":
        """Raises ValueError, KeyError or TypeError: it is no state of ours."""
        fields: dict[str, Any] = json.loads(data)
        if fields["format"] != _FORMAT:
            raise ValueError(f"format {fields['format']}")
        state = cls(config=str(fields["config"]))
        for one in fields["servers"]:
            process = one.pop("process")
            server = Server(**one, process=None if process is None else Identity(**process))
            state.servers[server.name] = server
        return state


class Onebox:
    """The cluster of one directory. `say` gets the lines for the reader."""

    def __init__(self, path: Path, say: Any = print) -> None:
        self.path = path
        self._say = say
        self._disk = LocalDisk()
        self._processes = ChildProcesses(self._disk)
        self._state = _State()
        self._lock: DiskLock | None = None

    # The commands.

    def start(self, *, replicas: int | None, metas: int | None, config: Path | None) -> None:
        """Start all servers that do not run, and wait until they are ready.

        Raises:
            OneboxError: one did not become ready; the others run.

        """
        _check_counts(replicas, metas)
        self._take(make=True)
        if config is not None:
            for role in _PORTS:
                read_config(self._disk, config, role)
            self._state.config = str(config)
        before = len(self._state.servers)
        self._add_servers(replicas)
        idle = [one for one in self._state.servers.values() if not self._runs(one)]
        if not idle:
            self._say(f"All {before} servers run already.")
        else:
            names = ", ".join(server.name for server in idle)
            self._say(f"Starting {names} in {self.path}")
            self._start(idle)
            self._say("The cluster is ready.")
        metas_at = self._metas
        self._say(f"Connect by: pegaskv-shell --cluster {metas_at}")

    def stop(self) -> None:
        """End all servers cleanly: replica servers together, then the meta server.

        They all go, so nobody takes over from anybody, and the next start finds every
        partition as it was.
        """
        self._take()
        for role in ("replica", "meta"):
            running = [
                one for one in self._state.servers.values() if one.role == role and self._runs(one)
            ]
            for server in running:
                self._note(replace(server, stopped=True))
                assert server.process is not None
                self._processes.interrupt(server.process)
            for server in running:
                self._await_end(server, _STOP_S)
                self._say(f"{server.name} has stopped")
        self._say(f"The onebox in {self.path} is stopped; `pegaskv onebox start` goes on with it.")

    def show(self) -> None:
        """Show all servers."""
        self._take()
        rows = [("NAME", "PID", "ADDRESS", "HTTP", "STATE", "UPTIME")]
        for server in self._state.servers.values():
            state, uptime = self._condition(server)
            running = server.process is not None and uptime
            pid = str(server.process.pid) if server.process is not None and running else "-"
            rows.append((server.name, pid, server.listen, server.http, state, uptime or "-"))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self._say("  ".join(cells).rstrip())

    def kill(self, name: str) -> None:
        """End one server as a crash would."""
        self._take()
        server = self._server(name)
        if server.process is None or not self._runs(server):
            raise OneboxError(f"{name} does not run", hint=f"`pegaskv onebox restart {name}`")
        self._note(replace(server, stopped=True))
        self._processes.kill(server.process)
        self._await_end(server, _KILL_S)
        self._say(f"{name} was killed; `pegaskv onebox restart {name}` starts it again.")

    def restart(self, name: str) -> None:
        """Stop one server, letting others take over, and start it again."""
        self._take()
        server = self._server(name)
        if server.process is not None and self._runs(server):
            self._processes.terminate(server.process)
            self._await_end(server, _STOP_S)
            self._say(f"{name} has stopped")
        self._start([server])

    def clear(self, *, yes: bool) -> None:
        """Remove everything that was made here."""
        self._take()
        running = [one.name for one in self._state.servers.values() if self._runs(one)]
        if running:
            raise OneboxError(
                f"{', '.join(running)} run: nothing was removed", hint="`pegaskv onebox stop` first"
            )
        if not yes:
            count = len(self._state.servers)
            question = f"Remove the data and logs of {count} servers in {self.path}? [y/N] "
            if not sys.stdin.isatty():
                raise OneboxError("nothing was removed", hint="say --yes to remove it", status=2)
            if input(question).strip().lower() not in ("y", "yes"):
                self._say("Nothing was removed.")
                return
        for name in self._state.servers:
            self._disk.remove_tree(self.path / name)
        self._disk.unlink(self.path / _STATE_FILE, missing_ok=True)
        self._disk.unlink(self.path / "lock", missing_ok=True)
        if not self._disk.list(self.path):
            self._disk.remove_tree(self.path)
        self._say(f"The onebox in {self.path} is gone.")

    def close(self) -> None:
        """Let others command it."""
        if self._lock is not None:
            self._lock.release()

    # Its state.

    def _take(self, *, make: bool = False) -> None:
        """Lock the directory and read what is in it."""
        file = self.path / _STATE_FILE
        if not self._disk.exists(file):
            if not make:
                raise OneboxError(
                    f"there is no onebox in {self.path}",
                    hint="`pegaskv onebox start` makes one; --dir names another directory",
                )
            if self._disk.exists(self.path) and set(self._disk.list(self.path)) - {"lock"}:
                raise OneboxError(
                    f"{self.path} is not empty, and holds no onebox",
                    hint="--dir names a directory of its own",
                )
            self._disk.make_dirs(self.path)
        try:
            self._lock = self._disk.lock(self.path / "lock")
        except BlockingIOError:
            raise OneboxError(
                f"another command is at work on the onebox in {self.path}",
                hint="try again when it has ended",
            ) from None
        if self._disk.exists(file):
            try:
                self._state = _State.decode(self._disk.read_bytes(file))
            except (ValueError, KeyError, TypeError) as error:
                raise OneboxError(
                    f"{file} cannot be read: {error}",
                    hint="end its servers by hand, then remove the directory",
                ) from None

    def _note(self, server: Server) -> None:
        self._state.servers[server.name] = server
        self._save()

    def _save(self) -> None:
        self._disk.write_atomic(self.path / _STATE_FILE, self._state.encode())

    def _server(self, name: str) -> Server:
        server = self._state.servers.get(name)
        if server is None:
            known = ", ".join(self._state.servers)
            raise OneboxError(f"there is no server {name!r}", hint=f"there are {known}", status=2)
        return server

    @property
    def _metas(self) -> str:
        return ",".join(one.listen for one in self._state.servers.values() if one.role == "meta")

    def _add_servers(self, replicas: int | None) -> None:
        """Give names and ports to the servers that are new."""
        servers = self._state.servers
        there = sum(one.role == "replica" for one in servers.values())
        wanted = replicas if replicas is not None else there or _REPLICAS
        if wanted < there:
            raise OneboxError(
                f"this onebox has {there} replica servers already",
                hint="`pegaskv onebox kill NAME` ends one of them",
                status=2,
            )
        new = [("meta", 1)] if not servers else []
        new += [("replica", number) for number in range(there + 1, wanted + 1)]
        if not new:
            return
        ports = [base and base + number - 1 for role, number in new for base in _PORTS[role]]
        taken = {address for one in servers.values() for address in (one.listen, one.http)}
        wishes = [0 if f"127.0.0.1:{port}" in taken else port for port in ports]
        found = iter(self._processes.free_ports(wishes))
        for role, number in new:
            listen, http = (f"127.0.0.1:{next(found)}" for _ in range(2))
            name = f"{role}{number}"
            servers[name] = Server(name, role, listen, http)
        self._save()

    # Its processes.

    def _runs(self, server: Server) -> bool:
        return server.process is not None and self._processes.lives(server.process)

    def _start(self, servers: Sequence[Server]) -> None:
        """Start servers together, and wait until each is ready."""
        children: dict[str, Child] = {}
        try:
            for server in servers:
                directory = self.path / server.name
                self._disk.make_dirs(directory)
                child = children[server.name] = self._processes.start(
                    self._command(server), out=directory / "out", log=directory / "log"
                )
                self._note(replace(server, process=child.identity, stopped=False))
            for name, child in children.items():
                self._await_ready(self._state.servers[name], child)
        finally:
            for child in children.values():
                child.let_go()

    def _command(self, server: Server) -> list[str]:
        command = [sys.executable, "-m", "pegaskv", server.role]
        if self._state.config:
            command += ["--config", self._state.config]
        command += ["--data", str(self.path / server.name / "data")]
        command += ["--listen", server.listen, "--http", server.http]
        if server.role == "replica":
            command += ["--meta", self._metas]
        return command

    def _await_ready(self, server: Server, child: Child) -> None:
        log = self.path / server.name / "log"
        self._processes.wait_until(
            lambda: self._is_ready(server) or child.status is not None, limit_s=_READY_S
        )
        if child.status is not None:
            raise OneboxError(
                f"{server.name} ended with status {child.status}: {self._last_words(log)}",
                hint=f"its log is {log}; the other servers run",
            )
        if not self._is_ready(server):
            raise OneboxError(
                f"{server.name} is not ready after {_READY_S:g} s: {self._last_words(log)}",
                hint=f"its log is {log}; it goes on trying",
            )
        self._say(
            f"{server.name} is ready on {server.listen} "
            f"(http {server.http}, pid {child.identity.pid})"
        )

    def _await_end(self, server: Server, limit_s: float) -> None:
        if not self._processes.wait_until(lambda: not self._runs(server), limit_s=limit_s):
            assert server.process is not None
            raise OneboxError(
                f"{server.name} (pid {server.process.pid}) has not ended after {limit_s:g} s",
                hint=f"its log is {self.path / server.name / 'log'}; "
                f"`pegaskv onebox kill {server.name}` ends it at once",
            )

    def _is_ready(self, server: Server) -> bool:
        out = self.path / server.name / "out"
        return self._disk.exists(out) and b" ready on " in self._disk.read_bytes(out)

    def _last_words(self, log: Path) -> str:
        lines = self._disk.read_bytes(log).decode(errors="replace").splitlines()
        said = [line for line in lines if line.startswith("pegaskv: ")] or lines
        return said[-1].removeprefix("pegaskv: ") if said else "it said nothing"

    def _condition(self, server: Server) -> tuple[str, str]:
        """Return what is shown of a server's state, and for how long it has run, or ""."""
        if server.process is None:
            return "never started", ""
        if not self._runs(server):
            if server.stopped:
                return "stopped", ""
            return f"has ended, see {self.path / server.name / 'log'}", ""
        uptime = _duration(self._processes.age_s(server.process))
        if not self._is_ready(server):
            return "starting", uptime
        reasons = self._processes.health(server.http)
        if reasons is None:
            return "does not answer", uptime
        if not reasons:
            return "ready", uptime
        reason = reasons[0]
        if len(reason) > _REASON_CHARACTERS_MAX:
            reason = reason[: _REASON_CHARACTERS_MAX - 3] + "..."
        return f"not well: {reason}", uptime


def run_onebox(arguments: argparse.Namespace) -> int:
    """Do what the command line says; return the exit status."""
    onebox: Onebox | None = None
    try:
        onebox = Onebox(_directory(arguments.dir), _print)
        match arguments.action:
            case "start":
                config = arguments.config
                onebox.start(
                    replicas=arguments.replica,
                    metas=arguments.meta,
                    config=None if config is None else config.absolute(),
                )
            case "stop":
                onebox.stop()
            case "list":
                onebox.show()
            case "kill":
                onebox.kill(arguments.name)
            case "restart":
                onebox.restart(arguments.name)
            case "clear":
                onebox.clear(yes=arguments.yes)
    except OneboxError as error:
        return _fail(str(error), error.status)
    except ConfigurationError as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"the onebox cannot be used: {error}", 1)
    except KeyboardInterrupt:
        return _fail("interrupted: servers that were started go on (`pegaskv onebox list`)", 1)
    finally:
        if onebox is not None:
            onebox.close()
    return 0


def _check_counts(replicas: int | None, metas: int | None) -> None:
    if replicas is not None and not 1 <= replicas <= _REPLICAS_MAX:
        raise OneboxError(f"--replica: must be from 1 to {_REPLICAS_MAX}", status=2)
    if metas not in (None, 1):
        raise OneboxError("--meta: a onebox has one meta server in this version", status=2)


def _directory(given: str | None) -> Path:
    if given is not None:
        if not given:
            raise OneboxError("--dir: is empty", hint="give the path of a directory", status=2)
        return Path(given).absolute()
    base = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(base):
        home = os.environ.get("HOME", "")
        if not os.path.isabs(home):
            raise OneboxError(
                "there is no home directory to keep a onebox in", hint="say --dir DIR", status=2
            )
        base = os.path.join(home, ".local", "state")
    return Path(base) / "pegaskv" / "onebox"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if whole >= length:
            smaller = {"d": ("h", 3_600), "h": ("m", 60), "m": ("s", 1)}[unit]
            return f"{whole // length}{unit} {whole % length // smaller[1]}{smaller[0]}"
    return f"{whole}s"


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _fail(text: str, status: int) -> int:
    sys.stderr.write(f"pegaskv: {text}\n")
    return status
