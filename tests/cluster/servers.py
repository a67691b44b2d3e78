"""A whole cluster as child processes: a meta server and replica servers, and what befalls them."""

import contextlib
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pegaskv
from tests.cluster.process import ServerProcess

__all__ = [
    "GRACE_S",
    "QUICK",
    "QUICK_GRACE_S",
    "Servers",
    "even",
    "members",
    "running_servers",
    "whole",
]

# How long a secondary waits for its primary by default, and with the times below.
GRACE_S = 5.0
QUICK_GRACE_S = 1.5
# Everything more than three times as fast as by default, for tests that have little time.
QUICK = """
[replica]
beacon_interval_ms = 300
lease_ms = 1200
grace_ms = 1500
prepare_timeout_ms = 600
[meta]
node_dead_ms = 3000
replica_assign_delay_ms = 1000
"""

META = "meta"


class Servers:
    """The processes by name: `meta`, `replica1`, ..."""

    def __init__(self, directory: Path, *, config: str = "") -> None:
        if "[replica]\n" not in config:
            config += "[replica]\n"
        self._directory = directory
        self._config = config
        self.by_name: dict[str, ServerProcess] = {}
        self.by_name[META] = ServerProcess(directory / META, role="meta", config=config)

    @property
    def address(self) -> str:
        """Where clients begin."""
        return self.by_name[META].address

    @property
    def replicas(self) -> list[str]:
        """The names of the replica servers."""
        return [name for name in self.by_name if name != META]

    def add(self, *, meta: str = "", listen: str = "", advertise: str = "") -> str:
        """Make a replica server of an empty directory, and do not start it; return its name."""
        name = f"replica{len(self.by_name)}"
        server = ServerProcess(
            self._directory / name,
            role="replica",
            config=self._config.replace("[replica]\n", f"[replica]\nadvertise = '{advertise}'\n"),
            arguments=("--meta", meta or self.address),
        )
        server.address = listen or server.address
        self.by_name[name] = server
        return name

    def start(self, *names: str) -> None:
        """Start these at once, or all that do not run, and wait until they are ready."""
        wanted = [
            self.by_name[name] for name in names or self.by_name if not self.by_name[name].running
        ]
        for server in wanted:
            server.begin()
        for server in wanted:
            server.await_ready()

    def kill(self, *names: str) -> None:
        """SIGKILL, all before the first is waited for."""
        for name in names:
            self.by_name[name].signal(signal.SIGKILL)
        for name in names:
            self.by_name[name].kill()

    def stop(self, *names: str) -> None:
        """SIGTERM, all before the first is waited for."""
        for name in names:
            self.by_name[name].signal(signal.SIGTERM)
        for name in names:
            assert self.by_name[name].ended() == 0, self.by_name[name].log()

    def pause(self, name: str) -> None:
        """Let it stand still, as a machine does that has no time for it."""
        self.by_name[name].signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let it go on."""
        self.by_name[name].signal(signal.SIGCONT)

    def restart(self, name: str) -> None:
        """SIGTERM, which hands over first; then start it again."""
        self.stop(name)
        self.start(name)

    def wipe(self, name: str) -> None:
        """Lose the disk of a server that does not run."""
        assert not self.by_name[name].running
        shutil.rmtree(self.by_name[name].directory / "data")

    async def name_of(self, client: pegaskv.Client, node_id: str) -> str:
        """Return which replica server a node is."""
        address = next(one.address for one in await client.admin.nodes() if one.node_id == node_id)
        return next(name for name, one in self.by_name.items() if one.address == address)

    def close(self) -> None:
        """End all of them."""
        for server in self.by_name.values():
            if server.running:
                server.kill()

    def check_logs(self) -> None:
        """None of them has met what nobody thought of."""
        for name, server in self.by_name.items():
            assert "Traceback" not in server.log(), f"{name}:\n{server.log()}"


@contextlib.contextmanager
def running_servers(directory: Path, replicas: int = 3, *, config: str = "") -> Iterator[Servers]:
    """A meta server and so many replica servers, ended at the end whatever happens."""
    servers = Servers(directory, config=config)
    try:
        servers.start(META)
        for _ in range(replicas):
            servers.add()
        servers.start()
        yield servers
    finally:
        servers.close()


async def members(client: pegaskv.Client, table: str) -> list[tuple[str, ...]]:
    """Return the node ids of each partition's members, the primary first."""
    return [one.members for one in (await client.admin.table_info(table)).partitions]


async def whole(client: pegaskv.Client, table: str) -> bool:
    """Whether every partition has all of its members, and all of them answer."""
    try:
        details = await client.admin.table_info(table)
        nodes = await client.admin.nodes()
    except pegaskv.errors.RequestError:
        return False
    health = details.health({one.node_id: one.status for one in nodes})
    return health.healthy == health.partitions


async def even(client: pegaskv.Client, table: str, servers: int) -> bool:
    """Whether so many servers lead, and keep, as much as each other, or one partition more."""
    configurations = await members(client, table)
    led = Counter(one[0] for one in configurations)
    kept = Counter(node for one in configurations for node in one)
    return all(
        len(counts) == servers and max(counts.values()) - min(counts.values()) <= 1
        for counts in (led, kept)
    )
