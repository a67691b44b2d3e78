"""Servers that come, go, lose their disk, or all start at once, under load."""

import asyncio
import time
from pathlib import Path
from random import Random

import pytest

from tests.cluster.scene import running_scene
from tests.cluster.servers import META, even
from tests.helpers import pause, poll_until

pytestmark = [pytest.mark.process, pytest.mark.soak]

EVEN_S = 90.0


async def test_each_server_in_turn_is_restarted_and_no_call_fails(tmp_path: Path) -> None:
    async with running_scene(tmp_path) as scene, scene.load.none_fails():
        for name in [*scene.servers.replicas, META] * 2:
            await scene.do(scene.servers.restart, name)
            await scene.until_whole()
            await pause(1)


async def test_a_new_empty_server_gets_its_share_and_no_call_fails(tmp_path: Path) -> None:
    async with running_scene(tmp_path, partitions=32) as scene, scene.load.none_fails():
        name = scene.servers.add()
        await scene.do(scene.servers.start, name)
        began = time.monotonic()
        await poll_until(
            lambda: even(scene.client, "t", 4), deadline_s=EVEN_S, what="an even spread"
        )
        scene.say(f"even after {time.monotonic() - began:.1f} s")
        await scene.until_whole()


@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "killed"])
async def test_a_server_that_lost_its_disk_comes_back_as_a_new_one(
    clean: bool, tmp_path: Path
) -> None:
    async with running_scene(tmp_path) as scene:
        servers = scene.servers
        before = {one.node_id for one in await scene.client.admin.nodes()}
        await scene.do(servers.stop if clean else servers.kill, "replica2")
        await scene.do(servers.wipe, "replica2")
        await scene.do(servers.start, "replica2")
        # Nobody waits for the one that it was.
        await scene.until_whole(deadline_s=30)
        await poll_until(
            lambda: even(scene.client, "t", 3), deadline_s=EVEN_S, what="an even spread"
        )
        after = {one.node_id for one in await scene.client.admin.nodes()}
        assert len(after - before) == 1


@pytest.mark.parametrize("clean", [True, False], ids=["stopped", "killed"])
async def test_all_servers_go_and_come_at_once_and_nothing_is_lost(
    clean: bool, tmp_path: Path
) -> None:
    chance = Random(int(clean))
    async with running_scene(tmp_path) as scene:
        servers = scene.servers
        for _ in range(4):
            names = list(servers.by_name)
            if clean:
                await scene.do(servers.stop, *chance.sample(names, len(names)))
            else:
                await scene.do(servers.kill, *names)
            for name in chance.sample(names, len(names)):
                servers.by_name[name].begin()
                await pause(chance.choice([0.0, 0.0, 0.5]))
            for name in names:
                await asyncio.to_thread(servers.by_name[name].await_ready)
            await scene.until_whole()
            await pause(chance.uniform(0.5, 3))
