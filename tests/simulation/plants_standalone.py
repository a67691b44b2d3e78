"""Old mistakes of one server, to be put back into production code by tests.

Each must be found by the random worlds of `standalone_world.py`: writers there know what
must be found after each kill and power cut.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest

from pegaskv.replica import recovery
from pegaskv.replica.front import Front
from pegaskv.storage import log_format, log_recovery
from pegaskv.storage.log_format import FRAME_BYTES, Frame, SegmentHeader
from pegaskv.storage.log_index import LogIndex
from pegaskv.storage.mutation_log import MutationLog
from tests.simulation.disk import SimulatedDisk

__all__ = ["PLANTS", "Plant"]

Patch = pytest.MonkeyPatch


def _acknowledge_before_the_sync(patch: Patch) -> None:
    def sync(self: MutationLog, done: Callable[[BaseException | None], Any]) -> None:
        self._worker.submit(lambda: None, lambda _, error: done(error))

    patch.setattr(MutationLog, "sync", sync)


def _acknowledge_before_the_append(patch: Patch) -> None:
    real = Front._tick

    def tick(self: Front) -> None:
        for replica in self._dirty:
            if replica.open is not None:
                for connection, reply in replica.open.replies:
                    connection.finish(list(reply))
                    connection.flush()
                replica.open.replies = []
        real(self)

    patch.setattr(Front, "_tick", tick)


def _lose_the_end_of_the_log(patch: Patch) -> None:
    real = recovery.split_history

    def short(valid: Any, flushed: int) -> Any:
        return real(list(valid)[:-1], flushed)

    patch.setattr(recovery, "split_history", short)


def _flush_less_than_is_said(patch: Patch) -> None:
    real = LogIndex.mark_flushed

    def more(self: LogIndex, gpid: Any, decree: int, now_ms: int) -> None:
        real(self, gpid, decree + 200, now_ms)

    patch.setattr(LogIndex, "mark_flushed", more)


def _leave_names_to_chance(patch: Patch) -> None:
    patch.setattr(SimulatedDisk, "fsync_dir", lambda self, path: self._check_alive())


class _AnyChecksum(int):
    """Equal to whatever it is compared with."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def _believe_any_bytes(patch: Patch) -> None:
    real = log_format.extend
    patch.setattr(log_format, "extend", lambda *parts: _AnyChecksum(real(*parts)))


def _take_a_torn_tail(patch: Patch) -> None:
    real = log_format.scan_frames

    def scan(data: bytes, header: SegmentHeader, start: int, base: int = 0) -> list[Frame]:
        frames = real(data, header, start, base)
        at = (frames[-1].end if frames else start) - base
        with pytest.MonkeyPatch.context() as careless:
            _believe_any_bytes(careless)
            if at + FRAME_BYTES <= len(data) and not (frames and frames[-1].is_footer):
                return frames + real(data, header, at + base, base)[:1]
        return frames

    for module in (log_format, log_recovery):
        if hasattr(module, "scan_frames"):
            patch.setattr(module, "scan_frames", scan)


@dataclass(frozen=True)
class Plant:
    """`seed` is one that has found it, tried before all others."""

    put_back: Callable[[Patch], None]
    seed: int = 0


PLANTS: Final[dict[str, Plant]] = {
    "a write is acknowledged before the sync": Plant(_acknowledge_before_the_sync),
    "a write is acknowledged before it is in the log": Plant(
        _acknowledge_before_the_append, seed=5
    ),
    "the replay stops one short": Plant(_lose_the_end_of_the_log),
    "more counts as flushed than is": Plant(_flush_less_than_is_said, seed=3),
    "the names in a directory are not synced": Plant(_leave_names_to_chance, seed=3),
    "checksums of the log are not looked at": Plant(_believe_any_bytes, seed=25),
    "a torn tail is taken for data": Plant(_take_a_torn_tail, seed=20),
}
