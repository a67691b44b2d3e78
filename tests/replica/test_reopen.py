"""An engine that fails is opened again: reads go on, writes wait, nothing is lost."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pegaskv
from pegaskv.errors import Busy
from pegaskv.storage.engine import Engine, ReplicaState
from pegaskv.storage.local_disk import LocalDisk
from pegaskv.storage.memory import MemoryFactory
from tests.helpers import poll_until
from tests.server.test_standalone import running


class FailingEngine:
    """An engine that refuses writes while its factory says so."""

    def __init__(self, factory: "FailingFactory", engine: Engine) -> None:
        self._factory = factory
        self._engine = engine

    def write(self, rows: list[bytes | None], state: ReplicaState) -> None:
        if self._factory.failing:
            self._factory.failures += 1
            raise OSError(errno.ENOSPC, "no space left for the test")
        self._engine.write(rows, state)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


class FailingFactory:
    """Opens engines that fail on demand, and counts those that are open."""

    def __init__(self) -> None:
        self.failing = False
        self.failures = 0
        self.opened = 0
        self._real = MemoryFactory(LocalDisk())

    def open(self, path: Path) -> Engine:
        self.opened += 1
        return FailingEngine(self, self._real.open(path))  # type: ignore[return-value]

    def open_checkpoint(self, checkpoint: Path, path: Path) -> Engine:
        return self._real.open_checkpoint(checkpoint, path)


@pytest.fixture
def factory() -> Iterator[FailingFactory]:
    return FailingFactory()


async def test_a_failed_engine_is_opened_again_and_brought_up_from_the_log(
    tmp_path: Path, factory: FailingFactory
) -> None:
    async with (
        running(tmp_path / "data", engine_factory=factory) as server,
        pegaskv.connect(server.address, timeout=20.0) as client,
    ):
        await client.admin.create_table("t", 1)
        table = await client.table("t")
        await table.set("h", "before", "1")
        opened = factory.opened
        factory.failing = True
        # Committed, since the log has it, and seen, though the engine refuses it.
        await table.set("h", "during", "2")
        await poll_until(lambda: factory.failures > 0)
        with pytest.raises((Busy, pegaskv.errors.Unavailable)):
            await table.set("h", "refused", "3", timeout=0.2)
        factory.failing = False
        await table.set("h", "after", "4")
        assert factory.opened > opened
        rows = await table.multi_get("h")
        assert dict(rows) == {b"after": b"4", b"before": b"1", b"during": b"2"}
        assert await table.count() == 3


async def test_what_was_acknowledged_while_the_engine_failed_is_there_after_a_restart(
    tmp_path: Path, factory: FailingFactory
) -> None:
    async with (
        running(tmp_path / "data", engine_factory=factory) as server,
        pegaskv.connect(server.address, timeout=20.0) as client,
    ):
        await client.admin.create_table("t", 1)
        table = await client.table("t")
        factory.failing = True
        await table.set("h", "s", "acknowledged")
        await poll_until(lambda: factory.failures > 0)
    factory.failing = False
    async with (
        running(tmp_path / "data", engine_factory=factory) as server,
        pegaskv.connect(server.address, timeout=20.0) as client,
    ):
        assert await (await client.table("t")).get("h", "s") == b"acknowledged"
