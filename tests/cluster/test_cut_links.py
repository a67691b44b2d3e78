"""Links between processes that are cut, one way or both, and reset: through proxies in the test.

Everybody reaches a replica server through a proxy, since that is where it says it is, and each
replica server has a proxy of its own to the meta server. A server that nobody reaches may still
reach others, so it goes on to lead; its clients wait, and what they see must be right.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from tests.cluster.proxy import Proxy, running_proxy
from tests.cluster.scene import Scene, scene_of
from tests.cluster.servers import GRACE_S, running_servers
from tests.cluster.workload import now_us
from tests.helpers import free_port, pause

pytestmark = [pytest.mark.process, pytest.mark.soak]

ROUNDS = 8
CUT_S = GRACE_S + 3
WRITES_S = 30.0


@dataclass
class Links:
    """The proxies, by the name of the replica server that is reached, or that reaches."""

    inward: dict[str, Proxy] = field(default_factory=dict)
    to_meta: dict[str, Proxy] = field(default_factory=dict)


@asynccontextmanager
async def running_links(directory: Path) -> AsyncIterator[tuple[Scene, Links]]:
    """Three replica servers behind proxies, under load."""
    links = Links()
    async with AsyncExitStack() as stack:
        servers = stack.enter_context(running_servers(directory, 0))
        for _ in range(3):
            listen = f"127.0.0.1:{free_port()}"
            inward = await stack.enter_async_context(running_proxy(listen))
            to_meta = await stack.enter_async_context(running_proxy(servers.address))
            name = servers.add(meta=to_meta.address, listen=listen, advertise=inward.address)
            links.inward[name], links.to_meta[name] = inward, to_meta
        # On a thread, so that the loop is free to forward what they say.
        await asyncio.to_thread(servers.start)
        yield await stack.enter_async_context(scene_of(servers)), links
        # From the meta server, from the others, and from clients.
        assert all(one.connections >= 4 for one in links.inward.values())
        assert all(one.connections >= 1 for one in links.to_meta.values())
        servers.check_logs()


async def test_meta_links_that_are_cut_fail_no_data_call(tmp_path: Path) -> None:
    async with running_links(tmp_path) as (scene, links), scene.load.none_fails():
        for requests, replies in ((True, True), (True, False), (False, True)):
            for proxy in links.to_meta.values():
                proxy.cut(requests=requests, replies=replies)
            await pause(CUT_S)
            for proxy in links.to_meta.values():
                proxy.heal()
            await scene.until_whole()


async def test_links_are_cut_and_reset_and_what_is_seen_is_right(tmp_path: Path) -> None:
    seed = time.time_ns()
    chance = Random(seed)
    minutes = float(os.environ.get("PEGASKV_SOAK_MINUTES", "1"))
    async with running_links(tmp_path) as (scene, links):
        scene.say(f"seed {seed}")
        end, rounds = time.monotonic() + 60 * minutes, 0
        while rounds < ROUNDS or time.monotonic() < end:
            await one_cut(scene, links, chance)
            healed_us = now_us()
            await scene.load.gaps(healed_us, deadline_s=WRITES_S)
            await scene.until_whole()
            rounds += 1


async def one_cut(scene: Scene, links: Links, chance: Random) -> None:
    name = chance.choice(list(links.inward))
    proxies = chance.choice([[links.inward[name]], [links.inward[name], links.to_meta[name]]])
    requests, replies = chance.choice([(True, True), (True, False), (False, True)])
    scene.say(f"cut {name}: requests {requests}, replies {replies}, {len(proxies)} links")
    for proxy in proxies:
        proxy.cut(requests=requests, replies=replies)
    await pause(chance.choice([1.0, CUT_S]))
    for proxy in proxies:
        if chance.random() < 0.5:
            # What was held back is lost with its connections.
            proxy.reset()
        proxy.heal()
