"""Peers to compare with, and our own server, as processes on free ports.

A peer's binary is taken from PATH, else unpacked from its Debian package into
`.cache/`; nothing is installed, and no service is started.
"""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["find_binary", "free_port", "pegaskv_server", "redis_server"]

CACHE = Path(__file__).resolve().parents[2] / ".cache"


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def find_binary(name: str, packages: list[str]) -> list[str] | None:
    """Return the command that runs `name`, or None when it cannot be had here."""
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


def _unpack(packages: list[str], root: Path) -> bool:
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


@contextlib.contextmanager
def _process(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command} does not listen on {port}") from None
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextlib.contextmanager
def redis_server(*, appendfsync: str | None = None) -> Iterator[int | None]:
    """Yield the port of a Redis, or None when there is none to be had."""
    command = find_binary(
        "redis-server",
        ["redis-server", "redis-tools", "libjemalloc2", "liblzf1", "liblua5.1-0", "libhiredis0.14"],
    )
    if command is None:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-redis-") as directory:
        durable = ["--appendonly", "no"]
        if appendfsync is not None:
            durable = ["--appendonly", "yes", "--appendfsync", appendfsync]
        with _process(
            [
                *command,
                *("--port", str(port), "--bind", "127.0.0.1"),
                *("--save", "", "--dir", directory),
                *durable,
            ],
            port,
        ):
            yield port


@contextlib.contextmanager
def pegaskv_server(*, cluster: str = "bench", cluster_id: int = 1) -> Iterator[int]:
    """Yield the port of a standalone server on an empty directory."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-pegaskv-") as directory:
        config = Path(directory) / "pegaskv.toml"
        config.write_text(f'[cluster]\nname = "{cluster}"\nid = {cluster_id}\n')
        with _process(
            [
                *(sys.executable, "-m", "pegaskv", "standalone", "--http", "none"),
                *("--data", f"{directory}/data", "--listen", f"127.0.0.1:{port}"),
                *("--config", str(config)),
            ],
            port,
        ):
            yield port
