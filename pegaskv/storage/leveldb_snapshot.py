"""A LevelDB as it was at one moment: single rows, and walks up and down.

plyvel has two iterators. The one behind `iterator` takes a row in one call instead of three, two
thirds of the time, and says what is damaged on its way; but it just ends where the last block of a
table is damaged, so at its end the other one, `raw_iterator`, looks whether there is more.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import plyvel

from pegaskv.base.errors import CorruptionError
from pegaskv.storage.engine import EngineClosed, in_chunks
from pegaskv.storage.leveldb_errors import translate
from pegaskv.storage.leveldb_marks import Marks

__all__ = ["LevelDBSnapshot"]

_row_of: Final = itemgetter(1)


class LevelDBSnapshot:
    """The engine as it was at one moment; for one thread at a time."""

    __slots__ = ("_iterators", "_marks", "_snapshot", "_uses")

    def __init__(self, snapshot: Any, uses: list[None], marks: Marks) -> None:
        self._snapshot: Any = snapshot
        self._marks = marks
        self._uses = uses
        self._iterators: list[Any] = []

    def get(self, key: bytes) -> bytes | None:
        """Return the row as it was.

        Raises:
            CorruptionError: the table that holds it is damaged.
            EngineClosed: the snapshot was closed.

        """
        snapshot = self._open()
        try:
            return snapshot.get(key, verify_checksums=True) or None
        except plyvel.Error as error:
            raise translate(error) from None

    def iterate(
        self, start: bytes, stop: bytes, *, reverse: bool = False, marks: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, row) with start <= key < stop (b"" = no end) in key order, or downward.

        With `marks` also (key, b"") now and then where rows were removed.

        Raises:
            CorruptionError: a table in the range is damaged.
            EngineClosed: the snapshot was closed.

        """
        if not reverse:
            rows = chain.from_iterable(self.chunks(start, stop))
            return rows if marks else filter(_row_of, rows)
        # plyvel's other iterator misses a first row that equals `start`.
        raw = self._opened(self._open().raw_iterator(verify_checksums=True))
        downward = self._downward(raw, start, stop)
        return downward if marks else filter(_row_of, downward)

    def chunks(self, start: bytes, stop: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield what `iterate` yields upward with marks, as `in_chunks` cuts it; raises the same.

        An error comes behind the rows before it.
        """
        found = self._open().iterator(start=start or None, stop=stop or None, verify_checksums=True)
        return self._upward(self._opened(found), start, stop)

    def _upward(self, rows: Any, start: bytes, stop: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
        # The first of the marks since the last row, the last one, and how many.
        first = last = b""
        met = 0
        last_key = start
        try:
            with self._iterating(rows):
                for chunk in in_chunks(rows):
                    last_key, last_row = chunk[-1]
                    if met and (last_row or len(chunk) > 1):
                        self._marks.met(first, last, met)
                        first, met = b"", 0
                    if not last_row:
                        first, last, met = first or last_key, last_key, met + 1
                    yield chunk
                self._prove_end(last_key, stop)
        finally:
            if met:
                self._marks.met(first, last, met)

    def _prove_end(self, last_key: bytes, stop: bytes) -> None:
        """Raise if there is a damaged block behind the last row: plyvel's iterator just ends."""
        rows = self._open().raw_iterator(verify_checksums=True)
        try:
            rows.seek(last_key + b"\x00")
            key = rows.key()
        except plyvel.IteratorInvalidError:
            return
        finally:
            rows.close()
        if not stop or key < stop:
            raise CorruptionError(f"an iterator ended before {key!r}")

    def _open(self) -> Any:
        if self._snapshot is None:
            raise EngineClosed("snapshot is closed")
        return self._snapshot

    def _opened(self, rows: Any) -> Any:
        self._iterators.append(rows)
        return rows

    def _downward(self, rows: Any, start: bytes, stop: bytes) -> Iterator[tuple[bytes, bytes]]:
        key_of, row_of, advance = rows.key, rows.value, rows.prev
        with self._iterating(rows):
            if stop:
                rows.seek(stop)
            if stop and rows.valid():
                advance()
            else:
                rows.seek_to_last()
            while True:
                key = key_of()
                if key < start:
                    return
                yield key, row_of()
                advance()

    @contextmanager
    def _iterating(self, rows: Any) -> Iterator[None]:
        try:
            yield
        except plyvel.IteratorInvalidError:
            # Behind the last row, or before the first.
            return
        except plyvel.Error as error:
            raise translate(error) from None
        except RuntimeError:
            if self._snapshot is not None:
                raise
            raise EngineClosed("snapshot is closed") from None
        finally:
            rows.close()
            if rows in self._iterators:
                self._iterators.remove(rows)

    def close(self) -> None:
        """Let the snapshot go, with its iterators; a second call does nothing."""
        if self._snapshot is None:
            return
        snapshot, self._snapshot = self._snapshot, None
        for rows in self._iterators:
            rows.close()
        self._iterators.clear()
        snapshot.close()
        self._uses.pop()

    def __del__(self) -> None:
        # One that was forgotten must not keep the engine from closing for ever.
        self.close()
