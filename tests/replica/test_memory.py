"""A process without memory: writes wait, nothing is done by half, nothing acknowledged is lost."""

import random
from typing import Any

import pytest

from pegaskv.codec import mutations
from pegaskv.codec.operations import Operation
from pegaskv.replica import filling as filling_module
from pegaskv.replica import replica as replica_module
from pegaskv.replica import writes as writes_module
from pegaskv.replica.replay import mutation_rows
from pegaskv.storage.mutation_log import LogRecord, MutationLog
from tests.replica.stub_world import GPID, Connection, Server, play
from tests.simulation.world import Life, World


class Scarcity:
    """Lets a share of the calls of some function fail for want of memory."""

    def __init__(self, seed: int, share: float) -> None:
        self.random = random.Random(seed)
        self.share = share
        self.failures = 0

    def strike(self) -> None:
        if self.random.random() < self.share:
            self.failures += 1
            raise MemoryError

    def over(self, function: Any) -> Any:
        def scarce(*arguments: Any, **named: Any) -> Any:
            self.strike()
            return function(*arguments, **named)

        return scarce


async def opened(life: Life, *, first: bool, durability: str) -> Server:
    server = Server(life)
    await server.start()
    await server.serve(first=first, envs={"durability": durability})
    return server


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("seed", range(2))
def test_ticks_without_memory_are_made_again_and_lose_nothing(
    seed: int, durability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarcity = Scarcity(seed, 0.0)

    class ScarceLog(MutationLog):
        def append(self, records: list[LogRecord]) -> None:
            scarcity.strike()
            super().append(records)

    monkeypatch.setattr("pegaskv.replica.recovery.MutationLog", ScarceLog)
    monkeypatch.setattr(replica_module, "encode_mutation", scarcity.over(mutations.encode_mutation))

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True, durability=durability)
        assert isinstance(server.log, ScarceLog)
        scarcity.share = 0.6
        sent: list[int] = []
        for number in range(120):
            # Large ones fill mutations, so that one tick has many.
            value = bytes([number]) * (300_000 if number % 3 else 10)
            sent.append(server.send(Operation.SET, b"h", b"%d" % number, value, 0))
            if number % 7 == seed % 7:
                await life.clock.sleep_ms(seed)
        answers = [(await server.answer(each))[0] for each in sent]
        scarcity.share = 0.0
        assert scarcity.failures > 5
        assert server.fatal == server.crashes == []
        taken = [number for number, status in enumerate(answers) if status == 0]
        assert len(taken) > 30
        assert not server.stub._front._short  # type: ignore[union-attr]
        assert server.replica().uncommitted_bytes == 0
        for again in (False, True):
            if again:
                await server.stop()
                server = await opened(life, first=False, durability=durability)
            for number in taken:
                value = bytes([number]) * (300_000 if number % 3 else 10)
                assert await server.get(b"%d" % number) == value
        await server.stop()

    play(scenario, seed=seed)


def test_when_memory_never_comes_the_server_ends_and_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scarcity = Scarcity(0, 0.0)
    monkeypatch.setattr(replica_module, "encode_mutation", scarcity.over(mutations.encode_mutation))

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True, durability="fsync")
        await server.set(b"a", b"1")
        scarcity.share = 1.0
        server.send(Operation.SET, b"h", b"b", b"2", 0)
        await world.until(lambda: bool(server.fatal), limit_ms=60_000, what="the end")
        assert isinstance(server.fatal[0], MemoryError)
        await server.stop()
        scarcity.share = 0.0
        server = await opened(life, first=False, durability="fsync")
        assert await server.get(b"a") == b"1"
        await server.stop()

    play(scenario)


class ScarceConnection(Connection):
    """There is no memory for what it is to be sent."""

    aborted = False

    def answer_write(self, reply: list[int]) -> None:
        raise MemoryError

    def answer(self, frame: bytes, count: int) -> None:
        raise MemoryError

    def flush(self) -> None:
        if self.out:
            raise MemoryError

    def abort(self) -> None:
        self.closed = self.aborted = True


@pytest.mark.parametrize("durability", ["fsync", "os"])
@pytest.mark.parametrize("requests", [1, 2])
def test_a_reply_without_memory_ends_its_connection_and_no_other_waits(
    durability: str, requests: int
) -> None:
    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True, durability=durability)
        await server.set(b"before", b"1")
        good, scarce = server.connection, ScarceConnection()
        asked = []
        for number in range(3):
            for connection in (good, scarce):
                server.connection = connection
                if connection is good or number < requests:
                    asked.append((connection, server.send(Operation.SET, b"h", b"k", b"1", 0)))
        for connection, request in asked:
            server.connection = connection
            if connection is good:
                assert (await server.answer(request))[0] == 0
        assert scarce.aborted
        server.connection = good
        await server.set(b"after", b"1")
        assert not server.fatal

    play(scenario)


@pytest.mark.parametrize("seed", range(2))
def test_a_write_without_memory_is_in_the_batch_whole_or_not_at_all(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine gets and what the log has must stay the same, timestamps included."""
    scarcity = Scarcity(seed, 0.0)
    for module, names in (
        (writes_module, ("pack", "_pack_short", "pack_row_header")),
        (filling_module, ("pack", "encode_operation", "pack_row_header")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, scarcity.over(getattr(module, name)))

    async def scenario(world: World, life: Life) -> None:
        server = await opened(life, first=True, durability="fsync")
        scarcity.share = 0.3
        failed = 0
        for number in range(60):
            rows = [b"%d" % number, b"x", b"shared", b"%d" % number]
            for operation, *fields in (
                (Operation.SET, b"h", b"single", b"%d" % number, 0),
                (Operation.MULTI_SET, b"h", rows, 0),
                (Operation.MULTI_DELETE, b"h", [b"%d" % (number - 1), b"absent"]),
            ):
                try:
                    server.send(operation, *fields)
                except MemoryError:
                    failed += 1
                server.connection.flush()
            if number % 5 == 0:
                await life.clock.sleep_ms(5)
        scarcity.share = 0.0
        assert failed > 10
        await server.set(b"last", b"1")
        replica = server.replica()
        clock = replica.last_timestamp_us
        replica.apply_now()
        engine = server.engine()
        logged: dict[bytes, bytes | None] = {}
        for record in server.log.read(GPID, 1, 1 << 30):
            flat = mutation_rows(record.payload, record.decree)
            first, last = mutations.mutation_timestamps(record.payload)
            times = {int.from_bytes(row[4:12]) >> 8 for row in flat[1::2] if row is not None}
            assert times <= set(range(first, last + 1))
            assert last <= clock
            logged.update(zip(flat[::2], flat[1::2], strict=True))  # type: ignore[arg-type]
        assert len(logged) > 20
        assert {key: engine.get(key) for key in logged} == logged
        await server.stop()

    play(scenario, seed=seed)
