"""A toy server and its clients: what the simulator itself is tested with.

A register for each key behind a log on a simulated disk, served over the simulated network as
lines of text. Written once correctly, and with planted bugs of the kinds that the simulator is for:
a crash at the wrong moment, an order between callbacks, a cut in the wrong place of a message, an
answer taken for another's. A run ends with a check that a client alone could make: what was
acknowledged is there, and what is there was once written.

Run as a program it prints the digest of each seed, so that two processes can be compared:
`python -m tests.simulation.toy FIRST LAST`.
"""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final, cast

from pegaskv.runtime.tasks import TaskScope
from tests.simulation.disk import Fault, SimulatedDisk
from tests.simulation.world import Life, Node, World

__all__ = ["BUGS", "Outcome", "run"]

PORT: Final = 700
LOG: Final = Path("/data/log")
KEYS: Final = 4
CLIENTS: Final = 3
LINE_BYTES: Final = 16

# What each planted bug does wrong.
BUGS: Final = {
    "acknowledges before it syncs": "power loss takes acknowledged writes",
    "acknowledges another's sync": "a write that came during a sync counts as synced by it",
    "takes a piece for a line": "a line that arrives in two pieces is read as two",
    "mixes answers up": "answers are matched by order although two workers answer",
}


class Outcome:
    """What happened in a run, so that a test can see that it tested something."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.unknown = 0
        self.crashes = 0
        self.wrong: list[str] = []


class Store:
    """The server's state: values by key, made durable in batches."""

    def __init__(self, life: Life, bug: str) -> None:
        self._life = life
        self._bug = bug
        self._disk: SimulatedDisk = life.disk
        self._worker = life.worker("sync")
        self.values: dict[str, str] = {}
        self._waiting: list[Callable[[], None]] = []
        self._syncing = False
        self._end = 0
        if not self._disk.exists(LOG):
            self._disk.make_dirs(LOG.parent)
            self._disk.write_atomic(LOG, b"")
        self._file = self._disk.open(LOG, writable=True)
        self._replay()

    def set(self, key: str, value: str, acknowledge: Callable[[], None]) -> None:
        """Append now; acknowledge when a sync that began later has ended."""
        line = f"{key} {value}".ljust(LINE_BYTES - 1) + "\n"
        self._file.write_at(self._end, line.encode())
        self._end += LINE_BYTES
        self.values[key] = value
        if self._bug == "acknowledges before it syncs":
            acknowledge()
            self._waiting.append(lambda: None)
        else:
            self._waiting.append(acknowledge)
        self._sync()

    def _sync(self) -> None:
        if self._syncing or not self._waiting:
            return
        self._syncing = True
        batch, self._waiting = self._waiting, []

        def done(result: Any, error: BaseException | None) -> None:
            assert error is None
            self._syncing = False
            if self._bug == "acknowledges another's sync":
                batch.extend(self._waiting)
                self._waiting.clear()
            for acknowledge in batch:
                acknowledge()
            self._sync()

        self._worker.submit(self._file.fdatasync, done)

    def _replay(self) -> None:
        data = self._disk.read_bytes(LOG)
        for start in range(0, len(data) - LINE_BYTES + 1, LINE_BYTES):
            words = data[start : start + LINE_BYTES].split()
            if len(words) != 2 or data[start + LINE_BYTES - 1 : start + LINE_BYTES] != b"\n":
                break
            self.values[words[0].decode()] = words[1].decode()
            self._end = start + LINE_BYTES
        # What was read may be in the page cache alone, and will be shown to clients.
        self._file.truncate(self._end)
        self._file.fdatasync()


class Session(asyncio.Protocol):
    """One client's connection: `number set key value` or `number get key`, answered by number."""

    def __init__(self, life: Life, store: Store, bug: str) -> None:
        self._store = store
        self._bug = bug
        self._reader = life.worker("read")
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        lines = (self._buffer + data).split(b"\n")
        self._buffer = lines.pop()
        if self._bug == "takes a piece for a line" and self._buffer:
            lines.append(self._buffer)
            self._buffer = b""
        for line in lines:
            self._on_line(line.decode().split(" "))

    def _on_line(self, words: list[str]) -> None:
        match words:
            case [number, "set", key, value]:
                self._store.set(key, value, lambda: self._answer(number, "ok"))
            case [number, "get", key]:
                # Read in a thread, as a slow table would be: answers overtake one another.
                value = self._store.values.get(key, "-")
                self._reader.submit(
                    lambda: value, lambda result, error: self._answer(number, str(result))
                )

    def _answer(self, number: str, text: str) -> None:
        if self._transport is not None:
            self._transport.write(f"{number} {text}\n".encode())


async def serve(life: Life, bug: str) -> None:
    store = Store(life, bug)
    await life.network.listen(lambda: Session(life, store, bug), "0.0.0.0", PORT)
    await asyncio.Event().wait()


class Caller(asyncio.Protocol):
    """A client's connection; requests may overlap."""

    def __init__(self, life: Life, bug: str) -> None:
        self._life = life
        self._bug = bug
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._number = 0
        self._waiting: dict[int, asyncio.Future[str]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ConnectionResetError("lost"))
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        lines = (self._buffer + data).split(b"\n")
        self._buffer = lines.pop()
        for line in lines:
            number, text = line.decode().split(" ")
            key = next(iter(self._waiting)) if self._bug == "mixes answers up" else int(number)
            future = self._waiting.pop(key, None)
            if future is not None and not future.done():
                future.set_result(text)

    async def call(self, text: str) -> str:
        """Raises OSError or TimeoutError; then nobody knows whether it was done."""
        if self._transport is None:
            raise ConnectionResetError("lost")
        self._number += 1
        future = self._life.world.loop.create_future()
        self._waiting[self._number] = future
        self._transport.write(f"{self._number} {text}\n".encode())
        async with self._life.clock.timeout_ms(10_000):
            return cast(str, await future)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """Writes rising numbers to a key of its own, and reads it at the same time."""

    def __init__(self, life: Life, key: str, outcome: Outcome, bug: str) -> None:
        self._life = life
        self._key = key
        self._outcome = outcome
        self._bug = bug
        self._random = life.random("client")
        self._sent = 0
        self._acknowledged = 0

    async def work(self, server: Node, writes: int) -> None:
        """Write until `writes` are sent, over as many connections as it takes."""
        while self._sent < writes:
            try:
                await self._work_connected(server, writes)
            except OSError:
                await self._life.clock.sleep_ms(self._random.randint(1, 200))

    async def check(self, server: Node) -> None:
        """Read at the end; the server is up and the network whole."""
        caller = await self._connect(server)
        self._judge(await caller.call(f"get {self._key}"), self._acknowledged)
        caller.close()

    async def _connect(self, server: Node) -> Caller:
        _, protocol = await self._life.network.connect(
            lambda: Caller(self._life, self._bug), server.address, PORT
        )
        return cast(Caller, protocol)

    async def _work_connected(self, server: Node, writes: int) -> None:
        caller = await self._connect(server)
        try:
            while self._sent < writes:
                await self._write_and_read(caller)
        finally:
            caller.close()

    async def _write_and_read(self, caller: Caller) -> None:
        self._sent += 1
        sent, before = self._sent, self._acknowledged
        async with TaskScope("calls") as scope:
            read = scope.start("read", _outcome_of(caller.call(f"get {self._key}")))
            write = scope.start("write", _outcome_of(caller.call(f"set {self._key} {sent}")))
        value, answer = read.result(), write.result()
        if isinstance(value, str):
            self._judge(value, before)
        if isinstance(answer, OSError):
            self._outcome.unknown += 1
            raise answer
        if answer != "ok":
            self._outcome.wrong.append(f"set {self._key} {sent} was answered {answer!r}")
        self._outcome.acknowledged += 1
        self._acknowledged = sent

    def _judge(self, value: str, least: int) -> None:
        number = int(value) if value.isdigit() else 0 if value == "-" else -1
        if not least <= number <= self._sent:
            self._outcome.wrong.append(
                f"{self._key} is {value!r}; acknowledged {least}, sent {self._sent}"
            )


async def _outcome_of(call: Any) -> str | OSError:
    try:
        return cast(str, await call)
    except OSError as error:
        return error


async def _main(world: World, bug: str, outcome: Outcome, writes: int) -> None:
    random = world.random("faults")
    server = world.node("server")
    server.start(lambda life: serve(life, bug))
    lives = [world.node(f"client {number}").spawn() for number in range(CLIENTS)]
    clients = [Client(life, f"k{number}", outcome, bug) for number, life in enumerate(lives)]
    async with TaskScope("clients") as scope:
        tasks = [
            life.task(client.work(server, writes), name=f"{life.name} work")
            for life, client in zip(lives, clients, strict=True)
        ]
        faults = scope.start("faults", _disturb(world, random, server, bug, outcome))
        for task in tasks:
            await task
        faults.cancel()
    if not server.alive:
        server.start(lambda life: serve(life, bug))
    world.network.heal_all()
    await world.sleep_ms(5_000)
    for life, client in zip(lives, clients, strict=True):
        await life.task(client.check(server), name=f"{life.name} check")


async def _disturb(world: World, random: Random, server: Node, bug: str, outcome: Outcome) -> None:
    others = [node for node in world.nodes.values() if node is not server]
    while True:
        await world.sleep_ms(random.randint(1, 2_000))
        other = random.choice(others)
        match random.randrange(6):
            case 0 | 1:
                server.crash(power=random.random() < 0.7)
                outcome.crashes += 1
                await world.sleep_ms(random.randint(0, 500))
                server.start(lambda life: serve(life, bug))
            case 2:
                await _kill_at_an_io(server, random)
                outcome.crashes += 1
                server.start(lambda life: serve(life, bug))
            case 3:
                world.network.cut(server.address, other.address, both=random.random() < 0.5)
                await world.sleep_ms(random.randint(0, 3_000))
                world.network.heal_all()
            case 4:
                world.network.reset(server.address, other.address)
            case _:
                server.stall()
                await world.sleep_ms(random.randint(0, 500))
                server.resume()


async def _kill_at_an_io(server: Node, random: Random) -> None:
    """Cut the power at one of the next I/Os: there an answer that came too early shows."""
    assert server.life is not None
    disk = cast(SimulatedDisk, server.disk)
    disk.plan(random.randint(0, 20), random.choice([Fault.KILL_BEFORE, Fault.KILL_TORN]))
    try:
        async with asyncio.timeout(30):
            await asyncio.shield(server.life.ended)
    except TimeoutError:
        pass
    server.crash(power=True)


def run(
    seed: int, bug: str = "", *, writes: int = 40, trace_lines: int = 0
) -> tuple[World, Outcome]:
    """One run; the world is closed, its digest and options can be read."""
    assert not bug or bug in BUGS
    outcome = Outcome()
    with World(seed, disk=SimulatedDisk, trace_lines=trace_lines) as world:
        world.run(_main(world, bug, outcome, writes), limit_ms=3_600_000)
    return world, outcome


if __name__ == "__main__":
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        print(number, run(number)[0].digest())  # noqa: T201 - this is its output
