"""What requests may hold follows from the memory that the process may have."""

import resource
import subprocess
import sys
from pathlib import Path

from pegaskv.base.limits import PROCESS_BYTES_IN_FLIGHT_MAX
from pegaskv.server.memory_budget import bytes_in_flight_max, free_memory
from pegaskv.storage.local_disk import LocalDisk


class Container(LocalDisk):
    """A machine whose kernel says what the test wants."""

    __slots__ = ("files",)

    def __init__(self, **files: str) -> None:
        super().__init__()
        self.files = {name.replace("_", "."): text for name, text in files.items()}

    def exists(self, path: Path) -> bool:
        return path.name in self.files

    def read_bytes(self, path: Path) -> bytes:
        if path.name not in self.files:
            raise FileNotFoundError(path)
        return self.files[path.name].encode()


def test_a_container_has_what_is_left_of_its_limit() -> None:
    small = Container(memory_max="100000000\n", memory_current="30000000\n")
    assert free_memory(small) == 70_000_000
    full = Container(memory_max="100000000\n", memory_current="130000000\n")
    assert free_memory(full) == 0


def test_without_a_limit_it_is_the_memory_of_the_machine() -> None:
    machine = free_memory(Container(meminfo="MemTotal:  2048000 kB\nMemFree:  5 kB\n"))
    assert machine == 2_048_000 * 1_024
    assert free_memory(Container()) > machine
    assert free_memory(LocalDisk()) > 1 << 27
    unlimited = Container(memory_max="max\n", memory_current="5\n")
    assert free_memory(unlimited) == free_memory(Container(memory_max="")) > machine


def test_requests_get_a_small_part_within_bounds() -> None:
    assert bytes_in_flight_max(0) == 4 << 20
    assert bytes_in_flight_max(1 << 30) == 1 << 26
    assert bytes_in_flight_max(1 << 50) == PROCESS_BYTES_IN_FLIGHT_MAX


def test_an_address_space_that_is_limited_counts() -> None:
    script = (
        "from pegaskv.server.memory_budget import free_memory\n"
        "from pegaskv.storage.local_disk import LocalDisk\n"
        "print(free_memory(LocalDisk()))"
    )
    limit = 1 << 30
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert 1 << 28 < int(done.stdout) < limit
