"""How committed rows come to the engine: many at once, sorted, soon enough, and none lost."""

from collections.abc import Callable
from typing import Any

import pytest

from pegaskv.codec.operations import Operation
from pegaskv.replica.front import Front
from pegaskv.storage.engine import ReplicaState
from tests.replica.members_world import following, prepare
from tests.replica.stub_world import Engine, Server, play
from tests.simulation.world import Life, World

# As the front has it, and a look at the clock.
WAIT_MS = 500
SLACK_MS = 60
# As `applying` has it.
MANY = 2_048


async def opened(life: Life, **more: Any) -> Server:
    server = Server(life, **more)
    await server.start()
    await server.serve(first=True)
    server.replica().apply_now()
    return server


class Written:
    """What an engine was given, write by write: keys in order, and when."""

    def __init__(self, life: Life, engine: Engine) -> None:
        self.writes: list[tuple[int, list[bytes]]] = []
        plain = engine.inner.write

        def write(rows: list[bytes | None], state: ReplicaState) -> None:
            keys = rows[::2]
            assert None not in keys
            self.writes.append((life.clock.monotonic_ms(), keys))  # type: ignore[arg-type]
            plain(rows, state)

        engine.inner.write = write  # type: ignore[method-assign]

    @property
    def sort_keys(self) -> list[bytes]:
        """Those of each row, over all writes; the hash key is `h`."""
        return [key[3:] for _, keys in self.writes for key in keys]


def test_rows_go_to_the_engine_sorted_and_of_each_key_only_the_youngest() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        written = Written(life, server.engine())
        for sort_key in (b"m", b"a", b"z", b"a", b"m"):
            await server.set(sort_key, b"old")
        await server.set(b"a", b"new")
        server.replica().apply_now()
        assert written.sort_keys == [b"a", b"m", b"z"]
        assert server.replica().unapplied is None
        assert await server.get(b"a") == b"new"
        assert server.engine().state().decree == server.replica().machine.committed

    play(scenario)


def test_rows_that_come_one_by_one_wait_half_a_second_and_not_longer() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        written = Written(life, server.engine())
        committed: dict[bytes, int] = {}
        for number in range(100):
            sort_key = b"%03d" % number
            await server.set(sort_key, b"v")
            committed[sort_key] = life.clock.monotonic_ms()
            await world.sleep_ms(30)
        await world.sleep_ms(2 * WAIT_MS)
        assert sorted(written.sort_keys) == sorted(committed)
        for taken, keys in written.writes:
            waited = [taken - committed[key[3:]] for key in keys]
            assert max(waited) <= WAIT_MS + SLACK_MS
            # Nobody is on the list twice: the first of them has waited its time.
            assert max(waited) >= WAIT_MS - SLACK_MS

    play(scenario)


def test_many_rows_do_not_wait_for_their_time() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        written = Written(life, server.engine())
        rows = [part for number in range(MANY) for part in (b"h", b"%05d" % number, b"")]
        began = life.clock.monotonic_ms()
        for begin in range(0, len(rows), 1_500):
            await server.ask(Operation.BATCH_SET, rows[begin : begin + 1_500], 0)
        await world.until(lambda: len(written.sort_keys) == MANY, what="all rows in the engine")
        assert life.clock.monotonic_ms() - began < WAIT_MS
        assert len(written.writes) == 1

    play(scenario)


@pytest.mark.parametrize("row", [b"young", None])
def test_what_is_written_while_a_thread_writes_stays_and_follows_by_itself(
    row: bytes | None,
) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica, engine = server.replica(), server.engine()
        await server.set(b"both", b"old")
        await server.set(b"first", b"1")
        engine.is_calm = False
        # Longer than rows wait for others.
        server.slow("apply", 2 * WAIT_MS * 1_000)
        replica.apply_now()
        assert replica._in_thread is replica.unapplied
        in_thread = replica.applying_bytes
        if row is None:
            await server.ask(Operation.DELETE, b"h", b"both")
        else:
            await server.set(b"both", row)
        await server.set(b"second", b"2")
        younger = replica.unapplied
        assert younger is not None
        assert younger is not replica._in_thread
        held = replica.applying_bytes
        while replica._in_thread is not None:
            assert await server.get(b"both") == row
            await world.sleep_ms(20)
        # What the thread wrote is not held any more, what came behind it is.
        assert {key[3:] for key in replica.applying} == {b"both", b"second"}
        assert replica.unapplied is younger
        assert replica.applying_bytes == held - in_thread > younger.size
        assert await server.get(b"both") == row
        server.slow("apply", 50)
        await world.sleep_ms(WAIT_MS + SLACK_MS)
        assert replica.unapplied is None
        assert (replica.applying, replica.applying_bytes) == ({}, 0)
        assert [await server.get(key) for key in (b"both", b"first", b"second")] == [
            row,
            b"1",
            b"2",
        ]

    play(scenario)


def test_an_engine_that_comes_back_with_all_of_it_has_nothing_to_wait_for() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life)
        replica = server.replica()
        await server.set(b"a", b"1")
        server.engine().write_error = OSError(5, "planned")
        replica.apply_now()
        assert replica.engine_failed is not None
        # The log brings it up to the commit point.
        await world.until(lambda: replica.engine_failed is None)
        assert replica.unapplied is None
        assert (replica.applying, replica.applying_bytes) == ({}, 0)
        assert await server.get(b"a") == b"1"

    play(scenario)


def test_a_secondary_decodes_what_is_committed_long_before_its_engine_gets_it() -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await following(life)
        replica = server.replica()
        replica.apply_now()
        written = Written(life, server.engine())
        plain, calls = replica.apply_now, 0

        def counted() -> None:
            nonlocal calls
            calls += 1

        # `prepare` has the engine written to; here only the server itself does.
        replica.apply_now = counted  # type: ignore[method-assign]
        for decree in range(3, 60):
            await prepare(server, decree, b"%d" % decree)
        assert calls == 57
        assert not written.writes
        # All but those since the last 32 mutations, and the last, which may not be committed.
        assert max(row[12:] for row in replica.applying.values() if row) > b"32"
        replica.apply_now = plain  # type: ignore[method-assign]
        await world.sleep_ms(WAIT_MS + SLACK_MS)
        assert written.sort_keys == [b"s"]
        assert not replica.behind
        # Few mutations wait for their time as well.
        replica.apply_now = counted  # type: ignore[method-assign]
        await prepare(server, 60, b"60")
        replica.apply_now = plain  # type: ignore[method-assign]
        assert replica.behind
        await world.sleep_ms(WAIT_MS + SLACK_MS)
        assert not replica.behind

    play(scenario)


class Loop:
    """Turns of a loop with a clock."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.ready: list[Callable[[], Any]] = []
        self.later: list[tuple[int, Callable[[], Any]]] = []
        log: Any = type("Log", (), {})()
        self.front = Front(
            log=log,
            now_ms=lambda: self.now_ms,
            call_soon=self.ready.append,
            call_later=self._call_later,
            on_fatal=lambda _error: None,
        )

    def _call_later(self, seconds: float, call: Callable[[], Any]) -> None:
        self.later.append((self.now_ms + round(seconds * 1_000), call))

    def turn(self) -> None:
        calls, self.ready[:] = list(self.ready), []
        for call in calls:
            call()

    def at(self, now_ms: int) -> None:
        """Let time go on."""
        while self.later and min(self.later, key=lambda each: each[0])[0] <= now_ms:
            first = min(self.later, key=lambda each: each[0])
            self.later.remove(first)
            self.now_ms = first[0]
            first[1]()
            while self.ready:
                self.turn()
        self.now_ms = now_ms


class Holder:
    """A replica that holds rows, as the front sees it."""

    behind = True

    def __init__(self, loop: Loop, rows: int, size: int = 0) -> None:
        self.loop = loop
        self.applying = dict.fromkeys(range(rows))
        self.applying_bytes = rows * size
        self.applied_ms: list[int] = []

    def apply_now(self) -> None:
        self.applied_ms.append(self.loop.now_ms)


def holders(loop: Loop, number: int, rows: int, size: int = 0) -> list[Any]:
    return [Holder(loop, rows, size) for _ in range(number)]


@pytest.mark.parametrize(("rows", "size"), [(MANY, 0), (256, 1_024)])
def test_large_writes_to_engines_are_spread_over_turns_of_the_loop(rows: int, size: int) -> None:
    loop = Loop()
    replicas = holders(loop, 5, rows, size)
    for replica in replicas:
        loop.front.apply_soon(replica)
    for turn in range(1, 6):
        loop.turn()
        assert sum(len(replica.applied_ms) for replica in replicas) == turn
    assert not loop.ready


def test_replies_that_wait_leave_before_large_writes_to_engines_and_ticks() -> None:
    loop = Loop()
    log: list[list[int]] = []
    (replica,) = holders(loop, 1, MANY)
    loop.front.write_waiting = lambda: log.append(list(replica.applied_ms))
    loop.front.apply_soon(replica)
    loop.turn()
    assert log == [[]]
    assert replica.applied_ms == [0]
    loop.front.hurry()
    loop.turn()
    assert log == [[], [0]]


def test_small_writes_to_engines_share_turns_of_the_loop() -> None:
    loop = Loop()
    replicas = holders(loop, 100, 40)
    for replica in replicas:
        loop.front.apply_soon(replica)
    turns = 0
    while loop.ready:
        loop.turn()
        turns += 1
    assert all(replica.applied_ms == [0] for replica in replicas)
    assert turns == 10


def test_who_has_written_meanwhile_waits_anew_and_nobody_waits_behind_it() -> None:
    loop = Loop()
    early, late = holders(loop, 2, 1)
    loop.front.lag(early)
    loop.at(100)
    loop.front.lag(late)
    loop.at(400)
    # It had many rows, and took them all to its engine; these are new.
    loop.front.lag(early)
    loop.at(2_000)
    assert late.applied_ms == [100 + WAIT_MS]
    assert early.applied_ms == [400 + WAIT_MS]
