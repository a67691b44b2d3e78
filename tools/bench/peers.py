"""Peers to compare with, as processes on free ports.

A peer's binary is taken from PATH, else unpacked from its Debian package into
`.cache/`; nothing is installed, and no service is started.
"""

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.bench.processes import free_port, running

__all__ = [
    "NO_ETCD",
    "NO_REDIS",
    "Peer",
    "RestartableRedis",
    "etcd_server",
    "etcd_version",
    "leave_out",
    "redis_server",
    "redis_version",
]

CACHE = Path(__file__).resolve().parents[2] / ".cache"

NO_REDIS: Final = "Redis is left out: there is no redis-server on PATH and no Debian package of it."
NO_ETCD: Final = "etcd is left out: there is no etcd on PATH and no Debian package of it."

_REDIS: Final = (
    "redis-server",
    ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "liblua5.1-0", "libhiredis0.14"),
)
_ETCD: Final = ("etcd", ("etcd-server",))


@dataclass(frozen=True)
class Peer:
    """A peer that runs."""

    port: int
    pid: int


_left_out = False


def leave_out() -> None:
    """From now on there are no peers, whatever could be had."""
    global _left_out
    _left_out = True
    _find_binary.cache_clear()


@functools.cache
def _find_binary(name: str, packages: tuple[str, ...]) -> list[str] | None:
    """Return the command that runs `name`, or None when it cannot be had here."""
    if _left_out:
        return None
    found = shutil.which(name)
    if found:
        return [found]
    root = CACHE / name
    if not root.exists() and not _unpack(packages, root):
        return None
    binaries = sorted(root.rglob(f"bin/{name}"))
    if not binaries:
        return None
    libraries = ":".join(str(path) for path in sorted(root.glob("usr/lib/*")) if path.is_dir())
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(binaries[0])]


def _unpack(packages: tuple[str, ...], root: Path) -> bool:
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return False
    with tempfile.TemporaryDirectory() as download:
        done = subprocess.run(
            ["apt-get", "download", *packages], cwd=download, capture_output=True, check=False
        )
        if done.returncode:
            return False
        partial = root.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for archive in sorted(Path(download).glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(archive), str(partial)], check=True)
        partial.rename(root)
    return True


def _version(command: list[str] | None, pattern: str) -> str | None:
    if command is None:
        return None
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    found = re.search(pattern, done.stdout)
    return found[1] if found else "of unknown version"


def redis_version() -> str | None:
    """The version of the Redis that is measured, or None when there is none."""
    return _version(_find_binary(*_REDIS), r"v=(\S+)")


def etcd_version() -> str | None:
    """The version of the etcd that is measured, or None when there is none."""
    return _version(_find_binary(*_ETCD), r"etcd Version: (\S+)")


@contextlib.contextmanager
def redis_server(*, appendfsync: str | None = None) -> Iterator[Peer | None]:
    """Yield a Redis, or None when there is none to be had."""
    command = _find_binary(*_REDIS)
    if command is None:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-redis-") as directory:
        durable = ["--appendonly", "no"]
        if appendfsync is not None:
            durable = ["--appendonly", "yes", "--appendfsync", appendfsync]
        started = running(
            [
                *command,
                *("--port", str(port), "--bind", "127.0.0.1"),
                *("--save", "", "--dir", directory),
                *durable,
            ],
            port,
        )
        with started as pid:
            yield Peer(port, pid)


class RestartableRedis:
    """A Redis with an append-only file in a directory that outlives it."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._pid: int | None = None

    def start(self) -> None:
        """Start; it listens afterwards, and may still be loading."""
        command = _find_binary(*_REDIS)
        assert command is not None
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        self._pid = self._stack.enter_context(running([*command, *where, *durable], self.port))

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)
            self._pid = None
            self._stack.close()


@contextlib.contextmanager
def etcd_server() -> Iterator[Peer | None]:
    """Yield an etcd of one member, or None when there is none to be had."""
    command = _find_binary(*_ETCD)
    if command is None:
        yield None
        return
    port = free_port()
    client, member = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="bench-etcd-") as directory:
        started = running(
            [
                *command,
                *("--data-dir", directory, "--name", "bench", "--log-level", "error"),
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", member, "--initial-advertise-peer-urls", member),
                *("--initial-cluster", f"bench={member}"),
            ],
            port,
        )
        with started as pid:
            yield Peer(port, pid)
