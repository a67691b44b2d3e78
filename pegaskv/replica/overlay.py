"""pure: an engine's snapshot with rows laid over it that the engine does not take.

While an engine refuses writes (a full disk, a damaged table) it goes on answering reads;
what was committed since lies in memory. Range reads and scans see both through this.
"""

from collections.abc import Iterator, Mapping

from pegaskv.storage.engine import Snapshot, in_chunks

__all__ = ["OverlaidSnapshot"]


class OverlaidSnapshot:
    """A snapshot as if `rows` (None = removed) had been written to it; it owns the snapshot."""

    __slots__ = ("_rows", "_snapshot")

    def __init__(self, snapshot: Snapshot, rows: Mapping[bytes, bytes | None]) -> None:
        self._snapshot = snapshot
        self._rows = dict(rows)

    def get(self, key: bytes) -> bytes | None:
        """Return the row."""
        return self._rows[key] if key in self._rows else self._snapshot.get(key)

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False, marks: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) with start <= key < stop (b"" = no end) in key order, or downward."""
        keys = sorted(
            (key for key in self._rows if key >= start and (not stop or key < stop)),
            reverse=reverse,
        )
        # The last one comes first off the list.
        keys.reverse()
        for key, row in self._snapshot.iterate(start, stop, reverse=reverse, marks=marks):
            while keys and (keys[-1] > key if reverse else keys[-1] < key):
                yield from self._pair(keys.pop())
            if keys and keys[-1] == key:
                yield from self._pair(keys.pop())
            else:
                yield key, row
        while keys:
            yield from self._pair(keys.pop())

    def chunks(self, start: bytes, stop: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield what `iterate` yields upward with marks, as `in_chunks` cuts it."""
        return in_chunks(self.iterate(start, stop, marks=True))

    def _pair(self, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        row = self._rows[key]
        if row is not None:
            yield key, row

    def close(self) -> None:
        """Let the snapshot go; a second call does nothing."""
        self._snapshot.close()
