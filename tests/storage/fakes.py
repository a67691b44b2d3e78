"""What tests of the log share: a worker that can be held, a clock by hand, a disk's two ends."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from pegaskv.base.types import Gpid
from pegaskv.storage.log_format import LogRecord
from pegaskv.storage.log_options import LogOptions
from pegaskv.storage.log_recovery import RecoveredLog
from pegaskv.storage.mutation_log import MutationLog
from tests.coordination import inline_worker
from tests.simulation.disk import SimulatedDisk
from tests.simulation.errors import NodeDead

__all__ = [
    "LOG",
    "FakeClock",
    "InlineWorker",
    "everything",
    "killed",
    "opened",
    "power_cut",
    "record",
    "synced",
    "until_ready",
]

T = TypeVar("T")

LOG: Final = Path("/data/log")


class InlineWorker(inline_worker.InlineWorker):
    """Does its work in later turns of the loop; while `held` it only collects it."""

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self._kept: list[tuple[Callable[[], Any], Callable[..., Any]]] = []

    @property
    def kept(self) -> int:
        """How much it has collected."""
        return len(self._kept)

    def submit(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], Any]
    ) -> None:
        if self.held:
            self._kept.append((work, done))
        else:
            super().submit(work, done)

    def release(self) -> None:
        """Do from now on what was kept, in its order, and what comes."""
        self.held = False
        kept, self._kept = self._kept, []
        for work, done in kept:
            super().submit(work, done)


class FakeClock:
    """A clock that goes on when a test says so."""

    def __init__(self) -> None:
        self.now_ms = 0

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_us(self) -> int:
        return 1_700_000_000_000_000 + self.now_ms * 1_000

    async def sleep_ms(self, milliseconds: int) -> None:
        self.now_ms += milliseconds
        await asyncio.sleep(0)

    def timeout_ms(self, milliseconds: int) -> asyncio.Timeout:
        return asyncio.timeout(milliseconds / 1_000)


def killed(disk: SimulatedDisk) -> SimulatedDisk:
    """The disk as the next process sees it."""
    disk.kill()
    return disk.reborn()


def power_cut(disk: SimulatedDisk) -> SimulatedDisk:
    """The disk as the next boot sees it."""
    disk.power_cut()
    return disk.reborn()


def record(
    gpid: Gpid, decree: int, *, ballot: int = 1, incarnation: int = 1, size: int = 40
) -> LogRecord:
    """A record whose payload says whose it is."""
    payload = b"%d.%d:%d@%d;" % (*gpid, decree, ballot)
    payload *= size // len(payload) + 1
    return LogRecord(*gpid, incarnation, ballot, decree, decree - 1, decree * 10, payload)


def everything(gpid: Gpid, incarnation: int, decree: int) -> bool:
    """Every replica lacks everything."""
    return True


def opened(
    disk: SimulatedDisk,
    options: LogOptions,
    *,
    wanted: Callable[[Gpid, int, int], bool] = everything,
    worker: InlineWorker | None = None,
    background: InlineWorker | None = None,
    clock: FakeClock | None = None,
) -> tuple[MutationLog, RecoveredLog]:
    """Recover the log at its usual place."""
    return MutationLog.recover(
        disk,
        LOG,
        options=options,
        clock=clock or FakeClock(),
        worker=worker or InlineWorker(),
        background=background,
        wanted=wanted,
    )


async def until_ready(log: MutationLog, disk: SimulatedDisk) -> None:
    """Return when the log takes records, or is broken."""
    while not log.ready():
        if disk.dead:
            raise NodeDead("log")
        await asyncio.sleep(0)


def synced(log: MutationLog) -> asyncio.Future[None]:
    """Begin a sync; the future ends with it."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: BaseException | None) -> None:
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    # A test may end before it asks.
    future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    log.sync(done)
    return future
