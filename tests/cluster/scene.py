"""A cluster, a table, and tasks that use it: where servers are killed, stopped and wiped."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pegaskv
from tests.cluster.servers import Servers, members, running_servers, whole
from tests.cluster.workload import Workload, now_us, running_workload
from tests.helpers import pause, poll_until

__all__ = ["Away", "Scene", "rank", "running_scene", "scene_of"]

PARTITIONS = 8
WHOLE_S = 60.0


@dataclass
class Away:
    """Seconds without a write, of each partition that a server led, or only kept."""

    led: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"led: {_words(self.led)}; kept: {_words(self.kept)}"


def _words(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    return f"p50 {rank(seconds, 0.5):.2f} s, p99 {rank(seconds, 0.99):.2f} s of {len(seconds)}"


def rank(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all is below."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@dataclass
class Scene:
    """Everything at hand; `away` adds up over all that is done to servers by `strike`."""

    servers: Servers
    client: pegaskv.Client
    load: Workload
    away: Away = field(default_factory=Away)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Tell whoever reads the output, with the time."""
        sys.stdout.write(f"{time.monotonic() - self.began:7.2f} {text}\n")
        sys.stdout.flush()

    async def strike(self, do: Callable[[str], None], victim: str) -> None:
        """Do it to a replica server, and wait until every partition takes writes again."""
        led = [await self._led_by(one, victim) for one in await members(self.client, "t")]
        since_us = now_us()
        await asyncio.to_thread(do, victim)
        gaps = await self.load.gaps(since_us, deadline_s=40)
        self.say(f"{do.__name__} {victim}: {gaps}")
        for index, seconds in gaps.items():
            (self.away.led if led[index] else self.away.kept).append(seconds)

    async def _led_by(self, nodes: tuple[str, ...], victim: str) -> bool:
        return await self.servers.name_of(self.client, nodes[0]) == victim

    async def do(self, do: Callable[..., None], *names: str) -> None:
        """Do it, and wait only until it is done."""
        began = time.monotonic()
        await asyncio.to_thread(do, *names)
        self.say(f"{do.__name__} {' '.join(names)}, {time.monotonic() - began:.2f} s")

    async def stand_still(self, name: str, seconds: float) -> None:
        """Pause a server for so long."""
        await self.do(self.servers.pause, name)
        await pause(seconds)
        await self.do(self.servers.resume, name)

    async def until_whole(self, deadline_s: float = WHOLE_S) -> float:
        """Wait until nothing is missing; return the seconds."""
        began = time.monotonic()
        await poll_until(
            lambda: whole(self.client, "t"), deadline_s=deadline_s, what="redundancy everywhere"
        )
        self.say(f"whole after {time.monotonic() - began:.2f} s")
        return time.monotonic() - began


@asynccontextmanager
async def running_scene(
    directory: Path,
    *,
    replicas: int = 3,
    partitions: int = PARTITIONS,
    durability: str = "fsync",
    config: str = "",
) -> AsyncIterator[Scene]:
    """A cluster with a table `t` of three replicas under load; judged at the end of the block."""
    with running_servers(directory, replicas, config=config) as servers:
        async with scene_of(servers, partitions=partitions, durability=durability) as scene:
            yield scene
        servers.check_logs()


@asynccontextmanager
async def scene_of(
    servers: Servers, *, partitions: int = PARTITIONS, durability: str = "fsync"
) -> AsyncIterator[Scene]:
    """The same with servers that run."""
    async with pegaskv.connect(servers.address) as client:
        await client.admin.create_table("t", partitions, 3, {"durability": durability})
        await poll_until(lambda: whole(client, "t"), deadline_s=20, what="a whole table")
        async with running_workload(await client.table("t")) as load:
            scene = Scene(servers, client, load)
            yield scene
            scene.say(f"{load.acknowledged} calls, {len(load.failures)} failed; {scene.away}")
