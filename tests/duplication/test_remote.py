"""A remote cluster that is slow is asked less, and more again when it answers in time."""

import asyncio
from random import Random
from typing import Any

import pytest

from pegaskv.client.connection import TIMED_OUT, Lost
from pegaskv.client.nodes import NodePool
from pegaskv.client.resolver import MetaResolver
from pegaskv.duplication.remote import RemoteCluster
from pegaskv.net.asyncio_network import AsyncioNetwork
from pegaskv.runtime.clock import SystemClock
from pegaskv.runtime.tasks import TaskScope

LATE = Lost(1, TIMED_OUT, True, "too late")
ANSWER = [1, 0]


def _remote(scope: TaskScope) -> RemoteCluster:
    return RemoteCluster(
        "127.0.0.1:1",
        network=AsyncioNetwork(),
        clock=SystemClock(),
        random=Random(1),
        scope=scope,
        timeout_ms=3_000,
        window_bytes=1_000,
    )


class Senders:
    """So many requests as there is room for."""

    def __init__(self, remote: RemoteCluster, scope: TaskScope, count: int) -> None:
        self.remote = remote
        self.under_way = 0
        for _ in range(count):
            scope.start("request", self._send())

    async def _send(self) -> None:
        await self.remote.take_room(1)
        self.under_way += 1

    async def end(self, reply: object, count: int = 1) -> None:
        for _ in range(count):
            self.remote.give_room(1, reply)
            self.under_way -= 1
        for _ in range(3):
            await asyncio.sleep(0)


async def test_after_a_time_out_one_request_is_under_way_and_then_more_round_by_round() -> None:
    async with TaskScope("test") as scope:
        senders = Senders(_remote(scope), scope, 64)
        await asyncio.sleep(0)
        assert senders.under_way == 64
        await senders.end(LATE, 32)
        waiting = Senders(senders.remote, scope, 400)
        await asyncio.sleep(0)
        assert waiting.under_way == 0
        await senders.end(LATE, 31)
        await senders.end(LATE)
        assert waiting.under_way == 1
        rounds = []
        for _ in range(7):
            await waiting.end(ANSWER, waiting.under_way)
            rounds.append(waiting.under_way)
        # Twice as many up to half of what was too much, then about one more.
        assert rounds[:5] == [2, 4, 8, 16, 32]
        assert 33 <= rounds[-1] <= 34
        while waiting.under_way:
            await waiting.end(ANSWER, waiting.under_way)


async def test_bytes_under_way_are_bounded_and_what_was_never_sent_says_nothing() -> None:
    async with TaskScope("test") as scope:
        remote = _remote(scope)
        await remote.take_room(1_000)
        waiting = Senders(remote, scope, 2)
        await asyncio.sleep(0)
        assert waiting.under_way == 0
        remote.give_room(1_000)
        for _ in range(3):
            await asyncio.sleep(0)
        assert waiting.under_way == 2


async def test_a_cluster_of_which_a_part_is_slow_keeps_its_connections() -> None:
    async with TaskScope("test") as scope:
        for answered in (False, True):
            remote = _remote(scope)
            for _ in range(2):
                await remote.take_room(1)
            if answered:
                remote.give_room(1, ANSWER)
            remote.give_room(1, LATE)
            running = scope.running
            remote.unreachable()
            # A hello tells when nobody was heard; else the others are left alone.
            assert scope.running == running + (not answered)
        await scope.close()


async def test_a_server_that_stands_still_takes_nothing_from_the_others() -> None:
    async with TaskScope("test") as scope:
        remote = _remote(scope)
        for _ in range(4):
            await remote.take_room(1, "silent:1")
        for _ in range(4):
            remote.give_room(1, LATE, "silent:1")
        await remote.take_room(1, "silent:1")
        waiting = scope.start("to the silent one", remote.take_room(1, "silent:1"))
        for number in range(50):
            await remote.take_room(1, "well:1")
            assert remote.under_way == (number + 1, number + 2)
        assert not waiting.done()
        waiting.cancel()


async def test_who_waits_for_a_server_goes_elsewhere_when_another_one_serves() -> None:
    async with TaskScope("test") as scope:
        remote = _remote(scope)
        serving = ["old:1"]
        for _ in range(2):
            await remote.take_room(1, "old:1")
        remote.give_room(1, LATE, "old:1")
        found: list[bool] = []

        async def ask() -> None:
            found.append(await remote.take_room(1, "old:1", lambda: serving == ["old:1"]))

        for _ in range(3):
            scope.start("ask", ask())
        await asyncio.sleep(0)
        serving[:] = ["new:1"]
        assert await remote.take_room(1, "new:1")
        remote.give_room(1, ANSWER, "new:1")
        for _ in range(3):
            await asyncio.sleep(0)
        assert found == [False] * 3
        assert remote.is_at(1, 0, "anywhere:1")


class Silence:
    """A connection that was not heard for so long."""

    gone = False

    def __init__(self, silent_ms: int) -> None:
        self.silent_ms = silent_ms
        self.cause = ""

    def close(self, cause: str) -> None:
        self.cause = cause


async def test_who_fails_ends_what_is_silent_and_nothing_that_was_just_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def greeted(resolver: MetaResolver, timeout_ms: int) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(MetaResolver, "greet", greeted)
    pools: list[Any] = []
    begin = NodePool.__init__

    def begun(pool: NodePool, **options: Any) -> None:
        begin(pool, **options)
        pools.append(pool)

    monkeypatch.setattr(NodePool, "__init__", begun)
    fresh, silent = Silence(5), Silence(30_000)
    async with TaskScope("test") as scope:
        remote = _remote(scope)
        pools[0].connections.update({fresh: None, silent: None})
        woken: list[int] = []
        remote.when_reachable(lambda: woken.append(1))
        remote.unreachable()
        assert silent.cause == "the cluster did not answer"
        assert not fresh.cause
        while not woken:
            await asyncio.sleep(0)
        # The hello was an answer: for a while nobody who fails takes anything from the others.
        running = scope.running
        remote.unreachable()
        assert scope.running == running
        assert len(woken) == 1
