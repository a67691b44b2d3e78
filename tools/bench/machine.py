"""What a run ran on: the machine, the interpreter, the libraries and the peers."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pegaskv.base.version import VERSION
from tools.bench.peers import etcd_version, redis_version

__all__ = ["describe"]

_LIBRARIES: Final = ("uvloop", "plyvel", "msgpack", "redis", "hiredis")


def describe() -> dict[str, str]:
    """Return names and values; nothing in them says whose machine it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kernel = re.match(r"[0-9.]+", platform.release())
    return {
        "processor": _processor(),
        "processors seen": str(os.cpu_count()),
        "memory": f"{memory / (1 << 30):.0f} GiB",
        "kernel": f"{platform.system()} {kernel[0] if kernel else 'unknown'}",
        "Python": platform.python_version(),
        "pegaskv": VERSION,
        "libraries": ", ".join(f"{name} {version(name)}" for name in _LIBRARIES),
        "Redis": redis_version() or "none",
        "etcd": etcd_version() or "none",
    }


def _processor() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1].strip() if found else platform.machine()
