"""A replica against a dictionary, while its engine stalls, fails and is flushed, and it restarts.

One caller asks, one thing after another, so the right answer is always known. What the
engine has taken, what waits for it and what is in its thread must look like one table.
"""

import errno
from random import Random

import pytest

from pegaskv.codec.operations import Operation
from pegaskv.replica.options import ReplicaOptions
from pegaskv.storage.log_options import LogOptions
from tests.replica.stub_world import Server, play
from tests.simulation.world import Life, World

KEYS = [b"%d" % number for number in range(3)]
STEPS = 500
BUSY = (13, 20)


class Caller:
    """The dictionary, and the replica that must agree with it."""

    def __init__(self, world: World, life: Life, random: Random) -> None:
        self.world = world
        self.life = life
        self.random = random
        self.model: dict[bytes, bytes] = {}
        self.refused = self.failures = self.restarts = self.stalled = 0

    async def open(self, *, first: bool = False) -> None:
        options = LogOptions(log_segment_bytes=64 * 1024, flush_age_ms=2_000)
        # None, one or all of the rows are kept when they are read.
        cache = ReplicaOptions(row_cache_bytes=self.random.choice([0, 1_000, 1 << 20]))
        self.server = Server(self.life, log_options=options, options=cache)
        await self.server.start()
        await self.server.serve(first=first)
        self.server.slow("apply", self.random.choice([0, 3_000, 40_000]))

    async def ask(self, operation: Operation, *fields: object) -> list[object]:
        """Ask until it is neither Busy nor not ready."""
        while True:
            status, *rest = await self.server.ask(operation, *fields)
            if status not in BUSY:
                assert status == 0, rest
                return rest
            self.refused += 1
            await self.world.sleep_ms(20)

    async def step(self) -> None:
        key = self.random.choice(KEYS)
        value = b"%d" % self.random.randrange(1_000)
        model = self.model
        match self.random.randrange(8):
            case 0:
                await self.ask(Operation.SET, b"h", key, value, 0)
                model[key] = value
            case 1:
                await self.ask(Operation.DELETE, b"h", key)
                model.pop(key, None)
            case 2:
                _, new = await self.ask(Operation.INCR, b"h", key, 7, 0)
                model[key] = b"%d" % (int(model.get(key, b"0")) + 7)
                assert b"%d" % new == model[key]  # type: ignore[str-bytes-safe]
            case 3:
                reply = await self.ask(
                    Operation.CHECK_AND_SET, b"h", key, 1, b"", None, value, 0, True
                )
                assert reply[1:] == [key not in model, key in model, model.get(key)]
                model.setdefault(key, value)
            case 4:
                # In one mutation, which is on its way to the engine when the next one comes.
                requests = [
                    self.server.send(Operation.DELETE, b"h", key),
                    self.server.send(Operation.SET, b"h", key, value, 0),
                ]
                statuses = [(await self.server.answer(request))[0] for request in requests]
                if statuses[0] == 0:
                    model.pop(key, None)
                if statuses[1] == 0:
                    model[key] = value
                assert set(statuses) <= {0, *BUSY}
                self.server.replica().apply_now()
                await self.ask(Operation.DELETE, b"h", key)
                model.pop(key, None)
            case 5:
                flat = [part for one in KEYS for part in (b"h", one, value)]
                await self.ask(Operation.BATCH_SET, flat, 0)
                model.update(dict.fromkeys(KEYS, value))
            case 6:
                scan = (b"", b"", 0, 0, b"", 0, b"", 0, b"", 0, 0)
                _, _, rows = await self.ask(Operation.SCAN, *scan)
                assert isinstance(rows, list)
                found = {stored[3:]: value for stored, value in zip(rows[::2], rows[1::2])}  # noqa: B905
                assert found == model
            case _:
                await self.disturb()
        if self.server.replica().serving:
            for one in KEYS:
                status, found = (await self.server.ask(Operation.GET, b"h", one))[:2]
                assert status in BUSY or found == model.get(one)

    async def disturb(self) -> None:
        server, replica = self.server, self.server.replica()
        match self.random.randrange(7):
            case 0 | 1:
                # More often stalled than not: then the thread, the rows that wait and the engine
                # all have a part of the table.
                server.engine().is_calm = self.random.random() < 0.2
                self.stalled += 1
            case 2:
                replica.apply_now()
            case 3:
                server.engine().write_error = OSError(errno.EIO, "planned")
                self.failures += 1
            case 4:
                await server.stub._flush(replica)
            case 5:
                await self.world.sleep_ms(self.random.choice([1, 12, 3_000]))
            case _:
                await server.stop()
                assert not server.crashes
                self.restarts += 1
                await self.open()


@pytest.mark.parametrize("seed", range(12))
def test_a_replica_is_one_table_whatever_its_engine_does(seed: int) -> None:
    async def scenario(world: World, life: Life) -> Caller:
        caller = Caller(world, life, world.random("caller"))
        await caller.open(first=True)
        for _ in range(STEPS):
            await caller.step()
        while caller.server.replica().engine_failed is not None:
            await world.sleep_ms(1_000)
        for key in KEYS:
            assert await caller.server.get(key) == caller.model.get(key)
        assert not caller.server.crashes
        assert not caller.server.fatal
        await caller.server.stop()
        return caller

    caller = play(scenario, seed=seed)
    assert caller.stalled
    assert caller.failures
    assert caller.restarts
