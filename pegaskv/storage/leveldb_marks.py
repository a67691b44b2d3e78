"""Marks among the removed rows of a LevelDB, so that a walk over millions of them can stop.

A removed row stays in LevelDB's files as a deletion until a compaction drops it, and one call
of an iterator passes all that stand in a row: 10 million take six seconds in which nobody
can say stop. So of every few thousand rows that are removed, chosen by a hash of the
key, one is not deleted but written as an empty row: a mark. No row of ours is empty, and
nobody sees a mark but a walk that asks for them.

A walk that met many marks and no row says where. The next flush compacts that range, which
drops the deletions, and the marks in it are deleted along with a later write.
"""

from typing import Any, Final

from xxhash import xxh3_64_intdigest

__all__ = ["Marks", "is_marked"]

# One key of so many; LevelDB passes as many deletions in 2 ms.
_ONE_OF: Final = 4_096
# A range is compacted when walks met so many marks in it, one page after the other.
_MANY: Final = 64
_RUNS_MAX: Final = 16
_DROPPED_MAX: Final = 100_000
_DROPPED_PER_WRITE: Final = 64


def is_marked(key: bytes) -> bool:
    """Whether the row of this key leaves a mark when it is removed."""
    return xxh3_64_intdigest(key) % _ONE_OF == 0


class Marks:
    """What one engine knows of its marks.

    Walks and flushes are in threads, writes wherever they are; each attribute is replaced as
    a whole.
    """

    __slots__ = ("_runs", "worn")

    def __init__(self) -> None:
        # By the last mark of a run: its first one, and how many there are.
        self._runs: dict[bytes, tuple[bytes, int]] = {}
        # Marks that nobody needs any more.
        self.worn: list[bytes] = []

    def met(self, first: bytes, last: bytes, count: int) -> None:
        """A walk upward met `count` marks and no row in between.

        One that goes on where an earlier one ended begins with the last mark of that.
        """
        runs = self._runs
        before = runs.pop(first, None)
        if before is not None:
            first, count = before[0], before[1] + count - 1
        runs[last] = (first, count)
        if len(runs) > _RUNS_MAX:
            runs.pop(next(iter(runs)), None)

    def tidy(self, db: Any) -> None:
        """Compact where many marks were met; blocks."""
        if self.worn:
            return
        runs, self._runs = self._runs, {}
        last, (first, count) = max(runs.items(), key=lambda run: run[1][1], default=(b"", (b"", 0)))
        if count < _MANY:
            return
        db.compact_range(start=first, stop=last)
        # It returns nothing; an error stops all later writes, so an empty one asks.
        db.write_batch().write()
        worn: list[bytes] = []
        with db.iterator(
            start=first, stop=last, include_stop=True, verify_checksums=True, fill_cache=False
        ) as rows:
            for key, row in rows:
                if not row:
                    worn.append(key)
                if len(worn) >= _DROPPED_MAX:
                    break
        self.worn = worn

    def drop_worn(self, get: Any, batch: Any) -> None:
        """Delete some of the marks that nobody needs; rows that the batch puts come after."""
        dropped, self.worn = self.worn[:_DROPPED_PER_WRITE], self.worn[_DROPPED_PER_WRITE:]
        for key in dropped:
            if get(key, verify_checksums=True) == b"":
                batch.delete(key)
