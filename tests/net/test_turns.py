"""Who goes on next, and how long large work rests while others call."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from pegaskv.net.connection import ServerConnection
from pegaskv.net.turns import FULL_READ_BYTES, Pace, Turns
from pegaskv.runtime.tasks import TaskScope
from tests.net.connection_support import ECHO, Server, hello, turn

SHARE = 25
MS = 1_000


class Hand:
    """A clock of microseconds that is set by hand."""

    def __init__(self) -> None:
        self.us = 1_000_000

    def __call__(self) -> int:
        return self.us


class Busy:
    """Somebody with `turns` turns to take, each of which takes `takes_us`."""

    def __init__(self, name: str, turns: Turns, hand: Hand, count: int, takes_us: int = 0) -> None:
        self.name = name
        self.turns = turns
        self.hand = hand
        self.left = count
        self.takes_us = takes_us
        self.log: list[tuple[str, float]] = []

    def take_turn(self) -> None:
        began_us = self.hand.us
        self.hand.us += self.takes_us
        self.log.append((self.name, asyncio.get_running_loop().time()))
        self.left -= 1
        if self.left:
            self.turns.wait(self, began_us)


def test_what_is_owed_is_the_time_spent_by_the_share_and_is_paid_at_once() -> None:
    hand = Hand()
    pace = Pace(hand, SHARE)
    pace.heard = True
    hand.us += 2 * MS
    assert pace.rest_s(hand.us - 2 * MS) == pytest.approx(0.006)
    assert pace.rested_us == pytest.approx(6 * MS)
    # Paid; and nobody was heard since.
    assert pace.rest_s(hand.us - 2 * MS) == 0
    assert pace.rested_us == pytest.approx(6 * MS)


def test_little_that_is_owed_waits_until_it_is_worth_a_timer() -> None:
    hand = Hand()
    pace = Pace(hand, SHARE)
    rests = []
    for _ in range(9):
        pace.heard = True
        rests.append(pace.rest_s(hand.us - 300))
    assert rests == pytest.approx([0, 0, 0.0027] * 3)


def test_who_is_alone_never_rests_and_neither_does_a_share_of_all() -> None:
    hand = Hand()
    alone = Pace(hand, SHARE)
    whole = Pace(hand, 100)
    for _ in range(10):
        whole.heard = True
        hand.us += 5 * MS
        assert alone.rest_s(hand.us - 5 * MS) == 0
        assert whole.rest_s(hand.us - 5 * MS) == 0
    assert alone.rested_us == whole.rested_us == 0


@pytest.mark.parametrize("jump_us", [-3_600_000_000, 3_600_000_000])
def test_a_clock_that_jumps_costs_a_short_rest_at_most(jump_us: int) -> None:
    hand = Hand()
    pace = Pace(hand, SHARE)
    pace.heard = True
    began_us = hand.us
    hand.us += jump_us
    assert pace.rest_s(began_us) <= 0.031
    pace.heard = True
    hand.us += 2 * MS
    assert pace.rest_s(hand.us - 2 * MS) == pytest.approx(0.006)


async def run(turns: Turns, *busy: Busy) -> list[tuple[str, float]]:
    log: list[tuple[str, float]] = []
    for one in busy:
        one.log = log
        turns.wait(one, one.hand.us)
    while any(one.left for one in busy):
        await asyncio.sleep(0)
    return log


async def test_those_who_wait_take_turns_and_who_asks_twice_waits_once() -> None:
    hand = Hand()
    turns = Turns(Pace(hand, SHARE))
    first, second = Busy("first", turns, hand, 3), Busy("second", turns, hand, 3)
    turns.wait(first, hand.us)
    log = await run(turns, first, second)
    assert [name for name, _ in log] == ["first", "second"] * 3
    # And again, once nobody has waited for a while.
    await turn()
    third = Busy("third", turns, hand, 2)
    assert [name for name, _ in await run(turns, third)] == ["third", "third"]


async def test_between_turns_there_is_a_rest_if_others_called_meanwhile() -> None:
    hand = Hand()
    pace = Pace(hand, SHARE)
    turns = Turns(pace)
    busy = Busy("busy", turns, hand, 6, takes_us=2 * MS)

    async def others(until: Callable[[], bool]) -> None:
        while not until():
            pace.heard = True
            await asyncio.sleep(0)

    async with TaskScope("others") as scope:
        scope.start("others", others(lambda: not busy.left))
        log = await run(turns, busy)
    times = [at for _, at in log]
    # Six milliseconds each, less the one that a loop's timer may be early by.
    assert all(later - earlier > 0.0045 for earlier, later in pairwise(times))
    # After the last one too.
    assert pace.rested_us == pytest.approx(6 * 6 * MS)
    busy = Busy("busy", turns, hand, 6, takes_us=2 * MS)
    ends = asyncio.get_running_loop().time() + 0.02
    while asyncio.get_running_loop().time() < ends:
        await turn()
    pace.heard = False
    alone = await run(turns, busy)
    assert alone[-1][1] - alone[0][1] < 0.0045
    assert pace.rested_us == pytest.approx(6 * 6 * MS)


async def test_one_whose_turn_fails_stops_nobody_else() -> None:
    hand = Hand()
    turns = Turns(Pace(hand, SHARE))
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))

    class Broken:
        def take_turn(self) -> None:
            raise ValueError("broken")

    good = Busy("good", turns, hand, 2)
    turns.wait(Broken(), hand.us)
    assert len(await run(turns, good)) == 2
    assert len(failed) == 1


# What connections say of themselves.


def frame_of(count: int, size: int = 1_000) -> list[list[object]]:
    return [[number + 1, ECHO, 0, bytes(size)] for number in range(count)]


async def test_a_small_read_is_heard_unless_it_is_a_part_of_large_ones() -> None:
    server = Server()
    pace = server.acceptor.pace
    small, large = server.greeted(), server.greeted()
    pace.heard = False
    small.send(frame_of(1))
    assert pace.heard
    pace.heard = False
    large.send(*(frame_of(20) for _ in range(3)))
    await turn()
    await turn()
    # The rest of what it had sent at once was the first.
    for _ in range(7):
        large.send(frame_of(1))
        assert not pace.heard
    # It has had little to do for a while: now it is one of the others.
    large.send(frame_of(1))
    assert pace.heard


async def test_a_read_that_is_full_ends_the_turn_and_is_not_heard() -> None:
    server = Server()
    peer = server.greeted()
    server.acceptor.pace.heard = False
    peer.send(frame_of(1, FULL_READ_BYTES))
    assert not server.acceptor.pace.heard
    assert not peer.transport.reading
    await turn()
    await turn()
    assert peer.transport.reading


async def test_the_first_part_of_a_large_read_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    peer = server.greeted()
    handle = ServerConnection._handle

    def slowly(connection: ServerConnection, frames: list[list[Any]]) -> None:
        server.clock.now_ms += 4
        handle(connection, frames)

    monkeypatch.setattr(ServerConnection, "_handle", slowly)
    pace = server.acceptor.pace
    pace.heard = True
    peer.send(frame_of(1, FULL_READ_BYTES))
    await turn()
    assert pace.rested_us > 4 * MS
    [shown] = [
        one for one in server.acceptor.metrics() if one.name == "pegaskv_bulk_rest_seconds_total"
    ]
    assert shown.samples == (((), pace.rested_us / 1_000_000),)


async def test_servers_are_not_heard_and_do_not_rest() -> None:
    server = Server()
    peer = server.connect()
    greeting = hello()
    greeting[7] = ["server"]
    peer.send([greeting])
    pace = server.acceptor.pace
    pace.heard = False
    peer.send(frame_of(1))
    assert not pace.heard
    for _ in range(20):
        pace.heard = True
        peer.send(*(frame_of(20) for _ in range(3)))
        for _ in range(4):
            await turn()
        assert peer.transport.reading
    assert pace.rested_us == 0
    assert pace.heard
